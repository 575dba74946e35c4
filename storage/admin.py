"""What operators ask of a storage daemon: the chunks that a target holds, and to have them in memory."""

from __future__ import annotations

import struct

import trio

from fs3.api.storage import ChunkMeta
from fs3.api.storage_admin import (
    LIST_CHUNKS,
    LIST_CHUNKS_MAX,
    PREFETCH,
    PREFETCH_INODES_MAX,
    ListChunksReply,
    ListChunksRequest,
    PrefetchReply,
    PrefetchRequest,
)
from fs3.checksum import BLOCK_SIZE, combine
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.rpc.server import Call, RpcServer

from .local import DAMAGE, LocalTarget, StorageNode

BLOCKS_MAX = 16_384
"""Whose checksums are joined for one reply: that takes some ten milliseconds, in which nothing else is served."""

PREFETCH_S = 1.0
"""Within which a request to prefetch is answered, with more to do or not."""
PREFETCH_AT_ONCE = 4
"""Chunks that are prefetched at a time, by all who ask: readers who need theirs now come first."""


class StorageAdmin:
    """Answers operators' requests for the targets of one daemon."""

    def __init__(self, node: StorageNode) -> None:
        self._node = node
        self._prefetching = trio.CapacityLimiter(PREFETCH_AT_ONCE)

    def bind(self, server: RpcServer) -> None:
        server.handle(LIST_CHUNKS, self._list_chunks)
        server.handle(PREFETCH, self._prefetch)

    def _target(self, number: int) -> LocalTarget:
        """Raises UNKNOWN_TARGET, NOT_SERVING."""
        target = self._node.targets.get(number)
        if target is None:
            raise FS3Error(Code.UNKNOWN_TARGET, f"target {number} is not here")
        if target.failed:
            raise FS3Error(Code.NOT_SERVING, f"target {number}: {target.failed}")
        return target

    async def _prefetch(self, request: PrefetchRequest, call: Call) -> PrefetchReply:
        """As many files as there is time for, and at least one chunk."""
        target = self._target(request.target)
        if len(request.inodes) > PREFETCH_INODES_MAX:
            raise FS3Error(Code.INVALID, f"{len(request.inodes)} files in one request")
        env = self._node.env
        until = min(env.monotonic() + PREFETCH_S, call.deadline - PREFETCH_S)
        size, first = 0, request.first_index
        for done, inode in enumerate(request.inodes):
            for chunk, _ in target.engine.chunks_of(inode, first):
                if size and env.monotonic() >= until:
                    return PrefetchReply(done, chunk.index, size)
                async with self._prefetching:
                    length, cached = await self._read_ahead(target, chunk)
                if not cached:
                    return PrefetchReply(len(request.inodes), 0, 0, False)
                size += length
                env.metrics.count("storage.prefetched_bytes", length)
            first = 0
        return PrefetchReply(len(request.inodes), 0, size)

    async def _read_ahead(self, target: LocalTarget, chunk: ChunkId) -> tuple[int, bool]:
        try:
            return await target.engine.prefetch(chunk)
        except FS3Error as error:
            if error.code is Code.DISK_FAILED:
                self._node.disk_failed(target, error)
            elif error.code in DAMAGE:
                raise self._node.unreadable(target, chunk, error) from None
            raise

    async def _list_chunks(self, request: ListChunksRequest, call: Call) -> ListChunksReply:
        target = self._target(request.target)
        limit = 1 if self._node.env.rare("storage.dump.one") else max(1, min(request.limit, LIST_CHUNKS_MAX))
        metas, more = target.engine.dump(request.after, request.until, limit)
        if not request.contents:
            return ListChunksReply(tuple(metas), more)
        return _with_contents(target, metas, more)


def _with_contents(target: LocalTarget, metas: list[ChunkMeta], more: bool) -> ListChunksReply:
    crcs: list[int] = []
    blocks = 0
    for meta in metas:
        state = target.engine.get(meta.chunk)
        committed = state.committed if state is not None else None
        blocks += len(committed.checksums) // 4 if committed is not None else 0
        if crcs and blocks > BLOCKS_MAX:
            return ListChunksReply(tuple(metas[: len(crcs)]), True, tuple(crcs))
        crcs.append(content_crc(committed.checksums, committed.length) if committed is not None else 0)
    return ListChunksReply(tuple(metas), more, tuple(crcs))


def content_crc(checksums: bytes, length: int) -> int:
    """The CRC32C of a content of `length` bytes, given those of its blocks (little-endian u32 each)."""
    crc = 0
    for (block,) in struct.iter_unpack("<I", checksums):
        crc = combine(crc, block, min(BLOCK_SIZE, length))
        length -= min(BLOCK_SIZE, length)
    return crc
