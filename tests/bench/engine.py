"""The chunk engine alone: `python -m tests.bench.engine FOLDER`.

Prints operations per second of processor time of one target, medians; others may use the machine meanwhile.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import trio

from fs3.api.storage import Update, UpdateKind
from fs3.checksum import piece_checksums
from fs3.ids import ChunkId, RequestTag
from storage.chunk_engine import ChunkEngine
from storage.disk_linux import LinuxDisk
from storage.space import SpaceBudget

MIB = 1024 * 1024
CHUNKS = 256
ROUNDS = 5
TIDY_S = 5.0


class Load:
    """Chunks of 1 MiB of one file. Every few seconds it does what a daemon does in the background."""

    def __init__(self, folder: Path) -> None:
        self.disk = LinuxDisk(str(folder))
        self.engine = ChunkEngine(self.disk, "target", SpaceBudget(self.disk, 0))
        self.random = Random(1)
        self.whole = memoryview(self.random.randbytes(MIB))
        self.whole_sums = piece_checksums(self.whole, 0)
        self.small = memoryview(self.random.randbytes(4096))
        self.small_sums = piece_checksums(self.small, 0)
        self.writes = 0
        self.tidy_at = time.process_time() + TIDY_S

    async def put(self, index: int, offset: int, data: memoryview, checksums: tuple[int, ...]) -> None:
        chunk = ChunkId(1, index)
        tag = RequestTag(1, 1, self.writes)
        update = Update(tag, 1, 1, 1, chunk, UpdateKind.WRITE, offset, len(data), MIB, checksums)
        state = self.engine.get(chunk)
        number = state.committed.number + 1 if state is not None and state.committed is not None else 1
        await self.engine.put(update, number, 1, data, commit=True, remember=True)
        self.writes += 1
        if time.process_time() > self.tidy_at:
            await self.engine.tidy()
            self.tidy_at = time.process_time() + TIDY_S

    async def write_whole(self, count: int) -> None:
        for at in range(count):
            await self.put(at % CHUNKS, 0, self.whole, self.whole_sums)

    async def overwrite(self, count: int) -> None:
        for _ in range(count):
            place = self.random.randrange(CHUNKS * 256)
            await self.put(place >> 8, (place & 255) << 12, self.small, self.small_sums)

    async def read(self, count: int) -> None:
        for _ in range(count):
            place = self.random.randrange(CHUNKS * 256)
            await self.engine.read(ChunkId(1, place >> 8), (place & 255) << 12, 4096)

    async def append(self, count: int) -> None:
        for at in range(count):
            await self.put(CHUNKS + at // 256, (at % 256) << 12, self.small, self.small_sums)


async def rate(run: Callable[[int], Awaitable[None]], count: int) -> float:
    figures = []
    for _ in range(ROUNDS):
        started = time.process_time()
        await run(count)
        figures.append(count / (time.process_time() - started))
    return statistics.median(figures)


async def main(folder: str) -> None:
    path = Path(folder) / "engine-bench"
    shutil.rmtree(path, ignore_errors=True)
    load = Load(path)
    await load.write_whole(CHUNKS)
    print(f"1 MiB writes      {await rate(load.write_whole, 1000):9.0f}/s")
    print(f"4 KiB overwrites  {await rate(load.overwrite, 8000):9.0f}/s")
    print(f"4 KiB reads       {await rate(load.read, 8000):9.0f}/s")
    print(f"4 KiB appends     {await rate(load.append, 8000):9.0f}/s")
    load.engine.close()
    load.disk.close()
    shutil.rmtree(path)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
