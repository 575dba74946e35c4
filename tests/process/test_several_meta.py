"""Two meta daemons over one store, as processes, killed in turn under load: nothing is lost, nothing is done twice.

Two clients and a mount change names, links, lengths and a log all the while, so that a change that was done twice, or not at
all, shows: exclusive names that two want, chains of renames, exchanges, link counts, a log that all append to. No call may
fail. Afterwards `fs3-meta fsck` finds nothing, and what was removed is gone. Files get shorter in the long run only: where a
daemon dies in the middle of that, who needs the file waits for 12 s (meta.intents.ABANDONED_MS).
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from fs3.api.common import Empty
from fs3.api.meta import RenameFlags
from fs3.api.meta_admin import GC_STATUS, LIST_SESSIONS, ListSessionsRequest
from fs3.cli.access import visiting
from fs3.client.connect import connect
from fs3.client.meta import MetaClient
from fs3.client.mgmtd import MgmtdClient
from fs3.client.paths import Paths
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.transport.registry import Transports
from tests.process.harness import REPOSITORY, SOAK
from tests.process.programs.names import RECORD
from tests.process.shared_cluster import SharedCluster, shared_cluster

pytestmark = pytest.mark.process

KILLS = 60 if SOAK else 3
LIMIT_S = 900.0 if SOAK else 90.0
RECORD_SIZE = len(RECORD % (b"", 0))


@pytest.fixture(scope="module")
def made() -> Iterator[SharedCluster]:
    settings = {"meta": {"session_grace_ms": 1000, "gc_sweep_ms": 500}}
    with shared_cluster(mgmtds=1, metas=2, storages=1, replicas=1, mount=True, settings=settings) as cluster:
        yield cluster


class Load:
    """Works until told to stop. Each kind of work counts the times that it was done."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.stop = False
        self.done: Counter[str] = Counter()
        self.won: list[list[int]] = [[], []]  # numbers of the exclusive names that each client made
        self.slowest_s = 0.0
        self.slowest = ""

    async def timed(self, what: str, call: Awaitable[object]) -> None:
        start = time.monotonic()
        await call
        self.slowest_s, self.slowest = max((self.slowest_s, self.slowest), (time.monotonic() - start, what))
        self.done[what] += 1

    async def keep_at(self, what: str, work: Callable[[int], Awaitable[object]]) -> None:
        while not self.stop:
            await self.timed(what, work(self.done[what]))

    async def client(self, number: int, paths: Paths, nursery: trio.Nursery) -> None:
        """Start all that one client does."""
        own = f"/c{number}"
        for name in ("chain", "tidy", "links"):
            await paths.makedirs(f"{own}/{name}")
        await paths.write_file(f"{own}/chain/0", b"chained")
        await paths.write_file(f"{own}/links/0", b"linked")
        for side in ("left", "right"):
            await paths.write_file(f"{own}/{side}", side.encode())
        await paths.write_file(f"{own}/length", b"")
        log = await paths.open_file("/log", "a")

        async def race(turn: int) -> None:
            """Whoever is second is told so."""
            try:
                await (await paths.open_file(f"/race/{turn}", "x")).close()
            except FS3Error as error:
                assert error.code is Code.EXISTS, error
            else:
                self.won[number].append(turn)

        async def chain(turn: int) -> None:
            await paths.rename(f"{own}/chain/{turn}", f"{own}/chain/{turn + 1}", RenameFlags.NOREPLACE)

        async def exchange(turn: int) -> None:
            await paths.rename(f"{own}/left", f"{own}/right", RenameFlags.EXCHANGE)

        async def link(turn: int) -> None:
            await paths.link(f"{own}/links/0", f"{own}/links/{turn + 1}")

        async def tidy(turn: int) -> None:
            """A directory, a file, its replacement, and away with all: each call fails if done twice."""
            here = f"{own}/tidy/{turn}"
            await paths.mkdir(here)
            for name in ("f", "g"):
                await paths.write_file(f"{here}/{name}", name.encode() * 5000)
            await paths.rename(f"{here}/f", f"{here}/g")
            await paths.unlink(f"{here}/g")
            await paths.rmdir(here)

        async def cut(turn: int) -> None:
            length = (turn * 7919) % 3_000_000 if SOAK else turn * 7919
            await paths.truncate(f"{own}/length", length)
            assert (await paths.stat(f"{own}/length")).length == length

        async def append(turn: int) -> None:
            await log.write_at(0, RECORD % (b"c%d" % number, turn))

        async def count(turn: int) -> None:
            """Read, and write one more, while nobody else does."""
            async with paths.lock("/count"):
                await paths.write_file("/count", b"%d" % (int(await paths.read_file("/count")) + 1))

        for work in (race, chain, exchange, link, tidy, cut, append, count):
            nursery.start_soon(self.keep_at, f"{work.__name__}-{number}", work)

    @contextmanager
    def through_the_mount(self) -> Iterator[None]:
        """While this lasts, a process does the same by system calls."""
        words = [sys.executable, "-m", "tests.process.programs.names", str(self.mount / "m"), str(self.mount / "log")]
        words += ["--cut"] * SOAK
        with subprocess.Popen(words, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield
                printed, _ = process.communicate(timeout=LIMIT_S)
                assert process.returncode == 0
                self.done["mount"] = int(printed)
            finally:
                process.kill()


async def check(load: Load, paths: Paths) -> None:
    """What is there is what was done, each once."""
    done = load.done
    first, second = load.won
    assert not set(first) & set(second)
    assert int(await paths.read_file("/count")) == done["count-0"] + done["count-1"]
    raced = max(done["race-0"], done["race-1"])
    assert sorted(first + second) == list(range(raced))
    assert sorted(map(int, await paths.listdir("/race"))) == list(range(raced))
    for number in range(2):
        own = f"/c{number}"
        assert await paths.listdir(f"{own}/chain") == [str(done[f"chain-{number}"])]
        crossed = done[f"exchange-{number}"] % 2
        assert await paths.read_file(f"{own}/left") == (b"left", b"right")[crossed]
        links = done[f"link-{number}"] + 1
        assert (await paths.stat(f"{own}/links/0")).nlink == links == len(await paths.listdir(f"{own}/links"))
        assert await paths.listdir(f"{own}/tidy") == []
        assert (await paths.stat(own)).nlink == 5
    assert await paths.listdir("/m/chain") == [str(done["mount"])] and await paths.listdir("/m/tidy") == []
    log = await paths.read_file("/log")
    expected = [RECORD % (b"c%d" % number, turn) for number in range(2) for turn in range(done[f"append-{number}"])]
    expected += [RECORD % (b"mount", turn) for turn in range(done["mount"])]
    assert sorted(log[at : at + RECORD_SIZE] for at in range(0, len(log), RECORD_SIZE)) == sorted(expected)


def test_both_are_killed_in_turn_under_load(made: SharedCluster) -> None:
    """Killed at random moments, sometimes one right after the other, and started again."""
    load = Load(made.mount)
    chance = random.Random(6)

    def kill() -> None:
        try:
            with load.through_the_mount():
                for turn in range(KILLS):
                    time.sleep(chance.uniform(0.1, 0.6))
                    name, other = ("meta-1", "meta-2") if turn % 2 else ("meta-2", "meta-1")
                    made.kill(name)
                    if turn % 3 == 2:  # for a while there is none
                        made.kill(other)
                        made.start(other)
                    made.start(name)
                time.sleep(0.3)
        finally:
            load.stop = True

    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            async with connect(_env(), made.mgmtd, "one") as one, connect(_env(), made.mgmtd, "two") as two:
                clients = [Paths(one), Paths(two)]
                await clients[0].makedirs("/race")
                await clients[0].write_file("/log", b"")
                await clients[0].write_file("/count", b"0")
                async with trio.open_nursery() as nursery:
                    for number, paths in enumerate(clients):
                        await load.client(number, paths, nursery)
                    await trio.to_thread.run_sync(kill)
            async with connect(_env(), made.mgmtd, "checker") as client:
                await check(load, Paths(client))

    trio.run(main)
    assert min(load.done.values()) > 5, load.done
    slowest = f"the slowest ({load.slowest}) took {load.slowest_s:.2f} s"
    print(f"{KILLS} kills, {load.done.total()} operations, {slowest}: {dict(load.done)}")
    trio.run(_until_tidy, made)
    words = [sys.executable, "-m", "meta.daemon", "fsck", "--mgmtd", ",".join(made.mgmtd)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def _until_tidy(made: SharedCluster) -> None:
    """Wait until the daemons have removed the chunks of removed files, and ended what nobody holds any more."""
    async with visiting() as (env, rpc), trio.open_nursery() as nursery:
        mgmtd = MgmtdClient(env, rpc, made.mgmtd)
        await nursery.start(mgmtd.run)
        meta = MetaClient(env, rpc, mgmtd, env.client_id())
        with trio.fail_after(LIMIT_S):
            while True:
                status = await meta.call(GC_STATUS, Empty())
                sessions = await meta.call(LIST_SESSIONS, ListSessionsRequest())
                if not (status.files or status.intents or sessions.sessions):
                    break
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


def _env() -> Env:
    return Env(Transports())
