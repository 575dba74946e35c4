from __future__ import annotations

import random

import pytest
import trio

from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.kv.memory import MemoryEngine
from fs3.transport.memory import MemoryTransport
from meta.inode_ids import BLOCK_SIZE, InodeIds
from meta.schema import INODE_BLOCKS


class Engine(MemoryEngine):
    """Notes what was durable at each sync; fails the first ones."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__(lambda: 0.0)
        self.durable = 0
        self.failures = failures

    async def sync(self) -> None:
        await super().sync()
        if self.failures:
            self.failures -= 1
            raise FS3Error(Code.KV_UNAVAILABLE, "not now")
        self.durable = int.from_bytes(await self.transaction().get(INODE_BLOCKS) or b"", "little")


def ids(engine: Engine) -> InodeIds:
    return InodeIds(Env(MemoryTransport(), random.Random(1)), engine)


async def test_ids_are_handed_out_once_and_only_when_that_is_durable() -> None:
    engine = Engine()
    one, other = ids(engine), ids(engine)
    seen: set[int] = set()

    async def take(source: InodeIds) -> None:
        number = await source.take()
        assert number < engine.durable, "power loss would hand it out again"
        assert number not in seen
        seen.add(number)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(take, one)
            nursery.start_soon(take, other)
    assert max(seen) < 2 * BLOCK_SIZE + 2


async def test_a_block_that_could_not_be_made_durable_is_not_used() -> None:
    engine = Engine(failures=1)
    source = ids(engine)
    with pytest.raises(FS3Error):
        await source.take()
    assert await source.take() < engine.durable
