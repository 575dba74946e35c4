"""What runs besides requests: completing pending updates that nobody works on, and filling a successor that came back."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from fs3.api.storage import (
    DONE_REQUESTS_MAX,
    DUMP,
    LEARN_DONE,
    SYNC_DONE,
    WRITE,
    ChunkMeta,
    DoneRequest,
    DumpRequest,
    LearnDoneRequest,
    SyncDoneRequest,
    Update,
    UpdateKind,
    WriteRequest,
)
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.layout import CHUNK_SIZE_MAX
from fs3.metrics import Metrics
from fs3.routing import PublicState

from . import blocks
from .local import DAMAGE, LocalTarget, StorageNode
from .repair import Outcome, repair
from .resync import Batch, batches, plan
from .targets import Role, Successor
from .update import roll_forward

logger = logging.getLogger("fs3.storage.recovery")

ROLL_FORWARD_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.5
CALL_TIMEOUT_S = 30.0
TRANSFERS_AT_ONCE = 8
BATCH_CHUNKS_MAX = 64
BATCH_BYTES_MAX = 2 * 1024 * 1024
"""What one request carries: small chunks together, a large one alone."""
_PAGE = 1000


async def roll_forward_orphans(node: StorageNode, target: LocalTarget) -> None:
    """While this target leads its chain: complete what is pending and not being worked on. Runs until cancelled."""
    while True:
        await target.orphaned.wait()
        target.orphaned = trio.Event()
        role = target.role
        if role is None or not role.head or target.failed:
            continue
        for chunk in target.engine.pending():
            await target.locks.acquire(chunk)  # whoever works on it has the lock
            try:
                await roll_forward(node, target, chunk, 0, node.env.monotonic() + ROLL_FORWARD_TIMEOUT_S)
            except FS3Error as error:
                if error.code is Code.DISK_FAILED:
                    node.disk_failed(target, error)
                    break
                if error.code is Code.NOT_SERVING:
                    break
                logger.warning("chunk %x.%d stays pending for now: %s", chunk.inode, chunk.index, error)
                target.orphaned.set()
                await trio.sleep(RETRY_PAUSE_S)
            finally:
                target.locks.release(chunk)


async def complete_file(node: StorageNode, target: LocalTarget, inode: int, first_index: int, deadline: float) -> None:
    """Complete what is pending of a file here, at the head: the tail may have committed it, and readers seen it. Raises what
    forward() raises."""
    for chunk in target.engine.pending():
        if chunk.inode == inode and chunk.index >= first_index:
            await target.locks.acquire(chunk)
            try:
                await roll_forward(node, target, chunk, 0, deadline)
            finally:
                target.locks.release(chunk)


async def fill_successors(node: StorageNode, target: LocalTarget) -> None:
    """Whenever this target serves and its successor is being filled: do that. Runs until cancelled."""
    while True:
        role, changed = target.role, target.changed
        successor = role.successor if role is not None else None
        if role is None or successor is None or not successor.syncing or not successor.address:
            await changed.wait()
            continue
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Resync(node, target, role, successor).run)
            await changed.wait()
            nursery.cancel_scope.cancel()


class _Resync:
    """Brings the successor up to date, at one chain version. Updates go on meanwhile, as whole chunks (forward.py)."""

    def __init__(self, node: StorageNode, target: LocalTarget, role: Role, successor: Successor) -> None:
        assert role.state is PublicState.SERVING
        self._node = node
        self._target = target
        self._role = role
        self._successor = successor
        self._next_at = 0.0
        self._free = trio.CapacityLimiter(TRANSFERS_AT_ONCE)
        self._left = 0  # chunks that could not be settled in this pass
        self._progress = Progress(node.env.metrics, role.chain)

    async def run(self) -> None:
        """Until it is done; what fails is begun anew, which skips what is equal by then."""
        metrics = self._node.env.metrics
        complained = False
        metrics.gauge("storage.resyncs_running", metrics.gauges.get("storage.resyncs_running", 0) + 1)
        try:
            while True:
                try:
                    if await self._pass():
                        return
                    problem = f"{self._left} chunks are left"
                except* FS3Error as group:
                    problem = str(_first(group))
                log = logger.debug if complained else logger.warning
                log("filling target %d of chain %d: %s", self._successor.target, self._role.chain, problem)
                complained = True
                await trio.sleep(RETRY_PAUSE_S)
        finally:
            metrics.gauge("storage.resyncs_running", metrics.gauges["storage.resyncs_running"] - 1)
            self._progress.end()

    async def _pass(self) -> bool:
        """Compare all chunks once and send what differs; whether nothing is left."""
        # Updates that began before this target had this successor may end without it: let them end.
        for chunk in self._target.locks.held():
            await self._target.locks.acquire(chunk)
            self._target.locks.release(chunk)
        started = self._node.env.monotonic()
        self._left = 0
        self._progress.begin(self._target.engine.used_bytes())
        async with trio.open_nursery() as nursery:
            after: ChunkId | None = None
            while True:
                local, remote, after = await self._page(after)
                for batch in batches(plan(local, remote), local, BATCH_CHUNKS_MAX, self._batch_bytes()):
                    borrower = object()
                    await self._free.acquire_on_behalf_of(borrower)
                    nursery.start_soon(self._send, batch, borrower)
                self._progress.compared(local)
                for meta in local:
                    if meta.damaged:  # the successor may have it whole
                        self._node.suspect(self._target, meta.chunk)
                if after is None:
                    break
        if self._left:
            return False
        await self._tell_done()
        if self._node.env.rare("storage.resync.interrupted"):
            raise FS3Error(Code.CONNECTION_LOST, "storage.resync.interrupted")
        done = SyncDoneRequest(self._role.chain, self._role.chain_version, self._successor.target)
        await self._node.rpc.call(self._successor.address, SYNC_DONE, done, deadline=self._deadline())
        logger.info(
            "target %d is up to date in chain %d: %d chunks (%d bytes) in %.1f s",
            self._successor.target,
            self._role.chain,
            self._progress.chunks,
            self._progress.bytes,
            self._node.env.monotonic() - started,
        )
        return True

    async def _tell_done(self) -> None:
        """Tell the successor which requests are done. Those that end from now on pass through it."""
        done = [
            DoneRequest(tag, result.version, result.chunk_length, result.checksum)
            for tag, result in self._target.channels.done()
            if result.code == 0
        ]
        for at in range(0, len(done), DONE_REQUESTS_MAX):
            page = tuple(done[at : at + DONE_REQUESTS_MAX])
            await tell_done(self._node, self._role, self._successor.target, page, self._deadline())

    def _deadline(self) -> float:
        return self._node.env.monotonic() + CALL_TIMEOUT_S

    async def _page(self, after: ChunkId | None) -> tuple[Sequence[ChunkMeta], Sequence[ChunkMeta], ChunkId | None]:
        """The next chunks behind `after`, ours and the successor's, and the last of them; None when there are no more."""
        role, successor = self._role, self._successor
        request = DumpRequest(role.chain, role.chain_version, successor.target, after, _PAGE)
        reply = await self._node.rpc.call(successor.address, DUMP, request, deadline=self._deadline())
        remote = reply.chunks
        local, more = self._target.engine.dump(after, None, _PAGE)
        ends = []
        if reply.more:
            ends.append(remote[-1].chunk)
        if more:
            ends.append(local[-1].chunk)
        if not ends:
            return local, remote, None
        end = min(ends)
        return [meta for meta in local if meta.chunk <= end], [meta for meta in remote if meta.chunk <= end], end

    async def _send(self, batch: Batch, borrower: object) -> None:
        """Settle the chunks of a batch in one request."""
        target = self._target
        locked: list[ChunkId] = []
        try:
            await self._throttle(batch.bytes)
            for chunk in batch.chunks:  # in order, as all who lock several
                await target.locks.acquire(chunk)
                locked.append(chunk)
            await self._settle(batch.chunks)
        except OwnDiskFailed as error:
            self._node.disk_failed(target, error)
            raise
        finally:
            for chunk in locked:
                target.locks.release(chunk)
            self._free.release_on_behalf_of(borrower)

    async def _settle(self, chunks: Sequence[ChunkId]) -> None:
        """Make chunks at the successor what they are here. Their locks are held, so they stay so."""
        node, successor = self._node, self._successor
        updates: list[Update] = []
        payload: list[memoryview] = []
        try:
            for chunk in chunks:
                try:
                    update, data = await self._update(chunk)
                except FS3Error as error:
                    if error.code is Code.DISK_FAILED:
                        raise OwnDiskFailed(error.code, error.message) from None
                    if error.code not in DAMAGE:
                        raise
                    self._left += 1
                    logger.debug("chunk %s cannot be sent yet: %s", chunk, error)
                    continue
                updates.append(update)
                payload.append(data)
            if not updates:
                return
            reply = await node.rpc.call(
                successor.address,
                WRITE,
                WriteRequest(tuple(updates), False),
                deadline=self._deadline(),
                payload=[data for data in payload if len(data)],
                relayed=True,
            )
        finally:
            for update in updates:
                node.tags.give_back(update.tag)
        for result, data in zip(reply.results, payload, strict=True):
            if result.code == Code.DISK_FAILED:
                # Never raised by that name, which here stands for our own disk.
                raise FS3Error(Code.NOT_SERVING, f"target {successor.target}: {result.message}")
            if result.code:
                raise FS3Error(Code(result.code), result.message)
            self._progress.sent(len(data))

    async def _update(self, chunk: ChunkId) -> tuple[Update, memoryview]:
        """What makes the successor's copy equal to ours: all of it, its removal, or that it is lost.

        Raises CHECKSUM where it cannot be read for now.
        """
        target, node, role = self._target, self._node, self._role
        state = target.engine.get(chunk)
        if state is not None and state.pending is not None:
            await roll_forward(node, target, chunk, 0, self._deadline())
            state = target.engine.get(chunk)
        committed = state.committed if state is not None else None
        data = memoryview(b"")
        kind, length, checksums = UpdateKind.REMOVE, 0, ()  # type: UpdateKind, int, tuple[int, ...]
        version, since = 1, 0  # of a removal the version says nothing
        if committed is not None:
            kind, length, checksums = UpdateKind.REPLACE, committed.length, blocks.unpack(committed.checksums)
            version, since = committed.number, committed.chain_version
            try:
                data = await target.engine.read_whole(chunk, pending=False)
            except FS3Error as error:
                if error.code not in DAMAGE:
                    raise
                node.suspect(target, chunk, error)
                outcome = await repair(node, target, chunk, self._deadline())
                if outcome is Outcome.LATER:
                    raise
                if outcome is Outcome.LOST:
                    kind = UpdateKind.LOST
                else:
                    data = await target.engine.read_whole(chunk, pending=False)
        update = Update(
            node.tags.take(),
            role.chain,
            role.chain_version,
            self._successor.target,
            chunk,
            kind,
            0,
            length,
            CHUNK_SIZE_MAX,
            checksums,
            version,
            since,
        )
        return update, data

    def _batch_bytes(self) -> int:
        """What one request may carry: less where the rate is low, since it is kept between requests."""
        rate = self._node.settings.resync_rate_bytes
        return min(BATCH_BYTES_MAX, rate // 10) if rate else BATCH_BYTES_MAX

    async def _throttle(self, length: int) -> None:
        rate = self._node.settings.resync_rate_bytes
        if not rate:
            return
        now = self._node.env.monotonic()
        begin = max(now, self._next_at)
        self._next_at = begin + length / rate
        if begin > now:
            with trio.move_on_after(begin - now):
                await self._node.retuned.wait()
                self._next_at = 0.0  # the rate may be another one


class OwnDiskFailed(FS3Error):
    """DISK_FAILED of our own disk, not of a peer's."""


async def tell_done(node: StorageNode, role: Role, to: int, done: tuple[DoneRequest, ...], deadline: float) -> None:
    """Let another target of our chain know requests that are done."""
    peer = node.mgmtd.routing.node_of(to)
    if peer is None:
        raise FS3Error(Code.CHAIN_UNAVAILABLE, f"nobody knows where target {to} is")
    request = LearnDoneRequest(role.chain, role.chain_version, to, done)
    await node.rpc.call(peer.address, LEARN_DONE, request, deadline=deadline, relayed=True)


class Progress:
    """How far a resync is, as gauges `storage.resync.CHAIN.*`; they are gone when it ends.

    bytes_total: what the target holds. bytes_compared: of it, what was looked at. bytes_sent, chunks_sent: what differed.
    """

    def __init__(self, metrics: Metrics, chain: int) -> None:
        self._metrics = metrics
        self._names = {name: f"storage.resync.{chain}.{name}" for name in _GAUGES}
        self.chunks = 0
        self.bytes = 0

    def begin(self, total: int) -> None:
        self._metrics.gauge(self._names["bytes_total"], total)
        self._metrics.gauge(self._names["bytes_compared"], 0)
        self._metrics.gauge(self._names["chunks_compared"], 0)
        self.sent(0, 0)

    def compared(self, metas: Sequence[ChunkMeta]) -> None:
        gauges = self._metrics.gauges
        gauges[self._names["bytes_compared"]] += sum([meta.length for meta in metas])
        gauges[self._names["chunks_compared"]] += len(metas)

    def sent(self, length: int, chunks: int = 1) -> None:
        self.chunks += chunks
        self.bytes += length
        self._metrics.gauge(self._names["chunks_sent"], self.chunks)
        self._metrics.gauge(self._names["bytes_sent"], self.bytes)
        self._metrics.count("storage.resynced_chunks", chunks)
        self._metrics.count("storage.resynced_bytes", length)

    def end(self) -> None:
        for name in self._names.values():
            self._metrics.gauges.pop(name, None)


_GAUGES = ("bytes_total", "bytes_compared", "chunks_compared", "bytes_sent", "chunks_sent")


def _first(group: BaseExceptionGroup[FS3Error]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
