"""Plans that give every node and disk its part of the chains, and of the leads, after a cluster has grown. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..api.admin import Move
from ..routing import LocalState, PublicState, RoutingInfo
from .heads import spread_heads
from .plan import Plan, copied, ideal_leads
from .world import Disk, World

K = TypeVar("K", int, Disk)

_BISECTIONS = 60
_EPSILON = 1e-9


def rebalance(routing: RoutingInfo, pending: Iterable[Move] = ()) -> Plan:
    """Make the chains of nodes, and of each one's disks, proportional to capacity within one, by as few moves as can be.

    Before that, replicas that share a failure domain and need not are moved apart; after it, leads are made even by changes
    of heads. Chains stay as they are that operations under way change, or of which not every target serves. Nodes that are
    dead or drained keep what they have.
    """
    work = _Rebalance(World(routing, pending))
    work.move_apart()
    work.set_goals()
    work.within_nodes()
    work.between_nodes()
    moves = _with_even_leads(work.world, work.moves, work.movable)
    notes = list(work.notes())
    return Plan("rebalance", "rebalance", moves, tuple(notes), copied(routing, moves))


def apportion(
    total: int, weights: Mapping[K, float], low: Mapping[K, int], high: Mapping[K, int], now: Mapping[K, int]
) -> dict[K, int]:
    """Whole parts of `total` in proportion to weights, each within one of its exact part, and from low to high.

    Of several ways the one that is nearest to what they have now. What low and high do not allow is left out.
    """
    keys = sorted(weights, key=_key)
    total = min(max(total, sum([low[k] for k in keys])), sum([high[k] for k in keys]))

    def parts(rate: float) -> dict[K, float]:
        return {k: min(max(rate * weights[k], float(low[k])), float(high[k])) for k in keys}

    bottom, top = 0.0, max([high[k] / weights[k] for k in keys], default=0.0)
    for _ in range(_BISECTIONS):
        rate = (bottom + top) / 2
        if sum(parts(rate).values()) < total:
            bottom = rate
        else:
            top = rate
    exact = parts(top)
    found = {k: int(exact[k] + _EPSILON) for k in keys}
    rest = total - sum(found.values())
    gain = sorted(keys, key=lambda k: (now[k] <= found[k], found[k] - exact[k], _key(k)))
    # More than one round only where rounding went against us.
    for only_fractions in (True, False):
        for k in gain:
            if rest > 0 and found[k] < high[k] and (not only_fractions or exact[k] - found[k] > _EPSILON):
                found[k] += 1
                rest -= 1
    return found


def _key(key: int | Disk) -> Disk:
    return key if isinstance(key, tuple) else (key, 0)


class _Rebalance:
    def __init__(self, world: World) -> None:
        self.world = world
        self.moves: list[Move] = []
        routing = world.routing
        self.movable = {
            chain.id
            for chain in routing.chains.values()
            if chain.id not in world.busy and all(entry.state is PublicState.SERVING for entry in chain.targets)
        }
        self.crowded = 0
        """Chains with more replicas in a failure domain than need be, which stay there."""
        self.held: defaultdict[Disk, list[int]] = defaultdict(list)
        """Disk -> targets that can be moved away."""
        self.nodes = [node for node in world.usable_nodes() if routing.nodes[node].alive]
        self.disks: dict[int, list[Disk]] = defaultdict(list)
        for disk in sorted({world.place_of(target) for target in world.targets}):
            self.disks[disk[0]].append(disk)
        self.over: dict[Disk, int] = {}
        """Disk -> targets that it is to give away; below 0: that it is to get."""
        self.too_many: Counter[int] = Counter()
        """Node -> targets that its disks which have too many are to give away; too_few likewise."""
        self.too_few: Counter[int] = Counter()

    def move_apart(self) -> None:
        """Move replicas away from failure domains that hold more of their chain than need be."""
        world = self.world
        for chain in sorted(self.movable):
            members = world.members[chain]
            limit = world.limit(len(members))
            domains = Counter([world.domain.get(world.targets[target].node) for target in members])
            over = [domain for domain, count in domains.items() if count > limit]
            for domain in over:
                for _ in range(domains[domain] - limit):
                    there = [t for t in members if world.domain.get(world.targets[t].node) == domain]
                    move = self._away(chain, sorted(there, key=lambda t: (-world.fill(world.targets[t].node), t)), limit)
                    if move is None:
                        self.crowded += 1
                        break
                    world.give(move)
                    self.moves.append(move)

    def _away(self, chain: int, leavers: list[int], limit: int) -> Move | None:
        """A move of one of these to the node with the smallest part of its targets in chains."""
        world = self.world
        needed = world.used(chain)
        for node in sorted(world.free, key=lambda n: (world.fill(n), n)):
            for leaver in leavers:
                if world.allowed(chain, node, leaver, limit) and (target := world.pick(node, needed)):
                    return Move(chain, target, leaver)
        return None

    def set_goals(self) -> None:
        """Find what each disk has too many or too few, and what can be moved away."""
        world = self.world
        fixed: Counter[Disk] = Counter()
        for chain, members in sorted(world.members.items()):
            for target in members:
                if chain in self.movable and world.targets[target].chain == chain:
                    self.held[world.place_of(target)].append(target)
                elif target in world.targets:
                    fixed[world.place_of(target)] += 1
        for disk, count in self._wanted_changes(fixed).items():
            self._change(disk, count)

    def _wanted_changes(self, fixed: Counter[Disk]) -> dict[Disk, int]:
        world = self.world
        capacity: Counter[Disk] = Counter()
        places: Counter[Disk] = Counter()  # those that are to be emptied too: a plan must not change when they are
        for target in world.targets.values():
            capacity[target.node, target.disk] += target.capacity
            places[target.node, target.disk] += target.local is not LocalState.OFFLINE
        disks = self.disks
        most = {disk: max(world.disk_load[disk], count) for disk, count in places.items()}
        low = {node: sum([fixed[d] for d in disks[node]]) for node in self.nodes}
        load = {node: world.load[node] for node in self.nodes}
        chains = len(world.members)
        high = {n: max(load[n], min(chains, sum([most[d] for d in disks[n]]))) for n in self.nodes}
        weights = {node: max(1.0, float(sum([capacity[d] for d in disks[node]]))) for node in self.nodes}
        wanted = apportion(sum(load.values()), weights, low, high, load)
        over = {}
        for node in self.nodes:
            own = disks[node]
            found = apportion(
                wanted[node],
                {d: max(1.0, float(capacity[d])) for d in own},
                {d: fixed[d] for d in own},
                {d: most[d] for d in own},
                {d: world.disk_load[d] for d in own},
            )
            over.update({disk: world.disk_load[disk] - count for disk, count in found.items()})
        return over

    def within_nodes(self) -> None:
        """Between disks of one node first: who shares chains with whom stays as it is."""
        for node in self.nodes:
            moved = True
            while moved and self.too_many[node] and self.too_few[node]:
                moved = self._send(node, node)

    def between_nodes(self) -> None:
        """From the nodes with most too many to those with most too few."""
        stuck: set[int] = set()
        while True:
            needy = [n for n in self.nodes if self.too_few[n] and n not in stuck]
            if not needy:
                return
            receiver = max(needy, key=lambda n: (self.too_few[n], -n))
            givers = sorted([n for n in self.nodes if self.too_many[n]], key=lambda n: (-self.too_many[n], n))
            if not (any(self._send(giver, receiver) for giver in givers) or self._send_by_another(givers, receiver)):
                stuck.add(receiver)

    def notes(self) -> Iterable[str]:
        world = self.world
        short = self.too_many.total()
        if short:
            yield f"{short} more targets would have to move, and find no place away from their chains' others"
        if self.crowded:
            yield f"{self.crowded} chains keep more replicas in one rack than need be, for want of free targets elsewhere"
        left = len(world.members) - len(self.movable)
        if left:
            yield f"{left} chains stay as they are, since not all of their targets serve or an operation changes them"
        away = [n for n in sorted(world.size) if n in world.domain and n not in self.nodes and world.load[n]]
        if away:
            yield f"nodes {', '.join(map(str, away))} are dead or drained and keep what they have"

    def _send(self, giver: int, receiver: int) -> bool:
        """Move one target from a disk that has too many to one that has too few; False where none can."""
        best: tuple[int, int, int] | None = None
        for target in self._held_by(giver):
            if self.over.get(self.world.place_of(target), 0) > 0:
                landing = self._landing(target, receiver, only_needy=True)
                if landing:
                    key = (self._cost(target, receiver), target, landing)
                    best = key if best is None else min(best, key)
        if best is None:
            return False
        self._apply(best[1], best[2])
        return True

    def _send_by_another(self, givers: list[int], receiver: int) -> bool:
        """Where no chain of a giver can come to the receiver: a third node takes one of theirs, and gives one of its own."""
        for between in self.nodes:
            if between == receiver or between not in self.world.free:
                continue
            for leaver in self._held_by(between):
                landing = self._landing(leaver, receiver, only_needy=True)
                if not landing:
                    continue
                for comer in [t for giver in givers if giver != between for t in self._held_by(giver)]:
                    if self.over.get(self.world.place_of(comer), 0) > 0 and self._chain(comer) != self._chain(leaver):
                        place = self._landing(comer, between, only_needy=False)
                        if place:
                            self._apply(leaver, landing)
                            self._apply(comer, place)
                            return True
        return False

    def _held_by(self, node: int) -> list[int]:
        return [target for disk in self.disks[node] for target in self.held.get(disk, ())]

    def _chain(self, target: int) -> int:
        return self.world.targets[target].chain

    def _landing(self, target: int, node: int, *, only_needy: bool) -> int:
        """A free target of a node to which a target's replica can move; 0: none. only_needy: on a disk that has too few."""
        world, chain = self.world, self._chain(target)
        if not world.allowed(chain, node, target, world.limit(len(world.members[chain]))):
            return 0
        needed = world.used(chain)
        disks = [
            disk
            for disk in world.free.get(node, ())
            if world.room[disk] >= needed and (self.over.get(disk, 0) < 0 or not only_needy)
        ]
        if not disks:
            return 0
        disk = min(disks, key=lambda d: (self.over.get(d, 0), world.disk_load[d], d))
        return world.free[node][disk][-1]

    def _cost(self, target: int, node: int) -> int:
        """By how much the move makes recovery less even."""
        world, chain = self.world, self._chain(target)
        giver = world.targets[target].node
        if giver == node:
            return 0
        row = world.shared[giver]
        others = [world.targets[t].node for t in world.members[chain] if t != target]
        return world.pair_cost(chain, node, target) - sum([2 * row[other] - 1 for other in others])

    def _apply(self, drop: int, add: int) -> None:
        move = Move(self._chain(drop), add, drop)
        self.world.give(move)
        self.moves.append(move)
        source, landing = self.world.place_of(drop), self.world.place_of(add)
        self.held[source].remove(drop)
        self._change(source, -1)
        self._change(landing, 1)

    def _change(self, disk: Disk, by: int) -> None:
        before = self.over.get(disk, 0)
        self.over[disk] = after = before + by
        self.too_many[disk[0]] += max(after, 0) - max(before, 0)
        self.too_few[disk[0]] += max(-after, 0) - max(-before, 0)


