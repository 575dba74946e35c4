"""The benchmark's workloads: each one runs in a process of its own, in any directory, and prints one line of JSON.

    python tests/bench/workloads.py ROW --dir DIR [--size-mib N] [--io-size-mib N] [--files N] [--seconds S] [--torch-mib N]

Rows depend on what an earlier row left in the directory (a read needs the written file), so run them in the order of ROWS.
The time of every writing row includes close(), where a file system that buffers must hand its data on; nothing is fsynced.
Only the Python standard library is needed, but for the torch rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 1 << 20
SMALL_IO_BYTES = 4096
SKIPPED_EXIT = 77

SEQUENTIAL_FILE = "sequential.bin"
RANDOM_FILE = "random.bin"
EMPTY_DIR = "empty"
SMALL_DIR = "small"
TORCH_FILE = "state.pt"


@dataclass(frozen=True)
class Sizes:
    """How much each row does; the result's JSON carries it along."""

    size_mib: int = 2048
    """Of the file that the sequential rows write and read."""
    io_size_mib: int = 512
    """Of the file that the random rows read and write in."""
    files: int = 2000
    """That the metadata rows make, look at and remove."""
    seconds: float = 8.0
    """After which a random row ends."""
    torch_mib: int = 512


@dataclass(frozen=True)
class Measure:
    """What a row found: `amount` units of work in `seconds`, so that larger rates are better."""

    amount: float
    unit: str
    seconds: float

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


class SkippedError(Exception):
    """The row cannot run here; says why."""


def _noise(size: int, seed: int) -> bytes:
    """Bytes that no layer can compress or recognise as zeros."""
    return random.Random(seed).randbytes(size)


