"""What docs/posix.md says a mount cannot do, and what it offers instead. A line that is not true any more shows here."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fs3.cli.main import cli
from fs3.errors import FS3Error
from tests.posix import operations as ops
from tests.process import harness

pytestmark = pytest.mark.process

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE = 1, 2
RENAME_WHITEOUT = 4
FICLONE, FS_IOC_GETFLAGS, FS_IOC_FIEMAP = 0x40049409, 0x80086601, 0xC020660B
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def error_of(call: Callable[[], object]) -> int:
    """The errno with which a call fails; 0 where it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    long = ctypes.c_long
    if _LIBC.fallocate(fd, mode, long(offset), long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def test_space_is_not_reserved_but_files_are_filled(mounted: Path) -> None:
    with opened(mounted / "f") as fd:
        os.write(fd, b"abc")
        for mode in (0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE):
            assert error_of(lambda mode=mode: fallocate(fd, mode, 0, 100_000)) == errno.EOPNOTSUPP  # type: ignore[misc]
        os.posix_fallocate(fd, 0, 100_000)
        assert os.fstat(fd).st_size == 100_000 and os.pread(fd, 4, 0) == b"abc\0"


def test_all_of_a_file_is_data(mounted: Path) -> None:
    with opened(mounted / "f") as fd:
        os.pwrite(fd, b"x", 5 * MIB)
        assert os.lseek(fd, 1000, os.SEEK_DATA) == 1000
        assert os.lseek(fd, 1000, os.SEEK_HOLE) == 5 * MIB + 1
        assert error_of(lambda: os.lseek(fd, 6 * MIB, os.SEEK_DATA)) == errno.ENXIO


def test_holes_take_no_blocks(mounted: Path) -> None:
    with opened(mounted / "f") as fd:
        os.write(fd, bytes(1000))
        assert os.fstat(fd).st_blocks == 2
        os.pwrite(fd, b"x" * 1024, 5 * MIB)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks == 4
    os.truncate(mounted / "f", 50 * MIB)
    assert os.stat(mounted / "f").st_blocks == 4
    assert [entry.stat().st_blocks for entry in os.scandir(mounted)] == [4]


def test_ranges_are_copied(mounted: Path) -> None:
    with opened(mounted / "f") as source, opened(mounted / "g") as target:
        os.write(source, ops.pattern(3, 3 * MIB))
        os.lseek(source, 0, os.SEEK_SET)
        while os.copy_file_range(source, target, 3 * MIB):
            pass
        assert (mounted / "g").read_bytes() == ops.pattern(3, 3 * MIB)


def test_what_the_kernel_passes_on_to_nobody_is_done_without_it(shared_cluster: harness.Cluster, mounted: Path) -> None:
    def fs3(*words: str | Path) -> Any:
        done = CliRunner().invoke(cli, [*map(str, words), "--data", str(shared_cluster.data), "--json"])
        assert done.exit_code == 0, f"{words}: {done.output} {done.exception}"
        return json.loads(done.stdout)

    path, data = mounted / "f", bytearray(ops.pattern(3, 4 * MIB))
    path.write_bytes(data)
    assert fs3("fallocate", "--punch-hole", "--offset", "1000", "--length", "2MiB", path)["used_bytes"] < 4 * MIB
    data[1000 : 1000 + 2 * MIB] = bytes(2 * MIB)
    assert path.read_bytes() == data
    fs3("fallocate", "--zero-range", "--offset", "3MiB", "--length", "7MiB", path)
    data[3 * MIB :] = bytes(7 * MIB)
    assert path.read_bytes() == data and path.stat().st_blocks == 2 * MIB // 512
    fs3("fallocate", "--length", str(11 * MIB), path)
    kinds = [(row["kind"], row["offset"], row["length"]) for row in fs3("holes", path)]
    hole, end = ("hole", MIB, MIB), ("hole", 3 * MIB, 8 * MIB)
    assert kinds == [("data", 0, MIB), hole, ("data", 2 * MIB, MIB), end]
    (mounted / "d").mkdir()
    assert fs3("cp", path, mounted / "d")["length_bytes"] == 11 * MIB
    assert (mounted / "d" / "f").read_bytes() == path.read_bytes() == data + bytes(MIB)
    assert (mounted / "d" / "f").stat().st_blocks == path.stat().st_blocks
    refused = CliRunner().invoke(cli, ["cp", str(path), str(path), "--data", str(shared_cluster.data)])
    assert isinstance(refused.exception, FS3Error) and "same file" in str(refused.exception)


def test_no_ioctls(mounted: Path) -> None:
    with opened(mounted / "f") as fd, opened(mounted / "g") as other:
        assert error_of(lambda: fcntl.ioctl(fd, FICLONE, other)) == errno.EOPNOTSUPP
        assert error_of(lambda: fcntl.ioctl(fd, FS_IOC_FIEMAP, bytes(32))) == errno.EOPNOTSUPP
        assert error_of(lambda: fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))) == errno.ENOTTY


