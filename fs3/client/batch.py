"""Many ranges of many files in one call, for those who load data: read_batch and write_batch of fs3.client.paths and .sync.

Ranges are gathered by the chains that they lie on and go out in few requests for each storage daemon. What is under way, and
what is known of files, is bounded, however long the batch.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import trio

from ..api.meta import Access, Attr, Caller, FileKind
from ..checksum import Buffer
from ..errors import Code, FS3Error
from ..ids import ChunkId, NodeKind
from ..layout import split
from .each import each
from .file import FileClient, FileHandle
from .inode import OpenInode
from .reading import ChunkRead

WINDOW_ITEMS = 4096
WINDOW_BYTES = 1024 * 1024 * 1024
"""Items are looked at so many at a time, and as long as their bytes do not come to more (but for a single one)."""
FILES_OPEN_MAX = 8192
"""Files known by path that stay open from one window to the next."""
OPENS_AT_ONCE = 16
SLICE_READS_PER_NODE, SLICE_READS_MIN = 128, 256
SLICE_BYTES = 8 * 1024 * 1024
"""Reads that are asked for together."""
SLICES_AT_ONCE = 4
GATHER_FROM_NODES = 4
"""With more storage daemons than this the reads of a window are sorted, so that a slice goes to few of them."""
WRITES_AT_ONCE = 16


class Opened(Protocol):
    """An open file: fs3.client.paths.AsyncFile."""

    @property
    def handle(self) -> FileHandle: ...


Resolve = Callable[[str], Awaitable[Attr]]
"""From a path to what it leads to."""
Range = tuple[str | Opened, int, int]
"""A path or an open file, offset, length, in bytes."""
Result = int | FS3Error
"""Bytes read or written, or why not."""


def writable(buffer: Any) -> memoryview:
    """The bytes of anything that lends its memory for writing (bytearray, memoryview, numpy array, mmap, shared memory).

    Raises TypeError where it lends none, ValueError where it is read-only or not contiguous.
    """
    view = memoryview(buffer)
    if view.readonly:
        raise ValueError("this buffer is read-only; read into a bytearray, a numpy array or the like")
    if not view.c_contiguous:
        raise ValueError("this buffer is not contiguous; read into one that is, and copy")
    if view.format == "B" and view.ndim == 1:
        return view
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def readable(buffer: Any) -> Buffer:
    """The bytes of anything that lends its memory. Raises TypeError, and ValueError where it is not contiguous."""
    if isinstance(buffer, (bytes, bytearray)):
        return buffer
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError("this buffer is not contiguous; write a copy of it")
    if view.format == "B" and view.ndim == 1:
        return view
    return view.cast("B") if view.nbytes else b""


def pieces(items: Sequence[Range], into: Any) -> list[memoryview]:
    """The buffer of each item: one behind the other in a single buffer, or its own in a list of them.

    Raises TypeError, ValueError as `writable`, and ValueError where there is no room for an item.
    """
    if not isinstance(into, (list, tuple)):
        view = writable(into)
        needed = sum([length for _, _, length in items])
        if len(view) < needed:
            raise ValueError(f"the ranges need a buffer of {needed} bytes, this one has {len(view)}")
        found = []
        at = 0
        for _, _, length in items:
            found.append(view[at : at + length])
            at += length
        return found
    if len(into) != len(items):
        raise ValueError(f"{len(items)} ranges need as many buffers, these are {len(into)}")
    views = [writable(buffer) for buffer in into]
    for number, (view, (_, _, length)) in enumerate(zip(views, items, strict=True)):
        if len(view) < length:
            raise ValueError(f"range {number} needs a buffer of {length} bytes, its own has {len(view)}")
    return views


class Files:
    """Files by path, each opened once: what somebody writes later than that may or may not be seen, and what was closed
    before is. Folders are looked up once, too."""

    def __init__(self, client: FileClient, caller: Caller, resolve: Resolve, access: Access) -> None:
        self._client = client
        self._caller = caller
        self._resolve = resolve
        self._access = access
        self._folders: dict[str, Attr | FS3Error] = {}
        self._known: dict[str, FileHandle | FS3Error] = {}

    def __getitem__(self, path: str) -> FileHandle | FS3Error:
        return self._known[path]

    async def learn(self, paths: set[str]) -> None:
        """Open those that are not open yet. What cannot be opened is kept as its error."""
        fresh = [path for path in paths if path not in self._known]
        if len(self._known) + len(fresh) > FILES_OPEN_MAX:
            await self.close()
            fresh = list(paths)
        folders = {path.rpartition("/")[0] for path in fresh}
        await each([folder for folder in folders if folder not in self._folders], self._learn_folder, OPENS_AT_ONCE)
        await each(fresh, self._open, OPENS_AT_ONCE)

    async def _learn_folder(self, folder: str) -> None:
        try:
            self._folders[folder] = await self._resolve(folder)
        except FS3Error as error:
            self._folders[folder] = error

    async def _open(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        parent = self._folders[folder]
        try:
            if isinstance(parent, FS3Error):
                raise parent
            if name in ("", ".", ".."):
                attr = await self._resolve(path)
            else:
                attr = await self._client.lookup(self._caller, parent.inode, os.fsencode(name))
                if attr.kind is FileKind.SYMLINK:
                    attr = await self._resolve(path)
            self._known[path] = await self._client.open(self._caller, attr.inode, self._access)
        except FS3Error as error:
            self._known[path] = FS3Error(error.code, f"{path}: {error.message}")

    async def close(self) -> list[tuple[str, FS3Error]]:
        """Close and forget all; returns what closing met."""
        known, self._known = self._known, {}
        self._folders.clear()
        failed = []
        for path, handle in known.items():
            if isinstance(handle, FileHandle):
                try:
                    await self._client.close(handle)
                except FS3Error as error:
                    failed.append((path, error))
        return failed


class _Place:
    """Where a file's bytes lie, at hand for many ranges."""

    __slots__ = ("chains", "chunks", "confirmed", "length", "size", "state")

    def __init__(self, state: OpenInode, confirmed: bool) -> None:
        self.state = state
        self.size = state.chunk_size
        self.chains = state.chains
        self.length = state.length
        self.confirmed = confirmed  # meta told the length during this batch
        self.chunks: dict[int, ChunkId] = {}


