"""Operators at work while clients write and daemons fail: targets come and go, and nobody who reads may notice.

Two more storage nodes than there were at format have free targets. Operators replace, add and drop replicas, move heads,
fill targets anew, drain nodes, pause, cancel and retry, at random. Nothing is thrown away but what the store calls retired,
and in the end every operation ends, every chain is whole, and what left is empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from fs3.api.admin import (
    CONTROL,
    LIST_OPERATIONS,
    NODE_ACTION,
    SUBMIT,
    TARGET_ACTION,
    Control,
    ControlRequest,
    ListOperationsRequest,
    Move,
    NodeAction,
    NodeActionRequest,
    Operation,
    OperationState,
    SubmitRequest,
    TargetAction,
    TargetActionRequest,
)
from fs3.api.common import Method
from fs3.errors import Code, FS3Error
from fs3.kv.keys import key
from fs3.routing import Chain, RoutingInfo, Target
from fs3.wire.codec import decode
from mgmtd.store import TARGET
from storage.disks import Home
from tests.sim import workloads
from tests.sim.cells import CELLS
from tests.sim.checkers import check_linearizable, check_replicas
from tests.sim.cluster import Shape, SimulationError, World, storage_body
from tests.sim.disk import Platter
from tests.sim.rest import storm

MORE_STORAGES = 2
PAUSE_S = 0.1
"""Between two requests, on average."""
REPLICAS_MAX = 4


class Operators:
    """What operators ask for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = random.Random(f"{world.seed}/operators")
        self.asked = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(self.chance.expovariate(1 / PAUSE_S))
            kind = self.chance.choice((*[self._move] * 6, self._resync, self._control, self._drain))
            try:
                await kind(await self._routing())
            except FS3Error as error:
                if error.code is not Code.BAD_PLAN and not error.retryable and error.code is not Code.DEADLINE_EXCEEDED:
                    raise
                self.world.trace.note(f"operators: {error}")

    async def finish(self) -> None:
        """Let everything come to its end."""
        world = self.world
        while True:
            try:
                routing = await self._routing()
                for node in routing.nodes.values():
                    if node.drained:
                        await self._ask(NODE_ACTION, NodeActionRequest(node.id, NodeAction.UNDRAIN))
                operations = await self._operations()
                for operation in operations:
                    if operation.state is OperationState.PAUSED:
                        await self._ask(CONTROL, ControlRequest(operation.id, Control.RESUME))
                under_way = [o for o in operations if o.state is OperationState.RUNNING or o.counts[1]]
                unsettled = [t for t in routing.targets.values() if t.retired or t.leaving or (t.used and not t.chain)]
                if not under_way and not unsettled:
                    break
            except FS3Error as error:
                world.trace.note(f"operators: {error}")
            await trio.sleep(0.5)
        done = sum([operation.counts[2] for operation in await self._operations()])
        world.trace.note(f"operators: {self.asked} requests, {done} moves done")
        world.faults["moves"] = done

    def check(self, routing: RoutingInfo) -> None:
        for chain in routing.chains.values():
            targets = [routing.targets[entry.target] for entry in chain.targets]
            if len({target.node for target in targets}) < len(targets):
                raise SimulationError(f"two replicas of {chain} are on one node")
            if any(target.chain != chain.id for target in targets):
                raise SimulationError(f"{chain} has targets of others: {targets}")

    async def _routing(self) -> RoutingInfo:
        assert self.world.mgmtd is not None
        return await self.world.mgmtd.refresh(self.world.mgmtd.routing.version, timeout_ms=100)

    async def _operations(self) -> tuple[Operation, ...]:
        assert self.world.mgmtd is not None
        return (await self.world.mgmtd.call(LIST_OPERATIONS, ListOperationsRequest(1000), timeout_ms=2000)).operations

    async def _ask(self, method: Method[Any, Any], request: object) -> Any:
        assert self.world.mgmtd is not None
        self.asked += 1
        self.world.trace.note(f"operators ask: {request}")
        return await self.world.mgmtd.call(method, request, timeout_ms=3000)

    async def _move(self, routing: RoutingInfo) -> None:
        chance = self.chance
        moves = []
        chains = sorted(routing.chains.values(), key=lambda chain: chain.id)
        for chain in chance.sample(chains, min(len(chains), chance.randint(1, 2))):
            move = self._move_of(routing, chain)
            if move is not None:
                moves.append(move)
        if moves:
            token = chance.getrandbits(60) | 1
            request = SubmitRequest(token, "random", "a plan", tuple(moves), chance.randint(1, 3))
            for _ in range(chance.choice((1, 1, 2))):  # who has no answer asks again
                await self._ask(SUBMIT, request)

    def _move_of(self, routing: RoutingInfo, chain: Chain) -> Move | None:
        chance = self.chance
        members = [entry.target for entry in chain.targets]
        nodes = {routing.targets[target].node for target in members}
        free = [t.id for t in routing.targets.values() if not t.chain and not t.retired and t.node not in nodes]
        add = chance.choice(free) if free and len(members) < REPLICAS_MAX and chance.random() < 0.8 else 0
        drop = chance.choice(members) if (add or len(members) > 2) and chance.random() < 0.8 else 0
        after = [target for target in [*members, add] if target not in (0, drop)]
        head = chance.choice(after) if chance.random() < 0.3 else 0
        return Move(chain.id, add, drop, head) if add or drop or head else None

    async def _resync(self, routing: RoutingInfo) -> None:
        chain = self.chance.choice(sorted(routing.chains.values(), key=lambda c: c.id))
        if len(chain.serving()) > 1:
            target = self.chance.choice(chain.serving())
            await self._ask(TARGET_ACTION, TargetActionRequest(target, TargetAction.RESYNC))

    async def _control(self, routing: RoutingInfo) -> None:
        operations = await self._operations()
        if operations:
            control = self.chance.choice((Control.PAUSE, Control.RESUME, Control.CANCEL, Control.RETRY))
            await self._ask(CONTROL, ControlRequest(self.chance.choice(operations[:3]).id, control))

    async def _drain(self, routing: RoutingInfo) -> None:
        nodes = sorted({target.node for target in routing.targets.values()})
        node = self.chance.choice(nodes)
        await self._ask(NODE_ACTION, NodeActionRequest(node, NodeAction.DRAIN))
        await trio.sleep(self.chance.random())
        await self._ask(NODE_ACTION, NodeActionRequest(node, NodeAction.UNDRAIN))