def test_temporary_files_without_a_name_are_made_by_removing_it(mounted: Path) -> None:
    assert error_of(lambda: os.open(mounted, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP
    with tempfile.TemporaryFile(dir=mounted) as file:
        file.write(b"abc")
        file.seek(0)
        assert file.read() == b"abc" and os.listdir(mounted) == []


def test_no_whiteouts(mounted: Path) -> None:
    (mounted / "f").touch()
    line = (-100, os.fsencode(mounted / "f"), -100, os.fsencode(mounted / "g"), RENAME_WHITEOUT)
    assert _LIBC.renameat2(*line) == -1 and ctypes.get_errno() == errno.EINVAL


def test_appending_handles_are_not_mapped_shared(mounted: Path) -> None:
    with opened(mounted / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND) as fd:
        os.write(fd, b"abc")
        assert error_of(lambda: mmap.mmap(fd, 3)) == errno.ENODEV
        with mmap.mmap(fd, 3, flags=mmap.MAP_PRIVATE) as mapped:
            assert mapped[:] == b"abc"


def test_reading_sets_the_access_time_once(mounted: Path) -> None:
    path = mounted / "f"
    path.write_bytes(b"abc")
    os.utime(path, (1, 1))
    path.read_bytes()
    harness.wait_until(lambda: path.stat().st_atime > 1, "the access time", 10)
    assert path.stat().st_mtime == 1
    times = path.stat()
    os.utime(path, (times.st_ctime + 1000, 1))
    path.read_bytes()
    assert path.stat().st_atime == times.st_ctime + 1000


def test_devices_can_be_made_but_not_opened(mounted: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(mounted / "null", 0o20666, os.makedev(1, 3))
    assert error_of(lambda: os.open(mounted / "null", os.O_RDONLY)) == errno.EACCES


def test_an_open_directory_survives_its_removal(mounted: Path) -> None:
    (mounted / "d").mkdir()
    with opened(mounted / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (mounted / "d").rmdir()
        os.fchmod(fd, 0o711)
        found = os.fstat(fd)
        assert (found.st_mode, found.st_nlink) == (0o40711, 0) and os.listdir(fd) == []
        assert error_of(lambda: os.mkdir("x", dir_fd=fd)) == errno.ENOENT


LOCKED = """
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free")
except BlockingIOError:
    print("locked")
"""


def test_what_two_mounts_have_in_common(shared_cluster: harness.Cluster, mounted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    line = ("mount", str(other), "--data", str(shared_cluster.data), "--log", str(tmp_path / "other.log"))
    done = harness.fs3(*line)
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        there = other / mounted.relative_to(shared_cluster.mount)
        (mounted / "f").touch()
        with opened(mounted / "f") as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for path, state in ((mounted / "f", "locked\n"), (there / "f", "free\n")):
                assert harness.run(sys.executable, "-c", LOCKED, path) == state
        with opened(mounted / "lock", os.O_CREAT | os.O_EXCL):
            assert error_of(lambda: os.open(there / "lock", os.O_CREAT | os.O_EXCL)) == errno.EEXIST
        (mounted / "gone").write_bytes(bytes(MIB))
        with opened(there / "gone", os.O_RDONLY) as fd:
            (mounted / "gone").unlink()
            harness.wait_until(lambda: error_of(lambda: os.pread(fd, 1, 0)) == errno.ESTALE, "the file to be gone", 20)
        (mounted / "kept").write_bytes(ops.pattern(5, MIB))
        with opened(there / "kept", os.O_RDONLY) as fd:
            line = [
                "admin",
                "--data",
                str(shared_cluster.data),
                "session",
                "list",
                "--path",
                str(mounted / "kept"),
                "--json",
            ]
            harness.wait_until(lambda: '"hold"' in CliRunner().invoke(cli, line).output, "the file to be held", 20)
            (mounted / "kept").unlink()
            assert os.pread(fd, 2 * MIB, 0) == ops.pattern(5, MIB)
        (there / "d").mkdir()
        assert error_of(lambda: os.mkdir(mounted / "d")) == errno.EEXIST
    finally:
        done = harness.fs3("umount", str(other))
        assert done.returncode == 0, done.stdout + done.stderr
