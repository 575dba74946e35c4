"""All calls on names by many mounts, against a model file system; then a check of every record in the store."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from fs3.api.meta import Access, Attr, Caller, FileKind, RenameFlags
from fs3.client.connect import connect
from fs3.client.file import FileClient
from fs3.errors import FS3Error
from fs3.ids import ROOT_INODE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.listing import list_at_once
from tests.sim.load import Load
from tests.sim.records import check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, storm
from tests.sim.tree import READS, ROOT, ROOT_MARK, check_namespace, view

FOLDERS = (b"a", b"b", b"c")
NAMES = (b"x", b"y", b"z")
KINDS = (FileKind.FILE, FileKind.DIRECTORY, FileKind.DIRECTORY, FileKind.SYMLINK, FileKind.FIFO)
FLAGS = (RenameFlags.NONE, RenameFlags.NONE, RenameFlags.NOREPLACE, RenameFlags.EXCHANGE)
LISTING_ATTEMPTS_MAX = 20
RECENT = 5
"""Inodes that operations by inode, and in directories other than the folders, are done on."""


class NamespaceLoad(Load):
    """Few names in few directories, so that everything meets."""

    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.inodes = {ROOT_MARK: int(ROOT_INODE)}  # by mark
        self.folders: list[int] = []
        self.directories: list[int] = []  # marks, the latest at the end
        self.others: list[int] = []

    async def prepare(self, fs: FileSystem) -> None:
        for name in FOLDERS[: self.chance.choice((2, 3))]:
            mark = self.unique()
            made = fs.mknod(Caller(0, mark, (mark,)), ROOT_INODE, name, FileKind.DIRECTORY, 0o755)
            await self.run(0, ("make", ROOT_MARK, name, int(FileKind.DIRECTORY), mark, 0o755), self._changed(made))
            self.folders.append(mark)

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(0, 0, 0))
            started("")
            await self.work(env, lambda: self._operate(fs, client, env.random, number))
            tasks.cancel_scope.cancel()

    async def _operate(self, fs: FileSystem, client: FileClient, chance: random.Random, number: int) -> None:
        at, name = self._place(chance), chance.choice(NAMES)
        kind = chance.random()
        if kind < 0.3:
            await self._make(fs, client, chance, number, at, name)
        elif kind < 0.42:
            directory = chance.random() < 0.4
            remove = fs.rmdir if directory else fs.unlink
            await self.run(number, ("remove", at, name, directory), _ok(remove(ROOT, self.inodes[at], name)))
        elif kind < 0.48:
            mark = self._some(chance)
            made = fs.link(ROOT, self.inodes[mark], self.inodes[at], name)
            await self.run(number, ("link", mark, at, name), self._changed(made))
        elif kind < 0.68:
            to, new_name = self._place(chance), chance.choice(NAMES)
            flags = chance.choice(FLAGS)
            renamed = fs.rename(ROOT, self.inodes[at], name, self.inodes[to], new_name, flags)
            await self.run(number, ("rename", at, name, to, new_name, int(flags)), _ok(renamed))
        elif kind < 0.76:
            await self._set(fs, chance, number)
        else:
            await self._look(fs, chance, number, at, name)

    def _place(self, chance: random.Random) -> int:
        """The mark of a directory."""
        return chance.choice(self.folders if chance.random() < 0.6 or not self.directories else self.directories[-RECENT:])

    def _some(self, chance: random.Random) -> int:
        found = self.others[-RECENT:] + self.directories[-2:]
        return chance.choice(found or self.folders)

    async def _make(
        self, fs: FileSystem, client: FileClient, chance: random.Random, number: int, at: int, name: bytes
    ) -> None:
        mark, mode = self.unique(), chance.choice((0o644, 0o755, 0o600))
        caller = Caller(0, mark, (mark,))
        parent = self.inodes[at]
        if chance.random() < 0.3:
            exclusive = chance.random() < 0.5
            await self.run(
                number,
                ("create", at, name, mark, mode, exclusive),
                self._create(client, caller, parent, name, mode, exclusive),
            )
            return
        kind = chance.choice(KINDS)
        target = b"%d" % mark if kind is FileKind.SYMLINK else b""
        mode = 0o777 if target else mode
        node = self._changed(fs.mknod(caller, parent, name, kind, mode, 0, target))
        await self.run(number, ("make", at, name, int(kind), mark, mode), node)

    async def _create(self, client: FileClient, caller: Caller, parent: int, name: bytes, mode: int, exclusive: bool) -> Any:
        """open(O_CREAT | O_RDONLY), and close. What is open for reading leaves nothing in the store."""
        handle = await client.create(caller, parent, name, mode, Access.READ, exclusive=exclusive)
        attr = handle.inode.attr
        await client.close(handle)
        return self._learnt(attr, False)

    async def _set(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        mark = self._some(chance)
        inode = self.inodes[mark]
        what = chance.choice(("mode", "mtime", "length"))
        if what == "length":
            value = chance.choice((0, 1, 70_000, 200_000))
            await self.run(number, ("set", mark, what, value), _ok(fs.setattr(ROOT, inode, length=value)))
            return
        value = self.unique() & 0o777 if what == "mode" else self.unique()
        act = fs.setattr(ROOT, inode, mode=value) if what == "mode" else fs.setattr(ROOT, inode, mtime_ns=value)
        await self.run(number, ("set", mark, what, value), self._changed(act))

    async def _look(self, fs: FileSystem, chance: random.Random, number: int, at: int, name: bytes) -> None:
        kind = chance.random()
        if kind < 0.45:
            name = b".." if at not in self.folders and chance.random() < 0.2 else name
            await self.run(number, ("lookup", at, name), self._shown(fs.lookup(ROOT, self.inodes[at], name)))
        elif kind < 0.65:
            mark = self._some(chance)
            await self.run(number, ("stat", mark), self._shown(fs.getattr(self.inodes[mark])))
        elif kind < 0.7:
            mark = self._some(chance)
            await self.run(number, ("readlink", mark), fs.readlink(self.inodes[mark]))
        else:
            await self.run(number, ("list", at), self.listing(fs, self.inodes[at]))

    async def listing(self, fs: FileSystem, inode: int) -> tuple[tuple[bytes, Any], ...]:
        entries = await list_at_once(fs, ROOT, inode)
        shown = [(name, self._learnt(attr, False)) for name, attr, _ in entries if name not in (b".", b"..")]
        return tuple(sorted(shown))

    async def run(self, number: int, request: tuple[Any, ...], act: Awaitable[Any]) -> None:
        """One operation into the history. An error that is meta's answer is an outcome; after any other one, or a crash,
        nobody knows."""
        call = self.history.call(number, "names", request)
        try:
            output = await act
        except FS3Error as error:
            if not 300 <= error.code < 400:
                self.world.trace.note(f"mount{number} {request} failed: {error}")
                if request[0] in READS:
                    self.history.refused(call)
                return
            output = error.code.name
        self.history.done(call, output)
        self.did(number, f"{request}: {output}")

    async def _changed(self, act: Awaitable[Attr]) -> Any:
        return self._learnt(await act, True)

    async def _shown(self, act: Awaitable[Attr]) -> Any:
        return self._learnt(await act, False)

    def _learnt(self, attr: Attr, changed: bool) -> Any:
        found = view(attr, changed)
        if self.inodes.setdefault(found[0], attr.inode) != attr.inode:
            raise SimulationError(f"what was made once as {found[0]} is inode {self.inodes[found[0]]} and {attr.inode}")
        known = self.directories if attr.kind is FileKind.DIRECTORY else self.others
        if found[0] not in (ROOT_MARK, *known, *self.folders):
            known.append(found[0])
        return found

    async def list_all(self, fs: FileSystem) -> None:
        """At rest: everything that is there goes into the history."""
        todo = [ROOT_MARK]
        while todo:
            at = todo.pop()
            shown: Any = None
            for _ in range(LISTING_ATTEMPTS_MAX):
                await self.run(0, ("list", at), self.listing(fs, self.inodes[at]))
                shown = self.history.operations[-1].output
                if isinstance(shown, tuple):
                    break
            else:
                raise SimulationError(f"directory {at} cannot be listed after healing: {shown}")
            todo += [seen[0] for _, seen in shown if seen[1] == FileKind.DIRECTORY]


async def _ok(act: Awaitable[object]) -> str:
    await act
    return "ok"


async def namespace(world: World) -> None:
    """Operations on names, faults, rest; then one order must explain all answers, and the store must be in order."""
    await world.start()
    load = NamespaceLoad(world)
    async with janitor(world) as fs:
        await load.prepare(fs)
        await storm(world, load)
        await load.list_all(fs)
        await check_store(world)
        verdict = check_namespace(load.history.relevant())
        if not verdict.ok and not verdict.gave_up:
            raise SimulationError(verdict.explain())
        world.undecided += not verdict.ok
        await empty_tree(fs)
        await check_emptied(world)


_FAULTS = ("crash_meta", "crash_meta", "crash_mount", "cut", "kv_slow", "hang")
SHAPES = (
    Shape("names", metas=2, storages=1, replicas=1, targets=1, workload="namespace", load_s=5),
    Shape(
        "names-meta",
        metas=2,
        storages=1,
        replicas=1,
        targets=1,
        workload="namespace",
        load_s=5,
        faults=("crash_meta", "crash_meta", "cut", "kv_slow"),
        kv_faults=0.05,
    ),
    Shape(
        "names-all",
        mgmtds=2,
        metas=3,
        storages=2,
        replicas=2,
        targets=1,
        clients=4,
        workload="namespace",
        load_s=5,
        faults=(*_FAULTS, "crash", "partition", "crash_mgmtd"),
        kv_faults=0.05,
    ),
)
SCENARIOS = {"namespace": namespace}
