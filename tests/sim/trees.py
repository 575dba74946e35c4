"""rmtree under faults: whole trees go, each once asked for is gone at once and soon to the last record; nothing else goes.

Each client makes trees of its own, with files that have content, names of them outside, and files that it has open, and
removes them, while another one moves things out. fsck looks on all the while.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import trio

from fs3.api.meta import FileKind, RenameFlags
from fs3.client.connect import connect
from fs3.client.file import FileClient
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.fscked import check_again_and_again
from tests.sim.load import Load
from tests.sim.records import check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, storm
from tests.sim.tree import ROOT

DATA = b"tree" * 100


class TreeLoad(Load):
    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.shelf = 0  # a directory of what was taken out of trees
        self.kept: dict[bytes, int] = {}  # its names that are known to be there, with their inodes
        self.removed: set[bytes] = set()  # names of trees that are known to be gone

    async def prepare(self, fs: FileSystem) -> None:
        self.shelf = (await fs.mknod(ROOT, ROOT_INODE, b"shelf", FileKind.DIRECTORY, 0o755)).inode

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(0, 0, 0))
            started("")
            await self.work(env, lambda: self._tree(fs, client, env.random, number))
            tasks.cancel_scope.cancel()

    async def _tree(self, fs: FileSystem, client: FileClient, chance: Random, number: int) -> None:
        name = b"tree%d" % self.unique()
        try:
            await self._one(fs, client, chance, name, number)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} {name.decode()} failed: {error}")

    async def _one(self, fs: FileSystem, client: FileClient, chance: Random, name: bytes, number: int) -> None:
        directories = [(await fs.mknod(ROOT, ROOT_INODE, name, FileKind.DIRECTORY, 0o755)).inode]
        below = []  # (parent, name) of directories that may be moved
        for each in range(chance.randint(0, 4)):
            parent = chance.choice(directories)
            directories.append((await fs.mknod(ROOT, parent, b"d%d" % each, FileKind.DIRECTORY, 0o755)).inode)
            below.append((parent, b"d%d" % each, directories[-1]))
        handle = -1
        for each in range(chance.randint(0, 4)):
            parent = chance.choice(directories)
            opened, attr = await fs.create(ROOT, parent, b"f%d" % each, 0o644, os.O_RDWR | os.O_CREAT)
            await fs.write(opened.handle, 0, DATA)
            if handle < 0 and chance.random() < 0.3:
                handle = opened.handle
            else:
                await fs.flush(opened.handle)
                await fs.release(opened.handle)
            if chance.random() < 0.3:
                await fs.link(ROOT, attr.inode, self.shelf, b"%s-%d" % (name, each))
                self.kept[b"%s-%d" % (name, each)] = attr.inode
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._remove, client, name, number)
            if below and chance.random() < 0.5:
                nursery.start_soon(self._move_out, fs, chance.choice(below), name)
        if handle >= 0:
            if bytes(await fs.read(handle, 0, len(DATA))) != DATA:
                raise SimulationError(f"an open file in {name.decode()} lost its bytes")
            await fs.flush(handle)
            await fs.release(handle)

    async def _remove(self, client: FileClient, name: bytes, number: int) -> None:
        try:
            tree = await client.rmtree(ROOT, ROOT_INODE, name)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} rmtree {name.decode()} failed: {error}")
            return
        self.removed.add(name)
        self.did(number, f"removed {name.decode()}, tree {tree}")

    async def _move_out(self, fs: FileSystem, which: tuple[int, bytes, int], name: bytes) -> None:
        """A directory of the tree goes to the shelf, or with the tree."""
        parent, old, inode = which
        try:
            await fs.rename(ROOT, parent, old, self.shelf, name, RenameFlags.NOREPLACE)
        except FS3Error as error:
            self.world.trace.note(f"{name.decode()}: {old.decode()} stays: {error}")
            return
        self.kept[name] = inode

    async def check(self, fs: FileSystem) -> None:
        """At rest: what was taken out is there, and removed trees are not."""
        for name, inode in self.kept.items():
            attr = await fs.lookup(ROOT, self.shelf, name)
            if attr.inode != inode:
                raise SimulationError(f"{name.decode()} on the shelf is inode {attr.inode}, not {inode}")
            if attr.kind is FileKind.FILE:
                handle = (await fs.open(ROOT, inode, os.O_RDONLY)).handle
                if bytes(await fs.read(handle, 0, len(DATA))) != DATA:
                    raise SimulationError(f"{name.decode()} on the shelf has lost its bytes")
                await fs.release(handle)
        for name in sorted(self.removed):
            try:
                await fs.lookup(ROOT, ROOT_INODE, name)
            except FS3Error as error:
                if error.code is Code.NOT_FOUND:
                    continue
                raise
            raise SimulationError(f"{name.decode()} was removed, and is there")


async def trees(world: World) -> None:
    await world.start()
    load = TreeLoad(world)
    async with janitor(world) as fs:
        await load.prepare(fs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_again_and_again, world, [])
            await storm(world, load)
            nursery.cancel_scope.cancel()
        await check_store(world)
        await load.check(fs)
        await empty_tree(fs)
        await check_emptied(world)


SHAPES = (
    Shape(
        "trees",
        mgmtds=1,
        metas=2,
        storages=1,
        replicas=1,
        targets=1,
        workload="trees",
        load_s=2.5,
        think_s=0.5,
        faults=("crash_meta", "crash_meta", "crash_mount", "cut", "hang", "kv_slow"),
        kv_faults=0.03,
    ),
)
SCENARIOS = {"trees": trees}
