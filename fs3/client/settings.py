"""What a daemon or client uses of the configuration in mgmtd: fetched when a heartbeat tells of a new one, and applied."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic

import trio

from ..api.admin import GET_CONFIG, ConfigVersion, GetConfigRequest
from ..env import Env
from ..errors import FS3Error
from ..settings import KINDS, S, differences, in_words, merged
from .lease import Lease
from .mgmtd import MgmtdClient

logger = logging.getLogger("fs3.client.settings")

FETCH_MS = 5_000
RETRY_S = 1.0
PROBLEM_MAX = 500
"""Characters of it that heartbeats carry."""


async def nothing(settings: object) -> None:
    """For those that read the settings when they need them."""


class CentralSettings(Generic[S]):
    """The settings of one process: its own, above those of mgmtd, above the defaults."""

    def __init__(
        self,
        env: Env,
        kind: str,
        own: S,
        apply: Callable[[S], Awaitable[None]] = nothing,
        *,
        own_log: bool = True,
    ) -> None:
        """own: the process's configuration, which may be more than the settings. apply: brings changed settings to where
        they are used; what it raises is told to mgmtd. own_log: whether log_level is ours to change in this process."""
        self._env = env
        self._kind = KINDS[kind]
        self._own: S = own
        self._own_log = own_log
        self.apply: Callable[[S], Awaitable[None]] = apply
        self.settings: S = merged(self._kind, own, {})[0]
        """Those in force."""
        self.version = 0
        """Of mgmtd's configuration; 0: none yet."""
        self.problem = ""
        """What of it is not in force, and why."""

    def use(self) -> tuple[int, str]:
        """What heartbeats tell: version and problem."""
        return self.version, self.problem

    async def follow(self, mgmtd: MgmtdClient, lease: Lease) -> None:
        """Fetch and apply what is new, until cancelled."""
        seen = self.version
        while True:
            told = await lease.wait_config(seen)
            try:
                found = await mgmtd.call(GET_CONFIG, GetConfigRequest(self._kind.name), timeout_ms=FETCH_MS)
            except FS3Error as error:
                logger.warning("configuration version %d cannot be had yet, going on as before: %s", told, error)
                await trio.sleep(RETRY_S)
                continue
            seen = told
            await self.take(found)
            lease.poke()  # whoever has set it waits to see that we use it

    async def take(self, found: ConfigVersion) -> None:
        """Use a version. What cannot be used is logged and told to mgmtd, and the rest is used."""
        central = {setting.key: setting.value for setting in found.settings}
        settings, problems = merged(self._kind, self._own, central)
        changed = differences(self.settings, settings)
        if changed:
            logger.info("configuration version %d: %s", found.version, in_words(settings, changed))
        old_level = self.settings.log_level
        self.settings = settings
        if self._own_log and settings.log_level != old_level:
            self._env.set_log_level(settings.log_level)
        try:
            await self.apply(settings)
        except (FS3Error, OSError, ValueError) as error:
            problems.append(f"{in_words(settings, changed)}: {error}")
        except Exception as error:
            logger.exception("configuration version %d cannot be applied", found.version)
            problems.append(f"{in_words(settings, changed)}: {error!r}")
        problem = "; ".join(problems)[:PROBLEM_MAX]
        if problem and problem != self.problem:
            logger.warning("configuration version %d: %s", found.version, problem)
        self.version, self.problem = found.version, problem
