"""What fsck finds in a store is put right, whatever was planted there, and a second run finds nothing."""

from __future__ import annotations

import pytest

from fs3.api.common import Method, Rep, Req
from fs3.api.meta_admin import MEND, EntryRef, MendRequest, Problem, Verdict
from fs3.errors import Code
from fs3.kv.memory import MemoryEngine
from fs3.routing import Table
from meta import mend
from meta.examine import Names, Report, Reported, add_paths, holes_of, parts_of, paths_of
from meta.fsck import Fault, survey
from meta.schema import DIRECTORY, Inode, entry_key, inode_key, pack_entry, pack_times, times_key
from tests.unit.meta.test_fsck import SPOILT, Store, a_store, edit
from tests.unit.meta.world import CHAINS, CHUNK, World, refused, world

R = 1


class Direct:
    """A MetaClient's call() straight to a service."""

    def __init__(self, made: World) -> None:
        self._world = made

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline: float | None = None) -> Rep:
        return await self._world.call(method, request)


async def engine_of(store: Store) -> MemoryEngine:
    engine = MemoryEngine()
    txn = engine.transaction()
    for key, value in store.items():
        txn.set(key, value)
    await txn.commit()
    return engine


async def fsck(w: World, *, repair: bool, parts: int = 1) -> Report:
    report = Report()
    tables = {1: Table(1, 1, CHAINS, 1)}
    names = Names(w.env, Direct(w), lambda: tables, report, lambda what, done, total: None, repair=repair)
    for part in range(parts):
        await names.check(part, parts)
    return report


CANNOT = {Fault.UNREADABLE}
NUMBERS = [number for number in range(len(SPOILT)) if number != 1]
"""Without a record of an unknown kind: it may be mgmtd's, whose store can be the same."""


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("number", NUMBERS)
async def test_what_was_planted_is_found_repaired_and_gone(number: int, parts: int, autojump_clock: object) -> None:
    fault, spoil = SPOILT[number]
    store, of = await a_store()
    spoil(store, of)
    async with world(await engine_of(store)) as w:
        found = await fsck(w, repair=False, parts=parts)
        assert fault in {each.fault for each in found.findings}, found
        assert {each.state for each in found.findings} == {"found"} and found.exit_code() == 4
        assert (await fsck(w, repair=False, parts=parts)).findings == found.findings
        first = await fsck(w, repair=True, parts=parts)
        assert fault in {each.fault for each in first.findings}
        second = await fsck(w, repair=True, parts=parts)
        if fault in CANNOT:
            assert first.exit_code() == second.exit_code() == 4
            assert all(each.action for each in second.findings)
        else:
            assert first.exit_code() == 1, first
            assert second == Report(inodes=second.inodes) and second.exit_code() == 0


async def test_a_healthy_store_passes(autojump_clock: object) -> None:
    store, _ = await a_store()
    async with world(await engine_of(store)) as w:
        assert (await fsck(w, repair=True)).findings == []


async def test_what_lost_its_name_is_found_again(autojump_clock: object) -> None:
    store, of = await a_store()
    del store[entry_key(R, b"upper")]
    del store[entry_key(R, b"again")]
    del store[entry_key(of["lower"], b"file")]
    async with world(await engine_of(store)) as w:
        assert (await fsck(w, repair=True)).exit_code() == 1
        home = await w.lookup(R, b"lost+found")
        assert home.mode == 0o700
        assert await w.names(home.inode) == [b"#%d" % of[name] for name in ("upper", "file")]
        upper = await w.lookup(home.inode, b"#%d" % of["upper"])
        assert (await w.lookup(upper.inode, b"lower")).inode == of["lower"]
        assert (await w.lookup(upper.inode, b"..")).inode == home.inode
        file = await w.lookup(home.inode, b"#%d" % of["file"])
        assert (file.length, file.nlink) == (4, 1)


async def test_lost_and_found_that_is_taken(autojump_clock: object) -> None:
    store, _ = await a_store()
    del store[entry_key(R, b"upper")]
    async with world(await engine_of(store)) as w:
        await w.file(R, b"lost+found")
        report = await fsck(w, repair=True)
        assert report.exit_code() == 4
        assert any("/lost+found is no directory" in each.action for each in report.findings)
        await w.unlink(R, b"lost+found")
        assert (await fsck(w, repair=True)).exit_code() == 1


async def test_a_name_that_moved_meanwhile_is_not_missing() -> None:
    """The survey saw the inode, and no name of it, since that was renamed to one that had been read already."""
    async with world() as w:
        file = await w.file(R, b"z")
        seen = await w.getattr(file.inode)
        problem = Problem(Fault.UNREACHABLE.name, file.inode, ctime_ns=seen.ctime_ns)
        links = Problem(Fault.WRONG_LINKS.name, file.inode, names=(EntryRef(R, b"z"),), ctime_ns=seen.ctime_ns)
        await w.rename(R, b"z", R, b"a")
        for repair in (False, True):
            reply = await w.call(MEND, MendRequest((problem, links), repair))
            assert [each.verdict for each in reply.outcomes] == [Verdict.UNSETTLED] * 2
        assert await w.names(R) == [b"a"]


