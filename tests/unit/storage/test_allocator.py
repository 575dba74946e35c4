from __future__ import annotations

from random import Random

import pytest

from storage.allocator import SlotAllocator, runs


def test_fresh_then_reused_last_freed_first() -> None:
    slots = SlotAllocator(4)
    assert [slots.allocate() for _ in range(3)] == [(0, True), (1, True), (2, True)]
    slots.release(0)
    slots.release(2)
    assert slots.allocate() == (2, False)
    assert slots.allocate() == (0, False)
    assert slots.allocate() == (3, True)
    assert slots.in_use == 4


def test_opened_with_what_is_used() -> None:
    slots = SlotAllocator(2, [1, 9], [1])
    assert slots.groups() == [0, 1, 2] and slots.in_use == 2
    assert slots.free_with_space == 10, "nobody knows what free slots of a file hold"
    assert [slots.allocate() for _ in range(11)] == [(n, True) for n in (0, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12)]
    with pytest.raises(AssertionError):
        SlotAllocator(2, [1, 2, 1])


def test_groups_without_a_file_come_before_new_ones() -> None:
    slots = SlotAllocator(1, [4])
    assert [slots.allocate()[0] for _ in range(6)] == [5, 0, 1, 2, 3, 6]


def test_punched_slots_come_after_warm_ones() -> None:
    slots = SlotAllocator(4)
    for _ in range(6):
        slots.allocate()
    for number in range(5):
        slots.release(number)
    taken = slots.take_for_punch(keep=2, limit=2)
    assert taken == [0, 1]
    assert slots.allocate() == (4, False)
    slots.punched(taken)
    assert [slots.allocate() for _ in range(4)] == [(3, False), (2, False), (0, True), (1, True)]
    assert slots.allocate() == (6, True)
    assert slots.take_for_punch(keep=2, limit=2) == []


def test_a_slot_that_was_not_written_takes_no_space() -> None:
    slots = SlotAllocator(4)
    slots.release(slots.allocate()[0], hole=True)
    assert slots.free_with_space == 0 and slots.allocate() == (0, True)


def test_empty_groups_are_given_back() -> None:
    slots = SlotAllocator(2)
    for _ in range(12):
        slots.allocate()
    for number in (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11):
        slots.release(number)
    assert slots.take_empty(keep=12) == []
    assert slots.take_empty(keep=5) == [2]
    assert slots.take_empty(keep=0) == [0]
    assert sorted(slots.allocate()[0] for _ in range(4)) == [5, 6, 7, 12], "not those whose files are being removed"
    slots.removed([0, 2])
    assert [slots.allocate()[0] for _ in range(7)] == [13, 14, 15, 0, 1, 2, 3]


def test_no_slot_is_given_twice() -> None:
    random = Random(5)
    slots = SlotAllocator(3, [2, 3, 17])
    held = {2, 3, 17}
    for _ in range(5000):
        draw = random.random()
        if draw < 0.5 and len(held) < 60:
            number, _ = slots.allocate()
            assert number not in held
            held.add(number)
        elif draw < 0.9 and held:
            number = random.choice(sorted(held))
            held.remove(number)
            slots.release(number)
        elif draw < 0.95:
            slots.punched(slots.take_for_punch(random.randrange(5), 3))
        else:
            slots.removed(slots.take_empty(random.randrange(20)))
        assert slots.in_use == len(held)
        assert {number >> 3 for number in held} <= set(slots.groups())


def test_no_slot_is_freed_that_was_never_given() -> None:
    slots = SlotAllocator(4)
    slots.release(slots.allocate()[0])
    with pytest.raises(AssertionError):
        slots.release(0)


def test_runs() -> None:
    assert runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 1), (9, 2)]
