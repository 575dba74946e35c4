"""Designs: which nodes make up each chain, so that any two nodes share as many chains as any other two. Pure.

When a node fails, what it held is read from the other nodes of its chains; that is spread evenly over all nodes where every
pair shares the same number of chains: a balanced incomplete block design, or as near to one as the numbers allow.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

from .search import Dice, Shares

_SEED = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """counts: free places of each node. domains: the number of its failure domain. limit: replicas of a chain in a domain.

    fixed: how many chains each pair shares already; empty: none.
    """

    counts: tuple[int, ...]
    replicas: int
    domains: tuple[int, ...]
    limit: int
    fixed: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Bound:
    """Between which numbers of shared chains a perfect design would be: most cannot be less, least cannot be more."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Design:
    """chains: node indexes of each, in no order. least, most: chains shared by the pairs of nodes that may share some.

    method: by what it was found. proof: why it cannot be better; empty where that is not known.
    """

    chains: tuple[tuple[int, ...], ...]
    least: int
    most: int
    bound: Bound
    method: str
    proof: str


Solver = Callable[[Problem, int, Bound, Design], tuple[list[list[int]] | None, str]]
"""(problem, number of chains, bound, best so far) -> better chains or None, and a proof that there are none better still."""


def chains_possible(counts: Sequence[int], domains: Sequence[int], replicas: int, limit: int) -> int:
    """The largest number of chains that places on nodes allow: no node twice in a chain, at most `limit` of a domain."""
    low, high = 0, sum(counts) // replicas
    while low < high:
        middle = (low + high + 1) // 2
        of_domain: Counter[int] = Counter()
        for count, domain in zip(counts, domains, strict=True):
            of_domain[domain] += min(count, middle)
        if sum([min(places, limit * middle) for places in of_domain.values()]) >= middle * replicas:
            low = middle
        else:
            high = middle - 1
    return low


def degrees(problem: Problem, chains: int) -> list[int]:
    """In how many of the chains each node is: where there are more places than needed, the fullest nodes keep some free."""
    used = [min(count, chains) for count in problem.counts]
    by_domain: defaultdict[int, list[int]] = defaultdict(list)
    for node, domain in enumerate(problem.domains):
        by_domain[domain].append(node)
    for nodes in by_domain.values():
        _lower(used, nodes, sum([used[node] for node in nodes]) - problem.limit * chains)
    _lower(used, range(len(used)), sum(used) - problem.replicas * chains)
    return used


def _lower(used: list[int], nodes: Sequence[int], by: int) -> None:
    heap = [(-used[node], -node) for node in nodes]
    heapq.heapify(heap)
    for _ in range(by):
        count, node = heap[0]
        used[-node] += -1
        heapq.heapreplace(heap, (count + 1, node))


