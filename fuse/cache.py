"""Blocks of file content that are read ahead, and how the reader's pattern is told. Pure.

A block is as long as a chunk, or BLOCK_MAX where chunks are longer. Blocks live only while their file is open, at most
`capacity` bytes of them in the mount; they are dropped when this mount writes to them and when the file's data_version
shows that somebody else did. So they are as fresh as the kernel's page cache, which stands before them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

BLOCK_MAX = 1024 * 1024

FIRST_READ_MIN = 128 * 1024
"""A first read from the start of a file counts as the first of many if it has this length."""

HOT_AFTER = 2
"""Random reads within a block that make it worth reading whole."""
HEAT_LIMIT = 8192
"""Blocks whose random reads are counted."""

F = TypeVar("F")


class ReadWindow:
    """Follows the reads of one handle. next_offset: where a sequential reader goes on. run: bytes read in sequence."""

    __slots__ = ("next_offset", "run")

    def __init__(self) -> None:
        self.next_offset = 0
        self.run = 0

    def observe(self, offset: int, length: int) -> bool:
        """Take in a read; whether the handle reads sequentially now.

        The kernel sends a reader's requests several at a time, and they may come out of order: what lies within a
        request or two of the expected place counts as sequential.
        """
        slack = 4 * max(length, 128 * 1024)
        if self.next_offset - slack <= offset <= self.next_offset + slack:
            self.run += length
            self.next_offset = max(self.next_offset, offset + length)
        else:
            self.run = length
            self.next_offset = offset + length
        return self.run > length or (offset == 0 and length >= FIRST_READ_MIN)


class Heat:
    """Counts random reads by block, to tell when to read a whole block instead of going on piece by piece.

    Whoever came back to a block will probably come again; from then on the block costs one more read in all. Only the
    `limit` blocks read last are remembered: where reads spread over more, no block gets hot and nothing is read in vain.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[tuple[int, int], int] = OrderedDict()

    def count(self, inode: int, index: int) -> bool:
        """Take in a read within a block; whether the block is hot now. It then starts cold again."""
        key = (inode, index)
        count = self._counts.pop(key, 0) + 1
        if count >= HOT_AFTER:
            return True
        if len(self._counts) >= self._limit:
            self._counts.popitem(last=False)
        self._counts[key] = count
        return False


class BlockCache(Generic[F]):
    """Which blocks there are. F: whatever holds a block's bytes, or will hold them once they came.

    Invariant: `used` is the sum of the sizes of the blocks held, and at most `capacity` after make_room().
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._blocks: OrderedDict[tuple[int, int], tuple[F, int]] = OrderedDict()
        self._of_inode: dict[int, set[int]] = {}

    def get(self, inode: int, index: int) -> F | None:
        """The block, which then counts as used last."""
        entry = self._blocks.get((inode, index))
        if entry is None:
            return None
        self._blocks.move_to_end((inode, index))
        return entry[0]

    def has(self, inode: int, index: int) -> bool:
        return (inode, index) in self._blocks

    def any_of(self, inode: int) -> bool:
        return inode in self._of_inode

    def make_room(self, size: int) -> bool:
        """Drop the blocks unused for longest until `size` bytes fit; False where they can never fit."""
        if size > self.capacity:
            return False
        while self.used + size > self.capacity:
            self._drop(next(iter(self._blocks)))
        return True

    def put(self, inode: int, index: int, block: F, size: int) -> None:
        """Add a block that is not there yet, after make_room."""
        assert (inode, index) not in self._blocks and self.used + size <= self.capacity
        self._blocks[inode, index] = (block, size)
        self._of_inode.setdefault(inode, set()).add(index)
        self.used += size

    def drop(self, inode: int, index: int, block: F) -> None:
        """Drop this very block, should it still be there."""
        entry = self._blocks.get((inode, index))
        if entry is not None and entry[0] is block:
            self._drop((inode, index))

    def drop_range(self, inode: int, first: int, last: int) -> None:
        """Drop the blocks first..last, both included."""
        held = self._of_inode.get(inode)
        if held is None:
            return
        for index in [i for i in held if first <= i <= last] if last - first > 8 else range(first, last + 1):
            if index in held:
                self._drop((inode, index))

    def drop_inode(self, inode: int) -> None:
        for index in list(self._of_inode.get(inode, ())):
            self._drop((inode, index))

    def _drop(self, key: tuple[int, int]) -> None:
        _, size = self._blocks.pop(key)
        self.used -= size
        held = self._of_inode[key[0]]
        held.discard(key[1])
        if not held:
            del self._of_inode[key[0]]