class _Reading:
    """One batch on its way."""

    def __init__(self, client: FileClient, files: Files, items: Sequence[Range], into: Sequence[memoryview]) -> None:
        self.results: list[Result] = [0] * len(items)
        self._client = client
        self._files = files
        self._items = items
        self._into = into
        self._next = 0
        self._slices: list[tuple[list[ChunkRead], list[int]]] = []  # reads, and the items that they belong to; last first
        self._lock = trio.Lock()  # around the making of slices
        self._places: dict[str | Opened, _Place | FS3Error] = {}
        nodes = len(client.storage.mgmtd.routing.nodes_of(NodeKind.STORAGE))
        self._gather = nodes > GATHER_FROM_NODES
        self._slice_reads = max(SLICE_READS_MIN, SLICE_READS_PER_NODE * nodes)

    async def run(self) -> None:
        if len(self._items) <= SLICE_READS_MIN:
            await self._work()
            return
        async with trio.open_nursery() as nursery:
            for _ in range(SLICES_AT_ONCE):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            async with self._lock:
                while not self._slices and self._next < len(self._items):
                    await self._plan()
                if not self._slices:
                    return
                reads, owners = self._slices.pop()
            await self._read(reads, owners)

    async def _plan(self) -> None:
        """Make the slices of the next items."""
        items = self._items
        first = last = self._next
        size = 0
        while last < len(items) and last - first < WINDOW_ITEMS and (size < WINDOW_BYTES or last == first):
            size += items[last][2]
            last += 1
        self._next = last
        await self._learn({items[position][0] for position in range(first, last)})
        reads: list[ChunkRead] = []
        owners: list[int] = []
        past = self._cut(range(first, last), reads, owners)
        if past:
            await self._lengths({items[position][0] for position in past})
            self._cut(past, reads, owners)
        if self._gather and len(reads) > self._slice_reads:
            order = sorted(range(len(reads)), key=lambda number: reads[number].chain)
            reads, owners = [reads[number] for number in order], [owners[number] for number in order]
        self._slices = _sliced(reads, owners, self._slice_reads)[::-1]

    async def _learn(self, sources: set[str | Opened]) -> None:
        """Know where the bytes of these lie."""
        self._places.clear()
        paths = {source for source in sources if isinstance(source, str)}
        await self._files.learn(paths)
        for source in sources:
            handle = self._files[source] if isinstance(source, str) else source.handle
            if isinstance(handle, FileHandle) and handle.closed:
                handle = FS3Error(Code.BAD_HANDLE, f"inode {handle.inode.id} was closed")
            if isinstance(handle, FS3Error):
                self._places[source] = handle
            else:
                self._places[source] = _Place(handle.inode, isinstance(source, str))

    async def _lengths(self, sources: set[str | Opened]) -> None:
        """Ask how long files are that items seem to reach behind: others may have made them longer."""

        async def ask(source: str | Opened) -> None:
            place = self._places[source]
            assert isinstance(place, _Place)
            try:
                await self._client.getattr(place.state.id)  # this updates state
                place.length, place.confirmed = place.state.length, True
            except FS3Error as error:
                self._places[source] = error

        await each(sources, ask, OPENS_AT_ONCE)

    def _cut(self, positions: Sequence[int], reads: list[ChunkRead], owners: list[int]) -> list[int]:
        """Make the reads of these items. Returns those that end behind the end of their file, as far as we know it."""
        past = []
        items, into, results, places = self._items, self._into, self.results, self._places
        for position in positions:
            source, offset, length = items[position]
            place = places[source]
            if not isinstance(place, _Place):
                results[position] = place
                continue
            if offset < 0 or length < 0:
                results[position] = FS3Error(Code.INVALID, f"range {position}: {length} bytes at {offset}")
                continue
            if offset + length > place.length:
                if not place.confirmed:
                    past.append(position)
                    continue
                length = max(0, place.length - offset)
            results[position] = length
            if length == 0:
                continue
            size = place.size
            index, within = divmod(offset, size)
            if within + length <= size:
                chunk = place.chunks.get(index)
                if chunk is None:
                    chunk = place.chunks[index] = ChunkId(place.state.id, index)
                view = into[position]
                chains = place.chains
                chain = chains[index % len(chains)]
                reads.append(ChunkRead(chain, chunk, within, view if len(view) == length else view[:length]))
                owners.append(position)
                continue
            for extent in split(place.state.layout, place.chains, offset, length):
                start = extent.file_offset - offset
                view = into[position][start : start + extent.length]
                reads.append(ChunkRead(extent.chain, ChunkId(place.state.id, extent.index), extent.offset, view))
                owners.append(position)
        return past

    async def _read(self, reads: list[ChunkRead], owners: list[int]) -> None:
        client = self._client
        errors: dict[int, FS3Error] = {}
        deadline = client.env.monotonic() + client.settings.io_timeout / 1000
        lengths = await client.storage.read(reads, deadline=deadline, errors=errors)
        if sum(lengths) < sum([len(read.into) for read in reads]):
            await self._confirm(reads, lengths, errors)
        for number, error in errors.items():
            self.results[owners[number]] = error

    async def _confirm(self, reads: list[ChunkRead], lengths: list[int], errors: dict[int, FS3Error]) -> None:
        """Where chunks had fewer bytes than there should be: a hole, if the file is still there and nobody has cut it."""
        short: dict[int, list[int]] = {}  # by inode
        for number, (read, length) in enumerate(zip(reads, lengths, strict=True)):
            if length < len(read.into) and number not in errors:
                short.setdefault(read.chunk.inode, []).append(number)

        async def ask(inode: int) -> None:
            try:
                await self._client.getattr(inode)
            except FS3Error as error:
                errors.update(dict.fromkeys(short[inode], error))

        await each(short, ask, OPENS_AT_ONCE)


