"""POSIX semantics of a mount: lookup counts, handles, caches, on top of FileClient. Knows nothing of pyfuse3.

Errors are FS3Error; KeyError for a handle that is not open would be the kernel's bug.

Lookup counts: every reply that tells the kernel of an inode (lookup, mknod, create, link, an entry of readdir other than
`.` and `..`) counts one lookup; forget gives them back.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from fs3.api.meta import Attr, Caller, DirEntry
from fs3.client.file import FileClient
from fs3.ids import ROOT_INODE

from .directory import DOT, DOTDOT, FIRST, Listing, Page
from .handles import HandleTable
from .mount_state import FsOptions
from .names import Names
from .ring_files import RingFiles

LISTING_LIMIT = 512
"""Entries asked of meta at once."""


@dataclass(slots=True, eq=False)
class OpenDirectory:
    listing: Listing
    caller: Caller


class FileSystem(Names, RingFiles):
    """One mount."""

    def __init__(self, client: FileClient, nursery: trio.Nursery, options: FsOptions) -> None:
        super().__init__(client, nursery, options)
        self._directories: HandleTable[OpenDirectory] = HandleTable()

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
