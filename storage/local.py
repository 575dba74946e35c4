"""What a storage daemon shares between its parts: its targets with their state, locks and roles, and the way to others."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from fs3.api.common import Method, Rep, Req
from fs3.api.storage import UpdateResult
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag
from fs3.routing import LocalState, PublicState, RoutingInfo
from fs3.settings import StorageSettings
from fs3.transport.base import Part
from fs3.transport.buffers import BufferPool

from .channels import Channels
from .engine import Engine
from .targets import Role, TargetMap

logger = logging.getLogger("fs3.storage")

DAMAGE = (Code.CHECKSUM, Code.READ_FAILED)
"""The codes of what an engine cannot read."""

READ_FAILURES_S = 3600.0
"""A disk that fails too many reads within so long is given up."""

CHANNEL_IDLE_S = 3600.0
"""A client that has not used a channel for so long will not retry its last request."""


class Caller(Protocol):
    """The part of RpcClient that is used here."""

    async def call(
        self,
        address: str,
        method: Method[Req, Rep],
        request: Req,
        *,
        deadline: float,
        payload: Sequence[Part] = (),
        relayed: bool = False,
    ) -> Rep: ...

    async def call_bulk(
        self,
        address: str,
        method: Method[Req, Rep],
        request: Req,
        *,
        deadline: float,
        payload: Sequence[Part] = (),
        into: memoryview | None = None,
        relayed: bool = False,
    ) -> tuple[Rep, memoryview]: ...


class RoutingSource(Protocol):
    """The part of MgmtdClient that is used here."""

    @property
    def routing(self) -> RoutingInfo: ...

    def wait_change(self, version: int) -> Awaitable[RoutingInfo]: ...


class ChunkLocks:
    """One lock per chunk, handed over in order of arrival. Free locks cost nothing."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[ChunkId, trio.lowlevel.ParkingLot | None] = {}

    async def acquire(self, chunk: ChunkId) -> None:
        """Does not give way to other tasks when the lock is free."""
        if chunk not in self._held:
            self._held[chunk] = None
            return
        lot = self._held[chunk]
        if lot is None:
            lot = self._held[chunk] = trio.lowlevel.ParkingLot()
        await lot.park()  # who releases hands the lock over

    def release(self, chunk: ChunkId) -> None:
        lot = self._held[chunk]
        if lot:
            lot.unpark()
        else:
            del self._held[chunk]

    def held(self) -> list[ChunkId]:
        return list(self._held)


