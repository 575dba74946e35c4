"""What two mounts of one cluster promise each other: DESIGN §1 as far as it shows between mounts, and `strict`."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.posix import operations as ops
from tests.process import harness

pytestmark = pytest.mark.process

KIB = 1 << 10
MIB = 1 << 20
SEEN_S = 20.0
"""Far above every time-out, for busy machines."""


@dataclass(frozen=True)
class Places:
    """One folder, by three mounts."""

    here: Path
    there: Path
    strict: Path


@pytest.fixture
def places(shared_cluster: harness.Cluster, mounted: Path, more_mounts: dict[str, Path]) -> Places:
    below = mounted.relative_to(shared_cluster.mount)
    return Places(mounted, more_mounts["other"] / below, more_mounts["strict"] / below)


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def read_all(path: Path) -> bytes:
    """Of a file that is opened now, by one read(2) for more than there is."""
    with opened(path, os.O_RDONLY) as fd:
        return os.read(fd, 8 * MIB)


def test_direct_readers_see_each_write_at_once(places: Places) -> None:
    with opened(places.here / "f") as writer:
        os.write(writer, bytes(64 * KIB))
        os.fsync(writer)
        with opened(places.there / "f", os.O_RDONLY | os.O_DIRECT) as reader, mmap.mmap(-1, 64 * KIB) as into:
            for number in range(1, 30):
                at = number * 7919 % 16 * 4 * KIB
                os.pwrite(writer, bytes([number]) * 4096, at)
                assert os.preadv(reader, [into], 0) == 64 * KIB
                assert into[at : at + 4096] == bytes([number]) * 4096


def test_opening_shows_what_was_closed(places: Places) -> None:
    for number, length in enumerate([10, 5000, 5000, 300 * KIB, 12, 2 * MIB, 2 * MIB, 0, 1]):
        data = ops.pattern(number, length)
        (places.here / "f").write_bytes(data)
        assert read_all(places.there / "f") == data
        with opened(places.there / "f", os.O_RDONLY) as fd:
            assert os.fstat(fd).st_size == length
        with opened(places.there / "f") as fd:  # and back
            os.pwrite(fd, b"changed", length)
        assert read_all(places.here / "f") == data + b"changed"
    (places.here / "f").write_bytes(data + b"CHanged")
    os.utime(places.here / "f", (1, 1))
    assert read_all(places.there / "f") == data + b"CHanged"
    (places.here / "f").write_bytes(data + b"changed")
    os.utime(places.here / "f", (1, 1))
    assert read_all(places.there / "f") == data + b"changed", "no time stamp and no length tells of the change"
    with opened(places.here / "f") as fd, opened(places.there / "f", os.O_RDONLY):
        os.pwrite(fd, b"CH", 1)
        os.fsync(fd)
        assert read_all(places.there / "f") == data[:1] + b"CHanged", "fsync does for those who open what close does"


def test_a_reader_that_stays_open_sees_changes_after_the_time_out(places: Places) -> None:
    """The kernel learns by the attributes that somebody wrote, and lets go of its pages; so does the mount of its blocks."""
    data = ops.pattern(1, 3 * MIB)
    (places.here / "f").write_bytes(data)
    with opened(places.there / "f", os.O_RDONLY) as reader:
        for number in range(2, 4):
            assert os.pread(reader, len(data), 0) == data
            data = ops.pattern(number, 3 * MIB)
            with opened(places.here / "f") as writer:
                os.write(writer, data)
            harness.wait_until(lambda data=data: os.pread(reader, len(data), 0) == data, "the new content", SEEN_S)  # type: ignore[misc]


def test_lengths_show_at_once_after_fsync_and_soon_while_writing(places: Places) -> None:
    there = places.there / "f"
    with opened(places.here / "f") as writer:
        for number in range(1, 6):
            os.write(writer, bytes(100_001))
            os.fsync(writer)
            with opened(there, os.O_RDONLY) as reader:
                assert os.fstat(reader).st_size == number * 100_001
        os.write(writer, bytes(3 * MIB))
        harness.wait_until(lambda: there.stat().st_size == 5 * 100_001 + 3 * MIB, "the length of what is written", SEEN_S)
        os.ftruncate(writer, 5)
        with opened(there, os.O_RDONLY) as reader:
            assert os.fstat(reader).st_size == 5
    with opened(places.here / "f", os.O_WRONLY | os.O_APPEND) as writer:
        os.write(writer, b"678")
    assert len(read_all(there)) == 8


APPENDER = """
import os, sys
f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
for n in range(60):
    os.write(f, f"{sys.argv[2]} {n} {'x' * (n * 977 % 9000)}\\n".encode())
