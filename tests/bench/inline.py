"""Whether small files should keep their bytes with the inode: `python -m tests.bench.inline [--sizes 4096 16384]`.

At the level of calls. As it is: a file's bytes are written to a chunk and then reported (REPORT), opened (OPEN) and then
read from the chunk. The other way is a prototype on this bench's own meta process: a REPORT that brings the bytes, which
its transaction stores under a key of their own, and an OPEN whose reply brings them. Prints how long each takes alone, and
the CPU time of the calling process, of meta and of all storage daemons for it (medians of rounds, one machine for all).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import trio

from fs3.api import meta as api
from fs3.api.common import Method, Rep, Req
from fs3.checksum import crc32c
from fs3.client.mgmtd import MgmtdClient
from fs3.client.reading import ChunkRead
from fs3.client.storage import StorageClient
from fs3.env import Env, SystemEnv
from fs3.ids import ROOT_INODE, ChunkId, RequestTag
from fs3.kv.base import Txn
from fs3.kv.registry import open_engine
from fs3.rpc.client import RpcClient
from fs3.rpc.server import RpcServer
from fs3.transport.registry import Transports
from meta.context import Context
from meta.idempotent import mutate, read
from meta.ops import session
from meta.service import MetaService
from tests.bench.meta_service import CALLER, CLIENT, NoChunks, static_mgmtd
from tests.bench.storage_cluster import CHECKOUT, MIB, Cluster
from tests.bench.storage_load import format_cluster


@dataclass(frozen=True, slots=True)
class InlineReport:
    tag: RequestTag
    report: api.ReportRequest
    data: bytes
    checksum: int


@dataclass(frozen=True, slots=True)
class InlineOpened:
    opened: api.OpenReply
    data: bytes
    checksum: int


INLINE_REPORT = Method(60010, "bench.inline-report", InlineReport, api.AttrReply)
INLINE_OPEN = Method(60011, "bench.inline-open", api.OpenRequest, InlineOpened)


def data_key(inode: int) -> bytes:
    return b"DATA" + inode.to_bytes(8, "big")


async def inline_report(ctx: Context, txn: Txn, request: InlineReport) -> api.AttrReply:
    assert crc32c(request.data) == request.checksum
    txn.set(data_key(request.report.inode), request.checksum.to_bytes(4, "little") + request.data)
    return await session.report(ctx, txn, request.report)


async def inline_open(ctx: Context, txn: Txn, request: api.OpenRequest) -> InlineOpened:
    opened = await session.open(ctx, txn, request)
    value = await txn.get(data_key(request.inode))
    assert value is not None
    return InlineOpened(opened, value[4:], int.from_bytes(value[:4], "little"))


async def serve(folder: Path) -> None:
    env = SystemEnv(Transports())

    async def settled(inode: int) -> None:
        raise AssertionError(inode)

    async with open_engine(f"embedded:{folder / 'store'}", env) as engine, trio.open_nursery() as nursery:
        service = MetaService(env, engine, static_mgmtd(), NoChunks(), nursery)
        server = RpcServer(env)
        service.bind(server)
        server.handle(
            INLINE_REPORT, lambda request, call: mutate(service.ctx, INLINE_REPORT, inline_report, request, settled)
        )
        server.handle(INLINE_OPEN, lambda request, call: read(service.ctx, inline_open, request, settled))
        await service.prepare()
        listener = await env.transport.listen("tcp://127.0.0.1:0")
        print(listener.address, flush=True)
        await server.serve(listener)


def cpu_seconds(pids: list[int]) -> float:
    """Of all threads of these processes, to the nanosecond."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum([int((task / "schedstat").read_text().split()[0]) for task in tasks]) / 1e9


Figures = dict[str, list[tuple[float, float, float, float]]]


