"""Data between processes of one host goes by shared memory: that it does, what it yields, and what daemons and clients leave
behind that are killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from fs3.cli.folder import STORAGE_NODE_FIRST
from fs3.client.connect import connect
from fs3.client.paths import Paths
from fs3.env import Env
from fs3.memory import Memory
from fs3.transport.registry import Transports
from tests.process.harness import REPOSITORY, Cluster, alive, cluster, wait_until, watchdog
from tests.process.replicas import differences, metrics_of

pytestmark = pytest.mark.process

MIB = 1024 * 1024
SIZE = 12 * MIB
NODES = (STORAGE_NODE_FIRST, STORAGE_NODE_FIRST + 1)
LIMIT_S = 90

WRITER = """
import sys, trio
from fs3.env import Env
from fs3.transport.registry import Transports
from fs3.client.connect import connect
from fs3.client.paths import Paths

async def main():
    async with connect(Env(Transports()), sys.argv[1:], "here") as client:
        async with Paths(client).open("/killed", "w") as file:
            while True:
                for number in range(8):
                    await file.write_at(number * 1048576, bytes([number]) * 1048576)
                await file.sync()
                print("round", flush=True)

trio.run(main)
"""


CUTTER = """
import mmap, os, sys, threading
from fs3.client.sync import connect

fd = os.memfd_create("cut")
os.ftruncate(fd, 8 << 20)
view = memoryview(mmap.mmap(fd, 8 << 20))
with connect(sys.argv[1:]) as fs:
    fs.register(view)
    items = [("/cut", at, 65536 + at % 3) for at in range(0, 7 << 20, 65536)]
    for _ in range(4):
        fs.read_batch(items, view[: sum(item[2] for item in items)], strict=True)
    print("cut", flush=True)
    stop = threading.Event()

    def cut():
        while not stop.is_set():
            os.ftruncate(fd, 0)

    threading.Thread(target=cut, daemon=True).start()
    for _ in range(50):
        fs.read_batch(items, view[: sum(item[2] for item in items)])
    stop.set()
