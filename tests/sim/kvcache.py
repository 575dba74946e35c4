"""A cache of files that many mounts fill, read and evict from: each is written under a name of its own, then renamed to the
name that says what it holds. Who finds that name reads exactly this, or is told that the file is gone."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import trio

from fs3.api.meta import FileKind, RenameFlags
from fs3.client.connect import connect
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fuse.cache import BLOCK_SIZE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.checkers import check_replicas
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.linear import Model, check
from tests.sim.load import Load
from tests.sim.records import check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, storm
from tests.sim.tree import ROOT

CHUNK = 64 * 1024
SIZES = (40, 5000, CHUNK - 1, CHUNK, 2 * CHUNK + 777, 4 * CHUNK)
KEYS = 6
BATCH = 3
GONE = (Code.NOT_FOUND, Code.STALE_HANDLE)


@dataclass(frozen=True, slots=True)
class Key:
    """name: what the content hashes to, as it were."""

    number: int
    name: bytes
    content: bytes


def keys(chance: random.Random) -> list[Key]:
    """No two contents have a block of bytes in common, and no block is zeros."""
    found = []
    for number in range(KEYS):
        size = SIZES[number % len(SIZES)]
        word = b"%02d" % number + chance.randbytes(6)
        content = b"".join([word + at.to_bytes(4, "big") for at in range(size // 12 + 1)])[:size]
        found.append(Key(number, b"hash%d" % number, content))
    return found


def _step(state: Any, request: Any, output: Any, known: bool) -> Hashable | None:
    """State: whether the name is there. Inputs: put, evict, get, with what each came to."""
    kind = request[0]
    if kind == "put":
        return 1
    if known and output != ("ok" if state else "NOT_FOUND"):
        return None
    return 0 if kind == "evict" else state


PRESENCE = Model(lambda key: 0, _step)
"""A name that comes and goes."""


class CacheLoad(Load):
    """Each worker puts, gets (several at once, in pieces, with pauses) or evicts."""

    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.keys = keys(self.chance)
        self.cache = self.making = 0
        self.write_behind = self.chance.choice((0, 0, 100_000))
        self.read_ahead = 2 * BLOCK_SIZE if world.seed % 2 else 0
        self.hits = 0

    async def prepare(self, fs: FileSystem) -> None:
        self.cache = (await fs.mknod(ROOT, ROOT_INODE, b"cache", FileKind.DIRECTORY, 0o755)).inode
        self.making = (await fs.mknod(ROOT, ROOT_INODE, b"making", FileKind.DIRECTORY, 0o755)).inode

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(self.read_ahead, 4 * BLOCK_SIZE, self.write_behind))
            started("")
            await self.work(env, lambda: self._operate(fs, env.random, number))
            tasks.cancel_scope.cancel()

    async def _operate(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        key = chance.choice(self.keys)
        kind = chance.random()
        try:
            if kind < 0.3:
                await self._put(fs, chance, number, key)
            elif kind < 0.5:
                await self._evict(fs, number, key)
            else:
                async with trio.open_nursery() as nursery:
                    for each in chance.sample(self.keys, chance.choice((1, 1, BATCH))):
                        nursery.start_soon(self._get_or_fail, fs, chance, number, each)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} {key.name.decode()} failed: {error}")

    async def _put(self, fs: FileSystem, chance: random.Random, number: int, key: Key) -> None:
        name = b"new%d" % self.unique()
        opened, _ = await fs.create(ROOT, self.making, name, 0o644, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            piece = chance.choice((CHUNK // 2, CHUNK, 4 * CHUNK))
            for at in range(0, len(key.content), piece):
                await fs.write(opened.handle, at, key.content[at : at + piece])
            if chance.random() < 0.3:
                await fs.fsync(opened.handle)
            await fs.flush(opened.handle)
        finally:
            await fs.release(opened.handle)
        call = self.history.call(number, key.number, ("put",))
        await fs.rename(ROOT, self.making, name, self.cache, key.name, RenameFlags.NONE)
        self.history.done(call)
        self.did(number, f"put {key.name.decode()}")

    async def _evict(self, fs: FileSystem, number: int, key: Key) -> None:
        call = self.history.call(number, key.number, ("evict",))
        try:
            await fs.unlink(ROOT, self.cache, key.name)
            output = "ok"
        except FS3Error as error:
            if error.code is not Code.NOT_FOUND:
                raise
            output = error.code.name
        self.history.done(call, output)
        self.did(number, f"evicted {key.name.decode()}: {output}")

    async def _get_or_fail(self, fs: FileSystem, chance: random.Random, number: int, key: Key) -> None:
        try:
            await self.get(fs, chance, number, key)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} get of {key.name.decode()} failed: {error}")

    async def get(self, fs: FileSystem, chance: random.Random, number: int, key: Key) -> bool:
        """Read all of a file, or find that it is gone; whether it was there."""
        call = self.history.call(number, key.number, ("get",))
        try:
            attr = await fs.lookup(ROOT, self.cache, key.name)
        except FS3Error as error:
            if error.code is Code.NOT_FOUND:
                self.history.done(call, error.code.name)
                self.did(number, f"no {key.name.decode()}")
                return False
            self.history.refused(call)
            raise
        self.history.done(call, "ok")
        try:
            await self._read(fs, chance, key, attr.inode)
        except FS3Error as error:
            if error.code in GONE:
                self.did(number, f"{key.name.decode()} went while it was read")
                return False
            raise
        self.hits += 1
        self.did(number, f"got {key.name.decode()}")
        return True

    async def _read(self, fs: FileSystem, chance: random.Random, key: Key, inode: int) -> None:
        opened = await fs.open(ROOT, inode, os.O_RDONLY | chance.choice((0, os.O_DIRECT)))
        try:
            piece = chance.choice((4096, CHUNK, 4 * CHUNK))
            pause_s = chance.choice((0.0, 0.0, 0.01, 0.1))
            at = 0
            while True:
                data = bytes(await fs.read(opened.handle, at, piece))
                wanted = key.content[at : at + piece]
                if data != wanted:
                    raise SimulationError(
                        f"{key.name.decode()}, inode {inode}: {len(data)} bytes at {at}, {data[:12].hex()}..., where"
                        f" {len(wanted)} bytes, {wanted[:12].hex()}..., were written"
                    )
                if not data:
                    return
                at += len(data)
                await trio.sleep(pause_s)
        finally:
            await fs.release(opened.handle)


async def kv_cache(world: World) -> None:
    """Put, get, evict, faults, rest. Names come and go in one order for all; what is there is whole; nothing is left."""
    await world.start()
    load = CacheLoad(world)
    async with janitor(world) as fs:
        await load.prepare(fs)
        await storm(world, load)
        for key in load.keys:
            await load.get(fs, load.chance, 0, key)
        verdict = check(load.history.operations, PRESENCE)
        if not verdict.ok and not verdict.gave_up:
            raise SimulationError(verdict.explain())
        world.undecided += verdict.gave_up
        await check_store(world)
        await check_replicas(world)
        await empty_tree(fs)
        await check_emptied(world)


SHAPES = (
    Shape(
        "kvcache",
        metas=1,
        storages=2,
        replicas=1,
        workload="kv-cache",
        load_s=6,
        always=("meta.gc.interrupted",),
    ),
    Shape(
        "kvcache-all",
        metas=2,
        storages=3,
        replicas=2,
        workload="kv-cache",
        load_s=8,
        clients=4,
        faults=("crash", "crash_meta", "crash_mount", "cut", "slow", "hang", "partition", "disk_slow", "kv_slow"),
        kv_faults=0.02,
    ),
)
SCENARIOS = {"kv-cache": kv_cache}
