"""Mounts whose programs read and write by user-space rings: batches of operations on several files, past all caches."""

from __future__ import annotations

import os
from typing import cast

from fs3.client.many import Read
from fs3.errors import FS3Error
from fuse.fs import FileSystem
from fuse.ring_files import RingFile, RingWrite
from fuse.ring_memory import RingMemory
from tests.sim.cells import fill, parse
from tests.sim.cluster import SimEnv, SimulationError
from tests.sim.mounts import MountLoad


class _Bytes:
    """Memory of a program."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, offset: int, into: memoryview) -> None:
        into[:] = self._data[offset : offset + len(into)]


class RingLoad(MountLoad):
    """As the other mounts, but for the files' content, which goes by rings."""

    async def _content(self, fs: FileSystem, env: SimEnv, number: int, file: int, handles: list[int]) -> None:
        chance, bounds = env.random, self.bounds
        writing = chance.random() < 0.5
        writes: list[RingWrite] = []
        reads: list[Read] = []
        calls: list[tuple[int, int]] = []
        opened: dict[int, RingFile] = {}
        try:
            for each in chance.sample(range(len(handles)), chance.randint(1, len(handles))):
                opened[each] = await fs.open_for_rings(self.files[each], os.O_RDWR, 1 << 62, 0)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} cannot register: {error}")
        for each, entry in opened.items():
            first = chance.randrange(len(bounds) - 1)
            end = chance.randint(first + 1, len(bounds) - 1)
            offset, length = bounds[first], bounds[end] - bounds[first]
            if writing:
                writer = self.unique()
                calls.append((self.content.call(number, each, ("write", first, end, writer)), first))
                memory = cast(RingMemory, _Bytes(fill(writer, bounds, first, end)))
                writes.append(RingWrite(entry, offset, length, memory, 0))
            else:
                calls.append((self.content.call(number, each, ("read", first, end)), first))
                reads.append((entry.file, offset, memoryview(bytearray(length))))
        if writing:
            await fs.ring_write(writes)
            results = [write.result for write in writes]
            lengths = [write.length for write in writes]
        else:
            results = await fs.ring_read(opened.values(), reads)
            lengths = [len(into) for _, _, into in reads]
        for at, ((call, first), result, length) in enumerate(zip(calls, results, lengths, strict=True)):
            if result < 0 or (writing and result < length):
                self.world.trace.note(f"mount{number} {'write' if writing else 'read'} by a ring failed: {result}")
                continue
            if result != length:
                raise SimulationError(f"a ring gave {result} bytes in place of {length}")
            self.content.done(call, None if writing else parse(bytes(reads[at][2]), bounds, first))
            self.did(number, f"by a ring: {self.content.operations[call].input}")
        for entry in opened.values():
            try:
                await fs.close_for_rings(entry)
            except FS3Error as error:
                self.world.trace.note(f"mount{number} cannot settle: {error}")
