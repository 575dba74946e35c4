"""Checksums of pages inside of blocks that were verified before. Pure.

What is stored has one checksum for each block of BLOCK_SIZE bytes; to serve a few KiB of one, with a checksum that covers
nothing else, takes reading and verifying all of it. The checksums of its pages, computed from those very bytes, spare that
the next time: a page is then read alone, and what became of it since is found by whoever verifies it.
"""

from __future__ import annotations

import struct

from fs3.checksum import BLOCK_SIZE, Buffer, crc32c, replaced

PAGE_SIZE = 4096
_PAGES = BLOCK_SIZE // PAGE_SIZE
_FORMAT = struct.Struct(f"<{_PAGES}I")

Sums = tuple[int, ...]
"""Of each page of a block, the last of which may be shorter."""


class PageSums:
    """Keeps what was learnt of the last `blocks_max` blocks at least, and of twice as many at most.

    A block is known by its place and its checksum: when the bytes at a place change, what was known of them is not found.
    """

    __slots__ = ("_blocks_max", "_old", "_young")

    def __init__(self, blocks_max: int = 32 * 1024) -> None:
        self._blocks_max = blocks_max
        self._young: dict[int, tuple[int, bytes]] = {}
        self._old: dict[int, tuple[int, bytes]] = {}

    def find(self, place: int, checksum: int) -> Sums | None:
        """The pages' checksums of the block at a place, where its bytes have this checksum."""
        entry = self._young.get(place)
        if entry is None:
            entry = self._old.get(place)
            if entry is None:
                return None
            self._keep(place, entry)
        return _FORMAT.unpack(entry[1]) if entry[0] == checksum else None

    def page(self, place: int, checksum: int, page: int) -> bytes | None:
        """As `find`, the checksum of one page, little-endian."""
        entry = self._young.get(place)
        if entry is None:
            entry = self._old.get(place)
            if entry is None:
                return None
            self._keep(place, entry)
        return entry[1][4 * page : 4 * page + 4] if entry[0] == checksum else None

    def learn(self, place: int, checksum: int, block: memoryview) -> Sums:
        """Take in a block, whose bytes were just verified by its checksum."""
        sums = [crc32c(block[at : at + PAGE_SIZE]) for at in range(0, len(block), PAGE_SIZE)]
        sums += [0] * (_PAGES - len(sums))
        self._keep(place, (checksum, _FORMAT.pack(*sums)))
        return tuple(sums)

    def overwrite(self, place: int, checksum: int, start: int, data: memoryview) -> int | None:
        """The checksum of a whole block after `data` was written at `start` of it; None where that takes its other bytes.

        It takes none of them where whole pages are written over pages whose checksums are known: these tell what changes.
        """
        if start % PAGE_SIZE or len(data) % PAGE_SIZE:
            return None
        sums = self.find(place, checksum)
        if sums is None:
            return None
        fresh = list(sums)
        for at in range(0, len(data), PAGE_SIZE):
            page = (start + at) // PAGE_SIZE
            fresh[page] = crc32c(data[at : at + PAGE_SIZE])
            checksum = replaced(checksum, sums[page], fresh[page], BLOCK_SIZE - start - at - PAGE_SIZE)
        self._keep(place, (checksum, _FORMAT.pack(*fresh)))
        return checksum

    def _keep(self, place: int, entry: tuple[int, bytes]) -> None:
        if len(self._young) >= self._blocks_max:
            self._old, self._young = self._young, {}
        self._young[place] = entry


def place_of(shift: int, number: int, block: int) -> int:
    """A block's place on the disk: in which slot of which size class, and where in it."""
    return (number << shift) + block * BLOCK_SIZE | shift


def cover(start: int, stop: int, end: int) -> tuple[int, int]:
    """The whole pages around the bytes [start, stop) of a block that ends at `end`."""
    return start - start % PAGE_SIZE, min(stop + -stop % PAGE_SIZE, end)


def match(sums: Sums, start: int, pages: Buffer) -> bool:
    """Whether whole pages, the first of which begins at `start` of its block, have their checksums."""
    view = memoryview(pages)
    first = start // PAGE_SIZE
    return all(crc32c(view[at : at + PAGE_SIZE]) == sums[first + at // PAGE_SIZE] for at in range(0, len(view), PAGE_SIZE))
