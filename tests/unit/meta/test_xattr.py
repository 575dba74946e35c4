from __future__ import annotations

import pytest

from fs3.api import meta as api
from fs3.api.meta import Caller, FileKind, XattrMode
from fs3.errors import Code
from meta.ops import xattr
from tests.unit.meta.world import ALICE, BOB, CAROL, ROOT, R, World, refused, world


async def put(w: World, inode: int, name: bytes, value: bytes | None, mode: XattrMode = XattrMode.ANY) -> None:
    await w.call(api.SETXATTR, api.SetxattrRequest(w.tag(), w.caller, inode, name, value, mode))


async def get(w: World, inode: int, name: bytes) -> bytes:
    return (await w.call(api.GETXATTR, api.GetxattrRequest(w.caller, inode, name))).value


async def names(w: World, inode: int) -> tuple[bytes, ...]:
    return (await w.call(api.LISTXATTR, api.ListxattrRequest(w.caller, inode))).names


async def test_set_get_list_remove() -> None:
    async with world() as w:
        for made in (await w.file(R, b"f"), await w.mkdir(R, b"d")):
            inode = made.inode
            assert await names(w, inode) == ()
            await put(w, inode, b"user.b", b"1")
            await put(w, inode, b"user.a", b"")
            await put(w, inode, b"user.b", b"\0" * xattr.VALUE_SIZE_MAX)
            assert await names(w, inode) == (b"user.a", b"user.b")
            assert await get(w, inode, b"user.a") == b""
            assert await get(w, inode, b"user.b") == b"\0" * xattr.VALUE_SIZE_MAX
            changed = await w.getattr(inode)
            assert changed.ctime_ns > made.ctime_ns and changed.mtime_ns == made.mtime_ns
            await put(w, inode, b"user.b", None)
            assert await names(w, inode) == (b"user.a",)


async def test_create_and_replace() -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        async with refused(Code.NO_ATTRIBUTE):
            await put(w, inode, b"user.a", b"1", XattrMode.REPLACE)
        await put(w, inode, b"user.a", b"1", XattrMode.CREATE)
        async with refused(Code.EXISTS):
            await put(w, inode, b"user.a", b"2", XattrMode.CREATE)
        await put(w, inode, b"user.a", b"3", XattrMode.REPLACE)
        assert await get(w, inode, b"user.a") == b"3"
        async with refused(Code.NO_ATTRIBUTE):
            await put(w, inode, b"user.none", None)


async def test_errors_of_names_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        for name, code in [
            (b"system.posix_acl_access", Code.INVALID),
            (b"system.nfs4_acl", Code.NOT_SUPPORTED),
            (b"other", Code.NOT_SUPPORTED),
            (b"user.", Code.INVALID),
            (b"user." + b"n" * 251, Code.OUT_OF_RANGE),
        ]:
            async with refused(code):
                await put(w, inode, name, b"1")
        async with refused(Code.ATTRIBUTE_TOO_LARGE):
            await put(w, inode, b"user.a", b"1" * (xattr.VALUE_SIZE_MAX + 1))
        async with refused(Code.STALE_HANDLE):
            await get(w, 999_999, b"user.a")
        async with refused(Code.NO_ATTRIBUTE):
            await get(w, inode, b"user.a")
        monkeypatch.setattr(xattr, "_LIST_MAX", 2)
        await put(w, inode, b"user.1", b"")
        await put(w, inode, b"user.2", b"")
        async with refused(Code.NO_SPACE):
            await put(w, inode, b"user.3", b"")
        await put(w, inode, b"user.2", b"2")


@pytest.mark.parametrize(
    ("caller", "name", "read", "write"),
    [
        (ALICE, b"user.a", None, None),
        (BOB, b"user.a", None, Code.PERMISSION_DENIED),
        (CAROL, b"user.a", Code.PERMISSION_DENIED, Code.PERMISSION_DENIED),
        (ALICE, b"trusted.a", Code.NO_ATTRIBUTE, Code.NOT_PERMITTED),
        (ROOT, b"trusted.a", None, None),
        (CAROL, b"security.a", None, Code.NOT_PERMITTED),
    ],
)
async def test_rights(caller: Caller, name: bytes, read: Code | None, write: Code | None) -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        await put(w, inode, name, b"1")
        await w.setattr(inode, uid=ALICE.uid, gid=50, mode=0o640)
        w.caller = caller
        if read is None:
            assert await get(w, inode, name) == b"1"
        else:
            async with refused(read):
                await get(w, inode, name)
        if write is None:
            await put(w, inode, name, b"2")
        else:
            async with refused(write):
                await put(w, inode, name, b"2")
        assert (name in await names(w, inode)) == (caller.uid == 0 or not name.startswith(b"trusted."))


async def test_user_attributes_are_for_files_and_directories() -> None:
    async with world() as w:
        fifo = (await w.mknod(R, b"p", FileKind.FIFO)).inode
        async with refused(Code.NOT_PERMITTED):
            await put(w, fifo, b"user.a", b"1")
        async with refused(Code.NO_ATTRIBUTE):
            await get(w, fifo, b"user.a")
        await put(w, fifo, b"trusted.a", b"1")
        directory = (await w.mkdir(R, b"d")).inode
        await w.setattr(directory, mode=0o1777)
        w.caller = ALICE
        async with refused(Code.NOT_PERMITTED):
            await put(w, directory, b"user.a", b"1")


async def test_they_go_with_their_inode() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        await put(w, file.inode, b"user.a", b"1")
        directory = await w.mkdir(R, b"d")
        await put(w, directory.inode, b"user.a", b"1")
        await w.unlink(R, b"f")
        await w.rmdir(R, b"d")
        assert await w.keys(b"XATR") == []