async def test_directories_that_moved_meanwhile_are_in_no_loop() -> None:
    async with world() as w:
        upper = await w.mkdir(R, b"upper")
        lower = await w.mkdir(upper.inode, b"lower")
        way = (EntryRef(upper.inode, b"lower"), EntryRef(lower.inode, b"upper"))
        problems = (
            Problem(Fault.LOOP.name, lower.inode, names=way),
            Problem(Fault.LOOP.name, upper.inode),
            Problem(Fault.UNREACHABLE.name, upper.inode),
            Problem(Fault.WRONG_SUBDIRECTORIES.name, upper.inode),
            Problem(Fault.WRONG_COUNT.name, 0),
            Problem(Fault.DANGLING_ENTRY.name, upper.inode, R, b"upper"),
            Problem(Fault.ORPHAN_CHUNK.name, upper.inode + 100),
        )
        reply = await w.call(MEND, MendRequest(problems, True))
        assert [each.verdict for each in reply.outcomes] == [Verdict.GONE] * 6 + [Verdict.FOUND]


async def test_a_directory_with_two_names_keeps_the_one_that_it_notes(autojump_clock: object) -> None:
    store, of = await a_store()
    store[entry_key(R, b"twice")] = pack_entry(of["lower"], DIRECTORY)
    async with world(await engine_of(store)) as w:
        assert (await fsck(w, repair=True)).exit_code() == 1
        assert b"twice" not in await w.names(R)
        assert await w.names(of["upper"]) == [b"lower"]


async def test_a_chunk_behind_the_end_makes_the_file_longer(autojump_clock: object) -> None:
    async with world() as w:
        file = await w.written(R, b"file", b"12345")
        problem = Problem(Fault.CHUNK_BEHIND_END.name, file.inode, length=9)
        w.chunks.write(file, 5, b"6789")
        held = await w.open(file.inode, 2, session=7)
        assert (await w.call(MEND, MendRequest((problem,), True))).outcomes[0].verdict is Verdict.GONE
        await w.close(held, session=7)
        assert (await w.call(MEND, MendRequest((problem,), False))).outcomes[0].verdict is Verdict.FOUND
        assert (await w.call(MEND, MendRequest((problem,), True))).outcomes[0].verdict is Verdict.MENDED
        assert (await w.getattr(file.inode)).length == 9
        assert (await w.call(MEND, MendRequest((problem,), True))).outcomes[0].verdict is Verdict.GONE


async def test_ids_are_not_raised_without_bound() -> None:
    async with world() as w:
        await w.file(R, b"file")
        problems = tuple([Problem(Fault.FOREIGN_CHUNK.name, number) for number in (2, 10_000, 1 << 60)])
        reply = await w.call(MEND, MendRequest(problems, True))
        assert [each.verdict for each in reply.outcomes] == [Verdict.GONE, Verdict.MENDED, Verdict.CANNOT]
        unused = w.service.ctx.ids.unused()
        assert unused[1] <= 10_000


async def test_a_layout_without_its_table_is_told(autojump_clock: object) -> None:
    store, of = await a_store()
    edit(store, of["file"], table_version=9)
    edit(store, of["upper"], table=8)
    async with world(await engine_of(store)) as w:
        report = await fsck(w, repair=True)
        found = {(each.fault, each.inode, each.state) for each in report.findings}
        assert found == {(Fault.NO_TABLE, of["file"], "left"), (Fault.NO_TABLE, of["upper"], "left")}
        assert all("layout set" in each.action or "remove the file" in each.action for each in report.findings)


async def test_an_unknown_fault_is_refused() -> None:
    async with world() as w, refused(Code.INVALID):
        await w.call(MEND, MendRequest((Problem("NO_SUCH", 1),), True))


async def test_records_that_cannot_be_understood_stop_nothing(autojump_clock: object) -> None:
    store, of = await a_store()
    store[inode_key(of["file"])] = b"\x01"
    store[times_key(of["upper"])] = pack_times(0, 0)[:3]
    del store[times_key(of["lower"])]
    async with world(await engine_of(store)) as w:
        report = await fsck(w, repair=True)
        assert Fault.NO_TIMES in {each.fault for each in report.findings if each.state == "repaired"}
        assert report.exit_code() == 4
        assert Inode.unpack(of["lower"], store[inode_key(of["lower"])]).parent == of["upper"]


async def test_findings_and_holes_have_their_paths(autojump_clock: object) -> None:
    store, of = await a_store()
    edit(store, of["file"], nlink=7)
    edit(store, of["lower"], table=9)
    found = survey(store.items())
    report = Report(
        [Reported(Fault.WRONG_LINKS, of["file"], "", "found"), Reported(Fault.NO_TABLE, of["lower"], "", "found")]
    )
    add_paths(report, found)
    assert report.findings[0].path in ("/again", "/upper/lower/file") and report.findings[1].path == "/upper/lower"
    assert paths_of(found, {of["open"], 12345}) == {}
    edit(store, of["file"], length=3 * CHUNK)
    (hole,) = holes_of(survey(store.items()), {of["file"]: 1})
    assert (hole.inode, hole.chunks, hole.absent) == (of["file"], 3, 2) and hole.path
    assert holes_of(survey(store.items()), {of["file"]: 3}) == []


async def test_what_is_too_much_for_one_moment_is_not_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mend, "PAGE", 1)
    monkeypatch.setattr(mend, "READ_S", 0.0)
    async with world() as w:
        await w.file(R, b"a")
        await w.file(R, b"b")
        problems = (Problem(Fault.WRONG_COUNT.name, 0), Problem(Fault.WRONG_SUBDIRECTORIES.name, R))
        reply = await w.call(MEND, MendRequest(problems, True))
        assert [each.verdict for each in reply.outcomes] == [Verdict.UNSETTLED] * 2
        assert "too many records" in reply.outcomes[0].text


async def test_a_count_that_is_far_off_does_not_cut_the_store_into_parts() -> None:
    assert [parts_of(inodes, 10) for inodes in (-5, 0, 10, 11, 10**12)] == [1, 1, 1, 2, 1024]
