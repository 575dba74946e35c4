from __future__ import annotations

from fs3.transport.buffers import POOLED_SIZE_MAX, POOLED_SIZE_MIN, BufferPool

SIZE = 2 * POOLED_SIZE_MIN


def address(view: memoryview) -> int:
    """Of the memory, without a reference to it that an assertion could keep."""
    return id(view.obj)


def test_a_buffer_is_used_again_only_when_nobody_refers_to_it() -> None:
    pool = BufferPool()
    whole = pool.take(SIZE)
    first = address(whole)
    part = whole[10:20]
    del whole
    other = pool.take(SIZE)
    second = address(other)
    assert second != first, "a view of a part still lives"
    del part
    again = pool.take(SIZE - 1)
    third = address(again)
    assert third == first and len(again) == SIZE - 1


def test_small_and_huge_ones_are_not_kept() -> None:
    pool = BufferPool()
    for size in (0, 1, POOLED_SIZE_MIN - 1, POOLED_SIZE_MAX + 1):
        assert len(pool.take(size)) == size
    assert pool._kept == 0


def test_no_more_is_kept_than_allowed() -> None:
    pool = BufferPool(kept_max=4 * SIZE)
    taken = [pool.take(SIZE) for _ in range(10)]
    assert len({id(view.obj) for view in taken}) == 10
    assert pool._kept == 4 * SIZE
    taken.clear()
    large = pool.take(4 * SIZE)
    assert pool._kept == 4 * SIZE and len(large) == 4 * SIZE, "free ones of another size make room"
