"""What operators ask of the metadata service."""

from __future__ import annotations

import pytest

from fs3.api.common import Empty
from fs3.api.meta import AttrReply
from fs3.api.meta_admin import (
    GC_STATUS,
    LIST_SESSIONS,
    PRUNE_SESSIONS,
    SCAN,
    SET_LAYOUT,
    TABLE_USE,
    UNUSED_IDS,
    ListSessionsRequest,
    PruneSessionsRequest,
    ScanRequest,
    SetLayoutRequest,
    TableUseRequest,
)
from fs3.errors import Code, FS3Error
from fs3.layout import FileLayout
from meta.schema import Garbage, garbage_key
from tests.unit.meta.world import CHUNK, CLIENT, Cluster, R, World, refused, world


async def test_sessions_are_listed_by_page_client_and_inode() -> None:
    async with world() as w:
        first = (await w.create(R, b"first", session=1)).attr
        await w.open(first.inode, 2, session=2, client=77)
        second = (await w.create(R, b"second", session=3)).attr
        await w.unlink(R, b"second")

        async def sessions(**wanted: int) -> list[tuple[int, int, int]]:
            found = []
            after = b""
            while True:
                reply = await w.call(LIST_SESSIONS, ListSessionsRequest(after, 1, **wanted))
                found += [(each.inode, each.client, each.session) for each in reply.sessions]
                after = reply.after
                if not after:
                    return found

        everything = [(first.inode, 77, 2), (first.inode, CLIENT, 1), (second.inode, CLIENT, 3)]
        assert await sessions() == everything
        assert await sessions(client=77) == everything[:1]
        assert await sessions(inode=first.inode) == everything[:2]
        assert await sessions(inode=second.inode, client=77) == []
        last = (await w.call(LIST_SESSIONS, ListSessionsRequest(inode=second.inode))).sessions[0]
        assert (last.nlink, last.length, last.hold, last.uid) == (0, 0, False, 0) and last.since_ns > 0


async def test_only_the_sessions_of_the_dead_are_pruned() -> None:
    cluster = Cluster(clients={CLIENT: True, 77: False})
    async with world(cluster=cluster) as w:
        file = (await w.create(R, b"file", session=1)).attr
        await w.open(file.inode, 2, session=2, client=77)
        w.chunks.write(file, 0, b"1234")
        async with refused(Code.BUSY):
            await w.call(PRUNE_SESSIONS, PruneSessionsRequest(CLIENT))
        assert (await w.call(PRUNE_SESSIONS, PruneSessionsRequest(77))).ended == 1
        assert (await w.call(PRUNE_SESSIONS, PruneSessionsRequest(77))).ended == 0
        assert len(await w.keys(b"SESS")) == 1
        assert (await w.getattr(file.inode)).length == 4  # what it wrote was looked up


async def test_the_queue_of_removed_files_is_told() -> None:
    async with world() as w:
        status = await w.call(GC_STATUS, Empty())
        assert (status.files, status.bytes, status.oldest_ms, status.problem) == (0, 0, -1, "")
        for name in (b"a", b"b"):
            await w.written(R, name, b"x" * 10)
            await w.unlink(R, name)
        status = await w.call(GC_STATUS, Empty())
        assert (status.files, status.bytes, status.unsized, status.more) == (2, 20, 0, False)
        assert 0 <= status.oldest_ms < 1000 and status.collected == 0
        w.chunks.fail = FS3Error(Code.CHAIN_UNAVAILABLE, "chain 11")
        await w.service.collector._guarded(w.service.collector.collect, "collecting removed files")
        status = await w.call(GC_STATUS, Empty())
        assert status.failures == 1 and "chain 11" in status.problem
        w.chunks.fail = None
        await w.service.collector._guarded(w.service.collector.collect, "collecting removed files")
        status = await w.call(GC_STATUS, Empty())
        assert (status.files, status.collected, status.problem) == (0, 2, "")


async def test_removed_files_of_before_have_no_time() -> None:
    async with world() as w:
        attr = await w.written(R, b"a", b"x")
        await w.unlink(R, b"a")
        txn = w.engine.transaction()
        value = await txn.get(garbage_key(attr.inode))
        assert value is not None
        txn.set(garbage_key(attr.inode), value[:-8])
        await txn.commit()
        assert Garbage.unpack(value[:-8]).since_ns == 0
        assert (await w.call(GC_STATUS, Empty())).oldest_ms == -1


