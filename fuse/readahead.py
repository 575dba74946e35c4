"""Reading ahead of sequential readers: whole blocks, several on their way at once, bounded for the whole mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from fs3.client.file import FileClient
from fs3.client.inode import OpenInode
from fs3.errors import Code, FS3Error

from .cache import BLOCK_MAX, HEAT_LIMIT, BlockCache, Heat, ReadWindow

KernelStore = Callable[[int, int, memoryview], Awaitable[None]]
"""Puts bytes of an inode, at an offset, into the kernel's page cache."""


class _Block:
    """Bytes on their way, or here. done: set once they came, or failed."""

    __slots__ = ("buffer", "done", "error", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.buffer: memoryview | None = None
        self.error: FS3Error | None = None
        self.done: trio.Event | None = trio.Event()


class ReadAhead:
    """Serves reads out of blocks that it fetched before they were asked for.

    depth: bytes that it is ahead of a reader. capacity: bytes of all blocks. Tasks run in `nursery`. kernel_store: set
    where there is a kernel.

    Random readers get what they ask for, until one block was asked for several times: then it is fetched whole and handed
    to the kernel's page cache.
    """

    def __init__(self, client: FileClient, nursery: trio.Nursery, depth: int, capacity: int) -> None:
        self._client = client
        self._nursery = nursery
        self._depth = depth
        self._cache: BlockCache[_Block] = BlockCache(capacity)
        self._heat = Heat(HEAT_LIMIT)
        self.kernel_store: KernelStore | None = None
        self._storing: dict[int, int] = {}  # inode -> blocks that are being handed to the kernel
        self._stored = trio.Event()

    def use(self, depth: int, capacity: int) -> None:
        """From now on."""
        self._depth, self._cache.capacity = depth, capacity
        self._cache.make_room(0)

    async def read(self, state: OpenInode, window: ReadWindow, offset: int, length: int) -> memoryview:
        """Bytes at `offset`, all of them before the end of the file. The result may share memory with a block."""
        sequential = window.observe(offset, length) and not self._client.env.rare("mount.readahead.off")
        size = min(state.chunk_size, BLOCK_MAX)
        first, last = offset // size, (offset + length - 1) // size
        if self._depth and sequential:
            self._start(state, size, first, last, window)
        elif self._depth and first == last and length < size and not self._cache.has(state.id, first):
            if not self._heat.count(state.id, first):
                return await self._direct(state, offset, length)
            self._fetch_hot(state, size, first)
        if first == last:
            block = self._cache.get(state.id, first)
            if block is None:
                return await self._direct(state, offset, length)
            buffer = await self._wait(state, first, block)
            within = offset - first * size
            if within + length <= len(buffer):
                return buffer[within : within + length]
            return await self._direct(state, offset, length)
        return await self._gather(state, size, offset, length)

    async def _gather(self, state: OpenInode, size: int, offset: int, length: int) -> memoryview:
        """A range over several blocks: copied together, with one direct read where any is missing."""
        blocks = []
        first, last = offset // size, (offset + length - 1) // size
        for index in range(first, last + 1):
            block = self._cache.get(state.id, index)
            if block is None:
                return await self._direct(state, offset, length)
            blocks.append((index, block))
        result = memoryview(bytearray(length))
        end = offset + length
        for index, block in blocks:
            buffer = await self._wait(state, index, block)
            start = max(offset, index * size)
            stop = min(end, index * size + size)
            if stop - index * size > len(buffer):
                return await self._direct(state, offset, length)  # the file grew since the block was fetched
            result[start - offset : stop - offset] = buffer[start - index * size : stop - index * size]
        return result

    async def _direct(self, state: OpenInode, offset: int, length: int) -> memoryview:
        into = memoryview(bytearray(length))
        await self._client.read_chunks(state, offset, into)
        return into

    async def _wait(self, state: OpenInode, index: int, block: _Block) -> memoryview:
        if block.done is not None:
            await block.done.wait()
        if block.error is not None:
            raise FS3Error(block.error.code, block.error.message)
        assert block.buffer is not None
        return block.buffer

    def _start(self, state: OpenInode, size: int, first: int, last: int, window: ReadWindow) -> None:
        """Fetch the blocks that are wanted now and those ahead, as far as the reader's run so far justifies it."""
        ahead = min(self._depth, max(size, window.run))
        end_block = (state.length - 1) // size
        until = min(end_block, (window.next_offset + ahead - 1) // size)
        for index in range(first, max(until, min(last, end_block)) + 1):
            if self._cache.has(state.id, index):
                continue
            block_size = min(size, state.length - index * size)
            if not self._cache.make_room(block_size):
                return
            block = _Block(block_size)
            self._cache.put(state.id, index, block, block_size)
            self._nursery.start_soon(self._fetch, state, index, size, block)

    def _fetch_hot(self, state: OpenInode, size: int, index: int) -> None:
        """Fetch one block, for random readers."""
        block_size = min(size, state.length - index * size)
        if self._cache.make_room(block_size):
            block = _Block(block_size)
            self._cache.put(state.id, index, block, block_size)
            self._nursery.start_soon(self._fetch, state, index, size, block, True)

    async def _fetch(self, state: OpenInode, index: int, size: int, block: _Block, hot: bool = False) -> None:
        buffer = memoryview(bytearray(block.size))
        done = block.done
        assert done is not None
        try:
            await self._client.read_chunks(state, index * size, buffer)
            block.buffer = buffer
        except FS3Error as error:
            block.error = error
            self._cache.drop(state.id, index, block)
        finally:
            if block.buffer is None and block.error is None:
                block.error = FS3Error(Code.SHUTTING_DOWN, "read cancelled")
            block.done = None
            done.set()
        if hot and block.buffer is not None:
            await self._store(state, index, size, block)

    async def _store(self, state: OpenInode, index: int, size: int, block: _Block) -> None:
        """Hand a block to the kernel, unless this mount may write to the file: the kernel could then have newer bytes on
        their way to us. Whoever opens it for writing, or cuts it, calls settle() before the kernel may go on."""
        buffer = block.buffer
        current = self._cache.get(state.id, index) is block and index * size + block.size <= state.length
        if self.kernel_store is None or buffer is None or state.sessions or not current:
            return
        self._storing[state.id] = self._storing.get(state.id, 0) + 1
        try:
            await self.kernel_store(state.id, index * size, buffer)
        finally:
            self._storing[state.id] -= 1
            if not self._storing[state.id]:
                del self._storing[state.id]
                self._stored.set()
                self._stored = trio.Event()

    async def settle(self, inode: int) -> None:
        """Returns once no block of the file is being handed to the kernel."""
        while inode in self._storing:
            await self._stored.wait()

    def wrote(self, state: OpenInode, offset: int, length: int) -> None:
        """This mount wrote to a range: what was read of it is old."""
        if length and self._cache.any_of(state.id):
            size = min(state.chunk_size, BLOCK_MAX)
            self._cache.drop_range(state.id, offset // size, (offset + length - 1) // size)

    def drop(self, inode: int) -> None:
        """The file was closed, cut or changed by others."""
        self._cache.drop_inode(inode)
