"""Open files of a mount: reading, writing, closing."""

from __future__ import annotations

import os
from dataclasses import dataclass

import trio

from fs3.api.meta import Access, Attr, Caller, atime_due
from fs3.client.file import FileHandle
from fs3.errors import Code, FS3Error

from .mount_state import MountState, OpenFile
from .streams import ReadPattern
from .writebehind import WriteBehind

_SET_ID = 0o6000

_ACCESS = {os.O_RDONLY: Access.READ, os.O_WRONLY: Access.WRITE, os.O_RDWR: Access.READ_WRITE}


@dataclass(frozen=True, slots=True)
class Opened:
    """What the kernel is told of a handle. direct_io: the kernel's pages are not used: for appending, since meta says where
    the bytes land, and in strict mounts."""

    handle: int
    keep_cache: bool
    direct_io: bool


class Contents(MountState):
    """Calls on open files."""

    async def open(self, caller: Caller, inode: int, flags: int) -> Opened:
        access = access_of(flags)
        truncate = bool(flags & os.O_TRUNC)
        if truncate:
            await self._settle(inode)
        while (removal := self._removal_of(inode)) is not None:
            await removal.wait()
        self._opening += 1
        try:
            file = await self._client.open(caller, inode, access, truncate=truncate, append=self._appends(flags))
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

    def _removal_of(self, inode: int) -> trio.Event | None:
        """The end of a removal of one of its names, without a hold, if there is one now."""
        known = self._inodes.get(inode) if self._removing else None
        names = () if known is None else known.names
        return next((self._removing[name] for name in names if name in self._removing), None)

    async def create(self, caller: Caller, parent: int, name: bytes, mode: int, flags: int) -> tuple[Opened, Attr]:
        while (parent, name) in self._removing:
            await self._removing[parent, name].wait()
        self._opening += 1
        try:
            file = await self._client.create(
                caller, parent, name, mode, access_of(flags), exclusive=bool(flags & os.O_EXCL),
                truncate=bool(flags & os.O_TRUNC), append=self._appends(flags),
            )  # fmt: skip
            known = self._inodes.told(file.inode.id, (parent, name))
            if known.lookups == 1:
                known.length = file.inode.attr.length
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

    def _appends(self, flags: int) -> bool:
        """Whether meta is to say where writes land. Not with writeback: the kernel sends what it kept by any descriptor that
        may write, without saying so to us."""
        return bool(flags & os.O_APPEND) and not self._options.writeback

    def _note_open(self, file: FileHandle) -> None:
        """From now on the names of a file are those of an open one."""
        attr = file.inode.attr
        known = self._inodes.get(attr.inode)
        if known is not None:
            self._open_names.opened(attr.inode, known.names, attr.nlink, known.more)

    def _opened(self, file: FileHandle, flags: int) -> Opened:
        """Register a handle; decide whether the kernel may keep the pages that it has."""
        state = file.inode
        if self._options.writeback:
            past_kernel = self._unlike_kernel(file, bool(flags & os.O_TRUNC))
        else:
            past_kernel = self._options.strict or file.append
        direct = past_kernel or bool(flags & os.O_DIRECT)
        entry = OpenFile(file, ReadPattern(), direct, bool(flags & os.O_DSYNC), state.attr.data_version)
        if file.writable and self._options.write_behind and not direct:
            buffer = self._buffered.get(state.id)
            if buffer is None:
                buffer = WriteBehind(self._client, self._nursery, state.chunk_size, self._write_buffers)
                self._buffered[state.id] = buffer
            entry.writes = buffer
            buffer.users += 1
        if state.id in self._buffered:
            entry.told = self._buffered[state.id].opened()
        version = state.attr.data_version
        known = self._inodes.get(state.id)
        keep = known is not None and known.cache_version == version
        if not keep:
            self._read_ahead.drop(state.id)
            if known is not None:
                known.cache_version = version
        return Opened(self._files.add(entry), keep and not past_kernel, past_kernel)

    def _unlike_kernel(self, file: FileHandle, truncated: bool) -> bool:
        """With writeback: whether others gave a file a length that the kernel would not learn of."""
        known = self._inodes.get(file.inode.id)
        if known is None:
            return False
        if truncated:
            known.length = 0
        return known.length != file.inode.length

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
            found = await self._read_ahead.direct(state, offset, length)
            return found[: max(0, state.length - offset)]  # others may have cut it
        if entry.version != state.attr.data_version:
            entry.version = state.attr.data_version
            self._read_ahead.drop(state.id)  # somebody changed it: the kernel has learnt that, and reads anew
        return await self._read_ahead.read(state, entry.pattern, offset, length)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write all of `data`. For what holds then see FileClient.write, and fuse.writebehind where that is on."""
        entry = self._files.get(handle)
        state = entry.file.inode
        if entry.writes is not None and not entry.sync:
            await entry.writes.write(entry.file, entry.told, offset, data)
        else:
            if self._buffered:
                await self._drain(entry)
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
        if self._options.writeback:
            known = self._inodes.get(state.id)
            if known is not None and offset + len(data) > known.length:
                known.length = offset + len(data)
        return len(data)

    async def flush(self, handle: int) -> None:
        """close(2) of a descriptor: errors of buffered writes show here, and the length is settled."""
        entry = self._files.get(handle)
        if entry.writes is not None:
            await entry.writes.drain(entry.told)
        state = entry.file.inode
        if state.dirty:
            before, mode = state.attr.data_version, state.attr.mode
            await self._client.flush(entry.file)
            self._own_change(state.id, before, state.attr.data_version)
            self._set_id_gone(state.id, mode, state.attr.mode)

    async def fsync(self, handle: int) -> None:
        entry = self._files.get(handle)
        await self._drain(entry)
        await self._client.fsync(entry.file)

    async def release(self, handle: int) -> None:
        """The last descriptor is gone."""
        entry = self._files.pop(handle)
        self._read_ahead.closed(entry.pattern)
        state = entry.file.inode
        if entry.was_read and self._options.atime:
            attr = state.attr
            if atime_due(attr.atime_ns, attr.mtime_ns, attr.ctime_ns, self._client.env.wall_ns()):
                self._client.releases.touch(state.id)
        before = state.attr.data_version
        try:
            if entry.writes is not None:
                try:
                    await entry.writes.drain(entry.told)
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

    async def close_all(self) -> None:
        """Send what is buffered and end all sessions; for a clean stop with files still open."""
        for entry in self._files.values():
            try:
                if entry.writes is not None:
                    await entry.writes.drain(entry.told)
            finally:
                await self._client.close(entry.file)


def access_of(flags: int) -> Access:
    """What open(2) was asked for. Raises FS3Error INVALID."""
    access = _ACCESS.get(flags & os.O_ACCMODE)
    if access is None:
        raise FS3Error(Code.INVALID, f"open flags {flags:o}")
    return access
