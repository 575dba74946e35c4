from __future__ import annotations

import pytest

from fs3.api.meta import FileKind, RenameFlags
from fs3.errors import Code
from tests.unit.meta.world import ALICE, BOB, CAROL, ROOT, R, World, refused, world

NOREPLACE, EXCHANGE = RenameFlags.NOREPLACE, RenameFlags.EXCHANGE


async def test_a_file_moves_with_its_attributes() -> None:
    async with world() as w:
        directory = (await w.mkdir(R, b"d")).inode
        file = await w.written(R, b"f", b"data")
        old, new = await w.getattr(R), await w.getattr(directory)
        reply = await w.rename(R, b"f", directory, b"g")
        assert reply.replaced == 0
        assert reply.attr == await w.lookup(directory, b"g")
        assert reply.attr.inode == file.inode and reply.attr.ctime_ns > file.ctime_ns
        assert reply.attr.mtime_ns == file.mtime_ns
        assert (await w.getattr(R)).mtime_ns > old.mtime_ns and (await w.getattr(directory)).mtime_ns > new.mtime_ns
        assert await w.names(R) == [b"d"] and await w.names(directory) == [b"g"]


async def test_it_replaces_atomically() -> None:
    async with world() as w:
        file = await w.written(R, b"f", b"new")
        other = await w.written(R, b"g", b"old")
        reply = await w.rename(R, b"f", R, b"g")
        assert (reply.attr.inode, reply.replaced) == (file.inode, other.inode)
        assert await w.names(R) == [b"g"]
        async with refused(Code.STALE_HANDLE):
            await w.getattr(other.inode)
        await w.service.collector.collect()
        assert w.chunks.count(other.inode) == 0 and w.chunks.count(file.inode) == 1


async def test_what_is_replaced_lives_on_under_another_name_or_for_a_hold() -> None:
    async with world() as w:
        other = await w.written(R, b"g", b"old")
        await w.link(other.inode, R, b"h")
        await w.file(R, b"1")
        await w.rename(R, b"1", R, b"g")
        assert (await w.lookup(R, b"h")).nlink == 1
        await w.file(R, b"2")
        await w.rename(R, b"2", R, b"h", hold=5)
        assert (await w.getattr(other.inode)).nlink == 0
        await w.close(other, session=5)
        async with refused(Code.STALE_HANDLE):
            await w.getattr(other.inode)


async def test_two_names_of_one_file_stay_as_they_are() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        await w.link(file.inode, R, b"g")
        for name, new_name in ((b"f", b"g"), (b"f", b"f")):
            reply = await w.rename(R, name, R, new_name)
            assert reply.attr.nlink == 2 and reply.replaced == 0
        assert await w.names(R) == [b"f", b"g"]


async def test_a_directory_moves_with_what_is_in_it() -> None:
    async with world() as w:
        one, two = (await w.mkdir(R, b"1")).inode, (await w.mkdir(R, b"2")).inode
        moved = await w.mkdir(one, b"m")
        await w.file(moved.inode, b"f")
        inside = await w.getattr(moved.inode)
        reply = await w.rename(one, b"m", two, b"n")
        assert reply.attr.parent == two and reply.attr.mtime_ns == inside.mtime_ns < reply.attr.ctime_ns
        assert (await w.lookup(moved.inode, b"..")).inode == two
        assert [(await w.getattr(each)).nlink for each in (one, two, R)] == [2, 3, 4]
        assert await w.names(moved.inode) == [b"f"]


async def test_a_directory_replaces_an_empty_directory_only() -> None:
    async with world() as w:
        source = (await w.mkdir(R, b"s")).inode
        target = (await w.mkdir(R, b"t")).inode
        await w.file(target, b"f")
        await w.file(R, b"plain")
        async with refused(Code.NOT_EMPTY):
            await w.rename(R, b"s", R, b"t")
        async with refused(Code.NOT_DIRECTORY):
            await w.rename(R, b"s", R, b"plain")
        async with refused(Code.IS_DIRECTORY):
            await w.rename(R, b"plain", R, b"t")
        await w.unlink(target, b"f")
        reply = await w.rename(R, b"s", R, b"t")
        assert (reply.attr.inode, reply.replaced) == (source, target)
        assert (await w.getattr(R)).nlink == 3
        assert len(await w.keys(b"DTIM")) == 2


