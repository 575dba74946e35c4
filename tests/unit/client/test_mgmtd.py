from __future__ import annotations

import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from fs3.api.common import Empty, Method
from fs3.api.mgmtd import (
    CLUSTER_CONFIG,
    FORMAT,
    GET_ROUTING,
    ClusterConfigReply,
    FormatRequest,
    GetRoutingReply,
    GetRoutingRequest,
    RoutingDelta,
    RoutingMessage,
    not_primary,
    primary_of,
)
from fs3.client.mgmtd import POLL_GRACE_MS, POLL_MS, MgmtdClient
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.routing import EMPTY, Node, RoutingInfo
from fs3.rpc.client import RpcClient
from fs3.testing.mgmtd import StaticMgmtd
from fs3.transport.memory import MemoryTransport

A, B = "mem://a:1", "mem://b:1"


class FakeRpc(RpcClient):
    """Instead of a network: a handler per address; none = nobody listens there."""

    def __init__(self) -> None:
        self.peers: dict[str, Callable[[Any], Awaitable[Any]]] = {}
        self.asked: list[str] = []

    async def call(  # type: ignore[override]
        self, address: str, method: Method[Any, Any], request: Any, *, deadline: float, payload: Any = ()
    ) -> Any:
        await trio.lowlevel.checkpoint()
        assert deadline > trio.current_time()
        self.asked.append(address)
        if address not in self.peers:
            raise FS3Error(Code.CONNECT_FAILED, f"{address}: nobody listens there")
        with trio.move_on_at(deadline):
            return await self.peers[address](request)
        raise FS3Error(Code.DEADLINE_EXCEEDED, address)


class FakeMgmtd:
    """Routing of a version that the test sets."""

    def __init__(self, version: int = 1, cluster: str = "c") -> None:
        self.version, self.cluster = version, cluster
        self.changed = trio.Event()
        self.stuck = False

    def publish(self, version: int) -> None:
        self.version = version
        self.changed.set()
        self.changed = trio.Event()

    async def __call__(self, request: Any) -> Any:
        if self.stuck:
            await trio.sleep_forever()
        if isinstance(request, Empty):
            return ClusterConfigReply(1, self.cluster, 1, 1, 1, 1)
        assert isinstance(request, GetRoutingRequest)
        with trio.move_on_after(request.wait_ms / 1000):
            while self.version == request.known_version:
                await self.changed.wait()
        if self.version == request.known_version:
            return GetRoutingReply(None)
        return GetRoutingReply(RoutingMessage.of(RoutingInfo(self.version, self.cluster)))


def client(*addresses: str) -> tuple[MgmtdClient, FakeRpc]:
    rpc = FakeRpc()
    return MgmtdClient(Env(MemoryTransport(), random.Random(1)), rpc, addresses), rpc


@asynccontextmanager
async def running(made: MgmtdClient) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        await trio.sleep(0.001)  # the next question is open
        yield nursery
        nursery.cancel_scope.cancel()


async def test_follows_the_routing(autojump_clock: MockClock) -> None:
    c, rpc = client(A)
    mgmtd = rpc.peers[A] = FakeMgmtd(3)
    assert c.routing is EMPTY
    async with running(c) as nursery:
        assert c.routing.version == 3
        seen: list[int] = []

        async def watch() -> None:
            seen.append((await c.wait_change(3)).version)

        nursery.start_soon(watch)
        await trio.sleep(100)
        assert seen == []
        mgmtd.publish(5)
        await trio.sleep(0.001)
        assert seen == [5] and c.routing.version == 5


async def test_waits_for_mgmtd_to_appear(autojump_clock: MockClock) -> None:
    c, rpc = client(A)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(60) as scope:
            await nursery.start(c.run)
        assert scope.cancelled_caught
    rpc.peers[A] = FakeMgmtd()
    async with running(c):
        assert c.routing.version == 1


async def test_keeps_the_last_routing_while_mgmtd_is_away_and_says_so_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    c, rpc = client(A)
    mgmtd = rpc.peers[A] = FakeMgmtd(3)
    async with running(c):
        del rpc.peers[A]
        mgmtd.publish(4)
        await trio.sleep(200)
        assert c.routing.version == 4
        del rpc.asked[:]
        await trio.sleep(100)
        assert 50 < len(rpc.asked) < 300  # backs off, but not for long
        rpc.peers[A] = mgmtd
        mgmtd.publish(6)
        await trio.sleep(2)
        assert c.routing.version == 6
    messages = [record.message for record in caplog.records]
    assert [m.split(",")[0] for m in messages] == ["lost mgmtd", f"mgmtd is back at {A}"]


