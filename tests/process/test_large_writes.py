"""Writes that are large, many at once, or past the kernel's pages, through a mount."""

from __future__ import annotations

import mmap
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.process.test_two_mounts import opened

pytestmark = pytest.mark.process

MIB = 1 << 20
LENGTH = 64 * MIB


@pytest.fixture(scope="module")
def block() -> mmap.mmap:
    """Aligned as O_DIRECT wants it."""
    made = mmap.mmap(-1, LENGTH)
    made.write(random.Random(1).randbytes(MIB) * (LENGTH // MIB))
    for at in range(0, LENGTH, MIB):
        made[at : at + 8] = at.to_bytes(8, "little")
    return made


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_one_write_takes_64_mib_and_one_read_gives_them(mounted: Path, block: mmap.mmap, flags: int) -> None:
    with opened(mounted / "f", os.O_RDWR | os.O_CREAT | flags) as fd, mmap.mmap(-1, LENGTH) as into:
        assert os.pwrite(fd, block, 0) == LENGTH
        assert os.preadv(fd, [memoryview(into)[: LENGTH // 2], memoryview(into)[LENGTH // 2 :]], 0) == LENGTH
        assert into[:] == block[:]


def test_many_writers_on_one_file_lose_nothing(mounted: Path, block: mmap.mmap) -> None:
    size, count = 333_333, 60

    def write(number: int) -> None:
        with opened(mounted / "f", os.O_WRONLY | (os.O_DSYNC if number % 7 == 0 else 0)) as fd:
            for index in range(number, count, 8):
                assert os.pwrite(fd, block[index * size : (index + 1) * size], index * size) == size

    (mounted / "f").write_bytes(b"")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert (mounted / "f").read_bytes() == block[: size * count]
