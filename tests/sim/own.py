"""Files with one writer each, over several chunks: every read must give exactly what a local file would give."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from fs3.api.meta import Caller
from fs3.client.connect import connect
from fs3.errors import FS3Error
from fs3.ids import ROOT_INODE
from fuse.cache import BLOCK_SIZE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.cluster import Process, SimEnv, SimulationError, World
from tests.sim.load import Load

ROOT = Caller(0, 0, (0,))
CHUNK = 64 * 1024
LENGTH_MAX = 3 * CHUNK


class OwnFileLoad(Load):
    """Each worker makes a file, works on it, closes it and goes on to the next. `closed`: what others must see of it."""

    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.closed: dict[bytes, bytes] = {}
        self.write_behind = self.chance.choice((0, 0, 100_000))
        self.read_ahead = 2 * BLOCK_SIZE if world.seed % 2 else 0

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(self.read_ahead, 4 * BLOCK_SIZE, self.write_behind))
            started("")
            await self.work(env, lambda: self._file(fs, env, number))
            tasks.cancel_scope.cancel()

    async def _file(self, fs: FileSystem, env: SimEnv, number: int) -> None:
        name = b"own%d" % self.unique()
        what = f"file {name.decode()}"
        try:
            opened, attr = await fs.create(ROOT, ROOT_INODE, name, 0o644, os.O_RDWR | os.O_CREAT)
            content = bytearray()
            handle = opened.handle
            for _ in range(env.random.randint(1, 12)):
                await trio.sleep(env.random.expovariate(1 / self.think_s))
                handle = await self._step(fs, env, number, attr.inode, handle, content, what)
            await fs.flush(handle)
            await fs.release(handle)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} {what} failed: {error}")
            return
        self.closed[name] = bytes(content)
        self.did(number, f"closed {what} of {len(content)} bytes")

    async def _step(
        self, fs: FileSystem, env: SimEnv, number: int, inode: int, handle: int, content: bytearray, what: str
    ) -> int:
        """One operation on the file, and on the model of it; returns the handle to go on with."""
        chance = env.random
        kind = chance.choice(("write", "write", "append", "truncate", "read", "read", "length", "fsync", "reopen"))
        offset = min(LENGTH_MAX - 1, max(0, chance.choice((0, CHUNK, 2 * CHUNK, len(content))) + chance.randint(-300, 300)))
        if kind in ("write", "append"):
            if kind == "append":
                offset = min(len(content), LENGTH_MAX - 1)
            size = min(LENGTH_MAX - offset, chance.choice((1, 500, 5000, CHUNK, CHUNK + 100)))
            data = self.unique().to_bytes(4, "big") * (size // 4 + 1)
            self.world.trace.note(f"mount{number} {kind} {what} [{offset}, {offset + size})")
            await fs.write(handle, offset, data[:size])
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + size] = data[:size]
        elif kind == "truncate":
            self.world.trace.note(f"mount{number} truncate {what} to {offset}")
            await fs.setattr(ROOT, inode, length=offset, handle=handle)
            del content[offset:]
            content.extend(bytes(offset - len(content)))
        elif kind == "read":
            size = chance.choice((10, 5000, LENGTH_MAX))
            found = bytes(await fs.read(handle, offset, size))
            self._compare(f"{what}, read by its writer at {offset}", found, bytes(content[offset : offset + size]))
        elif kind == "length":
            length = (await fs.getattr(inode)).length
            if length != len(content):
                if self.write_behind:
                    await fs.flush(handle)  # raises where a buffered write was lost, which stat does not tell
                raise SimulationError(f"{what}: {length} bytes long for its writer, not {len(content)}")
        elif kind == "fsync":
            await fs.fsync(handle)
        else:
            await fs.flush(handle)
            await fs.release(handle)
            handle = (await fs.open(ROOT, inode, os.O_RDWR)).handle
        self.did(number, f"{kind} {what}")
        return handle

    def _compare(self, what: str, found: bytes, wanted: bytes) -> None:
        if found == wanted:
            return
        at = next((i for i in range(min(len(found), len(wanted))) if found[i] != wanted[i]), min(len(found), len(wanted)))
        raise SimulationError(
            f"{what}: {len(found)} bytes, wanted {len(wanted)}; they differ at {at}:"
            f" {found[at : at + 8].hex()} and {wanted[at : at + 8].hex()}"
        )

    async def check(self, fs: FileSystem) -> None:
        """Another mount reads all that was closed, and removes it."""
        for name, content in self.closed.items():
            attr = await fs.lookup(ROOT, ROOT_INODE, name)
            if attr.length != len(content):
                raise SimulationError(f"file {name.decode()}: {attr.length} bytes long after close, not {len(content)}")
            handle = (await fs.open(ROOT, attr.inode, os.O_RDONLY)).handle
            self._compare(f"file {name.decode()} after close", bytes(await fs.read(handle, 0, LENGTH_MAX)), content)
            await fs.release(handle)
            self.did(0, f"compared {name.decode()}")
