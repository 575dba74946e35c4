"""The whole daemon over the in-memory transport and store, with a virtual clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from fs3.api.common import Empty
from fs3.api.mgmtd import (
    CLUSTER_CONFIG,
    FORMAT,
    GET_ROUTING,
    HEARTBEAT,
    LIST_CLIENTS,
    REGISTER,
    FormatRequest,
    GetRoutingRequest,
    HeartbeatRequest,
    RegisterRequest,
    TargetReport,
)
from fs3.client.lease import Lease
from fs3.client.mgmtd import MgmtdClient
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.kv.memory import Fault, MemoryEngine, Operation
from fs3.routing import LocalState, PublicState, RoutingInfo
from fs3.rpc.client import RpcClient
from fs3.transport.memory import MemoryTransport
from fs3.wire.frame import Frame, Kind
from mgmtd.cluster import Cluster
from mgmtd.daemon import MgmtdConfig, run
from mgmtd.lease import Owner, Record
from mgmtd.service import Me, MgmtdService
from mgmtd.store import Store

LEASE_MS = 1000
ONE = "mem://mgmtd-1:7000"
TWO = "mem://mgmtd-2:7000"


class World:
    """A store, a transport, and any number of mgmtd daemons and storage nodes on them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.env = Env(MemoryTransport(), random.Random(1))
        self.engine = MemoryEngine()
        self.rpc = RpcClient(self.env, nursery)
        self.client = MgmtdClient(self.env, self.rpc, [ONE, TWO])

    async def start_mgmtd(self, node: int = 1, engine: MemoryEngine | None = None) -> trio.CancelScope:
        """Start one; returns when it is ready. Cancelling the scope stops it cleanly."""
        address = ONE if node == 1 else TWO
        config = MgmtdConfig(node_id=node, listen=address, lease_ms=LEASE_MS, client_lease_ms=3 * LEASE_MS)
        ready = trio.Event()
        scope = trio.CancelScope()

        async def daemon() -> None:
            with scope:
                await run(config, self.env, lambda _: ready.set(), engine or self.engine)

        self.nursery.start_soon(daemon)
        await ready.wait()
        return scope

    async def start_storage(self, node: int, incarnation: int) -> Storage:
        storage = Storage(self, node, incarnation)
        await self.nursery.start(storage.run)
        return storage

    async def formatted(self, storages: int = 3, replicas: int = 3) -> list[Storage]:
        started = [await self.start_storage(node, node * 100) for node in range(101, 101 + storages)]
        await self.client.call(FORMAT, FormatRequest(replicas, 1 << 20, 0))
        await self.client.refresh(self.client.routing.version, timeout_ms=100)
        return started

    async def until(self, holds: Callable[[RoutingInfo], bool], within_s: float) -> RoutingInfo:
        with trio.fail_after(within_s):
            while not holds(self.client.routing):
                await self.client.wait_change(self.client.routing.version)
        return self.client.routing

    def states(self) -> list[tuple[int, str]]:
        return [(t.target, t.state.name.lower()) for t in self.client.routing.chains[1].targets]


class Storage:
    """What a storage daemon does towards mgmtd; its one target has the node's id. Resync takes no time."""

    def __init__(self, world: World, node: int, incarnation: int) -> None:
        self.node, self.incarnation = node, incarnation
        self.mgmtd = MgmtdClient(world.env, world.rpc, [ONE, TWO])
        self.lease = Lease(world.env, self.mgmtd, self._request, self._targets)
        self.scope = trio.CancelScope()
        self.ended: FS3Error | None = None

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.mgmtd.run)
                    await nursery.start(self.lease.run)
                    task_status.started()
                    version = 0
                    while True:
                        version = (await self.mgmtd.wait_change(version)).version
                        self.lease.poke()
            except* FS3Error as group:
                (error,) = group.exceptions
                assert isinstance(error, FS3Error)
                self.ended = error

    def _request(self) -> RegisterRequest:
        report = TargetReport(self.node, 0, LocalState.ONLINE, 10_000, 0)
        return RegisterRequest(self.node, NodeKind.STORAGE, f"mem://{self.node}", "h", self.incarnation, (), (report,))

    def _targets(self) -> tuple[TargetReport, ...]:
        routing = self.mgmtd.routing
        chain = routing.chains.get(1)
        state = chain.state_of(self.node) if chain is not None else None
        local = LocalState.UPTODATE if state in (PublicState.SERVING, PublicState.SYNCING) else LocalState.ONLINE
        return (TargetReport(self.node, 0, local, 10_000, 0, chain.version if chain is not None else 0),)


