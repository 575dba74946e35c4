"""Many ranges of open files at once, against a whole cluster in this process."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fs3.api.meta import Access, Caller
from fs3.api.packed import READ_PACKED, unpack_ranges
from fs3.checksum import crc32c
from fs3.client.file import FileClient
from fs3.client.many import read_many, write_many
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from tests.unit.client.live import CHUNK_SIZE, Live
from tests.unit.client.test_batch import counted

CALLER = Caller(0, 0, (0,))
SIZE = 5 * CHUNK_SIZE + 777


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[FileClient]:
    async with Live(tmp_path, storages=2, replicas=2).running() as live, live.client() as client:
        yield client


async def made(client: FileClient, name: bytes, data: bytes) -> Any:
    handle = await client.create(CALLER, ROOT_INODE, name, 0o600, Access.READ_WRITE)
    if data:
        await client.write(handle, 0, data)
    return handle


def room(length: int) -> memoryview:
    return memoryview(bytearray(b"\xaa" * length))


async def test_many_reads_fill_their_own_memory(client: FileClient) -> None:
    chance = random.Random(1)
    contents = [chance.randbytes(SIZE) for _ in range(3)]
    handles = [await made(client, b"file%d" % number, data) for number, data in enumerate(contents)]
    for size_max in (100, 4096, 70_000, 3 * CHUNK_SIZE):
        items = []
        wanted = []
        for _ in range(150):
            number, offset = chance.randrange(3), chance.randrange(SIZE + 1000)
            into = room(chance.randrange(size_max))
            items.append((handles[number], offset, into))
            wanted.append(contents[number][offset : offset + len(into)])
        results = await read_many(client, items)
        assert results == [len(data) for data in wanted]
        assert all(into[: len(data)] == data for (_, _, into), data in zip(items, wanted, strict=True))
        for (_, _, into), data in zip(items, wanted, strict=True):
            assert bytes(into[len(data) :]) == b"\xaa" * (len(into) - len(data)), "written behind what there was"


async def test_holes_read_as_zeros_and_nothing_is_read_short_before_the_end(client: FileClient) -> None:
    handle = await made(client, b"sparse", b"")
    await client.write(handle, 2 * CHUNK_SIZE + 10, b"end")
    items = [(handle, 0, room(100)), (handle, 2 * CHUNK_SIZE - 50, room(100)), (handle, 2 * CHUNK_SIZE + 5, room(100))]
    assert await read_many(client, items) == [100, 63, 8]
    assert items[0][2] == bytes(100) and items[1][2][:63] == bytes(60) + b"end" and items[2][2][:8] == bytes(5) + b"end"


async def test_the_end_that_another_client_wrote_is_found(tmp_path: Path) -> None:
    async with Live(tmp_path, storages=1, replicas=1).running() as live, live.client() as one, live.client() as other:
        handle = await made(one, b"grows", b"")
        reader = await other.open(CALLER, handle.inode.id, Access.READ)
        await one.write(handle, 0, b"x" * 5000)
        await one.fsync(handle)
        assert await read_many(other, [(reader, 4096, room(4096))]) == [904]


async def test_one_items_error_is_no_others(client: FileClient) -> None:
    good = await made(client, b"good", b"g" * 10_000)
    closed = await made(client, b"closed", b"c" * 10_000)
    await client.close(closed)
    reads = [(good, 0, room(10)), (closed, 0, room(10)), (good, -1, room(10)), (good, 10_000, room(10))]
    found = await read_many(client, reads)
    assert found[0] == 10 and found[3] == 0
    assert [error.code for error in found if isinstance(error, FS3Error)] == [Code.BAD_HANDLE, Code.INVALID]
    reader = await client.open(CALLER, good.inode.id, Access.READ)
    writes = [(good, 0, b"new"), (closed, 0, b"new"), (reader, 0, b"new"), (good, -1, b"new"), (good, 1 << 63, b"new")]
    written = await write_many(client, writes)
    assert written[0] == 3
    codes = [error.code for error in written if isinstance(error, FS3Error)]
    assert codes == [Code.BAD_HANDLE, Code.BAD_HANDLE, Code.INVALID, Code.FILE_TOO_LARGE]


async def test_many_writes_are_read_back(client: FileClient) -> None:
    chance = random.Random(2)
    handles = [await made(client, b"w%d" % number, b"") for number in range(2)]
    contents = [bytearray(8 * CHUNK_SIZE) for _ in handles]
    items = []
    for number, handle in enumerate(handles):
        for at in range(0, 8 * CHUNK_SIZE, 20_000):
            data = chance.randbytes(min(20_000, 8 * CHUNK_SIZE - at))
            contents[number][at : at + len(data)] = data
            items.append((handle, at, data))
    chance.shuffle(items)
    assert await write_many(client, items) == [len(data) for _, _, data in items]
    reads = [(handle, 0, room(8 * CHUNK_SIZE)) for handle in handles]
    assert await read_many(client, reads) == [8 * CHUNK_SIZE] * 2
    assert [bytes(into) for _, _, into in reads] == contents


async def test_neighbours_are_one_range_and_requests_are_few(client: FileClient) -> None:
    data = random.Random(3).randbytes(4 * CHUNK_SIZE)
    handle = await made(client, b"neighbours", data)
    items = [(handle, at, room(4096)) for at in range(0, 2 * CHUNK_SIZE, 4096)]
    items += [(handle, 2 * CHUNK_SIZE + at, room(4096)) for at in range(0, CHUNK_SIZE, 8192)]
    items += [(handle, 3 * CHUNK_SIZE + at, room(1000)) for at in range(50, CHUNK_SIZE - 1000, 1000)]
    with counted("storage.read_packed") as requests:
        assert await read_many(client, items) == [len(into) for _, _, into in items]
    assert all(into == data[at : at + len(into)] for _, at, into in items)
    assert sum([len(unpack_ranges(request.ranges)[0]) for request in requests]) <= 2 + 8 + 1 + len(requests)


async def test_daemons_that_do_not_know_packed_requests_are_asked_the_older_way(
    client: FileClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(4).randbytes(SIZE)
    handle = await made(client, b"older", data)
    monkeypatch.setattr("fs3.client.packed.READ_PACKED", replace(READ_PACKED, id=9999))
    items = [(handle, at, room(1000)) for at in range(0, SIZE - 1000, 5000)]
    with counted("storage.read_packed") as packed, counted("storage.read") as plain:
        for _ in range(2):
            assert await read_many(client, items) == [1000] * len(items)
    assert all(into == data[at : at + 1000] for _, at, into in items)
    assert plain and len(packed) <= 4, "they were asked again and again"


async def test_bytes_that_do_not_match_are_read_again_and_told_of(
    client: FileClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = random.Random(5).randbytes(SIZE)
    handle = await made(client, b"wrong", data)
    wrong = iter([True])
    monkeypatch.setattr("fs3.client.packed.crc32c", lambda *a: 1 if next(wrong, False) else crc32c(*a))
    items = [(handle, at, room(1000)) for at in range(0, SIZE - 1000, 5000)]
    with counted("storage.suspect") as told:
        assert await read_many(client, items) == [1000] * len(items)
    assert all(into == data[at : at + 1000] for _, at, into in items)
    assert len(told) == 1 and "do not match" in caplog.text
