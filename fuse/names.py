"""Names and attributes in a mount."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio

from fs3.api.meta import Attr, Caller, DirEntry, FileKind, RenameFlags, RenameReply, XattrMode
from fs3.errors import Code, FS3Error

from .handles import Name
from .mount_state import MountState
from .walks import Fetch

logger = logging.getLogger("fs3.fuse.names")

_KERNELS_OWN = frozenset({b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"})
"""Extended attributes for which the kernel asks by itself, and mostly in vain."""


class Names(MountState):
    """Calls on names and attributes."""

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Attr:
        attr = await self._client.lookup(caller, parent, name)
        return self._told(attr, parent, name)

    async def find(self, caller: Caller, parent: int, name: bytes, life_s: float) -> tuple[Attr, float]:
        """As lookup; also how long ago meta was asked, in seconds: up to life_s where programs ask for many names of a
        directory, which are then fetched together. That a name is not there is never told from memory."""
        walks, client = self._walks, self._client
        now = client.env.monotonic()
        known = walks.take(caller, parent, name, now, client.changes, life_s)
        if known is None and life_s > 0:
            fetch = walks.plan(caller, parent, name, now, client.changes)
            if fetch is not None:
                await self._fetch_page(fetch, parent)
                now = client.env.monotonic()
                known = walks.take(caller, parent, name, now, client.changes, life_s)
        if known is not None and self._is_news(known[0]):
            return self._told(client.seen(known[0]), parent, name, now - known[1]), now - known[1]
        try:
            attr = await client.lookup(caller, parent, name)
        except FS3Error:
            walks.looked_up(caller, parent, name, now, found=False)
            raise
        walks.looked_up(caller, parent, name, client.env.monotonic(), found=True)
        return self._told(attr, parent, name), 0.0

    async def _fetch_page(self, fetch: Fetch, parent: int) -> None:
        """Get a page of a directory's entries, if that can be had."""
        entries: tuple[DirEntry, ...] = ()
        try:
            entries = (await self._client.readdir(fetch.caller, parent, fetch.after, fetch.limit)).entries
        except FS3Error as error:
            logger.debug("directory %d: not read ahead: %s", parent, error)  # who may look up names may not list them
        finally:
            self._walks.fetched(fetch, entries)

    def _is_news(self, attr: Attr) -> bool:
        """Whether attributes out of a page are not older than what the kernel was told otherwise."""
        known = self._inodes.get(attr.inode)
        return known is None or attr.ctime_ns >= known.shown_ctime_ns

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
        while True:
            hold = wanted and (self._opening > 0 or self._open_names.may_be_open(name))
            if hold or not wanted:
                yield hold
                return
            if name not in self._removing:
                break
            await self._removing[name].wait()  # after which somebody may have opened it
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
            if known is not None:
                known.length = length
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