@asynccontextmanager
async def world(poll: bool = True) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(nursery)
        await made.start_mgmtd()
        if poll:
            await nursery.start(made.client.run)
        yield made
        nursery.cancel_scope.cancel()


async def refused(code: Code, call: Awaitable[object]) -> FS3Error:
    with pytest.raises(FS3Error) as caught:
        await call
    assert caught.value.code is code
    return caught.value


async def test_format_twice_is_refused(autojump_clock: MockClock) -> None:
    async with world() as w:
        await refused(Code.BAD_PLACEMENT, w.client.call(FORMAT, FormatRequest(3, 1 << 20, 0)))
        await w.formatted()
        assert w.states() == [(101, "serving"), (102, "serving"), (103, "serving")]
        await refused(Code.ALREADY_FORMATTED, w.client.call(FORMAT, FormatRequest(3, 1 << 20, 0)))
        config = await w.client.call(CLUSTER_CONFIG, Empty())
        assert (config.version, config.replicas, config.chunk_size, config.stripe) == (1, 3, 1 << 20, 1)


async def test_living_nodes_stay_alive_and_a_silent_one_is_found_in_time(autojump_clock: MockClock) -> None:
    async with world() as w:
        _, _, third = await w.formatted()
        version = w.client.routing.version
        await trio.sleep(10 * LEASE_MS / 1000)
        assert w.client.routing.version == version
        third.scope.cancel()
        died = trio.current_time()
        await w.until(lambda r: r.version != version, 2)
        # Its last heartbeat was up to a quarter of the lease before its death.
        assert 0.7 <= trio.current_time() - died <= 1.1
        assert w.states() == [(101, "serving"), (102, "serving"), (103, "offline")]
        assert not w.client.routing.nodes[103].alive


async def test_quick_restart_returns_without_waiting_for_the_lease(autojump_clock: MockClock) -> None:
    async with world() as w:
        first, *_ = await w.formatted()
        first.scope.cancel()
        version = w.client.routing.chains[1].version
        at = trio.current_time()
        await w.start_storage(101, 999)
        routing = await w.until(lambda r: r.chains[1].serving() == (102, 103, 101), 1)
        assert trio.current_time() - at < 0.1
        assert routing.chains[1].version == version + 3  # offline, syncing, serving


async def test_former_process_of_a_node_is_told_to_stop(autojump_clock: MockClock) -> None:
    async with world() as w:
        first, *_ = await w.formatted()
        await w.start_storage(101, 999)
        await trio.sleep(LEASE_MS / 1000)
        assert first.ended is not None and first.ended.code is Code.STALE_INCARNATION


async def test_all_storages_restarted_at_once_serve_again(autojump_clock: MockClock) -> None:
    async with world() as w:
        for storage in await w.formatted():
            storage.scope.cancel()
        for node in (101, 102, 103):
            await w.start_storage(node, 999)
        await w.until(lambda r: len(r.chains[1].serving()) == 3, 1)


async def test_restart_of_mgmtd_changes_nothing(autojump_clock: MockClock) -> None:
    """Nobody notices but by a new routing version, whether it said goodbye or not."""
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        for clean in (True, False):
            way = CutOff(w.engine)
            scope = await w.start_mgmtd(1, way)
            if clean:
                await nursery.start(w.client.run)
                storages = await w.formatted()
                client = await w.client.call(REGISTER, RegisterRequest(0, NodeKind.CLIENT, "", "h", 5))
                before = w.client.routing
            way.broken = not clean
            scope.cancel()
            await trio.sleep(0.2)
        await w.start_mgmtd(1)
        routing = await w.until(lambda r: r.version > before.version, 1)
        await trio.sleep(5)
        assert w.client.routing is routing
        assert (routing.chains, routing.cluster) == (before.chains, before.cluster)
        assert [n.id for n in routing.nodes_of(NodeKind.STORAGE)] == [101, 102, 103]
        assert not any(storage.ended for storage in storages)
        (info,) = (await w.client.call(LIST_CLIENTS, Empty())).clients
        assert info.client == client.node
        nursery.cancel_scope.cancel()


