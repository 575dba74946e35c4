"""rmtree: the name goes at once, the rest in pages, whatever dies in between; rights, links, open files, fsck."""

from __future__ import annotations

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs3.api import meta as api
from fs3.api.meta import Access, RmtreeRequest
from fs3.api.meta_admin import LIST_TREES, MEND, ListTreesRequest, MendRequest, TreeInfo, Verdict
from fs3.errors import Code
from fs3.kv.memory import MemoryEngine
from meta import trees
from meta.examine import problems_of
from meta.fsck import Fault, Survey, check, survey
from meta.schema import INODE_DOOMED, Inode, doomed_key, inode_key, tree_key
from tests.unit.meta.test_intents import Mortal
from tests.unit.meta.world import ALICE, BOB, CHUNK, ROOT, FakeChunks, R, World, refused, world

DATA = b"x" * (CHUNK + 5)


async def rmtree(w: World, parent: int, name: bytes) -> int:
    return (await w.call(api.RMTREE, RmtreeRequest(w.tag(), w.caller, parent, name))).tree


async def surveyed(w: World) -> Survey:
    """All records, in which nothing is wrong."""
    found = survey(await w.engine.transaction().get_range(b"", b"\xff"))
    assert check(found) == []
    return found


async def listed(w: World) -> tuple[TreeInfo, ...]:
    return (await w.call(LIST_TREES, ListTreesRequest())).trees


async def grown(w: World) -> dict[str, int]:
    """A tree `top` with some of everything, and a link into it from outside."""
    top = (await w.mkdir(R, b"top")).inode
    deep = top
    for number in range(3):
        deep = (await w.mkdir(deep, b"d%d" % number)).inode
        await w.written(deep, b"f%d" % number, DATA)
    await w.mkdir(top, b"empty")
    await w.symlink(top, b"link", b"f")
    both = (await w.written(deep, b"both", DATA)).inode
    await w.link(both, R, b"kept")
    await w.link(both, top, b"again")
    return {"top": top, "deep": deep, "both": both}


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "PAGE", 3)


async def test_the_name_goes_at_once_and_the_rest_later(autojump_clock: object) -> None:
    async with world(collecting=True) as w:
        await trio.sleep(2.3)
        of = await grown(w)
        assert await rmtree(w, R, b"top") == of["top"]
        assert await w.names(R) == [b"kept"]
        async with refused(Code.NOT_FOUND):
            await w.lookup(of["top"], b"d0")
        async with refused(Code.NOT_FOUND):
            await w.mkdir(of["top"], b"new")
        await trio.sleep(1)
        assert await w.keys(b"TREE") == await w.keys(b"TDIR") == await w.keys(b"GCQ_") == []
        assert {inode for inode, _ in w.chunks.chunks} == {of["both"]}
        assert (await w.getattr(of["both"])).nlink == 1
        assert (await surveyed(w)).records["INOD"] == 2


async def test_a_repeated_request_is_answered_from_its_record() -> None:
    async with world() as w:
        await grown(w)
        request = RmtreeRequest(w.tag(), w.caller, R, b"top")
        first = await w.call(api.RMTREE, request)
        await w.mkdir(R, b"top")
        assert await w.call(api.RMTREE, request) == first
        assert await w.names(R) == [b"kept", b"top"]


async def test_progress_can_be_seen() -> None:
    async with world() as w:
        of = await grown(w)
        await rmtree(w, R, b"top")
        (seen,) = await listed(w)
        assert (seen.tree, seen.uid, seen.removed, seen.kept, seen.directories) == (of["top"], 0, 0, 0, 1)
        txn = w.engine.transaction()
        assert await trees.remove_page(w.service.ctx, txn, of["top"]) == 3
        await txn.commit()
        await surveyed(w)
        (seen,) = await listed(w)
        assert seen.removed == 3 and seen.directories == 3
        await w.service.collector.trees.work()
        assert await listed(w) == ()