"""


def test_appends_of_both_are_neither_lost_nor_torn(places: Places) -> None:
    who = {"a": places.here, "b": places.there, "c": places.here, "d": places.strict}
    jobs = [subprocess.Popen([sys.executable, "-c", APPENDER, path / "log", name]) for name, path in who.items()]
    assert [job.wait(harness.COMMAND_TIMEOUT_S) for job in jobs] == [0] * len(jobs)
    expected = sorted(f"{name} {n} {'x' * (n * 977 % 9000)}" for name in who for n in range(60))
    for place in (places.here, places.there):
        assert sorted((place / "log").read_text().splitlines()) == expected


def version(number: int) -> bytes:
    return f"{number:08}".encode() * 10_000


def test_a_renamed_file_takes_the_place_of_the_old_one_at_once(places: Places) -> None:
    """For readers in another mount the name never lacks, its content is never half, and versions never go back."""
    target = places.here / "f"
    target.write_bytes(version(0))
    done = threading.Event()

    def replace() -> None:
        try:
            for number in range(1, 60):
                (places.here / "new").write_bytes(version(number))
                os.rename(places.here / "new", target)
        finally:
            done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    last = reads = 0
    while not done.is_set() or reads == 0:
        try:
            found = read_all(places.there / "f")
        except OSError as error:
            assert error.errno == errno.ESTALE, error  # it was replaced after it was opened: see docs/posix.md
            continue
        number = int(found[:8])
        assert found == version(number) and number >= last
        last, reads = number, reads + 1
    writer.join()
    harness.wait_until(lambda: read_all(places.there / "f") == version(59), "the last version", SEEN_S)


def test_a_file_that_another_mount_removes_lives_until_its_writer_closes_it(places: Places) -> None:
    with opened(places.here / "f") as fd:
        os.write(fd, b"before ")
        (places.there / "f").unlink()
        assert os.fstat(fd).st_nlink in (0, 1)  # attributes may be as old as their time-out
        os.write(fd, b"after" * 100_000)
        os.fsync(fd)
        assert os.pread(fd, 12, 0) == b"before after" and os.fstat(fd).st_size == 500_007
        with opened(places.here / "f", os.O_RDWR | os.O_CREAT | os.O_EXCL) as other:
            os.write(other, b"new")
        assert os.pread(fd, 6, 0) == b"before"
    assert read_all(places.there / "f") == b"new"


def test_cutting_what_the_other_writes_leaves_whole_blocks_or_none(places: Places) -> None:
    block, count = 16 * KIB, 160  # across a chunk's border
    writing = threading.Event()

    def cut() -> None:
        writing.wait()
        for number in range(30):
            os.truncate(places.there / "f", number * 37 % count * block)

    cutter = threading.Thread(target=cut)
    with opened(places.here / "f") as fd:
        cutter.start()
        for number in range(count):
            os.pwrite(fd, bytes([number % 255 + 1]) * block, number * block)
            writing.set()
        cutter.join()
        os.pwrite(fd, b"\xff" * block, count * block)
    found = read_all(places.there / "f")
    assert found == read_all(places.here / "f") and len(found) == (count + 1) * block
    for number in range(count + 1):
        written = bytes([255 if number == count else number % 255 + 1]) * block
        assert found[number * block :][:block] in (written, bytes(block)), f"block {number} is torn"
    os.truncate(places.there / "f", 100)
    os.truncate(places.there / "f", 5 * MIB)
    assert read_all(places.here / "f") == found[:100] + bytes(5 * MIB - 100)


def test_names_and_attributes_show_after_their_time_outs(places: Places) -> None:
    (places.here / "f").write_bytes(b"abc")
    (places.there / "f").stat()
    os.chmod(places.here / "f", 0o600)
    os.utime(places.here / "f", (1, 2))
    wanted = (0o100600, 2)
    harness.wait_until(lambda: mode_and_time(places.there / "f") == wanted, "mode and time", SEEN_S)
    os.rename(places.here / "f", places.here / "g")
    assert (places.there / "g").exists(), "that a name is missing is not remembered"
    harness.wait_until(lambda: not (places.there / "f").exists(), "the old name to be gone", SEEN_S)
    (places.here / "g").unlink()
    harness.wait_until(lambda: os.listdir(places.there) == [], "the folder to be empty", SEEN_S)


def test_who_walks_through_a_folder_sees_what_others_do_there(places: Places) -> None:
    """Names are fetched ahead then: still every name that there is shows at once, and what changed after its time-out."""
    names = [f"{number:03d}" for number in range(120)]
    for name in names:
        (places.here / name).write_bytes(b"x")
    for name in names[:20]:
        assert (places.there / name).stat().st_size == 1
    for name in names[30:40]:
        (places.here / name).unlink()
        (places.here / f"{name}-new").write_bytes(b"new")
        os.chmod(places.here / names[int(name) + 10], 0o600)
        (places.here / names[int(name) + 20]).write_bytes(b"longer")
    for name in names[30:40]:
        assert (places.there / f"{name}-new").stat().st_size == 3
        assert read_all(places.there / names[int(name) + 20]) == b"longer"
        with pytest.raises(FileNotFoundError):  # also where stat(2) still knows it
            read_all(places.there / name)
    for name in names[20:]:
        if name not in names[30:40]:
            (places.there / name).stat()
    harness.wait_until(lambda: not any((places.there / name).exists() for name in names[30:40]), "them to be gone", SEEN_S)
    for name in names[40:50]:
        harness.wait_until(partial(has_mode, places.there / name, 0o100600), "the mode", SEEN_S)
    for name in names[:20]:
        (places.there / name).chmod(0o640)
        assert (places.there / name).stat().st_mode == 0o100640 == (places.strict / name).stat().st_mode


def has_mode(path: Path, mode: int) -> bool:
    return path.stat().st_mode == mode


def mode_and_time(path: Path) -> tuple[int, float]:
    found = path.stat()
    return found.st_mode, found.st_mtime


def test_a_strict_mount_sees_names_and_attributes_always(places: Places) -> None:
    strict = places.strict
    for number in range(10):
        (places.here / "f").write_bytes(b"x" * number)
        assert mode_and_time(strict / "f")[0] == 0o100644 and (strict / "f").stat().st_size == number
        os.chmod(places.here / "f", 0o640)
        os.utime(places.here / "f", (5, number))
        assert mode_and_time(strict / "f") == (0o100640, number)
        os.link(places.here / "f", places.here / "link")
        assert (strict / "f").stat().st_nlink == 2
        os.rename(places.here / "f", places.here / "g")
        assert not (strict / "f").exists() and sorted(os.listdir(strict)) == ["g", "link"]
        os.setxattr(places.here / "g", "user.number", b"%d" % number)
        assert os.getxattr(strict / "g", "user.number") == b"%d" % number
        (places.here / "g").unlink()
        (places.here / "link").unlink()
        assert os.listdir(strict) == [] and not (strict / "g").exists()
        (places.here / "d").mkdir(0o700)
        assert ((strict / "d").stat().st_nlink, (strict / "d").stat().st_mode) == (2, 0o40700)
        (places.here / "d" / "e").mkdir()
        os.chmod(places.here / "d", 0o701)
        assert ((strict / "d").stat().st_nlink, (strict / "d").stat().st_mode) == (3, 0o40701)
        (places.here / "d" / "e").rmdir()
        (places.here / "d").rmdir()


def test_a_strict_mount_sees_content_always(places: Places) -> None:
    """By a descriptor that stays open, what was written and not even closed; cut and extended, too."""
    with opened(places.here / "f") as writer, opened(places.strict / "f") as reader:
        os.write(writer, bytes(2 * MIB))
        os.fsync(writer)
        assert os.pread(reader, 3 * MIB, 0) == bytes(2 * MIB)
        for number in range(1, 20):
            at = number * 99_991
            os.pwrite(writer, bytes([number]) * 5000, at)
            assert os.pread(reader, 5000, at) == bytes([number]) * 5000
        os.ftruncate(writer, 7)
        assert os.pread(reader, 100, 0) == bytes(7) and os.pread(reader, 100, 50) == b""
        os.ftruncate(writer, 2 * MIB)
        assert os.pread(reader, 3 * MIB, 0) == bytes(2 * MIB)
        os.pwrite(writer, b"end", 2 * MIB)
        os.fsync(writer)
        assert os.pread(reader, 100, 2 * MIB - 1) == b"\0end"
        assert os.fstat(reader).st_size == 2 * MIB + 3


def test_what_a_strict_mount_writes_is_longer_for_all_at_once(places: Places) -> None:
    with opened(places.strict / "f") as writer:
        for number in range(1, 20):
            os.write(writer, b"line\n")
            assert read_all(places.there / "f") == b"line\n" * number
            assert os.fstat(writer).st_size == 5 * number


def test_a_strict_mount_maps_files_privately_only(places: Places) -> None:
    (places.strict / "f").write_bytes(b"#!/bin/sh\necho run\n")
    (places.strict / "f").chmod(0o755)
    with opened(places.strict / "f") as fd:
        with pytest.raises(OSError) as caught:
            mmap.mmap(fd, 5)
        assert caught.value.errno == errno.ENODEV
        with mmap.mmap(fd, 5, flags=mmap.MAP_PRIVATE) as mapped:
            assert mapped[:] == b"#!/bi"
    assert harness.run(places.strict / "f") == "run\n"
