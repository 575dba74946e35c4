"""Many ranges of open files at once, straight into and from their callers' memory: for those who gather requests themselves,
such as the rings of a mount. Nothing is opened or closed here, and one item's error is no other's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..checksum import Buffer
from ..errors import Code, FS3Error
from ..layout import FILE_LENGTH_MAX, split
from .each import each
from .file import FileClient, FileHandle
from .inode import OpenInode
from .packed import Plan

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
    results: list[Result] = [len(into) for _, _, into in items]
    past: list[int] = []
    owners = list(range(len(items)))  # of the plan's reads, which are as many at least
    plan = client.storage.plan(len(items))
    add = plan.add
    for position, (handle, offset, into) in enumerate(items):
        state = handle.inode
        length = len(into)
        if handle.closed:
            results[position] = FS3Error(Code.BAD_HANDLE, f"inode {state.id} was closed")
        elif offset < 0:
            results[position] = FS3Error(Code.INVALID, f"offset {offset}")
        elif offset + length > state.length:
            past.append(position)
        elif length:
            size, chains = state.chunk_size, state.chains
            index, within = divmod(offset, size)
            if within + length <= size:
                add(position, chains[index % len(chains)], state.id, index, within, into, length)
            else:
                _split(plan, owners, position, state, offset, into)
    if past:
        await _learn_lengths(client, items, past, results)
        for position in past:
            if isinstance(results[position], FS3Error):
                continue
            handle, offset, into = items[position]
            count = results[position] = max(0, min(len(into), handle.inode.length - offset))
            if count:
                _split(plan, owners, position, handle.inode, offset, into[:count])
    await _read(client, plan, owners, items, results)
    return results


def _split(plan: Plan, owners: list[int], position: int, state: OpenInode, offset: int, into: memoryview) -> None:
    """Add a read that may lie in several chunks."""
    at = 0
    for extent in split(state.layout, state.chains, offset, len(into)):
        view = into[at : at + extent.length]
        at += extent.length
        plan.add(len(owners), extent.chain, state.id, extent.index, extent.offset, view, extent.length)
        owners.append(position)


async def _learn_lengths(client: FileClient, items: Sequence[Read], positions: Iterable[int], results: list[Result]) -> None:
    """Ask how long the files of these are: others may have made them longer, or removed them."""
    by_inode: dict[int, list[int]] = {}
    for position in positions:
        by_inode.setdefault(items[position][0].inode.id, []).append(position)

    async def ask(inode: int) -> None:
        try:
            await client.getattr(inode)  # this updates what its handles know
        except FS3Error as error:
            for position in by_inode[inode]:
                results[position] = error

    await each(by_inode, ask, ASK_AT_ONCE)


async def _read(client: FileClient, plan: Plan, owners: list[int], items: Sequence[Read], results: list[Result]) -> None:
    deadline = client.env.monotonic() + client.settings.io_timeout / 1000 + plan.patience_s()
    errors: dict[int, FS3Error] = {}
    short = await client.storage.read_planned(plan, deadline=deadline, errors=errors)
    if short:
        # Holes, where the files are still there and nobody has cut them.
        await _learn_lengths(client, items, {owners[number] for number in short if number not in errors}, results)
    for number, error in errors.items():
        results[owners[number]] = error


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
