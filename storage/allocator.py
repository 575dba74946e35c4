"""Slots of one data file: numbers from 0, each of the file's slot size. Pure.

A freed slot is used again, the last freed first: its pages are likely in memory, and its disk blocks are there. Slots whose
space was given back to the file system come after those, and the end of the file last.
"""

from __future__ import annotations

from collections.abc import Iterable


class SlotAllocator:
    """Which slots are free."""

    def __init__(self, used: Iterable[int] = ()) -> None:
        taken = set(used)
        self._end = max(taken, default=-1) + 1  # Invariant: every slot from here on is free.
        self._free = [number for number in range(self._end) if number not in taken]
        self._punched: list[int] = []
        self._in_use = len(taken)

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def free_with_space(self) -> int:
        """How many free slots may still hold disk space."""
        return len(self._free)

    def allocate(self) -> tuple[int, bool]:
        """A free slot, and whether it may need fresh disk space."""
        self._in_use += 1
        if self._free:
            return self._free.pop(), False
        if self._punched:
            return self._punched.pop(), True
        self._end += 1
        return self._end - 1, True

    def release(self, number: int) -> None:
        """A slot is free again."""
        assert 0 <= number < self._end and self._in_use > 0
        self._in_use -= 1
        self._free.append(number)

    def take_for_punch(self, keep: int, limit: int) -> list[int]:
        """At most `limit` free slots beyond the `keep` warmest, coldest first; not free until punched() gives them back."""
        count = min(limit, len(self._free) - keep)
        if count <= 0:
            return []
        taken = self._free[:count]
        del self._free[:count]
        return taken

    def punched(self, numbers: Iterable[int]) -> None:
        """Their space was given back."""
        self._punched.extend(numbers)


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """(first, count) of the runs of neighbours in sorted numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][0] + found[-1][1] == number:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found
