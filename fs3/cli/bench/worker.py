"""One process of `fs3 bench`: does jobs, and tells how far it is and how long each operation took.

A program of its own (`python -m fs3.cli.bench.worker`), so that each worker has an interpreter for itself. Lines of
JSON: a job comes in, `{"done": N}` goes out now and then, and `{"result": ...}` or `{"error": ...}` at its end. It ends
when nobody listens.

The content of a file follows from its number and the offset, so that any piece of it can be verified by itself.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...metrics import Histogram

PAGE = 4096
_PATTERN_PAGES = 2039
"""A prime: pieces that are mixed up do not look alike."""
_TELL_S = 0.2
_NEW = 500_009
"""Added to a file's number for what overwrites it."""


class Wrong(Exception):
    """What was read is not what was written."""


class Pattern:
    """The bytes of all files of one run."""

    def __init__(self, seed: int, longest: int) -> None:
        """longest: bytes of a piece."""
        self._size = _PATTERN_PAGES * PAGE
        once = random.Random(seed).randbytes(self._size)
        self._bytes = memoryview(once * (longest // self._size + 2))

    def at(self, number: int, offset: int, length: int) -> memoryview:
        """Of file `number`."""
        start = (number * 7919 * PAGE + offset) % self._size
        return self._bytes[start : start + length]

    def check(self, path: str, number: int, offset: int, found: memoryview | bytes) -> None:
        """Raises Wrong."""
        if found != self.at(number, offset, len(found)):
            raise Wrong(f"{path}: the {len(found)} bytes at {offset} are not those that were written")


@dataclass(slots=True)
class Job:
    """What one worker is to do. number: its own, of `workers`. Sizes in bytes; size: of a big file."""

    name: str
    folder: str
    number: int
    workers: int
    start_at: float
    seed: int
    size: int
    block: int
    files: int
    small: int
    seconds: float
    verify: bool

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def chance(self) -> random.Random:
        """Another one for each worker."""
        return random.Random((self.seed << 16) + self.number)

    def own(self, kind: str) -> str:
        return os.path.join(self.folder, f"{kind}-{self.number}")


class Clock:
    """Times operations, and tells now and then how many units are done."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self.times = Histogram()
        self.units = 0
        self.bytes = 0
        self._tell = tell
        self._last = time.perf_counter_ns()
        self._told = self._last

    def start(self) -> None:
        self._last = time.perf_counter_ns()

    def lap(self, size: int = 0, units: int = 1) -> None:
        """An operation that began at the last start() or lap() has ended."""
        now = time.perf_counter_ns()
        self.times.observe(now - self._last)
        self.units += units
        self.bytes += size
        if now - self._told > _TELL_S * 1e9:
            self._told = now
            self._tell({"done": self.units, "bytes": self.bytes})
            now = time.perf_counter_ns()
        self._last = now


def _write(path: str, pattern: Pattern, number: int, size: int, block: int, clock: Clock) -> None:
    """A whole file, to stable storage, timed by blocks."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        clock.start()
        for offset in range(0, size, block):
            _write_all(file, pattern.at(number, offset, min(block, size - offset)), offset)
            clock.lap(min(block, size - offset))
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done


def _read(path: str, pattern: Pattern | None, number: int, size: int, block: int, clock: Clock) -> None:
    """A whole file, timed by blocks. pattern: to verify by."""
    buffer = bytearray(block)
    file = os.open(path, os.O_RDONLY)
    try:
        clock.start()
        for offset in range(0, size, block):
            wanted = min(block, size - offset)
            _read_all(file, path, memoryview(buffer)[:wanted], offset)
            clock.lap(wanted)
            if pattern is not None:
                pattern.check(path, number, offset, bytes(buffer[:wanted]))
                clock.start()
    finally:
        os.close(file)


def _read_all(file: int, path: str, into: memoryview, offset: int) -> None:
    while into:
        done = os.preadv(file, [into], offset)
        if not done:
            raise Wrong(f"{path}: ends at {offset}, too early")
        into, offset = into[done:], offset + done


class Work:
    """The jobs, each a method of its name."""

    def __init__(self, job: Job, pattern: Pattern, clock: Clock) -> None:
        self.job = job
        self.pattern = pattern
        self.verified = pattern if job.verify else None
        self.clock = clock

    # Big files

    def big_write(self) -> None:
        _write(self.job.own("big"), self.pattern, self.job.number, self.job.size, self.job.block, self.clock)

    def big_read(self) -> None:
        _read(self.job.own("big"), self.verified, self.job.number, self.job.size, self.job.block, self.clock)

    # Small files

    def _small(self) -> Iterator[tuple[int, str]]:
        folder = self.job.own("small")
        for number in range(self.job.files):
            yield self.job.number * self.job.files + number, os.path.join(folder, str(number))

    def small_write(self) -> None:
        os.mkdir(self.job.own("small"))
        self.clock.start()
        for number, path in self._small():
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                _write_all(file, self.pattern.at(number, 0, self.job.small), 0)
            finally:
                os.close(file)
            self.clock.lap(self.job.small)

    def small_read(self) -> None:
        order = list(self._small())
        self.job.chance().shuffle(order)
        self._read_files(order, self.job.small)

    def _read_files(self, files: list[tuple[int, str]], size: int) -> None:
        buffer = memoryview(bytearray(size))
        self.clock.start()
        for number, path in files:
            file = os.open(path, os.O_RDONLY)
            try:
                _read_all(file, path, buffer, 0)
            finally:
                os.close(file)
            self.clock.lap(size)
            if self.verified is not None:
                self.verified.check(path, number, 0, bytes(buffer))
                self.clock.start()

    # Names and attributes

    def _names(self, end: str = "") -> list[str]:
        folder = self.job.own("meta")
        return [os.path.join(folder, f"{number}{end}") for number in range(self.job.files)]

    def create(self) -> None:
        os.mkdir(self.job.own("meta"))
        self._each(lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)))

    def stat(self) -> None:
        self._each(os.stat, shuffled=True)

    def open(self) -> None:
        self._each(lambda path: os.close(os.open(path, os.O_RDONLY)), shuffled=True)

    def rename(self) -> None:
        self._each(lambda path: os.rename(path, path + ".new"))

    def readdir(self) -> None:
        self.clock.start()
        with os.scandir(self.job.own("meta")) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                self.clock.lap()

    def unlink(self) -> None:
        self._each(os.unlink, self._names(".new"))

    def _each(self, act: Callable[[str], object], paths: list[str] | None = None, shuffled: bool = False) -> None:
        paths = self._names() if paths is None else paths
        if shuffled:
            self.job.chance().shuffle(paths)
        self.clock.start()
        for path in paths:
            act(path)
            self.clock.lap()

    # Checkpoints: each worker is a rank

    def save(self) -> None:
        final = self.job.own("rank")
        _write(final + ".tmp", self.pattern, self.job.number, self.job.size, self.job.block, self.clock)
        os.rename(final + ".tmp", final)

    def load(self) -> None:
        _read(self.job.own("rank"), self.verified, self.job.number, self.job.size, self.job.block, self.clock)

    # KV cache: blocks that are written once, read by all, and removed

    def _blocks(self, worker: int) -> list[tuple[int, str]]:
        count = max(1, self.job.size // self.job.block)
        folder = self.job.path(f"kv-{worker}")
        return [(worker * count + number, os.path.join(folder, str(number))) for number in range(count)]

    def put(self) -> None:
        os.mkdir(self.job.own("kv"))
        self.clock.start()
        for number, path in self._blocks(self.job.number):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                _write_all(file, self.pattern.at(number, 0, self.job.block), 0)
            finally:
                os.close(file)
            self.clock.lap(self.job.block)

    def get(self) -> None:
        chance = self.job.chance()
        every = [block for worker in range(self.job.workers) for block in self._blocks(worker)]
        end = time.monotonic() + self.job.seconds
        while time.monotonic() < end:
            self._read_files([chance.choice(every)], self.job.block)

    def remove(self) -> None:
        self._each(os.unlink, [path for _, path in self._blocks(self.job.number)])

    # Random pieces of a page

    def fill(self) -> None:
        _write(self.job.own("random"), self.pattern, self.job.number, self.job.size, self.job.block, self.clock)

    def _offsets(self) -> Iterator[int]:
        chance = self.job.chance()
        pages = self.job.size // PAGE
        end = time.monotonic() + self.job.seconds
        while time.monotonic() < end:
            yield chance.randrange(pages) * PAGE

    def random_read(self) -> None:
        path = self.job.own("random")
        buffer = memoryview(bytearray(PAGE))
        file = os.open(path, os.O_RDONLY)
        try:
            for offset in self._offsets():
                self.clock.start()
                _read_all(file, path, buffer, offset)
                self.clock.lap(PAGE)
                if self.verified is not None:
                    self.verified.check(path, self.job.number, offset, bytes(buffer))
        finally:
            os.close(file)

    def random_write(self) -> None:
        path = self.job.own("random")
        number = self.job.number + _NEW
        written: set[int] = set()
        file = os.open(path, os.O_RDWR)
        try:
            for offset in self._offsets():
                self.clock.start()
                _write_all(file, self.pattern.at(number, offset, PAGE), offset)
                self.clock.lap(PAGE)
                written.add(offset)
            os.fsync(file)
            for offset in written if self.verified is not None else ():
                self.pattern.check(path, number, offset, os.pread(file, PAGE, offset))
        finally:
            os.close(file)

    # Between the measurements

    def forget(self) -> None:
        """Let the kernel drop the pages of our files."""
        for path in sorted(Path(self.job.folder).rglob("*")):
            if path.is_file() and hash_of(path) % self.job.workers == self.job.number:
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(file)  # pages that are not yet written cannot be dropped
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(file)
                self.clock.lap()


@functools.lru_cache(maxsize=1)
def pattern_of(seed: int, longest: int) -> Pattern:
    """Making it takes some ten milliseconds."""
    return Pattern(seed, longest)


def hash_of(path: Path) -> int:
    """The same in all processes."""
    return sum(os.fsencode(path))


def run(job: Job, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do a job from its time on; the result as it is told."""
    clock = Clock(tell)
    act = getattr(Work(job, pattern_of(job.seed, max(job.block, job.small, PAGE)), clock), job.name)
    time.sleep(max(0.0, job.start_at - time.monotonic()))
    began = time.monotonic()
    act()
    ended = time.monotonic()
    return {
        "began": began,
        "ended": ended,
        "units": clock.units,
        "bytes": clock.bytes,
        "total_ns": clock.times.total_ns,
        "buckets": clock.times.buckets(),
    }


def main() -> None:
    def tell(row: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    try:
        tell({"ready": os.getpid()})
        for line in sys.stdin:
            try:
                tell({"result": run(Job(**json.loads(line)), tell)})
            except BrokenPipeError:
                raise
            except OSError as error:
                tell({"error": f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")})
            except Wrong as error:
                tell({"error": str(error), "wrong": True})
    except BrokenPipeError:
        os._exit(1)  # nobody listens any more


if __name__ == "__main__":
    main()
