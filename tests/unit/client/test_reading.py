"""Single reads: several small ones share a request while their node has others under way."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from fs3.api.storage import ReadRequest
from fs3.client.reading import SMALL_BYTES, UNDER_WAY_MAX, ChunkRead
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from tests.unit.client.test_storage import Daemons

SIZE = 100


class Slow(Daemons):
    """Daemons that answer once the gate is open. Chunk i holds bytes of the value i."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.chunks = {ChunkId(5, index): bytes([index]) * SIZE for index in range(64)}

    async def answer(self, address: str, request: Any, payload: bytes) -> tuple[Any, bytes]:
        await self.gate.wait()
        return await super().answer(address, request, payload)

    async def one(self, index: int, into: bytearray) -> None:
        read = ChunkRead(1, ChunkId(5, index), 0, memoryview(into))
        assert await self.client.read_one(read, deadline=trio.current_time() + 30) == SIZE
        assert bytes(into) == bytes([index]) * SIZE

    @property
    def sizes(self) -> list[int]:
        """Ranges of each request."""
        return [len(request.ranges) for _, request in self.rpc.sent if isinstance(request, ReadRequest)]


async def test_reads_that_come_while_others_are_under_way_share_requests(autojump_clock: trio.abc.Clock) -> None:
    daemons = Slow()
    async with trio.open_nursery() as nursery:
        for index in range(40):
            nursery.start_soon(daemons.one, index, bytearray(SIZE))
        await trio.testing.wait_all_tasks_blocked()
        nodes = len({address for address, _ in daemons.rpc.sent})
        assert daemons.sizes == [1] * (nodes * UNDER_WAY_MAX)
        daemons.gate.set()
    assert sum(daemons.sizes) == 40
    assert len(daemons.sizes) <= nodes * UNDER_WAY_MAX + nodes, "what waited for a node did not leave together"
    await daemons.one(50, bytearray(SIZE))
    assert daemons.sizes[-1] == 1, "a single one waits for nobody"


async def test_large_reads_wait_for_nobody(autojump_clock: trio.abc.Clock) -> None:
    daemons = Slow()
    async with trio.open_nursery() as nursery:
        for index in range(10):
            read = ChunkRead(1, ChunkId(5, index), 0, memoryview(bytearray(SMALL_BYTES + 1)))

            async def one(read: ChunkRead = read) -> None:
                assert await daemons.client.read_one(read, deadline=trio.current_time() + 30) == SIZE

            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert daemons.sizes == [1] * 10
        daemons.gate.set()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("given_up", range(24))
async def test_who_gives_up_harms_no_other(autojump_clock: trio.abc.Clock, given_up: int, late: bool) -> None:
    """Whether it was alone, waited, or fetched for others; before the replies come and while it fetches."""
    daemons = Slow()
    buffers = [bytearray(SIZE) for _ in range(24)]
    scopes = [trio.CancelScope() for _ in range(24)]

    async def one(index: int) -> None:
        with scopes[index]:
            await daemons.one(index, buffers[index])
        if scopes[index].cancelled_caught:
            buffers[index][:] = b"!" * SIZE  # it is another one's now

    async with trio.open_nursery() as nursery:
        for index in range(24):
            nursery.start_soon(one, index)
        await trio.testing.wait_all_tasks_blocked()
        if late:
            daemons.gate.set()
            await trio.lowlevel.checkpoint()
        scopes[given_up].cancel()
        daemons.gate.set()
    expected = [b"!" if scope.cancelled_caught else bytes([index]) for index, scope in enumerate(scopes)]
    assert buffers == [bytearray(value * SIZE) for value in expected]
    assert not any(queue.waiting or queue.under_way for queue in daemons.client._singles._nodes.values())


async def test_a_batch_that_fails_is_read_elsewhere(autojump_clock: trio.abc.Clock) -> None:
    daemons = Slow()

    def trouble(address: str, request: Any) -> None:
        if isinstance(request, ReadRequest) and len(request.ranges) > 1:
            raise FS3Error(Code.CONNECTION_LOST, "gone")

    daemons.trouble = trouble
    async with trio.open_nursery() as nursery:
        for index in range(40):
            nursery.start_soon(daemons.one, index, bytearray(SIZE))
        await trio.testing.wait_all_tasks_blocked()
        daemons.gate.set()
