"""What goes wrong in one simulation, as data: drawn from a seed, written down, read again, shortened. Pure.

A plan holds all that a failing run can be shortened by: the faults, how long and by how many clients there is load, how many
operations, how often the store refuses a commit, and which rare branches are taken. Each fault stands for itself: leaving
one out changes nothing about the others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

DURATIONS_S = (0.02, 0.3, 1.0, 3.0)
"""Often shorter than a lease, often longer; each is stretched a little."""
RARE_SHARE = 0.4
"""How many of the rare branches a seed takes."""
SUBJECTS = 10_000


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, at_s after the load began.

    subject: a number that says whom it meets, among those there are when it happens. strength: from 0 to 1.
    """

    at_s: float
    kind: str
    subject: int
    duration_s: float
    strength: float

    def __str__(self) -> str:
        return f"{self.at_s!r} {self.kind} {self.subject} {self.duration_s!r} {self.strength!r}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that goes wrong. operations: how many there are at most, 0 for as many as there is time for. kv_faults: the share
    of commits that the store refuses. rare: names of the rare branches that are taken."""

    load_s: float
    clients: int
    operations: int = 0
    kv_faults: float = 0.0
    rare: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def text(self, separator: str = "\n") -> str:
        """As parse() reads it. "; " as the separator makes it fit a command line."""
        words = [f"load_s={self.load_s!r}", f"clients={self.clients}"]
        if self.operations:
            words.append(f"operations={self.operations}")
        if self.kv_faults:
            words.append(f"kv_faults={self.kv_faults!r}")
        if self.rare:
            words.append(f"rare={','.join(self.rare)}")
        return separator.join([" ".join(words), *map(str, self.faults)])

    def size(self) -> tuple[int, int, int, float, int, float]:
        """What makes a plan shorter than another, the first difference first."""
        return (
            len(self.faults),
            len(self.rare) + bool(self.kv_faults),
            self.clients,
            self.load_s,
            self.operations or SUBJECTS,
            sum([fault.duration_s + fault.strength for fault in self.faults]),
        )


def parse(text: str) -> Plan:
    """Read what Plan.text() gave. Raises ValueError."""
    head, *lines = [line for part in text.replace("\n", ";").split(";") if (line := part.partition("#")[0].strip())]
    given = dict(word.split("=", 1) for word in head.split())
    faults = []
    for line in lines:
        at_s, kind, subject, duration_s, strength = line.split()
        faults.append(Fault(float(at_s), kind, int(subject), float(duration_s), float(strength)))
    plan = Plan(
        float(given.pop("load_s")),
        int(given.pop("clients")),
        int(given.pop("operations", "0")),
        float(given.pop("kv_faults", "0")),
        tuple([name for name in given.pop("rare", "").split(",") if name]),
        tuple(faults),
    )
    if given:
        raise ValueError(f"a plan knows nothing of {', '.join(given)}")
    return plan


def draw(chance: Random, plan: Plan, kinds: Sequence[str], every_s: float, lease_s: float, points: Collection[str]) -> Plan:
    """Add to a plan the faults of its time, of these kinds, one every so often; and some of these rare branches, besides
    those that it has."""
    faults = []
    at_s = 0.0
    while kinds:
        at_s += chance.expovariate(1 / every_s)
        if at_s >= plan.load_s:
            break
        kind = chance.choice(kinds)
        duration_s = chance.choice(DURATIONS_S) * chance.uniform(0.5, 2)
        if kind in ("split", "clock_broken"):  # what these are to show takes longer than a lease
            duration_s = chance.uniform(3, 8) * lease_s
        elif kind == "late":
            duration_s = chance.uniform(13, 25)
        subject, strength = chance.randrange(SUBJECTS), chance.random()
        faults.append(Fault(round(at_s, 3), kind, subject, round(duration_s, 3), round(strength, 2)))
    rare = tuple([point for point in points if chance.random() < RARE_SHARE or point in plan.rare])
    return Plan(plan.load_s, plan.clients, plan.operations, plan.kv_faults, rare, tuple(faults))
