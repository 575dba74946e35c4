from __future__ import annotations

import pytest
import trio

from fs3.api import meta as api
from fs3.api.meta import RELEASE, Access, Caller, FileKind, ReleaseRequest, SessionRef
from fs3.errors import Code
from fs3.kv.memory import MemoryEngine
from fs3.layout import FILE_LENGTH_MAX
from tests.unit.meta.world import ALICE, BOB, CAROL, CHUNK, CLIENT, ROOT, R, refused, world


async def test_what_is_held_lives_on_and_is_cut_like_a_file_that_nobody_writes() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", b"x" * (2 * CHUNK))
        refs = (SessionRef(attr.inode, 4), SessionRef(R, 5), SessionRef(12345, 6))
        assert (await w.call(api.HOLD, api.HoldRequest(w.tag(), CLIENT, refs))).gone == (R, 12345)
        async with refused(Code.INVALID):
            await w.call(api.HOLD, api.HoldRequest(w.tag(), CLIENT, refs * 30))
        calls = len(w.chunks.calls)
        attr = await w.setattr(attr.inode, length=CHUNK)
        assert w.chunks.calls[calls:] == ["truncate"]
        attr = await w.setattr(attr.inode, length=3 * CHUNK)
        assert w.chunks.calls[calls:] == ["truncate"], "no writer may have put anything behind the end"
        await w.unlink(R, b"f")
        assert (await w.getattr(attr.inode)).nlink == 0 and await w.keys(b"GCQ_") == []
        await w.call(RELEASE, ReleaseRequest(w.tag(), CLIENT, refs[:1]))
        async with refused(Code.STALE_HANDLE):
            await w.getattr(attr.inode)
        assert len(await w.keys(b"GCQ_")) == 1


@pytest.mark.parametrize(
    ("caller", "access", "truncate", "allowed"),
    [
        (ALICE, Access.READ, False, True),
        (ALICE, Access.READ_WRITE, True, True),
        (BOB, Access.READ, False, True),
        (BOB, Access.WRITE, False, False),
        (BOB, Access.READ, True, False),  # to truncate is to write
        (CAROL, Access.READ, False, False),
        (CAROL, Access.WRITE, False, True),
        (CAROL, Access.READ_WRITE, False, False),
        (ROOT, Access.READ_WRITE, True, True),
    ],
)
async def test_open_checks_rights(caller: Caller, access: Access, truncate: bool, allowed: bool) -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        await w.setattr(file.inode, uid=ALICE.uid, gid=50, mode=0o642)
        w.caller = caller
        if allowed:
            await w.open(file.inode, access, truncate)
        else:
            async with refused(Code.PERMISSION_DENIED):
                await w.open(file.inode, access, truncate)
        assert len(await w.keys(b"SESS")) == (allowed and access is not Access.READ)


async def test_what_cannot_be_opened() -> None:
    async with world() as w:
        link = await w.symlink(R, b"l", b"t")
        await w.open(R, Access.READ)
        async with refused(Code.IS_DIRECTORY):
            await w.open(R, Access.WRITE)
        async with refused(Code.IS_DIRECTORY):
            await w.open(R, Access.READ, truncate=True)
        async with refused(Code.LOOP):
            await w.open(link.inode)
        async with refused(Code.STALE_HANDLE):
            await w.open(999_999)
        fifo = await w.mknod(R, b"p", FileKind.FIFO)
        await w.open(fifo.inode, Access.READ_WRITE)
        assert await w.keys(b"SESS") == []


async def test_length_grows_by_what_writers_report() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f", session=1)).attr
        await w.open(attr.inode, Access.WRITE, session=2)
        first = await w.report(attr, 100)
        assert first.length == 100 and first.data_version > attr.data_version
        assert first.mtime_ns == first.ctime_ns > attr.mtime_ns and first.atime_ns == attr.atime_ns
        second = await w.report(attr, 40)
        assert second.length == 100 and second.mtime_ns > first.mtime_ns
        assert (await w.close(attr, 150, session=2)).length == 150
        last = await w.close(attr, session=1)
        assert last.length == 150 == (await w.getattr(attr.inode)).length
        assert await w.keys(b"SESS") == []
        async with refused(Code.FILE_TOO_LARGE):
            await w.report(attr, FILE_LENGTH_MAX + 1)


async def test_a_report_without_news_writes_nothing() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", b"data")
        records = await w.keys(b"IDEM")
        assert await w.report(attr, 4, wrote=False) == attr
        assert await w.report(attr, -1) == attr
        assert await w.keys(b"IDEM") == records
        assert (await w.report(attr, 9, wrote=False)).length == 9


async def test_sync_waits_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    synced = 0

    class Engine(MemoryEngine):
        async def sync(self) -> None:
            nonlocal synced
            await trio.lowlevel.checkpoint()
            synced += 1

    async with world(engine=Engine()) as w:
        attr = (await w.create(R, b"f")).attr
        synced = 0  # taking a block of inode ids does it too
        await w.report(attr, 5, sync=False)
        assert synced == 0
        await w.report(attr, 6, sync=True)
        assert synced == 1
        await w.report(attr, 6, wrote=False, sync=True)
        assert synced == 2


async def test_writing_by_another_than_root_clears_set_id_bits() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f", session=1)).attr
        await w.setattr(attr.inode, mode=0o6777)
        assert (await w.report(attr, 5)).mode == 0o6777
        w.caller = ALICE
        await w.open(attr.inode, Access.WRITE, session=2)
        assert (await w.report(attr, 5, session=2, wrote=False)).mode == 0o6777
        assert (await w.report(attr, 5, session=2)).mode == 0o777