@pytest.mark.expects_error_log
async def test_deposed_primary_can_change_nothing(autojump_clock: MockClock) -> None:
    """The first one's way to the store is cut; the second takes over while the first still runs."""
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        cut = CutOff(w.engine)
        await w.start_mgmtd(1, cut)
        await nursery.start(w.client.run)
        storages = await w.formatted()
        version = w.client.routing.version
        await w.start_mgmtd(2)
        error = await refused(
            Code.NOT_PRIMARY,
            w.rpc.call(TWO, GET_ROUTING, GetRoutingRequest(0), deadline=trio.current_time() + 1),
        )
        assert error.message == f"primary is {ONE}"
        cut.broken = True
        await w.until(lambda r: 2 in r.nodes, LEASE_MS / 2000)
        assert w.client.routing.version > version
        assert 1 not in w.client.routing.nodes
        # It works again, but a second one has become primary: nothing of its own view gets through.
        cut.broken = False
        request = RegisterRequest(55, NodeKind.META, "mem://55", "h", 5)
        for _ in range(20):
            await refused(Code.NOT_PRIMARY, w.rpc.call(ONE, REGISTER, request, deadline=trio.current_time() + 1))
            await trio.sleep(0.1)
        assert [n.id for n in w.client.routing.nodes_of(NodeKind.STORAGE)] == [101, 102, 103]
        assert not any(storage.ended for storage in storages)
        nursery.cancel_scope.cancel()


async def test_nobody_answers_at_an_epoch_whose_state_is_not_loaded() -> None:
    """A process that was stopped for longer than its lease takes it again before it loads what is stored."""
    env = Env(MemoryTransport(), random.Random(1))
    config = MgmtdConfig(node_id=1, listen=ONE)
    service = MgmtdService(env, Store(MemoryEngine()), Me(1, ONE, "h", 11, False), config, LEASE_MS)

    def granted(epoch: int) -> None:
        service._lease.granted(Record(Owner(epoch, 1, 11, ONE, LEASE_MS), epoch), env.monotonic())

    granted(1)
    service._cluster, service._epoch = cast(Cluster, object()), 1
    assert service.is_primary
    granted(2)
    assert not service.is_primary
    with pytest.raises(FS3Error, match="NOT_PRIMARY"):
        service._primary()


