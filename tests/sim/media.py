"""Faults of disks and of single hosts that cost data, and processes that stop.

All that costs data spares one storage daemon, the rock: a chain whose other replicas all lost what they had, or hold rot, is
to be saved by it. What meets the rock and the others in turn would be the loss of acknowledged data, which nothing prevents.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.sim.plan import Fault

if TYPE_CHECKING:
    from tests.sim.cluster import Process, World
    from tests.sim.disk import Platter
    from tests.sim.faults import Faults

Kinds = dict[str, Callable[[Fault, Random], None]]


class Media:
    """The faults by their kinds, for Faults to carry out."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._world: World = faults.world
        self.kinds: Kinds = {
            "stop": self.stop,
            "crash_other": lambda fault, _: self._faults.kill(fault, self._victim(fault)),
            "power": lambda fault, _: self._faults.kill(fault, self._victim(fault), power=True),
            "rot": self.rot,
            "spoil": self.spoil,
            "slip": self.slip,
            "stick": self.stick,
            "records": self.records,
        }

    def _victim(self, fault: Fault) -> Process:
        """Any storage daemon but the rock."""
        storages = self._world.of_kind("storage")
        del storages[self._world.seed % len(storages)]
        return storages[fault.subject % len(storages)]

    def _platter(self, fault: Fault) -> tuple[str, Platter]:
        name = self._victim(fault).name
        return name, self._world.platters[name]

    def stop(self, fault: Fault, chance: Random) -> None:
        """SIGSTOP: it does nothing for a while, then goes on with what it knew."""
        kinds = ("storage", "storage", "mgmtd", "meta", "client", "mount")
        found = [process for kind in kinds for process in self._world.of_kind(kind)]
        process = found[fault.subject % len(found)]
        if not process.alive or process.stopped:
            return
        life = process.lives
        process.stop()

        def go_on() -> None:
            if process.lives == life:
                process.resume()

        self._faults.for_a_while(f"{process.name} is stopped", fault.duration_s, go_on)

    def rot(self, fault: Fault, chance: Random) -> None:
        """Bits flip in what is stored."""
        _, platter = self._platter(fault)
        for _ in range(1 + int(fault.strength * 10)):
            where = platter.flip_bit(chance)
            if where:
                self._faults.tell(f"bit flip in {where}")

    def spoil(self, fault: Fault, chance: Random) -> None:
        """Some pages cannot be read, until they are written again."""
        _, platter = self._platter(fault)
        where = platter.spoil(chance, 1 + int(fault.strength * 20))
        if where:
            self._faults.for_a_while(f"unreadable: {where}", 10 * fault.duration_s, platter.repair)

    def slip(self, fault: Fault, chance: Random) -> None:
        """Some writes end up elsewhere, or nowhere, and are reported as done."""
        name, platter = self._platter(fault)
        platter.slips = 0.02 + 0.1 * fault.strength

        def over() -> None:
            platter.slips = 0.0

        self._faults.for_a_while(f"the disk of {name} loses and misplaces writes", fault.duration_s, over)

    def records(self, fault: Fault, chance: Random) -> None:
        """The records of one target are damaged, which its daemon finds when it starts again: the chain must fill it."""
        process = self._victim(fault)
        platter = self._world.platters[process.name]
        if not process.alive or not platter.logs:
            return
        name = chance.choice(sorted(platter.logs))
        platter.logs[name].broken = True
        self._world.witness.rules.forget(platter.name)
        self._faults.tell(f"records of {platter.name}/{name} are damaged")
        self._faults.kill(fault, process)

    def stick(self, fault: Fault, chance: Random) -> None:
        """A disk does not answer."""
        process = self._faults.pick(fault, "storage")
        platter = self._world.platters[process.name]
        platter.stick()
        self._faults.for_a_while(f"the disk of {process.name} does not answer", fault.duration_s, platter.unstick)
