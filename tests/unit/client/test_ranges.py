"""Holes and copies on a whole cluster in this process."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fs3.api.meta import Access
from fs3.client import ranges
from fs3.client.file import ROOT_CALLER, FileClient, FileHandle
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from tests.unit.client.live import CHUNK_SIZE as CHUNK
from tests.unit.client.live import Live


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, storages=2, replicas=2).running() as cluster:
        yield cluster


@pytest.fixture
async def client(live: Live) -> AsyncIterator[FileClient]:
    async with live.client() as connected:
        yield connected


async def create(client: FileClient, name: bytes = b"f", data: bytes = b"") -> FileHandle:
    file = await client.create(ROOT_CALLER, ROOT_INODE, name, 0o644, Access.READ_WRITE)
    await client.write(file, 0, data)
    return file


async def whole(client: FileClient, file: FileHandle) -> bytes:
    return bytes(await client.read(file, 0, (await client.getattr(file.inode.id)).length))


async def used(client: FileClient, file: FileHandle) -> int:
    return await client.used(await client.getattr(file.inode.id))


async def test_data_and_holes_are_told_apart(client: FileClient, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await create(client)
    assert await ranges.data_ranges(client, file) == []
    for index in (1, 2, 5):
        await client.write(file, index * CHUNK, b"x" * CHUNK)
    await client.write(file, 5 * CHUNK + CHUNK, b"short")
    await client.truncate(file, 9 * CHUNK)
    expected = [(CHUNK, 2 * CHUNK), (5 * CHUNK, CHUNK + 5)]
    for listed, window in ((10_000, 65_536), (1, 65_536), (1, 1), (2, 3)):
        monkeypatch.setattr("fs3.client.storage.QUERY_LISTED_MAX", listed)
        monkeypatch.setattr(ranges, "WINDOW_CHUNKS", window)
        assert await ranges.data_ranges(client, file) == expected
    assert await ranges.data_ranges(client, file, 2 * CHUNK + 7, 3 * CHUNK) == [(2 * CHUNK + 7, CHUNK - 7), (5 * CHUNK, 7)]
    assert await ranges.data_ranges(client, file, 3 * CHUNK) == [(5 * CHUNK, CHUNK + 5)]
    far = 100 * (1 << 40)
    await client.write(file, far, b"x")
    assert (await ranges.data_ranges(client, file))[-1] == (far, 1)
    await client.close(file)


async def test_punching_gives_space_back_and_leaves_the_length(live: Live, client: FileClient) -> None:
    data = bytearray(random.Random(1).randbytes(4 * CHUNK + 100))
    file = await create(client, data=bytes(data))
    for offset, length in ((CHUNK - 10, CHUNK + 20), (3 * CHUNK, 10 * CHUNK), (7, 0), (50 * CHUNK, 5)):
        await ranges.punch(client, file, offset, length)
        data[offset : offset + length] = bytes(len(data[offset : offset + length]))
        assert await whole(client, file) == data
    assert await ranges.data_ranges(client, file) == [(0, CHUNK), (2 * CHUNK, CHUNK), (4 * CHUNK, 100)]
    assert await used(client, file) == 2 * CHUNK + 100, "the last chunk says where the file ends, and stays"
    async with live.client() as other:
        reader = await other.open(ROOT_CALLER, file.inode.id, Access.READ)
        assert await whole(other, reader) == data and reader.inode.attr.sparse
        with pytest.raises(FS3Error) as caught:
            await ranges.punch(other, reader, 0, 1)
        assert caught.value.code is Code.BAD_HANDLE
        await other.close(reader)
    await client.fsync(file)
    await client.close(file)


async def test_zero_range_and_allocate_lengthen_and_never_cut(live: Live, client: FileClient) -> None:
    file = await create(client, data=b"x" * 100)
    await ranges.zero_range(client, file, 50, 10, keep_size=True)
    await ranges.zero_range(client, file, 90, 2 * CHUNK)
    assert await whole(client, file) == b"x" * 50 + bytes(10) + b"x" * 30 + bytes(2 * CHUNK)
    await ranges.allocate(client, file, 0, 3 * CHUNK)
    await ranges.allocate(client, file, 0, 9 * CHUNK, keep_size=True)
    async with live.client() as other:
        assert (await other.getattr(file.inode.id)).length == 3 * CHUNK, "it was reported"
    await ranges.allocate(client, file, 5, 5)
    assert (await client.getattr(file.inode.id)).length == 3 * CHUNK and await used(client, file) == 100
    with pytest.raises(FS3Error) as caught:
        await ranges.allocate(client, file, 0, 1 << 60)
    assert caught.value.code is Code.NO_SPACE
    with pytest.raises(FS3Error) as caught:
        await ranges.punch(client, file, -1, 5)
    assert caught.value.code is Code.INVALID
    await client.close(file)


async def test_copies_keep_holes_and_make_them(client: FileClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "WINDOW_CHUNKS", 2)
    monkeypatch.setattr(ranges, "COPY_BYTES", CHUNK // 2)
    chance = random.Random(2)
    source = await create(client, b"source")
    for index in (0, 3, 4):
        await client.write(source, index * CHUNK + 100, chance.randbytes(CHUNK))
    await client.truncate(source, 7 * CHUNK)
    content = await whole(client, source)
    fresh = await create(client, b"fresh")
    assert await ranges.copy_range(client, source, 0, fresh, 0, 1 << 50) == len(content)
    assert await whole(client, fresh) == content
    assert await used(client, fresh) == await used(client, source)
    before = bytearray(chance.randbytes(6 * CHUNK))
    full = await create(client, b"full", bytes(before))
    assert await ranges.copy_range(client, source, 1000, full, 77, 5 * CHUNK) == 5 * CHUNK
    before[77 : 77 + 5 * CHUNK] = content[1000 : 1000 + 5 * CHUNK]
    assert await whole(client, full) == before
    assert await ranges.copy_range(client, source, 7 * CHUNK, full, 0, 10) == 0
    assert await ranges.copy_range(client, full, 0, full, 3 * CHUNK, 3 * CHUNK) == 3 * CHUNK
    before[3 * CHUNK :] = before[: 3 * CHUNK]
    assert await whole(client, full) == before
    with pytest.raises(FS3Error) as caught:
        await ranges.copy_range(client, full, 0, full, 100, 101)
    assert caught.value.code is Code.INVALID
    for file in (source, fresh, full):
        await client.close(file)
