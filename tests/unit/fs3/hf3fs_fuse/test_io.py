"""hf3fs_fuse.io without a mount: what it exports, slices, and what it makes of time-outs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from datetime import timedelta
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import pytest

from fs3 import usrbio
from fs3.hf3fs_fuse import io
from fs3.usrbio import Completion

IMPORTED_BY_ENGINES = """
import multiprocessing
from hf3fs_fuse.io import deregister_fd, extract_mount_point, make_ioring, make_iovec, register_fd
from hf3fs_fuse.io import IorPriority, force_fsync, hardlink, punch_hole, read_file
from hf3fs_fuse.fuse import get_mount_point
multiprocessing.shared_memory.SharedMemory
assert (IorPriority.HIGH, IorPriority.NORMAL, IorPriority.LOW) == (-1, 0, 1)
"""


class Memory:
    """An Iov."""

    def __init__(self, size: int) -> None:
        self.size_bytes = size
        self.view = memoryview(bytearray(size))


class Ring:
    """An Ior whose operations end when the test says so."""

    def __init__(self, entries: int = 8, for_read: bool = True) -> None:
        self.entries, self.for_read = entries, for_read
        self.prepared: list[Completion] = []
        self.ended = 0
        self.lingering = 0
        self.next = 0

    def prepare(self, memory: Memory, offset: int, length: int, fd: int, file_offset: int, userdata: Any) -> int:
        assert memory.view[offset : offset + length].nbytes == length
        self.prepared.append(Completion(length, userdata, self.next))
        self.next += 1
        return self.next - 1

    def submit(self) -> int:
        return len(self.prepared)

    def wait(self, max_results: int, min_results: int, timeout_s: float | None) -> list[Completion]:
        assert timeout_s is not None or self.ended >= min_results, "waits for ever"
        count = min(self.ended, max_results)
        found, self.prepared = self.prepared[:count], self.prepared[count:]
        self.ended -= count
        return found

    def abandon(self) -> int:
        self.lingering += len(self.prepared) - self.ended
        self.prepared, self.ended = [], 0
        return self.lingering

    def settle(self, timeout_s: float) -> bool:
        return not self.lingering


def made(size: int = 4096, for_read: bool = True) -> tuple[io.iovec, Ring, io.ioring]:
    ring = Ring(for_read=for_read)
    return io.iovec(Memory(size)), ring, io.ioring(ring)  # type: ignore[arg-type]


def test_engines_find_what_they_import() -> None:
    subprocess.run([sys.executable, "-c", IMPORTED_BY_ENGINES], check=True, timeout=60)


def test_slices_are_places_in_the_shared_memory() -> None:
    iov, _, _ = made(100)
    part = iov[10:50]
    memoryview(part)[:3] = b"abc"
    assert bytes(iov._view[10:14]) == b"abc\0" and len(memoryview(part)) == 40 and memoryview(part).format == "B"
    assert (part[5:7].base_off, memoryview(part[5:7]).nbytes) == (15, 2)
    assert (memoryview(iov[:]).nbytes, memoryview(iov[90:200]).nbytes, memoryview(iov[-10:]).nbytes) == (100, 10, 10)
    assert memoryview(iov[50:10]).nbytes == 0
    assert repr(iov[4:8]) == "<iovec_slice [4:8], result 0>"
    with pytest.raises(ValueError, match="step of 1"):
        iov[::2]
    with pytest.raises(TypeError, match="a slice of bytes"):
        iov[3]


def test_slices_are_things_not_rows_of_numbers() -> None:
    iov, _, _ = made(100)
    one, same = iov[:0], iov[:0]
    assert bool(one) and one == one and one != same and {one: 1, same: 2}[same] == 2
    assert one in [same, one] and [same, one].index(one) == 1


def test_operations_come_back_as_their_slices() -> None:
    iov, ring, rings = made()
    parts = [iov[at : at + 10] for at in range(0, 50, 10)]
    marks = [object() for _ in parts]
    for part, mark in zip(parts, marks, strict=True):
        assert rings.prepare(part, True, 3, 0, userdata=mark) is rings
    ring.ended = 5
    done = rings.submit().wait(min_results=5)
    assert all(got is part and got.userdata is mark for got, part, mark in zip(done, parts, marks, strict=True))
    assert [got.result for got in done] == [10] * 5


def test_a_slice_used_twice_has_two_results() -> None:
    iov, ring, rings = made()
    part = iov[:10]
    rings.prepare(part, True, 3, 0, "first").prepare(part, True, 3, 10, "second")
    ring.ended = 2
    first, second = rings.submit().wait(min_results=2)
    assert first is part and (first.userdata, second.userdata) == ("first", "second")
    rings.prepare(part, True, 3, 0, "third")
    ring.ended = 1
    assert rings.submit().wait(min_results=1) == [part]


def test_a_whole_iovec_can_be_given() -> None:
    iov, ring, rings = made(64)
    rings.prepare(iov, True, 3, 0)
    assert ring.prepared[0].result == 64


@pytest.mark.parametrize(
    "max_results, min_results, expected", [(0, 0, 1), (0, 2, 2), (3, 0, 3), (3, 2, 3), (2, 3, 3), (9, 0, 5)]
)
def test_how_many_a_wait_returns(max_results: int, min_results: int, expected: int) -> None:
    iov, ring, rings = made()
    for at in range(5):
        rings.prepare(iov[at : at + 1], True, 3, 0)
    ring.ended = 5
    assert len(rings.wait(max_results=max_results, min_results=min_results)) == expected


@pytest.mark.parametrize("timeout", [timedelta(milliseconds=1), 0.001, 0])
def test_what_was_waited_for_in_vain_can_be_fetched_later(timeout: timedelta | float) -> None:
    iov, ring, rings = made()
    first, second, third = iov[:10], iov[10:20], iov[20:30]
    rings.prepare(first, True, 3, 0).prepare(second, True, 3, 0).submit()
    ring.ended = 1
    assert rings.wait(min_results=2, timeout=timeout) == [first]
    rings.prepare(third, True, 3, 0).submit()  # other memory
    ring.ended = 2
    assert rings.wait(min_results=2) == [second, third]


def test_whoever_uses_its_memory_again_never_hears_of_it() -> None:
    iov, ring, rings = made()
    late = [iov[at : at + 10] for at in range(0, 40, 10)]
    for part in late:
        rings.prepare(part, True, 3, 0, "late")
    assert rings.submit().wait(min_results=4, timeout=0.0) == []
    with pytest.raises(OSError) as caught:  # the daemon may still write there
        rings.prepare(iov[5:6], True, 3, 0, "new")
    assert caught.value.errno == errno.EAGAIN
    with pytest.raises(OSError):
        rings.prepare(iov[50:60], True, 3, 0, "new")
    ring.lingering = 0
    rings.prepare(iov[5:6], True, 3, 0, "new").prepare(iov[30:40], True, 3, 0, "new")
    ring.ended = 2
    assert [done.userdata for done in rings.submit().wait(min_results=2)] == ["new", "new"]


def test_memory_of_what_was_not_waited_for_in_vain_can_be_used_twice() -> None:
    iov, ring, rings = made()
    source = iov[:10]
    rings.prepare(source, True, 3, 0, "first").prepare(iov[10:20], True, 3, 0, "second").submit()
    assert rings.wait(max_results=2, timeout=0.0) == []  # none had to be there
    rings.prepare(source, True, 3, 0, "third").submit()
    ring.ended = 1
    assert rings.wait(min_results=3, timeout=0.0) == [source]
    ring.ended = 1
    assert [done.userdata for done in rings.wait(min_results=1, timeout=0.0)] == ["second"]
    rings.prepare(iov[10:20], True, 3, 0, "fourth").submit()  # of the second, which has ended
    ring.ended = 2
    assert [done.userdata for done in rings.wait(min_results=2)] == ["third", "fourth"]


@pytest.mark.parametrize("for_read", [False, True])
def test_a_ring_has_one_direction(for_read: bool) -> None:
    iov, ring, rings = made(for_read=for_read)
    with pytest.raises(OSError, match=r"this ring is for (reading, not for writing|writing, not for reading)") as caught:
        rings.prepare(iov[:1], not for_read, 3, 0)
    assert caught.value.errno == errno.EINVAL and not ring.prepared


def test_where_there_is_no_mount() -> None:
    assert io.extract_mount_point("/proc/self") is None
    shm = SharedMemory(size=100, create=True)
    try:
        for call in (lambda: io.make_iovec(shm, "/proc"), lambda: io.make_ioring("/proc", 8)):
            with pytest.raises(OSError, match="no fs3 file system is mounted") as caught:
                call()
            assert caught.value.errno == errno.ENODEV
    finally:
        shm.close()
        shm.unlink()
    fd = os.open(__file__, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            io.register_fd(fd)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(fd)
    io.deregister_fd(fd)
    io.deregister_fd(fd)
    io.deregister_fd(-1)


def test_to_deregister_with_a_daemon_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines close the descriptor after it, and would not if it failed."""
    numbers = [errno.ENODEV, errno.EPROTO]

    def fails(fd: int) -> None:
        raise OSError(numbers.pop(0), "")

    monkeypatch.setattr(usrbio, "deregister_fd", fails)
    io.deregister_fd(3)
    with pytest.raises(OSError):
        io.deregister_fd(3)


@pytest.mark.parametrize("wrong, message", [({"flags": 2}, "a hole"), ({"timeout": -1}, "0 or more ms")])
def test_rings_that_cannot_be(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(OSError, match=message) as caught:
        io.make_ioring("/proc", 8, **wrong)  # type: ignore[arg-type]
    assert caught.value.errno == errno.EINVAL


def test_holes_need_as_many_ends_as_starts() -> None:
    with pytest.raises(OSError, match="as many of each") as caught:
        io.punch_hole(__file__, [0, 1], [1])
    assert caught.value.errno == errno.EINVAL
