"""Blocks of file content that are read ahead. Pure.

Block n of a file is its BLOCK_SIZE bytes from n * BLOCK_SIZE on; numbers below zero stand for pieces at any other places.
Blocks live only while their file is open, at most `capacity` bytes of them in the mount; they are dropped when this mount
writes to them and when the file's data_version shows that somebody else did. So they are as fresh as the kernel's page
cache, which stands before them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

BLOCK_SIZE = 1024 * 1024

HOT_AFTER = 7
"""Random reads within a block that make it worth reading whole: as much as that costs, so that it is never dearer than twice
what would have been best."""
SMALL_FILE = 1024 * 1024 * 1024
"""Of a file up to this size even the whole costs a second or two. So its blocks are read whole earlier, and in groups."""
SMALL_HOT_AFTER = 2
SMALL_GROUP = 4
"""Blocks."""
HEAT_LIMIT = 8192
"""Blocks whose random reads are counted."""

F = TypeVar("F")


class Heat:
    """Counts random reads by block, to tell when to read a whole block instead of going on piece by piece.

    Whoever came back to a block will probably come again; from then on the block costs one more read in all. Only the
    `limit` blocks read last are remembered: where reads spread over more, no block gets hot and nothing is read in vain.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[tuple[int, int], int] = OrderedDict()

    def count(self, inode: int, index: int, limit: int) -> bool:
        """Take in a read within a block; whether these are `limit`, so that it is hot now. It then starts cold again."""
        key = (inode, index)
        count = self._counts.pop(key, 0) + 1
        if count >= limit:
            return True
        if len(self._counts) >= self._limit:
            self._counts.popitem(last=False)
        self._counts[key] = count
        return False


def warmed(index: int, length: int) -> tuple[int, int, int]:
    """What a random read in block `index` of a file of this length is counted for: the first of the blocks that get hot
    together and their number, and after how many reads they do."""
    if length > SMALL_FILE:
        return index, 1, HOT_AFTER
    first = index - index % SMALL_GROUP
    return first, min(SMALL_GROUP, -(-length // BLOCK_SIZE) - first), SMALL_HOT_AFTER


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
        """Drop the blocks first..last, both included, and all pieces."""
        for index in [i for i in self._of_inode.get(inode, ()) if first <= i <= last or i < 0]:
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
