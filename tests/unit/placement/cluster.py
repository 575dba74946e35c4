"""Routing information for tests of placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fs3.ids import NodeKind
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Table, Target

GIB = 1 << 30


def routing(
    counts: Sequence[int],
    chains: Sequence[Sequence[int]] = (),
    *,
    racks: Sequence[str] = (),
    dead: Sequence[int] = (),
    drained: Sequence[int] = (),
    retired: Sequence[int] = (),
    offline: Sequence[int] = (),
    states: Mapping[int, PublicState] | None = None,
    used: int = GIB,
    per_disk: int = 1,
) -> RoutingInfo:
    """counts[i] targets on node i + 1, with ids node * 1000 + n, `per_disk` on each disk; chains 1, 2... make up table 1."""
    held = {target: number for number, chain in enumerate(chains, 1) for target in chain}
    nodes, targets = {}, {}
    for node, count in enumerate(counts, 1):
        tags = (f"rack={racks[node - 1]}",) if racks else ()
        nodes[node] = Node(
            node, NodeKind.STORAGE, f"tcp://h{node}:1", f"h{node}", node not in dead, 1, tags, drained=node in drained
        )
        for n in range(count):
            target = node * 1000 + n
            local = LocalState.OFFLINE if node in dead or target in offline else LocalState.UPTODATE
            chain = held.get(target, 0)
            targets[target] = Target(
                target, node, n // per_disk, chain, local, 100 * GIB, used if chain else 0, target in retired
            )
    state = states or {}
    made = {
        number: Chain(number, 1, tuple([ChainTarget(t, state.get(t, PublicState.SERVING)) for t in chain]))
        for number, chain in enumerate(chains, 1)
    }
    tables = {1: Table(1, 1, tuple(made), len(chains[0]))} if chains else {}
    return RoutingInfo(1, "test", made, tables, targets, nodes)