async def test_finds_the_primary(autojump_clock: MockClock) -> None:
    c, rpc = client(A, B)

    async def standby(request: Any) -> Any:
        raise not_primary("mem://c:1")

    rpc.peers[B] = standby
    rpc.peers["mem://c:1"] = FakeMgmtd(9)
    async with running(c):
        assert c.routing.version == 9
        assert rpc.asked[:3] == [A, B, "mem://c:1"]
        assert trio.current_time() < 0.1
        # The one it was told of goes; another of the configured ones is primary now.
        rpc.peers = {A: FakeMgmtd(10)}
        await trio.sleep(POLL_MS / 1000 + 1)
        assert c.routing.version == 10


async def test_finds_the_primary_although_others_still_name_a_dead_one(autojump_clock: MockClock) -> None:
    """A standby that cannot reach the store knows only who was primary; from each address one gets to the one that is."""
    dead, stale, primary = A, B, "mem://c:1"

    async def standby(request: Any) -> Any:
        raise not_primary(dead)

    for addresses in itertools.permutations((dead, stale, primary)):
        c, rpc = client(*addresses)
        rpc.peers = {stale: standby, primary: FakeMgmtd(4)}
        at = trio.current_time()
        await c.call(CLUSTER_CONFIG, Empty(), timeout_ms=1000)
        assert len(rpc.asked) <= 4 and trio.current_time() - at < 0.1
        # What was dead is asked again once it is named and nobody else answers.
        rpc.peers = {stale: standby, dead: FakeMgmtd(5)}
        await c.call(CLUSTER_CONFIG, Empty(), timeout_ms=1000)


async def test_leaves_a_primary_that_hangs_as_soon_as_anybody_notices(autojump_clock: MockClock) -> None:
    """The question for news is open for long; heartbeats, or who is in a hurry, notice first."""
    for hurry in (False, True):
        c, rpc = client(A, B)
        first, second = FakeMgmtd(1), FakeMgmtd(2)
        rpc.peers = {A: first, B: second}
        async with running(c):
            first.stuck = True
            at = trio.current_time()
            if hurry:
                assert (await c.refresh(1, timeout_ms=1000)).version == 2
            else:
                await c.call(CLUSTER_CONFIG, Empty(), timeout_ms=1000)
                await trio.sleep(0.1)
            assert c.routing.version == 2 and trio.current_time() - at < 0.9


async def test_one_that_does_not_answer_is_left(autojump_clock: MockClock) -> None:
    c, rpc = client(A, B)
    first, second = FakeMgmtd(1), FakeMgmtd(1)
    rpc.peers = {A: first, B: second}
    async with running(c):
        first.stuck = True
        second.publish(2)
        await trio.sleep((POLL_MS + POLL_GRACE_MS) / 1000 + POLL_MS / 1000 + 1)
        assert c.routing.version == 2
        at = trio.current_time()
        second.stuck, first.stuck = True, False
        await c.call(CLUSTER_CONFIG, Empty(), timeout_ms=4000)
        assert trio.current_time() - at <= 1.1


async def test_refresh_with_and_without_the_loop(autojump_clock: MockClock) -> None:
    c, rpc = client(A)
    mgmtd = rpc.peers[A] = FakeMgmtd(3)
    assert (await c.refresh(0)).version == 3
    at = trio.current_time()
    assert (await c.refresh(3, timeout_ms=500)).version == 3
    assert trio.current_time() - at == pytest.approx(0.5)
    async with running(c) as nursery:
        at = trio.current_time()
        assert (await c.refresh(3, timeout_ms=500)).version == 3
        assert trio.current_time() - at == pytest.approx(0.5)

        async def later() -> None:
            await trio.sleep(0.2)
            mgmtd.publish(4)

        nursery.start_soon(later)
        assert (await c.refresh(3, timeout_ms=500)).version == 4
        assert trio.current_time() - at == pytest.approx(0.7)
        # It does not wait for the back-off either.
        del rpc.peers[A]
        mgmtd.publish(5)
        await trio.sleep(60)
        rpc.peers[A] = mgmtd
        mgmtd.publish(6)
        at = trio.current_time()
        assert (await c.refresh(5, timeout_ms=500)).version == 6
        assert trio.current_time() - at < 0.1


