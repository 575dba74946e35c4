"""Holes and copies: what fallocate(2), lseek(2) and copy_file_range(2) do on a local file system, for files that are open at
a FileClient. A mount cannot offer all of it, since its kernel is not asked.

Holes are found by chunks: one that is absent is a hole, and so is what lies behind a chunk's end. A hole inside of a chunk
takes no space, but counts as data here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from ..errors import Code, FS3Error
from ..ids import ChunkId
from ..layout import FILE_LENGTH_MAX, Extent, split
from .each import each
from .file import FileClient, FileHandle
from .inode import OpenInode

Range = tuple[int, int]
"""(offset, length), in bytes."""

COPY_BYTES = 8 * 1024 * 1024
"""Of one piece of a copy, at most."""
COPIES_IN_FLIGHT = 8
CHUNKS_IN_FLIGHT = 16
WINDOW_CHUNKS = 65_536
"""Chunks whose state is asked for at a time."""


def _check(offset: int, length: int) -> int:
    """The end of a range. Raises INVALID, FILE_TOO_LARGE."""
    if offset < 0 or length < 0:
        raise FS3Error(Code.INVALID, f"a range of {length} bytes at {offset}")
    if offset + length > FILE_LENGTH_MAX:
        raise FS3Error(Code.FILE_TOO_LARGE, f"a range of {length} bytes at {offset}")
    return offset + length


async def data_ranges(client: FileClient, handle: FileHandle, offset: int = 0, length: int | None = None) -> list[Range]:
    """What is data in a range of a file, in order; the rest of it, up to the file's end, are holes."""
    return [found async for found in _data(client, handle.inode, offset, length)]


async def _data(client: FileClient, state: OpenInode, offset: int, length: int | None) -> AsyncIterator[Range]:
    end = (await client.getattr(state.id)).length
    if length is not None:
        end = min(end, _check(offset, length))
    begin = joined = -1
    async for index, size in _chunks(client, state, offset, end):
        low = max(offset, index * state.chunk_size)
        high = min(end, index * state.chunk_size + size)
        if low >= high:
            continue
        if low != joined:
            if begin >= 0:
                yield begin, joined - begin
            begin = low
        joined = high
    if begin >= 0:
        yield begin, joined - begin


async def _chunks(client: FileClient, state: OpenInode, offset: int, end: int) -> AsyncIterator[tuple[int, int]]:
    """(index, length) of the chunks that there are in a range of a file, in order."""
    at, stop = max(0, offset) // state.chunk_size, -(-end // state.chunk_size)
    while at < stop:
        found, known = await _window(client, state, at, stop)
        for index in sorted([index for index in found if index < known]):
            yield index, found[index]
        at = known


async def _window(client: FileClient, state: OpenInode, at: int, stop: int) -> tuple[dict[int, int], int]:
    """The lengths of chunks from index `at` on, and the index below which they are all that there are: `stop`, or at least
    WINDOW_CHUNKS farther."""
    found: dict[int, int] = {}
    known = stop
    chains = state.chains
    timeout_s = client.settings.io_timeout / 1000

    async def ask(chain: int) -> None:
        nonlocal known
        first = at
        while 0 <= first < min(known, at + WINDOW_CHUNKS):
            deadline = client.env.monotonic() + timeout_s
            some, first = await client.storage.chunk_lengths(chain, state.id, first, deadline=deadline)
            found.update(some)
        if first >= 0:
            known = min(known, first)

    wanted = range(at, min(stop, at + len(chains)))
    await each([chains[index % len(chains)] for index in wanted], ask, CHUNKS_IN_FLIGHT)
    return found, known


async def punch(client: FileClient, handle: FileHandle, offset: int, length: int) -> None:
    """Make a range a hole: zeros that take no space. The file's length stays, as with FALLOC_FL_PUNCH_HOLE.

    Raises BAD_HANDLE where the file is not open for writing.
    """
    state = _writable(handle)
    end = _check(offset, length)
    await client.flush(handle)  # else the end of the file could go with its last chunk, should this client die now
    end = min(end, (await client.getattr(state.id)).length)
    last = (state.length - 1) // state.chunk_size
    extents = [
        extent
        async for index, size in _chunks(client, state, offset, end)
        for extent in _within(state, offset, end, index)
        if extent.offset < size
    ]

    async def one(extent: Extent) -> None:
        chunk = ChunkId(state.id, extent.index)
        deadline = client.env.monotonic() + client.settings.io_timeout / 1000
        if extent.length == state.chunk_size and extent.index < last:
            await client.storage.remove_chunk(extent.chain, chunk, deadline=deadline)
        else:
            size = state.chunk_size
            await client.storage.punch(extent.chain, chunk, extent.offset, extent.length, size, deadline=deadline)
        state.wrote(extent.file_offset, extent.length, client.env.wall_ns())

    try:
        await each(extents, one, CHUNKS_IN_FLIGHT)
    except BaseException:
        state.wrote_in_part()
        raise
    finally:
        if extents:
            state.sparse = True


