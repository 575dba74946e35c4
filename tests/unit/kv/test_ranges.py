"""Ranges of keys against sets of keys."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fs3.kv.ranges import Range, contains, insert, intersects, key_range, subtract

UNIVERSE = [bytes([number]) for number in range(8)]
RANGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda ends: ends[0] < ends[1]), max_size=4).map(
    lambda ranges: [(bytes([begin]), bytes([end])) for begin, end in ranges]
)


def members(ranges: list[Range]) -> set[bytes]:
    return {key for key in UNIVERSE for begin, end in ranges if begin <= key < end}


def tidy(ranges: list[Range]) -> bool:
    """Sorted, disjoint, not empty."""
    return all(begin < end for begin, end in ranges) and all(
        left[1] <= right[0] for left, right in itertools.pairwise(ranges)
    )


@given(ranges=RANGES, one=RANGES.filter(bool))
def test_queries(ranges: list[Range], one: list[Range]) -> None:
    begin, end = one[0]
    assert {key for key in UNIVERSE if contains(ranges, key)} == members(ranges)
    assert intersects(ranges, begin, end) == bool(members(ranges) & members([(begin, end)]))
    left = subtract(begin, end, ranges)
    assert tidy(left) and members(left) == members([(begin, end)]) - members(ranges)


@given(ranges=RANGES)
def test_insert(ranges: list[Range]) -> None:
    joined: list[Range] = []
    for begin, end in ranges:
        insert(joined, begin, end)
    assert tidy(joined) and members(joined) == members(ranges)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(joined))  # none that touch


def test_a_key_range_holds_its_key_only() -> None:
    begin, end = key_range(b"a")
    assert contains([(begin, end)], b"a")
    assert not contains([(begin, end)], b"a\x00")
