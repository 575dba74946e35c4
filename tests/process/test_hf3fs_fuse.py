"""hf3fs_fuse on a real mount: what 3FS's interface promises to those who call it, errors and time-outs included."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from fs3.client.sync import FileSystem
from fs3.hf3fs_fuse import fuse, io
from tests.process import harness

pytestmark = pytest.mark.process

SIZE = 1 << 18
PIECE = 1 << 14
LIMIT_S = 30.0


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    """A registered descriptor."""
    fd = os.open(path, flags, 0o644)
    io.register_fd(fd)
    try:
        yield fd
    finally:
        io.deregister_fd(fd)
        os.close(fd)


class Shared:
    """Memory, an iovec of it, and a ring of each kind. Its name is gone at once, as engines do it."""

    def __init__(self, mount: Path, entries: int = 64) -> None:
        self.shm = SharedMemory(size=SIZE, create=True)
        self.iov = io.make_iovec(self.shm, str(mount))
        self.shm.unlink()
        self.reads = io.make_ioring(str(mount), entries, timeout=1)
        self.writes = io.make_ioring(str(mount), entries, for_read=False, timeout=1)

    def pieces(self) -> list[io.iovec_slice]:
        return [self.iov[at : at + PIECE] for at in range(0, SIZE, PIECE)]


@pytest.fixture
def shared(shared_cluster: harness.Cluster, mounted: Path) -> Iterator[Shared]:
    made = Shared(shared_cluster.mount)
    yield made
    del made.iov, made.reads, made.writes
    made.shm.close()


def fails_with(number: int, ring: io.ioring, *words: object) -> None:
    with pytest.raises(OSError) as caught:
        ring.prepare(*words)  # type: ignore[arg-type]
    assert caught.value.errno == number, caught.value


def test_what_is_written_is_read_and_in_the_order_of_asking(mounted: Path, shared: Shared) -> None:
    data = os.urandom(SIZE)
    marks = [object() for _ in shared.pieces()]
    with opened(mounted / "file") as fd:
        shared.shm.buf[:] = data
        for number, part in enumerate(shared.pieces()):
            shared.writes.prepare(part, False, fd, number * PIECE)
        assert [done.result for done in shared.writes.submit().wait(min_results=len(marks))] == [PIECE] * len(marks)
        assert os.fstat(fd).st_size == SIZE and os.pread(fd, SIZE, 0) == data
        shared.shm.buf[:] = bytes(SIZE)
        backwards = list(enumerate(zip(shared.pieces(), marks, strict=True)))[::-1]
        for number, (part, mark) in backwards:
            shared.reads.prepare(part, True, fd, number * PIECE, userdata=mark)
        done = shared.reads.submit().wait(min_results=len(marks), timeout=timedelta(seconds=LIMIT_S))
        assert [each.userdata for each in done] == marks[::-1] and bytes(shared.shm.buf) == data
        shared.reads.prepare(shared.iov[:], True, fd, SIZE - 7).prepare(shared.iov[:9], True, fd, SIZE + 100)
        assert [each.result for each in shared.reads.submit().wait(min_results=2)] == [7, 0]
    assert io.read_file(str(mounted / "file")) == data
    assert io.read_file(str(mounted / "file"), block_size=PIECE, off=5, priority=io.IorPriority.HIGH) == data[5:]


def test_read_file_calls_back(mounted: Path) -> None:
    data, path = os.urandom(3 * PIECE + 5), mounted / "file"
    path.write_bytes(data)
    seen: list[tuple[int, int]] = []

    def skip(block: memoryview, off: int) -> int | bool:
        assert bytes(block) == data[off : off + len(block)]
        seen.append((off, len(block)))
        return 2 * PIECE if off == 0 else off >= 3 * PIECE

    assert io.read_file(str(path), block_size=PIECE, cb=skip) is None
    assert seen == [(0, PIECE), (2 * PIECE, PIECE), (3 * PIECE, 5)]


def test_every_error_is_the_documented_one(mounted: Path, shared: Shared) -> None:
    path, part = mounted / "file", shared.iov[:PIECE]
    path.write_bytes(b"x")
    with opened(path) as fd:
        fails_with(errno.EINVAL, shared.reads, part, False, fd, 0)
        fails_with(errno.EINVAL, shared.writes, part, True, fd, 0)
        fails_with(errno.EINVAL, shared.reads, shared.iov[:0], True, fd, 0)
        fails_with(errno.EINVAL, shared.reads, part, True, fd, -1)
        with pytest.raises(OSError) as caught:
            io.register_fd(fd)
        assert caught.value.errno == errno.EINVAL
        other = os.open(path, os.O_RDONLY)
        fails_with(errno.EBADF, shared.reads, part, True, other, 0)
        fails_with(errno.EBADF, shared.reads, part, True, -1, 0)
        os.close(other)
    fails_with(errno.EBADF, shared.reads, part, True, fd, 0)
    with opened(path, os.O_RDONLY) as fd:
        fails_with(errno.EACCES, shared.writes, part, False, fd, 0)
        with pytest.raises(OSError) as caught:
            io.punch_hole(fd, [0], [1])
        assert caught.value.errno == errno.EACCES
    with opened(path, os.O_WRONLY) as fd:
        fails_with(errno.EACCES, shared.reads, part, True, fd, 0)
    for wrong in (os.open(__file__, os.O_RDONLY), os.open(mounted, os.O_RDONLY)):
        with pytest.raises(OSError) as caught:
            io.register_fd(wrong)
        assert caught.value.errno in (errno.EBADF, errno.EINVAL)
        os.close(wrong)


def test_a_full_ring_says_so_and_goes_on(mounted: Path, shared_cluster: harness.Cluster) -> None:
    shared = Shared(shared_cluster.mount, entries=4)
    parts = shared.pieces()
    with opened(mounted / "file") as fd:
        os.write(fd, bytes(SIZE))
        for _ in range(3):
            for number in range(4):
                shared.reads.prepare(parts[number], True, fd, 0, number)
            fails_with(errno.EAGAIN, shared.reads, parts[4], True, fd, 0)
            assert [done.userdata for done in shared.reads.submit().wait(min_results=4)] == [0, 1, 2, 3]


def test_waits_return_no_more_than_was_asked_for_and_lose_nothing(mounted: Path, shared: Shared) -> None:
    with opened(mounted / "file") as fd:
        os.write(fd, bytes(SIZE))
        assert shared.reads.wait() == [] and shared.reads.wait(max_results=5) == []
        for number, part in enumerate(shared.pieces()[:9]):
            shared.reads.prepare(part, True, fd, 0, number)
        shared.reads.submit()
        seen = shared.reads.wait(min_results=2)
        assert len(seen) == 2
        seen += shared.reads.wait(max_results=3, min_results=3) + shared.reads.wait(min_results=1, max_results=1)
        assert len(seen) == 6
        end = time.monotonic() + LIMIT_S
        while len(seen) < 9 and time.monotonic() < end:
            seen += shared.reads.wait(timeout=0.01)
        assert [done.userdata for done in seen] == list(range(9))


@contextmanager
def frozen(cluster: harness.Cluster) -> Iterator[None]:
    """Nothing ends meanwhile: the mount's daemon stands still."""
    pid = cluster.pids()["mount"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_batch_that_came_too_late_is_not_taken_for_the_next(
    mounted: Path, shared_cluster: harness.Cluster, shared: Shared
) -> None:
    """As SGLang does it: it waits for a batch with a time-out, gives up, and reads the next one into the same memory."""
    data = os.urandom(SIZE)
    (mounted / "file").write_bytes(data)
    with opened(mounted / "file") as fd:
        parts = shared.pieces()
        with frozen(shared_cluster):
            for number, part in enumerate(parts):
                shared.reads.prepare(part, True, fd, number * PIECE, "late")
            assert shared.reads.submit().wait(min_results=len(parts), timeout=timedelta(milliseconds=50)) == []
            fails_with(errno.EAGAIN, shared.reads, shared.iov[:100], True, fd, 0)  # the daemon may still write there
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                shared.reads.prepare(shared.iov[:100], True, fd, 5, "new")
                break
            except BlockingIOError:
                assert time.monotonic() < end
        (done,) = shared.reads.submit().wait(min_results=1)
        assert (done.userdata, done.result) == ("new", 100) and bytes(shared.shm.buf[:100]) == data[5:105]
        assert shared.reads.wait(max_results=64) == []


def test_who_waits_again_gets_what_came_late(mounted: Path, shared_cluster: harness.Cluster, shared: Shared) -> None:
    (mounted / "file").write_bytes(bytes(SIZE))
    with opened(mounted / "file") as fd:
        with frozen(shared_cluster):
            shared.reads.prepare(shared.iov[:10], True, fd, 0, "first").submit()
            assert shared.reads.wait(min_results=1, timeout=0.05) == []
            shared.reads.prepare(shared.iov[10:20], True, fd, 0, "second").submit()
        done = shared.reads.wait(min_results=2, timeout=LIMIT_S)
        assert [each.userdata for each in done] == ["first", "second"]


def test_descriptors_that_were_closed_before(mounted: Path, shared: Shared) -> None:
    """A number stands for the file that was registered until it is deregistered, whatever the kernel uses it for."""
    (mounted / "old").write_bytes(b"old")
    (mounted / "new").write_bytes(b"new")
    part = shared.iov[:10]
    fd = os.open(mounted / "old", os.O_RDONLY)
    io.register_fd(fd)
    os.close(fd)
    again = os.open(mounted / "new", os.O_RDONLY)
    assert again == fd
    shared.reads.prepare(part, True, fd, 0).submit()
    assert shared.reads.wait(min_results=1)[0].result == 3 and bytes(shared.shm.buf[:3]) == b"old"
    io.deregister_fd(fd)
    fails_with(errno.EBADF, shared.reads, part, True, fd, 0)
    io.register_fd(again)
    shared.reads.prepare(part, True, again, 0).submit()
    assert shared.reads.wait(min_results=1)[0].result == 3 and bytes(shared.shm.buf[:3]) == b"new"
    os.close(again)
    io.deregister_fd(again)
    io.deregister_fd(again)


def test_memory_outlives_its_name_and_the_program_s_own_mapping(mounted: Path, shared_cluster: harness.Cluster) -> None:
    shared = Shared(shared_cluster.mount)
    shared.shm.buf[:5] = b"first"
    shared.shm.close()
    with opened(mounted / "file") as fd:
        shared.writes.prepare(shared.iov[:5], False, fd, 0).submit()
        assert shared.writes.wait(min_results=1)[0].result == 5
    assert (mounted / "file").read_bytes() == b"first"


def test_names_lengths_and_holes(mounted: Path, shared_cluster: harness.Cluster) -> None:
    path, mount = mounted / "file", shared_cluster.mount
    assert io.extract_mount_point(str(path)) == str(mount) == fuse.get_mount_point(str(path))
    data = bytearray(os.urandom(3 << 20))
    path.write_bytes(data)
    io.hardlink(str(path), str(mounted / "link"))
    assert path.stat().st_nlink == 2 and (mounted / "link").samefile(path)
    with pytest.raises(FileExistsError):
        io.hardlink(str(path), str(mounted / "link"))
    io.punch_hole(str(path), [1 << 20, 10], [2 << 20, 20])
    data[1 << 20 : 2 << 20], data[10:20] = bytes(1 << 20), bytes(10)
    assert path.read_bytes() == data and path.stat().st_blocks * 512 == 2 << 20
    shared = Shared(mount)
    with opened(path) as fd, closing(FileSystem(shared_cluster.mgmtd())) as elsewhere:
        io.punch_hole(fd, [0], [3 << 20])
        assert path.read_bytes() == bytes(3 << 20) and path.stat().st_blocks * 512 <= 1 << 20
        shared.shm.buf[:4] = b"tail"
        shared.writes.prepare(shared.iov[:4], False, fd, 4 << 20).submit()
        assert shared.writes.wait(min_results=1)[0].result == 4
        assert io.force_fsync(fd) == 0
        assert elsewhere.stat(f"/{path.relative_to(mount)}").length == (4 << 20) + 4
