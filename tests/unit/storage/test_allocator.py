from __future__ import annotations

import pytest

from storage.allocator import SlotAllocator


def test_fresh_then_reused_last_freed_first() -> None:
    slots = SlotAllocator()
    assert [slots.allocate() for _ in range(3)] == [(0, True), (1, True), (2, True)]
    slots.release(0)
    slots.release(2)
    assert slots.allocate() == (2, False)
    assert slots.allocate() == (0, False)
    assert slots.allocate() == (3, True)
    assert slots.in_use == 4


def test_opened_with_what_is_used() -> None:
    slots = SlotAllocator({1, 3})
    assert slots.in_use == 2
    assert slots.free_with_space == 2
    assert {slots.allocate()[0], slots.allocate()[0]} == {0, 2}
    assert slots.allocate() == (4, True)


def test_punched_slots_come_after_warm_ones() -> None:
    slots = SlotAllocator()
    for _ in range(6):
        slots.allocate()
    for number in range(5):
        slots.release(number)
    taken = slots.take_for_punch(keep=2, limit=2)
    assert taken == [0, 1]
    assert slots.allocate() == (4, False)
    slots.punched(taken)
    assert [slots.allocate()[0] for _ in range(4)] == [3, 2, 1, 0]
    assert slots.allocate() == (6, True)
    assert slots.take_for_punch(keep=2, limit=2) == []


def test_no_slot_is_freed_that_was_never_given() -> None:
    with pytest.raises(AssertionError):
        SlotAllocator().release(0)