def write_sequential(root: Path, sizes: Sizes) -> Measure:
    blocks = [_noise(MIB, seed) for seed in range(8)]
    start = time.perf_counter()
    fd = os.open(root / SEQUENTIAL_FILE, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    for index in range(sizes.size_mib):
        _write_all(fd, blocks[index % len(blocks)])
    os.close(fd)
    return Measure(sizes.size_mib, "MiB/s", time.perf_counter() - start)


def read_sequential(root: Path, sizes: Sizes) -> Measure:
    buffer = bytearray(MIB)
    start = time.perf_counter()
    fd = os.open(root / SEQUENTIAL_FILE, os.O_RDONLY)
    total = 0
    while count := os.readv(fd, [buffer]):
        total += count
    os.close(fd)
    seconds = time.perf_counter() - start
    if total != sizes.size_mib * MIB:
        raise RuntimeError(f"read {total} bytes of {sizes.size_mib} MiB")
    return Measure(sizes.size_mib, "MiB/s", seconds)


def prepare_random(root: Path, sizes: Sizes) -> Measure:
    """Not a row of the table: makes the file of the random rows."""
    blocks = [_noise(MIB, seed) for seed in range(8)]
    start = time.perf_counter()
    fd = os.open(root / RANDOM_FILE, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    for index in range(sizes.io_size_mib):
        _write_all(fd, blocks[index % len(blocks)])
    os.fsync(fd)
    os.close(fd)
    return Measure(sizes.io_size_mib, "MiB/s", time.perf_counter() - start)


def _random_io(root: Path, sizes: Sizes, threads: int, *, write: bool) -> Measure:
    """Threads that each read or write 4 KiB at random aligned places of one shared file, until the time is up."""
    places = sizes.io_size_mib * MIB // SMALL_IO_BYTES
    counts = [0] * threads
    errors: list[BaseException] = []
    barrier = threading.Barrier(threads + 1)

    def worker(number: int) -> None:
        rng = random.Random(number * 7919 + write)
        block = _noise(SMALL_IO_BYTES, number)
        fd = os.open(root / RANDOM_FILE, os.O_WRONLY if write else os.O_RDONLY)
        barrier.wait()
        end = time.perf_counter() + sizes.seconds
        count = 0
        try:
            while time.perf_counter() < end:
                offset = rng.randrange(places) * SMALL_IO_BYTES
                done = os.pwrite(fd, block, offset) if write else len(os.pread(fd, SMALL_IO_BYTES, offset))
                if done != SMALL_IO_BYTES:
                    raise RuntimeError(f"{done} bytes instead of {SMALL_IO_BYTES} at {offset}")
                count += 1
        except BaseException as exc:
            errors.append(exc)
        finally:
            os.close(fd)
        counts[number] = count

    workers = [threading.Thread(target=worker, args=(number,)) for number in range(threads)]
    for thread in workers:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in workers:
        thread.join()
    if errors:
        raise errors[0]
    return Measure(sum(counts), "op/s", time.perf_counter() - start)


def create_empty(root: Path, sizes: Sizes) -> Measure:
    folder = root / EMPTY_DIR
    folder.mkdir()
    start = time.perf_counter()
    for index in range(sizes.files):
        os.close(os.open(f"{folder}/f{index:07d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    return Measure(sizes.files, "op/s", time.perf_counter() - start)


def stat_files(root: Path, sizes: Sizes) -> Measure:
    folder = root / EMPTY_DIR
    order = list(range(sizes.files))
    random.Random(1).shuffle(order)
    start = time.perf_counter()
    for index in order:
        os.stat(f"{folder}/f{index:07d}")
    return Measure(sizes.files, "op/s", time.perf_counter() - start)


def create_small(root: Path, sizes: Sizes) -> Measure:
    folder = root / SMALL_DIR
    folder.mkdir()
    block = _noise(SMALL_IO_BYTES, 1)
    start = time.perf_counter()
    for index in range(sizes.files):
        fd = os.open(f"{folder}/f{index:07d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        _write_all(fd, block)
        os.close(fd)
    return Measure(sizes.files, "op/s", time.perf_counter() - start)


def readdir_stat(root: Path, sizes: Sizes) -> Measure:
    """What `ls -l` does: list the directory, then look at each entry."""
    start = time.perf_counter()
    with os.scandir(root / SMALL_DIR) as entries:
        seen = sum(entry.stat(follow_symlinks=False).st_size == SMALL_IO_BYTES for entry in entries)
    seconds = time.perf_counter() - start
    if seen != sizes.files:
        raise RuntimeError(f"{seen} whole files instead of {sizes.files}")
    return Measure(sizes.files, "op/s", seconds)


def unlink_files(root: Path, sizes: Sizes) -> Measure:
    """Removes the 4 KiB files."""
    folder = root / SMALL_DIR
    start = time.perf_counter()
    for index in range(sizes.files):
        os.unlink(f"{folder}/f{index:07d}")
    return Measure(sizes.files, "op/s", time.perf_counter() - start)


def torch_save(root: Path, sizes: Sizes) -> Measure:
    torch = _torch()
    generator = torch.Generator().manual_seed(0)
    layers = 16
    columns = sizes.torch_mib * MIB // 4 // layers // 1024
    state = {f"layer{n}.weight": torch.rand(1024, columns, generator=generator) for n in range(layers)}
    start = time.perf_counter()
    torch.save(state, root / TORCH_FILE)
    return Measure(sizes.torch_mib, "MiB/s", time.perf_counter() - start)


def torch_load(root: Path, sizes: Sizes) -> Measure:
    torch = _torch()
    start = time.perf_counter()
    state = torch.load(root / TORCH_FILE, weights_only=True)
    seconds = time.perf_counter() - start
    if len(state) != 16:
        raise RuntimeError(f"{len(state)} tensors instead of 16")
    return Measure(sizes.torch_mib, "MiB/s", seconds)


def clear(root: Path, sizes: Sizes) -> Measure:
    """Not a row of the table: removes what the rows left."""
    start = time.perf_counter()
    for name in (SEQUENTIAL_FILE, RANDOM_FILE, TORCH_FILE):
        (root / name).unlink(missing_ok=True)
    for name in (EMPTY_DIR, SMALL_DIR):
        shutil.rmtree(root / name, ignore_errors=True)
    return Measure(1, "op/s", time.perf_counter() - start)


def _torch():  # type: ignore[no-untyped-def]
    try:
        import torch
    except ImportError as exc:
        raise SkippedError(f"torch: {exc}") from exc
    return torch


def _write_all(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):
        raise RuntimeError("a short write")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    run: Callable[[Path, Sizes], Measure]
    cold: bool = False
    """Caches are dropped before it."""
    needs: str | None = None
    """The row or preparation that makes what this one works on."""


ROWS: tuple[Row, ...] = (
    Row("write-sequential", write_sequential),
    Row("read-sequential", read_sequential, cold=True, needs="write-sequential"),
    Row("read-random-1", lambda r, s: _random_io(r, s, 1, write=False), cold=True, needs="prepare-random"),
    Row("read-random-8", lambda r, s: _random_io(r, s, 8, write=False), cold=True, needs="prepare-random"),
    Row("write-random-1", lambda r, s: _random_io(r, s, 1, write=True), needs="prepare-random"),
    Row("write-random-8", lambda r, s: _random_io(r, s, 8, write=True), needs="prepare-random"),
    Row("create", create_empty),
    Row("stat", stat_files, cold=True, needs="create"),
    Row("create-4k", create_small),
    Row("readdir-stat", readdir_stat, cold=True, needs="create-4k"),
    Row("unlink", unlink_files, needs="create-4k"),
    Row("torch-save", torch_save),
    Row("torch-load", torch_load, cold=True, needs="torch-save"),
)
HELPERS: tuple[Row, ...] = (Row("prepare-random", prepare_random), Row("clear", clear))
BY_NAME = {row.name: row for row in (*ROWS, *HELPERS)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=sorted(BY_NAME))
    parser.add_argument("--dir", type=Path, required=True)
    for field, value in asdict(Sizes()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    row, root = BY_NAME[args.pop("row")], args.pop("dir")
    sizes = Sizes(**args)
    try:
        measure = row.run(root, sizes)
    except SkippedError as exc:
        print(json.dumps({"row": row.name, "skipped": str(exc)}))
        return SKIPPED_EXIT
    print(json.dumps({"row": row.name, **asdict(measure), "rate": measure.rate}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
