"""What those who keep caches in files rely on: one call moves a whole block, and a block is seen whole or not at all."""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

MIB = 1 << 20
BLOCK_BYTES = MIB


def block(number: int, size: int = BLOCK_BYTES) -> bytes:
    """Content that tells which version it is of, in every 8 bytes."""
    return number.to_bytes(8, "little") * (size // 8)


def aligned(data: bytes | int) -> mmap.mmap:
    """Memory at a page's beginning, of some content or length."""
    made = mmap.mmap(-1, data if isinstance(data, int) else len(data))
    if not isinstance(data, int):
        made[:] = data
    return made


def publish(path: Path, content: bytes, flags: int = 0) -> None:
    """One write to a file beside it, which then takes its place."""
    beside = path.with_name(f"{path.name}.{threading.get_ident()}")
    fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | flags, 0o644)
    try:
        assert os.write(fd, aligned(content)) == len(content)
    finally:
        os.close(fd)
    os.replace(beside, path)


def all_at_once(*calls: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["cached", "direct"])
def test_one_call_moves_a_whole_block(mounted: Path, flags: int) -> None:
    size = 17 * MIB + 4096
    content = b"".join(block(number, 4096) for number in range(size // 4096))
    publish(mounted / "f", content, flags)
    fd = os.open(mounted / "f", os.O_RDONLY | flags)
    try:
        target = aligned(size)
        assert os.readv(fd, [target]) == size and target[:] == content
        parts = [aligned(5 * MIB), aligned(4096), aligned(11 * MIB)]
        assert os.preadv(fd, parts, MIB) == 16 * MIB + 4096
        assert b"".join(part[:] for part in parts) == content[MIB : 17 * MIB + 4096]
        assert os.preadv(fd, [target], size - 8192) == 8192 and os.preadv(fd, [target], size) == 0
    finally:
        os.close(fd)


def test_direct_reads_and_writes_may_begin_and_end_anywhere(mounted: Path) -> None:
    fd = os.open(mounted / "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    try:
        memory = aligned(block(7))
        assert os.pwrite(fd, memoryview(memory)[3:5003], 123) == 5000
        assert os.pread(fd, 10_000, 0) == bytes(123) + memory[3:5003]
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["cached", "direct"])
def test_readers_see_one_version_whole_while_it_is_replaced(mounted: Path, flags: int) -> None:
    path, versions, ended = mounted / "f", 30, threading.Event()
    publish(path, block(0))
    old = os.open(path, os.O_RDONLY | flags)

    def write() -> None:
        try:
            for number in range(1, versions):
                publish(path, block(number), flags)
        finally:
            ended.set()

    def read() -> None:
        last = 0
        while not ended.is_set():
            fd, target = os.open(path, os.O_RDONLY | flags), aligned(BLOCK_BYTES)
            assert os.readv(fd, [target]) == BLOCK_BYTES
            os.close(fd)
            number = int.from_bytes(target[:8], "little")
            assert target[:] == block(number) and number >= last
            last = number

    all_at_once(write, read, read, read)
    target = aligned(BLOCK_BYTES)
    assert os.preadv(old, [target], 0) == BLOCK_BYTES and target[:] == block(0), "who has it open keeps what was replaced"
    os.close(old)
    assert path.read_bytes() == block(versions - 1) and os.listdir(mounted) == ["f"]


def test_many_make_the_same_folders_and_files(mounted: Path) -> None:
    names = [f"{number % 7:03x}/{number % 3:02x}_g0/{number:064x}.bin" for number in range(40)]

    def write() -> None:
        for number, name in enumerate(names):
            path = mounted / name
            os.makedirs(path.parent, exist_ok=True)
            if not path.exists():
                publish(path, block(number, 4096))

    all_at_once(write, write, write, write)
    found = {str(path.relative_to(mounted)): path.read_bytes() for path in mounted.rglob("*.bin")}
    assert found == {name: block(number, 4096) for number, name in enumerate(names)}
    assert not [path for path in mounted.rglob("*") if path.is_file() and path.suffix != ".bin"]
    shutil.rmtree(mounted / "000")
    assert not (mounted / "000").exists()


def test_what_is_advised_or_synced_stays_as_it_is(mounted: Path) -> None:
    publish(mounted / "f", block(5))
    fd = os.open(mounted / "f", os.O_RDWR)
    for advice in ("NORMAL", "SEQUENTIAL", "RANDOM", "NOREUSE", "WILLNEED", "DONTNEED"):
        os.posix_fadvise(fd, 0, 0, getattr(os, f"POSIX_FADV_{advice}"))
        assert os.pread(fd, BLOCK_BYTES, 0) == block(5)
    os.pwrite(fd, block(6), 0)
    os.fdatasync(fd)
    os.sync()
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, BLOCK_BYTES, 0) == block(6)
    os.close(fd)
    folder = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)
    seen = os.statvfs(mounted)
    assert BLOCK_BYTES % seen.f_bsize == 0, "who aligns to it could use O_DIRECT for no block"
    assert 0 < seen.f_bavail <= seen.f_blocks
