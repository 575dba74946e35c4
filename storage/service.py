"""The storage service: request handlers and the tasks that run besides them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence

import trio

from fs3.api.common import STATUS, Empty, StatusReply
from fs3.api.mgmtd import TargetReport
from fs3.api.packed import READ_PACKED, PackedReadReply, PackedReadRequest
from fs3.api.storage import (
    DUMP,
    FETCH,
    LEARN_DONE,
    QUERY,
    QUERY_LISTED_MAX,
    READ,
    READ_RANGES_MAX,
    REMOVE_FILE,
    SUSPECT,
    SYNC,
    SYNC_DONE,
    WRITE,
    WRITE_UPDATES_MAX,
    DumpReply,
    DumpRequest,
    FetchReply,
    FetchRequest,
    LearnDoneReply,
    LearnDoneRequest,
    QueryReply,
    QueryRequest,
    ReadReply,
    ReadRequest,
    RemoveFileReply,
    RemoveFileRequest,
    SuspectReply,
    SuspectRequest,
    SyncDoneReply,
    SyncDoneRequest,
    SyncReply,
    SyncRequest,
    UpdateResult,
    WriteReply,
    WriteRequest,
)
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import U64_MAX, ChunkId
from fs3.routing import PublicState
from fs3.rpc.server import Call, RpcServer
from fs3.settings import StorageSettings
from fs3.wire.frame import FLAG_SHARED

from .admin import StorageAdmin
from .disk import Space
from .local import CHANNEL_IDLE_S, Caller, LocalTarget, RoutingSource, StorageNode
from .read import read, read_packed
from .recovery import complete_file, fill_successors, roll_forward_orphans
from .removal import remove_file
from .repair import find, repair_suspects
from .scrub import Scrubber
from .update import write

logger = logging.getLogger("fs3.storage.service")

_DUMP_MAX = 2000
_TIDY_INTERVAL_S = 5.0
_LOOK_AGAIN_S = 0.002


class StorageService:
    """Serves the targets of one daemon.

    spaces: gives the space of each disk, by the targets' disk numbers; for reports. poke: called when mgmtd should get a
    heartbeat at once.
    """

    def __init__(
        self,
        env: Env,
        rpc: Caller,
        mgmtd: RoutingSource,
        targets: Sequence[LocalTarget],
        *,
        spaces: Callable[[int], Space] = lambda disk: Space(0, 0),
        node_id: int = 0,
        version: str = "",
    ) -> None:
        self.node = StorageNode(env, rpc, mgmtd, targets)
        self._env = env
        self._spaces = spaces
        self._reserve_bytes = 0
        self._node_id = node_id
        self._version = version
        self._started_at = env.monotonic()
        self._nursery: trio.Nursery | None = None  # while run() runs
        self._cares: dict[int, tuple[trio.CancelScope, trio.Event]] = {}  # target -> what ends its tasks, and that they did

    def bind(self, server: RpcServer) -> None:
        """Answer the storage methods at a server."""
        server.handle(READ, self._read)
        server.handle(READ_PACKED, self._read_packed)
        server.handle(WRITE, self._write)
        server.handle(SYNC, self._sync)
        server.handle(QUERY, self._query)
        server.handle(REMOVE_FILE, self._remove_file)
        server.handle(DUMP, self._dump)
        server.handle(LEARN_DONE, self._learn_done)
        server.handle(SYNC_DONE, self._sync_done)
        server.handle(FETCH, self._fetch)
        server.handle(SUSPECT, self._suspect)
        server.handle(STATUS, self._status)
        StorageAdmin(self.node).bind(server)

    def use_settings(self, settings: StorageSettings) -> None:
        """Work with these from now on."""
        self._reserve_bytes = settings.reserve_bytes
        self.node.use_settings(settings)

    async def run(self, poke: Callable[[], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the routing, roll forward, resync, tidy; until cancelled. Started once it serves."""
        node = self.node
        node.on_change = poke
        node.take_routing(node.mgmtd.routing)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for target in node.targets.values():
                self._look_after(target)
            task_status.started()
            while True:
                node.take_routing(await node.mgmtd.wait_change(node.map.routing_version))

    def add(self, target: LocalTarget) -> None:
        """Serve one more target, while running."""
        self.node.targets[target.id] = target
        self.node.take_routing(self.node.mgmtd.routing)
        self._look_after(target)
        self.node.on_change()

    async def remove(self, target: LocalTarget) -> None:
        """Serve a target no more that is in no chain, and end what is done with it. Requests under way fail."""
        assert target.role is None, target.role
        del self.node.targets[target.id]
        scope, ended = self._cares.pop(target.id)
        scope.cancel()
        await ended.wait()
        await target.engine.abandon()

    def _look_after(self, target: LocalTarget) -> None:
        assert self._nursery is not None
        self._cares[target.id] = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._care, target, *self._cares[target.id])

    async def _care(self, target: LocalTarget, scope: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    for task in (roll_forward_orphans, fill_successors, repair_suspects):
                        nursery.start_soon(task, self.node, target)
                    nursery.start_soon(self._tidy, target)
                    nursery.start_soon(self._leave, target)
                    nursery.start_soon(Scrubber(self.node, target).run)
        finally:
            ended.set()

    async def _leave(self, target: LocalTarget) -> None:
        """When the target is asked to leave: say so once all that is under way has ended. Else an update that it began as
        one place of the chain might go on in another, past those that are before it then."""
        while True:
            leaves = target.leaves
            while target.stopped and target.locks.held():  # noqa: ASYNC110 (rare, and nothing that is frequent should tell)
                await trio.sleep(_LOOK_AGAIN_S)
            if target.stopped != target.left:
                target.left = target.stopped
                self.node.on_change()
            await leaves.wait()

    async def _tidy(self, target: LocalTarget) -> None:
        while not target.failed:
            await trio.sleep(0.01 if self._env.rare("storage.tidy.now") else _TIDY_INTERVAL_S)
            self._retry_full(target)
            target.engine.forget(target.channels.drop_idle(self._env.monotonic() - CHANNEL_IDLE_S))
            try:
                await target.engine.tidy()
            except FS3Error as error:
                if error.code is Code.DISK_FAILED:
                    self.node.disk_failed(target, error)
                else:
                    logger.warning("target %d: %s", target.id, error)

    def _retry_full(self, target: LocalTarget) -> None:
        """A target that was too full to be filled may try again after a while."""
        if target.full_until and self._env.monotonic() >= target.full_until:
            target.full_until = 0.0
            self.node.on_change()

    def reports(self) -> tuple[TargetReport, ...]:
        """All targets, as heartbeats tell of them. A disk's space is shared evenly among its targets."""
        used = {target.id: target.engine.used_bytes() for target in self.node.targets.values()}
        reports = []
        for target in self.node.targets.values():
            siblings = [other.id for other in self.node.targets.values() if other.disk == target.disk]
            try:
                free = max(0, self._spaces(target.disk).free - self._reserve_bytes)
            except FS3Error as error:
                self.node.disk_failed(target, error)
                free = 0
            capacity = used[target.id] + free // len(siblings)
            role = target.role
            reports.append(
                TargetReport(
                    target.id,
                    target.disk,
                    target.local_state(),
                    capacity,
                    used[target.id],
                    role.chain_version if role is not None else 0,
                    role.chain if role is not None else 0,
                    target.left or target.emptied,
                )
            )
        return tuple(reports)

    # Handlers

    async def _read(self, request: ReadRequest, call: Call) -> ReadReply:
        return await read(self.node, request, call)

    async def _read_packed(self, request: PackedReadRequest, call: Call) -> PackedReadReply:
        return await read_packed(self.node, request, call)

    async def _write(self, request: WriteRequest, call: Call) -> WriteReply:
        if len(request.updates) > WRITE_UPDATES_MAX:
            raise FS3Error(Code.INVALID, f"{len(request.updates)} updates in one request")
        if call.frame.flags & FLAG_SHARED:
            self._env.metrics.count("storage.shared_writes")
        reply = await write(self.node, request, await call.payload(), call.deadline)
        if self._env.rare("storage.write.reply-lost"):
            raise FS3Error(Code.CONNECTION_LOST, "storage.write.reply-lost")
        return reply

    async def _sync(self, request: SyncRequest, call: Call) -> SyncReply:
        role = self.node.map.for_read(request.chain, request.chain_version, request.target)
        target = self.node.target(role)
        successor = role.successor
        chunks = request.chunks or None
        try:
            if successor is None or successor.syncing:
                await target.engine.sync(chunks)
            else:
                # A successor that has left, or not heard of this chain version yet: the client asks again.
                if not successor.address:
                    raise FS3Error(Code.CHAIN_UNAVAILABLE, f"nobody knows where target {successor.target} is")
                onward = SyncRequest(request.chain, request.chain_version, successor.target, request.chunks)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(target.engine.sync, chunks)
                    await self._sync_successor(successor.address, onward, call.deadline)
        except* FS3Error as group:
            for error in group.exceptions:
                if isinstance(error, FS3Error) and error.code is Code.DISK_FAILED:
                    self.node.disk_failed(target, error)
            raise
        if target.role is not role:
            raise FS3Error(Code.CHAIN_VERSION, f"chain {request.chain} changed during a sync")
        self._env.metrics.count("storage.syncs")
        return SyncReply()

    async def _sync_successor(self, address: str, onward: SyncRequest, deadline: float) -> None:
        try:
            await self.node.rpc.call(address, SYNC, onward, deadline=deadline, relayed=True)
        except FS3Error as error:
            if error.code is not Code.DISK_FAILED:
                raise
            # Never raised by that name, which here stands for our own disk.
            raise FS3Error(Code.NOT_SERVING, f"target {onward.target}: {error.message}") from None

    async def _query(self, request: QueryRequest, call: Call) -> QueryReply:
        role = self.node.map.for_read(request.chain, request.chain_version, request.target)
        target = self.node.target(role)
        if role.head:
            await complete_file(self.node, target, request.inode, request.first_index, call.deadline)
        if request.listed > 0:
            return _listed(target, request)
        chunks = target.engine.chunks_of(request.inode, request.first_index)
        if not chunks:
            return QueryReply(0, -1, 0, 0)
        last, last_length = chunks[-1]
        return QueryReply(len(chunks), last.index, last_length, sum([length for _, length in chunks]))

    async def _remove_file(self, request: RemoveFileRequest, call: Call) -> RemoveFileReply:
        return await remove_file(self.node, request, call.deadline)

    async def _dump(self, request: DumpRequest, call: Call) -> DumpReply:
        role = self.node.map.role(request.chain, request.chain_version, request.target)
        limit = 1 if self._env.rare("storage.dump.one") else max(1, min(request.limit, _DUMP_MAX))
        chunks, more = self.node.target(role).engine.dump(request.after, None, limit)
        return DumpReply(tuple(chunks), more)

    async def _learn_done(self, request: LearnDoneRequest, call: Call) -> LearnDoneReply:
        role = self.node.map.role(request.chain, request.chain_version, request.target)
        if role.state not in (PublicState.SERVING, PublicState.SYNCING):
            raise FS3Error(Code.NOT_SERVING, f"target {request.target} is {role.state.name.lower()}")
        target = self.node.target(role)
        target.learn(
            [(done.tag, UpdateResult(0, done.version, done.chunk_length, done.checksum)) for done in request.done],
            self._env.monotonic(),
        )
        return LearnDoneReply()

    async def _sync_done(self, request: SyncDoneRequest, call: Call) -> SyncDoneReply:
        role = self.node.map.role(request.chain, request.chain_version, request.target)
        if role.state is not PublicState.SYNCING:
            raise FS3Error(Code.NOT_SERVING, f"target {request.target} is {role.state.name.lower()}")
        self.node.target(role).synced_version = request.chain_version
        self.node.on_change()
        return SyncDoneReply()

    async def _fetch(self, request: FetchRequest, call: Call) -> FetchReply:
        target = self._own(request.target)
        data = await find(target, request, self.node)
        if data is None:
            return FetchReply(False)
        call.reply_payload((data,))
        return FetchReply(True)

    async def _suspect(self, request: SuspectRequest, call: Call) -> SuspectReply:
        target = self._own(request.target)
        for chunk in request.chunks[:READ_RANGES_MAX]:
            self.node.suspect(target, chunk)
        return SuspectReply()

    def _own(self, number: int) -> LocalTarget:
        """A target of ours in whatever state. Raises UNKNOWN_TARGET, NOT_SERVING where its disk failed."""
        target = self.node.targets.get(number)
        if target is None:
            raise FS3Error(Code.UNKNOWN_TARGET, f"target {number} is not here")
        if target.failed:
            raise FS3Error(Code.NOT_SERVING, f"target {number}: {target.failed}")
        return target

    async def _status(self, request: Empty, call: Call) -> StatusReply:
        uptime_ms = int((self._env.monotonic() - self._started_at) * 1000)
        metrics = json.dumps(self._env.metrics.snapshot())
        return StatusReply("storage", self._node_id, self._version, uptime_ms, metrics)

    def close(self) -> None:
        """Close the engines, once nothing runs any more."""
        for target in self.node.targets.values():
            target.engine.close()


def _listed(target: LocalTarget, request: QueryRequest) -> QueryReply:
    """The answer to a query that asks for the chunks one by one."""
    inode, first = request.inode, request.first_index
    after = ChunkId(inode, first - 1) if first else ChunkId(inode - 1, U64_MAX)
    metas, more = target.engine.dump(after, ChunkId(inode, U64_MAX), min(request.listed, QUERY_LISTED_MAX))
    found = [meta for meta in metas if meta.version]
    last = metas[-1].chunk.index if metas else -1
    lengths = tuple([meta.length for meta in found])
    return QueryReply(
        len(found),
        last,
        metas[-1].length if metas else 0,
        sum(lengths),
        tuple([m.chunk.index for m in found]),
        lengths,
        more,
    )
