"""CPU cost of metadata operations: `python -m tests.bench.meta_service [--files 5000] [--tcp] [--store memory]`.

By default the handlers of one service are called in turn, request and reply passing through the codec as in the daemon;
--tcp puts a server and a client of the same process between, so that its figures contain both sides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import trio

from fs3.api import meta as api
from fs3.api.common import Method, Rep, Req
from fs3.api.mgmtd import CLUSTER_CONFIG, ClusterConfigReply
from fs3.env import Env
from fs3.ids import ROOT_INODE, RequestTag
from fs3.kv.registry import open_engine
from fs3.layout import FileLayout
from fs3.routing import RoutingInfo, Table
from fs3.rpc.client import RpcClient
from fs3.rpc.server import RpcServer
from fs3.testing.mgmtd import StaticMgmtd
from fs3.transport.registry import Transports
from fs3.wire.codec import decode, encode
from meta.service import MetaService

CALLER = api.Caller(0, 0, (0,), 0o022)
CLIENT = 1


class NoChunks:
    """Files stay empty here."""

    async def remove(self, inode: int, layout: FileLayout, bound: int, *, deadline: float) -> None:
        pass

    async def truncate(self, inode: int, layout: FileLayout, length: int, bound: int, *, deadline: float) -> None:
        pass

    async def file_length(self, inode: int, layout: FileLayout, *, deadline: float) -> int:
        return 0


def static_mgmtd() -> StaticMgmtd:
    mgmtd = StaticMgmtd(RoutingInfo(1, "bench", tables={1: Table(1, 1, (1, 2, 3), 3)}))

    async def config(request: object) -> ClusterConfigReply:
        return ClusterConfigReply(1, "bench", 1, 3, 1 << 20, 1 << 16)

    mgmtd.handlers[CLUSTER_CONFIG.id] = config
    return mgmtd


Call = Callable[[Method[Any, Any], Any], Awaitable[Any]]


async def _measure(call: Call, files: int) -> None:
    sequences = count(1)

    def tag() -> RequestTag:
        return RequestTag(5, 1, next(sequences))

    async def each(name: str, act: Callable[[int], Awaitable[object]], times: int = files, per: int = 1) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(times):
            await act(number)
        wall, spent = time.perf_counter() - began, time.process_time() - cpu
        each_us = 1e6 / (times * per)
        print(f"{name:28} {spent * each_us:8.1f} us CPU {wall * each_us:8.1f} us wall", flush=True)

    made = await call(api.MKNOD, api.MknodRequest(tag(), CALLER, ROOT_INODE, b"d", api.FileKind.DIRECTORY, 0o755))
    directory = made.attr.inode
    names = [b"file-%07d" % number for number in range(files)]
    inodes: list[int] = []

    async def create(number: int) -> None:
        request = api.CreateRequest(
            tag(), CALLER, CLIENT, directory, names[number], 0o644, api.Access.WRITE, False, True, number + 1
        )
        inodes.append((await call(api.CREATE, request)).attr.inode)

    async def close(number: int) -> None:
        await call(api.CLOSE, api.CloseRequest(tag(), CLIENT, inodes[number], number + 1, -1, 0, False))

    async def lookup(number: int) -> None:
        await call(api.LOOKUP, api.LookupRequest(CALLER, directory, names[number]))

    async def getattr(number: int) -> None:
        await call(api.GETATTR, api.GetattrRequest(inodes[number]))

    async def open_read(number: int) -> None:
        await call(api.OPEN, api.OpenRequest(tag(), CALLER, CLIENT, inodes[number], api.Access.READ, False, 0))

    async def chmod(number: int) -> None:
        await call(api.SETATTR, api.SetattrRequest(tag(), CALLER, inodes[number], mode=0o600))

    async def rename(number: int) -> None:
        name = names[number]
        await call(
            api.RENAME,
            api.RenameRequest(tag(), CALLER, directory, name, directory, b"x" + name, api.RenameFlags.NONE),
        )

    async def unlink(number: int) -> None:
        await call(api.REMOVE, api.RemoveRequest(tag(), CALLER, directory, b"x" + names[number], False))

    after = b""

    async def readdir(number: int) -> None:
        nonlocal after
        reply = await call(api.READDIR, api.ReaddirRequest(CALLER, directory, after, 500))
        after = reply.entries[-1].name

    async def mkdir(number: int) -> None:
        request = api.MknodRequest(tag(), CALLER, directory, b"dir%d" % number, api.FileKind.DIRECTORY, 0o755)
        await call(api.MKNOD, request)

    await each("create (new, for writing)", create)
    await each("close (nothing written)", close)
    await each("lookup", lookup)
    await each("getattr", getattr)
    await each("open for reading", open_read)
    await each("chmod", chmod)
    await each("readdir, per entry", readdir, files // 500, 500)
    await each("rename", rename)
    await each("unlink (empty)", unlink)
    await each("mkdir", mkdir)


async def _main(arguments: argparse.Namespace, folder: Path) -> None:
    env = Env(Transports())
    url = "memory:" if arguments.store == "memory" else f"embedded:{folder / 'store'}"
    async with open_engine(url, env) as engine, trio.open_nursery() as nursery:
        service = MetaService(env, engine, static_mgmtd(), NoChunks(), nursery)
        server = RpcServer(env)
        service.bind(server)
        await service.prepare()
        if arguments.tcp:
            listener = await env.transport.listen("tcp://127.0.0.1:0")
            await nursery.start(server.serve, listener)
            rpc = RpcClient(env, nursery)

            async def call(method: Method[Req, Rep], request: Req) -> Rep:
                return await rpc.call(listener.address, method, request, deadline=env.monotonic() + 10)
        else:

            async def call(method: Method[Req, Rep], request: Req) -> Rep:
                body = encode(request)
                reply = await server.handlers[method.id][1](decode(method.request, body), None)  # type: ignore[arg-type]
                return decode(method.reply, encode(reply))

        await _measure(call, arguments.files)
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--tcp", action="store_true")
    parser.add_argument("--store", choices=("embedded", "memory"), default="embedded")
    with tempfile.TemporaryDirectory() as folder:
        trio.run(_main, parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