def _with_even_leads(world: World, moves: list[Move], movable: set[int]) -> tuple[Move, ...]:
    """Add to moves, or as moves of their own, the changes of heads that make leads even."""
    routing = world.routing
    added = {move.add: index for index, move in enumerate(moves) if move.add}
    last = {move.chain: index for index, move in enumerate(moves)}
    fixed: Counter[int] = Counter()
    chains, members, sure = [], [], []
    for chain in sorted(routing.chains):
        if chain in movable:
            stay = [target for target in routing.chains[chain].serving() if target in world.members[chain]]
            chains.append(chain)
            sure.append(bool(stay))  # else who comes first depends on the order of the moves
            members.append(stay + [target for target in world.members[chain] if target not in stay])
        elif (head := routing.chains[chain].head()) is not None:
            fixed[routing.targets[head].node] += 1
    places = [[routing.targets[target].node for target in targets] for targets in members]
    heads = spread_heads(places, [nodes[0] for nodes in places], ideal_leads(world), fixed)
    found = list(moves)
    for chain, targets, nodes, node, leads in zip(chains, members, places, heads, sure, strict=True):
        if node == nodes[0] and leads:
            continue
        head = targets[nodes.index(node)]
        index = added.get(head, last.get(chain))
        if index is None:
            found.append(Move(chain, head=head))
        else:
            found[index] = Move(chain, found[index].add, found[index].drop, head)
    return tuple(found)
