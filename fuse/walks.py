"""Which names a mount's programs will ask for next, as told by those that they asked for just now. Pure.

Who asks for the entries of a directory one by one can be answered from pages: entries with attributes that were fetched
together. A page is fetched when several look-ups in a row found something: behind the last name, where they went in the
order of names, else from the directory's begin, since a small one fits into a page; that page grows as long as enough of
those who go in no order find in it what they want. What was fetched in vain makes the next attempt come later, each time
twice as late.

A page is asked on behalf of the caller whose look-ups meta just answered, and serves no other. Each of its entries serves
once: the kernel keeps it from then on, and who asks again wants to know what is new. A name that is in no page may be there
all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fs3.api.meta import Attr, Caller, DirEntry

STREAK = 4
"""Look-ups in the order of names, each behind the one before, that are taken for a walk."""
CROWD = 32
"""Look-ups that are, whatever their order: of several threads, or of one that goes through a list of its own."""
PAUSE_S_MAX = 0.1
"""A walk in which nothing is asked for so long is over."""
PAGE_MIN, PAGE_MAX = 32, 256
"""Entries of a page: of a walk's first one, and of any later one."""
CROWD_PAGE = 512
"""Entries of a page for a crowd that goes in no order."""
CROWD_HITS = 16
"""Of look-ups that find their entry in such a page before it grows by as many entries again."""
CROWD_MAX = 4096
"""Entries that it may have come to."""
_GROUP = 8
"""Look-ups of a crowd of which the first name counts: where it grows, the crowd walks."""
LIFE_S = 0.2
"""How long a page's entries serve."""
REST_MIN, REST_MAX = 512, 1 << 20
"""Look-ups in a directory that are let pass after a page that was of no use."""
WALKS_MAX = 32
"""Directories followed; the one followed for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """A page to be fetched: entries behind a name. walk: for `fetched`."""

    walk: _Walk
    caller: Caller
    asked_at: float
    changes: int
    after: bytes
    limit: int


class _Page:
    """Entries, each with the monotonic seconds before it was asked for. asked_at: of the latest. last: its last name; those
    behind it were not fetched. changes: of this mount's metadata when it was asked for. grows: there may be more behind it
    that a crowd wants; hits: since it grew."""

    __slots__ = ("asked_at", "caller", "changes", "entries", "grows", "hits", "last", "size")

    def __init__(self, fetch: Fetch) -> None:
        self.entries: dict[bytes, tuple[Attr, float]] = {}
        self.size = 0
        self.caller = fetch.caller
        self.changes = fetch.changes

    def add(self, fetch: Fetch, entries: Sequence[DirEntry]) -> None:
        self.entries.update([(entry.name, (entry.attr, fetch.asked_at)) for entry in entries])
        self.last = entries[-1].name
        self.size += len(entries)
        self.asked_at = fetch.asked_at
        self.hits = 0
        self.grows = fetch.limit == len(entries) == CROWD_PAGE and self.size + CROWD_PAGE <= CROWD_MAX


class _Walk:
    """Look-ups in one directory. found: those in a row that found something, backward: those of them that asked for a name
    before the last, streak: the latest in order, lows: first names of groups of them. limit: entries of the next page.
    rest: look-ups to let pass before it; failures: pages of no use in a row. asking: a page is under way."""

    __slots__ = (
        "asking", "at", "backward", "caller", "failures", "found", "limit", "lows", "name", "page", "rest", "streak",
    )  # fmt: skip

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.at = 0.0
        self.name = b""
        self.found = self.backward = 0
        self.streak = 0
        self.lows: list[bytes] = []
        self.limit = PAGE_MIN
        self.page: _Page | None = None
        self.rest = 0
        self.failures = 0
        self.asking = False

    def drop(self) -> None:
        """The page is of no more use: learn from how it was used."""
        page = self.page
        if page is None:
            return
        self.page = None
        left = len(page.entries)
        if left * 8 <= page.size:
            self.limit = min(2 * self.limit, PAGE_MAX)
            self.failures = 0
        elif (page.size - left) * 4 < page.size:
            self.useless()
        elif left * 2 > page.size:
            self.limit = max(PAGE_MIN, self.limit // 2)

    def useless(self) -> None:
        self.rest = min(REST_MIN << self.failures, REST_MAX)
        self.failures = min(self.failures + 1, 30)
        self.limit = PAGE_MIN
        self.begin()

    def begin(self) -> None:
        """Nothing in a row yet."""
        self.found = self.backward = self.streak = 0
        self.lows.clear()

    def count(self, name: bytes) -> None:
        """One more in a row."""
        if self.found % _GROUP == 0:
            self.lows.append(name)
        elif name < self.lows[-1]:
            self.lows[-1] = name
        if name > self.name:
            self.streak += 1
        else:
            self.backward += 1
            self.streak = 0
        self.found += 1

    def goal(self, name: bytes) -> tuple[bytes, int] | None:
        """Before `name` is asked for: behind which name a page is to begin, and how many entries it is to have."""
        page = self.page
        if page is not None:
            if page.grows and page.hits >= CROWD_HITS and name > page.last:
                return page.last, CROWD_PAGE
            if len(page.entries) * 2 > page.size or (page.size >= CROWD_PAGE and page.entries):
                return None  # there are others, who use it
            if name > page.last:
                return page.last, self.limit
        if self.streak >= STREAK and name > self.name and self.backward * 4 <= self.found:
            return self.name, self.limit
        if self.found < CROWD:
            return None
        lows = self.lows[-4:]
        return (lows[-1], self.limit) if lows[0] < lows[1] < lows[2] < lows[3] <= name else (b"", CROWD_PAGE)


class Walks:
    """The directories that are being walked through."""

    def __init__(self) -> None:
        self._walks: dict[int, _Walk] = {}

    def take(
        self, caller: Caller, parent: int, name: bytes, now: float, changes: int, life_s: float
    ) -> tuple[Attr, float] | None:
        """What is known of a name, and when meta was asked for it; it is not known any more then. changes: of this mount's
        metadata so far."""
        walk = self._walks.get(parent)
        if walk is None or walk.page is None:
            return None
        page = walk.page
        if page.changes != changes or now - page.asked_at > life_s:
            walk.drop()
            return None
        if page.caller is not caller and page.caller != caller:
            return None
        found = page.entries.pop(name, None)
        if found is None or now - found[1] > life_s:
            return None
        page.hits += 1
        walk.name, walk.at = name, now
        return found

    def plan(self, caller: Caller, parent: int, name: bytes, now: float, changes: int) -> Fetch | None:
        """Before meta is asked for a name: the page that shall be fetched first, if any."""
        walk = self._walks.get(parent)
        if walk is None or walk.asking or walk.caller != caller:
            return None
        if walk.rest:
            walk.rest -= 1
            return None
        if now - walk.at > PAUSE_S_MAX:
            walk.begin()
            return None
        goal = walk.goal(name)
        if goal is None:
            return None
        page = walk.page
        if page is None or not page.grows or page.changes != changes or goal[0] != page.last:
            walk.drop()
            walk.begin()
        walk.asking = True
        return Fetch(walk, caller, now, changes, *goal)

    def fetched(self, fetch: Fetch, entries: Sequence[DirEntry]) -> None:
        """A page has come; empty: there are no more, or it could not be had."""
        walk = fetch.walk
        walk.asking = False
        page = walk.page
        if page is not None:  # kept for this to come behind it
            page.grows = False
        elif entries:
            page = walk.page = _Page(fetch)
        else:
            walk.useless()
        if entries and page is not None:
            page.add(fetch, entries)

    def looked_up(self, caller: Caller, parent: int, name: bytes, now: float, found: bool) -> None:
        """Meta has answered."""
        walks = self._walks
        walk = walks.get(parent)
        if walk is None:
            if not found:
                return
            if len(walks) >= WALKS_MAX:
                del walks[next(iter(walks))]
            walk = walks[parent] = _Walk(caller)
        elif walk.caller != caller:
            walk.drop()
            walk.caller = caller
            walk.begin()
        if not found or now - walk.at > PAUSE_S_MAX:
            walk.begin()
        if found:
            walk.count(name)
        walk.name, walk.at = name, now
