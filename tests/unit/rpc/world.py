"""A server and a client over the in-process transport, under a mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from fs3.api.common import Method
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from fs3.rpc.server import RpcServer, ServerLimits
from fs3.transport.base import Connection, Listener
from fs3.transport.memory import MemoryTransport

ADDRESS = "mem://server"


@dataclass(frozen=True, slots=True)
class Number:
    value: int


ECHO = Method(50001, "test.echo", Number, Number)
SLOW = Method(50002, "test.slow", Number, Number)
"""Sleeps `value` ms."""


class Network(MemoryTransport):
    """Counts and can delay connecting; remembers the clients' connections."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[Connection] = []
        self.attempts = 0
        self.delay_s = 0.0

    async def connect(self, address: str) -> Connection:
        self.attempts += 1
        await trio.sleep(self.delay_s)
        connection = await super().connect(address)
        self.connections.append(connection)
        return connection


@dataclass(slots=True)
class World:
    env: Env
    network: Network
    nursery: trio.Nursery
    server: RpcServer
    client: RpcClient
    listener: Listener | None = None
    serving: trio.CancelScope | None = None

    async def serve(self) -> None:
        self.listener = await self.network.listen(ADDRESS)
        self.serving = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            assert self.listener is not None and self.serving is not None
            with self.serving:
                await self.server.serve(self.listener, task_status=task_status)

        await self.nursery.start(run)

    def after(self, seconds: float) -> float:
        return self.env.monotonic() + seconds

    async def echo(self, value: int, seconds: float = 10) -> int:
        return (await self.client.call(ADDRESS, ECHO, Number(value), deadline=self.after(seconds))).value

    async def slow(self, ms: int, seconds: float = 10) -> int:
        return (await self.client.call(ADDRESS, SLOW, Number(ms), deadline=self.after(seconds))).value


@asynccontextmanager
async def world(limits: ServerLimits = ServerLimits()) -> AsyncIterator[World]:  # noqa: B008
    network = Network()
    env = Env(network)
    async with trio.open_nursery() as nursery:
        server = RpcServer(env, limits)

        async def echo(request: Number, call: object) -> Number:
            return request

        async def slow(request: Number, call: object) -> Number:
            await trio.sleep(request.value / 1000)
            return request

        server.handle(ECHO, echo)
        server.handle(SLOW, slow)
        made = World(env, network, nursery, server, RpcClient(env, nursery))
        await made.serve()
        yield made
        nursery.cancel_scope.cancel()


async def code_of(call: Awaitable[object]) -> Code:
    """The code of the error that this call must end with."""
    try:
        result = await call
    except FS3Error as error:
        return error.code
    raise AssertionError(f"no error, but {result!r}")


async def outcome_of(call: Callable[[], Awaitable[object]], into: list[object]) -> None:
    """As a task: append the result or the error's code."""
    try:
        into.append(await call())
    except FS3Error as error:
        into.append(error.code)
