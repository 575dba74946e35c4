"""POSIX semantics of a mount: lookup counts, handles, caches, on top of FileClient. Knows nothing of pyfuse3.

Errors are FS3Error; KeyError for a handle that is not open would be the kernel's bug.

Lookup counts: every reply that tells the kernel of an inode (lookup, mknod, create, link, an entry of readdir other than
`.` and `..`) counts one lookup; forget gives them back.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import trio

from fs3.api.meta import Access, Attr, Caller, DirEntry, FileKind, RenameFlags, RenameReply, XattrMode, atime_due
from fs3.client.file import FileClient, FileHandle
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE

from .cache import ReadWindow
from .directory import DOT, DOTDOT, FIRST, Listing, Page
from .folders import Folders
from .handles import HandleTable, InodeTable, Name, OpenNames
from .readahead import KernelStore, ReadAhead
from .writebehind import WriteBehind

logger = logging.getLogger("fs3.fuse.fs")

LISTING_LIMIT = 512
"""Entries asked of meta at once."""

_KERNELS_OWN = frozenset({b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"})
"""Extended attributes for which the kernel asks by itself, and mostly in vain."""

_SET_ID = 0o6000

_ACCESS = {os.O_RDONLY: Access.READ, os.O_WRONLY: Access.WRITE, os.O_RDWR: Access.READ_WRITE}


@dataclass(frozen=True, slots=True)
class FsOptions:
    """read_ahead: bytes ahead of a sequential reader; read_cache: bytes of all blocks read ahead in the mount.
    write_behind: bytes that may wait in buffers before they are sent; 0 = write through. atime: whether reading sets access
    times, as relatime has it. strict: what the cluster has is what programs see: no file's content is kept by the kernel or
    the mount, and each write tells meta length and time before it returns."""

    read_ahead: int
    read_cache: int
    write_behind: int
    atime: bool = False
    strict: bool = False


@dataclass(slots=True, eq=False)
class OpenFile:
    """A file handle of the kernel. direct: past all caches of the mount. version: data_version of the file that its blocks
    read ahead stand for."""

    file: FileHandle
    window: ReadWindow
    direct: bool
    sync: bool
    version: int
    writes: WriteBehind | None = None
    was_read: bool = False


@dataclass(slots=True, eq=False)
class OpenDirectory:
    listing: Listing
    caller: Caller


@dataclass(frozen=True, slots=True)
class Opened:
    """What the kernel is told of a handle. direct_io: the kernel's pages are not used: for appending, since meta says where
    the bytes land, and in strict mounts."""

    handle: int
    keep_cache: bool
    direct_io: bool


class FileSystem:
    """One mount. Tasks of read-ahead and write-behind run in `nursery`."""

    def __init__(self, client: FileClient, nursery: trio.Nursery, options: FsOptions) -> None:
        self._client = client
        self._nursery = nursery
        self._options = options
        self._inodes = InodeTable()
        self._files: HandleTable[OpenFile] = HandleTable()
        self._directories: HandleTable[OpenDirectory] = HandleTable()
        self._open_names = OpenNames()
        self._folders = Folders()
        self._opening = 0  # opens whose answer has not come
        self._removing: dict[Name, trio.Event] = {}  # names that are being removed without a hold
        self._read_ahead = ReadAhead(client, nursery, options.read_ahead, options.read_cache)
        self._buffered: dict[int, WriteBehind] = {}
        self._forget_attributes: Callable[[int], None] = lambda inode: None

    def use_options(self, options: FsOptions) -> None:
        """From now on; buffers of files that are being written stay as they are."""
        self._options = options
        self._read_ahead.use(options.read_ahead, options.read_cache)

    def use_kernel(self, store: KernelStore, forget_attributes: Callable[[int], None]) -> None:
        """Let hot blocks be handed to the kernel's page cache, and the kernel be told which inode's attributes changed."""
        self._read_ahead.kernel_store = store
        self._forget_attributes = forget_attributes

    # Names

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Attr:
        attr = await self._client.lookup(caller, parent, name)
        return self._told(attr, parent, name)

    def forget(self, inode: int, lookups: int) -> None:
        self._inodes.forget(inode, lookups)

    async def mknod(
        self, caller: Caller, parent: int, name: bytes, kind: FileKind, mode: int, rdev: int = 0, target: bytes = b""
    ) -> Attr:
        attr = await self._client.mknod(caller, parent, name, kind, mode, rdev, target)
        if kind is FileKind.DIRECTORY:
            self._folders.doubt(parent)  # its link count
        else:
            self._folders.changed(parent, attr.ctime_ns)
        return self._told(attr, parent, name)

    async def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> Attr:
        attr = await self._client.link(caller, inode, parent, name)
        self._folders.changed(parent, attr.ctime_ns)
        return self._told(attr, parent, name)

    async def readlink(self, inode: int) -> bytes:
        return await self._client.readlink(inode)

    async def unlink(self, caller: Caller, parent: int, name: bytes) -> None:
        gone = (parent, name)
        async with self._hold(gone) as hold:
            reply = await self._client.remove(caller, parent, name, directory=False, hold=hold)
        if reply.changed_ns:
            self._folders.changed(parent, reply.changed_ns)
        else:
            self._folders.doubt(parent)
        self._open_names.removed(gone)
        known = self._inodes.get(reply.inode)
        if known is not None:
            known.drop(gone)

    @asynccontextmanager
    async def _hold(self, name: Name, wanted: bool = True) -> AsyncIterator[bool]:
        """While a name is removed: whether it may stand for a file that is open here, and must be held. If not, whoever
        opens that file waits for the removal."""
        hold = wanted and (self._opening > 0 or self._open_names.may_be_open(name))
        if hold or not wanted:
            yield hold
            return
        while name in self._removing:
            await self._removing[name].wait()
        done = self._removing[name] = trio.Event()
        try:
            yield False
        finally:
            del self._removing[name]
            done.set()

    async def rmdir(self, caller: Caller, parent: int, name: bytes) -> None:
        reply = await self._client.remove(caller, parent, name, directory=True)
        self._folders.doubt(parent)
        self._folders.doubt(reply.inode)
        self._removed_directory(reply.inode, reply.attr)

    def _removed_directory(self, inode: int, attr: Attr | None) -> None:
        known = self._inodes.get(inode)
        if known is not None and attr is not None and attr.kind is FileKind.DIRECTORY:
            known.gone = attr

    async def rename(
        self, caller: Caller, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: RenameFlags
    ) -> None:
        old, new = (parent, name), (new_parent, new_name)
        async with self._hold(new, flags is RenameFlags.NONE) as hold:
            reply = await self._client.rename(caller, parent, name, new_parent, new_name, flags, hold=hold)
        self._renamed_in(parent, new_parent, reply, flags)
        if flags is RenameFlags.EXCHANGE:
            self._open_names.removed(old)
            self._open_names.removed(new)
        else:
            self._open_names.renamed(old, new)
        self._removed_directory(reply.replaced, reply.left)
        replaced = self._inodes.get(reply.replaced)
        if replaced is not None:
            replaced.drop(new)
        known = self._inodes.get(reply.attr.inode)
        if known is not None:
            known.drop(old)
            known.add(new)

    def _renamed_in(self, old: int, new: int, reply: RenameReply, flags: RenameFlags) -> None:
        """What a rename does to the attributes of directories."""
        folders = self._folders
        if reply.attr.kind is FileKind.FILE and not reply.replaced and flags is not RenameFlags.EXCHANGE:
            folders.changed(old, reply.attr.ctime_ns)
            folders.changed(new, reply.attr.ctime_ns)
        else:
            for inode in (old, new, reply.attr.inode, reply.replaced):
                folders.doubt(inode)

    # Attributes

    def folder(self, inode: int, within_s: float) -> tuple[Attr, float] | None:
        """What meta told of a directory within the last seconds, and what is left of them; None where it has to be asked."""
        now = self._client.env.monotonic()
        found = self._folders.known(inode, now - within_s)
        return None if found is None else (found[0], found[1] + within_s - now)

    async def getattr(self, inode: int) -> Attr:
        await self._settle(inode)  # else the time of the last write would change again when it is sent
        known = self._inodes.get(inode)
        ticket = self._folders.asking(inode, self._client.env.monotonic())
        try:
            attr = self._folders.answered(ticket, await self._client.getattr(inode))
        except FS3Error as error:
            if error.code is Code.STALE_HANDLE and known is not None and known.gone is not None:
                return known.gone
            raise
        if known is not None:
            known.show(attr)
            if not attr.xattrs:
                known.bare_since = self._client.env.monotonic()
        return attr

    async def used(self, attr: Attr) -> int:
        """Bytes that a file's content takes. Where the chains do not tell, its length."""
        try:
            return await self._client.used(attr)
        except FS3Error as error:
            logger.warning("inode %d: the space that it takes is not known: %s", attr.inode, error)
            return attr.length

    def _buffered_view(self, attr: Attr) -> Attr:
        """`attr` with the length that buffered writes give it."""
        buffered = self._buffered.get(attr.inode) if self._buffered else None
        return attr if buffered is None else buffered.view(attr)

    async def setattr(
        self,
        caller: Caller,
        inode: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        length: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        handle: int | None = None,
    ) -> Attr:
        known = self._inodes.get(inode)
        if known is not None and known.gone is not None:
            asked = {"mode": mode, "uid": uid, "gid": gid, "atime_ns": atime_ns, "mtime_ns": mtime_ns}
            given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
            known.gone = replace(known.gone, **given)  # nobody but those who have it open will ever know
            return known.gone
        by_handle = handle is not None and self._files.get(handle).file.writable
        if length is not None or mtime_ns is not None:
            await self._settle(inode)
        self._folders.doubt(inode)
        try:
            attr = await self._client.setattr(
                caller, inode, mode=mode, uid=uid, gid=gid, length=length,
                atime_ns=atime_ns, mtime_ns=mtime_ns, by_handle=by_handle,
            )  # fmt: skip
        except FS3Error as error:
            if error.code is not Code.NOT_PERMITTED or (atime_ns is None and mtime_ns is None):
                raise
            # The kernel allowed it: then it was utimes(now), for which a right to write suffices, and which is not told
            # from an explicit time here.
            attr = await self._client.setattr(
                caller, inode, mode=mode, uid=uid, gid=gid, length=length,
                atime_now=atime_ns is not None, mtime_now=mtime_ns is not None, by_handle=by_handle,
            )  # fmt: skip
        finally:
            self._folders.doubt(inode)
        if known is not None:
            known.show(attr)
        if length is not None:
            self._read_ahead.drop(inode)
            await self._read_ahead.settle(inode)
        return attr

    async def access(self, caller: Caller, inode: int, mask: int) -> None:
        await self._client.access(caller, inode, mask)

    async def statfs(self) -> tuple[int, int, int]:
        """(capacity, used) in bytes of content, inodes in use."""
        space = await self._client.space()
        return space.capacity, space.used, space.files

    def is_bare(self, inode: int, name: bytes, age_s: float) -> bool:
        """Whether an inode is known to lack an attribute for which the kernel asks by itself, by an answer of meta not
        older than age_s: as good as all the attributes that the kernel keeps."""
        if name not in _KERNELS_OWN:
            return False
        known = self._inodes.get(inode)
        return known is not None and not known.attributed and self._client.env.monotonic() - known.bare_since <= age_s

    async def setxattr(self, caller: Caller, inode: int, name: bytes, value: bytes | None) -> None:
        known = self._inodes.get(inode)
        if known is not None:
            known.attributed = True
        self._folders.doubt(inode)
        try:
            await self._client.setxattr(caller, inode, name, value, XattrMode.ANY)
        finally:
            self._folders.doubt(inode)

    async def getxattr(self, caller: Caller, inode: int, name: bytes) -> bytes:
        return await self._client.getxattr(caller, inode, name)

    async def listxattr(self, caller: Caller, inode: int) -> tuple[bytes, ...]:
        return await self._client.listxattr(caller, inode)

    # Files

    async def open(self, caller: Caller, inode: int, flags: int) -> Opened:
        access = _access(flags)
        truncate = bool(flags & os.O_TRUNC)
        if truncate:
            await self._settle(inode)
        known = self._inodes.get(inode)
        for name in known.names if known is not None and self._removing else ():
            if name in self._removing:
                await self._removing[name].wait()
        self._opening += 1
        try:
            file = await self._client.open(caller, inode, access, truncate=truncate, append=bool(flags & os.O_APPEND))
            self._note_open(file)
        finally:
            self._opening -= 1
        if file.writable:
            await self._read_ahead.settle(inode)
        known = self._inodes.get(inode)
        if known is not None and known.show(file.inode.view(file.inode.attr)):
            # Another mount's change counts from this open on: the kernel would read no farther than the length it knows.
            self._forget_attributes(inode)
        return self._opened(file, flags)

    async def create(self, caller: Caller, parent: int, name: bytes, mode: int, flags: int) -> tuple[Opened, Attr]:
        if (parent, name) in self._removing:
            await self._removing[parent, name].wait()
        self._opening += 1
        try:
            file = await self._client.create(
                caller, parent, name, mode, _access(flags), exclusive=bool(flags & os.O_EXCL),
                truncate=bool(flags & os.O_TRUNC), append=bool(flags & os.O_APPEND),
            )  # fmt: skip
            known = self._inodes.told(file.inode.id, (parent, name))
            if not file.inode.attr.xattrs:
                known.bare_since = self._client.env.monotonic()
            self._note_open(file)
        finally:
            self._opening -= 1
        if file.created:
            self._folders.changed(parent, file.inode.attr.ctime_ns)
        elif file.writable:
            await self._read_ahead.settle(file.inode.id)
        attr = file.inode.view(file.inode.attr)
        known.show(attr)
        return self._opened(file, flags), attr

    def _note_open(self, file: FileHandle) -> None:
        """From now on the names of a file are those of an open one."""
        attr = file.inode.attr
        known = self._inodes.get(attr.inode)
        if known is not None:
            self._open_names.opened(attr.inode, known.names, attr.nlink, known.more)

    def _opened(self, file: FileHandle, flags: int) -> Opened:
        """Register a handle; decide whether the kernel may keep the pages that it has."""
        state = file.inode
        past_kernel = self._options.strict or bool(flags & os.O_APPEND)
        direct = past_kernel or bool(flags & os.O_DIRECT)
        entry = OpenFile(file, ReadWindow(), direct, bool(flags & os.O_DSYNC), state.attr.data_version)
        if file.writable and self._options.write_behind and not direct:
            buffer = self._buffered.get(state.id)
            if buffer is None:
                buffer = WriteBehind(self._client, self._nursery, state.chunk_size, self._options.write_behind)
                self._buffered[state.id] = buffer
            entry.writes = buffer
            buffer.users += 1
        version = state.attr.data_version
        known = self._inodes.get(state.id)
        keep = known is not None and known.cache_version == version
        if not keep:
            self._read_ahead.drop(state.id)
            if known is not None:
                known.cache_version = version
        return Opened(self._files.add(entry), keep and not past_kernel, past_kernel)

    async def read(self, handle: int, offset: int, length: int) -> memoryview:
        """Bytes of a file; short only at its end."""
        entry = self._files.get(handle)
        entry.was_read = True
        state = entry.file.inode
        buffered = self._buffered.get(state.id) if self._buffered else None
        if buffered is not None:
            await buffered.before_read()
        left = state.length - offset
        if left <= 0 or (entry.direct and left < length):
            await self._client.getattr(state.id)  # it may have become longer
            left = state.length - offset
            if left <= 0:
                return memoryview(b"")
        length = min(length, left)
        if entry.direct:
            into = memoryview(bytearray(length))
            await self._client.read_chunks(state, offset, into)
            return into[: max(0, state.length - offset)]  # others may have cut it
        if entry.version != state.attr.data_version:
            entry.version = state.attr.data_version
            self._read_ahead.drop(state.id)  # somebody changed it: the kernel has learnt that, and reads anew
        return await self._read_ahead.read(state, entry.window, offset, length)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write all of `data`. For what holds then see FileClient.write, and fuse.writebehind where that is on."""
        entry = self._files.get(handle)
        state = entry.file.inode
        if entry.writes is not None and not entry.sync:
            await entry.writes.write(entry.file, offset, data)
        else:
            if self._buffered:
                await self._drain(state.id)
            mode = state.attr.mode
            await self._client.write(entry.file, offset, data)
            if mode & _SET_ID:
                await self._client.flush(entry.file)  # which takes them away, unless root wrote
                self._set_id_gone(state.id, mode, state.attr.mode)
            if entry.sync:
                await self._client.fsync(entry.file)
            elif self._options.strict:
                await self._client.flush(entry.file)
        self._read_ahead.wrote(state, offset, len(data))
        return len(data)

    async def flush(self, handle: int) -> None:
        """close(2) of a descriptor: errors of buffered writes show here, and the length is settled."""
        entry = self._files.get(handle)
        if entry.writes is not None:
            await entry.writes.drain()
        state = entry.file.inode
        if state.dirty:
            before, mode = state.attr.data_version, state.attr.mode
            await self._client.flush(entry.file)
            self._own_change(state.id, before, state.attr.data_version)
            self._set_id_gone(state.id, mode, state.attr.mode)

    async def fsync(self, handle: int) -> None:
        entry = self._files.get(handle)
        await self._drain(entry.file.inode.id)
        await self._client.fsync(entry.file)

    async def release(self, handle: int) -> None:
        """The last descriptor is gone."""
        entry = self._files.pop(handle)
        state = entry.file.inode
        if entry.was_read and self._options.atime:
            attr = state.attr
            if atime_due(attr.atime_ns, attr.mtime_ns, attr.ctime_ns, self._client.env.wall_ns()):
                self._client.releases.touch(state.id)
        before = state.attr.data_version
        try:
            if entry.writes is not None:
                try:
                    await entry.writes.drain()
                finally:
                    entry.writes.users -= 1
                    if entry.writes.users == 0:
                        self._buffered.pop(state.id, None)
        finally:
            if state.handles == 1:
                self._read_ahead.drop(state.id)
                self._open_names.closed(state.id)
            await self._client.close(entry.file)
            self._own_change(state.id, before, state.attr.data_version)

    def _own_change(self, inode: int, before: int, after: int) -> None:
        """A report of ours made the file's data_version grow: by one step, nobody else changed it, and pages stay good."""
        known = self._inodes.get(inode)
        if known is not None and known.cache_version == before and after == before + 1:
            known.cache_version = after

    def _set_id_gone(self, inode: int, before: int, after: int) -> None:
        """Writing takes set-id bits from a file, of which the kernel leaves the whole to us."""
        if before != after:
            self._forget_attributes(inode)

    async def _settle(self, inode: int) -> None:
        buffered = self._buffered.get(inode)
        if buffered is not None:
            await buffered.settle()

    async def _drain(self, inode: int) -> None:
        buffered = self._buffered.get(inode)
        if buffered is not None:
            await buffered.drain()

    # Directories

    async def opendir(self, caller: Caller, inode: int) -> int:
        return self._directories.add(OpenDirectory(Listing(inode), caller))

    async def readdir(self, handle: int, cookie: int) -> list[tuple[bytes, Attr, int]]:
        """Entries from a cookie on, each with the cookie behind it; empty at the end. Tell `entry_told` of those used."""
        directory = self._directories.get(handle)
        listing = directory.listing
        start = max(cookie, FIRST)
        entries = listing.rest(cookie, self._client.env.monotonic(), self._client.changes)
        if not entries:
            entries = await self._fetch(directory, start)
        result = await self._dots(listing, cookie) if cookie < FIRST else []
        seen = self._client.seen  # what this mount wrote and meta has not heard of counts here too
        result.extend(
            [(entry.name, self._buffered_view(seen(entry.attr)), start + i + 1) for i, entry in enumerate(entries)]
        )
        return result

    async def _fetch(self, directory: OpenDirectory, start: int) -> tuple[DirEntry, ...]:
        """The entries from a cookie on, as meta has them now."""
        listing = directory.listing
        changes = self._client.changes
        after, skip = listing.locate(start)
        reply = await self._client.readdir(directory.caller, listing.inode, after, LISTING_LIMIT + skip)
        entries = reply.entries[skip:]
        listing.parent = reply.parent
        listing.listed(start, [entry.name for entry in entries])
        listing.page = Page(start, entries, self._client.env.monotonic(), changes)
        return entries

    async def _dots(self, listing: Listing, cookie: int) -> list[tuple[bytes, Attr, int]]:
        result = []
        if cookie == DOT:
            result.append((b".", await self._client.getattr(listing.inode), DOTDOT))
        result.append((b"..", await self._client.getattr(listing.parent or ROOT_INODE), FIRST))
        return result

    def entry_told(self, handle: int, name: bytes, attr: Attr) -> None:
        """The kernel took an entry of a listing, other than `.` and `..`."""
        self._told(attr, self._directories.get(handle).listing.inode, name)

    async def releasedir(self, handle: int) -> None:
        self._directories.pop(handle)

    async def fsyncdir(self, handle: int) -> None:
        await self._client.sync_attr(self._directories.get(handle).listing.inode)

    # The mount's end

    async def close_all(self) -> None:
        """Send what is buffered and end all sessions; for a clean stop with files still open."""
        for entry in self._files.values():
            try:
                if entry.writes is not None:
                    await entry.writes.drain()
            finally:
                await self._client.close(entry.file)

    def _told(self, attr: Attr, parent: int, name: bytes) -> Attr:
        attr = self._buffered_view(attr)
        known = self._inodes.told(attr.inode, (parent, name))
        known.bare_since = -math.inf if attr.xattrs else self._client.env.monotonic()
        known.show(attr)
        if attr.kind is FileKind.FILE:
            self._open_names.seen(attr.inode, (parent, name), attr.nlink)
        return attr


def _access(flags: int) -> Access:
    access = _ACCESS.get(flags & os.O_ACCMODE)
    if access is None:
        raise FS3Error(Code.INVALID, f"open flags {flags:o}")
    return access
