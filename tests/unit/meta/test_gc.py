"""The collector: garbage, dead clients, old records; several daemons, failures, crashes."""

from __future__ import annotations

import pytest
import trio

from fs3.api.meta import Access
from fs3.errors import Code, FS3Error
from tests.unit.meta.test_intents import Mortal
from tests.unit.meta.world import CHUNK, CLIENT, Cluster, FakeChunks, R, World, refused, world

DATA = b"x" * (CHUNK + 5)


async def test_removed_files_are_collected_soon(autojump_clock: object) -> None:
    async with world(collecting=True) as w:
        await trio.sleep(2.3)
        attr = await w.written(R, b"f", DATA)
        await w.unlink(R, b"f")
        assert w.chunks.count(attr.inode) == 2
        await trio.sleep(0.2)
        assert w.chunks.chunks == {} and await w.keys(b"GCQ_") == []


async def test_the_queue_is_searched_only_now_and_then(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each look would go through the traces of all that was removed before."""
    monkeypatch.setattr("meta.context.REMOVED_MAX", 3)
    monkeypatch.setattr("meta.gc.REMOVED_MAX", 3)
    async with world(collecting=True) as w:
        collector = w.service.collector
        search = collector.collect
        searches: list[float] = []

        async def counted() -> None:
            searches.append(trio.current_time())
            await search()

        collector.collect = counted  # type: ignore[method-assign]
        for _ in range(100):
            await w.written(R, b"f", DATA)
            await w.unlink(R, b"f")
            await trio.sleep(0.2)
            assert w.chunks.chunks == {}
        assert len(searches) <= 1, "at the start"
        for number in range(8):  # more than are remembered
            await w.written(R, b"%d" % number, DATA)
        for number in range(8):
            await w.unlink(R, b"%d" % number)
        await trio.sleep(0.2)
        assert w.chunks.chunks == {}


async def test_what_cannot_be_removed_now_is_removed_later(autojump_clock: object) -> None:
    async with world(collecting=True) as w:
        await w.written(R, b"f", DATA)
        w.chunks.fail = FS3Error(Code.CHAIN_UNAVAILABLE, "no serving target")
        await w.unlink(R, b"f")
        await trio.sleep(30)
        assert len(w.chunks.chunks) == 2
        w.chunks.fail = None
        await trio.sleep(6)
        assert w.chunks.chunks == {} and await w.keys(b"GCQ_") == []


async def test_one_file_that_cannot_be_removed_does_not_keep_the_others() -> None:
    class Stubborn(FakeChunks):
        async def remove(self, inode: int, layout: object, bound: int, *, deadline: float) -> None:
            if inode == stuck:
                raise FS3Error(Code.CHAIN_UNAVAILABLE, "no serving target")
            await super().remove(inode, layout, bound, deadline=deadline)  # type: ignore[arg-type]

    async with world(chunks=Stubborn()) as w:
        stuck = (await w.written(R, b"0", DATA)).inode
        for name in (b"1", b"2", b"3"):
            await w.written(R, name, DATA)
        for name in (b"0", b"1", b"2", b"3"):
            await w.unlink(R, name)
        async with refused(Code.CHAIN_UNAVAILABLE):
            await w.service.collector.collect()
        assert {inode for inode, _ in w.chunks.chunks} == {stuck}
        assert len(await w.keys(b"GCQ_")) == 1


async def test_a_crash_anywhere_in_a_collection(autojump_clock: object) -> None:
    async def collect(w: World) -> None:
        await w.service.collector.collect()
        await trio.sleep(6)
        await w.service.collector.collect()

    for at in range(1, 100):
        mortal = Mortal(at)
        async with world(engine=mortal.engine, chunks=mortal.chunks) as first:
            for name in (b"1", b"2"):
                await first.written(R, name, DATA)
                await first.unlink(R, name)
            kept = await first.written(R, b"kept", DATA)
        crashed = await mortal.run(collect)
        async with world(engine=mortal.engine, chunks=mortal.chunks) as after:
            for _ in range(2):
                await after.service.collector.collect()
                await trio.sleep(6)
            await after.service.collector.collect()
            assert {inode for inode, _ in mortal.chunks.chunks} == {kept.inode}
            assert await after.keys(b"GCQ_") == []
        if not crashed:
            assert at > 8
            return
    raise AssertionError("it never came to an end")


async def test_the_sessions_of_a_dead_client_end_and_its_bytes_count(autojump_clock: object) -> None:
    cluster = Cluster(clients={CLIENT: True, CLIENT + 1: True})
    async with world(cluster=cluster, collecting=True) as w:
        attr = (await w.create(R, b"f")).attr
        await w.open(attr.inode, Access.WRITE, session=2, client=CLIENT + 1)
        w.chunks.write(attr, 0, DATA)
        await trio.sleep(20)
        assert len(await w.keys(b"SESS")) == 2
        cluster.clients[CLIENT] = False
        await trio.sleep(0.5)
        assert len(await w.keys(b"SESS")) == 2
        await trio.sleep(15)
        assert len(await w.keys(b"SESS")) == 1
        settled = await w.getattr(attr.inode)
        assert settled.length == len(DATA) and settled.data_version > attr.data_version
        assert await w.keys(b"INTN") == []
        cluster.clients.pop(CLIENT + 1)  # mgmtd has forgotten it altogether
        await trio.sleep(500)
        assert len(await w.keys(b"SESS")) == 1
        await trio.sleep(200)
        assert await w.keys(b"SESS") == []


async def test_a_client_whose_process_is_gone_is_not_waited_for(autojump_clock: object) -> None:
    cluster = Cluster()
    async with world(cluster=cluster) as w:
        attr = (await w.create(R, b"f")).attr
        w.chunks.write(attr, 0, DATA)
        cluster.clients[CLIENT] = False
        await w.service.collector.end_dead_sessions()
        assert len(await w.keys(b"SESS")) == 1
        cluster.ended.add(CLIENT)
        await w.service.collector.end_dead_sessions()
        assert await w.keys(b"SESS") == []
        assert (await w.getattr(attr.inode)).length == len(DATA)


async def test_a_client_that_comes_back_in_time_keeps_its_sessions(autojump_clock: object) -> None:
    cluster = Cluster()
    async with world(cluster=cluster) as w:
        await w.create(R, b"f")
        for alive in (False, True, False):
            cluster.clients[CLIENT] = alive
            await w.service.collector.end_dead_sessions()
            await trio.sleep(0.9)
        assert len(await w.keys(b"SESS")) == 1
        await trio.sleep(0.2)
        await w.service.collector.end_dead_sessions()
        assert await w.keys(b"SESS") == []


async def test_a_removed_file_of_a_dead_client_goes_with_all_it_wrote(autojump_clock: object) -> None:
    cluster = Cluster()
    async with world(cluster=cluster, collecting=True) as w:
        attr = (await w.create(R, b"f")).attr
        w.chunks.write(attr, 0, DATA)
        await w.unlink(R, b"f")
        held = await w.written(R, b"g", DATA)
        await w.unlink(R, b"g", hold=9)
        cluster.clients[CLIENT] = False
        await trio.sleep(20)
        assert await w.keys(b"SESS") == [] and w.chunks.chunks == {}
        for inode in (attr.inode, held.inode):
            async with refused(Code.STALE_HANDLE):
                await w.getattr(inode)


async def test_a_crash_anywhere_while_sessions_end(autojump_clock: object) -> None:
    cluster = Cluster()

    async def end(w: World) -> None:
        w.cluster.clients = {CLIENT: False}
        await w.service.collector.end_dead_sessions()
        await trio.sleep(1.1)
        await w.service.collector.end_dead_sessions()
        await w.service.collector.collect()

    for at in range(1, 200):
        mortal = Mortal(at)
        async with world(engine=mortal.engine, chunks=mortal.chunks) as first:
            attr = (await first.create(R, b"f", session=1)).attr
            mortal.chunks.write(attr, 0, DATA)
            gone = (await first.create(R, b"g", session=2)).attr
            mortal.chunks.write(gone, 0, DATA)
            await first.unlink(R, b"g")
        crashed = await mortal.run(end)
        async with world(engine=mortal.engine, chunks=mortal.chunks, cluster=cluster, collecting=True) as after:
            cluster.clients[CLIENT] = False
            await trio.sleep(40)
            assert (await after.getattr(attr.inode)).length == len(DATA)
            assert {inode for inode, _ in mortal.chunks.chunks} == {attr.inode}
            for tag in (b"SESS", b"INTN", b"GCQ_"):
                assert await after.keys(tag) == [], (at, tag)
        if not crashed:
            assert at > 15
            return
    raise AssertionError("it never came to an end")


async def test_old_records_are_forgotten(autojump_clock: object) -> None:
    async with world() as w:
        for number in range(300):
            await w.mkdir(R, b"%d" % number)
        w.env._now_ns += 3_000 * 10**9  # type: ignore[attr-defined]
        await w.mkdir(R, b"young")
        await w.service.collector.forget_records()
        assert len(await w.keys(b"IDEM")) == 301
        w.env._now_ns += 1_000 * 10**9  # type: ignore[attr-defined]
        await w.service.collector.forget_records()
        await trio.sleep(3_601)
        await w.service.collector.forget_records()
        assert len(await w.keys(b"IDEM")) == 1


async def test_records_outlive_a_wrong_wall_clock(autojump_clock: object) -> None:
    """A retry must be answered though some daemon's wall clock was set ahead by days, and back."""
    async with world() as w:
        await w.mkdir(R, b"d")
        for _ in range(3):
            w.env._now_ns += 86_400 * 10**9  # type: ignore[attr-defined]
            await w.service.collector.forget_records()
            w.env._now_ns -= 86_400 * 10**9  # type: ignore[attr-defined]
            await w.service.collector.forget_records()
            await trio.sleep(1_800)
            assert len(await w.keys(b"IDEM")) == 1


async def test_the_collector_survives_what_fails(autojump_clock: object) -> None:
    """mgmtd is away, then the storage service: rounds fail and the next ones succeed."""
    async with world(collecting=True) as w:
        handlers = w.service._mgmtd.handlers  # type: ignore[attr-defined]
        kept = dict(handlers)
        handlers.clear()
        await trio.sleep(30)
        handlers.update(kept)
        await w.create(R, b"f")
        w.cluster.clients[CLIENT] = False
        await trio.sleep(30)
        assert await w.keys(b"SESS") == []