async def test_no_loops() -> None:
    async with world() as w:
        one = (await w.mkdir(R, b"1")).inode
        two = (await w.mkdir(one, b"2")).inode
        three = (await w.mkdir(two, b"3")).inode
        await w.mkdir(R, b"other")
        for parent in (one, two, three):
            async with refused(Code.INVALID):
                await w.rename(R, b"1", parent, b"x")
        async with refused(Code.INVALID):
            await w.rename(one, b"2", two, b"x")
        async with refused(Code.NOT_EMPTY):
            await w.rename(two, b"3", R, b"1")
        async with refused(Code.INVALID):
            await w.rename(two, b"3", R, b"1", EXCHANGE)
        async with refused(Code.INVALID):
            await w.rename(R, b"1", two, b"3", EXCHANGE)
        await w.rename(two, b"3", R, b"3")


async def test_noreplace() -> None:
    async with world() as w:
        await w.file(R, b"f")
        await w.file(R, b"g")
        async with refused(Code.EXISTS):
            await w.rename(R, b"f", R, b"g", NOREPLACE)
        async with refused(Code.EXISTS):
            await w.rename(R, b"f", R, b"f", NOREPLACE)
        await w.rename(R, b"f", R, b"h", NOREPLACE)
        assert await w.names(R) == [b"g", b"h"]


async def test_exchange() -> None:
    async with world() as w:
        directory = (await w.mkdir(R, b"d")).inode
        inner = (await w.mkdir(directory, b"inner")).inode
        file = await w.file(R, b"f")
        async with refused(Code.NOT_FOUND):
            await w.rename(R, b"f", R, b"none", EXCHANGE)
        reply = await w.rename(R, b"f", directory, b"inner", EXCHANGE)
        assert (reply.attr.inode, reply.replaced) == (file.inode, 0)
        assert (await w.lookup(directory, b"inner")).kind is FileKind.FILE
        assert (await w.lookup(R, b"f")).inode == inner
        assert (await w.lookup(inner, b"..")).inode == R
        assert [(await w.getattr(each)).nlink for each in (R, directory, inner, file.inode)] == [4, 2, 2, 1]
        await w.rename(R, b"d", R, b"f", EXCHANGE)
        assert [(await w.getattr(each)).nlink for each in (R, directory, inner)] == [4, 2, 2]


async def test_errors_of_names() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        for name, new_name, code in [
            (b"none", b"g", Code.NOT_FOUND),
            (b"f", b"n" * 256, Code.NAME_TOO_LONG),
            (b".", b"g", Code.BUSY),
            (b"f", b"..", Code.BUSY),
            (b"f", b"a/b", Code.INVALID),
        ]:
            async with refused(code):
                await w.rename(R, name, R, new_name)
        async with refused(Code.NOT_DIRECTORY):
            await w.rename(R, b"f", file.inode, b"g")
        async with refused(Code.NOT_FOUND):
            await w.rename(R, b"f", 999_999, b"g")


async def _two_directories(w: World, old_mode: int, new_mode: int) -> tuple[int, int]:
    """Two directories, with a file `f` of ALICE's in the first."""
    await w.setattr(R, mode=0o777)
    old, new = (await w.mkdir(R, b"old")).inode, (await w.mkdir(R, b"new")).inode
    file = await w.file(old, b"f", 0o666)
    await w.setattr(file.inode, uid=ALICE.uid)
    await w.setattr(old, mode=old_mode)
    await w.setattr(new, mode=new_mode)
    return old, new


@pytest.mark.parametrize(
    ("old_mode", "new_mode", "code"),
    [(0o755, 0o777, Code.PERMISSION_DENIED), (0o777, 0o755, Code.PERMISSION_DENIED), (0o1777, 0o777, Code.NOT_PERMITTED)],
)
async def test_both_directories_must_let_the_caller(old_mode: int, new_mode: int, code: Code) -> None:
    async with world() as w:
        old, new = await _two_directories(w, old_mode, new_mode)
        w.caller = CAROL
        async with refused(code):
            await w.rename(old, b"f", new, b"f")
        w.caller = ROOT
        await w.rename(old, b"f", new, b"f")


async def test_a_sticky_target_directory_protects_what_would_be_replaced() -> None:
    async with world() as w:
        old, new = await _two_directories(w, 0o777, 0o1777)
        w.caller = BOB
        await w.file(new, b"f")
        w.caller = ALICE
        async with refused(Code.NOT_PERMITTED):
            await w.rename(old, b"f", new, b"f")
        await w.rename(old, b"f", new, b"g")


async def test_a_directory_of_another_does_not_get_a_new_parent() -> None:
    async with world() as w:
        old, new = await _two_directories(w, 0o777, 0o777)
        await w.mkdir(old, b"d", 0o755)
        w.caller = ALICE
        async with refused(Code.PERMISSION_DENIED):
            await w.rename(old, b"d", new, b"d")
        await w.rename(old, b"d", old, b"e")