async def test_a_report_after_a_truncation_asks_the_chains() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f", session=1)).attr
        w.chunks.write(attr, 0, b"x" * 1000)
        cut = await w.setattr(attr.inode, length=10)
        assert cut.length == 10 and cut.truncate_version > attr.truncate_version
        # The writer does not know yet; it wrote 1000 bytes before the truncation, and nothing since.
        assert (await w.report(attr, 1000)).length == 10
        # Now it writes behind the new end, still with the old version.
        w.chunks.write(attr, 50, b"y" * 10)
        settled = await w.close(attr, 1000, session=1)
        assert settled.length == 60
        assert w.chunks.read(settled) == b"x" * 10 + bytes(40) + b"y" * 10
        assert await w.keys(b"INTN") == []


async def test_appends_get_ranges_of_their_own() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f")).attr
        assert (await w.append(attr, 10)).offset == 0
        second = await w.append(attr, 5)
        assert (second.offset, second.attr.length) == (10, 15)
        assert (await w.append(attr, 5, hint=100)).offset == 100
        assert (await w.append(attr, 5, hint=7)).offset == 105
        async with refused(Code.FILE_TOO_LARGE):
            await w.append(attr, FILE_LENGTH_MAX)
        async with refused(Code.INVALID):
            await w.append(attr, -1)


async def test_an_append_takes_set_id_bits_and_capabilities() -> None:
    async with world() as w:
        attr = await w.file(R, b"f")
        await w.setattr(attr.inode, uid=ALICE.uid, mode=0o6777)
        await w.call(api.SETXATTR, api.SetxattrRequest(w.tag(), w.caller, attr.inode, b"security.capability", b"1"))
        w.caller = ALICE
        await w.open(attr.inode, Access.WRITE)
        assert (await w.append(attr, 10)).attr.mode == 0o777
        assert (await w.call(api.LISTXATTR, api.ListxattrRequest(w.caller, attr.inode))).names == ()


async def test_access_times_are_set_as_relatime_has_it() -> None:
    async with world() as w:
        attr = await w.file(R, b"f")
        folder = await w.mkdir(R, b"d")

        async def touched() -> int:
            await w.call(RELEASE, ReleaseRequest(w.tag(), CLIENT, (), (attr.inode, folder.inode, 999)))
            found = await w.getattr(attr.inode)
            assert (found.mtime_ns, found.data_version) == (attr.mtime_ns, attr.data_version)
            return found.atime_ns

        first = await touched()
        assert first > attr.atime_ns
        assert await touched() == first
        ctime_ns = (await w.setattr(attr.inode, mode=0o600)).ctime_ns
        assert await touched() > ctime_ns
        assert (await w.getattr(folder.inode)).atime_ns == folder.atime_ns
        async with refused(Code.INVALID):
            await w.call(RELEASE, ReleaseRequest(w.tag(), CLIENT, (), (attr.inode,) * 65))


async def test_files_that_may_have_holes_are_marked() -> None:
    async with world() as w:
        attr = await w.file(R, b"f")
        await w.open(attr.inode, Access.WRITE)
        assert not (await w.report(attr, 5)).sparse
        request = api.ReportRequest(w.tag(), CLIENT, attr.inode, 1, 50, attr.truncate_version, True, False, True)
        assert (await w.call(api.REPORT, request)).attr.sparse
        assert not (await w.setattr(attr.inode, length=0)).sparse
        assert (await w.setattr(attr.inode, length=10)).sparse
        assert (await w.setattr(attr.inode, length=5)).sparse


async def test_an_append_after_a_truncation_asks_the_chains() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f")).attr
        w.chunks.write(attr, 0, b"x" * 1000)
        await w.setattr(attr.inode, length=10)
        w.chunks.write(attr, 40, b"y")
        reply = await w.append(attr, 5, hint=1000)
        assert (reply.offset, reply.attr.length) == (41, 46)


async def test_o_trunc_of_an_empty_file_leaves_storage_alone() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f", truncate=True, session=1)).attr
        await w.close(attr, session=1)
        again = await w.open(attr.inode, Access.WRITE, truncate=True, session=2)
        assert (again.length, again.truncate_version) == (0, attr.truncate_version)
        await w.close(again, session=2)
        await w.setattr(attr.inode, length=0)
        await w.setattr(attr.inode, length=5)
        assert w.chunks.calls == []


async def test_o_trunc_of_a_file_with_content() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", b"x" * (2 * CHUNK))
        again = (await w.create(R, b"f", truncate=True)).attr
        assert again.length == 0 and again.truncate_version > attr.truncate_version
        assert again.data_version > attr.data_version and again.mtime_ns > attr.mtime_ns
        assert w.chunks.count(attr.inode) == 0
        assert again == await w.getattr(attr.inode)


async def test_released_sessions_end_and_let_removed_files_go() -> None:
    async with world() as w:
        kept = await w.file(R, b"kept")
        gone = (await w.create(R, b"gone", session=1)).attr
        await w.open(kept.inode, Access.WRITE, session=2)
        await w.unlink(R, b"gone")
        assert (await w.getattr(gone.inode)).nlink == 0
        refs = (SessionRef(gone.inode, 1), SessionRef(kept.inode, 2), SessionRef(kept.inode, 77), SessionRef(4711, 1))
        request = ReleaseRequest(w.tag(), CLIENT, refs)
        for _ in range(2):  # a repetition is answered, not done again
            await w.call(RELEASE, request)
        assert await w.keys(b"SESS") == []
        async with refused(Code.STALE_HANDLE):
            await w.getattr(gone.inode)
        assert (await w.getattr(kept.inode)).nlink == 1
        async with refused(Code.INVALID):
            await w.call(RELEASE, ReleaseRequest(w.tag(), CLIENT, refs * 20))
