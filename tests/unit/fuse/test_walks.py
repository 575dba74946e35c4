"""When directory entries are fetched ahead of those who ask for them one by one."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.api.meta import Attr, Caller, DirEntry, FileKind
from fuse.walks import CROWD, CROWD_PAGE, LIFE_S, PAGE_MAX, PAGE_MIN, PAUSE_S_MAX, REST_MIN, STREAK, WALKS_MAX, Fetch, Walks

SOMEBODY = Caller(1000, 1000, (1000,))
OTHER = Caller(1001, 1000, (1000,))
FOLDER = 7
FILE = Attr(0, 0, FileKind.FILE, 0o644, 0, 0, 1, 0, 0, 0, 0)


def name_of(number: int) -> bytes:
    return b"%07d" % number


class Folder:
    """A directory of some files, asked for by way of Walks as a mount does it. lookups, pages: what meta was asked."""

    def __init__(self, files: int) -> None:
        self.walks = Walks()
        self.names = [name_of(number) for number in range(files)]
        self.there = set(self.names)
        self.now = 100.0
        self.step_s = 0.0001
        self.changes = 0
        self.lookups = 0
        self.pages: list[int] = []

    def page(self, fetch: Fetch) -> list[DirEntry]:
        names = [name for name in self.names if name > fetch.after][: fetch.limit]
        self.pages.append(len(names))
        return [DirEntry(name, replace(FILE, inode=int(name) + 1)) for name in names]

    def ask(self, number: int, caller: Caller = SOMEBODY) -> Attr | None:
        """Look a name up; None: it is not there."""
        self.now += self.step_s
        name = name_of(number)
        known = self.walks.take(caller, FOLDER, name, self.now, self.changes, LIFE_S)
        if known is None:
            fetch = self.walks.plan(caller, FOLDER, name, self.now, self.changes)
            if fetch is not None:
                self.walks.fetched(fetch, self.page(fetch))
                known = self.walks.take(caller, FOLDER, name, self.now, self.changes, LIFE_S)
        if known is not None:
            assert known[0].inode == number + 1 and self.now - known[1] <= LIFE_S
            return known[0]
        self.lookups += 1
        self.walks.looked_up(caller, FOLDER, name, self.now, found=name in self.there)
        return replace(FILE, inode=number + 1) if name in self.there else None

    def ask_all(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.ask(number)


def test_a_walk_in_order_is_answered_from_pages_that_grow() -> None:
    folder = Folder(10_000)
    folder.ask_all(range(10_000))
    assert folder.lookups == STREAK
    assert folder.pages[0] == PAGE_MIN and max(folder.pages) == PAGE_MAX and len(folder.pages) < 50


def test_a_walk_that_leaves_some_out_goes_on() -> None:
    folder = Folder(4000)
    folder.ask_all(number for number in range(4000) if number % 3)
    assert folder.lookups < 200


def test_a_walk_of_several_threads_is_told_by_where_it_gets_on() -> None:
    folder = Folder(10_000)
    chance = random.Random(1)
    folder.ask_all(sorted(range(10_000), key=lambda number: number + 24 * chance.random()))
    assert folder.lookups < 1500


def test_a_small_directory_is_fetched_whole_for_those_in_no_order() -> None:
    folder = Folder(CROWD_PAGE - 10)
    numbers = list(range(CROWD_PAGE - 10))
    random.Random(2).shuffle(numbers)
    folder.ask_all(numbers)
    assert folder.lookups <= CROWD and folder.pages == [CROWD_PAGE - 10]


def test_a_page_grows_for_a_crowd_that_uses_it() -> None:
    folder = Folder(4 * CROWD_PAGE)
    numbers = list(range(4 * CROWD_PAGE))
    random.Random(2).shuffle(numbers)
    folder.ask_all(numbers)
    assert folder.pages == [CROWD_PAGE] * 4
    assert folder.lookups < 200, "of 2048"


def test_chance_in_a_large_directory_costs_ever_fewer_pages() -> None:
    folder = Folder(100_000)
    chance = random.Random(3)
    folder.step_s = 0.0002
    folder.ask_all(chance.randrange(100_000) for _ in range(40_000))
    assert folder.lookups > 39_900
    assert 1 <= len(folder.pages) <= 7 and sum(folder.pages) < 4000


def test_slow_readers_get_small_pages_or_none() -> None:
    folder = Folder(2000)
    folder.step_s = 0.01
    folder.ask_all(range(2000))
    assert max(folder.pages) <= 2 * PAGE_MIN
    folder = Folder(2000)
    folder.step_s = 2 * PAUSE_S_MAX
    folder.ask_all(range(2000))
    assert folder.pages == []


def test_what_is_not_in_a_page_is_asked_for() -> None:
    folder = Folder(100)
    folder.ask_all(range(STREAK + 2))
    assert folder.pages
    folder.there.add(name_of(500))
    assert folder.ask(500) is not None, "made by others after the page came"
    assert folder.ask(501) is None
    assert folder.ask(STREAK + 3) is not None


def test_those_who_ask_for_what_is_missing_get_nothing_ahead() -> None:
    folder = Folder(100)
    for number in range(99):
        folder.ask(number % 3)
        folder.ask(1000 + number)
    assert folder.pages == []


def test_an_entry_serves_once_and_not_for_long() -> None:
    folder = Folder(100)
    folder.ask_all(range(10))
    before = folder.lookups
    folder.ask(9)
    assert folder.lookups == before + 1
    folder.ask(10)
    assert folder.lookups == before + 1
    folder.now += LIFE_S
    folder.ask(11)
    assert folder.lookups == before + 2


def test_a_change_by_this_mount_ends_a_page_and_too_many_of_them_the_attempts() -> None:
    folder = Folder(2000)
    for number in range(1000):
        folder.ask(number)
        folder.changes += 2
    assert folder.lookups >= 998 and len(folder.pages) <= 2


def test_a_page_serves_only_the_caller_for_whom_it_was_fetched() -> None:
    folder = Folder(1000)
    folder.ask_all(range(10))
    before = folder.lookups
    for number in range(20, 25):
        folder.ask(number, OTHER)
    assert folder.lookups == before + 5
    for number in range(25, 60):
        folder.ask(number, OTHER if number % 2 else SOMEBODY)
    assert folder.lookups == before + 40, "who alternates gets none"


def test_a_page_that_comes_when_another_caller_asks_is_the_first_ones() -> None:
    folder = Folder(1000)
    walks = folder.walks
    for number in range(STREAK + 1):
        walks.looked_up(SOMEBODY, FOLDER, name_of(number), 1.0, found=True)
    fetch = walks.plan(SOMEBODY, FOLDER, name_of(20), 1.0, 0)
    assert fetch is not None and fetch.caller == SOMEBODY
    assert walks.plan(SOMEBODY, FOLDER, name_of(20), 1.0, 0) is None, "it is under way"
    walks.looked_up(OTHER, FOLDER, name_of(20), 1.0, found=True)
    walks.fetched(fetch, folder.page(fetch))
    assert walks.take(OTHER, FOLDER, name_of(20), 1.0, 0, LIFE_S) is None
    assert walks.take(SOMEBODY, FOLDER, name_of(20), 1.0, 0, LIFE_S) is not None


def test_where_listing_is_refused_it_is_tried_seldom() -> None:
    folder = Folder(1000)
    folder.names = []  # as if it could not be listed
    folder.ask_all(range(1000))
    assert folder.lookups == 1000 and len(folder.pages) <= 1 + 1000 // REST_MIN


def test_directories_followed_are_bounded() -> None:
    walks = Walks()
    for parent in range(3 * WALKS_MAX):
        walks.looked_up(SOMEBODY, parent, b"f", 1.0, found=True)
    assert len(walks._walks) == WALKS_MAX


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_asked_for_the_answer_is_as_meta_gave_it(data: st.DataObject) -> None:
    """In any order, by anybody, with changes of this and of other mounts in between."""
    folder = Folder(60)
    asks = st.lists(st.tuples(st.integers(0, 70), st.booleans(), st.sampled_from([0.0, 0.0, 0.0, 0.15, 0.3])), max_size=30)
    for start in data.draw(st.lists(st.integers(0, 60), max_size=5)):
        folder.ask_all(range(start, min(start + 10, 60)))
        for number, own, pause_s in data.draw(asks):
            folder.now += pause_s
            folder.changes += 2 if own else 0
            name = name_of(number)
            if pause_s:
                folder.there ^= {name}
                folder.names = sorted(folder.there)
                folder.changes += 2
            found = folder.ask(number)
            assert (found is not None) == (name in folder.there)
