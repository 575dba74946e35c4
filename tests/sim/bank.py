"""A bank of files: each coin is a file, its name says whose it is, and it moves by rename.

What is promised, and checked: a listing that comes in one reply is of one instant, so in the hall, which coins change owners
in but never leave, each listing shows each coin exactly once. Vaults are directories of their own, which no call sees all at
once: there each listing shows a coin at most once, and all of them together show all coins once when everything is at rest.
The ledger is replaced by rename again and again: whoever looks it up finds it, and never an older one than before.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import trio

from fs3.api.meta import Caller, FileKind, RenameFlags
from fs3.client.connect import connect
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.linear import Model, check
from tests.sim.listing import list_at_once
from tests.sim.load import Load
from tests.sim.records import check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, storm
from tests.sim.tree import ROOT

OWNERS = 4
HALL_COINS = 8
VAULT_COINS = 6
VAULTS = 3
LEDGER = b"ledger"
REFUSALS = (Code.NOT_FOUND, Code.EXISTS)
ATTEMPTS_MAX = 20


def _ledger_step(state: object, request: tuple[str, int], output: object, known: bool) -> object:
    """State: which ledger stands there."""
    kind, number = request
    if kind == "replace":
        return number
    return state if not known or output == state else None


REPLACED = Model(lambda key: 0, _ledger_step)
"""A name that always stands for one thing, by its number."""


class BankLoad(Load):
    kind = "mount"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.hall = self.desk = 0
        self.vaults: list[int] = []
        self.listings = 0

    async def prepare(self, fs: FileSystem) -> None:
        self.hall = (await fs.mknod(ROOT, ROOT_INODE, b"hall", FileKind.DIRECTORY, 0o755)).inode
        self.desk = (await fs.mknod(ROOT, ROOT_INODE, b"desk", FileKind.DIRECTORY, 0o755)).inode
        for number in range(VAULTS):
            self.vaults.append((await fs.mknod(ROOT, ROOT_INODE, b"vault%d" % number, FileKind.DIRECTORY, 0o755)).inode)
        for coin in range(HALL_COINS):
            await fs.mknod(ROOT, self.hall, _name(coin % OWNERS, coin), FileKind.FILE, 0o644)
        for coin in range(VAULT_COINS):
            await fs.mknod(ROOT, self.vaults[coin % VAULTS], b"coin%d" % coin, FileKind.FILE, 0o644)
        await fs.mknod(ROOT, self.desk, LEDGER, FileKind.FILE, 0o644)

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name) as client, trio.open_nursery() as tasks:
            fs = FileSystem(client, tasks, FsOptions(0, 0, 0))
            started("")
            await self.work(env, lambda: self._operate(fs, env.random, number))
            tasks.cancel_scope.cancel()

    async def _operate(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        act = chance.choice(
            (self._pay, self._pay, self._swap, self._carry, self._carry, self._count, self._count, self._replace, self._look)
        )
        try:
            await act(fs, chance, number)
        except FS3Error as error:
            if error.code not in REFUSALS:
                self.world.trace.note(f"mount{number} {act.__name__} failed: {error}")

    # The hall

    async def coins(self, fs: FileSystem) -> list[tuple[int, int]]:
        """(owner, coin) of all in the hall. Raises CONFLICT where they were not listed at one instant."""
        entries = await list_at_once(fs, ROOT, self.hall)
        found = [_parts(name) for name, _, _ in entries if name not in (b".", b"..")]
        if sorted(coin for _, coin in found) != list(range(HALL_COINS)):
            raise SimulationError(f"the hall holds {sorted(found)} at one instant")
        self.listings += 1
        return found

    async def _count(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        if chance.random() < 0.7:
            owned = Counter(owner for owner, _ in await self.coins(fs))
            self.did(number, f"counted {sorted(owned.items())}")
            return
        vault = chance.choice(self.vaults)
        entries = await list_at_once(fs, ROOT, vault)
        names = [name for name, _, _ in entries if name not in (b".", b"..")]
        if len(set(names)) != len(names):
            raise SimulationError(f"a vault shows {names}")
        self.did(number, f"counted {len(names)} in vault {vault}")

    async def _pay(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        owner, coin = chance.choice(await self.coins(fs))
        other = chance.randrange(OWNERS)
        flags = chance.choice((RenameFlags.NONE, RenameFlags.NOREPLACE))
        await fs.rename(ROOT, self.hall, _name(owner, coin), self.hall, _name(other, coin), flags)
        self.did(number, f"coin {coin} went from {owner} to {other}")

    async def _swap(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        (_, coin), (_, other) = (one, another) = chance.sample(await self.coins(fs), 2)
        await fs.rename(ROOT, self.hall, _name(*one), self.hall, _name(*another), RenameFlags.EXCHANGE)
        self.did(number, f"coins {coin} and {other} changed places")

    # The vaults

    async def _carry(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        source, target = chance.sample(self.vaults, 2)
        name = b"coin%d" % chance.randrange(VAULT_COINS)
        await fs.rename(ROOT, source, name, target, name, RenameFlags.NOREPLACE)
        self.did(number, f"{name.decode()} was carried from {source} to {target}")

    # The ledger

    async def _replace(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        mark = self.unique()
        draft = b"draft%d" % mark
        await fs.mknod(Caller(0, mark, (mark,)), self.desk, draft, FileKind.FILE, 0o644)
        call = self.history.call(number, "ledger", ("replace", mark))
        await fs.rename(ROOT, self.desk, draft, self.desk, LEDGER, RenameFlags.NONE)
        self.history.done(call)
        self.did(number, f"replaced the ledger by {mark}")

    async def _look(self, fs: FileSystem, chance: random.Random, number: int) -> None:
        call = self.history.call(number, "ledger", ("look", 0))
        try:
            attr = await fs.lookup(ROOT, self.desk, LEDGER)
        except FS3Error as error:
            if error.code is Code.NOT_FOUND:
                raise SimulationError("there was no ledger at a time") from error
            self.history.refused(call)
            raise
        self.history.done(call, attr.gid)
        self.did(number, f"saw the ledger {attr.gid}")

    async def check(self, fs: FileSystem) -> None:
        """At rest."""
        for _ in range(ATTEMPTS_MAX):
            try:
                await self.coins(fs)
                carried = [entry[0] for vault in self.vaults for entry in await list_at_once(fs, ROOT, vault)]
                break
            except FS3Error as error:
                if error.code is not Code.CONFLICT:
                    raise
        else:
            raise SimulationError("the bank cannot be listed")
        names = sorted(name for name in carried if name not in (b".", b".."))
        if names != [b"coin%d" % coin for coin in range(VAULT_COINS)]:
            raise SimulationError(f"the vaults hold {names}")
        await self._look(fs, self.chance, 0)


def _name(owner: int, coin: int) -> bytes:
    return b"%d-%d" % (owner, coin)


def _parts(name: bytes) -> tuple[int, int]:
    owner, _, coin = name.partition(b"-")
    return int(owner), int(coin)


async def bank(world: World) -> None:
    """Load, faults, rest: no coin was lost or doubled at any time."""
    await world.start()
    load = BankLoad(world)
    async with janitor(world) as fs:
        await load.prepare(fs)
        await storm(world, load)
        await load.check(fs)
        verdict = check(load.history.relevant(), REPLACED)
        if not verdict.ok and not verdict.gave_up:
            raise SimulationError(verdict.explain())
        world.undecided += verdict.gave_up
        await check_store(world)
        await empty_tree(fs)
        await check_emptied(world)


SHAPES = (
    Shape("bank", metas=2, storages=1, replicas=1, targets=1, workload="bank", load_s=5),
    Shape(
        "bank-all",
        mgmtds=2,
        metas=3,
        storages=1,
        replicas=1,
        targets=1,
        clients=4,
        workload="bank",
        load_s=5,
        faults=("crash_meta", "crash_meta", "crash_mount", "cut", "hang", "kv_slow", "partition"),
        kv_faults=0.05,
    ),
)
SCENARIOS = {"bank": bank}
