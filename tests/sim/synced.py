"""Files that were fsynced survive the loss of all power, whole and under their names, however much else is lost.

Storage disks keep any part of what was not synced. The store of the metadata loses what was committed after its last sync,
as an embedded one may; that of the management is taken for synced. Chunks of files whose making is lost may stay: an
operator's check finds them. They must not show in files that are made afterwards.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from fs3.api.meta import RenameFlags
from fs3.client.connect import connect
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.faults import Faults
from tests.sim.load import Load
from tests.sim.records import TAGS, check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, settle
from tests.sim.store import lose_power
from tests.sim.tree import ROOT

CHUNK = 64 * 1024
LENGTH_MAX = 3 * CHUNK
NEW = 20


@dataclass(slots=True, eq=False)
class Synced:
    """A file of one writer. promised: what fsync has returned for, and the name it had then; removed: somebody began to."""

    name: bytes
    content: bytearray = field(default_factory=bytearray)
    promised: bytes | None = None
    promised_name: bytes = b""
    removed: bool = False


class SyncedLoad(Load):
    """Each worker appends to a file and fsyncs it now and then; some are renamed or removed."""

    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.files: list[Synced] = []
        self.write_behind = self.chance.choice((0, 100_000))

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(0, 8 * CHUNK, self.write_behind))
            started("")
            await self.work(env, lambda: self._file(fs, env.random, number))
            tasks.cancel_scope.cancel()

    async def _file(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        file = Synced(b"s%d" % self.unique())
        self.files.append(file)
        try:
            opened, _ = await fs.create(ROOT, ROOT_INODE, file.name, 0o644, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            for _ in range(chance.randint(1, 8)):
                await self._step(fs, chance, number, file, opened.handle)
                if file.removed or (file.promised is not None and chance.random() < 0.5):
                    break  # so that some are left as they were promised for a while
            await fs.flush(opened.handle)
            await fs.release(opened.handle)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} {file.name.decode()} failed: {error}")

    async def _step(self, fs: FileSystem, chance: random.Random, number: int, file: Synced, handle: int) -> None:
        kind = chance.choice(("write", "write", "write", "fsync", "fsync", "rename", "unlink"))
        if kind == "write":
            size = min(LENGTH_MAX - len(file.content), chance.choice((100, 5000, CHUNK, CHUNK + 5)))
            at = len(file.content)
            file.content += (self.unique().to_bytes(4, "big") * (size // 4 + 1))[:size]
            await fs.write(handle, at, bytes(file.content[at:]))
        elif kind == "fsync":
            promised, name = bytes(file.content), file.name
            await fs.fsync(handle)
            file.promised, file.promised_name = promised, name
        elif kind == "rename":
            name, file.name = file.name, b"s%d" % self.unique()
            await fs.rename(ROOT, ROOT_INODE, name, ROOT_INODE, file.name, RenameFlags.NONE)
        elif chance.random() < 0.3:
            file.removed = True
            await fs.unlink(ROOT, ROOT_INODE, file.name)
        self.did(number, f"{kind} {file.name.decode()}, {len(file.content)} bytes")

    async def check(self, fs: FileSystem) -> None:
        for file in self.files:
            if file.promised is None or file.removed:
                continue
            found = None
            for name in {file.promised_name: 0, file.name: 0}:
                try:
                    found = await fs.lookup(ROOT, ROOT_INODE, name)
                except FS3Error as error:
                    if error.code is not Code.NOT_FOUND:
                        raise
            if found is None:
                raise SimulationError(f"{file.promised_name!r}, later {file.name!r}, was synced and is gone")
            opened = await fs.open(ROOT, found.inode, os.O_RDONLY | os.O_DIRECT)
            data = bytes(await fs.read(opened.handle, 0, len(file.promised)))
            await fs.release(opened.handle)
            if data != file.promised:
                raise SimulationError(
                    f"{file.name!r}, inode {found.inode}, was synced with {len(file.promised)} bytes, and has"
                    f" {found.length}, of which {_same(data, file.promised)} are those"
                )
            self.did(0, f"found {file.name.decode()} with {len(file.promised)} bytes")


async def check_new(fs: FileSystem) -> None:
    """What is made now is empty, and a hole in it is zeros."""
    for number in range(NEW):
        opened, attr = await fs.create(ROOT, ROOT_INODE, b"new%d" % number, 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        await fs.setattr(ROOT, attr.inode, length=LENGTH_MAX, handle=opened.handle)
        data = bytes(await fs.read(opened.handle, 0, LENGTH_MAX))
        await fs.release(opened.handle)
        if data != bytes(LENGTH_MAX):
            at = _same(data, bytes(LENGTH_MAX))
            raise SimulationError(f"inode {attr.inode} was just made, and holds {data[at : at + 8].hex()} at {at}")


def _same(one: bytes, other: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


async def blackout(world: World, load: SyncedLoad) -> None:
    """Load, then all hosts lose power at once, and come back."""
    load.start()
    faults = Faults(world)
    world.nursery.start_soon(faults.run)
    await trio.sleep(world.shape.load_s * (0.2 + 0.8 * world.chance.random()))
    for process in world.of_kind("mount"):
        process.supervised = False
    for process in world.processes.values():
        process.crash(power=True)
        if process.name in world.platters:
            world.lost_power(process.name)
    await trio.sleep(0.2)
    lost = lose_power(world.kv, world.kv_synced, TAGS)
    world.faults["power_all"] = 1
    world.trace.note(f"all power is lost, and {lost} values of the store with it")
    faults.heal()
    await settle(world, trio.lowlevel.checkpoint)


async def synced(world: World) -> None:
    """After a blackout what was fsynced is there, and the store is in order."""
    await world.start()
    load = SyncedLoad(world)
    await blackout(world, load)
    async with janitor(world) as fs:
        await load.check(fs)
        await check_new(fs)
        await check_store(world, orphans=True)
        await empty_tree(fs)
        await check_emptied(world, orphans=True)


SHAPES = (Shape("synced", metas=1, storages=3, replicas=2, workload="synced", load_s=2, think_s=0.05, faults=("cut",)),)
SCENARIOS = {"synced": synced}
