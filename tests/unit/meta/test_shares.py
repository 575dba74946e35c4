"""Background work is shared out among the living meta daemons: once each, all of it, and again when one of them dies."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from hypothesis import given, strategies

from fs3.api.meta import Access
from fs3.kv.memory import MemoryEngine
from fs3.layout import FileLayout
from meta.shares import Share, holder, weight
from tests.unit.meta.world import CHUNK, CLIENT, Cluster, FakeChunks, R, World, world

MEMBERS = strategies.lists(strategies.integers(0, 1 << 32), min_size=1, max_size=8, unique=True)
WORK = strategies.integers(0, (1 << 64) - 1)
DATA = b"x" * (CHUNK + 5)
FILES = 40


def test_it_is_the_same_everywhere_and_in_every_version() -> None:
    assert [holder(work, (11, 12, 13)) for work in range(1, 13)] == [11, 11, 13, 12, 11, 13, 13, 12, 12, 11, 13, 12]


@given(WORK, MEMBERS)
def test_one_of_the_members_has_it_in_whatever_order_they_are(work: int, members: list[int]) -> None:
    found = holder(work, members)
    assert found == holder(work, members[::-1])
    assert [node for node in members if Share(node, tuple(members)).has(work)] == [found]
    assert 0 <= weight(work, found) < 1 << 64


@given(WORK, MEMBERS, strategies.integers(0, 7))
def test_who_goes_moves_only_its_own(work: int, members: list[int], which: int) -> None:
    gone = members[which % len(members)]
    left = [node for node in members if node != gone]
    if left and holder(work, members) != gone:
        assert holder(work, left) == holder(work, members)


def test_shares_are_even_also_of_numbers_in_a_row() -> None:
    members = (11, 12, 13, 14)
    for numbers in (range(1, 4001), range(1 << 40, (1 << 40) + 4_000), range(0, 4_000 << 20, 1 << 20)):
        holders = [holder(number, members) for number in numbers]
        assert all(850 < holders.count(node) < 1150 for node in members)
        left = [holder(number, members[:3]) for number, had in zip(numbers, holders, strict=True) if had == 14]
        assert all(len(left) * 0.27 < left.count(node) < len(left) * 0.4 for node in members[:3])


def test_one_without_others_has_all_and_one_that_is_taken_for_dead_nothing() -> None:
    assert Share(11, ()).has(5)
    assert not any(Share(11, (12, 13)).has(work) for work in range(50))


class Removals(FakeChunks):
    """Also knows of which inodes the chunks were removed by this daemon."""

    def __init__(self, chunks: dict[tuple[int, int], bytearray]) -> None:
        super().__init__()
        self.chunks = chunks
        self.removed: list[int] = []
        self.settled: list[int] = []

    async def remove(self, inode: int, layout: FileLayout, bound: int, *, deadline: float) -> None:
        self.removed.append(inode)
        await super().remove(inode, layout, bound, deadline=deadline)

    async def file_length(self, inode: int, layout: FileLayout, *, deadline: float) -> int:
        self.settled.append(inode)
        return await super().file_length(inode, layout, deadline=deadline)


class Several:
    """Meta daemons over one store, and what each of them does to chunks. `start` gives one its collector."""

    def __init__(self, stack: AsyncExitStack, *nodes: int) -> None:
        self.cluster = Cluster(metas=nodes)
        self.stack = stack
        self.engine = MemoryEngine()
        self.done: dict[int, Removals] = {}
        self._chunks: dict[tuple[int, int], bytearray] = {}

    async def start(self, node: int) -> World:
        chunks = self.done[node] = Removals(self._chunks)
        running = world(self.engine, chunks, self.cluster, collecting=True, node=node)
        return await self.stack.enter_async_context(running)

    def share(self, node: int, inodes: list[int]) -> list[int]:
        return [inode for inode in inodes if holder(inode, self.cluster.metas) == node]


async def removed(w: World) -> list[int]:
    """Files that were there, by their numbers."""
    inodes = [(await w.written(R, b"%d" % number, DATA)).inode for number in range(FILES)]
    for number in range(FILES):
        await w.unlink(R, b"%d" % number)
    return inodes


async def test_removed_files_are_collected_by_all_each_by_one(autojump_clock: object) -> None:
    async with AsyncExitStack() as stack:
        several = Several(stack, 11, 12, 13)
        daemons = [await several.start(node) for node in (11, 12, 13)]
        inodes = await removed(daemons[0])
        await trio.sleep(6)
        assert await daemons[0].keys(b"GCQ_") == []
        for node, chunks in several.done.items():
            assert sorted(chunks.removed) == several.share(node, inodes) != []


async def test_the_share_of_a_dead_daemon_is_done_by_the_others_when_they_hear_of_it(autojump_clock: object) -> None:
    async with AsyncExitStack() as stack:
        several = Several(stack, 11, 12, 13)  # of which 12 is dead already, but nobody knows
        daemons = [await several.start(node) for node in (11, 13)]
        inodes = await removed(daemons[0])
        lost = several.share(12, inodes)
        await trio.sleep(60)
        assert len(await daemons[0].keys(b"GCQ_")) == len(lost) > 0
        assert not {*several.done[11].removed, *several.done[13].removed} & {*lost}
        several.cluster.set_metas(11, 13)
        await trio.sleep(6)
        assert await daemons[0].keys(b"GCQ_") == []
        for node, chunks in several.done.items():
            assert sorted(chunks.removed) == several.share(node, inodes)


@pytest.mark.parametrize("dies", [False, True])
async def test_sessions_of_a_dead_client_are_ended_and_settled_by_all_each_by_one(
    autojump_clock: object, dies: bool
) -> None:
    async with AsyncExitStack() as stack:
        several = Several(stack, 11, 12, 13)
        daemons = [await several.start(node) for node in ((11, 12) if dies else (11, 12, 13))]
        attrs = [(await daemons[0].create(R, b"%d" % number)).attr for number in range(FILES)]
        for attr in attrs:
            await daemons[0].open(attr.inode, Access.WRITE, session=2, client=CLIENT + 1)
            daemons[0].chunks.write(attr, 0, DATA)
        several.cluster.clients = {CLIENT: False, CLIENT + 1: True}
        await trio.sleep(20)
        inodes = [attr.inode for attr in attrs]
        if dies:
            assert len(await daemons[0].keys(b"SESS")) == FILES + len(several.share(13, inodes))
            several.cluster.set_metas(11, 12)
            await trio.sleep(6)
        assert len(await daemons[0].keys(b"SESS")) == FILES
        assert {(await daemons[0].getattr(inode)).length for inode in inodes} == {len(DATA)}
        for node, chunks in several.done.items():
            assert sorted(chunks.settled) == several.share(node, inodes) != []


async def test_what_a_dead_daemon_had_begun_on_a_file_is_completed_by_one(autojump_clock: object) -> None:
    """At once when they know that it is dead, though its claims are young."""
    async with AsyncExitStack() as stack:
        several = Several(stack, 11, 12, 13)
        daemons = [await several.start(node) for node in (11, 12)]
        inodes = []
        broken = FakeChunks()
        broken.gate = trio.Event()
        async with world(several.engine, broken, several.cluster, node=13) as dying, trio.open_nursery() as nursery:
            for number in range(FILES):
                attr = await daemons[0].written(R, b"%d" % number, DATA)
                inodes.append(attr.inode)
                nursery.start_soon(lambda inode=attr.inode: dying.setattr(inode, length=5))
            await trio.testing.wait_all_tasks_blocked()
            assert len(await dying.keys(b"INTN")) == FILES
            nursery.cancel_scope.cancel()
        await trio.sleep(6)
        assert len(await daemons[0].keys(b"INTN")) == FILES
        several.cluster.set_metas(11, 12)
        await trio.sleep(5)
        assert await daemons[0].keys(b"INTN") == []
        for node, chunks in several.done.items():
            assert chunks.calls.count("truncate") == len(several.share(node, inodes))


async def test_old_records_are_forgotten_by_one(autojump_clock: object) -> None:
    async with AsyncExitStack() as stack:
        several = Several(stack, 11, 12)
        daemons = {node: await several.start(node) for node in (11, 12)}
        await daemons[11].mkdir(R, b"d")
        one = holder(0, (11, 12))
        for w in daemons.values():
            w.env._now_ns += 10_000 * 10**9  # type: ignore[attr-defined]
        await trio.sleep(700)
        assert len(daemons[one].service.collector._old_records) == 1
        assert daemons[23 - one].service.collector._old_records == {}
        several.cluster.set_metas(23 - one)
        await trio.sleep(5_000)
        assert await daemons[23 - one].keys(b"IDEM") == []


async def test_who_may_live_though_our_routing_does_not_know_it_keeps_its_work(autojump_clock: object) -> None:
    """It came after the routing that we know: only what mgmtd says is the latest counts."""
    cluster = Cluster(metas=(11, 12))
    engine, slow = MemoryEngine(), FakeChunks()
    slow.gate = trio.Event()
    async with world(engine, cluster=cluster, node=11) as one, world(engine, slow, cluster, node=13) as new:
        attr = await one.written(R, b"f", DATA)
        cluster.metas, cluster.version = (11, 12, 13), 2  # of which 11 has not heard
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: new.setattr(attr.inode, length=5))
            await trio.sleep(1)
            await one.service._intents.sweep()
            with trio.move_on_after(5) as waited:
                await one.service._intents.complete(attr.inode)
            assert waited.cancelled_caught and one.chunks.calls == []
            slow.gate.set()
        await one.service._intents.complete(attr.inode)
        assert one.chunks.calls == [] and slow.calls == ["truncate"]
