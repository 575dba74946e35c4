from __future__ import annotations

from dataclasses import replace

import pytest

from fs3.api.meta import Access, FileKind
from fs3.errors import Code
from meta import inode_ids
from meta.ops import create
from tests.unit.meta.world import ALICE, BOB, CAROL, CHUNK, ROOT, R, refused, world


async def test_a_new_file_is_there_with_all_its_attributes() -> None:
    async with world() as w:
        w.caller = replace(ROOT, umask=0o022)
        reply = await w.create(R, b"f", 0o4777)
        assert reply.created
        attr = reply.attr
        assert (attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, attr.length) == (FileKind.FILE, 0o4755, 0, 0, 1, 0)
        assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns
        assert await w.lookup(R, b"f") == attr == await w.getattr(attr.inode)
        assert attr.layout is not None
        assert (attr.layout.table, attr.layout.chunk_size, attr.layout.stripe) == (1, CHUNK, 3)
        assert len(await w.keys(b"SESS")) == 1
        other = (await w.create(R, b"g", access=Access.READ)).attr
        assert other.layout is not None and other.layout.seed != attr.layout.seed
        assert len(await w.keys(b"SESS")) == 1


async def test_create_opens_what_exists() -> None:
    async with world() as w:
        first = await w.create(R, b"f", session=1)
        await w.close(first.attr, session=1)
        again = await w.create(R, b"f", 0o777, session=2)
        assert not again.created and again.attr == first.attr
        assert len(await w.keys(b"SESS")) == 1
        async with refused(Code.EXISTS):
            await w.create(R, b"f", exclusive=True)
        await w.mkdir(R, b"d")
        async with refused(Code.IS_DIRECTORY):
            await w.create(R, b"d")
        await w.symlink(R, b"l", b"f")
        async with refused(Code.STALE_HANDLE):
            await w.create(R, b"l")


async def test_creating_needs_the_directorys_write_right_and_opening_the_files() -> None:
    async with world() as w:
        directory = (await w.mkdir(R, b"d")).inode
        w.caller = ALICE
        async with refused(Code.PERMISSION_DENIED):
            await w.create(directory, b"f")
        async with refused(Code.PERMISSION_DENIED):
            await w.mkdir(directory, b"f")
        w.caller = ROOT
        await w.setattr(directory, mode=0o777)
        w.caller = ALICE
        made = await w.create(directory, b"f", 0o400)  # may write although the mode would not let it
        assert made.created and (made.attr.uid, made.attr.gid) == (ALICE.uid, ALICE.gid)
        async with refused(Code.PERMISSION_DENIED):
            await w.create(directory, b"f")
        await w.create(directory, b"f", access=Access.READ)
        w.caller = BOB
        async with refused(Code.PERMISSION_DENIED):
            await w.create(directory, b"f", access=Access.READ)
        async with refused(Code.EXISTS):
            await w.mkdir(directory, b"f")
        w.caller = ROOT
        await w.setattr(directory, mode=0o555)
        w.caller = ALICE
        await w.create(directory, b"f", access=Access.READ)  # nothing is made, so the directory's right is not asked for


@pytest.mark.parametrize("kind", [FileKind.DIRECTORY, FileKind.FILE, FileKind.FIFO, FileKind.SOCKET, FileKind.SYMLINK])
async def test_anybody_makes_these(kind: FileKind) -> None:
    async with world() as w:
        await w.setattr(R, mode=0o777)
        w.caller = ALICE
        attr = await w.mknod(R, b"n", kind, 0o640, target=b"t" if kind is FileKind.SYMLINK else b"")
        assert (attr.kind, attr.uid, attr.rdev) == (kind, ALICE.uid, 0)
        assert attr.mode == (0o777 if kind is FileKind.SYMLINK else 0o640)
        assert attr == await w.lookup(R, b"n")
        for again in FileKind:
            async with refused(Code.EXISTS):
                await w.mknod(R, b"n", again)


@pytest.mark.parametrize("kind", [FileKind.CHARACTER_DEVICE, FileKind.BLOCK_DEVICE])
async def test_only_root_makes_devices(kind: FileKind) -> None:
    async with world() as w:
        await w.setattr(R, mode=0o777)
        w.caller = ALICE
        async with refused(Code.NOT_PERMITTED):
            await w.mknod(R, b"n", kind, rdev=259)
        w.caller = ROOT
        assert (await w.mknod(R, b"n", kind, rdev=259)).rdev == 259


