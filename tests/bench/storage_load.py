"""The load of the storage benchmarks: one process, one connection to each daemon, one file. Started by storage_cluster.py.

    python tests/bench/storage_load.py MGMTD REPLICAS MIB STORAGE_PID...

Reads lines `ROW SECONDS`, answers each with a line of JSON. Files go through FileClient; batches of ranges, which FileClient
has no call for, through StorageClient. Buffers are used again and again, as a program that cares for speed does.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fs3.api.meta import Access, Caller
from fs3.api.mgmtd import FORMAT, FormatRequest
from fs3.client.connect import connect
from fs3.client.file import FileClient, FileHandle
from fs3.client.mgmtd import MgmtdClient
from fs3.client.reading import ChunkRead
from fs3.client.storage import StorageClient
from fs3.env import Env
from fs3.errors import FS3Error
from fs3.ids import ROOT_INODE, ChunkId
from fs3.rpc.client import RpcClient
from fs3.transport.registry import Transports

MIB = 1024 * 1024
KIB = 1024
RANGES = 64
BUFFERS = 64
CALLER = Caller(0, 0, (0,))
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Operation = Callable[[], Awaitable[int]]


class Workload:
    """Operations on one file, each returning how many bytes it moved."""

    def __init__(self, env: Env, files: FileClient, storage: StorageClient, handle: FileHandle, mib: int) -> None:
        self._env = env
        self._files = files
        self._storage = storage
        self._handle = handle
        self._mib = mib
        self._random = random.Random(1)
        self._next = itertools.count()
        self._data = [self._random.randbytes(MIB) for _ in range(4)]
        self._buffers = [memoryview(bytearray(MIB)) for _ in range(BUFFERS)]
        self._batches = [memoryview(bytearray(RANGES * 128 * KIB)) for _ in range(4)]
        self.operations: dict[str, Operation] = {
            "write-1m": self._write_whole,
            "read-1m": self._read_whole,
            "read-4k": self._read_small,
            "write-4k": self._write_small,
            "batch-128k": lambda: self._batch(128 * KIB),
            "batch-4k": lambda: self._batch(4 * KIB),
        }

    async def fill(self) -> int:
        """Write the whole file once."""
        self._next = itertools.count()
        left = iter(range(self._mib))

        async def work() -> None:
            for _ in left:
                await self._write_whole()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(work)
        return self._mib * MIB

    async def _write_whole(self) -> int:
        number = next(self._next)
        return await self._files.write(self._handle, number % self._mib * MIB, self._data[number % len(self._data)])

    async def _read_whole(self) -> int:
        into = self._buffers.pop()
        got = await self._files.read_into(self._handle, next(self._next) % self._mib * MIB, into)
        self._buffers.append(into)
        return got

    def _place(self, size: int) -> int:
        return self._random.randrange(self._mib * MIB // size) * size

    async def _read_small(self) -> int:
        into = self._buffers.pop()
        got = await self._files.read_into(self._handle, self._place(4 * KIB), into[: 4 * KIB])
        self._buffers.append(into)
        return got

    async def _write_small(self) -> int:
        return await self._files.write(self._handle, self._place(4 * KIB), memoryview(self._data[0])[: 4 * KIB])

    async def _batch(self, size: int) -> int:
        buffer = self._batches.pop()
        state = self._handle.inode
        reads = []
        for number in range(RANGES):
            index, offset = divmod(self._place(size), state.chunk_size)
            into = buffer[number * size : (number + 1) * size]
            reads.append(ChunkRead(state.chains[index % len(state.chains)], ChunkId(state.id, index), offset, into))
        got = await self._storage.read(reads, deadline=self._env.monotonic() + 30)
        self._batches.append(buffer)
        return sum(got)


async def measure(operation: Operation, depth: int, seconds: float, pids: list[int]) -> dict[str, object]:
    times: list[float] = []
    moved = 0

    async def worker() -> None:
        nonlocal moved
        while (began := time.perf_counter()) < end:
            got = await operation()
            moved += got
            times.append(time.perf_counter() - began)

    started, client, server = time.perf_counter(), time.process_time(), cpu_seconds(pids)
    end = started + seconds
    async with trio.open_nursery() as nursery:
        for _ in range(depth):
            nursery.start_soon(worker)
    took = time.perf_counter() - started
    times.sort()
    return {
        "count": len(times),
        "bytes": moved,
        "seconds": took,
        "client_s": time.process_time() - client,
        "server_s": cpu_seconds(pids) - server,
        "latencies_ms": [statistics.median(times) * 1000, times[int(len(times) * 0.99)] * 1000],
    }


def cpu_seconds(pids: list[int]) -> float:
    """What these processes used so far; those that ended count nothing."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


async def format_cluster(mgmtd: MgmtdClient, replicas: int) -> None:
    """Make the chain table once all targets are there, and wait until they serve."""
    with trio.fail_after(60):
        while True:
            try:
                await mgmtd.call(FORMAT, FormatRequest(replicas, MIB, 0))
                break
            except FS3Error:
                await trio.sleep(0.1)
        while True:
            routing = mgmtd.routing
            if routing.chains and all(len(chain.serving()) == replicas for chain in routing.chains.values()):
                return
            await mgmtd.wait_change(routing.version)


def states_of(mgmtd: MgmtdClient) -> dict[int, list[str]]:
    """The public states of each node's targets."""
    routing = mgmtd.routing
    states: dict[int, list[str]] = {}
    for chain in routing.chains.values():
        for entry in chain.targets:
            node = routing.node_of(entry.target)
            if node is not None:
                states.setdefault(node.id, []).append(entry.state.name)
    return states


async def main(address: str, replicas: int, mib: int, pids: list[int]) -> None:
    env = Env(Transports())
    async with trio.open_nursery() as nursery:
        rpc = RpcClient(env, nursery)
        mgmtd = MgmtdClient(env, rpc, [address])
        await nursery.start(mgmtd.run)
        await format_cluster(mgmtd, replicas)
        storage = StorageClient(env, rpc, mgmtd, env.client_id(), "")
        async with connect(env, [address], "bench") as files:
            handle = await files.create(CALLER, ROOT_INODE, b"load", 0o600, Access.READ_WRITE)
            workload = Workload(env, files, storage, handle, mib)
            print(json.dumps({"ready": True}), flush=True)
            while line := (await trio.to_thread.run_sync(sys.stdin.readline)).split():
                row, seconds = line[0], float(line[1])
                if row == "states":
                    answer: dict[str, object] = {"nodes": states_of(mgmtd)}
                elif row == "fill":
                    answer = {"bytes": await workload.fill()}
                else:
                    name, _, depth = row.partition(":")
                    answer = await measure(workload.operations[name], int(depth), seconds, pids)
                print(json.dumps(answer), flush=True)
            await files.close(handle)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(pid) for pid in sys.argv[4:]])
