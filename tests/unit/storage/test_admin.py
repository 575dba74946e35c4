"""What operators ask of a storage daemon."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from fs3.api.storage_admin import LIST_CHUNKS, ListChunksRequest
from fs3.checksum import block_checksums, crc32c
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
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
