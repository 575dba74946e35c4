"""The order of a chain's members, and the disks they get: so that leads, and the work when a disk fails, are even. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .heads import spread_heads

_SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Leads:
    """Of chains that are there already. led: node -> chains that it leads. ideal: those that it should lead."""

    led: Mapping[int, int]
    ideal: Mapping[int, float]


NO_LEADS = Leads({}, {})


def in_order(chains: Sequence[Sequence[int]], before: Leads = NO_LEADS) -> list[list[int]]:
    """Chains with their members in order, head first. before: what nodes lead besides.

    Every node leads about the same part of its chains, and those that follow it, when it fails, are about equally often each
    of its peers. The last ones are spread too: a target that comes back is filled by the last that serves.
    """
    shared: defaultdict[int, Counter[int]] = defaultdict(Counter)
    ideal = dict(before.ideal)
    for chain in chains:
        for node in chain:
            ideal[node] = ideal.get(node, 0.0) + 1 / len(chain)
            row = shared[node]
            for other in chain:
                row[other] += 1
    heads = _first_heads(chains, shared)
    heads = spread_heads(chains, heads, ideal, before.led)
    follows: defaultdict[int, Counter[int]] = defaultdict(Counter)
    position: Counter[tuple[int, int]] = Counter()
    ordered = []
    for chain, head in zip(chains, heads, strict=True):
        made = [head]
        rest = sorted(set(chain) - {head})
        while rest:
            place = len(made)
            # Of the second ones it matters whom they follow; of all, that each place is had about equally often.
            node = min(rest, key=lambda n: (follows[head][n] if place == 1 else 0, position[place, n], n))
            if place == 1:
                follows[head][node] += 1
            position[place, node] += 1
            rest.remove(node)
            made.append(node)
        ordered.append(made)
    _spread_followers(ordered, follows)
    return ordered


def _spread_followers(chains: list[list[int]], follows: Mapping[int, Counter[int]]) -> None:
    """Exchange second members with later ones where a head is followed by the same node more often than by others."""
    for _ in range(_SWEEPS):
        for chain in chains:
            row = follows[chain[0]]
            for place in range(2, len(chain)):
                second, later = chain[1], chain[place]
                if row[later] + 1 < row[second]:
                    chain[1], chain[place] = later, second
                    row[second] -= 1
                    row[later] += 1


def _first_heads(chains: Sequence[Sequence[int]], shared: Mapping[int, Mapping[int, int]]) -> list[int]:
    """Of each chain the node that leads the smallest part of what it shares with the others of it."""
    leads: defaultdict[int, Counter[int]] = defaultdict(Counter)
    count: Counter[int] = Counter()
    heads = []
    for chain in chains:
        best = min(
            chain,
            key=lambda n: (
                sum([len(chain) * leads[n][other] - shared[n][other] for other in chain if other != n]),
                count[n] * len(chain) - shared[n][n],
                n,
            ),
        )
        heads.append(best)
        count[best] += 1
        for other in chain:
            leads[best][other] += other != best
    return heads


def on_disks(chains: Sequence[Sequence[int]], free: Mapping[int, Sequence[Sequence[int]]]) -> list[tuple[int, ...]]:
    """Target ids instead of nodes. free: node -> the free target ids of each disk of it; used from the front.

    Each disk gets about as many chains as the others of its node, about as many leads, and its chains' other members on
    as many nodes as can be.
    """
    held: defaultdict[int, list[int]] = defaultdict(list)
    for number, chain in enumerate(chains):
        for node in chain:
            held[node].append(number)
    made = [[0] * len(chain) for chain in chains]
    for node, numbers in held.items():
        own = [_Own([other for other in chains[n] if other != node], chains[n][0] == node) for n in numbers]
        disks = _Disks(own, [len(ids) for ids in free[node]])
        left = [iter(ids) for ids in free[node]]
        for number, disk in zip(numbers, disks.chosen, strict=True):
            made[number][chains[number].index(node)] = next(left[disk])
    return [tuple(chain) for chain in made]


@dataclass(frozen=True, slots=True)
class _Own:
    """A chain of a node, as it sees it."""

    others: list[int]
    leads: bool


class _Disks:
    """Which disk of a node each of its chains is on."""

    def __init__(self, own: Sequence[_Own], places: Sequence[int]) -> None:
        self._own = own
        self._peers: list[defaultdict[int, int]] = [defaultdict(int) for _ in places]
        self._leads = [0] * len(places)
        self.chosen: list[int] = []
        self._choose(list(places))
        if len(places) > 1:
            self._exchange()

    def _choose(self, left: list[int]) -> None:
        for chain in self._own:
            most = max(left)
            best, best_cost = -1, 0
            for disk, places in enumerate(left):
                if places:
                    row = self._peers[disk]
                    # A disk may be a little ahead of the others where that spreads its chains better.
                    cost = 2 * (most - places) + (self._leads[disk] if chain.leads else 0)
                    for other in chain.others:
                        cost += 2 * row[other]
                    if best < 0 or cost < best_cost:
                        best, best_cost = disk, cost
            left[best] -= 1
            self.chosen.append(best)
            self._count(chain, best, 1)

    def _exchange(self) -> None:
        """Exchange chains between disks as long as one has more chains with some node than is fair."""
        total: Counter[int] = Counter()
        for chain in self._own:
            total.update(chain.others)
        fair = {other: -(-count // len(self._peers)) for other, count in total.items()}
        for _ in range(_SWEEPS):
            changed = False
            for number, chain in enumerate(self._own):
                row = self._peers[self.chosen[number]]
                if any(row[other] > fair[other] for other in chain.others):
                    changed |= self._exchange_one(number)
            if not changed:
                break

    def _exchange_one(self, one: int) -> bool:
        first = self._own[one]
        here = self.chosen[one]
        row = self._peers[here]
        for number, second in enumerate(self._own):
            there = self.chosen[number]
            if there == here:
                continue
            away = self._peers[there]
            gain = sum([row[other] - away[other] - 1 for other in first.others if other not in second.others])
            gain += sum([away[other] - row[other] - 1 for other in second.others if other not in first.others])
            if first.leads != second.leads:
                ahead = self._leads[here] - self._leads[there]
                gain += ahead - 1 if first.leads else -ahead - 1
            if gain > 0:
                self._count(first, here, -1)
                self._count(second, there, -1)
                self.chosen[one], self.chosen[number] = there, here
                self._count(first, there, 1)
                self._count(second, here, 1)
                return True
        return False

    def _count(self, chain: _Own, disk: int, by: int) -> None:
        row = self._peers[disk]
        for other in chain.others:
            row[other] += by
        if chain.leads:
            self._leads[disk] += by
