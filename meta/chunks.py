"""What the metadata service asks of the storage service: whole files on all their chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fs3.client.each import each
from fs3.client.storage import StorageClient
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag
from fs3.layout import FileLayout, file_chains
from fs3.routing import RoutingInfo

CHAINS_AT_ONCE = 16


class ChunkStore(Protocol):
    """The chunks of files. bound: no chunk holds bytes at or behind it; -1: not known. deadline: env.monotonic() seconds.

    Each call is done on all chains concerned when it returns, and raises FS3Error when it could not be done by then; it may
    be repeated.
    """

    async def remove(self, inode: int, layout: FileLayout, bound: int, *, deadline: float) -> None:
        """Remove all chunks of a file."""

    async def truncate(
        self, inode: int, layout: FileLayout, length: int, bound: int, version: int, *, deadline: float
    ) -> None:
        """Remove all bytes at and behind `length`. Adds none.

        version: of this truncation, of which no other one of the file has the like. Daemons that do the same truncation do
        it once together: what one of them has sent and given up must not cut off what was written after another was done.
        """

    async def file_length(self, inode: int, layout: FileLayout, *, deadline: float) -> int:
        """The end of the last byte that the chains hold."""


def chains_of(layout: FileLayout, table: tuple[int, ...], first_index: int, bound: int) -> dict[int, int]:
    """The chains that may hold chunks from first_index on: chain -> the first such chunk on it."""
    chains = file_chains(layout, table)
    count = len(chains)
    end = first_index + count
    if bound >= 0:
        end = min(end, -(-bound // layout.chunk_size))
    return {chains[index % count]: index for index in range(first_index, end)}


class RoutedChunks:
    """A ChunkStore over the storage daemons that the routing info names."""

    def __init__(
        self, storage: StorageClient, routing: Callable[[], RoutingInfo], holds: Callable[[], bool] = lambda: True
    ) -> None:
        """holds: whether this daemon's lease still holds, so that nobody else can be at its work."""
        self._holds = holds
        self._storage = storage
        self._routing = routing

    def _table(self, layout: FileLayout) -> tuple[int, ...]:
        table = self._routing().tables.get(layout.table)
        chains = table.chains_at(layout.table_version) if table is not None else None
        if chains is None:
            what = f"version {layout.table_version} of chain table {layout.table}"
            raise FS3Error(Code.NO_ROUTING, f"{what} is not in the routing info")
        return chains

    async def remove(self, inode: int, layout: FileLayout, bound: int, *, deadline: float) -> None:
        async def one(chain: int) -> None:
            await self._storage.remove_file(chain, inode, 0, deadline=deadline)

        await each(chains_of(layout, self._table(layout), 0, bound), one, CHAINS_AT_ONCE)

    async def truncate(
        self, inode: int, layout: FileLayout, length: int, bound: int, version: int, *, deadline: float
    ) -> None:
        table = self._table(layout)
        index, rest = divmod(length, layout.chunk_size)
        first = index + (rest > 0)

        async def one(chain: int) -> None:
            await self._storage.remove_file(chain, inode, first, deadline=deadline, tag=_tag(inode, version, 0))

        await each(chains_of(layout, table, first, bound), one, CHAINS_AT_ONCE)
        if rest:
            chains = file_chains(layout, table)
            chain = chains[index % len(chains)]
            found = await self._storage.query(chain, inode, index, deadline=deadline)
            if not self._holds():  # another one may have done it all, and what is found here be written since then
                raise FS3Error(Code.SHUTTING_DOWN, "this daemon's lease is over")
            if found.last_index == index and found.last_length > rest:
                chunk, tag = ChunkId(inode, index), _tag(inode, version, 1)
                await self._storage.truncate(chain, chunk, rest, layout.chunk_size, deadline=deadline, tag=tag)

    async def file_length(self, inode: int, layout: FileLayout, *, deadline: float) -> int:
        longest = 0

        async def one(chain: int) -> None:
            nonlocal longest
            found = await self._storage.query(chain, inode, deadline=deadline)
            if found.last_index >= 0:
                longest = max(longest, found.last_index * layout.chunk_size + found.last_length)

        await each(file_chains(layout, self._table(layout)), one, CHAINS_AT_ONCE)
        return longest


def _tag(inode: int, version: int, step: int) -> RequestTag:
    """Names a step of a truncation for all daemons that may do it. Ids of clients are odd, so that this is nobody's. Each
    step has a channel of its own: when the second is done, the first may still be asked for again."""
    return RequestTag(2 * inode, 2 * version + step, 1)
