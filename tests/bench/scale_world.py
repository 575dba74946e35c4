"""Several real mgmtd daemons over a simulated network and store, whose time passes with the CPU that they take."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from contextvars import ContextVar

import trio

from fs3.errors import FS3Error
from fs3.kv.memory import MemoryEngine, Operation
from mgmtd import daemon, service
from tests.sim.clock import SimClock, deterministic
from tests.sim.env import SimEnv
from tests.sim.net import Network, SimTransport, _Wire

MESSAGE_S = 20e-6
"""CPU that the kernel takes for one message over TCP, sent or received, and trio to hear of it, which a simulated one does
without. Measured with real sockets: see docs/scale.md."""
STORE_S = 0.003
"""What a request to the store takes, as one to FoundationDB would."""

_OWNER: ContextVar[str] = ContextVar("owner", default="")


class Cores(trio.abc.Instrument):
    """A core for each mgmtd: its tasks' CPU time is measured, and its messages leave and arrive when the core is free."""

    def __init__(self, clock: SimClock, message_s: float) -> None:
        self.message_s = message_s
        self.cpu_s: dict[str, float] = {}
        self._clock = clock
        self._free_at: dict[str, float] = {}
        self._running = ""
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._running = task.context.get(_OWNER, "")
        if self._running:
            self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._running:
            self.charge(self._running, time.thread_time() - self._began)
            self._running = ""

    def charge(self, owner: str, used_s: float) -> None:
        self.cpu_s[owner] = self.cpu_s.get(owner, 0.0) + used_s
        self._free_at[owner] = max(self._free_at.get(owner, 0.0), self._clock.now) + used_s

    def busy_s(self, owner: str) -> float:
        """How long its core has work for."""
        left = max(0.0, self._free_at.get(owner, 0.0) - self._clock.now)
        return left + (time.thread_time() - self._began if owner == self._running else 0.0)


class CoreNetwork(Network):
    """A network on which the mgmtds are as fast as their cores."""

    def __init__(self, clock: SimClock, chance: random.Random, cores: Cores) -> None:
        super().__init__(clock, chance)
        self.cores = cores
        self.bytes_out: dict[str, int] = {}
        self._queues: dict[str, list[Callable[[], None]]] = {}
        self._plain_at = clock.at
        self.at = self._at

    def delay_s(self, source: str, destination: str, size: int) -> float:
        delay_s = super().delay_s(source, destination, size)
        if source in self.cores.cpu_s:
            self.bytes_out[source] = self.bytes_out.get(source, 0) + size
            self.cores.charge(source, self.cores.message_s)
            delay_s += self.cores.busy_s(source)
        return delay_s

    def _at(self, when: float, action: Callable[[], None]) -> None:
        wire = getattr(action, "__self__", None)
        if isinstance(wire, _Wire) and wire.destination in self.cores.cpu_s:
            self._plain_at(when, lambda: self._arrive(wire.destination, action))
        else:
            self._plain_at(when, action)

    def _arrive(self, host: str, action: Callable[[], None]) -> None:
        """What comes while the core is busy is taken in together, as by one look at all sockets."""
        queue = self._queues.setdefault(host, [])
        queue.append(action)
        if len(queue) == 1:
            self._drain(host)

    def _drain(self, host: str) -> None:
        busy_s = self.cores.busy_s(host)
        if busy_s > 0:
            self._plain_at(self.clock.now + busy_s, lambda: self._drain(host))
            return
        queue, self._queues[host] = self._queues[host], []
        for action in queue:
            action()
        self.cores.charge(host, len(queue) * self.cores.message_s)


class Mgmtd:
    """One daemon on a host of its own."""

    def __init__(self, world: World, number: int) -> None:
        self.name = f"mgmtd{number}"
        self.address = f"sim://{self.name}:7000"
        self._world = world
        self._number = number
        self._scope = trio.CancelScope()
        self._transport = SimTransport(world.network, self.name)
        self.env = SimEnv(self._transport, random.Random(number))

    async def start(self) -> None:
        """Returns once it is primary, or knows who is."""
        ready = trio.Event()

        async def body() -> None:
            _OWNER.set(self.name)
            self._world.cores.charge(self.name, 0.0)
            config = daemon.MgmtdConfig(node_id=self._number, listen=self.address, host=self.name)
            try:
                with self._scope:
                    await daemon.run(config, self.env, lambda _: ready.set(), self._world.engine)
            except* FS3Error:
                assert self._transport.unplugged

        self._world.nursery.start_soon(body)
        await ready.wait()

    def crash(self) -> None:
        """Its process is killed."""
        self._transport.unplug()
        self._scope.cancel()

    @property
    def cpu_s(self) -> float:
        return self._world.cores.cpu_s[self.name]

    @property
    def bytes_out(self) -> int:
        return self._world.network.bytes_out.get(self.name, 0)


class World:
    """The clock, the network, the store, the daemons."""

    def __init__(self, clock: SimClock, nursery: trio.Nursery, cores: Cores) -> None:
        self.clock = clock
        self.nursery = nursery
        self.cores = cores
        self.network = CoreNetwork(clock, random.Random(2), cores)
        self.engine = MemoryEngine(lambda: clock.now, self._delay)
        self.commits = 0
        self.mgmtds: list[Mgmtd] = []

    async def _delay(self, operation: Operation) -> None:
        self.commits += operation is Operation.COMMIT
        await trio.sleep(STORE_S)

    async def start_mgmtds(self, count: int) -> None:
        for number in range(1, count + 1):
            self.mgmtds.append(Mgmtd(self, number))
            await self.mgmtds[-1].start()


def simulate(main: Callable[[World], Awaitable[None]], cpu: bool) -> None:
    """Run main in a world of its own. cpu: time passes with CPU time."""
    clock = SimClock()
    cores = Cores(clock, MESSAGE_S if cpu else 0.0)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await main(World(clock, nursery, cores))
            nursery.cancel_scope.cancel()

    apart_from, service.PLACE_APART_FROM = service.PLACE_APART_FROM, sys.maxsize  # a thread's CPU time would not count
    try:
        # Where CPU time counts, garbage is collected as in a daemon, and no two runs are the same anyway.
        with nullcontext() if cpu else deterministic(1):
            trio.run(run, clock=clock, instruments=[cores] if cpu else [])
    finally:
        service.PLACE_APART_FROM = apart_from
