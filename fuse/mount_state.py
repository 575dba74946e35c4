"""What the parts of a mount share: its options, known inodes, open files, buffers and caches."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from fs3.api.meta import Attr, FileKind
from fs3.client.file import FileClient, FileHandle
from fs3.errors import Code
from fs3.transport.buffers import BufferPool

from .folders import Folders
from .handles import HandleTable, InodeTable, Name, OpenNames
from .readahead import KernelStore, ReadAhead
from .streams import ReadPattern
from .walks import Walks
from .watch import Watch
from .writebehind import Told, WriteBehind, WriteBuffers

OPAQUE = frozenset({Code.INTERNAL, Code.IO, Code.DISK_FAILED, Code.CHECKSUM, Code.PROTOCOL, Code.DEADLINE_EXCEEDED})
"""Codes that a program only sees as EIO or ETIMEDOUT: the log says more."""

RING_WRITES_AT_ONCE = 32
"""Pieces of rings' writes that are under way in the mount."""


async def _nothing(inode: int) -> None:
    """Where there is no kernel."""


@dataclass(frozen=True, slots=True)
class FsOptions:
    """read_ahead: bytes ahead of a sequential reader; read_cache: bytes of all blocks read ahead in the mount.
    write_behind: bytes that may wait in buffers before they are sent; 0 = write through. atime: whether reading sets access
    times, as relatime has it. strict: what the cluster has is what programs see: no file's content is kept by the kernel or
    the mount, and each write tells meta length and time before it returns. writeback: the kernel keeps what is written and
    sends it later, and takes its own word for the length and times of the files that it knows."""

    read_ahead: int
    read_cache: int
    write_behind: int
    atime: bool = False
    strict: bool = False
    writeback: bool = False


@dataclass(slots=True, eq=False)
class OpenFile:
    """A file handle of the kernel. direct: past all caches of the mount. version: data_version of the file that its blocks
    read ahead stand for."""

    file: FileHandle
    pattern: ReadPattern
    direct: bool
    sync: bool
    version: int
    writes: WriteBehind | None = None
    told: Told = field(default_factory=Told)
    was_read: bool = False


class MountState:
    """The state of one mount. Tasks of read-ahead and write-behind run in `nursery`."""

    def __init__(self, client: FileClient, nursery: trio.Nursery, options: FsOptions) -> None:
        self._client = client
        self._nursery = nursery
        self._options = options
        self._inodes = InodeTable()
        self.watch = Watch(client.env.metrics, self._inodes)
        self._files: HandleTable[OpenFile] = HandleTable()
        self._open_names = OpenNames()
        self._folders = Folders()
        self._walks = Walks()
        self._opening = 0  # opens whose answer has not come
        self._removing: dict[Name, trio.Event] = {}  # names that are being removed without a hold
        self._read_ahead = ReadAhead(client, nursery, options.read_ahead, options.read_cache)
        self._write_buffers = WriteBuffers(options.write_behind)
        self._buffered: dict[int, WriteBehind] = {}
        self._forget_attributes: Callable[[int], None] = lambda inode: None
        self._forget_pages: Callable[[int], Awaitable[None]] = _nothing
        self.ring_room = trio.CapacityLimiter(RING_WRITES_AT_ONCE)
        self._ring_buffers = BufferPool()

    def use_options(self, options: FsOptions) -> None:
        """From now on."""
        self._options = options
        self._write_buffers.limit = options.write_behind
        self._read_ahead.use(options.read_ahead, options.read_cache)

    def use_kernel(
        self,
        store: KernelStore,
        forget_attributes: Callable[[int], None],
        forget_pages: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Let hot blocks be handed to the kernel's page cache, and the kernel be told of which inode attributes changed, or
        pages and attributes."""
        self._read_ahead.kernel_store = store
        self._forget_attributes = forget_attributes
        self._forget_pages = forget_pages or _nothing

    def _told(self, attr: Attr, parent: int, name: bytes, age_s: float = 0.0) -> Attr:
        """The kernel is told of a name. age_s: since meta was asked for its attributes, where that was not for this."""
        attr = self._buffered_view(attr)
        known = self._inodes.told(attr.inode, (parent, name))
        if known.lookups == 1:
            known.length = attr.length
        known.bare_since = -math.inf if attr.xattrs else self._client.env.monotonic() - age_s
        known.show(attr)
        if attr.kind is FileKind.FILE:
            self._open_names.seen(attr.inode, (parent, name), attr.nlink)
        return attr

    def _buffered_view(self, attr: Attr) -> Attr:
        """`attr` with the length that buffered writes give it."""
        buffered = self._buffered.get(attr.inode) if self._buffered else None
        return attr if buffered is None else buffered.view(attr)

    async def _settle(self, inode: int) -> None:
        buffered = self._buffered.get(inode)
        if buffered is not None:
            await buffered.settle()

    async def _drain(self, entry: OpenFile) -> None:
        buffered = self._buffered.get(entry.file.inode.id)
        if buffered is not None:
            await buffered.drain(entry.told)
