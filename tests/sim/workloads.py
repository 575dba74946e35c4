"""Clients of the chunks alone: writes, truncations, removals and reads straight at the storage client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from fs3.client.mgmtd import MgmtdClient
from fs3.client.reading import ChunkRead
from fs3.client.storage import StorageClient
from fs3.errors import FS3Error
from fs3.ids import ChunkId
from fs3.rpc.client import RpcClient
from tests.sim.cells import BLOCKS, SMALL, fill, parse
from tests.sim.cluster import Process, SimEnv, World
from tests.sim.load import Load


class ChunkLoad(Load):
    """A few chunks as registers of cells."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.bounds = SMALL if self.chance.random() < 0.7 else BLOCKS
        self.chunk_size = 64 * 1024 if self.bounds is SMALL else 128 * 1024

    def registers(self) -> list[tuple[int, int]]:
        """(chain, inode) of each chunk."""
        chains = self.world.shape.targets * self.world.shape.storages // self.world.shape.replicas
        return [(1 + number % chains, 1000 + number) for number in range(self.world.shape.chunks)]

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with trio.open_nursery() as nursery:
            storage = await storage_client(process, env, nursery)
            started("")
            registers = self.registers()
            await self.work(env, lambda: self.operate(storage, env, number, *env.random.choice(registers)))
            nursery.cancel_scope.cancel()

    async def operate(self, storage: StorageClient, env: SimEnv, number: int, chain: int, inode: int) -> None:
        """One random operation on a chunk."""
        chance, bounds, size = env.random, self.bounds, self.chunk_size
        chunk = ChunkId(inode, 0)
        deadline = env.monotonic() + chance.choice((1.0, 5.0, 30.0))
        first = chance.randrange(len(bounds) - 1)
        end = chance.randint(first + 1, len(bounds) - 1)
        kind = chance.random()
        if kind < 0.45:
            await self.read(storage, number, chain, inode, first, end, deadline)
        elif kind < 0.9:
            if chance.random() < 0.25:
                first, end = 0, len(bounds) - 1
            writer = self.unique()
            data = fill(writer, bounds, first, end)
            await self._change(
                number,
                inode,
                ("write", first, end, writer),
                lambda: self._length(storage.write(chain, chunk, bounds[first], data, size, deadline=deadline)),
            )
        elif kind < 0.97:
            end = chance.randrange(len(bounds))
            await self._change(
                number,
                inode,
                ("truncate", end),
                lambda: self._length(storage.truncate(chain, chunk, bounds[end], size, deadline=deadline)),
            )
        else:
            # Over a change of head a removal may be done twice: its tag is known to the head alone, and who asks for it
            # (the collector, a truncation) asks again anyway.
            self.history.call(number, inode, ("remove",))
            await self._change(
                number, inode, ("remove",), lambda: _nothing(storage.remove_file(chain, inode, 0, deadline=deadline))
            )

    async def read(
        self, storage: StorageClient, number: int, chain: int, inode: int, first: int, end: int, deadline: float
    ) -> bool:
        """Read cells; whether that succeeded."""
        bounds = self.bounds
        into = memoryview(bytearray(b"\xee" * (bounds[end] - bounds[first])))
        call = self.history.call(number, inode, ("read", first, end))
        try:
            length = await storage.read_one(ChunkRead(chain, ChunkId(inode, 0), bounds[first], into), deadline=deadline)
        except FS3Error as error:
            self.world.trace.note(f"client{number} read {inode} failed: {error}")
            return False
        cells = parse(bytes(into[:length]), bounds, first)
        self.history.done(call, cells)
        self.did(number, f"read {inode} [{first}, {end}): {cells}")
        return True

    async def _change(
        self, number: int, inode: int, request: tuple[object, ...], act: Callable[[], Awaitable[int | None]]
    ) -> None:
        call = self.history.call(number, inode, request)
        try:
            output = await act()
        except FS3Error as error:
            self.world.trace.note(f"client{number} {request} of {inode} failed: {error}")
            return
        self.history.done(call, output)
        self.did(number, f"{request} of {inode}: {output}")

    async def _length(self, result: Awaitable[object]) -> int | None:
        found = await result
        length = getattr(found, "chunk_length", None)
        assert length in self.bounds, f"chunk length {length}"
        return self.bounds.index(length)


async def _nothing(result: Awaitable[object]) -> None:
    await result


async def storage_client(process: Process, env: SimEnv, nursery: trio.Nursery) -> StorageClient:
    """A client of the chunks alone."""
    rpc = RpcClient(env, nursery)
    mgmtd = MgmtdClient(env, rpc, process.world.mgmtd_addresses)
    await nursery.start(mgmtd.run)
    return StorageClient(env, rpc, mgmtd, env.client_id(), process.name)