async def test_an_empty_directory_and_what_is_none() -> None:
    async with world() as w:
        await w.file(R, b"f")
        await w.mkdir(R, b"d")
        for name, code in ((b"f", Code.NOT_DIRECTORY), (b"x", Code.NOT_FOUND), (b".", Code.INVALID), (b"..", Code.INVALID)):
            async with refused(code):
                await rmtree(w, R, name)
        await rmtree(w, R, b"d")
        await w.service.collector.trees.work()
        assert (await surveyed(w)).records["INOD"] == 2 and await w.names(R) == [b"f"]


async def test_files_that_are_open_keep_their_data_until_they_are_closed() -> None:
    async with world() as w:
        top = (await w.mkdir(R, b"top")).inode
        attr = await w.written(top, b"f", DATA)
        await w.open(attr.inode, Access.WRITE, session=7)
        await rmtree(w, R, b"top")
        await w.service.collector.trees.work()
        await w.service.collector.collect()
        assert w.chunks.count(attr.inode) == 2 and (await w.getattr(attr.inode)).nlink == 0
        await surveyed(w)
        await w.close(attr, session=7)
        await w.service.collector.collect()
        assert w.chunks.chunks == {} and (await surveyed(w)).records["INOD"] == 1


async def test_what_is_moved_out_in_time_stays_and_what_is_made_below_goes() -> None:
    async with world() as w:
        top = (await w.mkdir(R, b"top")).inode
        one = (await w.mkdir(top, b"one")).inode
        two = (await w.mkdir(one, b"two")).inode
        await w.mkdir(two, b"three")
        await rmtree(w, R, b"top")
        await w.mkdir(one, b"new")
        await w.rename(one, b"two", R, b"out")
        async with refused(Code.NOT_FOUND):
            await w.rename(R, b"out", top, b"in")
        await w.rename(R, b"out", one, b"back")  # into what is below the removed one
        await w.rename(one, b"back", R, b"out")
        await surveyed(w)
        await w.service.collector.trees.work()
        assert await w.names(R) == [b"out"] and await w.names(two) == [b"three"]
        await surveyed(w)


async def test_who_may_remove_a_tree() -> None:
    async with world() as w:
        home = (await w.mkdir(R, b"home", 0o777)).inode
        w.caller = ALICE
        await w.mkdir(home, b"empty", 0o755)
        full = (await w.mkdir(home, b"full", 0o755)).inode
        await w.file(full, b"f")
        w.caller = BOB
        async with refused(Code.PERMISSION_DENIED):
            await rmtree(w, home, b"full")
        async with refused(Code.PERMISSION_DENIED):
            await rmtree(w, R, b"home")
        await rmtree(w, home, b"empty")  # as rmdir
        w.caller = ROOT
        await w.setattr(home, mode=0o1777)
        w.caller = BOB
        async with refused(Code.NOT_PERMITTED):
            await rmtree(w, home, b"full")
        w.caller = ALICE
        await rmtree(w, home, b"full")
        await w.service.collector.trees.work()
        assert (await surveyed(w)).records["INOD"] == 2


async def test_what_the_remover_has_no_right_to_remove_is_kept() -> None:
    async with world() as w:
        home = (await w.mkdir(R, b"home", 0o777)).inode
        w.caller = ALICE
        top = (await w.mkdir(home, b"top", 0o777)).inode
        shared = (await w.mkdir(top, b"sticky", 0o777)).inode
        w.caller = ROOT
        await w.setattr(shared, uid=0, mode=0o1777)
        w.caller = BOB
        theirs = (await w.mkdir(top, b"theirs", 0o755)).inode
        await w.file(theirs, b"precious")
        await w.mkdir(top, b"bare", 0o700)
        in_sticky = (await w.file(shared, b"guarded")).inode
        w.caller = ALICE
        linked = (await w.file(top, b"mine")).inode
        w.caller = BOB
        await w.link(in_sticky, shared, b"twice")
        w.caller = ALICE
        await w.link(linked, shared, b"alias")
        await rmtree(w, home, b"top")
        await w.service.collector.trees.work()
        w.caller = ROOT
        lost = (await w.lookup(R, b"lost+found")).inode
        assert set(await w.names(lost)) == {b"#%d" % theirs, b"#%d" % in_sticky, b"#%d.1" % in_sticky}
        assert await w.names(theirs) == [b"precious"] and (await w.getattr(in_sticky)).nlink == 2
        await surveyed(w)
        assert await listed(w) == ()