async def set_layout(w: World, inode: int, **wanted: int) -> AttrReply:
    return await w.call(SET_LAYOUT, SetLayoutRequest(inode, **wanted))


async def test_new_files_have_the_layout_of_their_directory() -> None:
    async with world() as w:
        folder = await w.mkdir(R, b"folder")
        old = await w.file(folder.inode, b"old")
        changed = (await set_layout(w, folder.inode, chunk_size=4 * CHUNK, stripe=2)).attr
        assert changed.layout is not None and (changed.layout.chunk_size, changed.layout.stripe) == (4 * CHUNK, 2)
        assert changed.ctime_ns > folder.ctime_ns and changed.nlink == folder.nlink
        assert (await w.getattr(folder.inode)).ctime_ns == changed.ctime_ns
        below = await w.mkdir(folder.inode, b"below")
        for parent, name in ((folder.inode, b"new"), (below.inode, b"new")):
            layout = (await w.file(parent, name)).layout
            assert layout is not None and (layout.chunk_size, layout.stripe, layout.table) == (4 * CHUNK, 2, 1)
        assert (await w.getattr(old.inode)).layout == old.layout
        layout = (await w.file(R, b"elsewhere")).layout
        assert layout is not None and layout.chunk_size == CHUNK


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"table": 9}, "there is no chain table 9; there are: 1"),
        ({"chunk_size": 100_000}, "expected a power of two from 65536"),
        ({"stripe": 4}, "a stripe of 4 chains: table 1 has 3"),
        ({"stripe": -1}, "a negative number"),
    ],
)
async def test_a_layout_that_makes_no_sense_is_refused(wanted: dict[str, int], why: str) -> None:
    async with world() as w:
        folder = await w.mkdir(R, b"folder")
        with pytest.raises(FS3Error, match=why):
            await set_layout(w, folder.inode, **wanted)
        assert await w.getattr(folder.inode) == folder


async def test_only_directories_have_a_layout_to_set() -> None:
    async with world() as w:
        file = await w.file(R, b"file")
        async with refused(Code.NOT_DIRECTORY):
            await set_layout(w, file.inode, stripe=1)
        async with refused(Code.STALE_HANDLE):
            await set_layout(w, 999, stripe=1)


async def test_a_scan_reads_everything_page_by_page() -> None:
    async with world() as w:
        for number in range(5):
            await w.file(R, b"file %d" % number)
        pairs: list[tuple[bytes, bytes]] = []
        begin, more = b"", True
        while more:
            reply = await w.call(SCAN, ScanRequest(begin, b"\xff", 3))
            pairs += zip(reply.keys, reply.values, strict=True)
            begin, more = pairs[-1][0] + b"\0", reply.more
        assert pairs == await w.engine.transaction().get_range(b"", b"\xff")


async def test_ids_that_may_be_handed_out_are_told() -> None:
    async with world() as w:
        attr = await w.file(R, b"file")
        reply = await w.call(UNUSED_IDS, Empty())
        assert reply.begin == attr.inode + 1 and reply.end > reply.begin


async def test_who_names_a_table_is_counted() -> None:
    async with world() as w:
        first = await w.call(TABLE_USE, TableUseRequest(1))
        assert (first.files, first.directories, first.example, first.after) == (0, 1, int(R), b"")
        file = (await w.create(R, b"file", session=1)).attr
        found = await w.call(TABLE_USE, TableUseRequest(1))
        assert (found.files, found.directories) == (1, 1)
        assert (await w.call(TABLE_USE, TableUseRequest(2))).example == 0
        removed = Garbage(0, FileLayout(2, 1, CHUNK, 1, 0))
        txn = w.engine.transaction()
        txn.set(garbage_key(file.inode + 5), removed.pack())
        await txn.commit()
        found = await w.call(TABLE_USE, TableUseRequest(2))
        assert (found.files, found.directories, found.example) == (1, 0, file.inode + 5), "it is to be collected first"
