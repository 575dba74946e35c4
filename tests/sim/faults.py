"""What goes wrong in a simulation: drawn from the seed, and healed at the end."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from tests.sim.cluster import Process, World


class Faults:
    """Injects the shape's kinds of faults for a while; heal() undoes all that can be undone."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = random.Random(f"{world.seed}/faults")
        self.stopped = False
        self._undo: dict[int, Callable[[], None]] = {}
        self._count = 0
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "crash": self.crash,
            "crash_many": self.crash_many,
            "crash_mgmtd": lambda: self._crash_one("mgmtd"),
            "crash_meta": lambda: self._crash_one("meta"),
            "crash_client": lambda: self._crash_one("client"),
            "crash_mount": lambda: self._crash_one("mount"),
            "partition": self.partition,
            "isolate": self.isolate,
            "split": self.split,
            "cut": self.cut,
            "slow": self.slow,
            "hang": self.hang,
            "late": self.late,
            "kv_slow": self.kv_slow,
            "disk_error": self.disk_error,
            "disk_slow": self.disk_slow,
            "full": self.full,
            "power": self.power,
            "bit_flip": self.bit_flip,
        }

    async def run(self) -> None:
        """Until cancelled, or stopped by heal()."""
        shape = self.world.shape
        self.world.stormy = True
        if not shape.faults:
            return
        while not self.stopped:
            await trio.sleep(self.chance.expovariate(1 / shape.fault_every_s))
            if self.stopped:
                return
            kind = self.chance.choice(shape.faults)
            self.world.faults[kind] = self.world.faults.get(kind, 0) + 1
            await self._kinds[kind]()

    def heal(self) -> None:
        """End all faults; what is down is started again."""
        self.stopped = True
        self.world.stormy = False
        self.world.trace.note("healing")
        for number in sorted(self._undo):
            self._undo.pop(number)()
        for process in self.world.processes.values():
            if not process.alive and process.supervised:
                process.start()

    def _for_a_while(self, what: str, seconds: float, undo: Callable[[], None]) -> None:
        """Undo something later, or at the healing."""
        self.world.trace.note(f"fault: {what} for {seconds:.3f} s")
        self._count += 1
        number = self._count
        self._undo[number] = undo

        def end() -> None:
            action = self._undo.pop(number, None)
            if action is not None:
                self.world.trace.note(f"fault over: {what}")
                action()

        self.world.network.at(trio.current_time() + seconds, end)

    def _duration_s(self) -> float:
        """Often shorter than a lease, often longer."""
        return self.chance.choice((0.02, 0.3, 1.0, 3.0)) * self.chance.uniform(0.5, 2)

    def _pick(self, *kinds: str) -> Process | None:
        found = [process for kind in kinds for process in self.world.of_kind(kind)]
        return self.chance.choice(found) if found else None

    # Processes

    async def _kill(self, process: Process, power: bool = False) -> None:
        if not process.alive:
            return
        process.crash(power=power)
        if power:
            platter = self.world.platters.get(process.name)
            if platter is not None:
                platter.lose_power()

        def restart() -> None:
            if not process.alive and process.supervised:
                process.start()

        self._for_a_while(f"{process.name} is down", self._duration_s(), restart)

    async def _crash_one(self, kind: str) -> None:
        process = self._pick(kind)
        if process is not None:
            await self._kill(process)

    async def crash(self) -> None:
        await self._crash_one("storage")

    async def crash_many(self) -> None:
        """Several storage daemons at once, perhaps all of them."""
        for process in self.world.of_kind("storage"):
            if self.chance.random() < 0.7:
                await self._kill(process)

    async def power(self) -> None:
        """One storage host loses power, while no other is down."""
        storages = self.world.of_kind("storage")
        routing = self.world.mgmtd.routing if self.world.mgmtd is not None else None
        if routing is not None and self.world.serving(routing) and all(process.alive for process in storages):
            await self._kill(self.chance.choice(storages), power=True)

    # The network

    def _hosts(self) -> list[str]:
        return list(self.world.processes)

    async def partition(self) -> None:
        """Two hosts, or two halves, do not hear each other; perhaps in one direction only."""
        hosts = self._hosts()
        self.chance.shuffle(hosts)
        at = 1 if self.chance.random() < 0.5 else self.chance.randrange(1, len(hosts))
        left, right = hosts[:at], hosts[at:]
        if self.chance.random() < 0.4:
            right = right[:1]
        there, back = self.chance.choice(((True, True), (True, False), (False, True)))
        pairs = [(a, b) for a in left for b in right] if there else []
        pairs += [(b, a) for a in left for b in right] if back else []
        self._block(f"partition of {left} from {right} {there, back}", pairs)

    async def isolate(self) -> None:
        """A storage daemon and mgmtd do not hear each other, while clients hear both."""
        process = self._pick("storage")
        assert process is not None
        pairs = []
        for other in self.world.of_kind("mgmtd"):
            pairs += [(process.name, other.name), (other.name, process.name)]
        self._block(f"{process.name} is isolated from mgmtd", pairs)

    async def split(self) -> None:
        """A storage daemon or two, with a few clients, are cut off from all the rest for longer than a lease."""
        storages, clients = self.world.of_kind("storage"), self.world.of_kind("client")
        away = self.chance.sample(storages, self.chance.randint(1, max(1, len(storages) // 2)))
        away += self.chance.sample(clients, len(clients) // 2)
        left = [process.name for process in away]
        right = [host for host in self._hosts() if host not in left]
        pairs = [pair for a in left for b in right for pair in ((a, b), (b, a))]
        self._block(f"{left} are split off", pairs, self.chance.uniform(1, 5) * self.world.shape.lease_ms / 1000)

    def _block(self, what: str, pairs: list[tuple[str, str]], seconds: float = 0) -> None:
        network = self.world.network
        for source, destination in pairs:
            network.block(source, destination)

        def heal() -> None:
            for source, destination in pairs:
                network.unblock(source, destination)

        self._for_a_while(what, seconds or self._duration_s(), heal)

    async def cut(self) -> None:
        hosts = self._hosts()
        a, b = self.chance.sample(hosts, 2)
        self.world.trace.note(f"fault: cut {a} - {b}")
        self.world.network.cut(a, b)

    async def slow(self) -> None:
        process = self.chance.choice(list(self.world.processes.values()))
        network = self.world.network
        network.slow[process.name] = self.chance.choice((10.0, 100.0, 1000.0))
        self._for_a_while(f"{process.name} is slow", self._duration_s(), lambda: _drop(network.slow, process.name))

    async def hang(self) -> None:
        """A process does not react: nothing gets in or out, though its own clock goes on."""
        process = self.chance.choice(list(self.world.processes.values()))
        others = [host for host in self._hosts() if host != process.name]
        pairs = [(process.name, host) for host in others] + [(host, process.name) for host in others]
        self._block(f"{process.name} hangs", pairs)

    async def late(self) -> None:
        """What a meta daemon sends to the storage daemons arrives long after it gave up waiting, and another took over."""
        process = self._pick("meta")
        assert process is not None
        weather = self.world.network.weather
        weather.patience_min_s = weather.patience_max_s = 60.0
        pairs = [(process.name, other.name) for other in self.world.of_kind("storage")]
        self._block(f"{process.name} is cut off from storage", pairs, self.chance.uniform(13, 25))

    async def kv_slow(self) -> None:
        """The store answers a mgmtd or meta daemon so late that it may have lost its lease by then."""
        process = self._pick("mgmtd", "meta")
        assert process is not None
        slow_s = self.world.kv_slow_s
        slow_s[process.name] = self.chance.choice((0.1, 0.5, 2.0))
        self._for_a_while(f"the store is slow for {process.name}", self._duration_s(), lambda: _drop(slow_s, process.name))

    # Disks

    async def disk_error(self) -> None:
        """A disk errs. Its daemon gives up its targets; an operator starts it again later."""
        process = self._pick("storage")
        assert process is not None
        platter = self.world.platters[process.name]
        platter.errors = self.chance.choice((0.01, 0.2, 1.0))

        def repair() -> None:
            platter.errors = 0.0
            process.crash()
            process.start()

        self._for_a_while(f"the disk of {process.name} errs", self._duration_s(), repair)

    async def disk_slow(self) -> None:
        process = self._pick("storage")
        assert process is not None
        wear = self.world.platters[process.name].wear
        before = wear.spike, wear.spike_s
        wear.spike, wear.spike_s = 0.3, 0.5

        def over() -> None:
            wear.spike, wear.spike_s = before

        self._for_a_while(f"the disk of {process.name} is slow", self._duration_s(), over)

    async def full(self) -> None:
        process = self._pick("storage")
        assert process is not None
        platter = self.world.platters[process.name]
        platter.full = True

        def room() -> None:
            platter.full = False

        self._for_a_while(f"the disk of {process.name} is full", self._duration_s(), room)

    async def bit_flip(self) -> None:
        process = self._pick("storage")
        assert process is not None
        where = self.world.platters[process.name].flip_bit()
        if where:
            self.world.trace.note(f"fault: bit flip in {where}")


def _drop(into: dict[str, float], name: str) -> None:
    into.pop(name, None)
