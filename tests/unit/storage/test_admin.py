"""What operators ask of a storage daemon."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from fs3.api.storage_admin import LIST_CHUNKS, PREFETCH, ListChunksRequest, PrefetchReply, PrefetchRequest
from fs3.checksum import block_checksums, crc32c
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from storage import admin
from storage.admin import content_crc
from tests.unit.storage.support import MIB, OFFLINE, SERVING, cluster


@pytest.mark.parametrize("length", [0, 1, 65_536, 65_537, 300_000])
def test_the_checksum_of_a_content_follows_from_those_of_its_blocks(length: int) -> None:
    data = Random(length).randbytes(length)
    packed = b"".join([crc.to_bytes(4, "little") for crc in block_checksums(data)])
    assert content_crc(packed, length) == crc32c(data)


async def test_chunks_are_listed_whatever_the_chain(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        data = {ChunkId(5, index): Random(index).randbytes(100_000 * (index + 1)) for index in range(4)}
        for chunk, content in data.items():
            await c.write(chunk, 0, content)
        await c.write(ChunkId(6, 0), 0, b"x" * MIB)
        c.chain((1, SERVING), (2, OFFLINE))
        address = c.replicas[1].address
        deadline = c.env.monotonic() + 5
        found: dict[ChunkId, tuple[int, int]] = {}
        after: ChunkId | None = ChunkId(4, 9)
        while True:
            request = ListChunksRequest(2, after, ChunkId(5, 100), 3, True)
            reply = await c.rpc.call(address, LIST_CHUNKS, request, deadline=deadline)
            found.update({meta.chunk: (meta.length, crc) for meta, crc in zip(reply.chunks, reply.crcs, strict=True)})
            if not reply.more:
                break
            after = reply.chunks[-1].chunk
        assert found == {chunk: (len(content), crc32c(content)) for chunk, content in data.items()}
        reply = await c.rpc.call(address, LIST_CHUNKS, ListChunksRequest(2), deadline=deadline)
        assert len(reply.chunks) == 5 and not reply.crcs and not reply.more
        with pytest.raises(FS3Error) as caught:
            await c.rpc.call(address, LIST_CHUNKS, ListChunksRequest(1), deadline=deadline)
        assert caught.value.code is Code.UNKNOWN_TARGET


def drop_pages(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def test_files_are_read_into_memory_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 1) as c:
        for chunk in (ChunkId(5, 0), ChunkId(5, 2), ChunkId(5, 9), ChunkId(7, 0)):
            await c.write(chunk, 0, b"x" * (100_000 + chunk.index))
        target = c.replicas[0].service.node.targets[1]
        await target.engine.sync()
        drop_pages(tmp_path)

        async def prefetch(*inodes: int, first: int = 0) -> PrefetchReply:
            return await c.rpc.call(
                c.replicas[0].address, PREFETCH, PrefetchRequest(1, inodes, first), deadline=c.env.monotonic() + 5
            )

        assert await prefetch(5, 6, 7) == PrefetchReply(3, 0, 400_011)
        for chunk in (ChunkId(5, 0), ChunkId(5, 2), ChunkId(5, 9), ChunkId(7, 0)):
            assert target.engine.read_now(chunk, 0, memoryview(bytearray(100_000))) is not None, "it is in memory now"
        assert await prefetch(5, 7, first=2) == PrefetchReply(2, 0, 300_011)
        monkeypatch.setattr(admin, "PREFETCH_S", 0.0)
        reply = await prefetch(5, 7)
        sizes = reply.size
        while reply.done < 1:
            reply = await prefetch(5, 7, first=reply.next_index)
            sizes += reply.size
        assert sizes >= 300_011 and c.replicas[0].service.node.env.metrics.counters["storage.prefetched_bytes"] > 0
        with pytest.raises(FS3Error, match="not here"):
            await c.rpc.call(c.replicas[0].address, PREFETCH, PrefetchRequest(3, (5,)), deadline=c.env.monotonic() + 5)


async def test_disks_without_a_page_cache_say_so(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        await c.write(ChunkId(5, 0), 0, b"x" * 1000)
        node = c.replicas[0].service.node
        node.targets[1].engine.prefetch = _uncached  # type: ignore[method-assign]
        request = PrefetchRequest(1, (5, 6))
        reply = await c.rpc.call(c.replicas[0].address, PREFETCH, request, deadline=c.env.monotonic() + 5)
        assert reply == PrefetchReply(2, 0, 0, False)


async def _uncached(chunk: ChunkId) -> tuple[int, bool]:
    return 0, False