class LocalTarget:
    """One target of this daemon."""

    def __init__(self, target: int, disk: int, engine: Engine, now: float) -> None:
        self.id = target
        self.disk = disk
        self.engine = engine
        self.locks = ChunkLocks()
        self.channels = Channels()
        for tag, result in engine.channels():
            self.channels.restore(tag, result, now)
        self.role: Role | None = None
        self.changed = trio.Event()  # set, and replaced, when the role changes
        self.forwards: set[trio.CancelScope] = set()  # calls under way to the successor
        self.orphaned = trio.Event()  # there may be pending versions that nobody works on
        self.synced_version = 0  # the chain version at which our predecessor told us that we have everything
        self.failed = ""  # why the disk cannot be used any more
        self.suspects: dict[ChunkId, None] = {}  # chunks that may be damaged, for repair.py
        self.suspected = trio.Event()  # there is a new suspect, or a new way to repair one
        self.damaged: set[ChunkId] = set()  # those that were counted as damaged and are not repaired
        self.lost: set[ChunkId] = set()  # those of them that no other target has
        self.removals: dict[RequestTag, int] = {}  # files' chunks that were removed, while not all know of it: how many
        self.scrubbed_to: ChunkId | None = None  # where the scrubber was when the target was opened; None: at the start
        self.save_scrubbed: Callable[[ChunkId | None], None] = lambda chunk: None
        self.empty = False  # it has lost its content and must not speak for its chain yet, see rebuild.py
        self.stopped = 0  # not 0: it is asked to leave its chain, at this routing version, and takes nothing on any more
        self.left = 0  # the same, once what was under way has ended: it may come back before long, in another place
        self.leaves = trio.Event()  # set, and replaced, when `stopped` becomes another one
        self.emptied = 0  # it was opened afresh because it was retired at this routing version
        self.full_until = 0.0  # it could not be filled for want of space; not tried again before

    def take_role(self, role: Role | None) -> bool:
        """Follow the routing. Whether anything changed for this target."""
        before = self.role
        if role == before:
            return False
        self.role = role
        if role is None or before is None or role.chain != before.chain:
            self.synced_version = 0
        if before is not None and before.successor is not None and (role is None or role.successor != before.successor):
            for scope in self.forwards:
                scope.cancel()
        self.changed.set()
        self.changed = trio.Event()
        self.orphaned.set()
        self.suspected.set()
        return True

    def stop(self, since: int) -> None:
        """Take nothing on any more, as asked for at this routing version; 0: go on."""
        self.stopped, self.left = since, 0 if self.locks.held() else since
        leaves, self.leaves = self.leaves, trio.Event()
        leaves.set()
        self.orphaned.set()

    def local_state(self) -> LocalState:
        """What we report of it: up to date when it serves, or when it was told that its recovery is complete."""
        if self.failed or self.empty or self.full_until:
            return LocalState.OFFLINE
        role = self.role
        if role is not None and (
            role.state is PublicState.SERVING
            or (role.state is PublicState.SYNCING and self.synced_version == role.chain_version)
        ):
            return LocalState.UPTODATE
        return LocalState.ONLINE

    def finish(self, tag: RequestTag, result: UpdateResult, now: float) -> None:
        """Remember the result of a request."""
        if tag.client == 0:
            return
        self.channels.finish(tag, result, now)
        dropped = self.channels.drop_excess()
        if dropped:
            self.engine.forget(dropped)

    def learn(self, done: Sequence[tuple[RequestTag, UpdateResult]], now: float) -> None:
        """Remember what other replicas have done, over a restart too."""
        for tag, result in done:
            if self.channels.learn(tag, result, now):
                self.engine.remember(tag, result)
        self.engine.forget(self.channels.drop_excess())


class TagSource:
    """Tags for requests that this daemon makes on its own account: one channel for each that is outstanding."""

    def __init__(self, client: int) -> None:
        self._client = client
        self._free: list[int] = []
        self._sequences: list[int] = []

    def take(self) -> RequestTag:
        if not self._free:
            self._free.append(len(self._sequences))
            self._sequences.append(0)
        channel = self._free.pop()
        self._sequences[channel] += 1
        return RequestTag(self._client, channel, self._sequences[channel])

    def give_back(self, tag: RequestTag) -> None:
        self._free.append(tag.channel)


