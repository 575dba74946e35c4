"""Reading ahead: whole blocks of sequential readers, single pieces of those at equal distances; several on their way at
once, bounded for the whole mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from fs3.checksum import BLOCK_SIZE as CHECKSUMMED
from fs3.client.file import FileClient
from fs3.client.inode import OpenInode
from fs3.errors import Code, FS3Error
from fs3.transport.buffers import BufferPool

from .cache import BLOCK_SIZE, HEAT_LIMIT, BlockCache, Heat, warmed
from .streams import ReadPattern, Shares, Steps

KernelStore = Callable[[int, int, memoryview], Awaitable[None]]
"""Puts bytes of an inode, at an offset, into the kernel's page cache."""

WIDEN_FROM = 256 * 1024
"""A read of this length is widened to the borders of what has a checksum of its own."""
POOL_MAX = 64 * 1024 * 1024
"""Of memory that is used again and again for what is read: fresh memory costs more to touch than its bytes' transfer."""


class _Block:
    """Bytes on their way, or here. left: how many were not served yet. done: set once they came, or failed."""

    __slots__ = ("buffer", "done", "error", "left", "size")

    def __init__(self, size: int) -> None:
        self.size = self.left = size
        self.buffer: memoryview | None = None
        self.error: FS3Error | None = None
        self.done: trio.Event | None = trio.Event()


