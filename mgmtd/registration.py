"""Which registrations go into one change: thousands come at once after a power failure. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fs3.api.mgmtd import RegisterRequest

from .state import State

TOGETHER_MAX = 250
"""They hold up all others for some 50 ms."""


def together(state: State, requests: Sequence[RegisterRequest]) -> int:
    """How many of the first of these change nothing that another of them looks at; at least the first one."""
    seen: set[int] = set()
    for count, request in enumerate(requests[:TOGETHER_MAX]):
        nodes = {request.node, request.predecessor} - {0}
        alone = _is_odd(state, request, nodes)
        if count and (alone or seen & nodes):
            return count
        if alone:
            return 1
        seen |= nodes
    return min(len(requests), TOGETHER_MAX)


def _is_odd(state: State, request: RegisterRequest, nodes: set[int]) -> bool:
    """It takes targets from another node, or speaks of a client whose id is not given yet."""
    if max(nodes, default=0) >= state.head.next_client:
        return True
    known = (state.targets.get(report.target) for report in request.targets)
    return any(target is not None and target.node != request.node for target in known)
