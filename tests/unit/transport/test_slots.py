"""Slots of powers of two: never two that overlap, none that is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fs3.transport.slots import Slots

LEAST, MOST, SIZE = 64, 512, 2048


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 600)), max_size=60))
def test_slots_never_overlap_and_come_back(steps: list[tuple[bool, int]]) -> None:
    slots = Slots(SIZE, LEAST, MOST)
    taken: list[tuple[int, int]] = []
    for take, size in steps:
        if not take:
            if taken:
                slots.give_back(*taken.pop(size % len(taken)))
            continue
        offset = slots.take(size)
        if offset is None:
            assert size > MOST or taken
            continue
        assert size <= MOST and offset >= 0 and offset + slots.rounded(size) <= SIZE
        for other, length in taken:
            assert offset + slots.rounded(size) <= other or other + slots.rounded(length) <= offset
        taken.append((offset, size))
    assert slots.taken == len(taken)
    for offset, size in taken:
        slots.give_back(offset, size)
    assert slots.take(MOST) is not None, "when nothing is in use, any size can be had"
