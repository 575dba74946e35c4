"""Chain tables, targets and nodes as operators change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fs3.api.admin import (
    CreateTableReply,
    CreateTableRequest,
    Move,
    NodeAction,
    NodeActionRequest,
    RemoveTableRequest,
    TargetAction,
    TargetActionRequest,
)
from fs3.api.mgmtd import FormatRequest, TargetReport
from fs3.errors import Code
from fs3.routing import LocalState, PublicState
from mgmtd.draft import Draft
from mgmtd.submit import set_replicas
from mgmtd.tables import act_on_node, act_on_target, create_table, remove_table
from tests.unit.mgmtd.test_operations import Daemons, refused

T = TypeVar("T")


def act(bench: Daemons, function: Callable[[Draft], T]) -> T:
    draft = Draft(bench.cluster.state)
    result = function(draft)
    bench.do(draft.done())
    return result


def create(bench: Daemons, *chains: tuple[int, ...], table: int = 0, token: int = 0) -> CreateTableReply:
    request = CreateTableRequest(chains, len(chains[0]) if chains else 1, table, token)
    return act(bench, lambda draft: create_table(draft, request))


def on_target(bench: Daemons, target: int, action: TargetAction, chain_version: int = 0) -> None:
    act(bench, lambda draft: act_on_target(draft, TargetActionRequest(target, action, chain_version)))


def on_node(bench: Daemons, node: int, action: NodeAction) -> None:
    act(bench, lambda draft: act_on_node(draft, NodeActionRequest(node, action)))


def test_tables_are_made_and_only_grow() -> None:
    bench = Daemons(nodes=6, targets=2, replicas=2, chains_of=2)  # table 1: chains 1, 2
    made = create(bench, (30, 40), (50, 60), token=7)
    assert (made.table, made.version) == (2, 1)
    assert create(bench, (30, 40), (50, 60), token=7) == made  # the answer was lost
    routing = bench.cluster.routing
    assert routing.tables[2].chains == (3, 4) and bench.serving(3) == [30, 40]
    grown = create(bench, (31, 41), table=2)
    table = bench.cluster.routing.tables[2]
    assert (grown.version, table.chains, table.lengths) == (2, (3, 4, 5), (2, 3))
    assert table.chains_at(1) == (3, 4) and table.chains_at(2) == (3, 4, 5)
    with refused("target 31 is in chain 5 already", Code.BAD_PLACEMENT):
        create(bench, (31, 51))
    with refused("there is no chain table 9", Code.BAD_PLACEMENT):
        create(bench, (51, 61), table=9)
    with refused("has 2 replicas, the new chains 1", Code.BAD_PLACEMENT):
        create(bench, (51,), table=2)
    bench.restart_mgmtd()
    assert bench.cluster.routing.tables[2] == table


def test_a_target_with_content_of_a_former_time_comes_into_no_chain_until_it_is_emptied() -> None:
    bench = Daemons()
    draft = Draft(bench.cluster.state)
    draft.report(4, [TargetReport(40, 0, LocalState.ONLINE, 1000, 77)])
    bench.do(draft.done())
    with refused("target 40 holds 77 bytes of a former time", Code.BAD_PLACEMENT):
        create(bench, (40, 50))
    with refused("target 40 holds 77 bytes of a former time"):
        bench.submit(Move(1, 40, 10))
    with refused("target 10 is in chain 1"):
        on_target(bench, 10, TargetAction.EMPTY)
    on_target(bench, 40, TargetAction.EMPTY)
    with refused("40 has left its chain and is not emptied yet", Code.BAD_PLACEMENT):
        create(bench, (40, 50))
    bench.rest(2)
    assert create(bench, (40, 50)).table == 2


def test_format_takes_no_target_with_content() -> None:
    bench = Daemons(nodes=2, chains_of=1, replicas=1)
    bench.cluster.state.config = None
    draft = Draft(bench.cluster.state)
    draft.report(2, [TargetReport(20, 0, LocalState.ONLINE, 1000, 5)])
    bench.do(draft.done())
    with refused("target 20 holds 5 bytes of a former cluster", Code.BAD_PLACEMENT):
        bench.cluster.format(FormatRequest(1, 1 << 20, 1))


def test_table_is_removed_when_nothing_uses_it_and_its_numbers_are_not_given_again() -> None:
    bench = Daemons(nodes=6, targets=2, replicas=2, chains_of=2)
    create(bench, (30, 40), (50, 60))
    with refused("chain table 1 is in use: it is the one that the root", Code.TABLE_IN_USE):
        act(bench, lambda draft: remove_table(draft, RemoveTableRequest(1)))
    with refused("there is no chain table 5"):
        act(bench, lambda draft: remove_table(draft, RemoveTableRequest(5)))
    bench.slow.add(31)
    number = bench.submit(Move(4, 31))
    bench.rest(2)
    with refused(f"operation {number} concerns its chain 4", Code.TABLE_IN_USE):
        act(bench, lambda draft: remove_table(draft, RemoveTableRequest(2)))
    bench.slow.clear()
    bench.rest()
    draft = Draft(bench.cluster.state)
    draft.report(5, [TargetReport(50, 0, LocalState.UPTODATE, 1000, 9, 3, 4), bench.report(51)])
    bench.do(draft.done())
    with refused("target 50 of its chain 4 holds 9 bytes", Code.TABLE_IN_USE):
        act(bench, lambda draft: remove_table(draft, RemoveTableRequest(2)))
    bench.rest(1)
    act(bench, lambda draft: remove_table(draft, RemoveTableRequest(2)))
    assert sorted(bench.cluster.routing.tables) == [1] and sorted(bench.cluster.routing.chains) == [1, 2]
    assert bench.target(30).retired and bench.target(30).chain == 0
    bench.rest(2)
    bench.restart_mgmtd()
    bench.rest(2)
    assert create(bench, (30, 40)).table == 3 and bench.target(30).chain == 5


def test_replicas_wanted_change_with_an_operation() -> None:
    bench = Daemons()
    bench.submit(Move(1, 40), replicas=4)
    assert bench.cluster.routing.tables[1].replicas == 4 and bench.cluster.routing.tables[1].version == 1
    bench.rest()
    assert len(bench.serving()) == 4
    with refused("there is no chain table 7"):
        act(bench, lambda draft: set_replicas(draft, 7, 2))
    with refused("chain table 1: 0 replicas; expected at least 1"):
        act(bench, lambda draft: set_replicas(draft, 1, 0))


def test_resync_takes_a_target_out_and_fills_it_anew() -> None:
    bench = Daemons()
    on_target(bench, 20, TargetAction.RESYNC)
    assert bench.serving() == [10, 20, 30]
    bench.beat()
    assert bench.chain().state_of(20) is not PublicState.SERVING and not bench.target(20).leaving
    bench.rest()
    assert bench.serving() == [10, 30, 20]
    with refused("target 40 is in no chain"):
        on_target(bench, 40, TargetAction.RESYNC)
    bench.stop(1, 3)
    with refused("target 20 is the only one that serves chain 1"):
        on_target(bench, 20, TargetAction.RESYNC)
    with refused("target 10 is offline in chain 1"):
        on_target(bench, 10, TargetAction.RESYNC)


def test_what_was_lost_is_given_up_only_where_nothing_serves() -> None:
    bench = Daemons()
    with refused("chain 1 is served, by target 10, 20, 30"):
        on_target(bench, 20, TargetAction.GIVE_UP)
    bench.stop(2)
    bench.stop(1, 3)
    assert bench.chain().state_of(10) is PublicState.LASTSRV
    with refused("target 10 is the one that served chain 1 last"):
        on_target(bench, 10, TargetAction.GIVE_UP)
    with refused("target 20 is offline"):
        on_target(bench, 20, TargetAction.GIVE_UP)
    bench.start_again(2)
    bench.rest(2)
    assert bench.chain().state_of(20) is PublicState.WAITING
    with refused("chain 1 is at version"):
        on_target(bench, 20, TargetAction.GIVE_UP, bench.chain().version - 1)
    on_target(bench, 20, TargetAction.GIVE_UP, bench.chain().version)
    assert bench.serving() == [20] and bench.chain().state_of(10) is PublicState.OFFLINE
    bench.start_again(1)
    bench.start_again(3)
    bench.rest(12)
    assert bench.serving()[0] == 20 and len(bench.serving()) == 3


def test_targets_and_nodes_are_forgotten_when_nobody_needs_them() -> None:
    bench = Daemons()
    with refused("target 10 is in chain 1"):
        on_target(bench, 10, TargetAction.FORGET)
    with refused("target 40 is reported by node 4"):
        on_target(bench, 40, TargetAction.FORGET)
    with refused("there is no target 99"):
        on_target(bench, 99, TargetAction.FORGET)
    with refused("node 4 at mem://4 is alive"):
        on_node(bench, 4, NodeAction.FORGET)
    with refused("there is no node 9", Code.UNKNOWN_NODE):
        on_node(bench, 9, NodeAction.FORGET)
    bench.stop(4)
    bench.stop(3)
    with refused("target 30 of node 3 is in chain 1: drain the node first"):
        on_node(bench, 3, NodeAction.FORGET)
    on_node(bench, 4, NodeAction.FORGET)
    assert 4 not in bench.cluster.routing.nodes and 40 not in bench.cluster.routing.targets
    bench.restart_mgmtd()
    assert 4 not in bench.cluster.routing.nodes and 40 not in bench.cluster.routing.targets
    bench.start_again(4)
    assert bench.target(40).node == 4
    bench.stop(5)
    on_target(bench, 50, TargetAction.FORGET)
    assert 50 not in bench.cluster.routing.targets
    bench.start_again(5)
    assert bench.target(50).chain == 0


def test_target_that_an_operation_waits_for_is_not_forgotten() -> None:
    bench = Daemons()
    bench.slow.add(40)
    number = bench.submit(Move(1, 40, 10), Move(1, 50, 20))
    bench.rest(2)
    bench.stop(5)
    with refused(f"operation {number} is to put target 50 into a chain"):
        on_target(bench, 50, TargetAction.FORGET)
    with refused(f"operation {number} is to put target 50 into a chain"):
        on_node(bench, 5, NodeAction.FORGET)


def test_drained_node_stays_drained_until_it_is_not() -> None:
    bench = Daemons()
    on_node(bench, 4, NodeAction.DRAIN)
    bench.start(4)
    assert bench.cluster.routing.nodes[4].drained
    bench.restart_mgmtd()
    assert bench.cluster.routing.nodes[4].drained
    on_node(bench, 4, NodeAction.UNDRAIN)
    assert not bench.cluster.routing.nodes[4].drained
    on_node(bench, 4, NodeAction.DRAIN)
    with refused("node 4, which is drained", Code.BAD_PLACEMENT):
        create(bench, (40, 50))
