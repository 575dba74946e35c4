"""Latency and throughput of the storage service over TCP, without FUSE: `python -m tests.bench.storage [--replicas 1]`.

Starts mgmtd and storage daemons as processes on loopback, in a temporary folder (`--folder`), and drives one chain table
with the storage client: sequential 1 MiB writes and reads one at a time, 4 KiB random reads and overwrites 16 at a time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import trio

from fs3.api.mgmtd import FORMAT, FormatRequest
from fs3.client.mgmtd import MgmtdClient
from fs3.client.storage import ChunkRead, StorageClient
from fs3.env import Env
from fs3.errors import FS3Error
from fs3.ids import ChunkId
from fs3.rpc.client import RpcClient
from fs3.transport.registry import Transports

MIB = 1024 * 1024
INODE = 77


class Workload:
    """One chain table and a client of it."""

    def __init__(self, env: Env, client: StorageClient, chains: list[int], chunks: int) -> None:
        self.env = env
        self.client = client
        self.chains = chains
        self.chunks = chunks
        self.random = Random(1)
        self.data = self.random.randbytes(MIB)

    def _place(self, index: int) -> tuple[int, ChunkId]:
        return self.chains[index % len(self.chains)], ChunkId(INODE, index)

    async def write_chunk(self, index: int) -> None:
        chain, chunk = self._place(index)
        await self.client.write(chain, chunk, 0, self.data, MIB, deadline=self.env.monotonic() + 30)

    async def read_chunk(self, index: int) -> None:
        chain, chunk = self._place(index)
        into = memoryview(bytearray(MIB))
        await self.client.read([ChunkRead(chain, chunk, 0, into)], deadline=self.env.monotonic() + 30)

    async def read_small(self, _: int) -> None:
        chain, chunk = self._place(self.random.randrange(self.chunks))
        into = memoryview(bytearray(4096))
        offset = self.random.randrange(MIB // 4096) * 4096
        await self.client.read([ChunkRead(chain, chunk, offset, into)], deadline=self.env.monotonic() + 30)

    async def write_small(self, _: int) -> None:
        chain, chunk = self._place(self.random.randrange(self.chunks))
        offset = self.random.randrange(MIB // 4096) * 4096
        await self.client.write(chain, chunk, offset, self.data[:4096], MIB, deadline=self.env.monotonic() + 30)

    async def measure(
        self, name: str, operation: Callable[[int], Awaitable[None]], count: int, depth: int, size: int
    ) -> None:
        times: list[float] = []
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                began = self.env.monotonic()
                await operation(number)
                times.append(self.env.monotonic() - began)

        began = self.env.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(depth):
                nursery.start_soon(worker)
        took = self.env.monotonic() - began
        times.sort()
        print(
            f"{name:28} depth {depth:2}: median {statistics.median(times) * 1000:7.3f} ms, "
            f"p99 {times[int(count * 0.99)] * 1000:7.3f} ms, {count / took:8.0f}/s, {count * size / took / MIB:7.1f} MiB/s",
            flush=True,
        )

    async def run(self) -> None:
        await self.measure("write 1 MiB (fresh)", self.write_chunk, self.chunks, 1, MIB)
        await self.measure("write 1 MiB (again)", self.write_chunk, self.chunks, 1, MIB)
        await self.measure("write 1 MiB (again)", self.write_chunk, self.chunks, 4, MIB)
        await self.measure("read 1 MiB", self.read_chunk, self.chunks, 1, MIB)
        await self.measure("read 1 MiB", self.read_chunk, self.chunks, 4, MIB)
        await self.measure("read 4 KiB (random)", self.read_small, 4000, 1, 4096)
        await self.measure("read 4 KiB (random)", self.read_small, 8000, 16, 4096)
        await self.measure("write 4 KiB (random)", self.write_small, 2000, 1, 4096)
        await self.measure("write 4 KiB (random)", self.write_small, 6000, 16, 4096)


def start(folder: Path, module: str, *flags: str) -> subprocess.Popen[bytes]:
    log = (folder / f"{module}-{len(list(folder.iterdir()))}.log").open("wb")
    return subprocess.Popen([sys.executable, "-m", module, *flags], stderr=log, stdout=log)


async def bench(folder: Path, replicas: int, chunks: int, port: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    processes = [start(folder, "mgmtd.daemon", f"--listen={address}", f"--data={folder}/mgmtd")]
    for node in range(replicas):
        flags = [f"--node-id={node + 10}", f"--mgmtd={address}", f"--data={folder}/storage{node}", "--targets-per-disk=2"]
        processes += [start(folder, "storage.daemon", *flags)]
    try:
        async with trio.open_nursery() as nursery:
            env = Env(Transports())
            rpc = RpcClient(env, nursery)
            mgmtd = MgmtdClient(env, rpc, [address])
            await nursery.start(mgmtd.run)
            print("storage daemons:", *[process.pid for process in processes[1:]], flush=True)
            while True:
                try:
                    await mgmtd.call(FORMAT, FormatRequest(replicas, MIB, 1))
                    break
                except FS3Error:
                    await trio.sleep(0.1)
            while any(len(c.serving()) < replicas for c in mgmtd.routing.chains.values()) or not mgmtd.routing.chains:
                await mgmtd.wait_change(mgmtd.routing.version)
            client = StorageClient(env, rpc, mgmtd, env.client_id(), "")
            await Workload(env, client, sorted(mgmtd.routing.chains), chunks).run()
            nursery.cancel_scope.cancel()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--chunks", type=int, default=512, help="how many chunks of 1 MiB")
    parser.add_argument("--folder", default=None, help="where the data goes; a temporary folder by default")
    parser.add_argument("--port", type=int, default=17_321)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(f"{options.replicas} replicas, {options.chunks} chunks, {os.cpu_count()} CPUs", flush=True)
        trio.run(bench, Path(folder), options.replicas, options.chunks, options.port)


if __name__ == "__main__":
    main()
