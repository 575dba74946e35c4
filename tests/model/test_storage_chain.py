"""A chain of three real services under random faults: replicas die, come back, are filled, while clients write.

Each client owns a stretch of every chunk and numbers what it writes there, so at the end each stretch must hold the number
of the last write that was acknowledged, and all replicas must be equal.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import trio

from fs3.ids import ChunkId
from fs3.routing import PublicState
from tests.unit.storage.support import MIB, OFFLINE, SERVING, SYNCING, Cluster, cluster, until

CHUNKS = [ChunkId(1, 0), ChunkId(1, 1)]
CLIENTS = 4
STRETCH = 30_000
FAULTS = 6


async def client(
    c: Cluster, number: int, random: Random, acknowledged: dict[tuple[int, ChunkId], int], stop: trio.Event
) -> None:
    count = 0
    while not stop.is_set():
        count += 1
        chunk = random.choice(CHUNKS)
        data = count.to_bytes(4, "big") * (STRETCH // 4)
        with trio.fail_after(20):
            await c.write(chunk, number * STRETCH, data, channel=number)
        acknowledged[number, chunk] = count


async def nemesis(c: Cluster, random: Random) -> None:
    """Kill a replica, take it out of the chain, start it again, fill it, let it serve; over and over."""
    order = [1, 2, 3]
    for _ in range(FAULTS):
        await trio.sleep(random.uniform(0.0, 0.03))
        victim = random.choice(order)
        alive = [number for number in order if number != victim]
        replica = c.replicas[victim - 1]
        notice_first = random.random() < 0.3  # the chain changes while it lives on for a while
        if not notice_first:
            await replica.stop()
            await trio.sleep(random.uniform(0.0, 0.02))
        c.chain(*serving(alive), (victim, OFFLINE))
        await trio.sleep(random.uniform(0.0, 0.02))
        if notice_first:
            await replica.stop()
        await replica.start()
        c.chain(*serving(alive), (victim, SYNCING))
        if random.random() < 0.4:  # its filling is cut short and begins anew
            await trio.sleep(random.uniform(0.0, 0.02))
            c.chain(*serving(alive), (victim, OFFLINE))
            await trio.sleep(random.uniform(0.0, 0.02))
            c.chain(*serving(alive), (victim, SYNCING))
        target = replica.target
        assert target is not None
        await until(lambda target=target: target.synced_version == c.version, 15)  # type: ignore[misc]
        order = [*alive, victim]
        c.chain(*serving(order))


def serving(numbers: list[int]) -> list[tuple[int, PublicState]]:
    return [(number, SERVING) for number in numbers]


@pytest.mark.parametrize("seed", range(6))
async def test_chain_under_faults(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    acknowledged: dict[tuple[int, ChunkId], int] = {}
    async with cluster(tmp_path, 3) as c:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(client, c, number, Random(seed * 100 + number), acknowledged, stop)
            await nemesis(c, random)
            stop.set()
        assert acknowledged
        for chunk in CHUNKS:
            contents = c.contents(chunk)
            assert contents[0] is not None and contents.count(contents[0]) == 3
            data = [await c.read(chunk, 0, MIB, target=target) for target in (1, 2, 3)]
            assert data[0] == data[1] == data[2]
            for number in range(CLIENTS):
                count = acknowledged.get((number, chunk))
                if count is not None:
                    expected = count.to_bytes(4, "big") * (STRETCH // 4)
                    assert data[0][number * STRETCH : (number + 1) * STRETCH] == expected, (number, chunk)
