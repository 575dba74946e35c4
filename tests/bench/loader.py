"""What data loaders get: `python -m tests.bench.loader`. One storage daemon over TCP loopback, one replica, in memory.

Compares batches of ranges through the storage client (the limit), read_batch by open file and by path, and from a program
that does not run trio. Prints the median of several slices
of each row, taken in turn, and the CPU time that this process and the storage daemon spent for each range.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import trio

from fs3.client.paths import AsyncFile
from fs3.client.reading import ChunkRead
from fs3.client.sync import FileSystem, connect
from fs3.ids import ChunkId
from tests.bench.storage_cluster import Cluster
from tests.bench.storage_load import cpu_seconds

MIB = 1024 * 1024
FILES = 64


@dataclass
class Row:
    name: str
    size: int
    run: Callable[[float], int]
    """Reads for so many seconds; returns how many ranges."""
    rates: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)


class Rows:
    """The work, on one big file and on FILES small ones."""

    def __init__(self, fs: FileSystem, mib: int, ranges: int) -> None:
        self._fs = fs
        self._mib = mib
        self._ranges = ranges
        self._random = random.Random(1)
        with fs.open("/big", "w") as file:
            block = random.Random(2).randbytes(8 * MIB)
            for at in range(0, mib * MIB, len(block)):
                file.pwrite(block, at)
        for number in range(FILES):
            fs.write_file(f"/small-{number}", block[: 4 * MIB])
        self._big = fs.open("/big")

    def rows(self) -> list[Row]:
        rows = []
        for size in (4096, 128 * 1024):
            into = np.empty(size * min(self._ranges, 64 * MIB // size), dtype=np.uint8)
            name = f"{size // 1024} KiB"
            rows.append(Row(f"storage client {name}", size, self._trio(self._storage, size, into)))
            rows.append(Row(f"trio, open file {name}", size, self._trio(self._handle, size, into)))
            rows.append(Row(f"trio, {FILES} paths {name}", size, self._trio(self._paths, size, into)))
            rows.append(Row(f"threads, open file {name}", size, self._blocking(size, into)))
        return rows

    def _places(self, size: int, count: int) -> list[int]:
        return [self._random.randrange(self._mib * MIB // size) * size for _ in range(count)]

    def _trio(self, once: Any, size: int, into: Any) -> Callable[[float], int]:
        def run(seconds: float) -> int:
            return self._fs.call(repeat, seconds)

        async def repeat(seconds: float) -> int:
            done = 0
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                done += await once(size, memoryview(into))
            return done

        return run

    async def _storage(self, size: int, into: memoryview) -> int:
        """64 ranges in each request, four at once."""
        paths = self._fs.paths
        state = self._big.opened().handle.inode
        count = len(into) // size
        left = iter(range(0, count, 64))
        storage = paths._client.storage

        async def work() -> None:
            for first in left:
                reads = []
                for number, place in enumerate(self._places(size, min(64, count - first)), first):
                    index, offset = divmod(place, state.chunk_size)
                    piece = into[number * size : (number + 1) * size]
                    reads.append(ChunkRead(state.chains[index % len(state.chains)], ChunkId(state.id, index), offset, piece))
                await storage.read(reads, deadline=storage.env.monotonic() + 30)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(work)
        return count

    async def _handle(self, size: int, into: memoryview) -> int:
        big: AsyncFile = self._big.opened()
        items = [(big, place, size) for place in self._places(size, len(into) // size)]
        await self._fs.paths.read_batch(items, into, strict=True)
        return len(items)

    async def _paths(self, size: int, into: memoryview) -> int:
        places = self._places(size, len(into) // size)
        items = [(f"/small-{number % FILES}", place % (4 * MIB), size) for number, place in enumerate(places)]
        await self._fs.paths.read_batch(items, into, strict=True)
        return len(items)

    def _blocking(self, size: int, into: Any) -> Callable[[float], int]:
        def run(seconds: float) -> int:
            done = 0
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                items = [(self._big, place, size) for place in self._places(size, len(into) // size)]
                self._fs.read_batch(items, into, strict=True)
                done += len(items)
            return done

        return run


def measure(row: Row, seconds: float, pids: list[int]) -> None:
    began, client, server = time.perf_counter(), time.process_time(), cpu_seconds(pids)
    done = row.run(seconds)
    took = time.perf_counter() - began
    row.rates.append(done / took)
    row.client_us.append((time.process_time() - client) / done * 1e6)
    row.server_us.append((cpu_seconds(pids) - server) / done * 1e6)


def show(row: Row) -> None:
    rate = statistics.median(row.rates)
    client, server = statistics.median(row.client_us), statistics.median(row.server_us)
    print(
        f"{row.name:28} {rate:9,.0f} /s {rate * row.size / MIB:8,.0f} MiB/s ({min(row.rates):,.0f} to {max(row.rates):,.0f})"
        f"  CPU us {client:6.1f} + {server:6.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="/dev/shm", help="where the daemons keep their data")
    parser.add_argument("--mib", type=int, default=256, help="size of the big file")
    parser.add_argument("--ranges", type=int, default=4096, help="in one batch, if they come to no more than 64 MiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a slice")
    parser.add_argument("--rows", help="only rows whose names hold this")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    here = Path(__file__).resolve().parents[2]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder, prefix="fs3-bench-")))
        cluster = stack.enter_context(Cluster(here, folder / "cluster", 1, 2, ["--log-level=warning"]))
        cluster.load(8).close()  # formats it
        pids = [process.pid for process in cluster.storage.values()]
        fs = stack.enter_context(connect([cluster.address]))
        rows = [row for row in Rows(fs, options.mib, options.ranges).rows() if (options.rows or "") in row.name]
        for _ in range(options.runs):
            for row in rows:
                measure(row, options.seconds, pids)
        for row in rows:
            show(row)


if __name__ == "__main__":
    main()