class CutOff(MemoryEngine):
    """Another way to the same store, which can be cut."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.broken = False

    def transaction(self):  # type: ignore[no-untyped-def]
        if self.broken:
            raise FS3Error(Code.KV_UNAVAILABLE, "cut off")
        return self.engine.transaction()

    async def sync(self) -> None:
        await self.engine.sync()


async def test_standby_takes_over_at_once_from_one_that_stops_cleanly(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        first = await w.start_mgmtd(1)
        await w.start_mgmtd(2)
        await nursery.start(w.client.run)
        await w.formatted()
        before = w.client.routing
        first.cancel()
        at = trio.current_time()
        await w.until(lambda r: 2 in r.nodes, 5)
        assert trio.current_time() - at < LEASE_MS / 1000
        assert w.client.routing.chains == before.chains
        await trio.sleep(5)
        assert w.client.routing.chains == before.chains
        nursery.cancel_scope.cancel()


async def test_long_poll_wakes_up_at_a_change_and_ends_without_one(autojump_clock: MockClock) -> None:
    async with world(poll=False) as w:
        known = (await w.client.refresh(0)).version
        at = trio.current_time()
        request = GetRoutingRequest(known, 2000)
        reply = await w.rpc.call(ONE, GET_ROUTING, request, deadline=at + 5)
        assert reply.routing is None and trio.current_time() - at == pytest.approx(2, abs=0.01)

        async def later() -> None:
            await trio.sleep(1)
            await w.client.call(REGISTER, RegisterRequest(11, NodeKind.META, "mem://11", "h", 1))

        w.nursery.start_soon(later)
        at = trio.current_time()
        reply = await w.rpc.call(ONE, GET_ROUTING, request, deadline=at + 5)
        assert reply.routing is not None and reply.routing.version == known + 1
        assert trio.current_time() - at == pytest.approx(1, abs=0.01)


async def test_commit_in_doubt_is_settled_by_the_store(autojump_clock: MockClock) -> None:
    """A registration whose commit may or may not have happened: told to try again, and then done once."""
    async with world() as w:
        for fault in (Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_NOT_APPLIED, Fault.UNAVAILABLE):
            left = [fault]

            async def hook(operation: Operation, left: list[Fault] = left) -> Fault | None:
                return left.pop() if operation is Operation.COMMIT and left else None

            node = 11 + fault.value.__len__()
            w.engine.hook = hook
            reply = await w.client.call(REGISTER, RegisterRequest(node, NodeKind.META, f"mem://{node}", "h", 1))
            assert reply.node == node and not left
            await w.until(lambda r, node=node: node in r.nodes, 2)  # type: ignore[misc]
        assert len(w.client.routing.nodes_of(NodeKind.META)) == 3


@pytest.mark.expects_error_log
async def test_store_away_for_long_and_back(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        cut = CutOff(w.engine)
        await w.start_mgmtd(1, cut)
        await nursery.start(w.client.run)
        await w.formatted()
        before = w.client.routing
        cut.broken = True
        await trio.sleep(20)
        assert w.client.routing is before
        error = await refused(Code.DEADLINE_EXCEEDED, w.client.call(CLUSTER_CONFIG, Empty(), timeout_ms=300))
        assert "mgmtd.cluster_config" in error.message
        cut.broken = False
        await trio.sleep(0.3)
        # Whoever was registered has a whole lease from now on, but all have given up after half of one.
        assert (await w.client.refresh(before.version)).chains == before.chains
        assert (await w.client.call(CLUSTER_CONFIG, Empty())).version == 1
        nursery.cancel_scope.cancel()


async def test_clients_are_listed_dead_or_alive(autojump_clock: MockClock) -> None:
    async with world() as w:
        lease = Lease(w.env, w.client, lambda: RegisterRequest(0, NodeKind.CLIENT, "", "host-a", 77))
        scope = trio.CancelScope()

        async def hold(task_status: trio.TaskStatus[object]) -> None:
            with scope:
                await lease.run(task_status=task_status)

        await w.nursery.start(hold)
        await trio.sleep(20)
        (info,) = (await w.client.call(LIST_CLIENTS, Empty())).clients
        assert (info.client, info.host, info.alive) == (lease.node, "host-a", True)
        scope.cancel()
        await trio.sleep(4)
        (info,) = (await w.client.call(LIST_CLIENTS, Empty())).clients
        assert not info.alive


async def test_random_garbage_hurts_nobody(autojump_clock: MockClock) -> None:
    """Requests whose fields mean nothing are refused one by one; bytes that are no request end their connection."""
    chance = random.Random(7)
    async with world() as w:
        await w.formatted()
        before = w.client.routing

        def number() -> int:
            return chance.choice([0, -1, 1, 101, 1 << 40, -(1 << 62), (1 << 64) - 1, chance.getrandbits(20)])

        for _ in range(200):
            report = TargetReport(number(), number(), chance.choice(list(LocalState)), number(), number(), number())
            for method, request in (
                (HEARTBEAT, HeartbeatRequest(number() or 9, number(), (report,))),
                (
                    REGISTER,
                    RegisterRequest(number(), chance.choice([0, 1, 9, -5, 1 << 60]), "", "", number(), (), (report,)),
                ),
                (GET_ROUTING, GetRoutingRequest(before.version, chance.choice([0, -1, -(1 << 40)]))),
                (FORMAT, FormatRequest(number(), number(), number())),
            ):
                try:
                    await w.rpc.call(ONE, method, request, deadline=trio.current_time() + 1)  # type: ignore[arg-type]
                except FS3Error as error:
                    assert error.code is not Code.INTERNAL, (error, request)
                    assert error.code is not Code.DEADLINE_EXCEEDED, request
        for method_id in (100, 101, 102, 103, 104, 105, 9999):
            connection = await w.env.transport.connect(ONE)
            for body in (b"", b"\xc1", b"\x93\x01\x02\x03", chance.randbytes(50)):
                await connection.send(Frame(Kind.REQUEST, method_id, 0, 1, 1000, body))
            await trio.sleep(0.1)
            await connection.aclose()
        assert w.client.routing.chains == before.chains
        assert {n.id for n in w.client.routing.nodes.values() if n.alive} == {1, 101, 102, 103}


async def test_many_targets_are_placed_apart(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, which here is none: the virtual clock would not wait for it."""
    placed: list[int] = []

    async def run_sync(place: Any, targets: Any, *rest: Any) -> Any:
        placed.append(len(targets))
        await trio.sleep(0.1)
        return place(targets, *rest)

    monkeypatch.setattr("mgmtd.service.PLACE_APART_FROM", 3)
    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    async with world() as w:
        await w.formatted()
        assert placed == [3] and w.states() == [(101, "serving"), (102, "serving"), (103, "serving")]
        await refused(Code.ALREADY_FORMATTED, w.client.call(FORMAT, FormatRequest(3, 1 << 20, 0)))
        assert placed == [3]
