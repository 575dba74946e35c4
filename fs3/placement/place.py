"""Chains of target ids out of free targets: for a format, for a new table, and for one that grows. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import Code, FS3Error
from ..routing import Node, Target
from .design import Design, Problem, Solver, design
from .order import NO_LEADS, Leads, in_order, on_disks
from .topology import domain_limit, domain_of

QUICK_STEPS = 60_000
"""Of the local search, where somebody waits: some 150 ms."""


@dataclass(frozen=True, slots=True)
class Placed:
    """chains: target ids, head first. unused: free targets that are left over. limit: replicas of a chain in a domain.

    domains: how many failure domains the targets are in. racks: whether any of them is more than a node.
    """

    chains: tuple[tuple[int, ...], ...]
    design: Design
    unused: int
    limit: int
    domains: int
    racks: bool


def place(targets: Iterable[Target], replicas: int, nodes: Mapping[int, Node]) -> tuple[tuple[int, ...], ...]:
    """Chains of `replicas` target ids each, head first: as many as these targets allow, and in little time.

    A chain's targets are on different nodes, and racks where there are enough, no target is used twice, nodes lead about
    equally many chains, and share about as many with each other node. The same targets give the same chains. nodes: by
    id; one that is absent is a failure domain of its own. Raises BAD_PLACEMENT where not a single chain can be made.
    """
    known = list(targets)
    few = 1_000 + 300 * len({target.node for target in known}) ** 2  # what is not found soon then is not there
    return place_well(known, replicas, nodes, steps=min(QUICK_STEPS, few)).chains


def place_well(
    targets: Iterable[Target],
    replicas: int,
    nodes: Mapping[int, Node],
    *,
    steps: int,
    solver: Solver | None = None,
    limit: int = 0,
    shared: Mapping[int, Mapping[int, int]] | None = None,
    leads: Leads = NO_LEADS,
) -> Placed:
    """As `place`, with as much of a search as is wanted.

    limit: replicas of a chain that one failure domain may hold; 0: as few as these targets allow. shared: how many chains
    nodes share already, by node ids. leads: of those chains.
    """
    if replicas < 1:
        raise FS3Error(Code.BAD_PLACEMENT, f"{replicas} replicas: at least 1 is needed")
    free: defaultdict[int, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for target in sorted(targets, key=lambda t: t.id):
        free[target.node][target.disk].append(target.id)
    ids = sorted(free)
    if len(ids) < replicas:
        have = f"{len(ids)} (ids {', '.join(map(str, ids))}) have" if ids else "none has"
        raise FS3Error(
            Code.BAD_PLACEMENT, f"{replicas} replicas need targets on {replicas} different storage nodes; {have} free ones"
        )
    names = [domain_of(nodes[node]) if node in nodes else f"node {node}" for node in ids]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    counts = tuple([sum([len(disk) for disk in free[node].values()]) for node in ids])
    limit = limit or domain_limit(names, replicas)
    known = shared or {}
    fixed = tuple([tuple([known.get(a, {}).get(b, 0) for b in ids]) for a in ids]) if shared else ()
    problem = Problem(counts, replicas, tuple([numbers[name] for name in names]), limit, fixed)
    found = design(problem, steps, solver)
    if not found.chains:
        raise FS3Error(
            Code.BAD_PLACEMENT,
            f"{replicas} replicas of which at most {limit} may be in one rack: the free targets are in {len(numbers)} racks",
        )
    chains = on_disks(
        in_order([[ids[node] for node in chain] for chain in found.chains], leads),
        {node: [disks for _, disks in sorted(free[node].items())] for node in ids},
    )
    unused = sum(counts) - replicas * len(chains)
    return Placed(tuple(chains), found, unused, limit, len(numbers), len(numbers) < len(ids))
