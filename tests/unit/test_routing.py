from __future__ import annotations

from fs3.ids import NodeKind
from fs3.routing import EMPTY, Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Table, Target

S, Y, W, L, O = PublicState.SERVING, PublicState.SYNCING, PublicState.WAITING, PublicState.LASTSRV, PublicState.OFFLINE  # noqa: E741


def chain(*states: PublicState) -> Chain:
    """Targets 1, 2, 3, ... in these states."""
    return Chain(7, 1, tuple(ChainTarget(number, state) for number, state in enumerate(states, 1)))


def successors(of: Chain) -> list[int | None]:
    found = [of.successor(target.target) for target in of.targets]
    return [None if one is None else one.target for one in found]


def test_a_write_travels_over_serving_targets_and_one_that_syncs() -> None:
    assert successors(chain(S, S, S)) == [2, 3, None]
    assert successors(chain(S, S, Y)) == [2, 3, None]
    assert successors(chain(S, W, O)) == [None, None, None]
    assert successors(chain(S, S, O)) == [2, None, None]
    assert chain(S, S, Y, W).writable() == (1, 2, 3) and chain(S, S, Y, W).serving() == (1, 2)


def test_the_head_serves_or_there_is_none() -> None:
    assert chain(S, S).head() == 1
    assert chain(L, O, O).head() is None and chain().head() is None


def test_strangers_have_no_place() -> None:
    assert chain(S, S).successor(9) is None and chain(S, S).predecessor(9) is None and chain(S).state_of(9) is None


def test_predecessors() -> None:
    before = [chain(S, S, Y).predecessor(target) for target in (1, 2, 3)]
    assert [None if one is None else one.target for one in before] == [None, 1, 2]


def test_routing_finds_nodes() -> None:
    alive = Node(1, NodeKind.STORAGE, "tcp://a:1", "a", True, 1)
    dead = Node(2, NodeKind.STORAGE, "tcp://b:1", "b", False, 1)
    meta = Node(3, NodeKind.META, "tcp://c:1", "c", True, 1)
    target = Target(11, 1, 1, 7, LocalState.UPTODATE, 0, 0)
    lost = Target(12, 99, 1, 7, LocalState.UPTODATE, 0, 0)
    routing = RoutingInfo(1, "x", {}, {}, {11: target, 12: lost}, {3: meta, 2: dead, 1: alive})
    assert routing.node_of(11) == alive and routing.node_of(12) is None and routing.node_of(13) is None
    assert routing.nodes_of(NodeKind.STORAGE) == (alive,) and routing.nodes_of(NodeKind.META) == (meta,)
    assert EMPTY.node_of(11) is None and EMPTY.nodes_of(NodeKind.META) == ()


def test_a_chain_is_as_large_as_its_smallest_serving_target() -> None:
    sizes = {1: (100, 7), 2: (80, 9), 3: (5, 5)}
    targets = {t: Target(t, t, 1, 1, LocalState.UPTODATE, capacity, used) for t, (capacity, used) in sizes.items()}
    chains = {7: chain(S, S, O), 8: chain(L, O)}
    assert RoutingInfo(1, "c", chains, {}, targets, {}).capacity() == (80, 9)


def test_a_table_that_grew_keeps_the_chains_of_older_files() -> None:
    table = Table(1, 3, (1, 2, 3, 4, 5), 2, (2, 4, 5))
    assert [table.chains_at(version) for version in (1, 2, 3)] == [(1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5)]
    assert table.chains_at(4) is None, "routing that is older than a file's layout must not be guessed from"
    assert Table(1, 1, (1, 2), 2).chains_at(1) == (1, 2)
