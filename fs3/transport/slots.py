"""Slots of powers of two in one stretch of memory: which are taken, and where the next one is. Pure."""

from __future__ import annotations


class Slots:
    """size: of the stretch; slots have between `least` and `most` bytes. What was given back last is taken first, since its
    memory is warm."""

    def __init__(self, size: int, least: int, most: int) -> None:
        self.size = size
        self._least = least
        self._most = min(most, size)
        self._free: dict[int, list[int]] = {}  # offsets by size of slot
        self._fresh = 0  # what lies behind was never handed out
        self.taken = 0

    def rounded(self, size: int) -> int:
        """The size of the slot for so many bytes."""
        return max(self._least, 1 << (size - 1).bit_length())

    def take(self, size: int) -> int | None:
        """The offset of a slot; None where there is none left."""
        rounded = self.rounded(size)
        if rounded > self._most:
            return None
        free = self._free.get(rounded)
        if free:
            self.taken += 1
            return free.pop()
        if self._fresh + rounded > self.size:
            if self.taken:
                return None
            self._free.clear()  # nothing is in use, so it can be cut anew
            self._fresh = 0
        offset = self._fresh
        self._fresh += rounded
        self.taken += 1
        return offset

    def give_back(self, offset: int, size: int) -> None:
        """size: as it was taken."""
        assert self.taken > 0
        self.taken -= 1
        self._free.setdefault(self.rounded(size), []).append(offset)
