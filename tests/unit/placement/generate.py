"""Clusters for property tests of plans."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def clusters(draw: st.DrawFn, least_nodes: int = 2) -> tuple[list[int], list[tuple[int, ...]], str]:
    """Counts of targets, chains of some of them on different nodes (and racks), and the racks; empty: none."""
    replicas = draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(1, 8), min_size=max(least_nodes, replicas + 1), max_size=8))
    racks = draw(st.sampled_from(["", "abcabcab", "abcdabcd"]))
    free = {node: [node * 1000 + n for n in range(count)] for node, count in enumerate(counts, 1)}
    chains = []
    for _ in range(draw(st.integers(1, 12))):
        nodes: list[int] = []
        for node in draw(st.permutations(sorted(free))):
            if free[node] and len(nodes) < replicas and not (racks and racks[node - 1] in [racks[n - 1] for n in nodes]):
                nodes.append(node)
        if len(nodes) == replicas:
            chains.append(tuple([free[node].pop() for node in nodes]))
    return counts, chains, racks
