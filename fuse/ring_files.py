"""Files of a mount as user-space rings use them: past the kernel and all caches, many ranges at once.

An operation is to its file what one by a descriptor opened with O_DIRECT is: what was written before is sent first, other
descriptors see what was written here at once, and reads are short only at the end of the file.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from fs3.api.meta import Access, atime_due
from fs3.client.each import each
from fs3.client.file import ROOT_CALLER, FileHandle
from fs3.client.many import Read, read_many
from fs3.client.ranges import punch
from fs3.errors import Code, FS3Error

from .contents import Contents, access_of
from .mount_state import OPAQUE
from .ring_memory import RingMemory
from .writebehind import Told

logger = logging.getLogger("fs3.fuse.ring_files")

SLICE_BYTES = 64 * 1024 * 1024
"""Of the reads of one batch that are asked for together."""
WRITES_AT_ONCE = 16
INODES_AT_ONCE = 16
PIECE_BYTES = 4 * 1024 * 1024
"""Of a write that is copied and sent at once."""

_SET_ID = 0o6000


@dataclass(slots=True, eq=False)
class RingFile:
    """A registered file. readable, writable: what rings may do with it. sync: each write is to be on stable storage.
    length_max: how long it may be made. uid: of the program. users: batches under way; the last one that ends closes it once
    it is `closing`."""

    file: FileHandle
    told: Told
    readable: bool
    writable: bool
    sync: bool
    length_max: int
    uid: int
    was_read: bool = False
    users: int = 0
    closing: bool = False


@dataclass(slots=True)
class RingWrite:
    """A range of a file, and the place in memory whose bytes go there. result: bytes, or a negative errno."""

    file: RingFile
    offset: int
    length: int
    memory: RingMemory
    at: int
    result: int = 0


class RingFiles(Contents):
    """Calls of rings."""

    async def open_for_rings(self, inode: int, flags: int, length_max: int, uid: int) -> RingFile:
        """Take in a file that a program has open on this mount with these flags; its rights were checked when it opened it.

        Raises FS3Error: BAD_HANDLE where nobody has it open so.
        """
        access = access_of(flags)
        readable, writable = access is not Access.WRITE, access is not Access.READ and not flags & os.O_APPEND
        state = self._client.opened(inode)
        if state is None or (access is not Access.READ and not state.sessions):
            raise FS3Error(Code.BAD_HANDLE, "nobody has this file open here")
        if self._options.writeback:
            raise FS3Error(Code.NOT_SUPPORTED, "this mount has writeback: rings would not see what the kernel keeps")
        if writable:
            with trio.CancelScope(shield=True):  # should the program go meanwhile: nobody would end the session
                file = await self._client.open(ROOT_CALLER, inode, access)
                await self._read_ahead.settle(inode)
        else:
            file = self._client.open_again(state)
        buffered = self._buffered.get(inode)
        told = Told() if buffered is None else buffered.opened()
        return RingFile(file, told, readable, writable, bool(flags & os.O_DSYNC), length_max, uid)

    async def close_for_rings(self, entry: RingFile) -> None:
        """Settles what was written. Raises FS3Error."""
        state = entry.file.inode
        if entry.was_read and self._options.atime:
            attr = state.attr
            if atime_due(attr.atime_ns, attr.mtime_ns, attr.ctime_ns, self._client.env.wall_ns()):
                self._client.releases.touch(state.id)
        if state.handles == 1:
            self._read_ahead.drop(state.id)
            self._open_names.closed(state.id)
        await self._client.close(entry.file)

    def ring_buffer(self, size: int) -> memoryview:
        """Memory that is used again once nobody refers to it; take `ring_room` before it is used."""
        return self._ring_buffers.take(size)

    # Reading

    async def ring_read(self, files: Iterable[RingFile], reads: Sequence[Read]) -> list[int]:
        """The bytes that each got, or a negative errno. files: all those that are read from."""
        lost: dict[int, int] = {}
        for file in files:
            file.was_read = True
            if self._buffered:
                await self._before_read(file.file.inode.id, lost)
        results: list[int] = []
        for part in _slices(reads):
            some = reads[part]
            worst: FS3Error | None = None
            for (handle, offset, _), result in zip(some, await read_many(self._client, some), strict=True):
                if not isinstance(result, int):
                    worst = result
                    result = -result.errno
                elif offset + result > handle.inode.length:  # others have cut it
                    result = max(0, handle.inode.length - offset)
                results.append(result)
            if worst is not None and worst.code in OPAQUE:
                logger.error("read of a ring: %s", worst)
        if lost:
            results = [lost.get(read[0].inode.id, result) for read, result in zip(reads, results, strict=True)]
        return results

    async def _before_read(self, inode: int, lost: dict[int, int]) -> None:
        """Send what is buffered. lost: takes what to answer for files of which something was lost."""
        buffered = self._buffered.get(inode)
        if buffered is not None:
            try:
                await buffered.before_read()
            except FS3Error as error:
                lost[inode] = -error.errno

    # Writing

    async def ring_write(self, items: Sequence[RingWrite]) -> None:
        """Write them all, and set their results. There is no order among them."""
        if self._buffered:
            await _by_inode(items, self._before_write)
        modes = {item.file.file.inode.id: item.file.file.inode.attr.mode for item in items}

        async def write(item: RingWrite) -> None:
            await self._ring_write_one(item)

        try:
            await each([item for item in items if item.result >= 0], write, WRITES_AT_ONCE)
        finally:
            # However it ends, something may have been written; and it is awaited so that nobody reads what was before.
            with trio.CancelScope(shield=True):
                for inode in modes:
                    await self._forget_pages(inode)

        async def settle(entry: RingFile) -> None:
            state = entry.file.inode
            mode = modes[state.id]
            if mode & _SET_ID:
                await self._client.flush(entry.file)  # which takes them away, unless it was root who opened the file
                if entry.uid and state.attr.mode != _without_set_id(state.attr.mode):
                    await self._client.setattr(ROOT_CALLER, state.id, mode=_without_set_id(state.attr.mode))
                self._set_id_gone(state.id, mode, state.attr.mode)
            if entry.sync:
                await self._client.fsync(entry.file)
            elif self._options.strict:
                await self._client.flush(entry.file)

        done = [item for item in items if item.result > 0]
        await _by_inode(sorted(done, key=lambda item: not item.file.sync), settle)

    async def ring_punch(self, entry: RingFile, offset: int, length: int) -> None:
        """Make a range a hole. Raises FS3Error."""
        state = entry.file.inode
        await self._before_write(entry)
        try:
            await punch(self._client, entry.file, offset, length)
        finally:
            self._read_ahead.wrote(state, offset, length)
            with trio.CancelScope(shield=True):
                await self._forget_pages(state.id)
        if entry.sync:
            await self._client.fsync(entry.file)

    async def _before_write(self, entry: RingFile) -> None:
        buffered = self._buffered.get(entry.file.inode.id)
        if buffered is not None:
            await buffered.drain(entry.told)

    async def _ring_write_one(self, item: RingWrite) -> None:
        """In pieces. As of write(2): what was written before an error counts, and the error is told the next time."""
        file = item.file.file
        end = min(item.offset + item.length, item.file.length_max)
        if end <= item.offset:
            item.result = -errno.EFBIG
            return
        at = item.offset
        while at < end:
            size = min(end - at, PIECE_BYTES - at % PIECE_BYTES)
            async with self.ring_room:
                # The program might change it under our hands: its checksum must be that of what is sent.
                piece = self.ring_buffer(size)
                try:
                    item.memory.take(item.at + at - item.offset, piece)
                    await self._client.write(file, at, piece)
                except OSError as error:
                    failed = error.errno or errno.EIO
                except FS3Error as error:
                    failed = error.errno
                    if error.code in OPAQUE:
                        logger.error("write of a ring: %s", error)
                else:
                    failed = 0
                finally:
                    self._read_ahead.wrote(file.inode, at, size)  # also where the ring was closed meanwhile
            if failed:
                item.result = at - item.offset or -failed
                return
            at += size
        item.result = at - item.offset


def _without_set_id(mode: int) -> int:
    """As meta has it for writes: set-gid without group execute is no privilege."""
    return mode & ~stat.S_ISUID & (~stat.S_ISGID if mode & stat.S_IXGRP else -1)


async def _by_inode(items: Sequence[RingWrite], call: Callable[[RingFile], Awaitable[None]]) -> None:
    """Call for one file of each inode; an error becomes the result of all its items."""
    by_inode: dict[int, list[RingWrite]] = {}
    for item in items:
        by_inode.setdefault(item.file.file.inode.id, []).append(item)

    async def one(some: list[RingWrite]) -> None:
        try:
            await call(some[0].file)
        except FS3Error as error:
            for item in some:
                item.result = -error.errno

    await each(by_inode.values(), one, INODES_AT_ONCE)


def _slices(reads: Sequence[Read]) -> list[slice]:
    """What to ask for together: a deadline counts for that much."""
    if sum([len(into) for _, _, into in reads]) <= SLICE_BYTES:
        return [slice(0, len(reads))]
    found = []
    first = size = 0
    for number, (_, _, into) in enumerate(reads):
        size += len(into)
        if size > SLICE_BYTES and number > first:
            found.append(slice(first, number))
            first, size = number, len(into)
    if first < len(reads):
        found.append(slice(first, len(reads)))
    return found
