"""Who leads which chain, so that every node leads about as many as any other. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

_LEAST_GAIN = 1e-6


def spread_heads(
    options: Sequence[Sequence[int]],
    heads: Sequence[int],
    ideal: Mapping[int, float],
    fixed: Mapping[int, int] | None = None,
) -> list[int]:
    """The node that is to lead each chain, by few changes: each node as near to its ideal as can be.

    options: the nodes that may lead a chain. heads: those that lead now, of the options. ideal: node -> chains that it
    should lead. fixed: chains that it leads besides these.
    """
    found = list(heads)
    over = Counter(fixed or {})  # node -> chains it leads, less its ideal
    over.update(found)
    excess = {node: over[node] - ideal.get(node, 0.0) for node in {*over, *[n for nodes in options for n in nodes]}}
    led: dict[int, set[int]] = {node: set() for node in excess}
    for chain, node in enumerate(found):
        led[node].add(chain)
    changed = True
    while changed:
        changed = False
        lowest = min(excess.values(), default=0.0)
        for start in sorted(excess, key=lambda n: (-excess[n], n)):
            if excess[start] - 1 - _LEAST_GAIN <= lowest:
                break  # nobody has so few that it would help
            path = _path(start, options, led, excess)
            if path:
                for chain, node, heir in path:
                    led[node].remove(chain)
                    led[heir].add(chain)
                    found[chain] = heir
                excess[start] -= 1
                excess[path[-1][2]] += 1
                changed = True
    return found


def _path(
    start: int, options: Sequence[Sequence[int]], led: Mapping[int, set[int]], excess: Mapping[int, float]
) -> list[tuple[int, int, int]]:
    """Changes (chain, from node, to node) by which `start` leads one chain less, and a node with too few one more."""
    came: dict[int, tuple[int, int]] = {start: (-1, start)}  # node -> the chain that comes to it, and from whom
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if excess[node] < excess[start] - 1 - _LEAST_GAIN:
            path = []
            while node != start:
                chain, before = came[node]
                path.append((chain, before, node))
                node = before
            return path[::-1]
        for chain in sorted(led[node]):
            for heir in options[chain]:
                if heir not in came:
                    came[heir] = (chain, node)
                    queue.append(heir)
    return []