async def test_refresh_of_a_dead_mgmtd_ends_in_time(autojump_clock: MockClock) -> None:
    c, _ = client(A, B)
    assert await c.refresh(0, timeout_ms=700) is EMPTY
    assert trio.current_time() == pytest.approx(0.7)


async def test_older_routing_is_not_taken(autojump_clock: MockClock) -> None:
    c, rpc = client(A, B)
    rpc.peers = {A: FakeMgmtd(7)}
    async with running(c):
        rpc.peers = {B: FakeMgmtd(5)}
        await trio.sleep(60)
        assert c.routing.version == 7
        assert len(rpc.asked) < 300


@pytest.mark.expects_error_log
async def test_another_cluster_is_taken(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    c, rpc = client(A)
    rpc.peers = {A: FakeMgmtd(7)}
    async with running(c):
        rpc.peers = {A: FakeMgmtd(2, "other")}
        await trio.sleep(POLL_MS / 1000 + 1)
        assert (c.routing.version, c.routing.cluster) == (2, "other")
    assert [r.levelname for r in caplog.records] == ["ERROR"]


async def test_call_tries_on_until_its_time_is_over(autojump_clock: MockClock) -> None:
    c, rpc = client(A, B)
    with pytest.raises(FS3Error) as caught:
        await c.call(CLUSTER_CONFIG, Empty(), timeout_ms=3000)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert "mgmtd.cluster_config in 3000 ms: CONNECT_FAILED: mem://" in caught.value.message
    assert 1.5 < trio.current_time() <= 3
    assert rpc.asked.count(A) == pytest.approx(rpc.asked.count(B), abs=1)

    async def appear() -> None:
        await trio.sleep(2)
        rpc.peers[B] = FakeMgmtd()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(appear)
        assert (await c.call(CLUSTER_CONFIG, Empty(), timeout_ms=5000)).version == 1


async def test_call_gives_up_at_once_where_trying_again_is_of_no_use(autojump_clock: MockClock) -> None:
    c, rpc = client(A)

    async def refuses(request: Any) -> Any:
        raise FS3Error(Code.ALREADY_FORMATTED, "done")

    rpc.peers[A] = refuses
    with pytest.raises(FS3Error) as caught:
        await c.call(FORMAT, FormatRequest(1, 1, 1))
    assert (caught.value.code, rpc.asked) == (Code.ALREADY_FORMATTED, [A])


def test_primary_is_named_in_the_refusal() -> None:
    assert primary_of(not_primary("tcp://10.0.0.1:7000")) == "tcp://10.0.0.1:7000"
    assert primary_of(not_primary("")) == ""
    assert primary_of(FS3Error(Code.INTERNAL, "primary is x")) == ""


async def test_static_mgmtd_behaves_alike(autojump_clock: MockClock) -> None:
    fake = StaticMgmtd()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setattr_later, fake)
        await nursery.start(fake.run)
        assert fake.routing.version == 4 and trio.current_time() == 1
        assert (await fake.refresh(4, timeout_ms=500)).version == 4
        assert (trio.current_time(), fake.refreshes) == (1.5, 1)
        with pytest.raises(FS3Error) as caught:
            await fake.call(GET_ROUTING, GetRoutingRequest(0))
        assert caught.value.code is Code.UNKNOWN_METHOD

        async def answer(request: GetRoutingRequest) -> GetRoutingReply:
            return GetRoutingReply(None)

        fake.handlers[GET_ROUTING.id] = answer
        assert (await fake.call(GET_ROUTING, GetRoutingRequest(0))).routing is None
        nursery.cancel_scope.cancel()


async def setattr_later(fake: StaticMgmtd) -> None:
    await trio.sleep(1)
    fake.routing = RoutingInfo(4, "c")


class DeltaMgmtd:
    """Answers as it is told to, and remembers what it was asked."""

    def __init__(self, *answers: GetRoutingReply) -> None:
        self.answers = list(answers)
        self.asked: list[GetRoutingRequest] = []

    async def __call__(self, request: Any) -> Any:
        assert isinstance(request, GetRoutingRequest)
        self.asked.append(request)
        if not self.answers:
            await trio.sleep_forever()
        return self.answers.pop(0)


