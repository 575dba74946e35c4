from __future__ import annotations

import random

from fs3.checksum import BLOCK_SIZE, crc32c
from storage.page_sums import PAGE_SIZE, PageSums, cover, match


def block(seed: int, length: int = BLOCK_SIZE) -> memoryview:
    return memoryview(random.Random(seed).randbytes(length))


def test_pages_of_a_block() -> None:
    sums = PageSums()
    data = block(1)
    assert sums.find(16, crc32c(data)) is None
    learnt = sums.learn(16, crc32c(data), data)
    assert learnt == sums.find(16, crc32c(data))
    assert learnt == tuple(crc32c(data[at : at + PAGE_SIZE]) for at in range(0, BLOCK_SIZE, PAGE_SIZE))
    assert match(learnt, 2 * PAGE_SIZE, data[2 * PAGE_SIZE : 5 * PAGE_SIZE])
    assert not match(learnt, PAGE_SIZE, data[2 * PAGE_SIZE : 5 * PAGE_SIZE])


def test_what_changed_is_forgotten() -> None:
    sums = PageSums()
    data, other = block(1), block(2)
    sums.learn(16, crc32c(data), data)
    assert sums.find(16, crc32c(other)) is None
    sums.learn(16, crc32c(other), other)
    assert sums.find(16, crc32c(data)) is None
    assert sums.find(16, crc32c(other)) is not None


def test_a_short_block() -> None:
    data = block(3, PAGE_SIZE + 100)
    learnt = PageSums().learn(17, crc32c(data), data)
    assert match(learnt, 0, data) and match(learnt, PAGE_SIZE, data[PAGE_SIZE:])
    assert cover(10, 20, len(data)) == (0, PAGE_SIZE)
    assert cover(PAGE_SIZE, PAGE_SIZE + 50, len(data)) == (PAGE_SIZE, len(data))
    assert cover(PAGE_SIZE - 1, PAGE_SIZE + 1, BLOCK_SIZE) == (0, 2 * PAGE_SIZE)


def test_bounded_and_what_is_used_stays() -> None:
    sums = PageSums(blocks_max=4)
    data = block(4, 100)
    value = crc32c(data)
    sums.learn(0, value, data)
    for place in range(1, 50):
        sums.learn(place, value, data)
        assert sums.find(0, value) is not None
    assert sum(sums.find(place, value) is not None for place in range(50)) <= 8


def test_overwritten_pages_give_the_checksum_of_the_block() -> None:
    chance = random.Random(5)
    sums = PageSums()
    data = bytearray(chance.randbytes(BLOCK_SIZE))
    assert sums.overwrite(16, crc32c(data), 0, memoryview(data)[:PAGE_SIZE]) is None, "nothing is known yet"
    sums.learn(16, crc32c(data), memoryview(data))
    for _ in range(50):
        first = chance.randrange(16)
        count = chance.randrange(1, 17 - first)
        fresh = chance.randbytes(count * PAGE_SIZE)
        before = crc32c(data)
        data[first * PAGE_SIZE : (first + count) * PAGE_SIZE] = fresh
        assert sums.overwrite(16, before, first * PAGE_SIZE, memoryview(fresh)) == crc32c(data)
        assert sums.find(16, before) is None
        learnt = sums.find(16, crc32c(data))
        assert learnt is not None and match(learnt, 0, data)
    assert sums.overwrite(16, crc32c(data), 1, memoryview(data)[:PAGE_SIZE]) is None
    assert sums.overwrite(16, crc32c(data), 0, memoryview(data)[:100]) is None