def _within(state: OpenInode, offset: int, end: int, index: int) -> list[Extent]:
    """The part of one chunk that lies in a range."""
    low, high = max(offset, index * state.chunk_size), min(end, (index + 1) * state.chunk_size)
    return list(split(state.layout, state.chains, low, high - low)) if low < high else []


async def zero_range(client: FileClient, handle: FileHandle, offset: int, length: int, *, keep_size: bool = False) -> None:
    """Make a range zeros that take no space, and the file longer where that needs it unless keep_size, as with
    FALLOC_FL_ZERO_RANGE."""
    _writable(handle)
    end = _check(offset, length)
    if not keep_size:
        await _grow(client, handle, end)  # first, since the chunk with the file's end stays
    await punch(client, handle, offset, length)


async def allocate(client: FileClient, handle: FileHandle, offset: int, length: int, *, keep_size: bool = False) -> None:
    """Make the file at least so long that it has this range, unless keep_size, as fallocate(2) does. No space is reserved:
    it is looked whether there is enough. Raises NO_SPACE."""
    state = _writable(handle)
    end = _check(offset, length)
    missing = length - sum([size for _, size in await data_ranges(client, handle, offset, length)])
    space = await client.space()
    if missing > space.capacity - space.used:
        raise FS3Error(Code.NO_SPACE, f"inode {state.id}: {missing} bytes more, {space.capacity - space.used} are free")
    if not keep_size:
        await _grow(client, handle, end)


async def _grow(client: FileClient, handle: FileHandle, end: int) -> None:
    """Make the file at least so long. Never shorter, whatever others do meanwhile."""
    state = handle.inode
    if (await client.getattr(state.id)).length < end:
        state.wrote(end, 0, client.env.wall_ns())
        await client.flush(handle)


async def copy_range(
    client: FileClient, source: FileHandle, offset: int, target: FileHandle, target_offset: int, length: int
) -> int:
    """Copy a range of a file into another place or file, holes as holes, several pieces at once; the bytes come through this
    process, and no kernel. Returns how many bytes there were, as copy_file_range(2), but never fewer than the file has.

    Raises INVALID where source and target overlap, BAD_HANDLE where the target is not open for writing.
    """
    state = _writable(target)
    end = min(_check(offset, length), (await client.getattr(source.inode.id)).length)
    length = max(0, end - offset)
    _check(target_offset, length)
    if source.inode.id == state.id and abs(offset - target_offset) < length:
        raise FS3Error(Code.INVALID, f"inode {state.id}: the ranges overlap")
    if not length:
        return 0
    shift = target_offset - offset
    pieces: list[Range] = []
    at = offset
    async for begin, size in _data(client, source.inode, offset, length):
        await _clear(client, target, at + shift, begin - at)
        pieces += _pieces(state, begin + shift, size)
        at = begin + size
        if len(pieces) >= WINDOW_CHUNKS:
            await _copy(client, source, target, shift, pieces)
            pieces = []
    await _copy(client, source, target, shift, pieces)
    await _clear(client, target, at + shift, end - at)
    await _grow(client, target, end + shift)
    return length


async def _clear(client: FileClient, target: FileHandle, offset: int, length: int) -> None:
    """Where the source has a hole, the target gets one."""
    if length > 0 and offset < target.inode.length:
        await punch(client, target, offset, length)


def _pieces(state: OpenInode, offset: int, length: int) -> list[Range]:
    """A range cut at the borders of the target's chunks, and into pieces that are not too large."""
    step = min(COPY_BYTES, state.chunk_size)
    found = []
    end = offset + length
    while offset < end:
        size = min(end - offset, step - offset % step)
        found.append((offset, size))
        offset += size
    return found


async def _copy(client: FileClient, source: FileHandle, target: FileHandle, shift: int, pieces: list[Range]) -> None:
    async def one(piece: Range) -> None:
        offset, size = piece
        into = memoryview(bytearray(size))
        await client.read_chunks(source.inode, offset - shift, into)
        await client.write(target, offset, into)

    await each(pieces, one, COPIES_IN_FLIGHT)


def _writable(handle: FileHandle) -> OpenInode:
    if not handle.writable or handle.append:
        raise FS3Error(Code.BAD_HANDLE, "the file is not open for writing, or only to append")
    return handle.inode