@contextmanager
def watched_emptying(world: World) -> Iterator[None]:
    """While this lasts, nothing may be thrown away that the store of mgmtd does not say is retired."""
    real = Home.forget

    def forget(self: Home, target: int) -> None:
        history = world.kv._history.get(key(TARGET, target), [])
        raw = history[-1][1] if history else None
        stored = decode(Target, raw) if raw is not None else None
        if not self.disk.closed:  # type: ignore[attr-defined]  # else its process is dead
            if stored is None or stored.chain or not stored.retired:
                world.fail(SimulationError(f"target {target} is emptied, and mgmtd's store says {stored}"))
            world.witness.rules.committed.pop(f"{self.disk.name}/{self.folder(target)}", None)
        real(self, target)

    Home.forget = forget  # type: ignore[method-assign]
    try:
        yield
    finally:
        Home.forget = real  # type: ignore[method-assign]


async def operators(world: World) -> None:
    await world.start()
    first = world.shape.storages + 1
    for number in range(first, first + MORE_STORAGES):
        world.platters[f"storage{number}"] = Platter(random.Random(f"{world.seed}/disk{number}"), f"disk{number}")
        world.add(f"storage{number}", storage_body(number)).start()
        await world.processes[f"storage{number}"].ready.wait()
    at_work = Operators(world)
    load = _Load(world, at_work)
    assert world.env is not None and world.rpc is not None and world.mgmtd is not None

    with watched_emptying(world):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_within, load.scope, at_work.run)
            await storm(world, load)
        at_work.check(world.mgmtd.routing)
        storage = workloads.StorageClient(world.env, world.rpc, world.mgmtd, world.env.client_id(), "operator")
        for chain, inode in load.registers():
            deadline = world.env.monotonic() + 20
            if not await load.read(storage, 0, chain, inode, 0, len(load.bounds) - 1, deadline):
                raise SimulationError(f"chunk {inode} cannot be read after healing")
        world.undecided += not check_linearizable(load.history, CELLS)
        await check_replicas(world)


async def _within(scope: trio.CancelScope, run: Callable[[], Any]) -> None:
    with scope:
        await run()


class _Load(workloads.ChunkLoad):
    """Over when the operators' work is, too."""

    def __init__(self, world: World, operators: Operators) -> None:
        super().__init__(world)
        self.operators = operators
        self.scope = trio.CancelScope()  # ends what operators ask for

    async def finished(self) -> None:
        self.scope.cancel()
        await super().finished()
        await self.operators.finish()


SHAPES = (
    Shape(
        "operators",
        mgmtds=2,
        storages=3,
        replicas=3,
        targets=2,
        workload="operators",
        settle_s=30,
        faults=("crash", "crash", "crash_mgmtd", "depose", "partition", "cut", "hang", "slow", "split"),
        kv_faults=0.01,
    ),
    Shape(
        "operators-hot",
        storages=3,
        replicas=2,
        targets=1,
        chunks=2,
        think_s=0.02,
        load_s=8,
        workload="operators",
        settle_s=30,
        faults=("slow", "hang", "cut", "split"),
        always=("client.routing.late",),
    ),
)
SCENARIOS = {"operators": operators}
