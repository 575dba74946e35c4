from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.api.admin import Move
from fs3.errors import Code, FS3Error
from fs3.placement.moves import grow, rebalance, set_replicas
from fs3.placement.place import place
from fs3.placement.rebalance import apportion
from fs3.routing import PublicState, RoutingInfo

from .cluster import routing
from .generate import clusters
from .model import carry_out, check_apart, leads, loads, nodes_of


def grown(old: int, new: int, each: int, replicas: int, *, per_disk: int = 4, racks: str = "") -> RoutingInfo:
    """`old` nodes whose targets are all in chains, and `new` ones whose targets are free."""
    first = routing([each] * old, racks=racks[:old], per_disk=per_disk)
    chains = place(first.targets.values(), replicas, first.nodes)
    return routing([each] * (old + new), chains, racks=racks, per_disk=per_disk)


def spread(counts: Counter[int], nodes: int) -> int:
    values = [counts[node] for node in range(1, nodes + 1)]
    return max(values) - min(values)


@pytest.mark.parametrize(("old", "new", "each", "replicas"), [(3, 1, 12, 3), (10, 2, 16, 3), (4, 4, 8, 2), (5, 5, 12, 1)])
def test_growth_is_evened_out_by_as_few_moves_as_can_be(old: int, new: int, each: int, replicas: int) -> None:
    before = grown(old, new, each, replicas)
    plan = rebalance(before)
    after = carry_out(before, reversed(plan.moves))
    check_apart(after)
    assert spread(loads(after), old + new) <= 1
    assert spread(leads(after), old + new) <= 1
    filled = [move for move in plan.moves if move.add]
    assert len(filled) == sum(loads(after)[node] for node in range(old + 1, old + new + 1)), "old nodes get nothing"
    assert rebalance(after).moves == ()


def test_a_new_disk_gets_its_part_from_its_own_node() -> None:
    before = routing([6, 6], [(1000 + n, 2000 + n) for n in range(4)], per_disk=2)  # two disks are used, the third is empty
    after = carry_out(before, rebalance(before).moves)
    for node in (1, 2):
        assert Counter([t.disk for t in after.targets.values() if t.node == node and t.chain]) in (
            Counter({0: 1, 1: 1, 2: 2}),
            Counter({0: 1, 1: 2, 2: 1}),
            Counter({0: 2, 1: 1, 2: 1}),
        )
    assert loads(after) == {1: 4, 2: 4}


def test_larger_nodes_get_more() -> None:
    before = grown(2, 1, 12, 1)
    doubled = {t.id: replace(t, capacity=2 * t.capacity) if t.node == 3 else t for t in before.targets.values()}
    before = replace(before, targets=doubled)
    assert loads(carry_out(before, rebalance(before).moves)) == {1: 6, 2: 6, 3: 12}


def test_what_cannot_be_moved_is_told() -> None:
    chains = [(1000, 2000), (1001, 2001), (1002, 2002), (1003, 2003)]
    before = routing([4, 4, 4], chains, states={1000: PublicState.OFFLINE})
    plan = rebalance(before, [Move(2, 3000, 1001)])
    assert not {1, 2} & {move.chain for move in plan.moves}
    assert "2 chains stay as they are, since not all of their targets serve or an operation changes them" in plan.notes
    drained = rebalance(routing([4, 4, 4], chains, drained=[1]))
    assert "nodes 1 are dead or drained and keep what they have" in drained.notes
    assert not {move.drop // 1000 for move in drained.moves if move.drop} & {1}


def test_replicas_in_one_rack_are_moved_apart() -> None:
    chains = [(1000, 2000), (2001, 1001), (3000, 4000)]
    before = routing([4] * 4, chains, racks="aabb")
    plan = rebalance(before)
    after = carry_out(before, reversed(plan.moves))
    check_apart(after)
    assert len([move for move in plan.moves if move.add]) == 3
    full = rebalance(routing([2, 2, 1, 1], chains, racks="aabb"))
    assert "3 chains keep more replicas in one rack than need be, for want of free targets elsewhere" in full.notes


def test_leads_alone_are_evened_out() -> None:
    before = routing([3, 3, 3], [(1000, 2000, 3000), (1001, 2001, 3001), (1002, 2002, 3002)])
    plan = rebalance(before)
    assert [move.add for move in plan.moves] == [0, 0]
    assert spread(leads(carry_out(before, plan.moves)), 3) == 0


@settings(deadline=None, max_examples=60)
@given(clusters(), st.data())
def test_rebalancing_in_any_order(cluster: tuple[list[int], list[tuple[int, ...]], str], data: st.DataObject) -> None:
    counts, chains, racks = cluster
    before = routing(counts, chains, racks=racks)
    plan = rebalance(before)
    after = carry_out(before, data.draw(st.permutations(plan.moves)))
    check_apart(after)
    assert all(len(nodes_of(after, chain)) == len(nodes_of(before, chain)) for chain in before.chains)
    assert sum(loads(after).values()) == sum(loads(before).values())
    stuck = any("find no place" in note for note in plan.notes)
    assert stuck or not any(move.add for move in rebalance(after).moves)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 5), st.integers(0, 10), st.integers(0, 15)), min_size=1, max_size=8
    ),
    st.integers(0, 60),
)
def test_apportioned_within_one(rows: list[tuple[int, int, int, int]], total: int) -> None:
    weights = {i: float(row[0]) for i, row in enumerate(rows)}
    low = {i: row[1] for i, row in enumerate(rows)}
    high = {i: row[1] + row[2] for i, row in enumerate(rows)}
    now = {i: row[3] for i, row in enumerate(rows)}
    found = apportion(total, weights, low, high, now)
    assert all(low[i] <= found[i] <= high[i] for i in found)
    assert sum(found.values()) == min(max(total, sum(low.values())), sum(high.values()))
    for i in found:
        for j in found:  # nobody could give one to another and both be nearer to their parts
            if found[i] > low[i] and found[j] < high[j]:
                assert (found[i] - 1) / weights[i] <= (found[j] + 1) / weights[j] + 1e-6


