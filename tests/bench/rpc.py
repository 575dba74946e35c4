"""How fast calls are: between two processes over loopback. Run: python -m tests.bench.rpc [--seconds 2]."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from fs3.api.common import PING, Empty, Method
from fs3.env import Env
from fs3.rpc.client import RpcClient
from fs3.rpc.server import Call, RpcServer
from fs3.transport.registry import Transports

MIB = 1024 * 1024
PUT = Method(60001, "bench.put", Empty, Empty)
GET = Method(60002, "bench.get", Empty, Empty)
WAIT = Method(60003, "bench.wait", Empty, Empty)


async def serve() -> None:
    data = bytearray(MIB)

    async def put(request: Empty, call: Call) -> Empty:
        assert len(await call.payload()) == MIB
        return request

    async def get(request: Empty, call: Call) -> Empty:
        call.reply_payload([memoryview(data)])
        return request

    async def wait(request: Empty, call: Call) -> Empty:
        await trio.lowlevel.checkpoint()
        return request

    env = Env(Transports())
    server = RpcServer(env)
    server.handle(PUT, put)
    server.handle(GET, get)
    server.handle(WAIT, wait)
    listener = await env.transport.listen("tcp://127.0.0.1:0")
    print(listener.address, flush=True)
    await server.serve(listener)


async def rate(call: Callable[[], Awaitable[object]], outstanding: int, seconds: float) -> float:
    """Calls per second: the median over five slices of the time."""
    rates = []
    for _ in range(5):
        done = 0
        start = time.perf_counter()
        end = start + seconds / 5

        async def worker(end: float = end) -> None:
            nonlocal done
            while time.perf_counter() < end:
                await call()
                done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(outstanding):
                nursery.start_soon(worker)
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)


async def measure(address: str, seconds: float) -> None:
    data = memoryview(bytearray(MIB))
    env = Env(Transports())
    async with trio.open_nursery() as nursery:
        client = RpcClient(env, nursery)

        def null(method: Method[Empty, Empty]) -> Callable[[], Awaitable[object]]:
            return lambda: client.call(address, method, Empty(), deadline=env.monotonic() + 30)

        def put() -> Awaitable[object]:
            return client.call(address, PUT, Empty(), deadline=env.monotonic() + 30, payload=(data,))

        def get() -> Awaitable[object]:
            return client.call_bulk(address, GET, Empty(), deadline=env.monotonic() + 30)

        async def get_into() -> None:
            into = buffers.pop()
            await client.call_bulk(address, GET, Empty(), deadline=env.monotonic() + 30, into=into)
            buffers.append(into)

        buffers = [memoryview(bytearray(MIB)) for _ in range(4)]

        async def show(what: str, call: Callable[[], Awaitable[object]], unit: str, *outstandings: int) -> None:
            for outstanding in outstandings:
                print(f"{what:34} {outstanding:2} outstanding: {await rate(call, outstanding, seconds):8.0f} {unit}")

        await show("null call, handler never waits", null(PING), "/s", 1, 16)
        await show("null call, handler waits once", null(WAIT), "/s", 1, 16)
        await show("1 MiB to the server", put, "MiB/s", 1, 4)
        await show("1 MiB from it, into a given buffer", get_into, "MiB/s", 1, 4)
        await show("1 MiB from it, into fresh buffers", get, "MiB/s", 1, 4)
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--serve", action="store_true", help="be the server process")
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
        return
    command = [sys.executable, "-m", "tests.bench.rpc", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            trio.run(measure, server.stdout.readline().strip(), arguments.seconds)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
