"""The whole cluster in one `trio.run`: the daemons' own code on simulated ports, a virtual clock, one seed for everything.

`simulate(seed, main)` runs one world. Whatever is random in it comes from generators that were seeded with the seed and a
name, and trio's scheduler is seeded too, so that the same seed gives the same run: `World.trace` hashes every message and
event to prove it.
"""

from __future__ import annotations

import contextvars
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import trio

import meta.daemon
import mgmtd.daemon
import storage.daemon
from fs3.api.mgmtd import FORMAT, FormatRequest
from fs3.client.mgmtd import MgmtdClient
from fs3.errors import FS3Error
from fs3.kv.memory import MemoryEngine
from fs3.routing import ChainTarget, PublicState, RoutingInfo
from fs3.rpc.client import RpcClient
from tests.sim.clock import SimClock, cheap_sleeps, deterministic
from tests.sim.disk import Platter
from tests.sim.env import HostClock, SimEnv
from tests.sim.failure import Failure, SimulationError, SimulationFailed
from tests.sim.guard import guarded
from tests.sim.limits import small_limits
from tests.sim.net import Network, SimTransport
from tests.sim.office import Office, watched
from tests.sim.plan import Plan, draw
from tests.sim.rare import POINTS, Rare
from tests.sim.rdma import Fabric, small_bulk
from tests.sim.stop import Stopper
from tests.sim.store import KVPort
from tests.sim.trace import Trace
from tests.sim.witness import Witness, witnessed

process_name: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="-")


@dataclass(frozen=True)
class Shape:
    """A cluster and what is done to it. Times in seconds of virtual time."""

    name: str
    mgmtds: int = 1
    metas: int = 0
    storages: int = 3
    replicas: int = 3
    targets: int = 2
    clients: int = 3
    chunk_size: int = 64 * 1024
    lease_ms: int = 1000
    load_s: float = 10.0
    settle_s: float = 120.0
    fault_every_s: float = 1.0
    faults: tuple[str, ...] = ()
    kv_faults: float = 0.0
    workload: str = "chunks"
    transport: str = "tcp"
    """rdma: between the hosts that have a device, which are most."""
    chunks: int = 5
    think_s: float = 0.0
    """Between two operations of a worker, on average; 0: the seed chooses."""
    scrub_ms: int = 0
    """How long the scrubber takes to verify all chunks of a target; 0: it does not run."""
    watch_office: bool = False
    """Whether it counts how long there is no primary mgmtd. Not where commits are refused by chance: those depose it."""
    canary: str = ""
    rare: bool = True
    """Whether rare branches are taken; those that the seed chooses, and those of `always`."""
    always: tuple[str, ...] = ()
    plan: Plan | None = None
    """What goes wrong; the seed chooses by default."""


Body = Callable[["Process", SimEnv, Callable[[str], None]], Awaitable[None]]


