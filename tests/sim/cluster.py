"""The whole cluster in one `trio.run`: the daemons' own code on simulated ports, a virtual clock, one seed for everything.

`simulate(seed, main)` runs one world. Whatever is random in it comes from generators that were seeded with the seed and a
name, and trio's scheduler is seeded too, so that the same seed gives the same run: `World.trace` hashes every message and
event to prove it.
"""

from __future__ import annotations

import contextvars
import gc
import hashlib
import logging
import random
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

import meta.daemon
import mgmtd.daemon
import storage.daemon
from fs3.api.mgmtd import FORMAT, FormatRequest
from fs3.client.mgmtd import MgmtdClient
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.kv.base import KVEngine, Txn
from fs3.kv.memory import MemoryEngine
from fs3.routing import ChainTarget, PublicState, RoutingInfo
from fs3.rpc.client import RpcClient
from fs3.transport.base import Transport
from fs3.wire.frame import Frame
from tests.sim.clock import SimClock, cheap_sleeps
from tests.sim.disk import Platter
from tests.sim.guard import guarded
from tests.sim.net import Network, SimTransport

EPOCH_NS = 1_700_000_000_000_000_000
LOG_LINES = 400
_EVENT = struct.Struct("<dBHQII")

process_name: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="-")


class SimulationError(Exception):
    """Something went wrong that never may."""


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
    chunks: int = 5
    think_s: float = 0.0
    """Between two operations of a worker, on average; 0: the seed chooses."""
    canary: str = ""


class Trace:
    """A hash of all that happened, and the last of it in words."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.verbose = False

    def message(self, what: str, source: str, destination: str, frame: Frame | None, data: bytes) -> None:
        if frame is None:
            return
        self._hash.update(
            _EVENT.pack(
                trio.current_time(), frame.kind, frame.method, frame.request_id, zlib.crc32(frame.body), zlib.crc32(data)
            )
        )
        if self.verbose:
            words = f"{frame.kind.name.lower()} {frame.method} #{frame.request_id} {len(data)} bytes {frame.body[:160]!r}"
            self.say(f"{source} -> {destination}: {words}")

    def note(self, text: str) -> None:
        """An event, for the hash and for people."""
        line = f"{trio.current_time():10.6f} {text}"
        self._hash.update(line.encode())
        self.lines.append(line)

    def say(self, text: str) -> None:
        """For people only."""
        self.lines.append(f"{trio.current_time():10.6f} {text}")

    def digest(self) -> str:
        return self._hash.hexdigest()


class SimEnv(Env):
    """The world of one incarnation of a process: its host's clocks run a little wrong."""

    def __init__(self, transport: Transport, chance: random.Random, offset_s: float, rate: float, skew_ns: int) -> None:
        super().__init__(transport, chance)
        self._offset_s = offset_s
        self._rate = rate
        self._skew_ns = skew_ns

    def monotonic(self) -> float:
        return self._offset_s + self._rate * trio.current_time()

    def wall_ns(self) -> int:
        return EPOCH_NS + self._skew_ns + int(trio.current_time() * 1e9)


