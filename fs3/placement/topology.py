"""Failure domains: which nodes are lost together, and how many replicas of a chain one domain may hold. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from ..ids import NodeKind
from ..routing import Node, RoutingInfo

_RACK = "rack="


def rack_of(node: Node) -> str | None:
    """The name of a node's rack; None where it has no such tag."""
    return next((tag[len(_RACK) :] for tag in node.tags if tag.startswith(_RACK)), None)


def domain_of(node: Node) -> str:
    """A node's failure domain: `rack NAME`, or `node ID` where it has no such tag."""
    rack = rack_of(node)
    return f"node {node.id}" if rack is None else f"rack {rack}"


def domains(nodes: Mapping[int, Node]) -> dict[int, str]:
    """The failure domain of each storage node, by node id."""
    return {node.id: domain_of(node) for node in nodes.values() if node.kind == NodeKind.STORAGE}


def domain_limit(domains_of_nodes: Collection[str], replicas: int) -> int:
    """How many replicas of a chain one domain may hold, for one entry per node: 1 where there are enough domains.

    The smallest number with which a chain is possible at all; with fewer nodes than replicas none is, and it is `replicas`.
    """
    sizes = Counter(domains_of_nodes).values()
    for limit in range(1, replicas):
        if sum(min(limit, size) for size in sizes) >= replicas:
            return limit
    return max(replicas, 1)


def limit_in(routing: RoutingInfo, replicas: int) -> int:
    """The domain limit of a cluster, over all nodes that have targets, whether they live or not, and are not drained."""
    holders = {target.node for target in routing.targets.values()}
    found = domains(routing.nodes)
    usable = [name for node, name in found.items() if node in holders and not routing.nodes[node].drained]
    return domain_limit(usable, replicas)
