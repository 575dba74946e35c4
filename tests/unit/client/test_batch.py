"""Batches of reads and writes against a whole cluster in this process."""

from __future__ import annotations

import array
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.lowlevel

import fs3.client.batch as batch
from fs3.api.meta import Caller
from fs3.client.paths import Paths
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from tests.unit.client.live import CHUNK_SIZE, Live

SIZE = 3 * CHUNK_SIZE + 1234


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, storages=2, replicas=2).running() as cluster:
        yield cluster


@pytest.fixture
async def paths(live: Live) -> AsyncIterator[Paths]:
    async with live.client() as client:
        yield Paths(client)


@contextmanager
def counted(method: str) -> Iterator[list[Any]]:
    """The requests of one method that clients send meanwhile."""
    seen: list[Any] = []
    original = RpcClient.call_bulk

    async def watched(self: Any, address: str, found: Any, request: Any, **options: Any) -> Any:
        if found.name == method:
            seen.append(request)
        return await original(self, address, found, request, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RpcClient, "call_bulk", watched)
        yield seen


def content(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


async def fill(paths: Paths, files: int) -> list[str]:
    await paths.makedirs("/data/sub")
    names = [f"/data/sub/{number}" for number in range(files)]
    for number, name in enumerate(names):
        await paths.write_file(name, content(number))
    return names


async def test_ranges_of_many_files_land_where_they_belong(paths: Paths, monkeypatch: Any) -> None:
    monkeypatch.setattr(batch, "WINDOW_ITEMS", 100)
    monkeypatch.setattr(batch, "FILES_OPEN_MAX", 3)
    names = await fill(paths, 4)
    chance = random.Random(1)
    async with paths.open(names[3]) as opened:
        items: list[Any] = []
        for _ in range(450):
            number = chance.randrange(4)
            offset = chance.randrange(SIZE)
            length = chance.choice((0, 1, 100, 5000, 70_000, SIZE))
            items.append((opened if number == 3 else names[number], offset, length))
        into = bytearray(b"x" * sum(length for _, _, length in items))
        results = await paths.read_batch(items, into)
        at = 0
        for (source, offset, length), result in zip(items, results, strict=True):
            expected = content(3 if source is opened else int(source[-1]))[offset : offset + length]
            assert result == len(expected) and into[at : at + len(expected)] == expected
            assert into[at + len(expected) : at + length] == b"x" * (length - len(expected))
            at += length
        fetched = await paths.fetch_batch(items[:50], strict=True)
        assert (
            [bytes(view) for view in fetched]
            == [  # type: ignore[arg-type]
                content(3 if source is opened else int(source[-1]))[offset : offset + length]
                for source, offset, length in items[:50]
            ]
        )


async def test_few_requests_for_each_daemon_and_paths_looked_up_once(paths: Paths) -> None:
    names = await fill(paths, 3)
    items = [(names[number % 3], number * 11 % SIZE, 64) for number in range(240)]
    with (
        counted("storage.read_packed") as reads,
        counted("meta.lookup") as lookups,
        counted("meta.open") as opens,
    ):
        assert await paths.read_batch(items, bytearray(240 * 64)) == [min(64, SIZE - offset) for _, offset, _ in items]
    assert 1 <= len(reads) <= 6 and len(opens) == 3
    assert len(lookups) == 5  # data, sub, and each file


async def test_every_kind_of_buffer_and_fresh_memory(paths: Paths) -> None:
    (name,) = await fill(paths, 1)
    async with paths.open(name) as opened:
        found = await paths.fetch_batch([(name, 0, None), (opened, 100, None), (name, SIZE + 1, None), ("/none", 0, None)])
    assert bytes(found[0]) == content(0) and bytes(found[1]) == content(0)[100:] and len(found[2]) == 0  # type: ignore[arg-type]
    assert isinstance(found[3], FS3Error) and found[3].code is Code.NOT_FOUND
    shared = shared_memory.SharedMemory(create=True, size=100)
    try:
        numbers = np.zeros((5, 5), dtype=np.float32)
        buffers: list[Any] = [bytearray(100), memoryview(bytearray(100)), array.array("d", bytes(96)), numbers, shared.buf]
        items = [(name, 7 * number, 96) for number in range(5)]
        assert await paths.read_batch(items, buffers) == [96] * 5
        for number, buffer in enumerate(buffers):
            assert bytes(memoryview(buffer).cast("B")[:96]) == content(0)[7 * number : 7 * number + 96]
        assert await paths.read_batch([(name, 0, 0)], np.zeros((0, 3))) == [0]
        for bad, error in (
            (bytes(96), ValueError),
            (np.zeros((10, 20))[:, ::2], ValueError),
            (bytearray(95), ValueError),
            ([bytearray(96)] * 2, ValueError),
            ([bytearray(95)], ValueError),
            ("text", TypeError),
        ):
            with pytest.raises(error):
                await paths.read_batch(items[:1], bad)
    finally:
        del buffers
        shared.close()
        shared.unlink()


async def test_an_item_fails_alone(live: Live, paths: Paths) -> None:
    (name,) = await fill(paths, 1)
    await paths.symlink("sub/0", "/data/link")
    closed = await paths.open_file(name)
    await closed.close()
    items: list[Any] = [
        (name, 0, 8),
        ("/data/none", 0, 8),
        ("/none/none", 0, 8),
        (name, -1, 8),
        (closed, 0, 8),
        ("/data/sub", 0, 8),
        ("/data/link", 8, 8),
        (name, SIZE + 5, 8),
        ("/data/sub/../sub/./0", 0, 8),
    ]
    into = bytearray(8 * len(items))
    results = await paths.read_batch(items, into)
    codes = [result.code if isinstance(result, FS3Error) else result for result in results]
    assert codes[:5] == [8, Code.NOT_FOUND, Code.NOT_FOUND, Code.INVALID, Code.BAD_HANDLE]
    assert codes[5:] == [Code.IS_DIRECTORY, 8, 0, 8]
    assert bytes(into[:8]) == content(0)[:8] and bytes(into[48:56]) == content(0)[8:16]
    with pytest.raises(FS3Error, match="/data/none") as caught:
        await paths.read_batch(items, into, strict=True)
    assert caught.value.code is Code.NOT_FOUND
    await paths.chmod(name, 0o600)
    async with live.client() as client:
        stranger = Paths(client, Caller(12345, 12345, (12345,)))
        (result,) = await stranger.read_batch([(name, 0, 8)], bytearray(8))
    assert isinstance(result, FS3Error) and result.code is Code.PERMISSION_DENIED


async def test_a_batch_sees_what_was_closed_before_and_what_grew(live: Live, paths: Paths) -> None:
    (name,) = await fill(paths, 1)
    async with live.client() as other, paths.open(name) as opened:
        async with Paths(other).open(name, "r+") as file:
            await file.write_at(SIZE, b"more")
            await file.write_at(0, b"new")
        into = bytearray(14)
        assert await paths.read_batch([(opened, SIZE, 10), (name, SIZE, 4)], into) == [4, 4]
        assert into[:4] == b"more" and into[10:] == b"more"
        assert await paths.read_batch([(opened, 0, 3)], into) == [3] and into[:3] == b"new"
        # Holes are zeros; what was removed under an open file is an error, and not zeros.
        async with Paths(other).open("/data/hole", "w") as file:
            await file.truncate(5 * CHUNK_SIZE)
        into = bytearray(b"x" * 8)
        assert await paths.read_batch([("/data/hole", CHUNK_SIZE, 8)], into) == [8] and into == bytes(8)
        async with paths.open("/data/hole") as hole:
            await Paths(other).unlink("/data/hole")
            with trio.fail_after(10):
                while (result := (await paths.read_batch([(hole, CHUNK_SIZE, 8)], into))[0]) == 8:
                    await trio.lowlevel.checkpoint()  # until the collector was there
            assert isinstance(result, FS3Error) and result.code is Code.STALE_HANDLE


async def test_a_daemon_that_stops_fails_no_item(live: Live, paths: Paths) -> None:
    names = await fill(paths, 2)
    items = [(names[number % 2], number * 90, 100) for number in range(2000)]
    into = bytearray(100 * len(items))
    await live.stop_storage(1)
    assert await paths.read_batch(items, into, strict=True) == [100] * len(items)
    assert into[100:200] == content(1)[90:190]
    await live.start_storage(1)


async def test_writes_of_many_pieces(paths: Paths) -> None:
    names = await fill(paths, 2)
    items: list[Any] = [(names[number % 2], number * 1000, bytes([number]) * 500) for number in range(40)]
    items += [("/data/none", 0, b"x"), (names[0], -1, b"x")]
    async with paths.open(names[0]) as reading:
        results = await paths.write_batch([*items, (reading, 0, b"x")])
    assert results[:40] == [500] * 40
    assert [result.code for result in results[40:] if isinstance(result, FS3Error)] == [
        Code.NOT_FOUND,
        Code.INVALID,
        Code.BAD_HANDLE,
    ]
    for number in range(40):
        found = await paths.fetch_batch([(names[number % 2], number * 1000, 500)], strict=True)
        assert bytes(found[0]) == items[number][2]  # type: ignore[arg-type]
    with pytest.raises(FS3Error, match="/data/none"):
        await paths.write_batch(items, strict=True)
    numbers = np.arange(10, dtype=np.uint32).reshape(2, 5)
    await paths.write_file(names[0], numbers)
    assert await paths.write_batch([(names[1], 0, numbers), (names[1], 40, numbers[:0])]) == [40, 0]
    assert await paths.read_file(names[0]) == numbers.tobytes()
    with pytest.raises(ValueError, match="contiguous"):
        await paths.write_batch([(names[1], 0, numbers.T)])


async def test_cancelling_a_batch_leaves_no_file_open(paths: Paths) -> None:
    names = await fill(paths, 2)
    items = [(names[number % 2], number, 100) for number in range(3000)]
    with trio.move_on_after(0.005):
        await paths.read_batch(items, bytearray(100 * len(items)))
    assert not paths._client.any_open


async def test_folders_of_a_path_are_trusted_for_a_while_if_that_is_wanted(live: Live) -> None:
    async with live.client() as client, live.client() as another:
        trusting, other = Paths(client, folders_s=3600), Paths(another)
        await other.makedirs("/data/sub")
        await other.write_file("/data/sub/file", b"old")
        with counted("meta.lookup") as lookups:
            for _ in range(5):
                assert (await trusting.stat("/data/sub/file")).length == 3
        assert len(lookups) == 2 + 5
        # What is new is found at once, in folders that are there now, and our own changes count at once.
        await other.rename("/data/sub", "/data/elsewhere")
        await other.makedirs("/data/sub")
        await other.write_file("/data/sub/new", b"new one")
        assert await trusting.read_file("/data/sub/new") == b"new one"
        assert not await trusting.exists("/data/sub/file")
        assert await trusting.exists("/data/elsewhere/file")
        await trusting.rename("/data/elsewhere", "/data/third")
        await trusting.makedirs("/data/elsewhere")
        assert not await trusting.exists("/data/elsewhere/file") and await trusting.exists("/data/third/file")
        await trusting.symlink("third", "/data/link")
        assert await trusting.exists("/data/link/file")
        await trusting.unlink("/data/link")
        assert not await trusting.exists("/data/link/file")
        await trusting.rmtree("/data/third")
        assert not await trusting.exists("/data/third/file")
