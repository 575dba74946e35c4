"""The lease that a daemon or client has with mgmtd: registration, heartbeats, and when to stop for want of answers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ..api.mgmtd import (
    HEARTBEAT,
    REGISTER,
    UNREGISTER,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
    UnregisterRequest,
)
from ..env import Env
from ..errors import Code, FS3Error
from .mgmtd import MgmtdClient

logger = logging.getLogger("fs3.client.lease")

REGISTER_ATTEMPT_MS = 2_000
HEARTBEAT_ATTEMPT_MS_MIN = 50
PAUSE_MS = 50
"""Between attempts, however fast the one before failed."""
UNREGISTER_MS = 1_000


def _no_targets() -> tuple[TargetReport, ...]:
    return ()


def _no_config() -> tuple[int, str]:
    return 0, ""


class Lease:
    """One incarnation of a node. mgmtd calls it dead a lease time T after its last heartbeat; it gives up itself after T/2.

    All times are the monotonic clock's, counted from when the answered request was sent.
    """

    def __init__(
        self,
        env: Env,
        mgmtd: MgmtdClient,
        request: Callable[[], RegisterRequest],
        targets: Callable[[], tuple[TargetReport, ...]] = _no_targets,
        config: Callable[[], tuple[int, str]] = _no_config,
    ) -> None:
        """request: what to register, made anew for each attempt, always of the same incarnation.

        targets: what heartbeats report; always all targets, since mgmtd takes a missing one for offline.
        config: the version of mgmtd's configuration that is in use, and the problem with it.
        """
        self._env = env
        self._mgmtd = mgmtd
        self._request = request
        self._targets = targets
        self._config = config
        self._config_version = 0  # the latest that mgmtd has told of
        self._config_told = trio.Event()
        self._poked = trio.Event()
        self._sent_at = 0.0  # when the request that was answered last had been sent
        self._lease_s = 0.0
        self.node = 0
        """The node's id, once registered."""
        self.incarnation = 0

    @property
    def expires_at(self) -> float:
        """When (env.monotonic()) this node must have stopped serving, unless a heartbeat is answered before."""
        return self._sent_at + self._lease_s / 2

    @property
    def ends_at(self) -> float:
        """Before when (env.monotonic()) mgmtd does not call this node dead, if no more heartbeat is answered."""
        return self._sent_at + self._lease_s

    def holds(self) -> bool:
        """Whether it may serve now. For those that run right after a long stall, before run() could notice it."""
        return self._env.monotonic() < self.expires_at

    async def run(self, *, task_status: trio.TaskStatus[RegisterReply] = trio.TASK_STATUS_IGNORED) -> None:
        """Register (for as long as it takes), then send heartbeats until cancelled.

        Raises STALE_INCARNATION when superseded, or when no heartbeat was answered for half the lease; mgmtd's error
        where it refuses the registration (CONFIG: an id that another kind of node has; a target that is served elsewhere).
        """
        reply = await self._register()
        self.node = reply.node
        # It may have come late, after attempts that were lost: answer for ourselves only with a lease that is fresh.
        while self._env.monotonic() >= self._sent_at + self._lease_s / 4:
            await self._heartbeat(self._env.monotonic() + self._lease_s / 4)
        task_status.started(reply)
        while True:
            with trio.move_on_after(max(0.0, self._sent_at + self._lease_s / 4 - self._env.monotonic())):
                await self._poked.wait()
            if self._env.rare("client.heartbeat.late"):
                await trio.sleep(self._lease_s / 8)
            await self._heartbeat(self.expires_at)

    def poke(self) -> None:
        """Send a heartbeat now: a target's state changed."""
        self._poked.set()

    async def wait_config(self, known: int) -> int:
        """Wait until mgmtd's configuration for us is of another version than `known`; then that."""
        while self._config_version == known:
            await self._config_told.wait()
        return self._config_version

    async def unregister(self) -> None:
        """End the lease after a clean stop, so that nobody waits for it. Never raises but when cancelled."""
        if self.node == 0:
            return
        try:
            request = UnregisterRequest(self.node, self.incarnation)
            await self._mgmtd.call(UNREGISTER, request, timeout_ms=UNREGISTER_MS)
        except FS3Error as error:
            logger.warning("node %d could not say goodbye to mgmtd, its lease will run out: %s", self.node, error)

    async def _register(self) -> RegisterReply:
        failed = False
        while True:
            request = self._request()
            sent_at = self._env.monotonic()
            self._poked = trio.Event()
            try:
                reply = await self._mgmtd.call(REGISTER, request, timeout_ms=REGISTER_ATTEMPT_MS)
            except FS3Error as error:
                if not (error.retryable or error.code is Code.DEADLINE_EXCEEDED):
                    raise
                if not failed:
                    logger.warning("cannot register yet, trying on: %s", error)
                failed = True
                await trio.sleep(PAUSE_MS / 1000)
                continue
            self.incarnation = request.incarnation
            self._answered(sent_at, reply)
            return reply

    async def _heartbeat(self, give_up_at: float) -> None:
        """Have one heartbeat answered. Raises STALE_INCARNATION where that did not happen by then."""
        attempt_s = max(HEARTBEAT_ATTEMPT_MS_MIN / 1000, self._lease_s / 8)
        last: FS3Error | None = None
        while (sent_at := self._env.monotonic()) < give_up_at:
            self._poked = trio.Event()
            version, problem = self._config()
            request = HeartbeatRequest(self.node, self.incarnation, self._targets(), "", version, problem)
            timeout_ms = max(1, int(min(attempt_s, give_up_at - sent_at) * 1000))
            try:
                reply = await self._mgmtd.call(HEARTBEAT, request, timeout_ms=timeout_ms)
            except FS3Error as error:
                if not (error.retryable or error.code is Code.DEADLINE_EXCEEDED):
                    raise
                last = error
                left_s = give_up_at - self._env.monotonic()
                await trio.sleep(max(0.0, min(PAUSE_MS / 1000, left_s)))
                continue
            self._answered(sent_at, reply)
            return
        waited_ms = (self._env.monotonic() - self._sent_at) * 1000
        message = f"node {self.node}: no heartbeat was answered for {waited_ms:.0f} ms, half of the lease or more"
        raise FS3Error(Code.STALE_INCARNATION, f"{message}: {last}" if last is not None else message) from last

    def _answered(self, sent_at: float, reply: RegisterReply | HeartbeatReply) -> None:
        self._sent_at = sent_at
        self._lease_s = reply.lease_ms / 1000
        if reply.config_version != self._config_version:
            self._config_version = reply.config_version
            self._config_told.set()
            self._config_told = trio.Event()
