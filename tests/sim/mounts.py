"""Mounts without a kernel: fuse/fs.py over FileClient, for names, file content and appends."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import trio

from fs3.api.meta import Attr, Caller, FileKind, RenameFlags
from fs3.client.connect import connect
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.cells import SMALL, fill, parse
from tests.sim.cluster import Process, SimEnv, SimulationError, World
from tests.sim.linear import Model
from tests.sim.listing import list_at_once
from tests.sim.load import Load

ROOT = Caller(0, 0, (0,))
FOLDERS = (b"a", b"b")
NAMES = (b"x", b"y", b"z")
RECORD = 32


class MountLoad(Load):
    """Names, a few files of fixed length, and a log that all append to, through mounts."""

    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.names = self.history
        self.content = type(self.history)()
        self.folders: dict[bytes, int] = {}
        self.files: list[int] = []
        self.log = 0
        self.appended: dict[bytes, tuple[int, bool]] = {}  # record -> (its writer, whether its write returned)
        self.write_behind = 0
        self.bounds = SMALL

    async def prepare(self, fs: FileSystem) -> None:
        """Before the load: the folders, the files at their length, the log."""
        for name in FOLDERS:
            self.folders[name] = (await fs.mknod(ROOT, ROOT_INODE, name, FileKind.DIRECTORY, 0o755)).inode
        for number in range(3):
            opened, attr = await fs.create(ROOT, ROOT_INODE, b"file%d" % number, 0o644, os.O_RDWR)
            await fs.setattr(ROOT, attr.inode, length=self.bounds[-1], handle=opened.handle)
            await fs.release(opened.handle)
            self.files.append(attr.inode)
        opened, attr = await fs.create(ROOT, ROOT_INODE, b"log", 0o644, os.O_RDWR)
        await fs.release(opened.handle)
        self.log = attr.inode

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(0, 0, self.write_behind))
            for inode in (*self.files, self.log):
                fs._told(_attr(inode), ROOT_INODE, b"-")
            started("")
            try:
                log = (await fs.open(ROOT, self.log, os.O_WRONLY | os.O_APPEND)).handle
                handles = [(await fs.open(ROOT, inode, os.O_RDWR | os.O_DIRECT)).handle for inode in self.files]
            except FS3Error as error:
                self.world.trace.note(f"{process.name} cannot open its files: {error}")
                raise
            await self.work(env, lambda: self._operate(fs, env, number, log, handles))
            tasks.cancel_scope.cancel()

    async def _operate(self, fs: FileSystem, env: SimEnv, number: int, log: int, handles: list[int]) -> None:
        kind = env.random.random()
        if kind < 0.5:
            await self._name(fs, env, number)
        elif kind < 0.7:
            await self._append(fs, number, log)
        else:
            await self._content(fs, env, number, env.random.randrange(len(handles)), handles)

    # Names

    async def _name(self, fs: FileSystem, env: SimEnv, number: int) -> None:
        chance = env.random
        path, other = chance.sample([(folder, name) for folder in FOLDERS for name in NAMES], 2)
        here, there = self.folders[path[0]], self.folders[other[0]]
        kind = chance.random()
        if kind < 0.25:
            mark = self.unique()
            make = fs.mknod(ROOT, here, path[1], FileKind.CHARACTER_DEVICE, 0o644, mark)
            await self._run(number, ("create", path, mark), _ok(make))
        elif kind < 0.35:
            await self._run(number, ("unlink", path), _ok(fs.unlink(ROOT, here, path[1])))
        elif kind < 0.65:
            flags = chance.choice((RenameFlags.NONE, RenameFlags.NOREPLACE, RenameFlags.EXCHANGE))
            await self._run(
                number, ("rename", path, other, flags.name), _ok(fs.rename(ROOT, here, path[1], there, other[1], flags))
            )
        elif kind < 0.9:
            await self._run(number, ("lookup", path), _mark(fs.lookup(ROOT, here, path[1])))
        else:
            await self._run(number, ("list", path[0]), self.listing(fs, here))

    async def listing(self, fs: FileSystem, folder: int) -> tuple[tuple[bytes, int], ...]:
        entries = await list_at_once(fs, ROOT, folder)
        return tuple(sorted([(name, attr.rdev) for name, attr, _ in entries if name not in (b".", b"..")]))

    async def _run(self, number: int, request: tuple[Any, ...], act: Awaitable[Any]) -> None:
        call = self.names.call(number, "names", request)
        try:
            output = await act
        except FS3Error as error:
            if error.code not in (Code.NOT_FOUND, Code.EXISTS):
                self.world.trace.note(f"mount{number} {request} failed: {error}")
                if request[0] in ("lookup", "list"):
                    self.names.refused(call)
                return
            output = error.code.name
        self.names.done(call, output)
        self.did(number, f"{request}: {output}")

    # Content

    async def _content(self, fs: FileSystem, env: SimEnv, number: int, file: int, handles: list[int]) -> None:
        chance, bounds = env.random, self.bounds
        first = chance.randrange(len(bounds) - 1)
        end = chance.randint(first + 1, len(bounds) - 1)
        writing = chance.random() < 0.5
        writer = self.unique() if writing else 0
        request = ("write", first, end, writer) if writing else ("read", first, end)
        call = self.content.call(number, file, request)
        try:
            if writing:
                await fs.write(handles[file], bounds[first], fill(writer, bounds, first, end))
                self.content.done(call)
                if chance.random() < 0.2:
                    await fs.fsync(handles[file])
            else:
                data = bytes(await fs.read(handles[file], bounds[first], bounds[end] - bounds[first]))
                if len(data) != bounds[end] - bounds[first]:
                    raise SimulationError(f"file {file} gave {len(data)} bytes at {bounds[first]}, not {bounds[end]}")
                self.content.done(call, parse(data, bounds, first))
        except FS3Error as error:
            self.world.trace.note(f"mount{number} {request} of file {file} failed: {error}")
            return
        self.did(number, f"{request} of file {file}: {self.content.operations[call].output}")

    async def _append(self, fs: FileSystem, number: int, handle: int) -> None:
        record = b"%08d" % self.unique() * (RECORD // 8)
        self.appended[record] = (number, False)
        try:
            await fs.write(handle, 0, record)
        except FS3Error as error:
            self.world.trace.note(f"mount{number} append of {record[:8]!r} failed: {error}")
            return
        self.appended[record] = (number, True)
        self.did(number, f"appended {record[:8]!r}")

    async def check_log(self, fs: FileSystem) -> None:
        """Every append that returned is there once, whole; one that failed is there whole, or in part, or not at all."""
        handle = (await fs.open(ROOT, self.log, os.O_RDONLY | os.O_DIRECT)).handle
        data = bytes(await fs.read(handle, 0, 1 << 20))
        await fs.release(handle)
        found = [data[at : at + RECORD] for at in range(0, len(data), RECORD)]
        for record, (number, returned) in self.appended.items():
            count = found.count(record)
            if count > 1 or (returned and count != 1):
                raise SimulationError(f"the append {record[:8]!r} of mount{number} is there {count} times")
        for record in found:
            if record not in self.appended and record != bytes(RECORD):
                raise SimulationError(f"the log holds {record!r}, which nobody appended")


def _attr(inode: int) -> Attr:
    return Attr(inode, 0, FileKind.FILE, 0o644, 0, 0, 1, 0, 0, 0, 0)


async def _ok(act: Awaitable[object]) -> str:
    await act
    return "ok"


async def _mark(act: Awaitable[Attr]) -> int:
    return (await act).rdev


Path = tuple[bytes, bytes]


def _names_step(state: Any, request: Any, output: Any, known: bool) -> Hashable | None:
    """State: the (path, mark) that there are, sorted. Unknown operations may have failed for any reason."""
    entries: dict[Path, int] = dict(state)
    kind, path = request[0], request[1]
    answer: Any = "ok"
    if kind == "lookup":
        answer = entries.get(path, "NOT_FOUND")
    elif kind == "list":
        answer = tuple(sorted([(name, mark) for (folder, name), mark in entries.items() if folder == path]))
    elif kind == "create":
        if path in entries:
            answer = "EXISTS"
        else:
            entries[path] = request[2]
    elif path not in entries:
        answer = "NOT_FOUND"
    elif kind == "unlink":
        del entries[path]
    else:
        answer = _rename(entries, path, request[2], request[3])
    if known and answer != output:
        return None
    return tuple(sorted(entries.items()))


def _rename(entries: dict[Path, int], path: Path, other: Path, flags: str) -> str:
    if flags == "EXCHANGE":
        if other not in entries:
            return "NOT_FOUND"
        entries[path], entries[other] = entries[other], entries[path]
        return "ok"
    if flags == "NOREPLACE" and other in entries:
        return "EXISTS"
    entries[other] = entries.pop(path)
    return "ok"


NAMESPACE = Model(lambda key: (), _names_step)
"""Two folders of devices, told apart by their device numbers."""
