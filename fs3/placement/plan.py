"""What a plan of moves consists of, and what all planners share. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..api.admin import Move
from ..errors import Code, FS3Error
from ..routing import RoutingInfo
from .heads import spread_heads
from .world import World


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operator is shown, and then submits. kind, title, moves, drain, table, replicas: as of SubmitRequest.

    notes: sentences for people. copied: node -> bytes that are copied to it.
    """

    kind: str
    title: str
    moves: tuple[Move, ...]
    notes: tuple[str, ...] = ()
    copied: Mapping[int, int] = field(default_factory=dict)
    drain: tuple[int, ...] = ()
    table: int = 0
    replicas: int = 0


def copied(routing: RoutingInfo, moves: Sequence[Move]) -> dict[int, int]:
    """Node -> bytes that moves copy to it, as far as fill levels are known."""
    found: Counter[int] = Counter()
    for move in moves:
        if move.add:
            members = [routing.targets[e.target] for e in routing.chains[move.chain].targets if e.target in routing.targets]
            found[routing.targets[move.add].node] += max([target.used for target in members], default=0)
    return dict(sorted(found.items()))


def bad_plan(message: str) -> FS3Error:
    return FS3Error(Code.BAD_PLAN, message)


def require_serving(routing: RoutingInfo, chains: Iterable[int]) -> None:
    """Raises BAD_PLAN for chains that nothing can be copied from."""
    down = [chain for chain in sorted(set(chains)) if not routing.chains[chain].serving()]
    if down:
        named = f"chain{'s' if len(down) > 1 else ''} {', '.join(map(str, down[:10]))}{', ...' if len(down) > 10 else ''}"
        raise bad_plan(f"no target of {named} serves, so nothing can be copied from there: bring one back first")


def with_heads(world: World, moves: Sequence[Move]) -> tuple[Move, ...]:
    """Say who is to lead where a move takes away the head of a chain, so that leads stay even."""
    routing = world.routing
    changing = [i for i, move in enumerate(moves) if move.drop and move.drop == routing.chains[move.chain].head()]
    heirs: dict[int, list[int]] = {}
    for i in changing:
        chain = routing.chains[moves[i].chain]
        heirs[i] = [t for t in (*chain.serving(), moves[i].add) if t in world.members[chain.id] and t in routing.targets]
    changing = [i for i in changing if heirs[i]]
    apart = {moves[i].chain for i in changing}
    others = [chain.head() for chain in routing.chains.values() if chain.id not in apart]
    fixed = Counter([routing.targets[head].node for head in others if head is not None and head in routing.targets])
    places = [[routing.targets[t].node for t in heirs[i]] for i in changing]
    found = spread_heads(places, [nodes[0] for nodes in places], ideal_leads(world), fixed)
    done = list(moves)
    for i, nodes, node in zip(changing, places, found, strict=True):
        if node != nodes[0]:  # who follows anyway
            done[i] = Move(moves[i].chain, moves[i].add, moves[i].drop, heirs[i][nodes.index(node)])
    return tuple(done)


def ideal_leads(world: World) -> dict[int, float]:
    """Node -> chains that it should lead: an equal part of those that it holds."""
    ideal: dict[int, float] = {}
    for members in world.members.values():
        for target in members:
            if target in world.targets:
                node = world.targets[target].node
                ideal[node] = ideal.get(node, 0.0) + 1 / len(members)
    return ideal
