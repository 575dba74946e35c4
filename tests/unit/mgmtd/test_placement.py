from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.errors import Code, FS3Error
from fs3.routing import LocalState, Target
from mgmtd.placement import place


def targets(counts: Sequence[int]) -> list[Target]:
    """counts[i] targets on node i + 1; ids node * 1000 + n."""
    return [
        Target((node + 1) * 1000 + n, node + 1, n, 0, LocalState.ONLINE, 1, 0)
        for node, count in enumerate(counts)
        for n in range(count)
    ]


def test_three_nodes_of_four_targets_lead_in_turn() -> None:
    chains = place(targets([4, 4, 4]), 3)
    assert len(chains) == 4
    assert sorted(t for chain in chains for t in chain) == sorted(t.id for t in targets([4, 4, 4]))
    assert sorted(Counter(chain[0] // 1000 for chain in chains).values()) == [1, 1, 2]


def test_one_replica_uses_every_target() -> None:
    assert sorted(place(targets([2, 3]), 1)) == [(1000,), (1001,), (2000,), (2001,), (2002,)]


@pytest.mark.parametrize(
    ("counts", "replicas", "message"),
    [
        ([], 1, "1 replicas need targets on 1 different storage nodes; none has free ones"),
        ([4, 4], 3, "3 replicas need targets on 3 different storage nodes; 2 (ids 1, 2) have free ones"),
        ([4, 4], 0, "0 replicas: at least 1 is needed"),
    ],
)
def test_impossible(counts: list[int], replicas: int, message: str) -> None:
    with pytest.raises(FS3Error) as caught:
        place(targets(counts), replicas)
    assert (caught.value.code, caught.value.message) == (Code.BAD_PLACEMENT, message)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 4))
def test_as_many_chains_as_possible(counts: list[int], replicas: int) -> None:
    if len(counts) < replicas:
        return
    chains = place(targets(counts), replicas)
    used = [t for chain in chains for t in chain]
    assert len(used) == len(set(used))
    assert all(len({t // 1000 for t in chain}) == replicas for chain in chains)
    # k chains need k * replicas targets of which no node gives more than k.
    assert len(chains) == max(k for k in range(sum(counts) + 1) if sum(min(c, k) for c in counts) >= k * replicas)
    assert place(list(reversed(targets(counts))), replicas) == chains


@given(st.integers(3, 10), st.integers(1, 12), st.integers(1, 3))
def test_equal_nodes_lead_about_equally(nodes: int, count: int, replicas: int) -> None:
    chains = place(targets([count] * nodes), replicas)
    heads = Counter(chain[0] // 1000 for chain in chains)
    assert max(heads.values()) - min(heads.get(n + 1, 0) for n in range(nodes)) <= 2


def test_a_nodes_chains_are_shared_with_many_others() -> None:
    """So that its recovery is not the work of two neighbours."""
    chains = place(targets([12] * 12), 3)
    partners = {t // 1000 for chain in chains if any(t // 1000 == 1 for t in chain) for t in chain}
    assert len(partners) >= 9