def _sliced(reads: list[ChunkRead], owners: list[int], count_max: int) -> list[tuple[list[ChunkRead], list[int]]]:
    """Cut into parts of so many reads, and of SLICE_BYTES."""
    slices = []
    first = size = 0
    for number, read in enumerate(reads):
        if number - first == count_max or size > SLICE_BYTES:
            slices.append((reads[first:number], owners[first:number]))
            first, size = number, 0
        size += len(read.into)
    if first < len(reads):
        slices.append((reads[first:], owners[first:]))
    return slices


async def read_batch(
    client: FileClient, caller: Caller, resolve: Resolve, items: Sequence[Range], into: Sequence[memoryview]
) -> list[Result]:
    """Read every item into its buffer, which is at least as long as the item."""
    files = Files(client, caller, resolve, Access.READ)
    reading = _Reading(client, files, items, into)
    try:
        await reading.run()
    finally:
        await files.close()  # a file that is open for reading only is closed without waiting
    return reading.results


async def fetch_batch(
    client: FileClient, caller: Caller, resolve: Resolve, items: Sequence[tuple[str | Opened, int, int | None]]
) -> list[memoryview | FS3Error]:
    """Read every item into fresh memory. Length None: to the end of the file."""
    found: list[memoryview | FS3Error] = []
    files = Files(client, caller, resolve, Access.READ)
    try:
        for first in range(0, len(items), WINDOW_ITEMS):
            window = items[first : first + WINDOW_ITEMS]
            await files.learn({source for source, _, length in window if length is None and isinstance(source, str)})
            ranges: list[Range] = []
            for source, offset, length in window:
                ranges.append((source, offset, await _rest(client, files, source, offset) if length is None else length))
            buffers = [memoryview(bytearray(max(0, length))) for _, _, length in ranges]
            reading = _Reading(client, files, ranges, buffers)
            await reading.run()
            for view, result in zip(buffers, reading.results, strict=True):
                found.append(result if isinstance(result, FS3Error) else view[:result])
    finally:
        await files.close()
    return found


