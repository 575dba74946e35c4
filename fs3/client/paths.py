"""Paths on top of FileClient: the Python API of fs3, for trio. fs3.client.sync is the same for other programs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from ..api.meta import Access, Attr, Caller, FileKind, RenameFlags
from ..api.meta_locks import LOCK_END
from ..errors import Code, FS3Error
from ..ids import ROOT_INODE
from ..memory import Memory
from ..transport.registered import Registration
from . import ranges
from .batch import Range, Result, fetch_batch, first_error, pieces, read_batch, readable, writable, write_batch
from .file import FileClient, FileHandle
from .locks import Lock

SYMLINKS_MAX = 40
LISTING_LIMIT = 1024
FOLDERS_MAX = 4096
"""Folders whose places are remembered, if that is wanted."""

_MODES = {
    "r": (Access.READ, False, False, False),
    "r+": (Access.READ_WRITE, False, False, False),
    "w": (Access.WRITE, True, True, False),
    "w+": (Access.READ_WRITE, True, True, False),
    "a": (Access.WRITE, True, False, False),
    "a+": (Access.READ_WRITE, True, False, False),
    "x": (Access.WRITE, True, False, True),
    "x+": (Access.READ_WRITE, True, False, True),
}
"""(access, create, truncate, exclusive) by the mode of open()."""


def own_caller() -> Caller:
    """The rights of this process."""
    return Caller(os.geteuid(), os.getegid(), (os.getegid(), *os.getgroups()), 0)


class AsyncFile:
    """An open file. Methods may run at the same time; a write is atomic for each chunk that it touches."""

    def __init__(self, client: FileClient, handle: FileHandle) -> None:
        self._client = client
        self._handle = handle

    @property
    def inode(self) -> int:
        return self._handle.inode.id

    @property
    def handle(self) -> FileHandle:
        return self._handle

    @property
    def length(self) -> int:
        """Of the file, as far as this client knows: as it was at opening, at least."""
        return self._handle.inode.length

    async def read_at(self, offset: int, length: int) -> memoryview:
        """Bytes at `offset`, fewer only at the end of the file."""
        return await self._client.read(self._handle, offset, length)

    async def read_into(self, offset: int, into: memoryview) -> int:
        """Read into a buffer, without copies; returns how many bytes there were."""
        return await self._client.read_into(self._handle, offset, into)

    async def write_at(self, offset: int, data: Any) -> int:
        """Write all bytes of a buffer; a file opened to append ignores the offset."""
        return await self._client.write(self._handle, offset, readable(data))

    async def truncate(self, length: int) -> None:
        await self._client.truncate(self._handle, length)

    async def sync(self) -> None:
        """fsync."""
        await self._client.fsync(self._handle)

    async def data_ranges(self, offset: int = 0, length: int | None = None) -> list[tuple[int, int]]:
        """(offset, length) of what is data, in order, in a range or to the file's end; the rest are holes."""
        return await ranges.data_ranges(self._client, self._handle, offset, length)

    async def punch(self, offset: int, length: int) -> None:
        """Make a range a hole: zeros that take no space. The file's length stays."""
        await ranges.punch(self._client, self._handle, offset, length)

    async def zero_range(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """The same, and make the file longer where it ends before, unless keep_size."""
        await ranges.zero_range(self._client, self._handle, offset, length, keep_size=keep_size)

    async def allocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """fallocate(2), but that no space is reserved: it is looked whether there is enough."""
        await ranges.allocate(self._client, self._handle, offset, length, keep_size=keep_size)

    async def copy_to(self, offset: int, target: AsyncFile, target_offset: int, length: int) -> int:
        """copy_file_range(2) into a file of the same client, which may be this one; holes stay holes."""
        return await ranges.copy_range(self._client, self._handle, offset, target.handle, target_offset, length)

    async def stat(self) -> Attr:
        return await self._client.getattr(self.inode)

    async def close(self) -> None:
        await self._client.close(self._handle)


class Paths:
    """Calls by path, as the functions of `os` have them. A path starts at the root of the file system, with or without a
    slash. Raises FS3Error, whose errno is that of the call on a local file system.

    folders_s: for so long stat and opening to read trust where they found the folders of a path, as a mount does for its
    entry_timeout: a file may be found where another client moved its folder away from. Changes always look anew, and so
    does what is not found.
    """

    def __init__(self, client: FileClient, caller: Caller | None = None, *, folders_s: float = 0.0) -> None:
        self._client = client
        self._caller = caller if caller is not None else own_caller()
        self._folders_s = folders_s
        self._folders: dict[tuple[bytes, ...], tuple[int, float]] = {}  # inode, until when; of folders by their paths
        self._moves = 0  # of folders, by this object

    @property
    def cluster(self) -> str:
        """The id of the cluster."""
        return self._client.cluster

    async def stat(self, path: str, *, follow: bool = True) -> Attr:
        return await self._resolve(path, follow)

    async def exists(self, path: str) -> bool:
        try:
            await self._resolve(path, True)
        except FS3Error as error:
            if error.code in (Code.NOT_FOUND, Code.NOT_DIRECTORY):
                return False
            raise
        return True

    async def listdir(self, path: str = "/") -> list[str]:
        return [os.fsdecode(name) for name, _ in await self.scan(path)]

    async def scan(self, path: str = "/") -> list[tuple[bytes, Attr]]:
        """Names with their attributes, in order of names."""
        inode = (await self._resolve(path, True)).inode
        found: list[tuple[bytes, Attr]] = []
        more = True
        while more:
            after = found[-1][0] if found else b""
            reply = await self._client.readdir(self._caller, inode, after, LISTING_LIMIT)
            found.extend([(entry.name, entry.attr) for entry in reply.entries])
            more = reply.more
        return found

    async def mkdir(self, path: str, mode: int = 0o777) -> Attr:
        parent, name = await self._parent(path)
        return await self._client.mknod(self._caller, parent, name, FileKind.DIRECTORY, mode)

    async def makedirs(self, path: str, mode: int = 0o777) -> None:
        """mkdir -p."""
        try:
            if (await self.stat(path)).kind is FileKind.DIRECTORY:
                return
        except FS3Error as error:
            if error.code is not Code.NOT_FOUND:
                raise
        done = ""
        for part in _parts(os.fsencode(path)):
            done += "/" + os.fsdecode(part)
            try:
                await self.mkdir(done, mode)
            except FS3Error as error:
                if error.code is not Code.EXISTS:
                    raise

    async def unlink(self, path: str) -> None:
        parent, name = await self._parent(path)
        with self._moving():  # a link to a folder, say
            await self._client.remove(self._caller, parent, name, directory=False, hold=self._client.any_open)

    async def rmdir(self, path: str) -> None:
        parent, name = await self._parent(path)
        with self._moving():
            await self._client.remove(self._caller, parent, name, directory=True)

    async def rmtree(self, path: str) -> None:
        """Remove a directory with all that is in it: its name at once, the rest in the background."""
        parent, name = await self._parent(path)
        with self._moving():
            await self._client.rmtree(self._caller, parent, name)

    async def rename(self, path: str, new_path: str, flags: RenameFlags = RenameFlags.NONE) -> None:
        parent, name = await self._parent(path)
        new_parent, new_name = await self._parent(new_path)
        hold = flags is RenameFlags.NONE and self._client.any_open
        with self._moving():
            await self._client.rename(self._caller, parent, name, new_parent, new_name, flags, hold=hold)

    async def symlink(self, target: str, path: str) -> Attr:
        parent, name = await self._parent(path)
        return await self._client.mknod(self._caller, parent, name, FileKind.SYMLINK, 0o777, target=os.fsencode(target))

    async def readlink(self, path: str) -> str:
        return os.fsdecode(await self._client.readlink((await self._resolve(path, False)).inode))

    async def link(self, path: str, new_path: str) -> Attr:
        inode = (await self._resolve(path, False)).inode
        parent, name = await self._parent(new_path)
        return await self._client.link(self._caller, inode, parent, name)

    async def chmod(self, path: str, mode: int) -> None:
        await self._client.setattr(self._caller, (await self._resolve(path, True)).inode, mode=mode)

    async def chown(self, path: str, uid: int | None = None, gid: int | None = None) -> None:
        await self._client.setattr(self._caller, (await self._resolve(path, True)).inode, uid=uid, gid=gid)

    async def utime(self, path: str, atime_ns: int | None = None, mtime_ns: int | None = None) -> None:
        """Set both times; None is now."""
        inode = (await self._resolve(path, True)).inode
        await self._client.setattr(
            self._caller, inode, atime_ns=atime_ns, mtime_ns=mtime_ns, atime_now=atime_ns is None, mtime_now=mtime_ns is None
        )

    async def sync_folder(self, path: str) -> None:
        """fsync of a directory: the names in it are on stable storage."""
        await self._client.sync_attr((await self._resolve(path, True)).inode)

    async def truncate(self, path: str, length: int) -> None:
        await self._client.setattr(self._caller, (await self._resolve(path, True)).inode, length=length)

    @asynccontextmanager
    async def open(self, path: str, mode: str = "r", permissions: int = 0o666) -> AsyncIterator[AsyncFile]:
        """mode: as of open(), without "b": files are bytes here. permissions: of a file that is made."""
        file = await self.open_file(path, mode, permissions)
        try:
            yield file
        finally:
            await file.close()

    async def open_file(self, path: str, mode: str = "r", permissions: int = 0o666) -> AsyncFile:
        """open(), for those who close() by themselves."""
        found = _MODES.get(mode.replace("b", ""))
        if found is None:
            raise FS3Error(Code.INVALID, f"open mode {mode!r}")
        access, create, truncate, exclusive = found
        append = mode.startswith("a")
        if create:
            parent, name = await self._parent(path)
            try:
                handle = await self._client.create(
                    self._caller, parent, name, permissions, access,
                    exclusive=exclusive, truncate=truncate, append=append,
                )  # fmt: skip
                return AsyncFile(self._client, handle)
            except FS3Error as error:
                if error.code is not Code.LOOP or exclusive:
                    raise  # a symbolic link stands there: open what it leads to
        inode = (await self._resolve(path, True)).inode
        handle = await self._client.open(self._caller, inode, access, truncate=truncate, append=append)
        return AsyncFile(self._client, handle)

    async def open_inode(self, inode: int) -> AsyncFile:
        """Open what AsyncFile.inode of an open file says, to read it."""
        return AsyncFile(self._client, await self._client.open(self._caller, inode, Access.READ))

    async def copy_file(self, path: str, new_path: str) -> int:
        """Make, or replace, a file with the content of another one, holes as holes, and its mode; returns its length."""
        async with self.open(path) as source:
            found = await source.stat()
            async with self.open(new_path, "r+" if await self.exists(new_path) else "x", found.mode & 0o777) as target:
                if target.inode == source.inode:
                    raise FS3Error(Code.INVALID, f"{path} and {new_path} are the same file")
                await target.truncate(0)
                return await source.copy_to(0, target, 0, found.length)

    @asynccontextmanager
    async def lock(
        self,
        path: str,
        *,
        shared: bool = False,
        offset: int = 0,
        length: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Lock]:
        """A lock of a file or directory, or (offset, length) a range of its bytes, that excludes all clients of the cluster
        which lock it too; see fs3.client.locks. Raises BUSY after timeout_s (None: never)."""
        inode = (await self._resolve(path, True)).inode
        end = LOCK_END if length is None else offset + length
        async with self._client.locks.hold(
            self._caller, inode, shared=shared, start=offset, end=end, timeout_s=timeout_s
        ) as lock:
            yield lock

    async def read_file(self, path: str) -> bytes:
        """The whole content."""
        async with self.open(path) as file:
            return bytes(await file.read_at(0, (await file.stat()).length))

    async def write_file(self, path: str, data: Any) -> None:
        """Make, or replace, a whole file, of a buffer's bytes."""
        async with self.open(path, "w") as file:
            await file.write_at(0, data)

    # Many ranges at once

    def register(self, buffer: Any, fd: int = -1) -> Registration:
        """Let reads into a buffer, and writes out of it, go without copies in this process where they can: by RDMA for any
        memory, and from storage daemons of this host into shared memory (fs3.memory.Memory above all; a memfd, POSIX). Where
        they cannot nothing changes.

        buffer: writable memory, or a Memory. fd: of the shared memory of which it is a mapping; found where the process has
        it open. Close what is returned, or leave it as a context, before the memory is used for other things. Raises
        ValueError, TypeError on buffers of no use.
        """
        if isinstance(buffer, Memory):
            return self._client.register(buffer.view, buffer.fd)
        return self._client.register(writable(buffer), fd)

    async def read_batch(self, items: Sequence[Range], into: Any, *, strict: bool = False) -> list[Result]:
        """Read many ranges (path or open file, offset, length), in few requests for each storage daemon.

        into: one writable buffer that takes them one behind the other, or a list of buffers, one for each. Returns how many
        bytes each item has got (fewer than asked for only at the end of its file), or its FS3Error, which fails no other
        item; strict: raises the first of these instead. A path is looked up and opened once in a batch: what others closed
        before the call is seen. Raises ValueError, TypeError on buffers of no use.
        """
        results = await read_batch(self._client, self._caller, self.stat, items, pieces(items, into))
        if strict and (error := first_error(results)) is not None:
            raise error
        return results

    async def fetch_batch(
        self, items: Sequence[tuple[str | AsyncFile, int, int | None]], *, strict: bool = False
    ) -> list[memoryview | FS3Error]:
        """As read_batch into fresh memory, for each item its own. Length None: to the end of the file."""
        found = await fetch_batch(self._client, self._caller, self.stat, items)
        if strict and (error := first_error(found)) is not None:
            raise error
        return found

    async def write_batch(self, items: Sequence[tuple[str | AsyncFile, int, Any]], *, strict: bool = False) -> list[Result]:
        """Write many pieces (path or open file, offset, bytes), several at once and in no order. Returns how many bytes each
        item wrote, or its FS3Error, as read_batch does. A file named by its path must exist and is opened once."""
        results = await write_batch(self._client, self._caller, self.stat, items)
        if strict and (error := first_error(results)) is not None:
            raise error
        return results

    # Resolving

    async def _parent(self, path: str) -> tuple[int, bytes]:
        """(inode of the directory, name) of a path that need not exist."""
        parts = _parts(os.fsencode(path))
        if not parts:
            raise FS3Error(Code.BUSY, "the root directory has no name")
        if len(parts) == 1:
            return ROOT_INODE, parts[0]
        return (await self._walk(parts[:-1], True)).inode, parts[-1]

    async def _resolve(self, path: str, follow: bool) -> Attr:
        parts = _parts(os.fsencode(path))
        if not self._folders_s or len(parts) < 2:
            return await self._walk(parts, follow)
        inode, known = await self._folder(tuple(parts[:-1]))
        try:
            return await self._walk(parts[-1:], follow, inode)
        except FS3Error as error:
            if not known or error.code not in (Code.NOT_FOUND, Code.NOT_DIRECTORY, Code.STALE_HANDLE):
                raise
        self._folders.clear()  # another folder may have its name now
        return await self._walk(parts, follow)

    async def _folder(self, path: tuple[bytes, ...]) -> tuple[int, bool]:
        """The inode of a folder, and whether it was known already."""
        moves, now = self._moves, self._client.env.monotonic()
        found = self._folders.get(path)
        if found is not None and found[1] > now:
            return found[0], True
        inode = (await self._walk(list(path), True)).inode
        if len(self._folders) >= FOLDERS_MAX:
            self._folders.clear()
        if self._moves == moves:
            self._folders[path] = inode, now + self._folders_s
        return inode, False

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Around what may take folders away from where they were found."""
        self._moves += 1
        try:
            yield
        finally:
            self._moves += 1
            self._folders.clear()

    async def _walk(self, parts: list[bytes], follow: bool, start: int = ROOT_INODE) -> Attr:
        left = parts[::-1]
        inode: int = start
        attr: Attr | None = None  # of inode, where it is known
        links = 0
        while left:
            attr = await self._client.lookup(self._caller, inode, left.pop())
            if attr.kind is not FileKind.SYMLINK or not (left or follow):
                inode = attr.inode
                continue
            links += 1
            if links > SYMLINKS_MAX:
                raise FS3Error(Code.LOOP, "too many symbolic links")
            target = await self._client.readlink(attr.inode)
            left.extend(_parts(target)[::-1])
            attr = None
            if target.startswith(b"/"):
                inode = ROOT_INODE
        return attr if attr is not None else await self._client.getattr(inode)


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]
