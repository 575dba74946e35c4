from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.api.admin import Move
from fs3.errors import Code, FS3Error
from fs3.placement.moves import drain, replace
from fs3.routing import PublicState

from .cluster import GIB, routing
from .generate import clusters
from .model import carry_out, check_apart, leads, loads, nodes_of

TWO_EACH = [(1000, 2000), (2001, 3000), (3001, 1001)]


def refused(make: object, *args: object) -> str:
    assert callable(make)
    with pytest.raises(FS3Error) as caught:
        make(*args)
    assert caught.value.code is Code.BAD_PLAN
    return caught.value.message


def test_a_drained_node_holds_nothing_in_the_end() -> None:
    before = routing([4] * 4, TWO_EACH)
    plan = drain(before, [1])
    assert (plan.kind, plan.title, plan.drain) == ("drain", "drain node 1", (1,))
    assert {move.drop for move in plan.moves} == {1000, 1001}
    assert {before.targets[move.add].node for move in plan.moves} == {4}, "the empty node takes it all"
    assert plan.copied == {4: 2 * GIB}
    after = carry_out(before, plan.moves)
    check_apart(after)
    assert loads(after) == {2: 2, 3: 2, 4: 2}


def test_what_leads_is_followed_by_who_leads_least() -> None:
    before = routing([4] * 4, [(1000, 2000), (1001, 3000), (1002, 2001)])
    after = carry_out(before, drain(before, [1]).moves)
    assert set(leads(after).values()) == {1}


def test_a_node_without_chains_can_go_at_once() -> None:
    plan = drain(routing([4] * 4, TWO_EACH), [4])
    assert (plan.moves, plan.notes) == ((), ("no target of node 4 is in a chain: it can go at once",))


def test_a_dead_disk_is_replaced_by_others_of_its_node_too() -> None:
    before = routing([4, 2, 2], TWO_EACH, offline=[1000], states={1000: PublicState.OFFLINE}, per_disk=1)
    plan = replace(before, 1, 0)
    assert plan.moves == (Move(1, 1003, 1000),) or plan.moves == (Move(1, 1002, 1000),)
    check_apart(carry_out(before, plan.moves))


def test_refusals() -> None:
    full = routing([2] * 3, TWO_EACH)
    assert refused(drain, full, [9]).startswith("node 9 is not known")
    assert refused(drain, full, []).startswith("no node is given")
    assert refused(drain, full, [1]).startswith(
        "node 1: 2 free targets are needed elsewhere, and 0 are there: add a disk or a node"
    )
    assert refused(replace, full, 1, 7) == "node 1 has no disk 7: it has disks 0, 1"
    assert "no target is known of this node" in refused(replace, full, 8, 0)
    dead = routing([4] * 3, [(1000, 2000)], states={1000: PublicState.OFFLINE, 2000: PublicState.LASTSRV})
    assert refused(drain, dead, [1]).startswith("no target of chain 1 serves")


def test_a_place_that_cannot_be_had_is_named() -> None:
    crowded = routing([2, 1, 2], [(1000, 2000), (3000, 1001)])  # 3001 is free; 3000 is its chain's
    message = refused(drain, crowded, [1])
    assert message.startswith("node 1: 2 free targets are needed elsewhere, and 1 are there")
    crowded = routing([1, 1, 3], [(1000, 3000)])
    assert drain(crowded, [1]).moves[0].add == 2000
    crowded = routing([1, 2, 3], [(1000, 3000), (2000, 2001)][:1], drained=[2])
    message = refused(drain, crowded, [1])
    assert "chain 1 finds no free target (2 on node 3): it needs one away from its other nodes 3" in message


def test_full_disks_get_nothing() -> None:
    before = routing([1, 1, 1], [(1000, 2000)], used=200 * GIB)
    assert f"none that may hold it has room for its {200 * GIB} bytes" in refused(drain, before, [1])


def test_what_is_under_way_counts_as_done() -> None:
    before = routing([2, 2, 2, 2], [(1000, 2000)])
    pending = [Move(1, 3000, 1000)]
    assert drain(before, [1], pending).moves == ()
    for node in (2, 3):
        assert refused(drain, before, [node], pending).startswith(
            "an operation under way changes chain 1: wait until it is done"
        )
    (move,) = drain(routing([2, 1, 2, 2], [(1000, 2000), (4000, 3001)]), [3], [Move(1, 2000, 1000)]).moves
    assert move.drop == 3001


def test_a_move_makes_way_for_one_that_has_no_other_place() -> None:
    """Chain 1 could go to nodes 3 and 4, chain 2 to node 3 only: which must be left to it."""
    before = routing([2, 1, 1, 2], [(1000, 2000), (1001, 4000)])
    for chains in ([(1000, 2000), (1001, 4000)], [(1001, 4000), (1000, 2000)]):
        before = routing([2, 1, 1, 2], chains)
        after = carry_out(before, drain(before, [1]).moves)
        check_apart(after)
        assert loads(after) == {2: 1, 3: 1, 4: 2}


@settings(deadline=None, max_examples=60)
@given(clusters(), st.data())
def test_drains_in_any_order(cluster: tuple[list[int], list[tuple[int, ...]], str], data: st.DataObject) -> None:
    counts, chains, racks = cluster
    before = routing(counts, chains, racks=racks)
    leaving = data.draw(st.sets(st.integers(1, len(counts)), min_size=1, max_size=2))
    try:
        plan = drain(before, leaving)
    except FS3Error as error:
        assert error.code is Code.BAD_PLAN
        return
    moves = data.draw(st.permutations(plan.moves))
    after = carry_out(before, moves)
    check_apart(after, leaving)
    assert not any(loads(after)[node] for node in leaving)
    assert all(len(nodes_of(after, chain)) == len(nodes_of(before, chain)) for chain in before.chains)


@settings(deadline=None, max_examples=60)
@given(clusters(), st.integers(1, 8))
def test_a_plan_is_found_where_there_is_one(cluster: tuple[list[int], list[tuple[int, ...]], str], node: int) -> None:
    """Of a drain of one node, which is a matching of chains and free targets, checked by Hall's theorem."""
    counts, chains, _ = cluster
    if node > len(counts):
        return
    before = routing(counts, chains)
    hit = [chain for chain in before.chains if node in nodes_of(before, chain)]
    free = [t for t in before.targets.values() if not t.chain and t.node != node]
    reach = [{t.id for t in free if t.node not in nodes_of(before, chain)} for chain in hit]
    possible = all(
        len(set().union(*[reach[i] for i in range(len(hit)) if mask >> i & 1])) >= mask.bit_count()
        for mask in range(1, 1 << len(hit))
    )
    try:
        assert len(drain(before, [node]).moves) == len(hit)
        assert possible
    except FS3Error:
        assert not possible
