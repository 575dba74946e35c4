"""Many ranges of open files at once, straight into and from their callers' memory: for those who gather requests themselves,
such as the rings of a mount. Nothing is opened or closed here, and one item's error is no other's."""

from __future__ import annotations

from collections.abc import Sequence

from ..checksum import Buffer
from ..errors import Code, FS3Error
from ..ids import ChunkId
from ..layout import FILE_LENGTH_MAX, split
from .each import each
from .file import FileClient, FileHandle
from .reading import ChunkRead

Read = tuple[FileHandle, int, memoryview]
"""An open file, an offset in bytes, and where as many bytes as fit there are to go."""
Write = tuple[FileHandle, int, Buffer]
Result = int | FS3Error
"""How many bytes were read or written, or why not."""

ASK_AT_ONCE = 16
WRITES_AT_ONCE = 16


async def read_many(client: FileClient, items: Sequence[Read]) -> list[Result]:
    """Read each item into its memory; how many bytes there were, fewer than asked for only at the end of the file.

    Errors of items, in their places: BAD_HANDLE (closed), INVALID (offset below 0), STALE_HANDLE (the file is gone), and
    what storage raises. Where an item failed, its memory holds anything. Cancelled, nothing writes to the memory any more.
    """
    results: list[Result] = [0] * len(items)
    past: list[int] = []
    reads: list[ChunkRead] = []
    owners: list[int] = []
    for position, (handle, offset, into) in enumerate(items):
        if handle.closed:
            results[position] = FS3Error(Code.BAD_HANDLE, f"inode {handle.inode.id} was closed")
        elif offset < 0:
            results[position] = FS3Error(Code.INVALID, f"offset {offset}")
        elif offset + len(into) > handle.inode.length:
            past.append(position)
        elif len(into):
            results[position] = len(into)
            _cut(items[position], into, position, reads, owners)
    if past:
        await _learn_lengths(client, items, past, results)
        for position in past:
            if isinstance(results[position], FS3Error):
                continue
            handle, offset, into = items[position]
            count = results[position] = max(0, min(len(into), handle.inode.length - offset))
            if count:
                _cut(items[position], into[:count], position, reads, owners)
    if reads:
        await _read(client, items, reads, owners, results)
    return results


def _cut(item: Read, into: memoryview, position: int, reads: list[ChunkRead], owners: list[int]) -> None:
    """Make the reads of an item's chunks."""
    state, offset = item[0].inode, item[1]
    size, chains = state.chunk_size, state.chains
    index, within = divmod(offset, size)
    if within + len(into) <= size:
        reads.append(ChunkRead(chains[index % len(chains)], ChunkId(state.id, index), within, into))
        owners.append(position)
        return
    for extent in split(state.layout, chains, offset, len(into)):
        start = extent.file_offset - offset
        view = into[start : start + extent.length]
        reads.append(ChunkRead(extent.chain, ChunkId(state.id, extent.index), extent.offset, view))
        owners.append(position)


async def _learn_lengths(client: FileClient, items: Sequence[Read], past: list[int], results: list[Result]) -> None:
    """Ask how long files are that items seem to reach behind: others may have made them longer."""
    positions: dict[int, list[int]] = {}  # by inode
    for position in past:
        positions.setdefault(items[position][0].inode.id, []).append(position)

    async def ask(inode: int) -> None:
        try:
            await client.getattr(inode)  # this updates what its handles know
        except FS3Error as error:
            for position in positions[inode]:
                results[position] = error

    await each(positions, ask, ASK_AT_ONCE)


async def _read(
    client: FileClient, items: Sequence[Read], reads: list[ChunkRead], owners: list[int], results: list[Result]
) -> None:
    deadline = client.env.monotonic() + client.settings.io_timeout / 1000
    errors: dict[int, FS3Error] = {}
    lengths = await client.storage.read(reads, deadline=deadline, errors=errors)
    if sum(lengths) < sum([len(read.into) for read in reads]):
        # Holes, where the files are still there and nobody has cut them.
        short = [owners[at] for at, read in enumerate(reads) if lengths[at] < len(read.into) and at not in errors]
        await _learn_lengths(client, items, short, results)
    for at, error in errors.items():
        results[owners[at]] = error


async def write_many(client: FileClient, items: Sequence[Write]) -> list[Result]:
    """Write each item, several at once and in no order; those that overlap must not be in one call. What an item that
    succeeded wrote is in memory of every serving replica.

    Errors of items, in their places: BAD_HANDLE (closed, or not open for writing), INVALID (offset below 0), FILE_TOO_LARGE,
    STALE_HANDLE, NO_SPACE and what else FileClient.write raises.
    """
    results: list[Result] = [0] * len(items)

    async def write(position: int) -> None:
        handle, offset, data = items[position]
        try:
            if handle.closed or not handle.writable:
                raise FS3Error(Code.BAD_HANDLE, f"inode {handle.inode.id} is not open for writing")
            if offset < 0:
                raise FS3Error(Code.INVALID, f"offset {offset}")
            if offset + len(data) > FILE_LENGTH_MAX:
                raise FS3Error(Code.FILE_TOO_LARGE, f"{len(data)} bytes at {offset}")
            results[position] = await client.write(handle, offset, data)
        except FS3Error as error:
            results[position] = error

    if items:
        await each(range(len(items)), write, WRITES_AT_ONCE)
    return results
