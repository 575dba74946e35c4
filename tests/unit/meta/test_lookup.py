from __future__ import annotations

from fs3.api import meta as api
from fs3.api.common import Empty
from fs3.api.meta import Caller, FileKind
from fs3.errors import Code
from tests.unit.meta.world import ALICE, BOB, CAROL, ROOT, R, refused, world


async def test_dot_and_dot_dot_are_names() -> None:
    async with world() as w:
        outer = await w.mkdir(R, b"outer")
        inner = await w.mkdir(outer.inode, b"inner")
        assert await w.lookup(inner.inode, b".") == inner
        assert (await w.lookup(inner.inode, b"..")).inode == outer.inode
        assert (await w.lookup(R, b"..")).inode == R


async def test_errors_of_lookup() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        for parent, name, code in [
            (R, b"g", Code.NOT_FOUND),
            (R, b"", Code.NOT_FOUND),
            (R, b"n" * 256, Code.NAME_TOO_LONG),
            (file.inode, b"g", Code.NOT_DIRECTORY),
            (file.inode, b".", Code.NOT_DIRECTORY),
            (999_999, b"g", Code.NOT_FOUND),
            (-1, b"g", Code.INVALID),
        ]:
            async with refused(code):
                await w.lookup(parent, name)
        async with refused(Code.STALE_HANDLE):
            await w.getattr(999_999)
        await w.file(R, b"n" * 255)
        assert (await w.lookup(R, b"n" * 255)).kind is FileKind.FILE


async def test_lookup_needs_search_and_no_read_right() -> None:
    async with world() as w:
        w.caller = ROOT
        directory = await w.mkdir(R, b"d", 0o711)
        await w.file(directory.inode, b"f")
        w.caller = ALICE
        await w.lookup(directory.inode, b"f")
        async with refused(Code.PERMISSION_DENIED):
            await w.readdir(directory.inode)
        w.caller = ROOT
        await w.setattr(directory.inode, mode=0o744)
        w.caller = ALICE
        assert await w.names(directory.inode) == [b"f"]
        async with refused(Code.PERMISSION_DENIED):
            await w.lookup(directory.inode, b"f")


async def test_access() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        await w.setattr(file.inode, mode=0o640, uid=ALICE.uid, gid=50)

        async def allowed(caller: Caller, mask: int) -> bool:
            async with refused(Code.PERMISSION_DENIED) if not expected[caller, mask] else _nothing():
                await w.call(api.ACCESS, api.AccessRequest(caller, file.inode, mask))
            return True

        expected = {
            (ALICE, 6): True, (ALICE, 1): False, (BOB, 4): True, (BOB, 2): False, (CAROL, 4): False, (CAROL, 0): True,
            (ROOT, 6): True, (ROOT, 1): False,
        }  # fmt: skip
        for caller, mask in expected:
            assert await allowed(caller, mask)
        async with refused(Code.INVALID):
            await w.call(api.ACCESS, api.AccessRequest(ROOT, file.inode, 8))


async def test_readlink() -> None:
    async with world() as w:
        link = await w.symlink(R, b"l", b"../over/there")
        assert (link.kind, link.length, link.mode) == (FileKind.SYMLINK, 13, 0o777)
        assert (await w.call(api.READLINK, api.ReadlinkRequest(link.inode))).target == b"../over/there"
        async with refused(Code.INVALID):
            await w.call(api.READLINK, api.ReadlinkRequest(R))


async def test_statfs_counts_inodes() -> None:
    async with world() as w:
        assert (await w.call(api.STATFS, Empty())).files == 1
        await w.mkdir(R, b"d")
        file = await w.file(R, b"f")
        await w.link(file.inode, R, b"g")
        assert (await w.call(api.STATFS, Empty())).files == 3
        await w.unlink(R, b"f")
        await w.rmdir(R, b"d")
        assert (await w.call(api.STATFS, Empty())).files == 2
        await w.unlink(R, b"g")
        assert (await w.call(api.STATFS, Empty())).files == 1


class _nothing:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None: ...
