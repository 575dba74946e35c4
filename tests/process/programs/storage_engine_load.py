"""Works on a chunk engine until it is killed: `storage_engine_load.py FOLDER SEED`.

Which operations it does follows from the seed. It says on standard output how many it has completed, and before that, for
the first time, that it is ready.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import trio

from fs3.api.storage import Update, UpdateKind
from fs3.checksum import piece_checksums
from fs3.ids import ChunkId, RequestTag
from storage.chunk_engine import ChunkEngine
from storage.disk_linux import LinuxDisk
from storage.space import SpaceBudget

CHUNKS = [ChunkId(inode, index) for inode in (1, 2) for index in range(8)]
CHUNK_SIZE = 1024 * 1024


@dataclass(frozen=True)
class Operation:
    """One committed change: data at offset, or a truncation to `length`, or the chunk's removal."""

    chunk: ChunkId
    kind: UpdateKind
    offset: int
    length: int
    fill: int
    in_two_steps: bool
    sync: bool

    def data(self) -> bytes:
        return bytes([self.fill]) * self.length if self.kind is UpdateKind.WRITE else b""

    def apply(self, old: bytes | None) -> bytes | None:
        """The content after it."""
        if self.kind is UpdateKind.REMOVE:
            return None
        content = old or b""
        if self.kind is UpdateKind.TRUNCATE:
            return content[: self.length].ljust(self.length, b"\0")
        end = self.offset + self.length
        return content[: self.offset].ljust(self.offset, b"\0") + self.data() + content[end:]


def operations(seed: int) -> Iterator[Operation]:
    """Without end."""
    random = Random(seed)
    while True:
        chunk = random.choice(CHUNKS)
        kind = random.choices([UpdateKind.WRITE, UpdateKind.TRUNCATE, UpdateKind.REMOVE], [20, 1, 1])[0]
        offset = length = 0
        if kind is UpdateKind.WRITE:
            offset = random.choice([0, random.randrange(CHUNK_SIZE)])
            length = random.choice([CHUNK_SIZE - offset, random.randint(1, min(5000, CHUNK_SIZE - offset))])
        elif kind is UpdateKind.TRUNCATE:
            length = random.randint(1, CHUNK_SIZE)
        yield Operation(chunk, kind, offset, length, random.randrange(256), random.random() < 0.3, random.random() < 0.02)


async def do(engine: ChunkEngine, operation: Operation) -> None:
    state = engine.get(operation.chunk)
    if state is not None and state.pending is not None:
        engine.drop_pending(operation.chunk)
    committed = state.committed if state is not None else None
    if committed is None and operation.kind is UpdateKind.REMOVE:
        return
    number = committed.number + 1 if committed is not None else 1
    data = operation.data()
    checksums = piece_checksums(data, operation.offset)
    update = Update(
        RequestTag(1, 1, 1),
        1,
        1,
        1,
        operation.chunk,
        operation.kind,
        operation.offset,
        operation.length,
        CHUNK_SIZE,
        checksums,
    )
    two = operation.in_two_steps
    await engine.put(update, number, 1, memoryview(data), commit=not two, remember=not two)
    if two:
        engine.commit(operation.chunk, 1, remember=True)
    if operation.sync:
        await engine.sync()


async def main(folder: str, seed: int) -> None:
    disk = LinuxDisk(folder)
    engine = ChunkEngine(disk, "target", SpaceBudget(disk, 0))
    os.write(1, b"0\n")
    for count, operation in enumerate(operations(seed), 1):
        await do(engine, operation)
        os.write(1, f"{count}\n".encode())


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
