from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.placement.balance import measure
from fs3.placement.heads import spread_heads
from fs3.placement.place import place, place_well
from fs3.routing import LocalState, Node, Target


def targets(counts: Sequence[int]) -> list[Target]:
    """counts[i] targets on node i + 1; ids node * 1000 + n."""
    return [
        Target((node + 1) * 1000 + n, node + 1, n, 0, LocalState.ONLINE, 1, 0)
        for node, count in enumerate(counts)
        for n in range(count)
    ]


def test_three_nodes_of_four_targets_lead_in_turn() -> None:
    chains = place(targets([4, 4, 4]), 3, {})
    assert len(chains) == 4
    assert sorted(t for chain in chains for t in chain) == sorted(t.id for t in targets([4, 4, 4]))
    assert sorted(Counter(chain[0] // 1000 for chain in chains).values()) == [1, 1, 2]


def test_one_replica_uses_every_target() -> None:
    assert sorted(place(targets([2, 3]), 1, {})) == [(1000,), (1001,), (2000,), (2001,), (2002,)]


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
        place(targets(counts), replicas, {})
    assert (caught.value.code, caught.value.message) == (Code.BAD_PLACEMENT, message)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 4))
def test_as_many_chains_as_possible(counts: list[int], replicas: int) -> None:
    if len(counts) < replicas:
        return
    chains = place(targets(counts), replicas, {})
    used = [t for chain in chains for t in chain]
    assert len(used) == len(set(used))
    assert all(len({t // 1000 for t in chain}) == replicas for chain in chains)
    # k chains need k * replicas targets of which no node gives more than k.
    assert len(chains) == max(k for k in range(sum(counts) + 1) if sum(min(c, k) for c in counts) >= k * replicas)
    assert place(list(reversed(targets(counts))), replicas, {}) == chains


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 10), st.integers(1, 12), st.integers(1, 3))
def test_equal_nodes_lead_equally(nodes: int, count: int, replicas: int) -> None:
    chains = place(targets([count] * nodes), replicas, {})
    heads = Counter(chain[0] // 1000 for chain in chains)
    assert max(heads.values()) - min(heads.get(n + 1, 0) for n in range(nodes)) <= 1


@pytest.mark.parametrize(("nodes", "disks", "on_disk", "replicas"), [(10, 4, 4, 3), (6, 2, 4, 2), (25, 8, 4, 3)])
def test_what_fails_is_the_work_of_many(nodes: int, disks: int, on_disk: int, replicas: int) -> None:
    """Of nodes and of disks: no peer has more to do than one chain above an even share."""
    made = [
        Target(node * 10_000 + disk * 100 + n, node, disk, 0, LocalState.ONLINE, 1, 0)
        for node in range(1, nodes + 1)
        for disk in range(disks)
        for n in range(on_disk)
    ]
    found = place_well(made, replicas, {}, steps=60_000)
    balance = measure(found.chains, {target.id: (target.node, target.disk) for target in made})
    one_chain = 1 / (disks * on_disk - 1) / (replicas - 1)
    assert balance.share < balance.share_ideal + one_chain
    assert balance.disk_share <= 1.5 * balance.disk_share_ideal
    assert balance.leads[1] - balance.leads[0] <= 1
    assert balance.disk_chains[1] - balance.disk_chains[0] <= 1
    assert balance.takeover <= 2 * balance.takeover_ideal


def test_racks_are_kept_apart() -> None:
    nodes = {n: Node(n, NodeKind.STORAGE, "", "", True, 1, (f"rack={n % 3}",)) for n in range(1, 7)}
    found = place_well(targets([4] * 6), 3, nodes, steps=10_000)
    assert (len(found.chains), found.unused, found.limit, found.domains, found.racks) == (8, 0, 1, 3, True)
    assert all(len({target // 1000 % 3 for target in chain}) == 3 for chain in found.chains)


def test_free_targets_in_too_few_racks() -> None:
    nodes = {n: Node(n, NodeKind.STORAGE, "", "", True, 1, (f"rack={n % 2}",)) for n in range(1, 5)}
    with pytest.raises(FS3Error) as caught:
        place_well(targets([4] * 4), 3, nodes, steps=1, limit=1)
    message = "3 replicas of which at most 1 may be in one rack: the free targets are in 2 racks"
    assert (caught.value.code, caught.value.message) == (Code.BAD_PLACEMENT, message)


def test_leads_pass_along_chains() -> None:
    """Node 1 leads all, and node 3 can only be given a lead by way of node 2."""
    assert Counter(spread_heads([(1, 2), (1, 2), (2, 3)], [1, 1, 2], {1: 1, 2: 1, 3: 1})) == {1: 1, 2: 1, 3: 1}
    assert spread_heads([(1, 2)], [1], {1: 0.5, 2: 0.5}) == [1], "no change without a gain"
    assert spread_heads([(1, 2)], [1], {1: 1.0, 2: 1.0}, {1: 1}) == [2], "who leads besides counts"
