"""What registered memory saves: `python -m tests.bench.registered [--rounds 5] [--seconds 1.5]`.

Batches of 64 ranges by the Python API, from one storage daemon of this host, into private memory, and into shared memory
that is registered, sealed (fs3.memory.Memory) or not (as POSIX shared memory is). Prints the rate, and the CPU time of
the calling process and of the storage daemon for each MiB: medians of rounds, the kinds in turn.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fs3.client.sync import FileSystem, connect
from fs3.memory import Memory

MIB = 1024 * 1024
FILE_SIZE = 256 * MIB
COUNT = 64
SIZES = (1 * MIB, 64 * 1024)


@contextmanager
def cluster() -> Iterator[tuple[str, int]]:
    """The address of mgmtd, and the process of the storage daemon."""
    with tempfile.TemporaryDirectory() as folder:
        fs3 = [sys.executable, "-m", "fs3.cli.main"]
        command = ["up", "--data", f"{folder}/data", "--no-mount", "--storages", "1", "--replicas", "1", "--detach"]
        said = subprocess.run([*fs3, *command], capture_output=True, text=True, check=True).stdout
        try:
            lines = dict(re.findall(r"^(\S+) +(\d+) +tcp", said, re.MULTILINE))
            address = re.search(r"^mgmtd +\d+ +(\S+)", said, re.MULTILINE)
            assert address is not None, said
            yield address[1], int(lines["storage-1"])
        finally:
            subprocess.run([*fs3, "down", "--data", f"{folder}/data"], capture_output=True, check=True)


def cpu_s(pid: int) -> float:
    if not pid:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(fs: FileSystem, file: Any, into: memoryview, size: int, storage: int, seconds: float) -> tuple[float, ...]:
    """MiB/s; microseconds of CPU for each MiB of this process, and of the storage daemon."""
    places = FILE_SIZE // size
    before = cpu_s(0), cpu_s(storage)
    started = time.perf_counter()
    done = 0
    while time.perf_counter() - started < seconds:
        items = [(file, random.randrange(places) * size, size) for _ in range(COUNT)]
        assert sum([got for got in fs.read_batch(items, into, strict=True) if isinstance(got, int)]) == COUNT * size
        done += COUNT * size
    took = time.perf_counter() - started
    mib = done / MIB
    return mib / took, (cpu_s(0) - before[0]) / mib * 1e6, (cpu_s(storage) - before[1]) / mib * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    with cluster() as (address, storage), connect([address]) as fs, ExitStack() as stack:
        with fs.open("/file", "w") as written:
            for _ in range(FILE_SIZE // (8 * MIB)):
                written.write(os.urandom(8 * MIB))
        file = stack.enter_context(fs.open("/file"))
        memory = stack.enter_context(Memory(COUNT * MIB))
        fd = os.memfd_create("unsealed")
        os.ftruncate(fd, COUNT * MIB)
        unsealed = memoryview(mmap.mmap(fd, COUNT * MIB))
        kinds = {"private": memoryview(bytearray(COUNT * MIB)), "unsealed": unsealed, "sealed": memory.view}
        stack.enter_context(fs.register(unsealed))
        stack.enter_context(fs.register(memory))
        found: dict[tuple[int, str], list[tuple[float, ...]]] = {}
        for number in range(arguments.rounds + 1):
            for size in SIZES:
                for kind, view in kinds.items():
                    figures = measure(fs, file, view, size, storage, arguments.seconds if number else 0.3)
                    if number:
                        found.setdefault((size, kind), []).append(figures)
    print(f"{'ranges':>12} {'memory':>10} {'MiB/s':>8} {'client us/MiB':>14} {'storage us/MiB':>15}")
    for (size, kind), rounds in found.items():
        rate, client, daemon = [statistics.median(column) for column in zip(*rounds, strict=True)]
        print(f"{COUNT:>3} x {size // 1024:>3} KiB {kind:>10} {rate:8.0f} {client:14.0f} {daemon:15.0f}")


if __name__ == "__main__":
    main()
