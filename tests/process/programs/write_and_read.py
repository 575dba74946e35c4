"""Writes files of records, reads them back and compares, over and over, until told to stop; any error ends it with exit 1.

    python write_and_read.py DIR --mib N --stop FILE

It goes on until N MiB were written and read back AND the file FILE exists. The last line on standard output is JSON: what
it did and how long the slowest call took.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import records

MIB = 1 << 20
FILES = 8


class Progress:
    """Counts, and the slowest single system call so far."""

    def __init__(self) -> None:
        self.written_mib = 0
        self.read_mib = 0
        self.slowest_s = 0.0
        self._start = time.monotonic()

    def call_begins(self) -> None:
        self._start = time.monotonic()

    def call_ended(self) -> None:
        self.slowest_s = max(self.slowest_s, time.monotonic() - self._start)


def write_file(path: Path, number: int, generation: int, mib: int, progress: Progress) -> None:
    """By 1 MiB; every other file is replaced by a rename of a new one, as checkpoint writers do."""
    target = path.with_suffix(".new") if number % 2 else path
    fd = os.open(target, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        for slot in range(mib):
            record = records.make(number, slot, generation, MIB)
            progress.call_begins()
            done = os.pwrite(fd, record, slot * MIB)
            progress.call_ended()
            if done != MIB:
                raise RuntimeError(f"{target}: wrote {done} bytes of {MIB}")
            progress.written_mib += 1
        progress.call_begins()
        os.fsync(fd)
        progress.call_ended()
    finally:
        os.close(fd)
    if target != path:
        os.rename(target, path)


def read_file(path: Path, number: int, generation: int, mib: int, progress: Progress) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if size != mib * MIB:
            raise RuntimeError(f"{path}: {size} bytes instead of {mib} MiB")
        # What a page cache holds proves nothing about the servers.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for slot in range(mib):
            progress.call_begins()
            data = os.pread(fd, MIB, slot * MIB)
            progress.call_ended()
            if data != records.make(number, slot, generation, MIB):
                found = records.generation_of(data, number, slot)
                raise RuntimeError(f"{path}: slot {slot}: generation {found} ({len(data)} bytes) instead of {generation}")
            progress.read_mib += 1
    finally:
        os.close(fd)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--stop", type=Path, required=True)
    args = parser.parse_args()
    progress, generation = Progress(), 0
    each_mib = min(32, max(1, args.mib // FILES))
    while progress.read_mib < args.mib or not args.stop.exists():
        generation += 1
        for number in range(FILES):
            write_file(args.dir / f"f{number}", number, generation, each_mib, progress)
        for number in range(FILES):
            read_file(args.dir / f"f{number}", number, generation, each_mib, progress)
    done = {"written_mib": progress.written_mib, "read_mib": progress.read_mib, "slowest_call_s": progress.slowest_s}
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