class Process:
    """A daemon or client that can be crashed and started again; each life is one incarnation with ports of its own."""

    def __init__(self, world: World, name: str, body: Body) -> None:
        self.world = world
        self.name = name
        self.alive = False
        self.ready = trio.Event()
        self.lives = 0
        self.supervised = True
        """Whether it is started again when it ends by itself."""
        self.exits = 0
        self._body = body
        self._scope = trio.CancelScope()
        chance = random.Random(f"{world.seed}/{name}/clock")
        self.clock = HostClock(chance.uniform(0, 10_000), 1 + chance.uniform(-0.004, 0.004), int(chance.uniform(-2e9, 2e9)))
        self.chance = chance
        self.unplug: list[Callable[[], None]] = []
        self.transport: SimTransport | None = None

    def start(self) -> None:
        assert not self.alive
        if self.world.over:
            return
        self.lives += 1
        self.alive = True
        self.ready = trio.Event()
        self.unplug = []
        self._scope = trio.CancelScope()
        self.world.trace.note(f"{self.name} starts, life {self.lives}")
        self.world.nursery.start_soon(self._live, self._scope, self.lives)

    async def _live(self, scope: trio.CancelScope, life: int) -> None:
        process_name.set(f"{self.name}.{life}")
        self.transport = transport = self.world.network.host(self.name)
        chance = random.Random(f"{self.world.seed}/{self.name}/{life}")
        env = SimEnv(transport, chance, self.clock, self._rare)
        ended = "ended"
        with scope:
            try:
                await self._body(self, env, self._started(life))
            except* FS3Error as group:
                ended = f"exits: {_first(group)}"
        if self.lives != life or not self.alive:
            return  # it was crashed
        self.world.trace.note(f"{self.name} {ended}")
        self.exits += 1
        self.alive = False
        for unplug in self.unplug:
            unplug()
        transport.unplug()
        if self.supervised and not self.world.over:
            await trio.sleep(self.chance.uniform(0.05, 0.5))
            if self.lives == life and not self.alive and not self.world.over:
                self.start()

    def _rare(self, point: str) -> bool:
        world = self.world
        if not world.stormy or not world.rare.ask(point):
            return False
        world.trace.note(f"{self.name}: {point}")
        return True

    def _started(self, life: int) -> Callable[[str], None]:
        def started(address: str) -> None:
            if self.lives == life:
                self.world.trace.note(f"{self.name} is ready")
                self.ready.set()

        return started

    @property
    def stopped(self) -> bool:
        return self.world.stopper.stopped(f"{self.name}.{self.lives}")

    def crash(self, *, power: bool = False) -> None:
        """kill -9, or power loss of its host: its ports first, so that whatever it still does counts for nothing."""
        if not self.alive:
            return
        self.world.trace.note(f"{self.name} {'loses power' if power else 'is killed'}")
        self.alive = False
        for unplug in self.unplug:
            unplug()
        if self.transport is not None:
            self.transport.unplug(silently=power)
        self._scope.cancel()
        self.resume()

    def quit(self) -> None:
        """SIGTERM."""
        self._scope.cancel()

    def stop(self) -> None:
        """SIGSTOP."""
        self.world.trace.note(f"{self.name} is stopped")
        self.world.stopper.stop(f"{self.name}.{self.lives}")

    def resume(self) -> None:
        """SIGCONT; also for one that was killed since, so that its tasks can end."""
        self.world.stopper.resume(f"{self.name}.{self.lives}")


