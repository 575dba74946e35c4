"""What operators ask of a storage daemon: the chunks that a target holds, whatever its place in a chain."""

from __future__ import annotations

import struct

from fs3.api.storage import ChunkMeta
from fs3.api.storage_admin import LIST_CHUNKS, LIST_CHUNKS_MAX, ListChunksReply, ListChunksRequest
from fs3.checksum import BLOCK_SIZE, combine
from fs3.errors import Code, FS3Error
from fs3.rpc.server import Call, RpcServer

from .local import LocalTarget, StorageNode

BLOCKS_MAX = 16_384
"""Whose checksums are joined for one reply: that takes some ten milliseconds, in which nothing else is served."""


class StorageAdmin:
    """Answers operators' requests for the targets of one daemon."""

    def __init__(self, node: StorageNode) -> None:
        self._node = node

    def bind(self, server: RpcServer) -> None:
        server.handle(LIST_CHUNKS, self._list_chunks)

    async def _list_chunks(self, request: ListChunksRequest, call: Call) -> ListChunksReply:
        target = self._node.targets.get(request.target)
        if target is None:
            raise FS3Error(Code.UNKNOWN_TARGET, f"target {request.target} is not here")
        if target.failed:
            raise FS3Error(Code.NOT_SERVING, f"target {request.target}: {target.failed}")
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
