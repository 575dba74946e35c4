"""Makes happen what a plan says goes wrong, and heals it at the end."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import trio

from tests.sim.cluster import Process, World
from tests.sim.media import Media
from tests.sim.office import OfficeFaults
from tests.sim.plan import Fault

DRIFT_MAX = 0.1
"""How wrong a host's monotonic clock may run. A node stops serving after half the lease by its own clock, and is called dead
after the whole by mgmtd's, so leases stand this and more; see clock_broken() for what they do not stand."""


class Faults:
    """Carries out the world's plan; heal() undoes all that can be undone.

    Each kind is a method that gets its fault and a chance of that fault's own: what one does depends on no other's draws.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.stopped = False
        self._undo: dict[int, Callable[[], None]] = {}
        self._count = 0
        self._others = Media(self).kinds | OfficeFaults(self).kinds
        self._number = 0  # of the fault that is being carried out
        self._kinds: dict[str, Callable[[Fault, Random], object]] = {
            "crash": lambda fault, _: self.kill(fault, self.pick(fault, "storage")),
            "crash_many": self.crash_many,
            "crash_mgmtd": lambda fault, _: self.kill(fault, self.pick(fault, "mgmtd")),
            "crash_meta": lambda fault, _: self.kill(fault, self.pick(fault, "meta")),
            "crash_client": lambda fault, _: self.kill(fault, self.pick(fault, "client")),
            "crash_mount": lambda fault, _: self.kill(fault, self.pick(fault, "mount")),
            "partition": self.partition,
            "isolate": self.isolate,
            "split": self.split,
            "cut": self.cut,
            "slow": self.slow,
            "hang": self.hang,
            "late": self.late,
            "kv_slow": self.kv_slow,
            "depose": self.depose,
            "clock_jump": self.clock_jump,
            "clock_drift": self.clock_drift,
            "clock_broken": self.clock_broken,
            "disk_error": self.disk_error,
            "disk_slow": self.disk_slow,
            "full": self.full,
        }

    async def run(self) -> None:
        """Until all faults of the plan have happened, or heal()."""
        world = self.world
        world.stormy = True
        began = trio.current_time()
        for number, fault in enumerate(world.plan.faults):
            await trio.sleep_until(began + fault.at_s)
            if self.stopped:
                return
            world.faults[fault.kind] = world.faults.get(fault.kind, 0) + 1
            self._number = number
            carry_out = self._kinds.get(fault.kind) or self._others[fault.kind]
            carry_out(fault, Random(fault.subject))

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

    def tell(self, what: str) -> None:
        """Say what the fault that is being carried out does."""
        self.world.trace.note(f"fault: {what}")
        before = self.world.happened.get(self._number)
        self.world.happened[self._number] = f"{before}; {what}" if before else what

    def for_a_while(self, what: str, seconds: float, undo: Callable[[], None]) -> None:
        """Undo something later, or at the healing."""
        self.tell(what)
        self._count += 1
        number = self._count
        self._undo[number] = undo

        def end() -> None:
            action = self._undo.pop(number, None)
            if action is not None:
                self.world.trace.note(f"fault over: {what}")
                action()

        self.world.network.at(trio.current_time() + seconds, end)

    def pick(self, fault: Fault, *kinds: str) -> Process:
        """Whom a fault meets."""
        found = [process for kind in kinds for process in self.world.of_kind(kind)]
        return found[fault.subject % len(found)]

    # Processes

    def kill(self, fault: Fault, process: Process, power: bool = False) -> None:
        if not process.alive:
            return
        process.crash(power=power)
        if power:
            self.world.lost_power(process.name)

        def restart() -> None:
            if not process.alive and process.supervised:
                process.start()

        self.for_a_while(f"{process.name} is {'without power' if power else 'down'}", fault.duration_s, restart)

    def crash_many(self, fault: Fault, chance: Random) -> None:
        """Several storage daemons at once, perhaps all of them."""
        for process in self.world.of_kind("storage"):
            if chance.random() < 0.7:
                self.kill(fault, process)

    # The network

    def _hosts(self) -> list[str]:
        return list(self.world.processes)

    def partition(self, fault: Fault, chance: Random) -> None:
        """Two hosts, or two halves, do not hear each other; perhaps in one direction only."""
        hosts = self._hosts()
        chance.shuffle(hosts)
        at = 1 if chance.random() < 0.5 else chance.randrange(1, len(hosts))
        left, right = hosts[:at], hosts[at:]
        if chance.random() < 0.4:
            right = right[:1]
        there, back = chance.choice(((True, True), (True, False), (False, True)))
        pairs = [(a, b) for a in left for b in right] if there else []
        pairs += [(b, a) for a in left for b in right] if back else []
        how = "apart from" if there and back else "not heard by" if there else "deaf to"
        self.block(f"{' '.join(left)} {how} {' '.join(right)}", pairs, fault.duration_s)

    def isolate(self, fault: Fault, chance: Random) -> None:
        """A storage daemon and mgmtd do not hear each other, while clients hear both."""
        process = self.pick(fault, "storage")
        pairs = []
        for other in self.world.of_kind("mgmtd"):
            pairs += [(process.name, other.name), (other.name, process.name)]
        self.block(f"{process.name} is isolated from mgmtd", pairs, fault.duration_s)

    def split(self, fault: Fault, chance: Random) -> list[Process]:
        """A storage daemon or two, with a few clients, are cut off from all the rest for longer than a lease."""
        storages, clients = self.world.of_kind("storage"), self.world.of_kind("client")
        away = chance.sample(storages, chance.randint(1, max(1, len(storages) // 2)))
        away += chance.sample(clients, len(clients) // 2)
        left = [process.name for process in away]
        right = [host for host in self._hosts() if host not in left]
        pairs = [pair for a in left for b in right for pair in ((a, b), (b, a))]
        self.block(f"{' '.join(left)} split off", pairs, fault.duration_s)
        return away

    def block(self, what: str, pairs: list[tuple[str, str]], seconds: float) -> None:
        network = self.world.network
        for source, destination in pairs:
            network.block(source, destination)

        def heal() -> None:
            for source, destination in pairs:
                network.unblock(source, destination)

        self.for_a_while(what, seconds, heal)

    def cut(self, fault: Fault, chance: Random) -> None:
        """The connections between two hosts break."""
        a, b = chance.sample(self._hosts(), 2)
        self.tell(f"connections of {a} and {b} are cut")
        self.world.network.cut(a, b)

    def slow(self, fault: Fault, chance: Random) -> None:
        """All messages of a host take longer."""
        name = chance.choice(self._hosts())
        network = self.world.network
        network.slow[name] = times = float(round(10 * 100**fault.strength))
        self.for_a_while(f"{name} is {times:.0f} times slower", fault.duration_s, lambda: _drop(network.slow, name))

    def hang(self, fault: Fault, chance: Random) -> None:
        """A process does not react: nothing gets in or out, though its own clock goes on."""
        name = chance.choice(self._hosts())
        others = [host for host in self._hosts() if host != name]
        pairs = [(name, host) for host in others] + [(host, name) for host in others]
        self.block(f"{name} hangs", pairs, fault.duration_s)

    def late(self, fault: Fault, chance: Random) -> None:
        """What a meta daemon sends to the storage daemons arrives long after it gave up waiting, and another took over."""
        process = self.pick(fault, "meta")
        weather = self.world.network.weather
        weather.patience_min_s = weather.patience_max_s = 60.0
        pairs = [(process.name, other.name) for other in self.world.of_kind("storage")]
        self.block(f"{process.name} is cut off from storage", pairs, fault.duration_s)

    # The store

    def kv_slow(self, fault: Fault, chance: Random) -> None:
        """The store answers a mgmtd or meta daemon so late that it may have lost its lease by then."""
        name = self.pick(fault, "mgmtd", "meta").name
        slow_s = self.world.kv_slow_s
        slow_s[name] = by_s = round(0.1 * 20**fault.strength, 3)
        what = f"the store takes up to {by_s} s for {name}"
        self.for_a_while(what, fault.duration_s, lambda: _drop(slow_s, name))

    def depose(self, fault: Fault, chance: Random) -> None:
        """The next change of the primary mgmtd is held up between its check and its commit, until another one is primary."""
        self.world.depose_within_s = max(1.0, fault.duration_s)
        self.tell("the primary mgmtd is deposed in its next commit")

    # Clocks

    def clock_jump(self, fault: Fault, chance: Random) -> None:
        """A host's wall clock is set, by up to days. Nothing but time stamps may notice."""
        process = self.world.processes[chance.choice(self._hosts())]
        by_s = round(chance.choice((-1, 1)) * 10 ** (6 * fault.strength), 3)
        process.clock.skew_ns += int(by_s * 1e9)
        self.tell(f"the wall clock of {process.name} jumps by {by_s} s")

    def clock_drift(self, fault: Fault, chance: Random) -> None:
        """A host's monotonic clock runs too fast or too slow, as far as leases have to stand."""
        process = self.world.processes[chance.choice(self._hosts())]
        rate = 1 + round(chance.choice((-1, 1)) * DRIFT_MAX * fault.strength, 4)
        self.run_clock(process, rate, fault.duration_s)

    def clock_broken(self, fault: Fault, chance: Random) -> None:
        """A storage daemon that is cut off sees time nearly stand still: it believes in its lease long after it has run out.
        The product cannot hold that; a checker must see it."""
        for process in self.split(fault, chance):
            if process in self.world.of_kind("storage"):
                self.run_clock(process, 0.01, fault.duration_s)

    def run_clock(self, process: Process, rate: float, seconds: float) -> None:
        clock = process.clock
        clock.run_at(rate)
        what = f"the clock of {process.name} runs at {rate:.4f}"
        self.for_a_while(what, seconds, lambda: clock.run_at(clock.usual_rate))

    # Disks

    def disk_error(self, fault: Fault, chance: Random) -> None:
        """A disk errs. Its daemon gives up its targets; an operator starts it again later."""
        process = self.pick(fault, "storage")
        platter = self.world.platters[process.name]
        platter.errors = (0.01, 0.2, 1.0)[min(2, int(3 * fault.strength))]

        def repair() -> None:
            platter.errors = 0.0
            process.crash()
            process.start()

        self.for_a_while(f"the disk of {process.name} errs at {platter.errors}", fault.duration_s, repair)

    def disk_slow(self, fault: Fault, chance: Random) -> None:
        """A disk often takes long."""
        process = self.pick(fault, "storage")
        platter = self.world.platters[process.name]
        wear = platter.wear
        wear.spike, wear.spike_s = 0.3, fault.strength

        def over() -> None:
            usual = type(wear)()
            wear.spike, wear.spike_s = usual.spike, usual.spike_s

        self.for_a_while(f"the disk of {process.name} takes up to {wear.spike_s} s", fault.duration_s, over)

    def full(self, fault: Fault, chance: Random) -> None:
        """A disk has no space."""
        process = self.pick(fault, "storage")
        platter = self.world.platters[process.name]
        platter.full = True

        def room() -> None:
            platter.full = False

        self.for_a_while(f"the disk of {process.name} is full", fault.duration_s, room)


def _drop(into: dict[str, float], name: str) -> None:
    into.pop(name, None)
