"""Many ranges in one request, of which some are there at once and others wait for the disk."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from fs3.api.packed import READ_PACKED, PackedReadRequest, Place, pack_numbers, pack_ranges, unpack_numbers
from fs3.api.storage import READ, ReadRange, ReadRequest
from fs3.checksum import crc32c, piece_checksums
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from storage.disk_linux import LinuxFile
from storage.read import WAITING_MAX
from tests.unit.storage.support import CHAIN, MIB, Cluster, cluster, write_update

LENGTHS = (MIB, 300_001, 65_536, 1, 700_000)


async def read_all(c: Cluster, places: list[tuple[ChunkId, int, int]], contents: dict[ChunkId, bytes]) -> None:
    """Ask for all of these (chunk, offset, length) at once, and compare."""
    ranges = tuple([ReadRange(CHAIN, c.version, 1, chunk, offset, length) for chunk, offset, length in places])
    reply, payload = await c.rpc.call_bulk(c.replicas[0].address, READ, ReadRequest(ranges), deadline=c.deadline())
    at = 0
    for item, result in zip(ranges, reply.results, strict=True):
        expected = contents.get(item.chunk, b"")[item.offset : item.offset + item.length]
        assert result.code == 0 and result.chunk_length == len(contents.get(item.chunk, b""))
        assert payload[at : at + result.length] == expected
        assert result.checksums == piece_checksums(expected, item.offset)
        at += result.length
    assert at == len(payload)
    packed = PackedReadRequest((Place(CHAIN, c.version, 1),), columns([(0, *place) for place in places]))
    answer, packed_payload = await c.rpc.call_bulk(c.replicas[0].address, READ_PACKED, packed, deadline=c.deadline())
    found = [result.length for result in reply.results]
    assert found == list(unpack_numbers(answer.lengths) if answer.lengths else [length for _, _, length in places])
    assert list(unpack_numbers(answer.checksums)) == [value for result in reply.results for value in result.checksums]
    assert packed_payload == payload and not answer.failures


def columns(ranges: list[tuple[int, ChunkId, int, int]]) -> bytes:
    """(place, chunk, offset, length) each."""
    return pack_ranges(
        (
            [place for place, _, _, _ in ranges],
            [chunk.inode for _, chunk, _, _ in ranges],
            [chunk.index for _, chunk, _, _ in ranges],
            [offset for _, _, offset, _ in ranges],
            [length for _, _, _, length in ranges],
        )
    )


@pytest.mark.parametrize("cached", [1.0, 0.5, 0.0])
async def test_any_ranges_of_any_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: float) -> None:
    chance = Random(1)
    real = LinuxFile.read_now
    monkeypatch.setattr(LinuxFile, "read_now", lambda *a: chance.random() < cached and real(*a))
    async with cluster(tmp_path, 1) as c:
        contents = {ChunkId(5, index): chance.randbytes(length) for index, length in enumerate(LENGTHS)}
        for chunk, data in contents.items():
            await c.write(chunk, 0, data)
        for count in (1, 2, WAITING_MAX + 5):
            places = []
            for _ in range(count):
                offset = chance.choice((0, chance.randrange(MIB), chance.randrange(16) * 65_536))
                length = chance.choice((0, 10, 4096, 65_536, MIB - offset))
                places.append((ChunkId(5, chance.randrange(len(LENGTHS) + 1)), offset, length))
            await read_all(c, places, contents)
        whole = ChunkId(5, 0)  # more than one pooled buffer holds, all ranges full
        await read_all(c, [(whole, 0, MIB)] * 9 + [(whole, 5, 100), (whole, 0, MIB - 7)], contents)


async def test_a_range_that_cannot_be_read_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 1) as c:
        good, other = ChunkId(5, 0), ChunkId(5, 1)
        await c.write(good, 0, b"g" * 100_000)
        await c.write(other, 0, b"o" * 100_000)
        ranges = [
            ReadRange(CHAIN, c.version, 1, good, 0, 100_000),
            ReadRange(CHAIN, c.version + 1, 1, other, 0, 100_000),
            ReadRange(CHAIN, c.version, 7, other, 0, 100_000),
            ReadRange(CHAIN, c.version, 1, other, 99_000, 5000),
        ]
        address = c.replicas[0].address
        reply, payload = await c.rpc.call_bulk(address, READ, ReadRequest(tuple(ranges)), deadline=c.deadline())
        assert [result.code for result in reply.results] == [0, Code.CHAIN_VERSION, Code.UNKNOWN_TARGET, 0]
        assert payload == b"g" * 100_000 + b"o" * 1000
        for length, offset in ((-1, 0), (1, -1), (65 * MIB, 0)):
            bad = ReadRequest((ranges[0], ReadRange(CHAIN, c.version, 1, good, offset, length)))
            with pytest.raises(FS3Error) as caught:
                await c.rpc.call(address, READ, bad, deadline=c.deadline())
            assert caught.value.code is Code.INVALID


async def test_a_packed_range_that_cannot_be_read_spoils_no_other(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        good, other = ChunkId(5, 0), ChunkId(5, 1)
        await c.write(good, 0, b"g" * 100_000)
        await c.write(other, 0, b"o" * 100_000)
        places = (Place(CHAIN, c.version, 1), Place(CHAIN, c.version + 1, 1), Place(CHAIN, c.version, 7))
        ranges = columns([(0, good, 0, 100_000), (1, other, 0, 10), (2, other, 0, 10), (0, other, 99_000, 5000)])
        address = c.replicas[0].address
        reply, payload = await c.rpc.call_bulk(
            address, READ_PACKED, PackedReadRequest(places, ranges), deadline=c.deadline()
        )
        failures = [(failure.position, failure.code) for failure in reply.failures]
        assert failures == [(1, Code.CHAIN_VERSION), (2, Code.UNKNOWN_TARGET)]
        assert unpack_numbers(reply.lengths) == (100_000, 0, 0, 1000)
        assert payload == b"g" * 100_000 + b"o" * 1000
        for bad in (
            PackedReadRequest(places, ranges[:-1]),
            PackedReadRequest(places[:2], ranges),
            PackedReadRequest(places, columns([(0, good, 0, 65 * MIB)])),
            PackedReadRequest(places, columns([(0, good, 0, 1)] * 1025)),
        ):
            with pytest.raises(FS3Error) as caught:
                await c.rpc.call(address, READ_PACKED, bad, deadline=c.deadline())
            assert caught.value.code in (Code.INVALID, Code.PROTOCOL)


async def test_pages_and_blocks_are_read_quickly_but_never_what_is_pending(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        chunk = ChunkId(5, 0)
        data = Random(1).randbytes(200_000)
        await c.write(chunk, 0, data)
        target = c.replicas[0].target
        assert target is not None
        engine = target.engine
        page, whole, end = (memoryview(bytearray(size)) for size in (4096, 131_072, 200_000 - 131_072))
        assert engine.read_quickly(5, 0, 8192, page) is None, "nothing is known of its pages yet"
        assert engine.read_now(chunk, 8192, page) is not None
        assert engine.read_quickly(5, 0, 8192, page) == pack_numbers([crc32c(data[8192:12_288])])
        assert engine.read_quickly(5, 0, 0, whole) == pack_numbers(piece_checksums(data[:131_072], 0))
        assert engine.read_quickly(5, 0, 131_072, end) == pack_numbers(piece_checksums(data[131_072:], 0))
        assert page == data[8192:12_288] and whole == data[:131_072] and end == data[131_072:]
        for index, offset, into in ((1, 0, page), (0, 1, page), (0, 198_000, page), (0, 65_536, end), (0, 0, page[:0])):
            assert engine.read_quickly(5, index, offset, into) is None
        await engine.put(write_update(chunk, 0, b"new"), 2, 1, memoryview(b"new"), commit=False, remember=False)
        assert engine.read_quickly(5, 0, 8192, page) is None and engine.read_quickly(5, 0, 0, whole) is None
        engine.commit(chunk, 1, remember=False)
        assert engine.read_quickly(5, 0, 0, whole) is None, "its bytes are in the log, not yet in their place"
        await engine.tidy()
        assert engine.read_quickly(5, 0, 0, whole) == pack_numbers(piece_checksums(b"new" + data[3:131_072], 0))
        await engine.put(write_update(chunk, 0, data), 3, 1, memoryview(data), commit=False, remember=False)
        assert engine.read_quickly(5, 0, 0, whole) is None, (
            "the next version lies elsewhere, and may be committed at the tail"
        )
