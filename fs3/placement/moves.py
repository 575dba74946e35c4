"""Plans of moves: what has to move where so that a node or disk can go, or so that what came is used. Pure.

Every move takes only targets that are free now, so that the moves of a plan can be carried out in any order, and be stopped
after any of them. A plan counts the moves of operations under way (`pending`) as if they were done, and stays out of
their way. Balance: receiving nodes get the same part of their targets filled, and of those that are equal in this the one
that shares the fewest chains with the chain's other nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from ..api.admin import Move
from ..ids import NodeKind
from ..routing import PublicState, RoutingInfo
from .design import Solver
from .heads import spread_heads
from .order import Leads
from .place import Placed, place_well
from .plan import Plan, bad_plan, copied, ideal_leads, require_serving, with_heads
from .rebalance import rebalance
from .substitutes import Wanted, substitutes
from .world import World

__all__ = ["Plan", "drain", "grow", "rebalance", "replace", "set_replicas"]


GROW_STEPS = 2_000_000


def drain(routing: RoutingInfo, nodes: Collection[int], pending: Iterable[Move] = ()) -> Plan:
    """Empty storage nodes: every target of theirs that is in a chain gets a substitute elsewhere. Raises BAD_PLAN.

    pending: the moves of operations under way that are not over (WAITING or FILLING).
    """
    leaving = sorted(set(nodes))
    for node in leaving:
        known = routing.nodes.get(node)
        if known is None or known.kind != NodeKind.STORAGE:
            raise bad_plan(
                f"node {node} is {'not known' if known is None else 'no storage node'}; see `fs3 admin node list`"
            )
    if not leaving:
        raise bad_plan("no node is given: say which ones are to be emptied")
    world = World(routing, pending, leaving)
    what = f"node{'s' if len(leaving) > 1 else ''} {', '.join(map(str, leaving))}"
    dropped = [
        Wanted(chain, target)
        for chain, members in sorted(world.members.items())
        for target in members
        if target in routing.targets and routing.targets[target].node in leaving
    ]
    moves = _substituted(world, dropped, what)
    notes = [] if moves else [f"no target of {what} is in a chain: it can go at once"]
    return Plan("drain", f"drain {what}", moves, tuple(notes), copied(routing, moves), drain=tuple(leaving))


def replace(routing: RoutingInfo, node: int, disk: int, pending: Iterable[Move] = ()) -> Plan:
    """Empty one disk, which may be dead: substitutes on other disks, of this node too. Raises BAD_PLAN."""
    there = {target.id for target in routing.targets.values() if (target.node, target.disk) == (node, disk)}
    if not there:
        disks = sorted({target.disk for target in routing.targets.values() if target.node == node})
        have = f"it has disks {', '.join(map(str, disks))}" if disks else "no target is known of this node"
        raise bad_plan(f"node {node} has no disk {disk}: {have}")
    world = World(routing, pending)
    world.close((node, disk))
    what = f"disk {disk} of node {node}"
    dropped = [
        Wanted(chain, target) for chain, members in sorted(world.members.items()) for target in members if target in there
    ]
    moves = _substituted(world, dropped, what)
    notes = [] if moves else [f"no target of {what} is in a chain: it can go at once"]
    return Plan("replace", f"replace {what}", moves, tuple(notes), copied(routing, moves))


def set_replicas(routing: RoutingInfo, table: int, replicas: int, pending: Iterable[Move] = ()) -> Plan:
    """Give each chain of a table so many replicas, by more targets or by fewer. Raises BAD_PLAN.

    Of what can be dropped the last that serves is kept, and what does not serve goes first; then what shares a failure
    domain with another, then that of the node with the largest part of its targets in chains.
    """
    known = routing.tables.get(table)
    if known is None:
        raise bad_plan(f"there is no chain table {table}; see `fs3 admin table list`")
    world = World(routing, pending)
    nodes = len(world.usable_nodes())
    if not 1 <= replicas <= nodes:
        raise bad_plan(
            f"{replicas} replicas: expected 1 to {nodes}, since each is on a node of its own and {nodes} can be used"
        )
    what = f"chain table {table}"
    changing = [chain for chain in known.chains if len(world.members[chain]) != replicas]
    if not changing and known.replicas == replicas:
        raise bad_plan(f"{what} has {replicas} replicas already")
    _check_idle(world, changing)
    require_serving(routing, changing)
    more = [Wanted(chain) for chain in changing for _ in range(replicas - len(world.members[chain]))]
    moves = substitutes(world, more, what, replicas) if more else []
    while larger := [chain for chain in changing if len(world.members[chain]) > replicas]:
        moves += _drops(world, larger)
    notes = []
    limit = world.limit(replicas)
    if limit > 1 and replicas > known.replicas:
        notes.append(f"there are too few racks for {replicas} replicas: up to {limit} of a chain share one")
    title = f"{replicas} replicas in {what}"
    found = with_heads(world, moves)
    return Plan("set-replicas", title, found, tuple(notes), copied(routing, found), table=table, replicas=replicas)


def grow(
    routing: RoutingInfo, table: int, pending: Iterable[Move] = (), *, steps: int = GROW_STEPS, solver: Solver | None = None
) -> Placed:
    """New chains for a table, out of all free targets, for CREATE_TABLE; nodes that share few chains now get to share more.

    Raises BAD_PLAN, BAD_PLACEMENT.
    """
    known = routing.tables.get(table)
    if known is None:
        raise bad_plan(f"there is no chain table {table}; see `fs3 admin table list`")
    return new_chains(routing, known.replicas, pending, steps=steps, solver=solver)


def new_chains(
    routing: RoutingInfo,
    replicas: int,
    pending: Iterable[Move] = (),
    *,
    steps: int = GROW_STEPS,
    solver: Solver | None = None,
) -> Placed:
    """New chains of all free targets. Raises BAD_PLACEMENT."""
    world = World(routing, pending)
    free = [routing.targets[t] for disks in world.free.values() for targets in disks.values() for t in targets]
    heads = [head for chain in routing.chains.values() if (head := chain.head()) is not None]
    leads = Leads(Counter([routing.targets[head].node for head in heads]), ideal_leads(world))
    return place_well(
        free,
        replicas,
        routing.nodes,
        steps=steps,
        solver=solver,
        limit=world.limit(replicas),
        shared=world.shared,
        leads=leads,
    )


def _drops(world: World, chains: Sequence[int]) -> list[Move]:
    """One member of each chain leaves it, so that nodes keep equal parts of their targets in chains."""
    options = [_droppable(world, chain) for chain in chains]
    places = [[world.targets[target].node for target in targets] for targets in options]
    kept = (sum(world.load.values()) - len(chains)) / sum(world.size.values())
    ideal = {node: world.load[node] - kept * size for node, size in world.size.items()}
    found = []
    taken: Counter[int] = Counter()
    for nodes in places:
        found.append(max(nodes, key=lambda node: ideal[node] - taken[node]))
        taken[found[-1]] += 1
    found = spread_heads(places, found, ideal)  # who drops one is chosen as who leads one is
    moves = []
    for chain, targets, nodes, node in zip(chains, options, places, found, strict=True):
        moves.append(Move(chain, drop=targets[nodes.index(node)]))
        world.give(moves[-1])
    return moves


def _droppable(world: World, chain: int) -> list[int]:
    """The members that a chain does without most easily: at least one, and never the last that serves."""
    states = {entry.target: entry.state for entry in world.routing.chains[chain].targets}
    members = world.members[chain]
    serving = [t for t in members if states.get(t) is PublicState.SERVING]
    if len(serving) < len(members):
        return [t for t in members if t not in serving]
    domains = [world.domain.get(world.targets[t].node) for t in members]
    most = max([domains.count(domain) for domain in domains])
    crowded = [t for t, domain in zip(members, domains, strict=True) if domains.count(domain) == most]
    # Leads are even as they are; the head stays where another can go.
    return [t for t in crowded if t != serving[0]] or crowded


def _check_idle(world: World, chains: Iterable[int]) -> None:
    """Raises BAD_PLAN where an operation under way changes one of these chains."""
    busy = sorted(world.busy.intersection(chains))
    if busy:
        raise bad_plan(
            f"an operation under way changes chain{'s' if len(busy) > 1 else ''} {', '.join(map(str, busy[:10]))}"
            f"{', ...' if len(busy) > 10 else ''}: wait until it is done, or cancel it (`fs3 admin operation list`)"
        )


def _substituted(world: World, dropped: Sequence[Wanted], what: str) -> tuple[Move, ...]:
    _check_idle(world, [want.chain for want in dropped])
    require_serving(world.routing, [want.chain for want in dropped])
    return with_heads(world, substitutes(world, dropped, what))
