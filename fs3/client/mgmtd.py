"""Talks to the management service: finds the primary among its addresses, keeps the routing info up to date."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from ..api.common import Method, Rep, Req
from ..api.mgmtd import GET_ROUTING, GetRoutingRequest, primary_of
from ..env import Env
from ..errors import Code, FS3Error
from ..routing import EMPTY, RoutingInfo
from ..rpc.client import RpcClient
from .retry import Backoff

logger = logging.getLogger("fs3.client.mgmtd")

POLL_MS = 30_000
"""How long mgmtd holds a question for newer routing before it says that there is none. That mgmtd is lost is noticed by
heartbeats earlier than by this."""
POLL_GRACE_MS = 2_000
"""How much longer than that an answer may take before mgmtd counts as lost."""
ATTEMPT_MS_MIN = 200
SCATTER_MS_PER_NODE, SCATTER_MS_MAX = 2, 2_000
"""Clients that lose mgmtd come to the next one over so long, by the size of the cluster: ten thousand new connections at one
moment would keep it from becoming primary."""
PROBE_MS = 250
"""After so long without news somebody who is in a hurry asks whether mgmtd is there at all."""

_BACKOFF = Backoff(first_s=0.02, max_s=1.0)


class MgmtdClient:
    """The management service as seen by one daemon or client. While it is away, the last routing info stays in use."""

    def __init__(self, env: Env, rpc: RpcClient, addresses: Sequence[str], urgent: bool = False) -> None:
        """addresses: of all mgmtd daemons, at least one. urgent: we take part in chains, and are told of news first."""
        assert addresses, "no address of mgmtd"
        self._env = env
        self._rpc = rpc
        self._addresses = tuple(addresses)
        self._urgent = urgent
        self._address = addresses[0]  # that of the primary, as far as we know
        self._silent = ""  # the last that did not answer: others may still take it for the primary
        self._open = trio.CancelScope()  # around the question for news; left when another is to be asked
        self._probing = False
        self._routing = EMPTY
        self._changed = trio.Event()
        self._hurry = trio.Event()
        self._polling = False

    @property
    def routing(self) -> RoutingInfo:
        """The latest known; routing.EMPTY before the first."""
        return self._routing

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the routing info up to date, until cancelled. Started once the first is there, however long that takes."""
        assert not self._polling, "run() twice"
        self._polling = True
        failures = 0
        started = False
        try:
            while True:
                try:
                    with trio.CancelScope() as self._open:
                        await self._poll(self._address, POLL_MS, self._env.monotonic() + (POLL_MS + POLL_GRACE_MS) / 1000)
                except FS3Error as error:
                    failures += 1
                    if failures == 2 * len(self._addresses):
                        logger.warning("lost mgmtd, going on with routing version %d: %s", self._routing.version, error)
                    if failures == 1 and error.code is not Code.NOT_PRIMARY and not self._urgent:
                        await self._scatter()
                    await self._pause(error, failures)
                    continue
                if failures >= 2 * len(self._addresses):
                    logger.warning("mgmtd is back at %s, routing version %d", self._address, self._routing.version)
                failures = 0
                if not started and self._routing is not EMPTY:
                    started = True
                    task_status.started()
        finally:
            self._polling = False

    async def refresh(self, newer_than: int, timeout_ms: int = 1000) -> RoutingInfo:
        """Wait for routing info newer than a version, asking mgmtd now. Returns the latest, even when none came in time."""
        deadline = self._env.monotonic() + timeout_ms / 1000
        with trio.move_on_after(timeout_ms / 1000):
            failures = 0
            while self._routing.version <= newer_than:
                if self._polling:
                    # The question is open at mgmtd already, or is asked again at once instead of after the back-off.
                    self._hurry.set()
                    with trio.move_on_after(PROBE_MS / 1000):
                        await self._changed.wait()
                        continue
                    await self._probe()
                    continue
                try:
                    await self._poll(self._address, timeout_ms, deadline)
                except FS3Error as error:
                    failures += 1
                    await self._pause(error, failures)
        return self._routing

    async def wait_change(self, version: int) -> RoutingInfo:
        """Wait until the routing info is of another version than `version`; then the latest."""
        while self._routing.version == version:
            await self._changed.wait()
        return self._routing

    async def call(self, method: Method[Req, Rep], request: Req, *, timeout_ms: int = 5000) -> Rep:
        """Call the primary, trying again (elsewhere) what may succeed then, until the time-out.

        A request whose answer was lost is sent again: FORMAT may so be told ALREADY_FORMATTED by its own first attempt.
        Raises mgmtd's error, DEADLINE_EXCEEDED with the last cause.
        """
        deadline = self._env.monotonic() + timeout_ms / 1000
        # One that does not answer at all must leave time for the others; twice each, since the primary may just change.
        attempt_s = max(ATTEMPT_MS_MIN, timeout_ms / (2 * len(self._addresses))) / 1000
        failures = 0
        while True:
            address = self._address
            now = self._env.monotonic()
            limit = deadline if len(self._addresses) == 1 else min(deadline, now + attempt_s)
            try:
                return await self._rpc.call(address, method, request, deadline=limit)
            except FS3Error as error:
                if not (error.retryable or error.code is Code.DEADLINE_EXCEEDED):
                    raise
                failures += 1
                self._elsewhere(address, error)
                delay_s = min(self._delay_s(error, failures), timeout_ms / 8000)
                if self._env.monotonic() + delay_s >= deadline:
                    message = f"mgmtd ({', '.join(self._addresses)}): no answer to {method.name} in {timeout_ms} ms: {error}"
                    raise FS3Error(Code.DEADLINE_EXCEEDED, message) from error
            await trio.sleep(delay_s)

    async def _probe(self) -> None:
        """See whether the one that our question is open at is there; one that is dead might hold it for long."""
        if self._probing:
            await self._changed.wait()
            return
        self._probing = True
        try:
            await self._poll(self._address, 0, self._env.monotonic() + 2 * PROBE_MS / 1000)
        except FS3Error as error:
            logger.debug("%s", error)
        finally:
            self._probing = False

    async def _poll(self, address: str, wait_ms: int, deadline: float) -> None:
        """Ask one mgmtd for newer routing info and take it in."""
        base = self._routing
        request = GetRoutingRequest(base.version, wait_ms, True, self._urgent)
        try:
            reply = await self._rpc.call(address, GET_ROUTING, request, deadline=deadline)
            if self._env.rare("client.routing.late"):
                await trio.sleep(0.3)
            delta = reply.delta
            if delta is not None and (delta.base, delta.cluster) != (base.version, base.cluster):
                reply = await self._rpc.call(address, GET_ROUTING, GetRoutingRequest(0), deadline=deadline)
                delta = reply.delta
            if delta is not None:
                self._take(delta.apply(base), base)
            elif reply.routing is not None:
                self._take(reply.routing.to_info(), base)
        except FS3Error as error:
            self._elsewhere(address, error)
            raise

    def _take(self, info: RoutingInfo, base: RoutingInfo) -> None:
        """Take in the answer to a question that was asked when we knew `base`."""
        known = self._routing
        if known is not EMPTY and info.cluster != known.cluster:
            logger.error("mgmtd now serves cluster %s instead of %s: its data was replaced", info.cluster, known.cluster)
        elif info.version < base.version:
            raise FS3Error(Code.NO_ROUTING, f"mgmtd has routing version {info.version}, older than ours, {base.version}")
        elif info.version <= known.version:
            return  # another task has asked too
        self._routing = info
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _elsewhere(self, failed: str, error: FS3Error) -> None:
        """Choose whom to ask next, unless another task has chosen already."""
        named = primary_of(error)
        if error.code is not Code.NOT_PRIMARY:
            self._silent = failed
        elif failed == self._silent:
            self._silent = ""
        if self._address != failed:
            return
        if not named or named in (failed, self._silent):
            # An address that only a NOT_PRIMARY named is not among ours: begin with the first.
            position = self._addresses.index(failed) + 1 if failed in self._addresses else 0
            named = self._addresses[position % len(self._addresses)]
        if named != failed or error.code is not Code.NOT_PRIMARY:
            self._address = named
            self._open.cancel()  # who does not answer one call may never answer that question either

    def _delay_s(self, error: FS3Error, failures: int) -> float:
        """How long to wait after so many failures in a row: not at all while there are other daemons to ask."""
        if primary_of(error) and failures <= 2:
            return 0.0
        rounds = failures // len(self._addresses)
        return _BACKOFF.delay_s(rounds, self._env.random.random) if rounds else 0.0

    async def _scatter(self) -> None:
        """Wait for our turn among all clients; cut short by a refresh."""
        limit_ms = min(SCATTER_MS_MAX, SCATTER_MS_PER_NODE * len(self._routing.nodes))
        if limit_ms:
            self._hurry = trio.Event()
            with trio.move_on_after(limit_ms / 1000 * self._env.random.random()):
                await self._hurry.wait()

    async def _pause(self, error: FS3Error, failures: int) -> None:
        """Wait before the next attempt; cut short by a refresh, but never below the first back-off."""
        delay_s = self._delay_s(error, failures)
        first_s = min(delay_s, _BACKOFF.first_s)
        self._hurry = trio.Event()
        await trio.sleep(first_s)
        with trio.move_on_after(delay_s - first_s):
            await self._hurry.wait()