class ReadAhead:
    """Serves reads out of blocks that it fetched before they were asked for.

    depth: bytes that it is ahead of a reader. capacity: bytes of all blocks. Tasks run in `nursery`. kernel_store: set
    where there is a kernel.

    A block that was served whole is dropped: the kernel has it now, and its memory is warm for the next one. Random readers
    get what they ask for, until one block was asked for several times: then it is fetched whole and handed to the kernel's
    page cache.
    """

    def __init__(self, client: FileClient, nursery: trio.Nursery, depth: int, capacity: int) -> None:
        self._client = client
        self._nursery = nursery
        self._depth = depth
        self._cache: BlockCache[_Block] = BlockCache(capacity)
        self._heat = Heat(HEAT_LIMIT)
        self._shares = Shares()
        self._buffers = BufferPool(POOL_MAX)
        self.kernel_store: KernelStore | None = None
        self._storing: dict[int, int] = {}  # inode -> blocks that are being handed to the kernel
        self._stored = trio.Event()
        self._hits = self._waits = self._misses = 0  # reads of bytes that were here, on their way, neither
        client.env.metrics.sources.append(self._values)

    def _values(self) -> dict[str, float]:
        counters = self._client.env.metrics.counters
        counters["mount.readahead_hits"] = self._hits
        counters["mount.readahead_waits"] = self._waits
        counters["mount.readahead_misses"] = self._misses
        return {"mount.readahead_bytes": self._cache.used}

    def use(self, depth: int, capacity: int) -> None:
        """From now on."""
        self._depth, self._cache.capacity = depth, capacity
        self._cache.make_room(0)

    async def read(self, state: OpenInode, pattern: ReadPattern, offset: int, length: int) -> memoryview:
        """Bytes at `offset`, all of them before the end of the file. The result may share memory with a block."""
        sequential = pattern.observe(offset, length)
        if not self._depth or self._client.env.rare("mount.readahead.off"):
            return await self.direct(state, offset, length)
        first, last = offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE
        if sequential:
            if not self._start(state, first, last, pattern):
                return await self.direct(state, offset, length)
        elif pattern.steps is not None:
            piece = self._step(state, pattern.steps, offset, length)
            if piece is not None:
                return await self._take(state, _piece_index(offset), piece, 0, length)
        elif first == last and length < BLOCK_SIZE and not self._cache.has(state.id, first):
            group, count, limit = warmed(first, state.length)
            if not self._heat.count(state.id, group, limit):
                return await self.direct(state, offset, length)
            self._begin(state, first, hot=True)
            if 2 * count * BLOCK_SIZE <= self._cache.capacity:
                for index in range(group, group + count):
                    self._begin(state, index, hot=True)
        if first != last:
            return await self._gather(state, offset, length)
        block = self._cache.get(state.id, first)
        if block is None or offset - first * BLOCK_SIZE + length > block.size:
            return await self.direct(state, offset, length)
        return await self._take(state, first, block, offset - first * BLOCK_SIZE, length)

    async def direct(self, state: OpenInode, offset: int, length: int) -> memoryview:
        """Bytes at `offset` as they are now."""
        self._misses += 1
        if length < WIDEN_FROM:
            into = self._buffers.take(length)
            await self._client.read_chunks(state, offset, into)
            return into
        # Whole checksummed blocks are served with the checksums that are stored; of a part they must be computed first.
        start = offset - offset % CHECKSUMMED
        stop = max(offset + length, min(state.length, offset + length + -(offset + length) % CHECKSUMMED))
        into = self._buffers.take(stop - start)
        await self._client.read_chunks(state, start, into)
        return into[offset - start : offset - start + length]

    async def _gather(self, state: OpenInode, offset: int, length: int) -> memoryview:
        """A range over several blocks: copied together, with one direct read where any is missing."""
        blocks = []
        end = offset + length
        for index in range(offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE + 1):
            block = self._cache.get(state.id, index)
            if block is None or min(end, (index + 1) * BLOCK_SIZE) - index * BLOCK_SIZE > block.size:
                return await self.direct(state, offset, length)
            blocks.append((index, block))
        result = self._buffers.take(length)
        for index, block in blocks:
            at = index * BLOCK_SIZE
            start, stop = max(offset, at), min(end, at + BLOCK_SIZE)
            result[start - offset : stop - offset] = await self._take(state, index, block, start - at, stop - start)
        return result

    async def _take(self, state: OpenInode, index: int, block: _Block, within: int, length: int) -> memoryview:
        """Bytes of a block, once it is here."""
        if block.done is not None:
            self._waits += 1
            await block.done.wait()
        else:
            self._hits += 1
        if block.error is not None:
            raise FS3Error(block.error.code, block.error.message)
        assert block.buffer is not None
        block.left -= length
        if block.left <= 0:
            self._cache.drop(state.id, index, block)
        return block.buffer[within : within + length]

    def _start(self, state: OpenInode, first: int, last: int, pattern: ReadPattern) -> bool:
        """Fetch the blocks that are wanted now and those ahead, as far as the reader's run so far justifies it. False where
        it does not justify whole blocks."""
        stream = pattern.stream
        assert stream is not None
        ahead = pattern.ahead(BLOCK_SIZE, min(self._depth, self._shares.of(stream, self._cache.capacity)))
        if not ahead and not self._cache.has(state.id, first):
            return False
        until = min((state.length - 1) // BLOCK_SIZE, (stream.next_offset + ahead - 1) // BLOCK_SIZE)
        for index in range(first, last + 1):
            if not self._cache.has(state.id, index):
                stream.fetched = min(stream.fetched, index + 1)  # those ahead may be gone too
                self._begin(state, index)
        # What lies before `fetched` was begun already: it is here, or was served and dropped.
        for index in range(max(stream.fetched, last + 1), until + 1):
            if not self._begin(state, index):
                break
            stream.fetched = index + 1
        return True

    def _step(self, state: OpenInode, steps: Steps, offset: int, length: int) -> _Block | None:
        """Fetch what a reader at equal distances will ask for next; returns what it asks for now, where that was fetched."""
        distance = steps.distance
        for number in range(1, steps.ahead(min(self._depth, self._cache.capacity // 4)) + 1):
            at = offset + number * distance
            if at < 0 or at + length > state.length:
                break
            index = _piece_index(at)
            if not self._cache.has(state.id, index) and not self._put(state, index, at, length):
                break
        piece = self._cache.get(state.id, _piece_index(offset))
        return piece if piece is not None and piece.size == length else None

    def _begin(self, state: OpenInode, index: int, hot: bool = False) -> bool:
        """Begin to fetch a block, unless it is here. False where there is no room for it."""
        size = min(BLOCK_SIZE, state.length - index * BLOCK_SIZE)
        return self._cache.has(state.id, index) or self._put(state, index, index * BLOCK_SIZE, size, hot)

    def _put(self, state: OpenInode, index: int, offset: int, size: int, hot: bool = False) -> bool:
        if not self._cache.make_room(size):
            return False
        block = _Block(size)
        self._cache.put(state.id, index, block, size)
        self._nursery.start_soon(self._fetch, state, index, offset, block, hot)
        return True

    async def _fetch(self, state: OpenInode, index: int, offset: int, block: _Block, hot: bool) -> None:
        buffer = self._buffers.take(block.size)
        done = block.done
        assert done is not None
        try:
            await self._client.read_chunks(state, offset, buffer)
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
            await self._store(state, index, block)

    async def _store(self, state: OpenInode, index: int, block: _Block) -> None:
        """Hand a block to the kernel, unless this mount may write to the file: the kernel could then have newer bytes on
        their way to us. Whoever opens it for writing, or cuts it, calls settle() before the kernel may go on."""
        buffer = block.buffer
        current = self._cache.get(state.id, index) is block and index * BLOCK_SIZE + block.size <= state.length
        if self.kernel_store is None or buffer is None or state.sessions or not current:
            return
        self._storing[state.id] = self._storing.get(state.id, 0) + 1
        try:
            await self.kernel_store(state.id, index * BLOCK_SIZE, buffer)
            self._cache.drop(state.id, index, block)
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
            self._cache.drop_range(state.id, offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE)

    def closed(self, pattern: ReadPattern) -> None:
        """A handle is gone."""
        self._shares.forget(pattern)

    def drop(self, inode: int) -> None:
        """The file was closed, cut or changed by others."""
        self._cache.drop_inode(inode)


def _piece_index(offset: int) -> int:
    """Where the cache keeps bytes that were fetched for a reader at equal distances."""
    return -1 - offset
