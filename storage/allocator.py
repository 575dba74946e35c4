"""Slots of one size class: numbers from 0. Neighbours form groups of 2**bits slots, each of which is a file. Pure.

A freed slot is used again, the last freed first: its pages are likely in memory, and its disk blocks are there. Slots whose
space was given back to the file system come after those, and what was never used last.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush


class SlotAllocator:
    """Which slots are free. groups: those that have a file; nobody knows what their free slots hold."""

    def __init__(self, bits: int, used: Iterable[int] = (), groups: Iterable[int] = ()) -> None:
        self._bits = bits
        self._used: dict[int, int] = dict.fromkeys(groups, 0)  # by group
        taken = bytearray()
        for number in used:
            if number >= len(taken):
                taken.extend(bytes(max(number + 1 - len(taken), len(taken))))
            assert not taken[number], "a slot is used twice"
            taken[number] = 1
            group = number >> bits
            self._used[group] = self._used.get(group, 0) + 1
        self._in_use = sum(self._used.values())
        self._free: list[int] = []  # with disk space; the warmest last
        self._unknown: list[int] = []  # with or without; descending
        self._holes: list[int] = []  # without; a heap
        end = max(self._used, default=-1) + 1
        self._fresh = [group << bits for group in range(end) if group not in self._used]  # first slots of groups; a heap
        self._end = end << bits
        self._next, self._stop = 0, 0  # what is left of the group that was begun last
        for group in sorted(self._used, reverse=True):
            start, stop = group << bits, (group + 1) << bits
            self._unknown += [n for n in range(stop - 1, start - 1, -1) if n >= len(taken) or not taken[n]]

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def free_with_space(self) -> int:
        """How many free slots may hold disk space."""
        return len(self._free) + len(self._unknown)

    def groups(self) -> list[int]:
        """Those that have a file."""
        return sorted(self._used)

    def allocate(self) -> tuple[int, bool]:
        """A free slot, and whether it may need fresh disk space."""
        self._in_use += 1
        fresh = True
        if self._free:
            number, fresh = self._free.pop(), False
        elif self._unknown:
            number = self._unknown.pop()
        elif self._holes:
            number = heappop(self._holes)
        else:
            if self._next == self._stop:
                self._begin_group()
            number = self._next
            self._next += 1
        group = number >> self._bits
        self._used[group] = self._used.get(group, 0) + 1
        return number, fresh

    def _begin_group(self) -> None:
        if self._fresh:
            self._next = heappop(self._fresh)
        else:
            self._next = self._end
            self._end += 1 << self._bits
        self._stop = self._next + (1 << self._bits)

    def release(self, number: int, *, hole: bool = False) -> None:
        """A slot is free again. hole: nothing was written to it."""
        group = number >> self._bits
        assert self._used[group] > 0 and self._in_use > 0
        self._in_use -= 1
        self._used[group] -= 1
        if hole:
            heappush(self._holes, number)
        else:
            self._free.append(number)

    def take_for_punch(self, keep: int, limit: int) -> list[int]:
        """At most `limit` free slots beyond the `keep` warmest, coldest first; not free until punched() gives them back."""
        count = min(limit, self.free_with_space - keep)
        if count <= 0:
            return []
        taken = self._unknown[:count]  # the highest, since the lowest are used first
        del self._unknown[:count]
        rest = count - len(taken)
        taken += self._free[:rest]
        del self._free[:rest]
        return taken

    def punched(self, numbers: Iterable[int]) -> None:
        """Their space was given back."""
        self._holes.extend(numbers)
        heapify(self._holes)

    def take_empty(self, keep: int) -> list[int]:
        """Groups without a used slot, to be given back whole; `keep` free slots with space stay elsewhere.

        None while slots are being punched. They do not exist until removed() says that their files are gone.
        """
        with_space: dict[int, int] = {}
        for number in (*self._free, *self._unknown):
            group = number >> self._bits
            with_space[group] = with_space.get(group, 0) + 1
        left = self.free_with_space
        taken: set[int] = set()
        for group in sorted(self._used, reverse=True):
            count = with_space.get(group, 0)
            if self._used[group] or (count and left - count < keep):
                continue
            left -= count
            taken.add(group)
            del self._used[group]
            if self._stop == (group + 1) << self._bits:
                self._next = self._stop = 0
        if taken:
            self._free = [number for number in self._free if number >> self._bits not in taken]
            self._unknown = [number for number in self._unknown if number >> self._bits not in taken]
            self._holes = [number for number in self._holes if number >> self._bits not in taken]
            heapify(self._holes)
        return sorted(taken)

    def removed(self, groups: Iterable[int]) -> None:
        """Their files are gone."""
        for group in groups:
            heappush(self._fresh, group << self._bits)


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """(first, count) of the runs of neighbours in sorted numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][0] + found[-1][1] == number:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found
