"""Requests about the central configuration, and this mgmtd's own use of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fs3.api.admin import (
    CONFIG_HISTORY,
    CONFIG_USE,
    GET_CONFIG,
    SET_CONFIG,
    ConfigHistoryReply,
    ConfigHistoryRequest,
    ConfigUse,
    ConfigUseReply,
    ConfigVersion,
    GetConfigRequest,
    SetConfigRequest,
)
from fs3.api.common import Empty
from fs3.env import Env
from fs3.errors import FS3Error
from fs3.rpc.server import Call, RpcServer
from fs3.settings import KINDS, MgmtdSettings, differences, in_words, merged

from .cluster import Cluster, Timing
from .state import Change

logger = logging.getLogger("fs3.mgmtd.config")

_KIND = KINDS["mgmtd"]


class ConfigService:
    """The handlers of one mgmtd, which it has while it is primary or not.

    change: makes a change, commits and applies it, as the service does it. primary: the cluster, or NOT_PRIMARY. own: this
    daemon's configuration, which may be more than the settings. lease_ms: of daemons, which is none of them.
    """

    def __init__(
        self,
        env: Env,
        node: int,
        own: MgmtdSettings,
        lease_ms: int,
        change: Callable[[Callable[[Cluster, float], tuple[Change, ConfigVersion]]], Awaitable[ConfigVersion]],
        primary: Callable[[], Cluster],
    ) -> None:
        self._env = env
        self._node = node
        self._own = own
        self._lease_ms = lease_ms
        self._change = change
        self._primary = primary
        self._settings: MgmtdSettings = merged(_KIND, own, {})[0]
        self._version = 0
        self._problem = ""

    def bind(self, server: RpcServer) -> None:
        server.handle(GET_CONFIG, self._get)
        server.handle(SET_CONFIG, self._set)
        server.handle(CONFIG_HISTORY, self._history)
        server.handle(CONFIG_USE, self._uses)

    @property
    def timing(self) -> Timing:
        """As our settings have it."""
        return self._timing(self._settings)

    def use(self, version: ConfigVersion) -> Timing:
        """Take in what is set for mgmtd; returns the timing that the cluster has from now on."""
        before = self._settings
        settings, problems = merged(_KIND, self._own, {setting.key: setting.value for setting in version.settings})
        self._settings, self._version, self._problem = settings, version.version, "; ".join(problems)
        changed = differences(before, settings)
        if changed:
            logger.info("configuration version %d: %s", version.version, in_words(settings, changed))
        if settings.log_level != before.log_level:
            self._env.set_log_level(settings.log_level)
        return self.timing

    def _timing(self, settings: MgmtdSettings) -> Timing:
        return Timing(self._lease_ms, settings.client_lease_ms, settings.forget_client_ms)

    async def _get(self, request: GetConfigRequest, call: Call) -> ConfigVersion:
        return self._primary().state.configs.get(request.kind, request.version)

    async def _set(self, request: SetConfigRequest, call: Call) -> ConfigVersion:
        def make(cluster: Cluster, now: float) -> tuple[Change, ConfigVersion]:
            return cluster.set_config(request, self._env.wall_ns() // 1_000_000, self._timing_after)

        version = await self._change(make)
        if request.kind == _KIND.name and version.version > self._version:
            timing = self.use(version)
            with suppress(FS3Error):  # no longer primary: who is has read it from the store
                self._primary().timing = timing
        return version

    def _timing_after(self, version: ConfigVersion) -> Timing:
        """What our timing will be with a version of mgmtd's settings."""
        central = {setting.key: setting.value for setting in version.settings}
        return self._timing(merged(_KIND, self._own, central)[0])

    async def _history(self, request: ConfigHistoryRequest, call: Call) -> ConfigHistoryReply:
        return ConfigHistoryReply(tuple(self._primary().state.configs.history(request.kind, request.limit)))

    async def _uses(self, request: Empty, call: Call) -> ConfigUseReply:
        mine = ConfigUse(self._node, "mgmtd", self._version, self._problem)
        return ConfigUseReply((mine, *self._primary().config_uses()))