async def test_a_tree_waits_while_what_it_keeps_has_no_place() -> None:
    async with world() as w:
        await w.file(R, b"lost+found")
        home = (await w.mkdir(R, b"home", 0o777)).inode
        w.caller = ALICE
        top = (await w.mkdir(home, b"top", 0o777)).inode
        w.caller = BOB
        await w.file((await w.mkdir(top, b"theirs", 0o755)).inode, b"precious")
        w.caller = ALICE
        await w.mkdir(home, b"other")
        await rmtree(w, home, b"top")
        await rmtree(w, home, b"other")
        async with refused(Code.NOT_DIRECTORY):
            await w.service.collector.trees.work()
        assert [each.tree for each in await listed(w)] == [top]
        await surveyed(w)
        w.caller = ROOT
        await w.unlink(R, b"lost+found")
        await w.service.collector.trees.work()
        assert await listed(w) == ()


async def test_a_crash_after_any_step(autojump_clock: object) -> None:
    """With whatever is left, the store is in order, and somebody else comes to the same end."""

    async def remove(w: World) -> None:
        await rmtree(w, R, b"top")
        await w.service.collector.trees.work()
        await w.service.collector.collect()

    for at in range(1, 200):
        mortal = Mortal(at)
        async with world(engine=mortal.engine, chunks=mortal.chunks) as first:
            of = await grown(first)
        crashed = await mortal.run(remove)
        async with world(engine=mortal.engine, chunks=mortal.chunks) as after:
            await surveyed(after)
            begun = await after.names(R) == [b"kept"]
            await after.service.collector.trees.work()
            await after.service.collector.collect()
            found = await surveyed(after)
            assert found.records["INOD"] == (2 if begun else 11)
            assert found.records["TREE"] == found.records["TDIR"] == 0
            assert not begun or {inode for inode, _ in mortal.chunks.chunks} == {of["both"]}
        if not crashed:
            assert at > 40
            return
    raise AssertionError("it never came to an end")


Shape = list["Shape | int"]
shapes = st.recursive(st.integers(0, 2), lambda below: st.lists(below, max_size=5), max_leaves=20).filter(
    lambda made: isinstance(made, list)
)