def whole(version: int, cluster: str = "c", nodes: tuple[Node, ...] = ()) -> GetRoutingReply:
    return GetRoutingReply(RoutingMessage.of(RoutingInfo(version, cluster, nodes={n.id: n for n in nodes})))


NODES = (Node(1, 1, A, "h", True, 1), Node(2, 2, B, "h", True, 1))


async def test_applies_what_changed(autojump_clock: MockClock) -> None:
    c, rpc = client(A)
    delta = RoutingDelta(3, 5, "c", nodes=(Node(2, 2, B, "h", False, 1), Node(3, 2, B, "h", True, 1)), gone_nodes=(1,))
    mgmtd = rpc.peers[A] = DeltaMgmtd(whole(3, nodes=NODES), GetRoutingReply(None, delta))
    async with running(c):
        assert c.routing.version == 5 and c.routing.cluster == "c"
        assert c.routing.nodes == {2: Node(2, 2, B, "h", False, 1), 3: Node(3, 2, B, "h", True, 1)}
        assert [(r.known_version, r.deltas) for r in mgmtd.asked] == [(0, True), (3, True), (5, True)]


@pytest.mark.parametrize("delta", [RoutingDelta(2, 5, "c"), RoutingDelta(3, 5, "other"), RoutingDelta(4, 5, "c")])
async def test_asks_for_all_where_a_delta_does_not_fit(autojump_clock: MockClock, delta: RoutingDelta) -> None:
    c, rpc = client(A)
    mgmtd = rpc.peers[A] = DeltaMgmtd(whole(3), GetRoutingReply(None, delta), whole(5, nodes=NODES))
    async with running(c):
        assert c.routing.version == 5 and len(c.routing.nodes) == 2
        assert [(r.known_version, r.deltas) for r in mgmtd.asked] == [(0, True), (3, True), (0, False), (5, True)]


async def test_answers_to_two_questions_may_come_in_any_order(autojump_clock: MockClock) -> None:
    """The long one and a probe: both told of the same version that we knew then."""
    c, rpc = client(A)
    late = trio.Event()

    async def answer(request: Any) -> GetRoutingReply:
        if request.known_version == 0:
            return whole(3)
        if request.known_version == 3 and request.wait_ms:
            await late.wait()
            return GetRoutingReply(None, RoutingDelta(3, 4, "c", nodes=NODES))
        if request.known_version == 3:
            return GetRoutingReply(None, RoutingDelta(3, 5, "c", nodes=NODES[:1]))
        await trio.sleep_forever()
        raise AssertionError

    rpc.peers[A] = answer
    async with running(c):
        assert (await c.refresh(3, timeout_ms=2000)).version == 5
        late.set()
        await trio.sleep(0.1)
        assert c.routing.version == 5 and list(c.routing.nodes) == [1] and len(rpc.asked) == 4


@pytest.mark.parametrize("urgent", [False, True])
async def test_clients_of_a_large_cluster_do_not_come_to_the_next_mgmtd_all_at_once(
    autojump_clock: MockClock, urgent: bool
) -> None:
    """Storage daemons do: they are fewer, and chains wait for them."""
    nodes = tuple([Node(number, 1, A, "h", True, 1) for number in range(1, 501)])
    waited_s = []
    for seed in range(20):
        rpc = FakeRpc()
        c = MgmtdClient(Env(MemoryTransport(), random.Random(seed)), rpc, [A, B], urgent)
        lost = trio.Event()

        async def dies(request: Any, lost: trio.Event = lost) -> GetRoutingReply:
            if request.known_version:
                await lost.wait()
                raise FS3Error(Code.CONNECTION_LOST, A)
            return whole(3, nodes=nodes)

        rpc.peers[A], rpc.peers[B] = dies, FakeMgmtd(4)
        async with running(c):
            start = trio.current_time()
            lost.set()
            await c.wait_change(3)
            waited_s.append(trio.current_time() - start)
    if urgent:
        assert max(waited_s) < 0.1
    else:
        assert max(waited_s) < 1.1 and sum(waited_s) / 20 > 0.3 and min(waited_s) < 0.3