class KVPort(KVEngine):
    """The shared store as one incarnation of a process sees it."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        self._engine = world.kv
        self._world = world
        self._name = name
        self.chance = chance
        self.unplugged = False

    def transaction(self) -> Txn:
        return _PortTxn(self, self._engine.transaction())

    async def step(self) -> None:
        if self.unplugged:
            await trio.sleep(0.5)
            raise FS3Error(Code.KV_UNAVAILABLE, "unplugged")
        slow_s = self._world.kv_slow_s.get(self._name, 0.0)
        if slow_s:
            await trio.sleep(self.chance.random() * slow_s)
        if self.chance.random() < 0.2:
            await trio.sleep(self.chance.expovariate(2000))
            if self.unplugged:
                raise FS3Error(Code.KV_UNAVAILABLE, "unplugged")

    def fails(self) -> bool:
        return self._world.stormy and self.chance.random() < self._world.shape.kv_faults

    async def sync(self) -> None:
        await self.step()

    async def aclose(self) -> None:
        pass


class _PortTxn(Txn):
    def __init__(self, port: KVPort, inner: Txn) -> None:
        self._port = port
        self._inner = inner
        self.set = inner.set  # type: ignore[method-assign]
        self.clear = inner.clear  # type: ignore[method-assign]
        self.clear_range = inner.clear_range  # type: ignore[method-assign]
        self.atomic_add = inner.atomic_add  # type: ignore[method-assign]
        self.add_read_conflict_range = inner.add_read_conflict_range  # type: ignore[method-assign]
        self.add_write_conflict_range = inner.add_write_conflict_range  # type: ignore[method-assign]
        self.reset = inner.reset  # type: ignore[method-assign]

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        await self._port.step()
        return await self._inner.get(key, snapshot=snapshot)

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        await self._port.step()
        return await self._inner.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot)

    def set(self, key: bytes, value: bytes) -> None: ...
    def clear(self, key: bytes) -> None: ...
    def clear_range(self, begin: bytes, end: bytes) -> None: ...
    def atomic_add(self, key: bytes, delta: int) -> None: ...
    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None: ...
    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None: ...
    def reset(self) -> None: ...

    async def commit(self) -> None:
        port = self._port
        await port.step()
        if port.fails():
            kind = port.chance.randrange(3)
            if kind == 0:
                raise FS3Error(Code.CONFLICT, "injected")
            if kind == 1:
                raise FS3Error(Code.COMMIT_UNKNOWN, "injected, not applied")
            await self._inner.commit()
            raise FS3Error(Code.COMMIT_UNKNOWN, "injected, applied")
        await self._inner.commit()
        await port.step()  # a crash here: it is done, and nobody was told


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
        self._clock = (chance.uniform(0, 10_000), 1 + chance.uniform(-0.004, 0.004), int(chance.uniform(-2e9, 2e9)))
        self.chance = chance
        self.unplug: list[Callable[[], None]] = []
        self.transport: SimTransport | None = None

    def start(self) -> None:
        assert not self.alive
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
        env = SimEnv(transport, random.Random(f"{self.world.seed}/{self.name}/{life}"), *self._clock)
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

    def _started(self, life: int) -> Callable[[str], None]:
        def started(address: str) -> None:
            if self.lives == life:
                self.world.trace.note(f"{self.name} is ready")
                self.ready.set()

        return started

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


def _first(group: BaseExceptionGroup[FS3Error]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class World:
    """One cluster and its network."""

    def __init__(self, seed: int, shape: Shape, nursery: trio.Nursery, clock: SimClock) -> None:
        self.seed = seed
        self.shape = shape
        self.nursery = nursery
        self.trace = Trace()
        self.over = False
        self.error: Exception | None = None
        self.kv_slow_s: dict[str, float] = {}  # process -> how long the store takes to answer it, at most
        self._chains: dict[tuple[str, int, int], tuple[ChainTarget, ...]] = {}
        self.stormy = False
        """Whether faults are being injected."""
        self.chance = random.Random(f"{seed}/world")
        self.network = Network(clock, random.Random(f"{seed}/network"), observe=self.trace.message)
        self.kv = MemoryEngine()
        self.processes: dict[str, Process] = {}
        self.platters: dict[str, Platter] = {}
        self.mgmtd_addresses = tuple(f"sim://mgmtd{i}:7000" for i in range(1, shape.mgmtds + 1))
        self.operations = 0
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

    def add(self, name: str, body: Body) -> Process:
        process = self.processes[name] = Process(self, name, body)
        return process

    def of_kind(self, kind: str) -> list[Process]:
        return [process for name, process in self.processes.items() if name.rstrip("0123456789") == kind]

    async def start(self) -> None:
        """Start the daemons, format, and wait until everything serves."""
        shape = self.shape
        for number in range(1, shape.mgmtds + 1):
            self.add(f"mgmtd{number}", _mgmtd(number)).start()
        for number in range(1, shape.storages + 1):
            self.platters[f"storage{number}"] = Platter(random.Random(f"{self.seed}/disk{number}"), f"disk{number}")
            self.add(f"storage{number}", _storage(number)).start()
        env = self.env = SimEnv(self.network.host("operator"), random.Random(f"{self.seed}/operator"), 0, 1, 0)
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


def _storage(number: int) -> Body:
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

    def take(self: MgmtdClient, info: RoutingInfo) -> None:
        world.saw(info)
        real(self, info)

    MgmtdClient._take = take  # type: ignore[method-assign]
    try:
        yield
    finally:
        MgmtdClient._take = real  # type: ignore[method-assign]


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seeded scheduling, and no garbage collection whose moment depends on the process's past."""
    runner = trio._core._run
    before = runner._ALLOW_DETERMINISTIC_SCHEDULING
    collecting = gc.isenabled()
    runner._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    state = runner._r.getstate()
    runner._r.seed(seed)
    gc.disable()
    try:
        yield
    finally:
        runner._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        runner._r.setstate(state)
        if collecting:
            gc.enable()


def simulate(seed: int, shape: Shape, main: Callable[[World], Awaitable[None]], *, verbose: bool = False) -> World:
    """Run one world to its end. Raises SimulationError with the trace's tail for whatever goes wrong."""
    worlds: list[World] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            world = World(seed, shape, nursery, clock)
            clock.failed = world.fail
            world.trace.verbose = verbose
            worlds.append(world)
            log = _Log(world)
            root = logging.getLogger("fs3")
            level, propagate = root.level, root.propagate
            root.addHandler(log)
            root.setLevel(logging.INFO)
            root.propagate = False
            try:
                with _watched(world):
                    await main(world)
                world.trace.note("done")
            finally:
                world.over = True
                root.removeHandler(log)
                root.setLevel(level)
                root.propagate = propagate
            nursery.cancel_scope.cancel()
            if log.tracebacks:  # also of tasks that were cancelled at the end
                raise SimulationError(log.tracebacks[0])

    clock = SimClock()
    try:
        with _deterministic(seed), guarded(), cheap_sleeps(clock):
            trio.run(run, clock=clock)
        if worlds[0].error is not None:
            raise worlds[0].error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or not worlds:
            raise
        tail = "\n".join(worlds[0].trace.lines)
        failure = SimulationError(f"seed {seed}, shape {shape.name}: {_words(error)}\n{tail}")
        raise failure from error
    finally:
        gc.collect()
    return worlds[0]


def _words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