@given(shapes, st.integers(1, 6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_goes_in_pages_between_which_all_is_in_order(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, size: int
) -> None:
    """A number in a shape is a file of which that many links are outside the tree."""
    monkeypatch.setattr(trees, "PAGE", size)

    async def main() -> None:
        async with world() as w:
            outside = (await w.mkdir(R, b"outside")).inode
            made = linked = 0

            async def grow(parent: int, name: bytes, part: Shape | int) -> None:
                nonlocal made, linked
                made += 1
                if isinstance(part, int):
                    inode = (await w.file(parent, name)).inode
                    linked += part > 0
                    for number in range(part):
                        await w.link(inode, outside, b"%d.%d" % (inode, number))
                    return
                inode = (await w.mkdir(parent, name)).inode
                for number, below in enumerate(part):
                    await grow(inode, b"%d" % number, below)

            await grow(R, b"top", shape)
            tree = await rmtree(w, R, b"top")
            removed = pages = 0
            while True:
                txn = w.engine.transaction()
                done = await trees.remove_page(w.service.ctx, txn, tree)
                await txn.commit()
                await surveyed(w)
                if done < 0:
                    break
                removed, pages = removed + done, pages + 1
                assert done <= size
                for each in await listed(w):
                    assert each.removed == removed
            assert removed == made - 1  # all but its own name
            assert pages <= 2 * made
            assert (await surveyed(w)).records["INOD"] == 2 + linked

    trio.run(main)


async def test_two_daemons_that_do_the_same_do_no_harm() -> None:
    engine, chunks = MemoryEngine(), FakeChunks()
    async with world(engine=engine, chunks=chunks) as one, world(engine=engine, chunks=chunks) as other:
        of = await grown(one)
        await rmtree(one, R, b"top")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.service.collector.trees.work)
            nursery.start_soon(other.service.collector.trees.work)
        assert (await surveyed(one)).records["INOD"] == 2
        assert (await one.getattr(of["both"])).nlink == 1


async def spoilt(w: World, what: str) -> int:
    """A tree under removal of which something is lost; returns its inode."""
    of = await grown(w)
    await rmtree(w, R, b"top")
    top = of["top"]
    txn = w.engine.transaction()
    value = await txn.get(inode_key(top))
    assert value is not None
    if what == "mark":
        inode = Inode.unpack(top, value)
        inode.flags &= ~INODE_DOOMED
        txn.set(inode_key(top), inode.pack())
    else:
        txn.clear(tree_key(top) if what == "tree" else doomed_key(top, top))
    await txn.commit()
    return top


@pytest.mark.parametrize("what", ["mark", "tree", "queue"])
async def test_fsck_brings_back_what_is_no_more_being_removed(what: str) -> None:
    async with world() as w:
        top = await spoilt(w, what)
        for _ in range(3):
            found = survey(await w.engine.transaction().get_range(b"", b"\xff"))
            findings = check(found)
            problems = tuple(problems_of(found, findings))
            seen = (await w.call(MEND, MendRequest(problems))).outcomes
            assert all(each.verdict is Verdict.FOUND for each in seen)
            await w.call(MEND, MendRequest(problems, True))
        await surveyed(w)
        assert await w.names((await w.lookup(R, b"lost+found")).inode) == [b"#%d" % top]
        await w.service.collector.trees.work()
        assert await listed(w) == () and b"d0" in await w.names(top)


async def test_a_removed_tree_with_a_name_keeps_it() -> None:
    async with world() as w:
        of = await grown(w)
        name = await w.engine.transaction().get_range(b"DENT", b"DENU", limit=0)
        entry = next(pair for pair in name if pair[0].endswith(b"top"))
        await rmtree(w, R, b"top")
        txn = w.engine.transaction()
        txn.set(*entry)
        await txn.commit()
        found = survey(await w.engine.transaction().get_range(b"", b"\xff"))
        findings = check(found)
        assert Fault.WRONG_DOOM in {each.fault for each in findings}
        await w.call(MEND, MendRequest(tuple(problems_of(found, findings)), True))
        await w.service.collector.trees.work()
        assert b"top" in await w.names(R) and b"d0" in await w.names(of["top"])


async def test_fsck_takes_nothing_under_way_for_damage() -> None:
    """A survey that read inodes and entries before the removal, and what is queued at any time after."""
    async with world() as w:
        await grown(w)
        seen = survey(await w.engine.transaction().get_range(b"", b"\xff"))
        tree = await rmtree(w, R, b"top")
        done = 0
        while done >= 0:
            late = survey(await w.engine.transaction().get_range(b"", b"\xff"))
            seen.doomed, seen.trees = late.doomed, late.trees
            problems = tuple(problems_of(seen, check(seen)))
            outcomes = (await w.call(MEND, MendRequest(problems, True))).outcomes
            assert bool(problems) == bool(late.doomed)
            assert {each.verdict for each in outcomes} <= {Verdict.GONE}
            txn = w.engine.transaction()
            done = await trees.remove_page(w.service.ctx, txn, tree)
            await txn.commit()
        assert (await surveyed(w)).records["INOD"] == 2
