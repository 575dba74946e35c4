"""All transports pass the same kit."""

from __future__ import annotations

import random

import pytest
import trio

from fs3.testing.transport import CHECKS, Check, Subject
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


def memory() -> Subject:
    return Subject(MemoryTransport(), "mem://peer:0")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [tcp, memory], ids=["tcp", "memory"])
async def test_transport(make: object, check: Check) -> None:
    await check(make())  # type: ignore[operator]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_simulated_transport(sim_clock: SimClock, check: Check) -> None:
    await check(Subject(Network(sim_clock, random.Random(1)).host("peer"), "sim://peer:0"))
