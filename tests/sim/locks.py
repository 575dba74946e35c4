"""Locks between clients: never do two believe at the same instant that they have what excludes each other.

Clients lock files and ranges of them, hold that for a while, and look all that time who else believes in a lock. They are
killed, cut off, frozen, and their daemons with them. At rest whoever asks gets a lock, and none is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from fs3.api.meta import FileKind
from fs3.api.meta_locks import LockMode
from fs3.client.connect import connect
from fs3.client.file import ROOT_CALLER, FileClient
from fs3.client.locks import Lock
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fuse.fs import FileSystem
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.load import Load
from tests.sim.records import check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, storm
from tests.sim.tree import ROOT

FILES = 2
SIZE = 4
"""Bytes of which ranges are locked: few, so that many are in each other's way."""
REST_S = 60.0


class LockLoad(Load):
    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.inodes: list[int] = []
        self.believers: dict[Lock, int] = {}  # of processes that live -> the client's number
        self.shared = 0

    async def prepare(self, fs: FileSystem) -> None:
        for number in range(FILES):
            self.inodes.append((await fs.mknod(ROOT, ROOT_INODE, b"f%d" % number, FileKind.FILE, 0o644)).inode)

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client:
            started("")
            await self.work(env, lambda: self._operate(client, env.random, number))

    async def _operate(self, client: FileClient, chance: random.Random, number: int) -> None:
        start = chance.randrange(SIZE)
        end = chance.randint(start + 1, SIZE)
        inode, shared = chance.choice(self.inodes), chance.random() < 0.3
        try:
            async with client.locks.hold(
                ROOT_CALLER, inode, shared=shared, start=start, end=end, timeout_s=chance.choice((0, 1, 5))
            ) as lock:
                await self._have(lock, number, chance)
        except FS3Error as error:
            if error.code is not Code.BUSY:
                self.world.trace.note(f"mount{number} got no lock: {error}")

    async def _have(self, lock: Lock, number: int, chance: random.Random) -> None:
        self.believers[lock] = number
        try:
            self.look()
            self.did(number, f"locked {lock.inode} {lock.start}-{lock.end} {lock.mode.name.lower()}")
            for _ in range(chance.randrange(5)):
                await trio.sleep(chance.expovariate(5))
                self.look()
                if chance.random() < 0.2 and lock.is_held():
                    await lock.convert(shared=chance.random() < 0.5, timeout_s=0.5)
                    self.look()
        finally:
            del self.believers[lock]  # a process that was killed believes nothing

    def look(self) -> None:
        """Raises SimulationError where two have what excludes each other."""
        held = [lock for lock in self.believers if lock.is_held()]
        for at, lock in enumerate(held):
            for other in held[:at]:
                if lock.inode != other.inode or lock.start >= other.end or other.start >= lock.end:
                    continue
                if LockMode.EXCLUSIVE in (lock.mode, other.mode):
                    who = [f"mount{self.believers[each]} {each.start}-{each.end} {each.mode.name}" for each in (lock, other)]
                    raise SimulationError(f"two have locked inode {lock.inode}: {' and '.join(who)}")
                self.shared += 1

    async def check(self, client: FileClient) -> None:
        """At rest: what dead clients had has ended."""
        for inode in self.inodes:
            async with client.locks.hold(ROOT_CALLER, inode, timeout_s=REST_S) as lock:
                if not lock.is_held() or await client.locks.holder(inode) is None:
                    raise SimulationError(f"inode {inode}: a lock that is none")


async def locks(world: World) -> None:
    """Load, faults, rest: nobody had what another one had."""
    await world.start()
    load = LockLoad(world)
    async with janitor(world) as fs:
        await load.prepare(fs)
        await storm(world, load)
        env = SimEnv(world.network.host("auditor"), random.Random(f"{world.seed}/auditor"))
        async with connect(env, world.mgmtd_addresses, "auditor") as client:
            await load.check(client)
        await check_store(world)
        await empty_tree(fs)
        await check_emptied(world)


SHAPES = (
    Shape("locks", metas=2, storages=1, replicas=1, targets=1, clients=3, workload="locks", load_s=8),
    Shape(
        "locks-all",
        mgmtds=2,
        metas=2,
        storages=1,
        replicas=1,
        targets=1,
        clients=4,
        workload="locks",
        load_s=15,
        faults=("crash_meta", "crash_mount", "crash_mount", "cut", "hang", "isolate", "kv_slow", "partition", "clock_drift"),
        kv_faults=0.05,
    ),
)
SCENARIOS = {"locks": locks}
