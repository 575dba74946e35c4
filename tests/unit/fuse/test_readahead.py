"""What is read ahead is what is there, however readers move; and what was read ahead once is not read again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.client.file import FileClient
from fs3.client.inode import OpenInode
from fuse.cache import BLOCK_SIZE, SMALL_GROUP
from fuse.readahead import ReadAhead
from fuse.streams import ReadPattern
from tests.unit.client.cluster import make_env

KIB, MIB = 1024, 1024 * 1024
CAPACITY = 24 * MIB
LENGTH = 40 * MIB + 12_345


class File:
    """An open file, and a client that reads from it after a while."""

    def __init__(self, content: bytearray) -> None:
        self.env = make_env()
        self.content = content
        self.id = 7
        self.sessions: list[int] = []
        self.reads: list[tuple[int, int]] = []
        self.gate: trio.Event | None = None

    @property
    def length(self) -> int:
        return len(self.content)

    async def read_chunks(self, state: Any, offset: int, into: memoryview) -> None:
        self.reads.append((offset, len(into)))
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        data = self.content[offset : offset + len(into)]
        into[: len(data)] = data
        into[len(data) :] = bytes(len(into) - len(data))

    @property
    def read_bytes(self) -> int:
        return sum([length for _, length in self.reads])


class Reader:
    """One handle of the file."""

    def __init__(self, file: File, ahead: ReadAhead) -> None:
        self.file = file
        self.ahead = ahead
        self.pattern = ReadPattern()

    async def read(self, offset: int, length: int) -> None:
        length = min(length, self.file.length - offset)
        found = await self.ahead.read(cast(OpenInode, self.file), self.pattern, offset, length)
        assert found == memoryview(self.file.content)[offset : offset + length], (offset, length)


@pytest.fixture(scope="module")
def content() -> bytearray:
    return bytearray(random.Random(1).randbytes(LENGTH))


@asynccontextmanager
async def reading(content: bytearray, depth: int = 8 * MIB) -> AsyncIterator[tuple[File, Callable[[], Reader]]]:
    file = File(content)
    async with trio.open_nursery() as nursery:
        ahead = ReadAhead(cast(FileClient, file), nursery, depth, CAPACITY)
        yield file, lambda: Reader(file, ahead)
        assert ahead._cache.used <= CAPACITY
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [64 * KIB, MIB, 5 * MIB + 4096])
async def test_a_sequential_reader_has_each_byte_fetched_once(content: bytearray, size: int) -> None:
    async with reading(content) as (file, reader):
        one = reader()
        for offset in range(0, LENGTH, size):
            await one.read(offset, size)
        assert file.read_bytes <= LENGTH + size
        await trio.testing.wait_all_tasks_blocked()
        assert one.ahead._cache.used <= BLOCK_SIZE, "what was served is kept"


async def test_several_readers_of_one_file_are_all_read_ahead_of(content: bytearray) -> None:
    async with reading(content) as (file, reader):
        shared, own = reader(), reader()
        begins = [(shared, 0), (shared, 10 * MIB), (shared, 20 * MIB), (own, 30 * MIB)]
        for step in range(10 * MIB // (256 * KIB)):
            for handle, begin in begins:
                await handle.read(begin + step * 256 * KIB, 256 * KIB)
        assert file.read_bytes <= LENGTH + 4 * 256 * KIB + 3 * BLOCK_SIZE
        assert len(file.reads) <= 40 + 3 + 8, "they were served piece by piece"


@pytest.mark.parametrize("distance", [5 * MIB, -5 * MIB, 4500 * KIB])
async def test_a_reader_at_equal_distances_has_its_pieces_fetched_before_and_no_more(
    content: bytearray, distance: int
) -> None:
    async with reading(content) as (file, reader):
        one = reader()
        offsets = [(MIB if distance > 0 else 38 * MIB) + number * distance for number in range(6)]
        for offset in offsets:
            await one.read(offset, 64 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert (offsets[5] + distance, 64 * KIB) in file.reads, "it is not ahead"
        assert set(file.reads) >= {(offset, 64 * KIB) for offset in offsets}
        assert len(file.reads) == len(set(file.reads)) and all(length == 64 * KIB for _, length in file.reads)


async def test_random_readers_get_what_they_ask_for(content: bytearray) -> None:
    async with reading(content) as (file, reader):
        one = reader()
        rng = random.Random(3)
        for group in rng.sample(range(LENGTH // BLOCK_SIZE // SMALL_GROUP), 10):
            await one.read(group * SMALL_GROUP * BLOCK_SIZE + rng.randrange(1024) * 4 * KIB, 4 * KIB)
        assert file.read_bytes == 10 * 4 * KIB
        await one.read(rng.randrange(4 * BLOCK_SIZE), 4 * KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(file.reads[10:]) == [(block * BLOCK_SIZE, BLOCK_SIZE) for block in range(4)], "a group was not fetched"


async def test_large_random_reads_are_widened_to_what_has_a_checksum(content: bytearray) -> None:
    async with reading(content) as (file, reader):
        await reader().read(5 * MIB + 4096, 300 * KIB)
        await reader().read(LENGTH - 300 * KIB, 300 * KIB)
        begin = (LENGTH - 300 * KIB) // (64 * KIB) * 64 * KIB
        assert file.reads == [(5 * MIB, 320 * KIB), (begin, LENGTH - begin)]


async def test_without_depth_nothing_is_read_ahead(content: bytearray) -> None:
    async with reading(content, depth=0) as (file, reader):
        one = reader()
        for number in range(8):
            await one.read(number * MIB, MIB)
        assert file.reads == [(number * MIB, MIB) for number in range(8)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32))
def test_whatever_readers_and_a_writer_do_they_see_the_content(seed: int) -> None:
    """Several readers in patterns of their own; what is written is seen by every read that begins later."""
    rng = random.Random(seed)

    async def reader(one: Reader) -> None:
        offset = rng.randrange(one.file.length)
        distance = rng.choice([0, 64 * KIB, 2 * MIB, -MIB])
        size = rng.choice([4 * KIB, 64 * KIB, MIB])
        for _ in range(12):
            await one.read(offset, size)
            offset = offset + distance + size if distance else rng.randrange(one.file.length)
            if not 0 <= offset < one.file.length:
                offset = rng.randrange(one.file.length)

    async def main() -> None:
        async with reading(bytearray(rng.randbytes(MIB) * 6)) as (file, make):
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    shared = make()
                    for handle in (shared, shared, make()):
                        nursery.start_soon(reader, handle)
                for _ in range(4):
                    at, length = rng.randrange(5 * MIB), rng.randrange(1, 200 * KIB)
                    file.content[at : at + length] = rng.randbytes(length)
                    make().ahead.wrote(cast(OpenInode, file), at, length)

    trio.run(main)
