"""Who is primary mgmtd, as the store knows it: faults that meet the primary, and what must hold of primaries.

Watched are the commits of mgmtd (one history, written by who has the lease), its answers (only by who has it), all routing
that anybody learns (one content for each version), and how long there is no primary though some mgmtd reaches the store.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from fs3.errors import Code, FS3Error
from fs3.routing import LocalState, RoutingInfo
from fs3.wire.codec import decode
from mgmtd.lease import Owner, lease_ms
from mgmtd.service import MgmtdService
from mgmtd.state import Head
from mgmtd.store import HEAD, OWNER

if TYPE_CHECKING:
    from tests.sim.cluster import Process, World
    from tests.sim.faults import Faults
    from tests.sim.plan import Fault
    from tests.sim.store import KVPort

FAILOVER_LEASES = 2.0
"""A mgmtd that reaches the store is primary after so many leases of the primary at the latest, if nobody else is: one for
the old lease to run out, by a clock that is a tenth too slow, some looks at it, and the time to load the state."""
DRIFT_MAX = 0.1
LOOK_S = 0.01


Step = Callable[[], Awaitable[None]]


class OfficeError(Exception):
    """There were two primaries, or two histories, or none for too long."""


class Office:
    """What one run saw of its primaries."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.epoch = 0  # as stored
        self.holder = ""  # the process life that wrote it
        self.takeovers = 0
        self.services: dict[str, MgmtdService] = {}  # process life -> its service
        self._revision = 0
        self._contents: dict[tuple[str, int], tuple[Any, ...]] = {}
        self.changed = trio.Event()

    @property
    def primary(self) -> Process | None:
        """The process that has the lease, if it lives."""
        name, _, life = self.holder.partition(".")
        process = self._world.processes.get(name)
        return process if process is not None and process.alive and str(process.lives) == life else None

    # What is stored

    def committed(self, life: str, begun_at_epoch: int) -> None:
        """A transaction of a mgmtd has been committed, which first read while that epoch was stored."""
        kv = self._world.kv
        owner_raw, head_raw = kv._read(OWNER, kv._version), kv._read(HEAD, kv._version)
        owner = decode(Owner, owner_raw) if owner_raw is not None else None
        revision = decode(Head, head_raw).revision if head_raw is not None else 0
        if revision != self._revision:
            if self.holder != life or begun_at_epoch != self.epoch:
                raise OfficeError(f"{life} of epoch {begun_at_epoch} changed the state of {self.holder}, epoch {self.epoch}")
            if self._revision and revision != self._revision + 1:
                raise OfficeError(f"{life} went from revision {self._revision} to {revision}")
            self._revision = revision
        if owner is not None and owner.epoch != self.epoch:
            if owner.epoch != self.epoch + 1:
                raise OfficeError(f"{life} went from epoch {self.epoch} to {owner.epoch}")
            self.epoch, self.holder = owner.epoch, life
            self.takeovers += 1
            changed, self.changed = self.changed, trio.Event()
            changed.set()
        elif owner is not None and not owner.released and life != self.holder:
            raise OfficeError(f"{life} renews the lease of {self.holder}, epoch {self.epoch}")

    # What is answered

    def answers(self, service: MgmtdService, life: str) -> None:
        """A mgmtd answers as the primary."""
        name, _, number = life.partition(".")
        process = self._world.processes[name]
        if not process.alive or str(process.lives) != number:
            return  # it was killed, and is about to notice
        if service._epoch != self.epoch or self.holder != life:
            raise OfficeError(f"{life} answers at epoch {service._epoch}; {self.holder} is primary at epoch {self.epoch}")

    def saw(self, info: RoutingInfo) -> None:
        """Somebody learned this routing. Local states and fill levels change without a version."""
        targets = tuple([replace(t, local=LocalState.OFFLINE, used=0, capacity=0) for _, t in sorted(info.targets.items())])
        rest = [tuple(sorted(each.items())) for each in (info.chains, info.tables, info.nodes)]
        content = (targets, *rest)
        known = self._contents.setdefault((info.cluster, info.version), content)
        if known != content:
            pairs = [pair for one, other in zip(known, content, strict=True) for pair in zip(one, other, strict=False)]
            different = [pair for pair in pairs if pair[0] != pair[1]]
            raise OfficeError(f"routing version {info.version} is of two kinds: {different[:3]}")

    # How long there is nobody

    async def watch(self) -> None:
        """Fails the world where there is no primary although a mgmtd could be."""
        world = self._world
        limit_s = FAILOVER_LEASES * lease_ms(world.shape.lease_ms, exclusive=False) / 1000 / (1 - DRIFT_MAX)
        able: dict[str, float] = {}  # process life -> since when it could be primary
        epoch, vacant_since = self.epoch, trio.current_time()
        while True:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            for life in [life for life in able if not self._able(life)]:
                del able[life]
            for life in self.services:
                if life not in able and self._able(life):
                    able[life] = now
            if self.epoch != epoch or any(self._in_office(life) for life in able):
                epoch, vacant_since = self.epoch, now  # one that was stopped while it took over is another failure
            waited_s = now - max(vacant_since, min(able.values(), default=now))
            if waited_s > limit_s:
                world.fail(OfficeError(f"nobody is primary for {waited_s:.3f} s, though {', '.join(able)} could be"))
                return

    def _able(self, life: str) -> bool:
        name, _, number = life.partition(".")
        process, world = self._world.processes[name], self._world
        here = process.alive and str(process.lives) == number and not process.stopped
        return here and name not in world.kv_slow_s and name not in world.kv_cut and life not in world.kv_held

    def _in_office(self, life: str) -> bool:
        """Is primary, and has loaded the state."""
        return self.services[life].is_primary