def refused(table: int, replicas: int, before: RoutingInfo) -> str:
    with pytest.raises(FS3Error) as caught:
        set_replicas(before, table, replicas)
    assert caught.value.code is Code.BAD_PLAN
    return caught.value.message


def test_more_replicas() -> None:
    before = grown(4, 0, 8, 2)
    before = routing([12] * 4, [[e.target for e in chain.targets] for chain in before.chains.values()], per_disk=4)
    plan = set_replicas(before, 1, 3)
    assert (plan.table, plan.replicas, plan.title) == (1, 3, "3 replicas in chain table 1")
    after = carry_out(before, plan.moves)
    check_apart(after)
    assert all(len(nodes_of(after, chain)) == 3 for chain in after.chains)
    assert spread(loads(after), 4) == 0


def test_fewer_replicas() -> None:
    before = grown(4, 0, 12, 3)
    plan = set_replicas(before, 1, 2)
    after = carry_out(before, plan.moves)
    assert all(len(nodes_of(after, chain)) == 2 for chain in after.chains)
    assert spread(loads(after), 4) <= 1


def test_what_does_not_serve_is_dropped_first() -> None:
    before = routing([2, 2, 2], [(1000, 2000, 3000)], states={2000: PublicState.OFFLINE})
    assert set_replicas(before, 1, 2).moves == (Move(1, drop=2000),)
    (first, second) = set_replicas(before, 1, 1).moves
    assert first == Move(1, drop=2000)
    assert second.drop in (1000, 3000)


def test_replicas_in_one_rack_are_dropped_first() -> None:
    before = routing([2, 2, 2], [(1000, 2000, 3000)], racks="abb")
    assert set_replicas(before, 1, 2).moves[0].drop in (2000, 3000)


def test_numbers_of_replicas_that_cannot_be() -> None:
    before = grown(3, 0, 4, 2)
    assert refused(7, 2, before).startswith("there is no chain table 7")
    assert refused(1, 0, before) == "0 replicas: expected 1 to 3, since each is on a node of its own and 3 can be used"
    assert refused(1, 4, before).startswith("4 replicas: expected 1 to 3")
    assert refused(1, 2, before) == "chain table 1 has 2 replicas already"
    assert refused(1, 3, before).startswith("chain table 1: 6 free targets are needed elsewhere, and 0 are there")
    dead = routing([4] * 3, [(1000, 2000)], states={1000: PublicState.OFFLINE, 2000: PublicState.LASTSRV})
    assert refused(1, 1, dead).startswith("no target of chain 1 serves")


@settings(deadline=None, max_examples=60)
@given(clusters(), st.integers(1, 4), st.data())
def test_changing_replicas_in_any_order(
    cluster: tuple[list[int], list[tuple[int, ...]], str], replicas: int, data: st.DataObject
) -> None:
    counts, chains, racks = cluster
    before = routing(counts, chains, racks=racks)
    try:
        plan = set_replicas(before, 1, replicas)
    except FS3Error as error:
        assert error.code is Code.BAD_PLAN
        return
    after = carry_out(before, data.draw(st.permutations(plan.moves)))
    if not racks or replicas > len(chains[0]):
        check_apart(after)
    assert all(len(nodes_of(after, chain)) == replicas for chain in after.chains)


def test_growing_joins_new_nodes_with_old_ones() -> None:
    """Two of four nodes are full of chains; the new chains are made of what is free, old nodes' too."""
    before = routing([6, 6, 4, 4], [(1000 + n, 2000 + n) for n in range(4)])
    found = grow(before, 1)
    assert found.unused == 0
    pairs = Counter([tuple(sorted(t // 1000 for t in chain)) for chain in found.chains])
    assert pairs[1, 2] == 0, "these share enough"
    assert len(found.chains) == 6
    heads = Counter([chain[0] // 1000 for chain in found.chains])
    assert heads[1] == 0, "it leads enough"
    with pytest.raises(FS3Error) as caught:
        grow(before, 9)
    assert caught.value.code is Code.BAD_PLAN


@settings(deadline=None, max_examples=60)
@given(clusters(), st.data())
def test_racks_that_are_told_later(cluster: tuple[list[int], list[tuple[int, ...]], str], data: st.DataObject) -> None:
    counts, chains, _ = cluster
    racks = "".join(data.draw(st.lists(st.sampled_from("abcd"), min_size=len(counts), max_size=len(counts))))
    before = routing(counts, chains, racks=racks)
    plan = rebalance(before)
    after = carry_out(before, data.draw(st.permutations(plan.moves)))
    for chain in after.chains:
        assert len(set(nodes_of(after, chain))) == len(nodes_of(before, chain))
    if not any("in one rack" in note for note in plan.notes):
        check_apart(after)
