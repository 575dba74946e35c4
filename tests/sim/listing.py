"""Listing a directory as one operation, which it is only while all entries come in one reply."""

from __future__ import annotations

from fs3.api.meta import Attr, Caller
from fs3.errors import Code, FS3Error
from fuse.fs import FileSystem


async def list_at_once(fs: FileSystem, caller: Caller, folder: int) -> list[tuple[bytes, Attr, int]]:
    """All entries, as of one instant. Raises CONFLICT where they came in several replies."""
    handle = await fs.opendir(caller, folder)
    try:
        entries = await fs.readdir(handle, 0)
        if entries and await fs.readdir(handle, entries[-1][2]):
            raise FS3Error(Code.CONFLICT, "listed in several replies")
    finally:
        await fs.releasedir(handle)
    return entries
