"""Files that mounts share: removed, linked and replaced by some while others have them open; and a log that all append to
and cut."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

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
from tests.sim.load import Load
from tests.sim.records import check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, storm
from tests.sim.tree import ROOT

CHUNK = 64 * 1024
LENGTH_MAX = 3 * CHUNK
RECORD = 32
LONELY = frozenset({"hang", "partition", "isolate", "split", "kv_slow", "crash_mgmtd", "slow"})
"""Faults by which a mount may be taken for dead: what it has open and others have removed is then gone for it, too."""


@dataclass(slots=True, eq=False)
class Shared:
    """A file with one writer. names: those it may have. foreign: whether others than its own mount may have taken one."""

    inode: int
    owner: str
    names: set[bytes]
    content: bytearray = field(default_factory=bytearray)
    foreign: bool = False
    closed: bool = False
    """Its writer closed it, and told others of all it wrote."""
    lost: bool = False
    """An operation on it failed: nobody knows what it holds."""

    def taken(self, name: bytes, by: str) -> None:
        self.names.discard(name)
        self.foreign |= by != self.owner


@dataclass(slots=True)
class Event:
    """An append or a cut of the log. returned: infinite when it is not known whether it was done."""

    called: float
    returned: float = math.inf


class SharedLoad(Load):
    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.files: dict[bytes, Shared] = {}  # by name
        self.log = self.folder = 0
        self.appends: dict[bytes, Event] = {}
        self.cuts: list[Event] = []
        self.write_behind = self.chance.choice((0, 0, 100_000))
        self.read_ahead = 2 * BLOCK_SIZE if world.seed % 2 else 0
        self.lonely = bool(LONELY.intersection(world.shape.faults))

    async def prepare(self, fs: FileSystem) -> None:
        self.folder = (await fs.mknod(ROOT, ROOT_INODE, b"shared", FileKind.DIRECTORY, 0o755)).inode
        self.log = (await fs.mknod(ROOT, ROOT_INODE, b"log", FileKind.FILE, 0o644)).inode

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        life = f"mount{number}.{process.lives}"
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(self.read_ahead, 4 * BLOCK_SIZE, self.write_behind))
            started("")
            await self.work(env, lambda: self._operate(fs, env.random, number, life))
            tasks.cancel_scope.cancel()

    async def _operate(self, fs: FileSystem, chance: random.Random, number: int, life: str) -> None:
        kind = chance.random()
        try:
            if kind < 0.35:
                await self._own(fs, chance, number, life)
            elif kind < 0.7:
                await self._take(fs, chance, number, life)
            else:
                await self._log(fs, chance, number)
        except FS3Error as error:
            self.world.trace.note(f"{life} failed: {error}")

    # A file's writer

    async def _own(self, fs: FileSystem, chance: random.Random, number: int, life: str) -> None:
        name = b"f%d" % self.unique()
        opened, attr = await fs.create(ROOT, self.folder, name, 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        file = self.files[name] = Shared(attr.inode, life, {name})
        handle = opened.handle
        try:
            for _ in range(chance.randint(2, 10)):
                await trio.sleep(chance.expovariate(1 / self.think_s))
                await self._step(fs, chance, number, life, file, handle)
            await fs.flush(handle)
            file.closed = not file.lost
        except FS3Error as error:
            file.lost = True
            if error.code is Code.STALE_HANDLE and not self.lonely:
                raise SimulationError(f"inode {file.inode} was taken from its writer {life}: {error}") from error
            raise
        finally:
            await fs.release(handle)
        self.did(number, f"closed inode {file.inode} of {len(file.content)} bytes, names {sorted(file.names)}")
        if chance.random() < 0.4:
            await self._read_again(fs, chance, number, life, file)

    async def _step(self, fs: FileSystem, chance: random.Random, number: int, life: str, file: Shared, handle: int) -> None:
        kind = chance.choice(("write", "write", "read", "read", "truncate", "fsync", "unlink", "link"))
        content = file.content
        offset = min(LENGTH_MAX - 1, max(0, chance.choice((0, CHUNK, len(content))) + chance.randint(-200, 200)))
        if kind == "write":
            size = min(LENGTH_MAX - offset, chance.choice((100, 5000, CHUNK + 100)))
            data = (self.unique().to_bytes(4, "big") * (size // 4 + 1))[:size]
            await fs.write(handle, offset, data)
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + size] = data
        elif kind == "read":
            self._compare(file, life, bytes(await fs.read(handle, 0, LENGTH_MAX)))
        elif kind == "truncate":
            await fs.setattr(ROOT, file.inode, length=offset, handle=handle)
            del content[offset:]
            content.extend(bytes(offset - len(content)))
        elif kind == "fsync":
            await fs.fsync(handle)
        elif kind == "link" and file.names:
            await self._link(fs, life, file)
        elif kind == "unlink" and file.names and chance.random() < 0.5:
            await self._unlink(fs, life, chance.choice(sorted(file.names)))
        self.did(number, f"{kind} inode {file.inode}, {len(content)} bytes, names {sorted(file.names)}")

    def _compare(self, file: Shared, who: str, found: bytes) -> None:
        wanted = bytes(file.content)
        if file.lost or found == wanted:
            return
        at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
        raise SimulationError(
            f"inode {file.inode} read by {who}: {len(found)} bytes, wanted {len(wanted)}; they differ at {at}:"
            f" {found[at : at + 8].hex()} and {wanted[at : at + 8].hex()}"
        )

    async def _read_again(self, fs: FileSystem, chance: random.Random, number: int, life: str, file: Shared) -> None:
        """Open for reading only, and go on reading while names are taken away, by this mount or by others."""
        if not file.names:
            return
        try:
            opened = await fs.open(ROOT, file.inode, os.O_RDONLY | chance.choice((0, os.O_DIRECT)))
        except FS3Error as error:
            if error.code is Code.STALE_HANDLE and not file.names:
                return
            raise
        try:
            for _ in range(4):
                if chance.random() < 0.4 and file.names:
                    await self._unlink(fs, life, chance.choice(sorted(file.names)))
                self._compare(file, life, bytes(await fs.read(opened.handle, 0, LENGTH_MAX)))
                await trio.sleep(chance.choice((0.0, 0.1)))
        except FS3Error as error:
            if error.code is Code.STALE_HANDLE and not (file.foreign or file.lost or self.lonely):
                raise SimulationError(f"inode {file.inode} was taken from its reader {life}: {error}") from error
            raise
        finally:
            await fs.release(opened.handle)
        self.did(number, f"read inode {file.inode} again")

    # Names

    async def _link(self, fs: FileSystem, life: str, file: Shared) -> None:
        name = b"l%d" % self.unique()
        self.files[name] = file
        file.names.add(name)
        try:
            await fs.link(ROOT, file.inode, self.folder, name)
        except FS3Error as error:
            if error.code in (Code.STALE_HANDLE, Code.NOT_FOUND):
                file.taken(name, life)  # it had lost its last name
                return
            raise

    async def _unlink(self, fs: FileSystem, life: str, name: bytes) -> None:
        file = self.files[name]
        file.taken(name, life)
        try:
            await fs.lookup(ROOT, self.folder, name)  # as the kernel does
            await fs.unlink(ROOT, self.folder, name)
        except FS3Error as error:
            if error.code is not Code.NOT_FOUND:
                raise

    async def _take(self, fs: FileSystem, chance: random.Random, number: int, life: str) -> None:
        """Do something to the name of a file that anybody may have open."""
        names = [name for name, file in self.files.items() if name in file.names][-8:]
        if not names:
            return
        name = chance.choice(names)
        file = self.files[name]
        kind = chance.random()
        await fs.lookup(ROOT, self.folder, name)
        if kind < 0.4:
            await self._link(fs, life, file)
            what = "linked"
        elif kind < 0.7:
            await self._unlink(fs, life, name)
            what = "unlinked"
        else:
            other = chance.choice(names)
            replaced = self.files[other]
            if replaced is file:
                return
            replaced.taken(other, life)
            file.names.add(other)
            file.names.discard(name)
            self.files[other] = file
            await fs.rename(ROOT, self.folder, name, self.folder, other, RenameFlags.NONE)
            what = f"renamed to {other.decode()}"
        self.did(number, f"{what} {name.decode()}, inode {file.inode}")

    # The log

    async def _log(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        if chance.random() < 0.06:
            event = Event(trio.current_time())
            self.cuts.append(event)
            await fs.setattr(ROOT, self.log, length=0)
            event.returned = trio.current_time()
            self.did(number, "cut the log")
            return
        opened = await fs.open(ROOT, self.log, os.O_WRONLY | os.O_APPEND)
        try:
            for _ in range(chance.randint(1, 5)):
                record = (b"%08d" % self.unique()) * (RECORD // 8)
                self.appends[record] = event = Event(trio.current_time())
                await fs.write(opened.handle, 0, record)
                event.returned = trio.current_time()
                self.did(number, f"appended {record[:8].decode()}")
        finally:
            await fs.release(opened.handle)

    async def check_log(self, fs: FileSystem) -> None:
        """What was appended after the last cut is there, once and whole; what was appended before one is not."""
        handle = (await fs.open(ROOT, self.log, os.O_RDONLY | os.O_DIRECT)).handle
        data = bytes(await fs.read(handle, 0, 1 << 22))
        await fs.release(handle)
        found = [data[at : at + RECORD] for at in range(0, len(data), RECORD)]
        for record, event in self.appends.items():
            count = found.count(record)
            may_be_cut = any(cut.returned >= event.called for cut in self.cuts)
            must_be_cut = any(cut.called > event.returned and cut.returned < math.inf for cut in self.cuts)
            if count > 1 or (count and must_be_cut) or (not count and event.returned < math.inf and not may_be_cut):
                raise SimulationError(f"the append {record[:8]!r} of {event} is there {count} times; cuts: {self.cuts}")
        for record in found:
            if record not in self.appends and record != bytes(RECORD):
                raise SimulationError(f"the log holds {record!r}, which nobody appended")

    async def check(self, fs: FileSystem) -> None:
        """At rest: all names of one file show what its writer closed, by another mount."""
        handle = await fs.opendir(ROOT, self.folder)
        cookie = 0
        while entries := await fs.readdir(handle, cookie):
            for name, attr, _ in entries:
                file = self.files.get(name)
                if file is None or not file.closed or attr.inode != file.inode:
                    continue
                opened = await fs.open(ROOT, attr.inode, os.O_RDONLY)
                self._compare(file, "the janitor", bytes(await fs.read(opened.handle, 0, LENGTH_MAX)))
                await fs.release(opened.handle)
            cookie = entries[-1][2]
        await fs.releasedir(handle)


async def shared_files(world: World) -> None:
    """Load, faults, rest; then what is left is whole, and after all is removed nothing is left."""
    await world.start()
    load = SharedLoad(world)
    async with janitor(world) as fs:
        await load.prepare(fs)
        await storm(world, load)
        await check_store(world)
        await load.check_log(fs)
        await load.check(fs)
        await check_replicas(world)
        await empty_tree(fs)
        await check_emptied(world)


SHAPES = (
    Shape("shared", metas=1, storages=2, replicas=1, workload="shared-files", load_s=6),
    Shape(
        "shared-meta",
        metas=2,
        storages=2,
        replicas=2,
        workload="shared-files",
        load_s=6,
        faults=("crash_meta", "crash_meta", "crash_mount", "crash", "cut"),
        kv_faults=0.02,
    ),
    Shape(
        "shared-all",
        mgmtds=2,
        metas=2,
        storages=3,
        replicas=2,
        workload="shared-files",
        load_s=6,
        clients=4,
        faults=(
            "crash", "crash_meta", "crash_mount", "cut", "slow", "hang", "partition", "disk_slow", "kv_slow", "crash_mgmtd",
        ),
        kv_faults=0.02,
    ),
)  # fmt: skip
SCENARIOS = {"shared-files": shared_files}
