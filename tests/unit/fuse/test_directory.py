"""Cookies of a listing, against a directory that changes meanwhile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.api.meta import Attr, DirEntry, FileKind
from fuse.directory import FIRST, Listing, Page


def fetch(listing: Listing, names: list[bytes], cookie: int, limit: int) -> list[tuple[bytes, int]]:
    """What FileSystem.readdir does: entries with the cookies behind them."""
    after, skip = listing.locate(cookie)
    found = sorted(name for name in names if name > after)[: limit + skip][skip:]
    listing.listed(cookie, found)
    return [(name, cookie + i + 1) for i, name in enumerate(found)]


def read_all(listing: Listing, names: list[bytes], taken: int, cookie: int = FIRST) -> list[bytes]:
    """List to the end, the reader taking only some entries of each reply."""
    result = []
    while page := fetch(listing, names, cookie, 10)[:taken]:
        result.extend([name for name, _ in page])
        cookie = page[-1][1]
    return result


NAMES = [b"%03d" % i for i in range(47)]


def test_every_entry_comes_once_however_many_fit_a_reply() -> None:
    for taken in (1, 3, 10):
        assert read_all(Listing(1), NAMES, taken) == NAMES


def test_rewinding_lists_anew() -> None:
    listing = Listing(1)
    assert read_all(listing, NAMES, 4) == NAMES
    changed = [*NAMES[5:], b"zzz"]
    assert read_all(listing, changed, 4) == changed


def test_a_cookie_finds_its_place_though_entries_before_it_are_gone() -> None:
    listing = Listing(1)
    page = fetch(listing, NAMES, FIRST, 10)
    cookie = page[6][1]
    assert fetch(listing, NAMES[7:], cookie, 10)[0][0] == NAMES[7]


def test_going_back_to_a_cookie_gives_the_entry_behind_it() -> None:
    listing = Listing(1)
    cookies = {}
    cookie = FIRST
    while page := fetch(listing, NAMES, cookie, 10):
        cookies.update(page)
        cookie = page[-1][1]
    assert fetch(listing, NAMES, cookies[b"020"], 5)[0][0] == b"021"
    assert fetch(listing, NAMES, cookies[b"003"], 5)[0][0] == b"004"


@settings(max_examples=40)
@given(st.sets(st.integers(0, 60)), st.integers(1, 12), st.data())
def test_entries_that_stay_are_listed_exactly_once(kept: set[int], taken: int, data: st.DataObject) -> None:
    everything = [b"%03d" % i for i in range(61)]
    stay = {b"%03d" % i for i in kept}
    listing = Listing(1)
    present = list(everything)
    cookie, seen = FIRST, []
    while page := fetch(listing, present, cookie, 10)[:taken]:
        seen.extend([name for name, _ in page])
        cookie = page[-1][1]
        gone = data.draw(st.sets(st.sampled_from(everything)))
        come = data.draw(st.sets(st.sampled_from(everything))) | {name + b"x" for name in gone}
        present = sorted({name for name in present if name in stay or name not in gone} | come)
    assert [name for name in seen if name in stay] == sorted(stay)
    assert len(seen) == len(set(seen))


def page_of(count: int) -> Page:
    attr = Attr(9, 0, FileKind.FILE, 0, 0, 0, 1, 0, 0, 0, 0)
    return Page(FIRST, tuple(DirEntry(b"%03d" % i, attr) for i in range(count)), 10.0, 7)


def test_what_the_kernel_did_not_take_is_there_for_its_next_request() -> None:
    listing = Listing(1)
    listing.page = page_of(10)
    assert [entry.name for entry in listing.rest(FIRST + 7, 10.1, 7)] == [b"007", b"008", b"009"]
    assert listing.rest(FIRST + 10, 10.1, 7) == ()


def test_entries_that_may_be_out_of_date_are_fetched_again() -> None:
    listing = Listing(1)
    listing.page = page_of(10)
    assert listing.rest(FIRST, 10.1, 7) == (), "who starts again wants to see what is new"
    assert listing.rest(FIRST + 3, 10.1, 8) == (), "this mount has changed something"
    assert listing.rest(FIRST + 3, 11.0, 7) == (), "others may have"