@contextmanager
def watched(office: Office, life: Callable[[], str]) -> Iterator[None]:
    """While this lasts, the office sees which services there are and what they answer. life: of the process at work."""
    run, primary = MgmtdService.run, MgmtdService._primary

    async def watched_run(self: MgmtdService, **named: Any) -> None:
        office.services[life()] = self
        await run(self, **named)

    def watched_primary(self: MgmtdService) -> Any:
        cluster = primary(self)
        office.answers(self, life())
        return cluster

    MgmtdService.run, MgmtdService._primary = watched_run, watched_primary  # type: ignore[method-assign]
    try:
        yield
    finally:
        MgmtdService.run, MgmtdService._primary = run, primary  # type: ignore[method-assign]


# Commits that go wrong


async def wait_until_deposed(port: KVPort, within_s: float) -> None:
    """Hold up all that a process asks of the store, until another mgmtd has taken over from it."""
    world, life = port.world, port.life
    epoch = world.office.epoch
    port.held = trio.Event()
    world.kv_held.add(life)
    world.trace.note(f"fault: {life} is held up in a commit at epoch {epoch}")
    with trio.move_on_after(within_s):
        await world.office.changed.wait()
        world.faults["deposed"] = world.faults.get("deposed", 0) + 1
    port.held.set()
    port.held = None
    world.kv_held.discard(life)
    world.trace.note(f"fault over: {life} was held up in a commit")


async def in_flight(world: World, commit: Step, before: Step | None = None) -> None:
    """Commit as a message on its way: who waits for the answer may give up, be stopped or die, and it arrives."""
    done = trio.Event()
    outcome: list[FS3Error] = []

    async def arrive() -> None:
        if before is not None:
            await before()
        try:
            await commit()
        except FS3Error as error:
            outcome.append(error)
        done.set()

    contextvars.Context().run(world.nursery.start_soon, arrive)  # no task of that process
    await done.wait()
    if outcome:
        raise outcome[0]


async def stopped_in_commit(port: KVPort, commit: Step, seconds: float) -> None:
    """SIGSTOP in the middle of a commit: before it is sent, or with the answer on its way."""
    world = port.world
    process = world.processes[port.name]
    if process.alive and not process.stopped:
        life = process.lives
        process.stop()
        world.faults["stopped"] = world.faults.get("stopped", 0) + 1

        def go_on() -> None:
            if process.lives == life:
                process.resume()

        world.network.at(trio.current_time() + seconds, go_on)
        if port.chance.random() < 0.5:
            await in_flight(world, commit)
            return
        await trio.lowlevel.checkpoint()  # which ends when it goes on
    await commit()


class OfficeFaults:
    """Faults that meet the primary mgmtd, or the ways to the store. For Faults to carry out."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._world: World = faults.world
        self.kinds: dict[str, Callable[[Fault, Random], None]] = {
            "stop_primary": self.stop_primary,
            "restart_primary": self.restart_primary,
            "halve": self.halve,
            "kv_cut": self.kv_cut,
            "mgmtd_drift": self.mgmtd_drift,
        }

    def stop_primary(self, fault: Fault, chance: Random) -> None:
        self._world.stop_in_commit_s = fault.duration_s
        self._faults.tell("the primary mgmtd is stopped in its next commit")

    def restart_primary(self, fault: Fault, chance: Random) -> None:
        """It comes back under the same node id, at once or after another one has taken over."""
        process = self._world.office.primary
        if process is not None:
            self._faults.kill(fault, process)

    def halve(self, fault: Fault, chance: Random) -> None:
        """The primary and half of the daemons and clients do not hear each other."""
        process = self._world.office.primary
        if process is not None:
            others = [name for name in self._world.processes if name != process.name and chance.random() < 0.5]
            pairs = [pair for other in others for pair in ((process.name, other), (other, process.name))]
            self._faults.block(f"{process.name} is cut off from {' '.join(others)}", pairs, fault.duration_s)

    def kv_cut(self, fault: Fault, chance: Random) -> None:
        """The store cannot be reached by the primary, by some, or by anybody; requests to it fail, or get no answer."""
        world = self._world
        primary = world.office.primary
        names = [process.name for kind in ("mgmtd", "meta") for process in world.of_kind(kind)]
        whom = chance.choice(("primary", "some", "all"))
        if whom == "primary":
            names = [primary.name] if primary is not None else []
        elif whom == "some":
            names = [name for name in names if chance.random() < 0.5]
        silent = chance.random() < 0.5
        for name in names:
            world.kv_cut[name] = silent
        self._faults.for_a_while(f"no store for {' '.join(names)}", fault.duration_s, lambda: self._mend(names))

    def _mend(self, names: list[str]) -> None:
        for name in names:
            self._world.kv_cut.pop(name, None)

    def mgmtd_drift(self, fault: Fault, chance: Random) -> None:
        """The clocks of all mgmtd run too fast or too slow, as far as leases have to stand."""
        for process in self._world.of_kind("mgmtd"):
            rate = 1 + chance.choice((-1, 1)) * DRIFT_MAX * fault.strength
            self._faults.run_clock(process, round(rate, 4), fault.duration_s)


async def cut_off(silent: bool) -> None:
    """What a request to a store meets that cannot be reached."""
    await trio.sleep(3.0 if silent else 0.02)
    raise FS3Error(Code.KV_UNAVAILABLE, "cut off")
