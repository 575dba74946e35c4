"""Finding free targets for replicas that need a new place: greedily by balance, then by augmenting paths. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..api.admin import Move
from ..errors import Code, FS3Error
from .world import World

_CANDIDATES = 48
"""How many nodes are compared for one replica: those with the smallest part of their targets in chains."""
_PATH_MAX = 60


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replica of a chain that needs a place; drop: the target that it replaces, 0: none."""

    chain: int
    drop: int = 0


def substitutes(world: World, wanted: Sequence[Wanted], what: str, replicas: int = 0) -> list[Move]:
    """A move for each; the world has them done afterwards. what: whose these are, for people. Raises BAD_PLAN.

    replicas: how many the chains are to have; 0: as many as they have.
    """
    return _Search(world, wanted, what, replicas).run()


class _Search:
    def __init__(self, world: World, wanted: Sequence[Wanted], what: str, replicas: int) -> None:
        self._world = world
        self._wanted = wanted
        self._what = what
        lengths = {len(world.members[want.chain]) for want in wanted}
        self._limits = {length: world.limit(replicas or length) for length in lengths}
        self._length = {want.chain: len(world.members[want.chain]) for want in wanted}
        self._moves: dict[int, Move] = {}  # index in wanted -> its move
        self._given: defaultdict[int, set[int]] = defaultdict(set)  # node -> indexes of those that it gets

    def run(self) -> list[Move]:
        self._check_number()
        world = self._world
        stuck = []
        for index, want in enumerate(self._wanted):
            best: tuple[float, int, int] | None = None
            needed = world.used(want.chain)
            seen = 0
            for node in sorted(world.free, key=lambda n: (world.fill(n), world.load[n], n)):
                fill = world.fill(node)
                if seen >= _CANDIDATES or (best is not None and fill > best[0]):
                    break
                if self._allowed(want, node) and world.pick(node, needed) is not None:
                    seen += 1
                    key = (fill, world.pair_cost(want.chain, node, want.drop), node)
                    best = key if best is None else min(best, key)
            if best is None:
                stuck.append(index)
            else:
                self._give(index, best[2])
        for index in stuck:
            if not self._make_room(index, set(), 0):
                raise self._impossible(index)
        return [self._moves[index] for index in range(len(self._wanted))]

    def _allowed(self, want: Wanted, node: int) -> bool:
        return self._world.allowed(want.chain, node, want.drop, self._limits[self._length[want.chain]])

    def _give(self, index: int, node: int) -> bool:
        """Let it have a target of a node; False where the node has none for it."""
        want = self._wanted[index]
        target = self._world.pick(node, self._world.used(want.chain))
        if target is None:
            return False
        move = Move(want.chain, target, want.drop)
        self._world.give(move)
        self._moves[index] = move
        self._given[node].add(index)
        return True

    def _take(self, index: int) -> int:
        """Take away what it got; returns the node."""
        move = self._moves.pop(index)
        self._world.take_back(move)
        node = self._world.targets[move.add].node
        self._given[node].remove(index)
        return node

    def _make_room(self, index: int, visited: set[int], depth: int) -> bool:
        """Find a place for one by moving others elsewhere. All stays as it was where that fails."""
        want = self._wanted[index]
        for node in sorted(self._world.free):
            if node not in visited and self._allowed(want, node) and self._give(index, node):
                return True
        if depth >= _PATH_MAX:
            return False
        for node in sorted(self._given):
            if node in visited or not self._given[node] or not self._allowed(want, node):
                continue
            visited.add(node)
            for other in sorted(self._given[node]):
                before = self._moves[other]
                self._take(other)
                if self._allowed(want, node) and self._give(index, node):
                    if self._make_room(other, visited, depth + 1):
                        return True
                    self._take(index)
                self._world.give(before)
                self._moves[other] = before
                self._given[node].add(other)
        return False

    def _check_number(self) -> None:
        free = sum([len(targets) for disks in self._world.free.values() for targets in disks.values()])
        if free < len(self._wanted):
            raise FS3Error(
                Code.BAD_PLAN,
                f"{self._what}: {len(self._wanted)} free targets are needed elsewhere, and {free} are there:"
                " add a disk or a node, or raise targets_per_disk where there is space",
            )

    def _impossible(self, index: int) -> FS3Error:
        """Why one of them finds no place."""
        world, want = self._world, self._wanted[index]
        others = sorted({world.targets[t].node for t in world.members[want.chain] if t != want.drop})
        needed = world.used(want.chain)
        free = {node: sum(map(len, disks.values())) for node, disks in sorted(world.free.items()) if disks}
        listed = ", ".join([f"{count} on node {node}" for node, count in list(free.items())[:8]]) or "none is left"
        away = [node for node in free if self._allowed(want, node)]
        if away:
            reason = f"none that may hold it has room for its {needed} bytes"
        else:
            reason = f"it needs one away from its other nodes {', '.join(map(str, others))}"
            if any(
                world.domain[node] in {world.domain.get(other) for other in others} for node in free if node not in others
            ):
                reason += " and their racks"
        return FS3Error(
            Code.BAD_PLAN,
            f"{self._what}: chain {want.chain} finds no free target ({listed}): {reason};"
            " add a disk or a node, or raise targets_per_disk on another node",
        )
