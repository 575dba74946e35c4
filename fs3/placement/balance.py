"""How evenly chains load nodes and disks, now and when one of them fails, compared with what is possible. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Balance:
    """Of the chains of a design. All pairs of (least, most) are over the nodes, or disks, that are in a chain.

    node_chains, disk_chains: targets in chains. leads: chains led by a node. share: the largest part of what a failed node
    held that one peer has to give again, of all nodes; share_ideal: 1 / (nodes - 1). disk_share: the same of a failed disk,
    disk_share_ideal likewise. takeover: the most chains of a failed node that one peer leads then.
    """

    chains: int
    nodes: int
    node_chains: tuple[int, int]
    disk_chains: tuple[int, int]
    leads: tuple[int, int]
    share: float
    share_ideal: float
    disk_share: float
    disk_share_ideal: float
    takeover: int
    takeover_ideal: int
    work: int
    """What the fullest node's failure makes others do: its chains, each counted once for every other member."""


def measure(chains: Sequence[Sequence[int]], place: Mapping[int, tuple[int, int]]) -> Balance:
    """chains: target ids, head first. place: target id -> its node and the number of its disk."""
    of_node: Counter[int] = Counter()
    of_disk: Counter[tuple[int, int]] = Counter()
    leads: Counter[int] = Counter()
    peers: defaultdict[int, Counter[int]] = defaultdict(Counter)
    disk_peers: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    followers: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for chain in chains:
        places = [place[target] for target in chain]
        leads[places[0][0]] += 1
        if len(places) > 1:
            followers[places[0][0]][places[1][0]] += 1
        for here in places:
            of_node[here[0]] += 1
            of_disk[here] += 1
            others = [other[0] for other in places if other is not here]
            peers[here[0]].update(others)
            disk_peers[here].update(others)
    nodes = len(of_node)
    ideal = 1 / (nodes - 1) if nodes > 1 else 0.0
    return Balance(
        len(chains),
        nodes,
        _range(of_node.values()),
        _range(of_disk.values()),
        (min([leads[node] for node in of_node], default=0), max(leads.values(), default=0)),
        _largest_share(peers.values()),
        ideal,
        _largest_share(disk_peers.values()),
        _best_share(disk_peers.values(), nodes - 1),
        max([max(row.values()) for row in followers.values()], default=0),
        max([-(-row.total() // (nodes - 1)) for row in followers.values()], default=0),
        max([row.total() for row in peers.values()], default=0),
    )


def _range(values: Collection[int]) -> tuple[int, int]:

    return min(values, default=0), max(values, default=0)


def _largest_share(found: Collection[Counter[int]]) -> float:
    return max([max(row.values()) / row.total() for row in found if row], default=0.0)


def _best_share(found: Collection[Counter[int]], peers: int) -> float:
    return max([-(-row.total() // peers) / row.total() for row in found if row], default=0.0)
