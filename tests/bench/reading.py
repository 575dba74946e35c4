"""Speed of reading through a mount: `python -m tests.bench.reading [--size-mib 256] [--rounds 3] [--against CHECKOUT]`.

Starts a cluster of its own by `fs3 up` in a temporary folder. Before each row the kernel drops the pages that it has of the
file in the mount, while those of the storage daemons stay: what is measured is fs3, not the disk. Prints medians of all
rounds and the CPU time of the mount and of all storage daemons for each MiB or read. With --against another checkout is
measured too, row by row in turn: on a busy machine believe CPU times and ratios more than rates.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.meta import Mounted
from tests.bench.systems import REPOSITORY, cpu_seconds

KIB, MIB = 1024, 1024 * 1024
READS = 2000
"""Of the rows that read at random."""


def _range(path: Path, start: int, stop: int, size: int, step: int, flags: int = 0) -> int:
    """Reads of `size` bytes at distances of `step`; returns how many."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    with mmap.mmap(-1, size) as buffer:
        for offset in range(start, stop - size + 1, step):
            if os.preadv(descriptor, [buffer], offset) != size:
                raise RuntimeError(f"a short read at {offset}")
    os.close(descriptor)
    return (stop - start) // step


def sequential(path: Path, size: int) -> int:
    return _range(path, 0, size, MIB, MIB)


def in_four_parts(path: Path, size: int) -> int:
    _together([lambda part=part: _range(path, part * size // 4, (part + 1) * size // 4, MIB, MIB) for part in range(4)])
    return size // MIB


def strided(path: Path, size: int) -> int:
    return _range(path, MIB, size, 256 * KIB, 2 * MIB)


def direct(path: Path, size: int) -> int:
    return _range(path, 0, size, MIB, MIB, os.O_DIRECT)


def records(path: Path, size: int) -> int:
    """Reads of 2 MiB at random; counted in MiB."""
    return 2 * _random(path, size, 1, 100, 2 * MIB, 0)


def random_cached(path: Path, size: int) -> int:
    return _random(path, size, 1, READS, 4 * KIB, 0)


def random_direct_1(path: Path, size: int) -> int:
    return _random(path, size, 1, READS, 4 * KIB, os.O_DIRECT)


def random_direct_8(path: Path, size: int) -> int:
    return _random(path, size, 8, READS, 4 * KIB, os.O_DIRECT)


def _random(path: Path, size: int, threads: int, count: int, length: int, flags: int) -> int:
    def work(number: int) -> None:
        chance = random.Random(number)
        descriptor = os.open(path, os.O_RDONLY | flags)
        with mmap.mmap(-1, length) as buffer:
            for _ in range(count // threads):
                os.preadv(descriptor, [buffer], chance.randrange((size - length) // 4096) * 4096)
        os.close(descriptor)

    _together([lambda number=number: work(number) for number in range(threads)])
    return count


def _together(works: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


ROWS: dict[str, tuple[str, Callable[[Path, int], int]]] = {
    "sequential": ("MiB", sequential),
    "four-parts": ("MiB", in_four_parts),
    "strided": ("read", strided),
    "records": ("MiB", records),
    "direct": ("MiB", direct),
    "random": ("read", random_cached),
    "random-direct-1": ("read", random_direct_1),
    "random-direct-8": ("read", random_direct_8),
}


def run(system: Mounted, row: str, size: int) -> tuple[float, float, float]:
    """Rate, and CPU us of the mount and of the storage daemons for each unit."""
    path = system.mount / "file"
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    marks = [(f"{system.data}/config/{daemon}",) for daemon in ("mount", "storage")]
    before = [cpu_seconds(mark) for mark in marks]
    start = time.perf_counter()
    amount = ROWS[row][1](path, size)
    seconds = time.perf_counter() - start
    mount, storage = [(cpu_seconds(mark) - was) / amount * 1e6 for mark, was in zip(marks, before, strict=True)]
    return amount / seconds, mount, storage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=256, help="of the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1, help="and as many storage daemons")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, measured in turn with this one")
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure (default: for temporary files)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options.rounds} rounds", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is stopped then, too
    with tempfile.TemporaryDirectory(prefix="fs3-bench-", dir=options.scratch) as scratch:
        systems: list[Mounted] = []
        try:
            for number, checkout in enumerate([REPOSITORY, *([options.against.resolve()] if options.against else [])]):
                home = Path(scratch) / str(number)
                home.mkdir()
                systems.append(Mounted(checkout, home, options.replicas))
                systems[-1].start()
                with (systems[-1].mount / "file").open("wb") as file:
                    for _ in range(options.size_mib):
                        file.write(random.randbytes(MIB))
            for row in options.rows:
                _show(row, systems, [[run(s, row, options.size_mib * MIB) for s in systems] for _ in range(options.rounds)])
        finally:
            for system in systems:
                system.stop()


def _show(row: str, systems: list[Mounted], rounds: list[list[tuple[float, float, float]]]) -> None:
    unit = ROWS[row][0]
    for number in range(len(systems)):
        rate, mount, storage = [statistics.median(each[number][kind] for each in rounds) for kind in range(3)]
        name = row if not number else "  against"
        print(f"{name:16} {rate:9.0f} {unit}/s   mount {mount:6.0f} us   storage {storage:6.0f} us", flush=True)


if __name__ == "__main__":
    main()
