"""Which targets make up the chains of the first chain table. Pure."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable

from fs3.errors import Code, FS3Error
from fs3.routing import Target

_MASK = (1 << 64) - 1


def place(targets: Iterable[Target], replicas: int) -> list[tuple[int, ...]]:
    """Chains of `replicas` target ids each, head first: as many as the targets allow.

    A chain's targets are on different nodes, no target is used twice, and every node leads about as many chains as any
    other. The same targets give the same chains. Raises BAD_PLACEMENT where not a single chain can be made.
    """
    if replicas < 1:
        raise FS3Error(Code.BAD_PLACEMENT, f"{replicas} replicas: at least 1 is needed")
    free: dict[int, list[int]] = defaultdict(list)
    for target in sorted(targets, key=lambda t: (t.node, t.id), reverse=True):
        free[target.node].append(target.id)
    if len(free) < replicas:
        have = f"{len(free)} (ids {', '.join(map(str, sorted(free)))}) have" if free else "none has"
        raise FS3Error(
            Code.BAD_PLACEMENT, f"{replicas} replicas need targets on {replicas} different storage nodes; {have} free ones"
        )
    # The nodes with the most free targets first: that yields the largest number of chains. Equal ones in an order that
    # differs from round to round, so that a node's chains are shared with many others.
    heap = [(-len(ids), _mix(node, len(ids)), node) for node, ids in free.items()]
    heapq.heapify(heap)
    led: dict[tuple[int, int], int] = defaultdict(int)
    chains = []
    while len(heap) >= replicas:
        members = [heapq.heappop(heap)[2] for _ in range(replicas)]
        chains.append(tuple([free[node].pop() for node in _order(members, led)]))
        for node in members:
            if free[node]:
                heapq.heappush(heap, (-len(free[node]), _mix(node, len(free[node])), node))
    return chains


def _order(members: list[int], led: dict[tuple[int, int], int]) -> list[int]:
    """The members in chain order: each position goes to the one that had it least. led: (position, node) -> times."""
    rest = sorted(members)
    ordered = []
    for position in range(len(members)):
        node = min(rest, key=lambda n: (led[position, n], n))
        led[position, node] += 1
        rest.remove(node)
        ordered.append(node)
    return ordered


def _mix(a: int, b: int) -> int:
    """A fixed scrambling of two numbers (the finalizer of splitmix64)."""
    x = (a * 0x9E3779B97F4A7C15 + b * 0xD1B54A32D192ED03 + 1) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
