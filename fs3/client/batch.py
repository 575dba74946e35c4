"""Many ranges of many files in one call, for those who load data: read_batch and write_batch of fs3.client.paths and .sync.

Ranges go out in few requests for each storage daemon. What is under way, and what is known of files, is bounded, however
long the batch.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from ..api.meta import Access, Attr, Caller, FileKind
from ..checksum import Buffer
from ..errors import Code, FS3Error
from ..layout import split
from .each import each
from .file import FileClient, FileHandle
from .inode import OpenInode
from .many import Write, write_many
from .packed import Plan

WINDOW_ITEMS = 4096
WINDOW_BYTES = 1024 * 1024 * 1024
"""Items are looked at so many at a time, and as long as their bytes do not come to more (but for a single one)."""
FILES_OPEN_MAX = 8192
"""Files known by path that stay open from one window to the next."""
OPENS_AT_ONCE = 16


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

    __slots__ = ("chains", "confirmed", "length", "size", "state")

    def __init__(self, state: OpenInode, confirmed: bool) -> None:
        self.state = state
        self.size = state.chunk_size
        self.chains = state.chains
        self.length = state.length
        self.confirmed = confirmed  # meta told the length during this batch


class _Reading:
    """One batch on its way."""

    def __init__(self, client: FileClient, files: Files, items: Sequence[Range], into: Sequence[memoryview]) -> None:
        self.results: list[Result] = [0] * len(items)
        self._client = client
        self._files = files
        self._items = items
        self._into = into
        self._places: dict[str | Opened, _Place | FS3Error] = {}

    async def run(self) -> None:
        items = self._items
        first = 0
        while first < len(items):
            last = first
            size = 0
            while last < len(items) and last - first < WINDOW_ITEMS and (size < WINDOW_BYTES or last == first):
                size += items[last][2]
                last += 1
            await self._read_window(range(first, last))
            first = last

    async def _read_window(self, positions: Sequence[int]) -> None:
        items = self._items
        await self._learn({items[position][0] for position in positions})
        plan = self._client.storage.plan(len(positions))
        owners: list[int] = []  # the items that the plan's reads belong to
        past = self._cut(positions, plan, owners)
        if past:
            await self._lengths({items[position][0] for position in past})
            self._cut(past, plan, owners)
        await self._read(plan, owners)

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

    def _cut(self, positions: Sequence[int], plan: Plan, owners: list[int]) -> list[int]:
        """Plan to read these items. Returns those that end behind the end of their file, as far as we know it."""
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
            view = into[position]
            if len(view) != length:
                view = view[:length]
            state, size, chains = place.state, place.size, place.chains
            index, within = divmod(offset, size)
            if within + length <= size:
                plan.add(len(owners), chains[index % len(chains)], state.id, index, within, view, length)
                owners.append(position)
                continue
            for extent in split(state.layout, chains, offset, length):
                start = extent.file_offset - offset
                piece = view[start : start + extent.length]
                plan.add(len(owners), extent.chain, state.id, extent.index, extent.offset, piece, extent.length)
                owners.append(position)
        return past

    async def _read(self, plan: Plan, owners: list[int]) -> None:
        client = self._client
        errors: dict[int, FS3Error] = {}
        deadline = client.env.monotonic() + client.settings.io_timeout / 1000 + plan.patience_s()
        short = await client.storage.read_planned(plan, deadline=deadline, errors=errors)
        if short:
            await self._confirm([owners[number] for number in short if number not in errors])
        for number, error in errors.items():
            self.results[owners[number]] = error

    async def _confirm(self, positions: Iterable[int]) -> None:
        """Where chunks had fewer bytes than there should be: a hole, if the file is still there and nobody has cut it."""
        short: dict[int, list[int]] = {}  # by inode
        for position in positions:
            place = self._places[self._items[position][0]]
            assert isinstance(place, _Place)
            short.setdefault(place.state.id, []).append(position)

        async def ask(inode: int) -> None:
            try:
                await self._client.getattr(inode)
            except FS3Error as error:
                for position in short[inode]:
                    self.results[position] = error

        await each(short, ask, OPENS_AT_ONCE)


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

    async def write(window: range) -> None:
        some: list[Write] = []
        owners: list[int] = []
        for position in window:
            source, offset, data = items[position]
            handle = files[source] if isinstance(source, str) else source.handle
            if isinstance(handle, FS3Error):
                results[position] = handle
            else:
                some.append((handle, offset, readable(data)))
                owners.append(position)
        for position, result in zip(owners, await write_many(client, some), strict=True):
            results[position] = result

    failed: list[tuple[str, FS3Error]] = []
    for first in range(0, len(items), WINDOW_ITEMS):
        window = range(first, min(first + WINDOW_ITEMS, len(items)))
        try:
            await files.learn({source for source, _, _ in items[window.start : window.stop] if isinstance(source, str)})
            await write(window)
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
