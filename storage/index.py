"""The encoded records of a target's chunks in memory, in the order of chunks. Pure.

There may be millions, so they are kept as bytes in pages: two machine words and a pointer for each besides its record. A
page is an array of inodes, one of indexes, and a list of records.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from fs3.ids import ChunkId

PAGE_MAX = 512


class _Page:
    __slots__ = ("indexes", "inodes", "values")

    def __init__(self, inodes: array[int], indexes: array[int], values: list[bytes]) -> None:
        self.inodes = inodes
        self.indexes = indexes
        self.values = values


class ChunkIndex:
    """chunk -> encoded record."""

    def __init__(self) -> None:
        self._pages: list[_Page] = []
        self._firsts: list[int] = []  # of each page, inode << 64 | index
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def _find(self, inode: int, index: int) -> tuple[_Page, int, bool]:
        """The page and the place in it where a chunk is, or would be. There is a page."""
        at = bisect_right(self._firsts, inode << 64 | index) - 1
        page = self._pages[at if at > 0 else 0]
        inodes = page.inodes
        low = bisect_left(inodes, inode)
        place = bisect_left(page.indexes, index, low, bisect_right(inodes, inode, low))
        there = place < len(inodes) and inodes[place] == inode and page.indexes[place] == index
        return page, place, there

    def find(self, chunk: ChunkId) -> bytes | None:
        if not self._pages:
            return None
        page, place, there = self._find(chunk.inode, chunk.index)
        return page.values[place] if there else None

    def append(self, inode: int, index: int, value: bytes) -> None:
        """Put a chunk behind all others; quick, for opening."""
        pages = self._pages
        if not pages or len(pages[-1].values) >= PAGE_MAX:
            self._insert_page(len(pages), _Page(array("Q", (inode,)), array("Q", (index,)), [value]))
        else:
            page = pages[-1]
            page.inodes.append(inode)
            page.indexes.append(index)
            page.values.append(value)
        self._count += 1

    def put(self, chunk: ChunkId, value: bytes) -> None:
        inode, index = chunk.inode, chunk.index
        if not self._pages:
            self._insert_page(0, _Page(array("Q", (inode,)), array("Q", (index,)), [value]))
            self._count = 1
            return
        page, place, there = self._find(inode, index)
        if there:
            page.values[place] = value
            return
        self._count += 1
        if len(page.values) >= PAGE_MAX:
            if place == len(page.values):  # in order: pages stay full
                at = bisect_right(self._firsts, inode << 64 | index)
                self._insert_page(at, _Page(array("Q", (inode,)), array("Q", (index,)), [value]))
                return
            self._split(page)
            page, place, _ = self._find(inode, index)
        page.inodes.insert(place, inode)
        page.indexes.insert(place, index)
        page.values.insert(place, value)
        if place == 0:
            self._renew_first(page, inode << 64 | index)

    def _insert_page(self, at: int, page: _Page) -> None:
        self._pages.insert(at, page)
        self._firsts.insert(at, page.inodes[0] << 64 | page.indexes[0])

    def _split(self, page: _Page) -> None:
        half = len(page.values) // 2
        at = bisect_right(self._firsts, page.inodes[0] << 64 | page.indexes[0])
        self._insert_page(at, _Page(page.inodes[half:], page.indexes[half:], page.values[half:]))
        del page.inodes[half:], page.indexes[half:], page.values[half:]

    def _renew_first(self, page: _Page, first: int) -> None:
        """Its first chunk changed. Only the first page gets an earlier one."""
        self._firsts[0] = first
        assert self._pages[0] is page

    def delete(self, chunk: ChunkId) -> None:
        page, place, there = self._find(chunk.inode, chunk.index)
        assert there
        at = bisect_right(self._firsts, chunk.inode << 64 | chunk.index) - 1
        del page.inodes[place], page.indexes[place], page.values[place]
        self._count -= 1
        if not page.values:
            del self._pages[at], self._firsts[at]
        elif place == 0:
            self._firsts[at] = page.inodes[0] << 64 | page.indexes[0]

    def items(self, inode: int = 0, index: int = 0) -> Iterator[tuple[ChunkId, bytes]]:
        """From a chunk on, in order. Nothing may change meanwhile."""
        if not self._pages:
            return
        start = max(0, bisect_right(self._firsts, inode << 64 | index) - 1)
        for page in self._pages[start:]:
            place = 0
            if page is self._pages[start]:
                _, place, _ = self._find(inode, index)
            for at in range(place, len(page.values)):
                yield ChunkId(page.inodes[at], page.indexes[at]), page.values[at]
