"""All transports pass the same kit."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio

from fs3.testing.transport import CHECKS, Check, Subject
from fs3.transport.base import Connection
from fs3.transport.local import LocalClient, LocalTransport
from fs3.transport.memory import MemoryTransport
from fs3.transport.tcp import TcpTransport, split_address
from tests.sim.clock import SimClock
from tests.sim.net import Network


@pytest.fixture
def sim_clock() -> SimClock:
    return SimClock()


async def send_raw(address: str, data: bytes) -> None:
    stream = await trio.open_tcp_stream(*split_address(address))
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # closed before it took all of it


def tcp() -> Subject:
    return Subject(TcpTransport(), "tcp://127.0.0.1:0", send_raw)


class Eager(LocalTransport):
    """Uses shared memory from the first request on, where it would wait for the server's first word."""

    async def connect(self, address: str) -> Connection:
        connection = await super().connect(address)
        assert isinstance(connection, LocalClient)
        connection.welcome = True
        return connection


async def send_raw_locally(address: str, data: bytes) -> None:
    stream = await trio.open_unix_socket("\0fs3 " + address)
    async with stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)


def local() -> Subject:
    """Too little memory for the largest payloads, which go inline then."""
    return Subject(Eager(8 * 1024 * 1024), "local://peer:0", send_raw_locally)


def memory() -> Subject:
    return Subject(MemoryTransport(), "mem://peer:0")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [tcp, memory, local], ids=["tcp", "memory", "local"])
async def test_transport(make: object, check: Check) -> None:
    await check(make())  # type: ignore[operator]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_simulated_transport(sim_clock: SimClock, check: Check) -> None:
    await check(Subject(Network(sim_clock, random.Random(1)).host("peer"), "sim://peer:0"))