async def test_errors_of_names() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        for parent, name, code in [
            (R, b"n" * 256, Code.NAME_TOO_LONG),
            (R, b"", Code.NOT_FOUND),
            (R, b"a/b", Code.INVALID),
            (R, b"a\0b", Code.INVALID),
            (R, b".", Code.EXISTS),
            (R, b"..", Code.EXISTS),
            (file.inode, b"x", Code.NOT_DIRECTORY),
            (123456, b"x", Code.NOT_FOUND),
        ]:
            async with refused(code):
                await w.mkdir(parent, name)
            async with refused(code):
                await w.link(file.inode, parent, name)
            async with refused(code):
                await w.create(parent, name, exclusive=True)
        async with refused(Code.NAME_TOO_LONG):
            await w.symlink(R, b"l", b"t" * 4096)
        async with refused(Code.NOT_FOUND):
            await w.symlink(R, b"l", b"")
        assert await w.names(R) == [b"f"]


async def test_directories_count_their_subdirectories() -> None:
    async with world() as w:
        directory = (await w.mkdir(R, b"d")).inode
        assert (await w.getattr(R)).nlink == 3
        await w.mkdir(directory, b"one")
        await w.mkdir(directory, b"two")
        await w.file(directory, b"three")
        attr = await w.getattr(directory)
        assert attr.nlink == 4 and attr.parent == R and attr.kind is FileKind.DIRECTORY
        await w.rmdir(directory, b"one")
        assert (await w.getattr(directory)).nlink == 3


async def test_a_new_name_changes_the_directorys_times() -> None:
    async with world() as w:
        before = await w.getattr(R)
        made = await w.file(R, b"f")
        after = await w.getattr(R)
        assert before.mtime_ns < after.mtime_ns == after.ctime_ns == made.ctime_ns
        assert after.atime_ns == before.atime_ns


async def test_a_set_gid_directory_hands_on_its_group() -> None:
    async with world() as w:
        directory = await w.mkdir(R, b"d")
        await w.setattr(directory.inode, gid=50, mode=0o2777)
        w.caller = CAROL
        below = await w.mkdir(directory.inode, b"below", 0o700)
        assert (below.gid, below.mode) == (50, 0o2700)
        assert ((await w.create(directory.inode, b"f")).attr.gid) == 50
        assert (await w.symlink(directory.inode, b"l", b"t")).gid == 50


async def test_link() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        directory = await w.mkdir(R, b"d")
        linked = await w.link(file.inode, directory.inode, b"g")
        assert linked.nlink == 2 and linked.ctime_ns > file.ctime_ns and linked.mtime_ns == file.mtime_ns
        assert await w.lookup(directory.inode, b"g") == linked == await w.lookup(R, b"f")
        async with refused(Code.EXISTS):
            await w.link(file.inode, R, b"f")
        async with refused(Code.NOT_PERMITTED):
            await w.link(directory.inode, R, b"e")
        async with refused(Code.STALE_HANDLE):
            await w.link(999_999, R, b"e")
        w.caller = ALICE
        async with refused(Code.PERMISSION_DENIED):
            await w.link(file.inode, R, b"e")


async def test_a_file_without_names_gets_no_new_one() -> None:
    async with world() as w:
        file = (await w.create(R, b"f")).attr
        await w.unlink(R, b"f")
        async with refused(Code.NOT_FOUND):
            await w.link(file.inode, R, b"g")


async def test_too_many_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "LINKS_MAX", 3)
    async with world() as w:
        file = await w.file(R, b"f")
        await w.link(file.inode, R, b"1")
        await w.link(file.inode, R, b"2")
        async with refused(Code.TOO_MANY_LINKS):
            await w.link(file.inode, R, b"3")


async def test_ids_are_never_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inode_ids, "BLOCK_SIZE", 7)
    async with world() as w:
        seen = set()
        for _ in range(20):
            seen.add((await w.file(R, b"f")).inode)
            await w.unlink(R, b"f")
        async with world(engine=w.engine) as other:
            for _ in range(20):
                seen.add((await other.file(R, b"f")).inode)
                await other.unlink(R, b"f")
        assert len(seen) == 40 and R not in seen
