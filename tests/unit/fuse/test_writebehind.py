from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from fs3.errors import Code, FS3Error
from fuse.writebehind import PIECES_IN_FLIGHT_MAX, Told, WriteBehind, WriteBuffers

FILE: Any = object()


class Closed:
    """A client whose handles are all closed."""

    writes = 0

    async def write(self, file: Any, offset: int, data: bytes) -> None:
        self.writes += 1


class Slow:
    """A client whose writes end when they are told to."""

    def __init__(self) -> None:
        self.under_way: list[tuple[int, int]] = []
        self.most = 0
        self.go_on = trio.Event()
        self.error: FS3Error | None = None

    async def write(self, file: Any, offset: int, data: bytes) -> None:
        self.under_way.append((offset, len(data)))
        self.most = max(self.most, sum(length for _, length in self.under_way))
        await self.go_on.wait()
        self.under_way.remove((offset, len(data)))
        if self.error is not None:
            raise self.error


async def test_nothing_is_sent_once_the_mount_ends() -> None:
    client: Any = Closed()
    async with trio.open_nursery() as nursery:
        writes = WriteBehind(client, nursery, 64, WriteBuffers(1000))
        await writes.write(FILE, Told(), 0, bytes(64))
        nursery.cancel_scope.cancel()
    assert client.writes == 0


async def test_files_share_the_memory_of_their_mount() -> None:
    """What waits in one file's buffer is sent where another one's writes need the room."""
    client: Any = Slow()
    shared = WriteBuffers(256)
    async with trio.open_nursery() as nursery:
        files = [WriteBehind(client, nursery, 64, shared) for _ in range(4)]
        for writes in files[:3]:
            await writes.write(FILE, Told(), 1, bytes(50))
        ended = trio.Event()

        async def more() -> None:
            for at in range(0, 640, 64):
                await files[3].write(FILE, Told(), at, bytes(64))
            ended.set()

        nursery.start_soon(more)
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        client.go_on.set()
        await ended.wait()
        for writes in files:
            await writes.drain(Told())
    assert 64 <= client.most <= 256


async def test_a_write_larger_than_all_memory_goes_alone() -> None:
    client: Any = Slow()
    client.go_on.set()
    async with trio.open_nursery() as nursery:
        writes = WriteBehind(client, nursery, 64, WriteBuffers(100))
        await writes.write(FILE, Told(), 3, bytes(30))
        await writes.write(FILE, Told(), 33, bytes(1000))
        await writes.drain(Told())
    assert not client.under_way


async def test_pieces_in_flight_are_bounded() -> None:
    client: Any = Slow()
    async with trio.open_nursery() as nursery:
        writes = WriteBehind(client, nursery, 64, WriteBuffers(1 << 20))

        async def write() -> None:
            for at in range(0, 64 * 30, 64):
                await writes.write(FILE, Told(), at, bytes(64))

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert len(client.under_way) == PIECES_IN_FLIGHT_MAX
        client.go_on.set()


async def test_each_descriptor_is_told_of_an_error_once() -> None:
    client: Any = Slow()
    client.go_on.set()
    client.error = FS3Error(Code.NO_SPACE, "full")
    async with trio.open_nursery() as nursery:
        writes = WriteBehind(client, nursery, 64, WriteBuffers(1000))
        one, other = writes.opened(), writes.opened()
        await writes.write(FILE, one, 0, bytes(64))
        await writes.settle()
        with pytest.raises(FS3Error):
            await writes.before_read()
        late = writes.opened()  # nobody was told yet, so it is news to this one too
        for told in (one, other, late):
            with pytest.raises(FS3Error) as caught:
                await writes.drain(told)
            assert caught.value.code is Code.NO_SPACE
            await writes.drain(told)
        await writes.before_read()
        await writes.drain(writes.opened())
        await writes.write(FILE, one, 0, bytes(64))
        await writes.settle()
        for told in (other, one):
            with pytest.raises(FS3Error):
                await writes.write(FILE, told, 64, b"x")