def bound_of(problem: Problem, used: Sequence[int], chains: int) -> Bound:
    """What the average over a node's peers, and over pairs in different domains, demands of the best design."""
    nodes = [node for node, count in enumerate(used) if count]
    sizes = Counter([problem.domains[node] for node in nodes])
    fixed = problem.fixed
    least, most = [], [0]
    for node in nodes:
        peers = len(nodes) - (sizes[problem.domains[node]] if problem.limit == 1 else 1)
        if peers > 0:
            shared = used[node] * (problem.replicas - 1)
            shared += sum([fixed[node][other] for other in nodes if other != node]) if fixed else 0
            least.append(shared // peers)
            most.append(-(-shared // peers))
    if problem.limit > 1:  # pairs in a domain cannot have as many as others
        full, rest = divmod(problem.replicas, problem.limit)
        within = full * comb(problem.limit, 2) + comb(rest, 2)
        pairs_within = sum([comb(size, 2) for size in sizes.values()])
        across = comb(len(nodes), 2) - pairs_within
        if across and not fixed:
            most.append(-(-chains * (comb(problem.replicas, 2) - within) // across))
        if pairs_within and not fixed:
            least.append(chains * within // pairs_within)
    return Bound(min(least, default=0), max(most))


def first_chains(problem: Problem, used: Sequence[int], chains: int) -> list[list[int]]:
    """Chains that keep to the numbers and domains: the nodes with the most places left come first."""
    dice = Dice(_SEED)
    left = list(used)
    sizes = Counter(problem.domains)
    of_domain: Counter[int] = Counter()  # of those of several nodes
    for node, count in enumerate(used):
        if sizes[problem.domains[node]] > 1:
            of_domain[problem.domains[node]] += count
    heap = [(-count, dice.below(1 << 30), node) for node, count in enumerate(used) if count]
    heapq.heapify(heap)
    made = []
    for remaining in range(chains, 0, -1):
        # A domain that would have too many left for the chains that come after this one must give some now.
        owed = {d: n for d, places in of_domain.items() if (n := places - problem.limit * (remaining - 1)) > 0}
        taken: list[int] = []
        inside: Counter[int] = Counter()
        skipped = []
        while len(taken) < problem.replicas:
            entry = heapq.heappop(heap)
            domain = problem.domains[entry[2]]
            open_places = problem.replicas - len(taken)
            needed = sum(owed.values())
            forced = -entry[0] >= remaining  # in each chain that is left
            if inside[domain] >= problem.limit or (not forced and needed >= open_places and not owed.get(domain)):
                skipped.append(entry)
                continue
            taken.append(entry[2])
            inside[domain] += 1
            if owed.get(domain):
                owed[domain] -= 1
        for node in taken:
            left[node] -= 1
            if problem.domains[node] in of_domain:
                of_domain[problem.domains[node]] -= 1
            if left[node]:
                heapq.heappush(heap, (-left[node], dice.below(1 << 30), node))
        for entry in skipped:
            heapq.heappush(heap, entry)
        made.append(taken)
    return made


def design(problem: Problem, steps: int, solver: Solver | None = None) -> Design:
    """As many chains as there can be, as even as `steps` of a local search get them, then the solver where that is not best.

    The same problem gives the same design (with a solver: unless its time limit strikes).
    """
    chains = chains_possible(problem.counts, problem.domains, problem.replicas, problem.limit)
    used = degrees(problem, chains)
    bound = bound_of(problem, used, chains)
    start = first_chains(problem, used, chains)
    found = _searched(problem, start, bound, steps)
    if found.proof or solver is None or not chains:
        return found
    better, proof = solver(problem, chains, bound, found)
    if better is not None:
        return _evaluated(problem, better, bound, "HiGHS", proof)
    return Design(found.chains, found.least, found.most, bound, found.method, proof)


def _searched(problem: Problem, start: list[list[int]], bound: Bound, steps: int) -> Design:
    shares = Shares(len(problem.counts), start, problem.domains, problem.limit, problem.fixed or None)
    dice = Dice(_SEED)
    steps = min(steps, 200_000 + 1_000 * len(problem.counts) ** 2)
    if problem.replicas > 1 and shares.spread(bound.least, bound.most, dice, steps):
        most = bound.most  # then at least the maximum, which matters most
        while shares.most() > most and shares.spread(0, most, dice, steps // 4):
            most += 1
    return _evaluated(problem, shares.chains, bound, "local search", "")


def _evaluated(problem: Problem, chains: Sequence[Sequence[int]], bound: Bound, method: str, proof: str) -> Design:
    least, most = extremes(problem, chains)
    if (least, most) == (bound.least, bound.most):
        proof = "it is at the theoretical bound"
    return Design(tuple([tuple(sorted(chain)) for chain in chains]), least, most, bound, method, proof)


def extremes(problem: Problem, chains: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The smallest and largest number of chains that two nodes share which are in some, and may share some."""
    shared: Counter[tuple[int, int]] = Counter()
    for chain in chains:
        shared.update([(a, b) if a < b else (b, a) for a, b in combinations(chain, 2)])
    nodes = sorted({node for chain in chains for node in chain})
    if problem.fixed:
        for a, b in combinations(nodes, 2):
            shared[a, b] += problem.fixed[a][b]
    sizes = Counter([problem.domains[node] for node in nodes])
    apart = sum([comb(size, 2) for size in sizes.values()]) if problem.limit == 1 else 0
    values = [count for (a, b), count in shared.items() if problem.limit > 1 or problem.domains[a] != problem.domains[b]]
    if len(values) < comb(len(nodes), 2) - apart:
        values.append(0)  # of the pairs that share none
    return min(values, default=0), max(values, default=0)
