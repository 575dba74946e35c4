"""What was synced survives the loss of power of all storage hosts at once."""

from __future__ import annotations

from collections.abc import Callable

import trio

from fs3.client.reading import ChunkRead
from fs3.client.storage import StorageClient
from fs3.errors import FS3Error
from fs3.ids import ChunkId
from tests.sim.cells import SMALL, fill, parse
from tests.sim.cluster import Process, SimEnv, SimulationError, World
from tests.sim.load import Load
from tests.sim.workloads import storage_client

INODE = 5000
Cells = tuple[int, ...]


class DurableLoad(Load):
    """Each chunk has one writer, who goes on to the next chunk after a while. `overwrite`: synced chunks are written again.

    allowed: for each chunk, what it may hold after a loss of power: what it held at its last sync, or anything later.
    """

    def __init__(self, world: World, *, overwrite: bool) -> None:
        super().__init__(world)
        self.bounds = SMALL
        self.overwrite = overwrite
        self.allowed: dict[tuple[int, int], list[Cells]] = {}

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with trio.open_nursery() as nursery:
            storage = await storage_client(process, env, nursery)
            started("")
            await self.work(env, lambda: self._chunk(storage, env, number))
            nursery.cancel_scope.cancel()

    async def _chunk(self, storage: StorageClient, env: SimEnv, number: int) -> None:
        """The life of one chunk under load."""
        chains = self.world.shape.targets * self.world.shape.storages // self.world.shape.replicas
        index = self.unique()
        chain, chunk = 1 + index % chains, ChunkId(INODE, index)
        allowed = self.allowed[chain, index] = [()]
        for _ in range(env.random.randint(1, 6)):
            if trio.current_time() >= self.stop_at:
                return
            deadline = env.monotonic() + 5
            try:
                if env.random.random() < 0.4:
                    before = len(allowed) - 1
                    await storage.sync(chain, [chunk], deadline=deadline)
                    del allowed[:before]
                    self.did(number, f"synced {index}")
                    if not self.overwrite:
                        return
                else:
                    await self._write(storage, env, chain, chunk, allowed, deadline)
                    self.did(number, f"wrote {index}: {allowed[-1]}")
            except FS3Error as error:
                self.world.trace.note(f"{self.kind}{number} chunk {index} failed: {error}")
                return

    async def _write(
        self, storage: StorageClient, env: SimEnv, chain: int, chunk: ChunkId, allowed: list[Cells], deadline: float
    ) -> None:
        bounds, now = self.bounds, allowed[-1]
        first = env.random.randrange(len(bounds) - 1)
        end = env.random.randint(first + 1, len(bounds) - 1)
        writer = self.unique()
        allowed.append(now[:first] + (0,) * (first - len(now)) + (writer,) * (end - first) + now[end:])
        data = fill(writer, bounds, first, end)
        await storage.write(chain, chunk, bounds[first], data, 64 * 1024, deadline=deadline)

    async def check(self, storage: StorageClient, env: SimEnv) -> None:
        """After the loss of power."""
        for (chain, index), allowed in self.allowed.items():
            into = memoryview(bytearray(self.bounds[-1]))
            read = ChunkRead(chain, ChunkId(INODE, index), 0, into)
            try:
                length = (await storage.read([read], deadline=env.monotonic() + 5))[0]
            except FS3Error as error:
                if allowed[0] == ():
                    continue  # never synced: it may be lost, as long as that is said
                raise SimulationError(f"chunk {index}, synced as {allowed[0]}, cannot be read: {error}") from error
            cells = parse(bytes(into[:length]), self.bounds, 0)
            if cells not in allowed:
                raise SimulationError(f"chunk {index} holds {cells} after the loss of power, not one of {allowed}")
            self.world.trace.note(f"chunk {index}: {cells} of {len(allowed)}")