"""


@pytest.fixture(scope="module")
def pair(fuse: None) -> Iterator[Cluster]:
    with cluster(storages=2, replicas=2, lease_ms=3000) as made:
        made.wait_serving()
        yield made


@asynccontextmanager
async def client_of(made: Cluster, short_circuit: bool) -> AsyncIterator[Paths]:
    async with connect(Env(Transports(short_circuit=short_circuit)), made.mgmtd(), "here") as client:
        yield Paths(client)


def shared(made: Cluster) -> tuple[int, int]:
    """Reads and writes that went by shared memory so far, of all storage daemons."""
    found = [metrics_of(made.mgmtd(), node) for node in NODES]
    reads, writes = [sum([one.get(f"storage.shared_{what}", 0) for one in found]) for what in ("reads", "writes")]
    return reads, writes


async def read_whole(paths: Paths, name: str) -> bytes:
    async with paths.open(name) as file:
        pieces = [bytes(await file.read_at(at, MIB)) for at in range(0, SIZE, MIB)]
    return b"".join(pieces)


def test_the_short_way_is_taken_and_yields_the_same(pair: Cluster) -> None:
    data = os.urandom(SIZE)

    async def write_and_read(short_circuit: bool, name: str) -> None:
        async with client_of(pair, short_circuit) as paths:
            async with paths.open(name, "w") as file:
                for at in range(0, SIZE, MIB):
                    assert await file.write_at(at, data[at : at + MIB]) == MIB
            assert await read_whole(paths, name) == data

    with watchdog(pair, LIMIT_S):
        before = shared(pair)
        trio.run(write_and_read, True, "/short")
        after = shared(pair)
        # The first request of each connection goes the long way, before the daemon has said that it has the memory.
        reads, writes = after[0] - before[0], after[1] - before[1]
        assert reads >= SIZE // MIB - 2 * len(NODES) and writes >= 2 * (SIZE // MIB - 2 * len(NODES))
        trio.run(write_and_read, False, "/long")
        reads, writes = shared(pair)[0] - after[0], shared(pair)[1] - after[1]
        assert reads == 0 and writes <= SIZE // MIB, "only the daemons among themselves"
        for name in ("short", "long"):
            assert (pair.mount / name).read_bytes() == data
        assert shared(pair)[0] > after[0], "the mount takes it too"
        assert not differences(pair.mgmtd())


def test_a_daemon_killed_in_the_middle_fails_no_read(pair: Cluster) -> None:
    data = os.urandom(SIZE)

    async def run() -> None:
        async with client_of(pair, True) as paths:
            await paths.write_file("/read", data)
            rounds = 0

            async def read_on() -> None:
                nonlocal rounds
                while True:
                    assert await read_whole(paths, "/read") == data
                    rounds += 1

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read_on)
                for name in ("storage-1", "storage-2"):
                    with trio.fail_after(LIMIT_S):
                        wanted = rounds + 5
                        while rounds < wanted:  # noqa: ASYNC110
                            await trio.sleep(0.01)
                        await trio.to_thread.run_sync(pair.kill, name)
                        await trio.to_thread.run_sync(pair.wait_serving)
                nursery.cancel_scope.cancel()
            before = await trio.to_thread.run_sync(shared, pair)
            await read_whole(paths, "/read")
            assert (await trio.to_thread.run_sync(shared, pair))[0] > before[0], "the short way is found again"

    with watchdog(pair, LIMIT_S):
        trio.run(run)


def test_registered_memory_is_read_into_whatever_the_daemons_do(pair: Cluster) -> None:
    """They are stopped, go on, and are killed: nothing is written to memory whose read has ended."""
    data = os.urandom(SIZE)
    items = [("/lent", at, 65536) for at in range(0, SIZE, 65536)]

    def lent() -> int:
        return sum([metrics_of(pair.mgmtd(), node).get("storage.lent_reads", 0) for node in NODES])

    async def run() -> None:
        async with client_of(pair, True) as paths:
            await paths.write_file("/lent", data)
            rounds = 0

            async def read_on(view: memoryview) -> None:
                nonlocal rounds
                while True:
                    await paths.read_batch(items, view, strict=True)
                    assert view == data
                    view[:] = b"\xaa" * SIZE
                    await trio.sleep(0.01)
                    assert view == b"\xaa" * SIZE, "written to after its read"
                    rounds += 1

            async def more(count: int) -> None:
                with trio.fail_after(LIMIT_S):
                    wanted = rounds + count
                    while rounds < wanted:  # noqa: ASYNC110
                        await trio.sleep(0.01)

            with Memory(3 * SIZE) as memory:
                before = await trio.to_thread.run_sync(lent)
                async with paths.register(memory), trio.open_nursery() as nursery:
                    for at in range(0, 3 * SIZE, SIZE):
                        nursery.start_soon(read_on, memory.view[at : at + SIZE])
                    await more(6)
                    assert await trio.to_thread.run_sync(lent) > before
                    stopped = pair.pids()["storage-1"]
                    os.kill(stopped, signal.SIGSTOP)
                    await more(3)  # of the other one
                    os.kill(stopped, signal.SIGCONT)
                    await trio.to_thread.run_sync(pair.wait_serving)
                    await trio.to_thread.run_sync(pair.kill, "storage-2")
                    await more(3)
                    await trio.to_thread.run_sync(pair.wait_serving)
                    nursery.cancel_scope.cancel()

    with watchdog(pair, LIMIT_S):
        trio.run(run)


def test_memory_that_is_cut_off_hurts_no_daemon(pair: Cluster) -> None:
    """As POSIX shared memory can be at any time, by whoever has it open. What becomes of the client is its own affair."""
    with watchdog(pair, LIMIT_S):
        pids = {name: pair.pids()[name] for name in ("storage-1", "storage-2")}
        (pair.mount / "cut").write_bytes(os.urandom(8 * MIB))
        words = [sys.executable, "-c", CUTTER, *pair.mgmtd()]
        done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60)
        assert done.stdout.startswith("cut\n") and done.returncode in (0, -signal.SIGBUS), (done.returncode, done.stderr)
        assert all(map(alive, pids.values())) and {name: pair.pids()[name] for name in pids} == pids
        for node in NODES:
            found = metrics_of(pair.mgmtd(), node)
            assert not found.get("storage.read_failures") and not found.get("storage.suspected_chunks")
        assert len((pair.mount / "cut").read_bytes()) == 8 * MIB


def test_a_client_killed_in_the_middle_hurts_nobody(pair: Cluster) -> None:
    with watchdog(pair, LIMIT_S):
        pids = {name: pair.pids()[name] for name in ("storage-1", "storage-2")}
        for _ in range(2):
            kill_a_writer(pair.mgmtd())
        content = (pair.mount / "killed").read_bytes()
        assert len(content) == 8 * MIB
        for at in range(0, len(content), MIB):
            assert content[at : at + MIB] == bytes([at // MIB]) * MIB
        wait_until(lambda: not differences(pair.mgmtd()), "replicas to agree", 30)
        assert all(map(alive, pids.values())) and {name: pair.pids()[name] for name in pids} == pids


def kill_a_writer(mgmtd: Sequence[str]) -> None:
    """kill -9 of a client in the middle of its writes."""
    words = [sys.executable, "-c", WRITER, *mgmtd]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=REPOSITORY) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"round\n"
        writer.kill()
