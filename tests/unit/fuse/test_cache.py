from hypothesis import given
from hypothesis import strategies as st

from fuse.cache import BLOCK_SIZE, HOT_AFTER, SMALL_FILE, SMALL_GROUP, SMALL_HOT_AFTER, BlockCache, Heat, warmed


def test_the_block_unused_for_longest_goes_first() -> None:
    cache: BlockCache[str] = BlockCache(30)
    for index in range(3):
        assert cache.make_room(10)
        cache.put(1, index, f"b{index}", 10)
    assert cache.get(1, 0) == "b0"
    cache.make_room(10)
    assert (cache.has(1, 0), cache.has(1, 1), cache.has(1, 2)) == (True, False, True)


def test_what_cannot_fit_drops_nothing() -> None:
    cache: BlockCache[str] = BlockCache(30)
    cache.put(1, 0, "b", 10)
    assert not cache.make_room(31)
    assert cache.has(1, 0)


def test_ranges_and_files_are_dropped() -> None:
    cache: BlockCache[str] = BlockCache(1000)
    for index in range(20):
        cache.put(1, index, "x", 10)
    cache.put(2, 3, "y", 10)
    cache.drop_range(1, 2, 15)
    assert [index for index in range(20) if cache.has(1, index)] == [0, 1, 16, 17, 18, 19]
    cache.put(1, -5, "piece", 10)
    cache.drop_range(1, 16, 16)
    assert not cache.has(1, -5) and not cache.has(1, 16)
    cache.drop_inode(1)
    assert not cache.any_of(1) and cache.has(2, 3) and cache.used == 10


def test_only_the_very_block_is_dropped() -> None:
    cache: BlockCache[list[int]] = BlockCache(100)
    old, new = [1], [1]
    cache.put(1, 0, new, 10)
    cache.drop(1, 0, old)
    assert cache.get(1, 0) is new
    cache.drop(1, 0, new)
    assert cache.used == 0


@given(st.lists(st.tuples(st.sampled_from(["put", "drop", "range", "inode"]), st.integers(0, 2), st.integers(0, 9))))
def test_used_is_the_sum_of_what_is_held(steps: list[tuple[str, int, int]]) -> None:
    cache: BlockCache[object] = BlockCache(50)
    held: dict[tuple[int, int], object] = {}
    for action, inode, index in steps:
        if action == "put" and not cache.has(inode, index):
            cache.make_room(7)
            cache.put(inode, index, held.setdefault((inode, index), object()), 7)
        elif action == "drop" and (inode, index) in held:
            cache.drop(inode, index, held[inode, index])
        elif action == "range":
            cache.drop_range(inode, index, index + 2)
        elif action == "inode":
            cache.drop_inode(inode)
        held = {key: block for key, block in held.items() if cache.has(*key)}
        assert cache.used == 7 * len(held) <= 50


def test_a_block_gets_hot_by_repeated_reads_and_cold_by_others() -> None:
    heat = Heat(limit=3)
    assert [heat.count(1, 0, 4) for _ in range(4)] == [False] * 3 + [True]
    assert not heat.count(1, 0, 4), "it starts cold again"
    for _ in range(3):
        heat.count(1, 5, 4)
    for index in (6, 7, 8):
        heat.count(1, index, 4)
    assert not heat.count(1, 5, 4), "it was not forgotten"


def test_blocks_of_small_files_get_hot_early_and_in_groups() -> None:
    assert warmed(0, 1) == (0, 1, SMALL_HOT_AFTER)
    assert warmed(9, 10 * BLOCK_SIZE) == (8, 2, SMALL_HOT_AFTER)
    assert warmed(9, SMALL_FILE) == (8, SMALL_GROUP, SMALL_HOT_AFTER)
    assert warmed(9, SMALL_FILE + 1) == (9, 1, HOT_AFTER)
