from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from fs3.api.common import Empty
from fs3.api.mgmtd import (
    HEARTBEAT,
    REGISTER,
    UNREGISTER,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
    UnregisterRequest,
)
from fs3.client.lease import Lease
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import LocalState
from fs3.testing.mgmtd import StaticMgmtd
from fs3.transport.memory import MemoryTransport

LEASE_S = 10.0


@dataclass(slots=True)
class DriftingEnv(Env):
    rate: float = 1.0

    def monotonic(self) -> float:
        return 1000.0 + self.rate * trio.current_time()


class World:
    """A lease with a fake mgmtd; `calls` says what arrived there and when."""

    def __init__(self, rate: float = 1.0) -> None:
        """rate: of the node's own clock; mgmtd's is right."""
        self.mgmtd = StaticMgmtd()
        self.mgmtd.handlers = {REGISTER.id: self.register, HEARTBEAT.id: self.heartbeat, UNREGISTER.id: self.unregister}
        self.calls: list[tuple[float, Any]] = []
        self.error: FS3Error | None = None
        self.report = TargetReport(7, 0, LocalState.ONLINE, 100, 0)
        self.lease = Lease(
            DriftingEnv(MemoryTransport(), random.Random(1), rate=rate),
            self.mgmtd,
            lambda: RegisterRequest(3, NodeKind.STORAGE, "mem://3", "h", 42, (), (self.report,)),
            lambda: (self.report,),
        )

    async def _answer(self, request: Any) -> None:
        self.calls.append((trio.current_time(), request))
        error = self.error
        if error is not None:
            if error.code is Code.DEADLINE_EXCEEDED:
                await trio.sleep(1)
            raise error

    async def register(self, request: RegisterRequest) -> RegisterReply:
        await self._answer(request)
        return RegisterReply(request.node, "c", int(LEASE_S * 1000), 1)

    async def heartbeat(self, request: HeartbeatRequest) -> HeartbeatReply:
        await self._answer(request)
        return HeartbeatReply(int(LEASE_S * 1000), 1)

    async def unregister(self, request: UnregisterRequest) -> Empty:
        await self._answer(request)
        return Empty()

    def beats(self) -> list[float]:
        return [at for at, request in self.calls if isinstance(request, HeartbeatRequest)]


@contextmanager
def ends(message: str) -> Iterator[None]:
    """The lease is over, with this in the error's message."""
    with pytest.raises(ExceptionGroup) as caught:
        yield
    (error,) = caught.value.exceptions
    assert isinstance(error, FS3Error)
    assert error.code is Code.STALE_INCARNATION and message in error.message


async def test_registers_then_beats_four_times_a_lease(autojump_clock: MockClock) -> None:
    w = World()
    async with trio.open_nursery() as nursery:
        reply = await nursery.start(w.lease.run)
        assert (reply.node, w.lease.node, w.lease.incarnation) == (3, 3, 42)
        await trio.sleep(10.1)
        assert w.beats() == [2.5, 5.0, 7.5, 10.0]
        assert w.lease.holds() and w.lease.expires_at == 1015.0
        nursery.cancel_scope.cancel()


async def test_poke_sends_the_present_state_at_once(autojump_clock: MockClock) -> None:
    w = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(w.lease.run)
        await trio.sleep(1)
        w.report = TargetReport(7, 0, LocalState.OFFLINE, 100, 0)
        w.lease.poke()
        w.lease.poke()
        await trio.sleep(0.1)
        assert w.beats() == [1.0]
        assert w.calls[-1][1].targets == (w.report,)
        await trio.sleep(3)
        assert w.beats() == [1.0, 3.5]
        nursery.cancel_scope.cancel()


async def test_poke_during_a_heartbeat_is_not_lost(autojump_clock: MockClock) -> None:
    w = World()
    slow = w.heartbeat

    async def heartbeat(request: HeartbeatRequest) -> HeartbeatReply:
        reply = await slow(request)
        await trio.sleep(0.5)
        return reply

    w.mgmtd.handlers[HEARTBEAT.id] = heartbeat
    async with trio.open_nursery() as nursery:
        await nursery.start(w.lease.run)
        await trio.sleep(2.7)
        w.report = TargetReport(7, 0, LocalState.UPTODATE, 100, 0, 3)
        w.lease.poke()
        await trio.sleep(0.5)
        assert w.beats() == [2.5, 3.0]
        assert w.calls[-1][1].targets == (w.report,)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("code", [Code.CONNECTION_LOST, Code.DEADLINE_EXCEEDED, Code.NOT_PRIMARY])
async def test_gives_up_after_half_a_lease_without_an_answer(code: Code, autojump_clock: MockClock) -> None:
    w = World()
    with ends("half of the lease"):
        async with trio.open_nursery() as nursery:
            await nursery.start(w.lease.run)
            await trio.sleep(3)
            w.error = FS3Error(code, "away")
    # The last answered one was sent at 2.5 s.
    assert trio.current_time() == pytest.approx(7.5)
    assert not w.lease.holds()


@pytest.mark.parametrize("rate", [0.51, 0.9, 1.0, 1.1, 1.5])
async def test_it_fences_itself_before_mgmtd_calls_it_dead(rate: float, autojump_clock: MockClock) -> None:
    """With a clock of its own that runs at half the speed of mgmtd's, or faster."""
    w = World(rate)
    with ends("half of the lease"):
        async with trio.open_nursery() as nursery:
            await nursery.start(w.lease.run)
            await trio.sleep(20)
            w.error = FS3Error(Code.CONNECTION_LOST, "away")
            answered = [at for at in w.beats() if at <= 20][-1]
    assert trio.current_time() < answered + LEASE_S
    assert not w.lease.holds()


async def test_outage_shorter_than_that_is_survived(autojump_clock: MockClock) -> None:
    w = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(w.lease.run)
        await trio.sleep(3)
        w.error = FS3Error(Code.CONNECTION_LOST)
        await trio.sleep(4)
        w.error = None
        await trio.sleep(30)
        assert w.lease.holds()
        nursery.cancel_scope.cancel()


async def test_superseded_one_ends_at_once(autojump_clock: MockClock) -> None:
    w = World()
    with ends("over"):
        async with trio.open_nursery() as nursery:
            await nursery.start(w.lease.run)
            w.error = FS3Error(Code.STALE_INCARNATION, "over")
    assert trio.current_time() == 2.5


async def test_registration_waits_for_mgmtd_but_not_for_a_refusal(autojump_clock: MockClock) -> None:
    w = World()
    w.error = FS3Error(Code.DEADLINE_EXCEEDED, "away")
    async with trio.open_nursery() as nursery:

        async def appear() -> None:
            await trio.sleep(60.5)
            w.error = None

        nursery.start_soon(appear)
        await nursery.start(w.lease.run)
        assert 60.5 <= trio.current_time() < 62
        nursery.cancel_scope.cancel()
    w.error = FS3Error(Code.CONFIG, "node id 3 is that of a meta daemon")
    with pytest.raises(FS3Error, match="meta daemon"):
        await w.lease.run()


async def test_unregister_is_for_the_registered_and_never_fails(autojump_clock: MockClock) -> None:
    w = World()
    await w.lease.unregister()
    assert w.calls == []
    async with trio.open_nursery() as nursery:
        await nursery.start(w.lease.run)
        nursery.cancel_scope.cancel()
    await w.lease.unregister()
    assert w.calls[-1][1] == UnregisterRequest(3, 42)
    w.error = FS3Error(Code.CONNECT_FAILED, "away")
    await w.lease.unregister()
