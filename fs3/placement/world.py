"""A cluster as a planner of moves sees it: who is in which chain once the moves so far are done. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from ..api.admin import Move
from ..ids import NodeKind
from ..routing import LocalState, RoutingInfo, Target
from .topology import domain_limit, domains

Disk = tuple[int, int]
"""A node and the number of a disk of it."""


class World:
    """Chains with their members after every move that was planned, and the free targets that are left.

    pending: moves of operations under way, as if they were done. leaving: nodes that are to be emptied.
    """

    def __init__(self, routing: RoutingInfo, pending: Iterable[Move] = (), leaving: Iterable[int] = ()) -> None:
        self.routing = routing
        self.targets = routing.targets
        self.domain = domains(routing.nodes)
        self.leaving = frozenset(leaving)
        self._limits: dict[int, int] = {}
        self.members: dict[int, list[int]] = {}
        self.dropped: defaultdict[int, list[int]] = defaultdict(list)
        """Chain -> what moves take out of it: it may still be there when another move of the chain is carried out."""
        self.load: Counter[int] = Counter()
        """Node -> its targets that are in chains."""
        self.disk_load: Counter[Disk] = Counter()
        self.shared: defaultdict[int, Counter[int]] = defaultdict(Counter)
        """Node -> other node -> chains that have both."""
        for chain in routing.chains.values():
            members = self.members[chain.id] = []
            for entry in chain.targets:
                self._count(chain.id, entry.target, 1)
                members.append(entry.target)
        self.size: Counter[int] = Counter()
        """Node -> all its targets."""
        self.free: dict[int, dict[Disk, list[int]]] = {}
        """Node -> disk -> free targets that can be had, the next one last; only what is not empty."""
        self.room: Counter[Disk] = Counter()
        """Free bytes of a disk, less what the plan copies to it."""
        self.busy: set[int] = set()
        """Chains that operations under way change."""
        for target in sorted(routing.targets.values(), key=lambda t: t.id, reverse=True):
            self.size[target.node] += 1
            self.room[target.node, target.disk] += max(0, target.capacity - target.used)
            if self.can_take(target):
                self.free.setdefault(target.node, {}).setdefault((target.node, target.disk), []).append(target.id)
        for move in pending:
            self.busy.add(move.chain)
            if move.add:
                self._take(move.add)
            self.carry_out(move)

    def can_take(self, target: Target) -> bool:
        """Whether a target may come into a chain."""
        node = self.routing.nodes.get(target.node)
        return (
            target.chain == 0
            and not target.retired
            and not target.used
            and target.local is not LocalState.OFFLINE
            and node is not None
            and node.alive
            and not node.drained
            and node.kind == NodeKind.STORAGE
            and target.node not in self.leaving
        )

    def usable_nodes(self) -> list[int]:
        """Nodes that have targets and are to keep some, alive or not."""
        return [
            n for n in sorted(self.size) if n in self.domain and n not in self.leaving and not self.routing.nodes[n].drained
        ]

    def limit(self, replicas: int) -> int:
        """How many replicas of a chain one failure domain may hold."""
        if replicas not in self._limits:
            self._limits[replicas] = domain_limit([self.domain[node] for node in self.usable_nodes()], replicas)
        return self._limits[replicas]

    def place_of(self, target: int) -> Disk:
        entry = self.targets[target]
        return entry.node, entry.disk

    def used(self, chain: int) -> int:
        """Bytes that a new replica of a chain holds."""
        return max([self.targets[t].used for t in self.members[chain] if t in self.targets], default=0)

    def allowed(self, chain: int, node: int, dropped: int, limit: int) -> bool:
        """Whether a chain may get a replica on a node when `dropped` leaves it, whichever of its moves are done by then.

        limit: of a failure domain.
        """
        others = [self.targets[t].node for t in (*self.members[chain], *self.dropped[chain]) if t != dropped]
        if node in others:
            return False
        domain = self.domain.get(node)
        return sum([self.domain.get(other) == domain for other in others]) < limit

    def pair_cost(self, chain: int, node: int, dropped: int = 0) -> int:
        """By how much a replica of a chain on a node makes recovery less even (the sum of squares of shared chains)."""
        row = self.shared[node]
        return sum([2 * row[self.targets[t].node] + 1 for t in self.members[chain] if t != dropped])

    def fill(self, node: int) -> float:
        """The part of a node's targets that is in chains."""
        return self.load[node] / self.size[node]

    def pick(self, node: int, needed: int) -> int | None:
        """A free target of a node, on the disk with the fewest targets in chains that has room for `needed` bytes."""
        disks = [d for d in self.free.get(node, ()) if self.room[d] >= needed]
        if not disks:
            return None
        disk = min(disks, key=lambda d: (self.disk_load[d], -self.room[d], d))
        return self.free[node][disk][-1]

    def close(self, disk: Disk) -> None:
        """Take nothing of a disk, and count on it no more."""
        self.free.get(disk[0], {}).pop(disk, None)
        self.size[disk[0]] -= sum([self.place_of(target) == disk for target in self.targets])

    def give(self, move: Move) -> None:
        """Plan a move: what it adds is no longer free."""
        if move.add:
            self.room[self.place_of(move.add)] -= self.used(move.chain)
            self._take(move.add)
        self.carry_out(move)

    def take_back(self, move: Move) -> None:
        """Undo `give`."""
        chain = move.chain
        if move.add:
            self.members[chain].remove(move.add)
            self._count(chain, move.add, -1)
            disk = self.place_of(move.add)
            self.free.setdefault(disk[0], {}).setdefault(disk, []).append(move.add)
        if move.drop:
            self.dropped[chain].remove(move.drop)
            self._count(chain, move.drop, 1)
            self.members[chain].append(move.drop)
        if move.add:
            self.room[self.place_of(move.add)] += self.used(chain)

    def carry_out(self, move: Move) -> None:
        members = self.members.get(move.chain)
        if members is None:
            return
        if move.drop in members:
            members.remove(move.drop)
            self.dropped[move.chain].append(move.drop)
            self._count(move.chain, move.drop, -1)
        if move.add and move.add not in members:
            self._count(move.chain, move.add, 1)
            members.append(move.add)

    def _take(self, target: int) -> None:
        disk = self.place_of(target) if target in self.targets else (0, 0)
        disks = self.free.get(disk[0], {})
        if target in disks.get(disk, ()):
            disks[disk].remove(target)
            if not disks[disk]:
                del disks[disk]

    def _count(self, chain: int, target: int, by: int) -> None:
        """Account for a target that comes into a chain, or goes; the chain's members are the others."""
        entry = self.targets.get(target)
        if entry is None:
            return
        self.load[entry.node] += by
        self.disk_load[entry.node, entry.disk] += by
        for other in self.members[chain]:
            peer = self.targets.get(other)
            if peer is not None and peer.node != entry.node:
                self.shared[entry.node][peer.node] += by
                self.shared[peer.node][entry.node] += by
