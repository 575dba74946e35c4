"""FileClient: the whole client without FUSE. Files are inodes and handles here; fs3.client.paths adds paths.

Writes are write-through: write() returns once every serving replica has the bytes in memory. Lengths and times of written
files are reported to meta every second, at fsync, flush and close, and before anything that depends on them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from ..api.meta import (
    APPEND,
    CLOSE,
    CREATE,
    GETATTR,
    OPEN,
    REPORT,
    SETATTR,
    Access,
    AppendRequest,
    Attr,
    Caller,
    CloseRequest,
    CreateRequest,
    FileKind,
    GetattrRequest,
    OpenRequest,
    ReportRequest,
    SetattrRequest,
)
from ..checksum import Buffer
from ..env import Env
from ..errors import Code, FS3Error
from ..ids import ChunkId, RequestTag
from ..layout import FILE_LENGTH_MAX, Extent, split
from ..settings import ClientSettings
from ..transport.registered import Registration
from .each import each
from .inode import OpenInode
from .meta import MetaClient
from .names import UNKNOWN, NameCalls
from .placed import table_of, table_when_known, used_by
from .reading import ChunkRead
from .settings import nothing
from .storage import RoutingSource, StorageClient

logger = logging.getLogger("fs3.client.file")

SYNC_CHUNKS_MAX = 256
"""Chunks named in one sync request."""
REPORT_INTERVAL_S = 1.0
PIECES_IN_FLIGHT_MAX = 8
"""Chunks of one large write that are sent at once."""

ROOT_CALLER = Caller(0, 0, (0,))
_NO_TAG = RequestTag(0, 0, 0)


@dataclass(slots=True, eq=False)
class FileHandle:
    """An open file. session: 0 unless it is open for writing."""

    inode: OpenInode
    access: Access
    append: bool
    session: int
    created: bool = False
    closed: bool = False

    @property
    def writable(self) -> bool:
        return self.access is not Access.READ


class FileClient(NameCalls):
    """POSIX-like calls. node: this client's id at mgmtd, for sessions. Errors: FS3Error, as meta and storage raise them."""

    def __init__(self, env: Env, meta: MetaClient, storage: StorageClient, mgmtd: RoutingSource, node: int) -> None:
        super().__init__(env, meta, mgmtd, node)
        self._storage = storage
        self.cluster = mgmtd.routing.cluster
        self.settings = ClientSettings()
        self.on_settings: Callable[[ClientSettings], Awaitable[None]] = nothing  # a mount uses some itself

    async def use_settings(self, settings: ClientSettings) -> None:
        """Work with these from now on."""
        self.settings = settings
        self._meta.call_s = settings.meta_timeout / 1000
        await self.on_settings(settings)

    # Attributes

    async def getattr(self, inode: int) -> Attr:
        """Exact for what this client wrote: unreported changes are reported first, so that times do not change later."""
        state = self._inodes.get(inode)
        if state is not None and state.dirty and state.sessions:
            return await self._report(state)
        return self._seen((await self._meta.call(GETATTR, GetattrRequest(inode))).attr)

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
        atime_now: bool = False,
        mtime_now: bool = False,
        by_handle: bool = False,
    ) -> Attr:
        """by_handle: the caller has the file open for writing, so that a new length needs no permission."""
        state = self._inodes.get(inode)
        if state is not None and state.dirty and (length is not None or mtime_ns is not None or mtime_now):
            await self._report(state)  # a report after this would set another mtime, or an older length
        if length is not None and self.releases.holds(inode):
            await self.releases.tell()  # as in open
        reply = await self._meta.change(
            SETATTR,
            lambda tag: SetattrRequest(
                tag, caller, inode, mode, uid, gid, length, atime_ns, mtime_ns, atime_now, mtime_now, by_handle
            ),
        )
        state = self._inodes.get(inode)
        if state is None:
            return reply.attr
        state.unsynced_attr = True
        if length is not None:
            state.truncated(reply.attr)
        return state.learn(reply.attr)

    async def used(self, attr: Attr) -> int:
        """Bytes that the chunks of a file hold: less than its length where it has holes."""
        assert attr.layout is not None
        table = await table_when_known(self._mgmtd, attr.layout, self.settings.io_timeout / 1000)
        return await used_by(attr, attr.layout, table, self._storage)

    def register(self, memory: memoryview, fd: int = -1) -> Registration:
        """Let reads into this memory, and writes out of it, go without copies in this process where that can be: see
        fs3.transport.base.Transport.register. Raises ValueError on memory of no use."""
        return self.env.transport.register(memory, fd)

    @property
    def storage(self) -> StorageClient:
        """For those who read chunks of many files at once."""
        return self._storage

    # Open files

    async def create(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        mode: int,
        access: Access,
        *,
        exclusive: bool = False,
        truncate: bool = False,
        append: bool = False,
    ) -> FileHandle:
        """open(O_CREAT)."""
        session = self._new_session() if access is not Access.READ else 0
        self._begin_open(UNKNOWN)
        try:
            reply = await self._meta.change(
                CREATE,
                lambda tag: CreateRequest(tag, caller, self.node, parent, name, mode, access, exclusive, truncate, session),
            )
            return await self._opened(reply.attr, access, append, session, truncate, reply.created)
        finally:
            self._end_open(UNKNOWN)

    async def open(
        self, caller: Caller, inode: int, access: Access, *, truncate: bool = False, append: bool = False
    ) -> FileHandle:
        session = self._new_session() if access is not Access.READ else 0
        state = self._inodes.get(inode)
        if state is not None and state.dirty and state.sessions:
            await self._report(state)  # else the reply would be older than what this client wrote
        if truncate and self.releases.holds(inode):
            await self.releases.tell()  # to cut a file that nobody has open for writing costs meta much less
        if session or truncate:
            reply = await self._meta.change(
                OPEN, lambda tag: OpenRequest(tag, caller, self.node, inode, access, truncate, session)
            )
            return await self._opened(reply.attr, access, append, session, truncate, False)
        request = OpenRequest(_NO_TAG, caller, self.node, inode, access, False, 0)  # it changes nothing
        self._begin_open(inode)
        try:
            reply = await self._meta.call(OPEN, request)
            handle = await self._opened(reply.attr, access, append, session, truncate, False)
        finally:
            self._end_open(inode)
        if reply.attr.nlink == 0 and not (handle.inode.sessions or handle.inode.holds):
            await self._hold_nameless(handle)
        return handle

    async def _opened(
        self, attr: Attr, access: Access, append: bool, session: int, truncated: bool, created: bool
    ) -> FileHandle:
        layout = attr.layout
        if attr.kind is not FileKind.FILE or layout is None:
            code = Code.IS_DIRECTORY if attr.kind is FileKind.DIRECTORY else Code.INVALID
            raise FS3Error(code, f"inode {attr.inode} is no regular file")
        table = table_of(self._mgmtd.routing, layout)
        if table is None:
            try:
                table = await table_when_known(self._mgmtd, layout, self.settings.io_timeout / 1000)
            except BaseException:
                if session:
                    self.releases.add(attr.inode, session)
                raise
        state = self._inodes.get(attr.inode)
        if state is None:
            state = self._inodes[attr.inode] = OpenInode(attr, table, fresh=created)
        elif truncated:
            state.truncated(attr)
        else:
            state.learn(attr)
        state.handles += 1
        if session:
            state.sessions.append(session)
        return FileHandle(state, access, append, session, created)

    async def _hold_nameless(self, handle: FileHandle) -> None:
        """What let meta open a file without a name may be the session of somebody who has just closed it."""
        try:
            await self.holds.keep([handle.inode])
            if not handle.inode.holds:
                raise FS3Error(Code.STALE_HANDLE, f"inode {handle.inode.id} was removed")
        except BaseException:
            await self.close(handle)  # which asks nobody
            raise

    def opened(self, inode: int) -> OpenInode | None:
        """An inode that this client has open."""
        return self._inodes.get(inode)

    def open_again(self, state: OpenInode) -> FileHandle:
        """One more handle, for reading, on what is open already. Nobody is asked."""
        state.handles += 1
        return FileHandle(state, Access.READ, False, 0)

    async def close(self, handle: FileHandle) -> None:
        """Settle what was written and end the session. The handle is of no use afterwards, even where this raises."""
        if handle.closed:
            return
        handle.closed = True
        state = handle.inode
        try:
            if handle.session and state.dirty:
                await self._close_session(state, handle.session)
            elif handle.session:
                state.sessions.remove(handle.session)
                self.releases.add(state.id, handle.session)
        finally:
            state.handles -= 1
            if state.handles == 0:
                if self._inodes.get(state.id) is state:
                    del self._inodes[state.id]
                for hold in state.holds:
                    self._hold(state.id, hold)
                state.holds.clear()

    async def flush(self, handle: FileHandle) -> None:
        """Settle the length, as close(2) promises, without ending the handle. Free when nothing was written."""
        if handle.inode.dirty and handle.inode.sessions:
            await self._report(handle.inode)

    # Content

    async def read(self, handle: FileHandle, offset: int, length: int) -> memoryview:
        """Bytes of the file, short only at its end."""
        into = memoryview(bytearray(max(0, min(length, await self._readable(handle.inode, offset, length)))))
        await self.read_into(handle, offset, into)
        return into

    async def read_into(self, handle: FileHandle, offset: int, into: memoryview) -> int:
        """Read len(into) bytes at `offset` into `into`; returns how many there were before the end of the file."""
        state = handle.inode
        count = min(len(into), await self._readable(state, offset, len(into)))
        if count <= 0:
            return 0
        await self.read_chunks(state, offset, into[:count])
        return count

    async def read_chunks(self, state: OpenInode, offset: int, into: memoryview) -> None:
        """Fill `into` from the chunks, zeros where there are none; the length of the file does not matter.

        Raises STALE_HANDLE where there are none because the file was removed: by another client than the one that has it
        open for reading, or after this one's sessions were ended.
        """
        deadline = self.env.monotonic() + self.settings.io_timeout / 1000
        size = state.chunk_size
        index, within = divmod(offset, size)
        if within + len(into) <= size:
            chain = state.chains[index % len(state.chains)]
            read = ChunkRead(chain, ChunkId(state.id, index), within, into)
            found = await self._storage.read_one(read, deadline=deadline)
        else:
            reads = [
                ChunkRead(
                    extent.chain,
                    ChunkId(state.id, extent.index),
                    extent.offset,
                    into[extent.file_offset - offset : extent.file_offset - offset + extent.length],
                )
                for extent in split(state.layout, state.chains, offset, len(into))
            ]
            found = sum(await self._storage.read(reads, deadline=deadline))
        if found < len(into):
            # A hole, if the file is still there and nobody has cut it.
            state.learn((await self._meta.call(GETATTR, GetattrRequest(state.id))).attr)

    async def _readable(self, state: OpenInode, offset: int, length: int) -> int:
        """How many bytes there are from `offset` on; asks meta when the file seems to end before that."""
        if offset + length > state.length:
            await self.getattr(state.id)  # others may have made it longer; this updates state
        return state.length - offset

    async def write(self, handle: FileHandle, offset: int, data: Buffer) -> int:
        """Write all of `data` at `offset` (with append: at the file's end, wherever that is). Returns its length.

        When it returns, every serving replica has the bytes in memory. When it raises, any part of them may be there.
        """
        state = handle.inode
        assert handle.writable and not handle.closed
        length = len(data)
        if length == 0:
            return 0
        if state.gone:  # chunks that are made now would belong to nobody
            raise FS3Error(Code.STALE_HANDLE, f"inode {state.id} was removed while this client was taken for dead")
        if handle.append:
            offset = await self._reserve(handle, length)
        if offset + length > FILE_LENGTH_MAX:
            raise FS3Error(Code.FILE_TOO_LARGE, f"offset {offset}")
        deadline = self.env.monotonic() + self.settings.io_timeout / 1000
        size = state.chunk_size
        index, within = divmod(offset, size)
        try:
            if within + length <= size:
                chain = state.chains[index % len(state.chains)]
                await self._storage.write(chain, ChunkId(state.id, index), within, data, size, deadline=deadline)
            else:
                await self._write_pieces(state, offset, memoryview(data), deadline)
        except BaseException:
            state.wrote_in_part()
            raise
        state.wrote(offset, length, self.env.wall_ns())
        return length

    async def _write_pieces(self, state: OpenInode, offset: int, data: memoryview, deadline: float) -> None:
        """Write a range that spans chunks, several of them at once. Raises the first error."""

        async def write(extent: Extent) -> None:
            start = extent.file_offset - offset
            piece = data[start : start + extent.length]
            chunk = ChunkId(state.id, extent.index)
            await self._storage.write(extent.chain, chunk, extent.offset, piece, state.chunk_size, deadline=deadline)

        await each(split(state.layout, state.chains, offset, len(data)), write, PIECES_IN_FLIGHT_MAX)

    async def _reserve(self, handle: FileHandle, length: int) -> int:
        """Have meta move the file's end, for one append."""
        state = handle.inode
        changes = state.changes
        reply = await self._meta.change(
            APPEND,
            lambda tag: AppendRequest(tag, self.node, state.id, handle.session, length, state.end, state.end_version),
        )
        state.was_reported(changes, reply.attr)
        return reply.offset

    async def truncate(self, handle: FileHandle, length: int) -> Attr:
        """ftruncate."""
        return await self.setattr(ROOT_CALLER, handle.inode.id, length=length, by_handle=True)

    async def fsync(self, handle: FileHandle) -> None:
        """Returns once content and metadata of the file are on stable storage, at every serving replica."""
        state = handle.inode
        every = state.unsynced_all
        indices = state.unsynced
        state.unsynced_all, state.unsynced = False, set()
        try:
            await self._sync_chunks(state, range(-(-state.length // state.chunk_size)) if every else sorted(indices))
            if state.unsynced_attr or state.dirty:
                state.unsynced_attr = False
                await self._report(state, sync=True)
        except BaseException:
            state.unsynced_all |= every
            state.unsynced |= indices
            state.unsynced_attr = True
            raise

    async def sync_attr(self, inode: int) -> None:
        """Returns once the metadata of an inode is on stable storage: fsync of a directory."""
        await self._meta.change(REPORT, lambda tag: ReportRequest(tag, self.node, inode, 0, -1, 0, wrote=False, sync=True))

    async def _sync_chunks(self, state: OpenInode, indices: Sequence[int]) -> None:
        deadline = self.env.monotonic() + self.settings.sync_timeout / 1000

        async def sync(batch: tuple[int, list[ChunkId]]) -> None:
            await self._storage.sync(*batch, deadline=deadline)

        await each(state.by_chain(indices, SYNC_CHUNKS_MAX), sync, PIECES_IN_FLIGHT_MAX)

    # Reports and sessions

    async def run_reports(self) -> None:
        """Report what was written, every second, until cancelled. An error is left to the next fsync, flush or close."""
        while True:
            await trio.sleep(REPORT_INTERVAL_S)
            for state in [state for state in self._inodes.values() if state.dirty and state.sessions]:
                try:
                    await self._report(state)
                except FS3Error as error:
                    logger.warning("inode %d: length not reported yet: %s", state.id, error)

    async def reopen_sessions(self) -> None:
        """Make the sessions of all open files anew: meta may have ended them while it took this client for dead."""
        for state in list(self._inodes.values()):
            for session in list(state.sessions):
                try:
                    await self._reopen(state.id, session)
                except FS3Error as error:
                    state.gone = state.gone or error.code is Code.STALE_HANDLE
                    logger.warning("inode %d, open for writing: cannot be opened again: %s", state.id, error)
        await self.holds.renew()

    async def _reopen(self, inode: int, session: int) -> None:
        await self._meta.change(
            OPEN, lambda tag: OpenRequest(tag, ROOT_CALLER, self.node, inode, Access.READ_WRITE, False, session)
        )

    async def _report(self, state: OpenInode, sync: bool = False) -> Attr:
        """Tell meta how far this client wrote. The reply's attributes, as this client sees them."""
        changes = state.changes
        wrote = changes != state.reported
        session = state.sessions[0] if state.sessions else 0
        reply = await self._meta.change(
            REPORT,
            lambda tag: ReportRequest(tag, self.node, state.id, session, *state.report, wrote, sync, state.sparse),
        )
        return state.was_reported(changes, reply.attr)

    async def _close_session(self, state: OpenInode, session: int) -> None:
        changes = state.changes
        wrote = changes != state.reported
        end = state.report if wrote else (-1, 0)
        try:
            reply = await self._meta.change(
                CLOSE,
                lambda tag: CloseRequest(tag, self.node, state.id, session, *end, wrote, state.sparse),
            )
            state.was_reported(changes, reply.attr)
        finally:
            state.sessions.remove(session)

    @property
    def any_open(self) -> bool:
        """Whether this client has any file open, or may have."""
        return bool(self._inodes or self._opening)
