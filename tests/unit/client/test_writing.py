"""Small writes that share requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from fs3.api.storage import Update, UpdateKind, UpdateResult, WriteReply, WriteRequest
from fs3.client.writing import BATCH_BYTES_MAX, BATCH_MAX, SMALL_BYTES, UNDER_WAY_MAX, SharedWrites
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag
from fs3.transport.memory import MemoryTransport


class Daemon:
    """Answers when it is let. seen: the updates and the payload of each request."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[Update, ...], bytes]] = []
        self.answer = trio.Semaphore(0)
        self.refuses: set[int] = set()  # indices of chunks
        self.error: FS3Error | None = None

    async def call(
        self, address: str, method: Any, request: WriteRequest, *, deadline: float, payload: Sequence[Any]
    ) -> Any:
        self.seen.append((request.updates, b"".join([bytes(part) for part in payload])))
        await self.answer.acquire()
        if self.error is not None:
            raise self.error
        codes = [int(Code.NO_SPACE) if update.chunk.index in self.refuses else 0 for update in request.updates]
        results = [UpdateResult(code, update.chunk.index, 0, 0) for code, update in zip(codes, request.updates, strict=True)]
        return WriteReply(tuple(results))


def update(number: int, length: int = 4, kind: UpdateKind = UpdateKind.WRITE) -> Update:
    return Update(RequestTag(1, number, 1), 7, 1, 1, ChunkId(5, number), kind, 0, length, 1 << 20, ())


class Load:
    """Writes that run, and what became of them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.daemon = Daemon()
        rpc: Any = self.daemon
        self.writes = SharedWrites(Env(MemoryTransport()), rpc)
        self.done: dict[int, UpdateResult | Code] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self._nursery = nursery

    async def start(self, *numbers: int, length: int = 4) -> None:
        for number in numbers:
            self._nursery.start_soon(self._run, number, length)
            await trio.testing.wait_all_tasks_blocked()

    async def _run(self, number: int, length: int) -> None:
        self.scopes[number] = trio.CancelScope()
        with self.scopes[number]:
            try:
                data = number.to_bytes(4, "little") * (length // 4)
                self.done[number] = await self.writes.send("mem://a", update(number, length), data, 100.0)
            except FS3Error as error:
                self.done[number] = error.code

    async def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self.daemon.answer.release()
        await trio.testing.wait_all_tasks_blocked()


async def test_the_first_leave_alone_and_the_rest_together(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        load = Load(nursery)
        await load.start(*range(10))
        assert [len(updates) for updates, _ in load.daemon.seen] == [1] * UNDER_WAY_MAX
        await load.answer()
        updates, payload = load.daemon.seen[-1]
        assert [entry.chunk.index for entry in updates] == list(range(UNDER_WAY_MAX, 10))
        assert payload == b"".join([number.to_bytes(4, "little") for number in range(UNDER_WAY_MAX, 10)])
        await load.answer(10)
    results = {number: result.version for number, result in load.done.items() if isinstance(result, UpdateResult)}
    assert results == {number: number for number in range(10)}


async def test_requests_are_bounded() -> None:
    async with trio.open_nursery() as nursery:
        load = Load(nursery)
        await load.start(*range(UNDER_WAY_MAX), length=SMALL_BYTES)
        await load.start(*range(10, 90))
        await load.start(*range(100, 120), length=SMALL_BYTES)
        await load.answer(200)
    assert len(load.done) == UNDER_WAY_MAX + 80 + 20
    assert all(isinstance(result, UpdateResult) for result in load.done.values())
    assert max(len(updates) for updates, _ in load.daemon.seen) == BATCH_MAX
    assert max(len(payload) for _, payload in load.daemon.seen) <= BATCH_BYTES_MAX


async def test_large_writes_other_changes_and_other_chains_wait_for_nobody() -> None:
    async with trio.open_nursery() as nursery:
        load = Load(nursery)
        await load.start(*range(UNDER_WAY_MAX))
        await load.start(50, 51, length=SMALL_BYTES + 4)
        assert len(load.daemon.seen) == UNDER_WAY_MAX + 2
        nursery.start_soon(load.writes.send, "mem://a", update(9, 5, UpdateKind.TRUNCATE), b"", 100.0)
        nursery.start_soon(load.writes.send, "mem://b", update(9), b"1234", 100.0)
        nursery.start_soon(load.writes.send, "mem://a", replace(update(9), chain=8), b"1234", 100.0)
        await trio.testing.wait_all_tasks_blocked()
        assert len(load.daemon.seen) == UNDER_WAY_MAX + 5
        await load.answer(10)


async def test_each_learns_what_became_of_its_own() -> None:
    async with trio.open_nursery() as nursery:
        load = Load(nursery)
        load.daemon.refuses = {4}
        await load.start(*range(6))
        await load.answer(10)
        assert load.done.pop(4) is Code.NO_SPACE
        assert all(isinstance(result, UpdateResult) for result in load.done.values())
        load.daemon.refuses = set()
        load.done.clear()
        load.daemon.answer = trio.Semaphore(0)
        await load.start(*range(6))
        load.daemon.error = FS3Error(Code.CONNECTION_LOST, "gone")
        await load.answer(10)
        assert set(load.done.values()) == {Code.CONNECTION_LOST}


@pytest.mark.parametrize("cancelled", [[0], [2], [2, 3], [5], list(range(UNDER_WAY_MAX)), list(range(6))])
@pytest.mark.parametrize("answered", [0, 1])
async def test_who_gives_up_leaves_nobody_waiting(cancelled: list[int], answered: int) -> None:
    """At any time; those who sent with it try again, and it can all be used afterwards."""
    async with trio.open_nursery() as nursery:
        load = Load(nursery)
        await load.start(*range(6))
        await load.answer(answered)
        for number in cancelled:
            load.scopes[number].cancel()
        await load.answer(20)
        left = set(range(6)) - set(cancelled)
        assert left <= set(load.done)
        assert {result for result in load.done.values() if isinstance(result, Code)} <= {Code.CONNECTION_LOST}
        load.done.clear()
        await load.start(*range(10, 20))
        await load.answer(20)
        assert set(load.done) == set(range(10, 20))
