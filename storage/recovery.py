"""What runs besides requests: completing pending updates that nobody works on, and filling a successor that came back."""

from __future__ import annotations

import logging

import trio

from fs3.api.storage import (
    DONE_REQUESTS_MAX,
    DUMP,
    LEARN_DONE,
    SYNC_DONE,
    WRITE,
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
from fs3.routing import PublicState

from . import blocks
from .local import LocalTarget, StorageNode
from .resync import Step, plan
from .targets import Role, Successor
from .update import roll_forward

logger = logging.getLogger("fs3.storage.recovery")

ROLL_FORWARD_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.5
CALL_TIMEOUT_S = 30.0
TRANSFERS_AT_ONCE = 8
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
        self._chunks = 0
        self._bytes = 0

    async def run(self) -> None:
        """Until it is done; what fails is begun anew, which skips what is equal by then."""
        metrics = self._node.env.metrics
        complained = False
        metrics.gauge("storage.resyncs_running", metrics.gauges.get("storage.resyncs_running", 0) + 1)
        try:
            while True:
                try:
                    await self._pass()
                    return
                except* FS3Error as group:
                    log = logger.debug if complained else logger.warning
                    log("filling target %d of chain %d: %s", self._successor.target, self._role.chain, _first(group))
                    complained = True
                await trio.sleep(RETRY_PAUSE_S)
        finally:
            metrics.gauge("storage.resyncs_running", metrics.gauges["storage.resyncs_running"] - 1)

    async def _pass(self) -> None:
        # Updates that began before this target had this successor may end without it: let them end.
        for chunk in self._target.locks.held():
            await self._target.locks.acquire(chunk)
            self._target.locks.release(chunk)
        started = self._node.env.monotonic()
        async with trio.open_nursery() as nursery:
            after: ChunkId | None = None
            while True:
                steps, after = await self._page(after)
                for chunk, _ in steps:
                    borrower = object()
                    await self._free.acquire_on_behalf_of(borrower)
                    nursery.start_soon(self._one, chunk, borrower)
                if after is None:
                    break
        await self._tell_done()
        done = SyncDoneRequest(self._role.chain, self._role.chain_version, self._successor.target)
        await self._node.rpc.call(self._successor.address, SYNC_DONE, done, deadline=self._deadline())
        logger.info(
            "target %d is up to date in chain %d: %d chunks (%d bytes) in %.1f s",
            self._successor.target,
            self._role.chain,
            self._chunks,
            self._bytes,
            self._node.env.monotonic() - started,
        )

    async def _tell_done(self) -> None:
        """Tell the successor which requests are done. Those that end from now on pass through it."""
        role, successor = self._role, self._successor
        done = [
            DoneRequest(tag, result.version, result.chunk_length, result.checksum)
            for tag, result in self._target.channels.done()
            if result.code == 0
        ]
        for at in range(0, len(done), DONE_REQUESTS_MAX):
            page = tuple(done[at : at + DONE_REQUESTS_MAX])
            request = LearnDoneRequest(role.chain, role.chain_version, successor.target, page)
            await self._node.rpc.call(successor.address, LEARN_DONE, request, deadline=self._deadline())

    def _deadline(self) -> float:
        return self._node.env.monotonic() + CALL_TIMEOUT_S

    async def _page(self, after: ChunkId | None) -> tuple[list[tuple[ChunkId, Step]], ChunkId | None]:
        """What differs among the next chunks behind `after`, and the last of them; None when there are no more."""
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
            return list(plan(local, remote)), None
        end = min(ends)
        steps = plan([meta for meta in local if meta.chunk <= end], [meta for meta in remote if meta.chunk <= end])
        return list(steps), end

    async def _one(self, chunk: ChunkId, borrower: object) -> None:
        target = self._target
        try:
            await target.locks.acquire(chunk)
            try:
                await self._settle(chunk)
            finally:
                target.locks.release(chunk)
        except FS3Error as error:
            if error.code is Code.DISK_FAILED and target.engine.get(chunk) is not None:
                self._node.disk_failed(target, error)
            raise
        finally:
            self._free.release_on_behalf_of(borrower)

    async def _settle(self, chunk: ChunkId) -> None:
        """Make one chunk at the successor what it is here. Its lock is held, so it stays so."""
        target, node = self._target, self._node
        state = target.engine.get(chunk)
        if state is not None and state.pending is not None:
            await roll_forward(node, target, chunk, 0, self._deadline())
            state = target.engine.get(chunk)
        committed = state.committed if state is not None else None
        data = memoryview(b"")
        kind, length, checksums, version, since = UpdateKind.REMOVE, 0, (), 0, 0  # type: UpdateKind, int, tuple[int, ...], int, int
        if committed is not None:
            data = await target.engine.read_whole(chunk, pending=False)
            kind, length, checksums = UpdateKind.REPLACE, len(data), blocks.unpack(committed.checksums)
            version, since = committed.number, committed.chain_version
        await self._throttle(length)
        tag = node.tags.take()
        try:
            role, successor = self._role, self._successor
            update = Update(
                tag,
                role.chain,
                role.chain_version,
                successor.target,
                chunk,
                kind,
                0,
                length,
                CHUNK_SIZE_MAX,
                checksums,
                version,
                since,
            )
            reply = await node.rpc.call(
                successor.address,
                WRITE,
                WriteRequest((update,), False),
                deadline=self._deadline(),
                payload=(data,) if length else (),
                relayed=True,
            )
        finally:
            node.tags.give_back(tag)
        result = reply.results[0]
        if result.code == Code.DISK_FAILED:
            # Never raised by that name, which here stands for our own disk.
            raise FS3Error(Code.NOT_SERVING, f"target {successor.target}: {result.message}")
        if result.code:
            raise FS3Error(Code(result.code), result.message)
        self._chunks += 1
        self._bytes += length
        node.env.metrics.count("storage.resynced_chunks")
        node.env.metrics.count("storage.resynced_bytes", length)

    async def _throttle(self, length: int) -> None:
        rate = self._node.resync_rate_bytes
        if not rate:
            return
        now = self._node.env.monotonic()
        begin = max(now, self._next_at)
        self._next_at = begin + length / rate
        if begin > now:
            await trio.sleep(begin - now)


def _first(group: BaseExceptionGroup[FS3Error]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