class Load:
    """Files, both ways. Each step is done with one file after the other."""

    def __init__(self, env: Env, rpc: RpcClient, address: str, storage: StorageClient, pids: tuple[int, list[int]]) -> None:
        self._env, self._rpc, self._address, self._storage = env, rpc, address, storage
        self._meta, self._storages = pids
        self._sequences = count(1)
        self.figures: Figures = {}

    async def run(self, size: int, files: int, number: int) -> None:
        data = os.urandom(size)
        checksum = crc32c(data)
        into = memoryview(bytearray(size))
        names = [b"%d-%d-%d" % (size, number, n) for n in range(files)]
        inodes = [await self._create(name, n + 1) for n, name in enumerate(names)]
        chains = sorted(self._storage.mgmtd.routing.chains)
        chunks = [ChunkId(inode << 20, 0) for inode in inodes]  # apart from those of the cluster's own meta

        def report(n: int) -> api.ReportRequest:
            return api.ReportRequest(self._tag(), CLIENT, inodes[n], n + 1, size, 0, True, False)

        async def write_chunk(n: int) -> None:
            await self._storage.write(chains[n % len(chains)], chunks[n], 0, data, MIB, deadline=self._env.monotonic() + 10)

        async def write_inline(n: int) -> None:
            request = report(n)
            await self._call(INLINE_REPORT, InlineReport(request.tag, request, data, crc32c(data)))

        async def read_chunk(n: int) -> None:
            got = ChunkRead(chains[n % len(chains)], chunks[n], 0, into)
            assert await self._storage.read_one(got, deadline=self._env.monotonic() + 10) == size

        async def read_inline(n: int) -> None:
            opened = await self._call(INLINE_OPEN, self._open(inodes[n]))
            assert crc32c(opened.data) == opened.checksum == checksum

        steps: dict[str, Callable[[int], Awaitable[object]]] = {
            "chunk write": write_chunk,
            "REPORT": lambda n: self._call(api.REPORT, report(n)),
            "REPORT with bytes": write_inline,
            "OPEN": lambda n: self._call(api.OPEN, self._open(inodes[n])),
            "chunk read": read_chunk,
            "OPEN with bytes": read_inline,
        }
        for name, step in steps.items():
            began = time.perf_counter(), time.process_time(), cpu_seconds([self._meta]), cpu_seconds(self._storages)
            for n in range(files):
                await step(n)
            ended = time.perf_counter(), time.process_time(), cpu_seconds([self._meta]), cpu_seconds(self._storages)
            took, own, meta, storages = [(after - before) * 1e6 / files for after, before in zip(ended, began, strict=True)]
            self.figures.setdefault(f"{size:6} bytes  {name}", []).append((took, own, meta, storages))

    def _tag(self) -> RequestTag:
        return RequestTag(CLIENT, 1, next(self._sequences))

    def _open(self, inode: int) -> api.OpenRequest:
        return api.OpenRequest(self._tag(), CALLER, CLIENT, inode, api.Access.READ, False, 0)

    async def _call(self, method: Method[Req, Rep], request: Req) -> Rep:
        return await self._rpc.call(self._address, method, request, deadline=self._env.monotonic() + 10)

    async def _create(self, name: bytes, number: int) -> int:
        request = api.CreateRequest(
            self._tag(), CALLER, CLIENT, ROOT_INODE, name, 0o644, api.Access.WRITE, True, False, number
        )
        return (await self._call(api.CREATE, request)).attr.inode


async def measure(options: argparse.Namespace, cluster: Cluster, address: str, pid: int) -> Figures:
    env = SystemEnv(Transports())
    async with trio.open_nursery() as nursery:
        rpc = RpcClient(env, nursery)
        mgmtd = MgmtdClient(env, rpc, [cluster.address])
        await nursery.start(mgmtd.run)
        await format_cluster(mgmtd, cluster.replicas)
        storage = StorageClient(env, rpc, mgmtd, env.client_id(), "")
        load = Load(env, rpc, address, storage, (pid, [each.pid for each in cluster.storage.values()]))
        for number in range(options.rounds):
            for size in options.sizes:
                await load.run(size, options.files, number)
        nursery.cancel_scope.cancel()
    return load.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help="be the meta process")
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.serve)
        return
    with tempfile.TemporaryDirectory() as folder, Cluster(CHECKOUT, Path(folder) / "c", options.replicas, 2) as cluster:
        command = [sys.executable, "-m", "tests.bench.inline", "--serve", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                figures = trio.run(measure, options, cluster, server.stdout.readline().strip(), server.pid)
            finally:
                server.kill()
    for name, found in figures.items():
        took, own, meta, storages = [statistics.median(values) for values in zip(*found, strict=True)]
        print(f"{name:34} {took:6.0f} us, CPU us: caller {own:5.0f}  meta {meta:5.0f}  storage {storages:5.0f}", flush=True)


if __name__ == "__main__":
    main()
