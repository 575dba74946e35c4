"""Means to hurt storage daemons: system calls that fail, writers whose promises are noted, comparisons afterwards."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.harness import PROGRAMS, Cluster, needs_program, wait_until
from tests.process.replicas import differences

CHECK_TIMEOUT_S = 120.0
FILES = 16
PATTERNS = 30_000


class Faults:
    """System calls of daemons that fail or wait, by the paths of the files. `environment` is for the daemons."""

    def __init__(self, folder: Path) -> None:
        compiler = needs_program("cc")
        library = folder / "faulty_calls.so"
        source = PROGRAMS / "faulty_calls.c"
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"{source.name} cannot be compiled here: {done.stderr[:300]}")
        control = folder / "faults"
        control.write_bytes(bytes(mmap.PAGESIZE))
        self._control = control
        self.environment = {"LD_PRELOAD": str(library), "FS3_TEST_FAULTS": str(control)}

    def set(self, *lines: str) -> None:
        """From now on: lines `OPERATION PATH ACTION`, see faulty_calls.c. None: no faults."""
        text = "".join(f"{line}\n" for line in lines).encode()
        assert len(text) < mmap.PAGESIZE
        with self._control.open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as page:
            page[0] = 0  # nothing half written is ever in force
            page[1:] = text[1:].ljust(mmap.PAGESIZE - 1, b"\0")
            page[0] = text[0] if text else 0


class Writer:
    """A program that writes on the mount and notes in a manifest what was promised to it."""

    def __init__(self, made: Cluster, folder: Path, manifest: Path, seed: int) -> None:
        self._made = made
        self._folder = folder
        self._manifest = manifest
        folder.mkdir()
        line = [sys.executable, str(PROGRAMS / "crash_writer.py"), str(folder), str(manifest), "--seed", str(seed)]
        self._words = manifest.with_name(manifest.name + ".err")
        with self._words.open("wb") as words:
            self.process = subprocess.Popen(line, stderr=words)

    def steps(self) -> int:
        try:
            return self._manifest.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def wait_steps(self, more: int, timeout_s: float = 60.0) -> None:
        """Until it has done some more; fails when it met an error."""
        enough = self.steps() + more
        wait_until(lambda: self.steps() > enough or self.process.poll() is not None, f"{more} more steps", timeout_s)
        self.must_live()

    def must_live(self) -> None:
        if self.process.poll() is not None:
            raise AssertionError(f"the writer {self._words.read_text()}{self._made.logs()}")

    def stop(self) -> None:
        """It met no error so far, and is killed."""
        self.must_live()
        self.process.kill()
        self.process.wait()

    def wrongs(self) -> str:
        """What is not as promised; empty where all is."""
        line = [sys.executable, str(PROGRAMS / "crash_writer.py"), str(self._folder), str(self._manifest), "--check"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout


@contextmanager
def writing(made: Cluster, tmp_path: Path, seed: int = 1) -> Iterator[Writer]:
    """While a Writer works; it must not meet an error, and what was promised to it must be there when it has ended."""
    writer = Writer(made, made.mount / f"{tmp_path.name}-{seed}", tmp_path / f"manifest-{seed}", seed)
    try:
        writer.wait_steps(50)
        yield writer
        writer.stop()
    finally:
        writer.process.kill()
        writer.process.wait()
    wrong = writer.wrongs()
    assert not wrong, f"of {writer.steps()} steps:\n{wrong}{made.logs()}"


def write_down(folder: Path, pattern: bytes) -> None:
    """Files that are spread over all chains, synced."""
    for number in range(FILES):
        with (folder / f"f{number}").open("wb") as file:
            file.write(pattern * PATTERNS)
            file.flush()
            os.fsync(file.fileno())


def read_back(folder: Path, pattern: bytes) -> None:
    """They hold what write_down() wrote, as the servers have it."""
    for number in range(FILES):
        with (folder / f"f{number}").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == pattern * PATTERNS, f"file {number} does not hold {pattern!r}"


def rot(folder: Path, pattern: bytes) -> int:
    """Flips a byte in each run of write_down()'s pattern that lies on a disk, past the daemon; returns how many runs."""
    runs = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                runs += sum(_rot_extent(file.fileno(), start, end, pattern) for start, end in _extents(file.fileno()))
    return runs


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has no holes."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # there are no more
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _rot_extent(fd: int, start: int, end: int, pattern: bytes) -> int:
    content = os.pread(fd, end - start, start)
    runs = 0
    first = content.find(pattern * 8)
    while first >= 0:
        last = first
        while content.startswith(pattern, last):
            last += len(pattern)
        middle = (first + last) // 2
        os.pwrite(fd, bytes([content[middle] ^ 0x10]), start + middle)
        runs += 1
        first = content.find(pattern * 8, last)
    return runs


def record_stores(folder: Path) -> list[Path]:
    """The folders of the RocksDBs below a daemon's data."""
    return sorted(path.parent for path in folder.rglob("CURRENT"))


def wait_equal(made: Cluster, timeout_s: float = 30.0) -> None:
    """Until all replicas of all chains hold the same; nobody writes meanwhile."""
    end = time.monotonic() + timeout_s
    while wrong := differences(made.mgmtd()):
        assert time.monotonic() < end, "replicas differ:\n" + "\n".join(wrong[:20]) + made.logs()
        time.sleep(0.2)