async def _rest(client: FileClient, files: Files, source: str | Opened, offset: int) -> int:
    """Bytes behind an offset; 0 where reading will say what is wrong."""
    if isinstance(source, str):
        handle = files[source]
        return max(0, handle.inode.length - offset) if isinstance(handle, FileHandle) else 0
    try:
        return max(0, (await client.getattr(source.handle.inode.id)).length - offset)
    except FS3Error:
        return 1  # so that reading meets the error as well


async def write_batch(
    client: FileClient, caller: Caller, resolve: Resolve, items: Sequence[tuple[str | Opened, int, Any]]
) -> list[Result]:
    """Write every item, several at once; no order among them. Files given by path must exist, and are closed at the end."""
    files = Files(client, caller, resolve, Access.WRITE)
    results: list[Result] = [0] * len(items)

    async def write(position: int) -> None:
        source, offset, data = items[position]
        handle = files[source] if isinstance(source, str) else source.handle
        if isinstance(handle, FS3Error):
            results[position] = handle
            return
        try:
            if offset < 0:
                raise FS3Error(Code.INVALID, f"item {position}: offset {offset}")
            if handle.closed or not handle.writable:
                raise FS3Error(Code.BAD_HANDLE, f"inode {handle.inode.id} is not open for writing")
            results[position] = await client.write(handle, offset, readable(data))
        except FS3Error as error:
            results[position] = error

    failed: list[tuple[str, FS3Error]] = []
    for first in range(0, len(items), WINDOW_ITEMS):
        window = range(first, min(first + WINDOW_ITEMS, len(items)))
        try:
            await files.learn({source for source, _, _ in items[window.start : window.stop] if isinstance(source, str)})
            await each(window, write, WRITES_AT_ONCE)
        finally:
            failed += await files.close()
    by_path = dict(failed)
    for position, (source, _, _) in enumerate(items):
        if isinstance(source, str) and source in by_path and not isinstance(results[position], FS3Error):
            results[position] = by_path[source]
    return results


def first_error(results: Sequence[object]) -> FS3Error | None:
    """What a strict caller is told."""
    return next((result for result in results if isinstance(result, FS3Error)), None)
