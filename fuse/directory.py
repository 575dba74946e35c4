"""Listing a directory for one handle: pages from meta, with cookies that stay valid. Pure.

Cookies: 0 is the start, 1 stands before `..`, 2 before the first entry, 2 + n after the n-th entry that this handle was
given. The names of the last pages are remembered one by one, so that going back a little, as programs do that remove what
they list, finds the same place whatever was removed meanwhile; farther back the place is counted from the start of a page.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fs3.api.meta import DirEntry

DOT, DOTDOT, FIRST = 0, 1, 2
NAMES_KEPT = 8192
PAGE_LIFE_S = 0.2
"""How long entries may wait for the kernel to take them; it counts its own time-outs from when it did."""


@dataclass(frozen=True, slots=True)
class Page:
    """Entries that were fetched together. start: the cookie before the first. fetched_at: seconds, monotonic. changes:
    of the client's metadata when they were asked for."""

    start: int
    entries: tuple[DirEntry, ...]
    fetched_at: float
    changes: int


class Listing:
    """Where a directory handle stands."""

    __slots__ = ("_base", "_marks", "inode", "names", "page", "parent")

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.parent = 0  # inode of `..`, once known
        self.names: list[bytes] = []  # of the entries at positions _base...
        self._base = 0
        self._marks: list[tuple[int, bytes]] = [(0, b"")]  # (position, the name before it), one for each page
        self.page = Page(FIRST, (), 0.0, -1)

    def rest(self, cookie: int, now: float, changes: int) -> tuple[DirEntry, ...]:
        """What is left from a cookie on of the page fetched last: the kernel takes fewer entries at a time than are
        fetched. Empty where they may be out of date, and for one who starts again, who wants to see what is new."""
        page = self.page
        if cookie <= FIRST or changes != page.changes or now - page.fetched_at > PAGE_LIFE_S:
            return ()
        taken = cookie - page.start
        return page.entries[taken:] if 0 < taken < len(page.entries) else ()

    def locate(self, cookie: int) -> tuple[bytes, int]:
        """(after, skip): the entry that a cookie stands before is found by listing after a name and skipping some."""
        position = cookie - FIRST
        assert position >= 0
        if position == 0:
            return b"", 0
        before = position - 1 - self._base
        if 0 <= before < len(self.names):
            return self.names[before], 0
        at = bisect_right(self._marks, position, key=lambda mark: mark[0]) - 1
        start, name = self._marks[at]
        return name, position - start

    def listed(self, cookie: int, names: Sequence[bytes]) -> None:
        """The entries that follow a cookie were fetched: they have the positions from it on."""
        position = cookie - FIRST
        if not names:
            return
        known = self._base + len(self.names)
        if position != known:  # the reader went back, or to the start: what it is told now counts
            self.names = self.names[: position - self._base] if self._base <= position < known else []
            if not self.names:
                self._base = position
            self._marks = [mark for mark in self._marks if mark[0] <= position] or [(0, b"")]
        self.names.extend(names)
        surplus = len(self.names) - NAMES_KEPT
        if surplus > 0 and len(names) < NAMES_KEPT:
            del self.names[:surplus]
            self._base += surplus
        self._marks.append((position + len(names), names[-1]))