class StorageNode:
    """The targets of one daemon, and what it takes to serve them."""

    def __init__(self, env: Env, rpc: Caller, mgmtd: RoutingSource, targets: Sequence[LocalTarget]) -> None:
        self.env = env
        self.rpc = rpc
        self.mgmtd = mgmtd
        self.targets = {target.id: target for target in targets}
        self.map = TargetMap(-1, {})
        self.tags = TagSource(env.client_id())
        self.buffers = BufferPool()  # for what is read
        self.settings = StorageSettings(resync_rate_bytes=0, scrub_rate_bytes=0, scrub_period_ms=0)
        self.retuned = trio.Event()  # set, and replaced, when the settings change
        self._read_failures: dict[int, deque[float]] = {}  # disk -> when
        self.on_change: Callable[[], None] = lambda: None  # a target's state changed: mgmtd should know
        self.may_serve: Callable[[], bool] = lambda: True  # whether our lease holds; asked before each request is served

    def use_settings(self, settings: StorageSettings) -> None:
        """Work with these from now on; who waits because of others looks again."""
        self.settings = settings
        retuned, self.retuned = self.retuned, trio.Event()
        retuned.set()

    def take_routing(self, routing: RoutingInfo) -> None:
        """Follow new routing, all at once."""
        self.map = TargetMap.of(routing, self.targets.keys())
        changed = []
        for target in self.targets.values():
            entry = routing.targets.get(target.id)
            stopped = entry.since if entry is not None and entry.leaving else 0
            if stopped != target.stopped:
                target.stop(stopped)
                changed.append(True)
            before = target.role
            changed.append(target.take_role(self.map.roles.get(target.id)))
            self._forget_requests(target, before)
        for target in self.targets.values():
            if target.role is not None:
                self.map.roles[target.id] = target.role  # an equal role stays the same object: it is compared by identity
        if any(changed):
            self.on_change()

    def _forget_requests(self, target: LocalTarget, before: Role | None) -> None:
        """A target that begins to be filled is told by its predecessor which requests are done. What it knew itself may be
        of a time that was given up (mgmtd's chains.give_up)."""
        role = target.role
        if role is None or role is before or role.state is not PublicState.SYNCING:
            return
        if before is not None and before.state in (PublicState.SERVING, PublicState.SYNCING):
            return
        target.removals.clear()
        try:
            target.engine.forget(target.channels.drop_idle(math.inf))
        except FS3Error as error:
            if error.code is Code.NO_SPACE:
                self.cannot_fill(target, error)
            else:
                self.disk_failed(target, error)

    def target(self, role: Role) -> LocalTarget:
        """The target of a role. Raises DISK_FAILED once its disk failed, NOT_SERVING when this process slept too long, or
        when the target is asked to leave its chain."""
        target = self.targets[role.target]
        if target.stopped:
            raise FS3Error(Code.NOT_SERVING, f"target {target.id} is leaving chain {role.chain}")
        if not self.may_serve():
            raise FS3Error(Code.NOT_SERVING, "this node's lease is not renewed")
        if target.failed:
            raise FS3Error(Code.DISK_FAILED, f"target {target.id}: {target.failed}")
        return target

    def suspect(self, target: LocalTarget, chunk: ChunkId, error: FS3Error | None = None) -> None:
        """A chunk could not be read, or not verified: have a look at it, and repair it if need be."""
        if error is not None and error.code is Code.READ_FAILED:
            self._read_failed(target, error)
        if chunk not in target.suspects:
            self.env.metrics.count("storage.suspected_chunks")
            target.suspects[chunk] = None
            target.suspected.set()

    def unreadable(self, target: LocalTarget, chunk: ChunkId, error: FS3Error) -> FS3Error:
        """A chunk could not be read: suspects it, and returns what to tell the one who wanted it."""
        self.suspect(target, chunk, error)
        if chunk in target.lost:
            return FS3Error(Code.DATA_LOST, f"chunk {chunk} is damaged on all targets")
        return error

    def disk_failed(self, target: LocalTarget, error: FS3Error) -> None:
        """Take all targets of a disk out of service; the daemon and its other disks live on."""
        if target.failed or self.targets.get(target.id) is not target:
            return
        failed = [each for each in self.targets.values() if each.disk == target.disk and not each.failed]
        for each in failed:
            each.failed = error.message
        ids = ", ".join([str(each.id) for each in failed])
        logger.error("disk %d and its targets %s go offline: %s", target.disk, ids, error.message)
        self.env.metrics.count("storage.disks_failed")
        self.env.metrics.count("storage.targets_failed", len(failed))
        self.on_change()

    def cannot_fill(self, target: LocalTarget, error: FS3Error) -> FS3Error:
        """A target that is being filled has no room for what its chain holds: it leaves the chain, which would refuse
        all writes for its sake, and tries again later. Returns what to tell its predecessor."""
        if not target.full_until:
            target.full_until = self.env.monotonic() + self.settings.full_retry_ms / 1000
            self.env.metrics.count("storage.fills_given_up")
            logger.error("target %d cannot be filled, and stays offline for a while: %s", target.id, error.message)
            self.on_change()
        return FS3Error(Code.NOT_SERVING, f"target {target.id} cannot be filled: {error.message}")

    def _read_failed(self, target: LocalTarget, error: FS3Error) -> None:
        """Count the reads that a disk failed; one that fails many is given up."""
        now = self.env.monotonic()
        most = self.settings.read_failures_max
        times = self._read_failures.setdefault(target.disk, deque())
        times.append(now)
        while len(times) > most:
            times.popleft()
        self.env.metrics.count("storage.read_failures")
        if len(times) == most and now - times[0] < READ_FAILURES_S:
            message = f"{most} reads failed within {now - times[0]:.0f} s; the last: {error.message}"
            self.disk_failed(target, FS3Error(Code.DISK_FAILED, message))