def _first(group: BaseExceptionGroup[FS3Error]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class World:
    """One cluster and its network."""

    def __init__(self, seed: int, shape: Shape, nursery: trio.Nursery, clock: SimClock, trace: Trace) -> None:
        self.seed = seed
        self.plan = plan = shape.plan or draw(
            random.Random(f"{seed}/{shape.name}/plan"),
            Plan(shape.load_s, shape.clients, 0, shape.kv_faults, shape.always),
            shape.faults,
            shape.fault_every_s,
            shape.lease_ms / 1000,
            POINTS if shape.rare else (),
        )
        self.shape = shape = replace(shape, load_s=plan.load_s, clients=plan.clients, kv_faults=plan.kv_faults)
        self.rare = Rare(seed, plan.rare)
        self.happened: dict[int, str] = {}
        """What each fault of the plan did, in words."""
        self.office = Office(self)
        self.depose_within_s = 0.0  # how long the next commit of the primary mgmtd waits for another one to take over
        self.stop_in_commit_s = 0.0  # for how long the primary mgmtd is stopped in its next commit
        self.kv_cut: dict[str, bool] = {}  # processes that do not reach the store; whether they are not even told
        self.kv_held: set[str] = set()  # lives of processes whose requests to the store are held up
        self.nursery = nursery
        self.trace = trace
        self.over = False
        self.witness = Witness(self.fail)
        self.stopper = Stopper(lambda task: task.context.get(process_name, ""))
        self.error: Exception | None = None
        self.kv_synced = 0  # the version of the store that is durable
        self.kv_slow_s: dict[str, float] = {}  # process -> how long the store takes to answer it, at most
        self._chains: dict[tuple[str, int, int], tuple[ChainTarget, ...]] = {}
        self.stormy = False
        """Whether faults are being injected."""
        self.chance = random.Random(f"{seed}/world")
        self.network = Network(clock, random.Random(f"{seed}/network"), observe=self.trace.message)
        self.fabric = Fabric(self.network, f"{seed}/{shape.name}", shape.workload) if shape.transport == "rdma" else None
        self.kv = MemoryEngine()
        self.processes: dict[str, Process] = {}
        self.platters: dict[str, Platter] = {}
        self.mgmtd_addresses = tuple(f"sim://mgmtd{i}:7000" for i in range(1, shape.mgmtds + 1))
        self.operations = 0
        self.begun = 0
        self.undecided = 0
        """Searches that took too long."""
        self.faults: dict[str, int] = {}
        self.mgmtd: MgmtdClient | None = None  # of the operator
        self.rpc: RpcClient | None = None
        self.env: SimEnv | None = None

    def fail(self, error: Exception) -> None:
        """End this world because of an error that no task can raise."""
        self.error = self.error or error
        self.nursery.cancel_scope.cancel()

    def lost_power(self, name: str) -> None:
        """A storage host that was crashed loses what its disk had not made durable."""
        platter = self.platters[name]
        platter.lose_power()
        self.witness.rules.forget(platter.name)
        if not any(process.alive for process in self.of_kind("storage")):
            self.witness.rules.answers.clear()  # nobody is left who knows

    def add(self, name: str, body: Body) -> Process:
        process = self.processes[name] = Process(self, name, body)
        return process

    def begin(self) -> bool:
        """Whether there may be one more operation."""
        self.begun += 1
        return not self.plan.operations or self.begun <= self.plan.operations

    def of_kind(self, kind: str) -> list[Process]:
        return [process for name, process in self.processes.items() if name.rstrip("0123456789") == kind]

    async def start(self) -> None:
        """Start the daemons, format, and wait until everything serves."""
        shape = self.shape
        for number in range(1, shape.mgmtds + 1):
            self.add(f"mgmtd{number}", _mgmtd(number)).start()
        for number in range(1, shape.storages + 1):
            self.platters[f"storage{number}"] = Platter(random.Random(f"{self.seed}/disk{number}"), f"disk{number}")
            self.add(f"storage{number}", storage_body(number)).start()
        env = self.env = SimEnv(self.network.host("operator"), random.Random(f"{self.seed}/operator"))
        rpc = self.rpc = RpcClient(env, self.nursery)
        admin = self.mgmtd = MgmtdClient(env, rpc, self.mgmtd_addresses)
        await self.nursery.start(admin.run)
        with trio.fail_after(60):
            for process in self.of_kind("storage"):
                await process.ready.wait()
            await admin.call(FORMAT, FormatRequest(shape.replicas, shape.chunk_size, 0), timeout_ms=20_000)
            await self.wait_serving()
            for number in range(1, shape.metas + 1):
                self.add(f"meta{number}", _meta(number)).start()
            for process in self.of_kind("meta"):
                await process.ready.wait()

    def saw(self, info: RoutingInfo) -> None:
        """Somebody learned this routing: a version of a chain stands for one state only, so for one head."""
        self.office.saw(info)
        for chain in info.chains.values():
            known = self._chains.setdefault((info.cluster, chain.id, chain.version), chain.targets)
            if known != chain.targets:
                raise SimulationError(f"chain {chain.id} version {chain.version} is {known} and {chain.targets}")

    def serving(self, routing: RoutingInfo) -> bool:
        chains = routing.chains.values()
        return bool(chains) and all(t.state is PublicState.SERVING for chain in chains for t in chain.targets)

    async def wait_serving(self) -> None:
        assert self.mgmtd is not None
        routing = self.mgmtd.routing
        while not self.serving(routing):
            routing = await self.mgmtd.wait_change(routing.version)


def _mgmtd(number: int) -> Body:
    async def body(process: Process, env: SimEnv, started: Callable[[str], None]) -> None:
        world = process.world
        config = mgmtd.daemon.MgmtdConfig(
            node_id=number,
            listen=f"sim://{process.name}:7000",
            host=process.name,
            lease_ms=world.shape.lease_ms,
            client_lease_ms=3 * world.shape.lease_ms,
        )
        await mgmtd.daemon.run(config, env, started, _kv_port(process))

    return body


def _kv_port(process: Process) -> KVPort:
    world = process.world
    port = KVPort(world, process.name, random.Random(f"{world.seed}/{process.name}/kv{process.lives}"))

    def unplug() -> None:
        port.unplugged = True

    process.unplug.append(unplug)
    return port


def _meta(number: int) -> Body:
    async def body(process: Process, env: SimEnv, started: Callable[[str], None]) -> None:
        config = meta.daemon.MetaConfig(
            node_id=50 + number,
            listen=f"sim://{process.name}:7001",
            host=process.name,
            mgmtd=process.world.mgmtd_addresses,
            session_grace_ms=2000,
        )
        await meta.daemon.run(config, env, started, _kv_port(process))

    return body


def storage_body(number: int) -> Body:
    async def body(process: Process, env: SimEnv, started: Callable[[str], None]) -> None:
        world = process.world
        config = storage.daemon.StorageConfig(
            node_id=100 + number,
            listen=f"sim://{process.name}:7002",
            host=process.name,
            mgmtd=world.mgmtd_addresses,
            data=("disk",),
            targets_per_disk=world.shape.targets,
            reserve_bytes=0,
            scrub_period_ms=world.shape.scrub_ms,
        )
        disk = world.platters[process.name].open()
        process.unplug.append(disk.unplug)
        await storage.daemon.run(config, env, started, lambda path: disk)

    return body


class _Log(logging.Handler):
    """The daemons' log, into the trace. A traceback in it is a bug."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world
        self.tracebacks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        name = process_name.get()
        text = f"{name} {record.levelname.lower()} {record.name}: {record.getMessage()}"
        self._world.trace.say(text)
        if record.exc_info is not None and record.exc_info[1] is not None:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
            self.tracebacks.append(text)


@contextmanager
def _watched(world: World) -> Iterator[None]:
    """While this lasts, the world sees all routing that anybody learns."""
    real = MgmtdClient._take

    def take(self: MgmtdClient, info: RoutingInfo, base: RoutingInfo) -> None:
        world.saw(info)
        real(self, info, base)

    MgmtdClient._take = take  # type: ignore[method-assign]
    try:
        yield
    finally:
        MgmtdClient._take = real  # type: ignore[method-assign]


def simulate(seed: int, shape: Shape, main: Callable[[World], Awaitable[None]], *, verbose: bool = False) -> World:
    """Run one world to its end. Raises SimulationFailed for whatever goes wrong. verbose: keep all messages in words."""
    worlds: list[World] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            world = World(seed, shape, nursery, clock, Trace(verbose=verbose))
            clock.failed = world.fail
            worlds.append(world)
            log = _Log(world)
            root = logging.getLogger("fs3")
            level, propagate = root.level, root.propagate
            root.addHandler(log)
            root.setLevel(logging.INFO)
            root.propagate = False
            try:
                if shape.watch_office:
                    nursery.start_soon(world.office.watch)
                with _watched(world), watched(world.office, process_name.get), witnessed(world.witness):
                    await main(world)
                world.witness.rules.check_answers()
                world.trace.note("done")
            finally:
                world.over = True
                root.removeHandler(log)
                root.setLevel(level)
                root.propagate = propagate
            nursery.cancel_scope.cancel()
            if log.tracebacks:  # also of tasks that were cancelled at the end
                raise SimulationError(log.tracebacks[0])

    async def ended() -> None:
        try:
            await run()
        finally:
            clock.failed = None  # trio itself waits for its own wake-up, which comes through a real socket

    clock = SimClock()
    try:
        with deterministic(seed), guarded(), cheap_sleeps(clock), small_limits(), small_bulk():
            trio.run(ended, clock=clock)
        if worlds[0].error is not None:
            raise worlds[0].error
    except BaseException as error:
        if isinstance(_innermost(error), KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if not worlds:
            raise
        raise SimulationFailed(_failure(worlds[0], error)) from error
    return worlds[0]


def _failure(world: World, error: BaseException) -> Failure:
    shape, trace = world.shape, world.trace
    return Failure(
        world.seed, shape.name, shape.canary, world.plan, _words(error), world.happened, tuple(trace.lines), trace.digest()
    )


def _words(error: BaseException) -> str:
    found = _innermost(error)
    return f"{type(found).__name__}: {found}"


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
