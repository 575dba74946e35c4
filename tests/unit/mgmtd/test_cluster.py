from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from fs3.api.mgmtd import (
    FormatRequest,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
    UnregisterRequest,
)
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import LocalState, PublicState
from mgmtd.cluster import Cluster, Timing
from mgmtd.state import FIRST_CLIENT, Change, Head, Saved

T = TypeVar("T")
TIMING = Timing(lease_ms=1000, client_lease_ms=3000, forget_client_ms=60_000)
S, Y, W, L, X = (
    PublicState.SERVING,
    PublicState.SYNCING,
    PublicState.WAITING,
    PublicState.LASTSRV,
    PublicState.OFFLINE,
)


class Bench:
    """A cluster, its clock, and storage nodes 1..n of one target (node * 10) each."""

    def __init__(self, storages: int = 3, replicas: int = 0) -> None:
        self.now = 100.0
        self.cluster = Cluster(Saved(Head(1, 1, "test", FIRST_CLIENT)), TIMING, self.now)
        self.stored = Saved(self.cluster.head)
        for node in range(1, storages + 1):
            self.register(node, node * 100)
        if replicas:
            self.do(self.cluster.format(FormatRequest(replicas, 1 << 20, 1)))

    def do(self, made: Change | tuple[Change, T]) -> T:
        change, reply = made if isinstance(made, tuple) else (made, None)
        self.last = change
        self.cluster.apply(change)
        if change.head is not None:
            self.stored.head = change.head
            self.stored.config = change.config or self.stored.config
            self.stored.chains.update(change.chains)
            self.stored.tables.update(change.tables)
            self.stored.targets.update({t: change.targets[t] for t in change.stored_targets})
            for into, records in ((self.stored.nodes, change.nodes), (self.stored.clients, change.clients)):
                for number, record in records.items():
                    if record is None:
                        del into[number]  # type: ignore[attr-defined]
                    else:
                        into[number] = record  # type: ignore[index]
        return reply  # type: ignore[return-value]

    def register(self, node: int, incarnation: int, local: LocalState = LocalState.ONLINE) -> RegisterReply:
        report = TargetReport(node * 10, 0, local, 1000, 0)
        request = RegisterRequest(node, NodeKind.STORAGE, f"mem://{node}", "h", incarnation, (), (report,))
        return self.do(self.cluster.register(request, self.now))

    def beat(self, node: int, incarnation: int, local: LocalState = LocalState.UPTODATE, used: int = 0) -> None:
        target = self.cluster.routing.targets[node * 10]
        version = self.cluster.routing.chains[target.chain].version if target.chain else 0
        self.beat_at(node, incarnation, local, version, used)

    def beat_at(self, node: int, incarnation: int, local: LocalState, chain_version: int, used: int = 0) -> None:
        report = TargetReport(node * 10, 0, local, 1000, used, chain_version)
        self.do(self.cluster.heartbeat(HeartbeatRequest(node, incarnation, (report,)), self.now))

    def chain(self) -> tuple[int, list[tuple[int, PublicState]]]:
        chain = self.cluster.routing.chains[1]
        return chain.version, [(t.target, t.state) for t in chain.targets]

    def restart(self) -> None:
        """mgmtd starts again with what is stored."""
        self.cluster = Cluster(self.stored, TIMING, self.now)


@contextmanager
def refused(code: Code) -> Iterator[None]:
    with pytest.raises(FS3Error) as caught:
        yield
    assert caught.value.code is code


def test_format_puts_the_targets_into_chains_once() -> None:
    bench = Bench(3)
    assert bench.cluster.config().version == 0
    reply = bench.do(bench.cluster.format(FormatRequest(3, 1 << 20, 0)))
    assert (reply.table, reply.chains) == (1, 1)
    assert bench.chain() == (1, [(10, S), (20, S), (30, S)])
    config = bench.cluster.config()
    assert (config.version, config.table, config.replicas, config.chunk_size, config.stripe) == (1, 1, 3, 1 << 20, 1)
    with refused(Code.ALREADY_FORMATTED):
        bench.cluster.format(FormatRequest(3, 1 << 20, 0))


def test_format_refuses_what_cannot_be() -> None:
    bench = Bench(2)
    for request, code in (
        (FormatRequest(3, 1 << 20, 1), Code.BAD_PLACEMENT),
        (FormatRequest(2, 1000, 1), Code.CONFIG),
        (FormatRequest(2, 1 << 20, -1), Code.CONFIG),
    ):
        with refused(code):
            bench.cluster.format(request)
    bench.beat_at(2, 200, LocalState.OFFLINE, 0)
    with refused(Code.BAD_PLACEMENT):
        bench.cluster.format(FormatRequest(2, 1 << 20, 1))


def test_silent_node_is_dead_after_its_lease_and_not_before() -> None:
    bench = Bench(3, replicas=3)
    bench.now += 0.5
    bench.beat(1, 100)
    bench.beat(2, 200)
    bench.now += 0.499
    bench.do(bench.cluster.tick(bench.now))
    assert bench.cluster.routing.nodes[3].alive
    bench.now += 0.002
    bench.do(bench.cluster.tick(bench.now))
    assert [n.id for n in bench.cluster.routing.nodes_of(NodeKind.STORAGE)] == [1, 2]
    assert bench.chain() == (2, [(10, S), (20, S), (30, X)])
    with refused(Code.STALE_INCARNATION):
        bench.beat(3, 300)


def test_all_dead_at_once_leaves_the_head_as_the_last() -> None:
    bench = Bench(3, replicas=3)
    bench.now += 2
    bench.do(bench.cluster.tick(bench.now))
    assert bench.chain() == (2, [(10, L), (20, X), (30, X)])
    assert bench.last.head is not None and not bench.cluster.tick(bench.now).head


def test_quick_restart_is_one_routing_change_and_costs_the_others_nothing() -> None:
    bench = Bench(3, replicas=3)
    for node in (1, 2, 3):
        bench.beat(node, node * 100)
    before = bench.cluster.version
    reply = bench.register(1, 101)
    assert reply.routing_version == bench.cluster.version == before + 1
    # Away and back: two changes of the chain, of which both count.
    assert bench.chain() == (3, [(20, S), (30, S), (10, Y)])
    with refused(Code.STALE_INCARNATION):
        bench.beat(1, 100)
    bench.beat(1, 101, LocalState.ONLINE)
    assert bench.chain()[0] == 3
    bench.beat(1, 101, LocalState.UPTODATE)
    assert bench.chain() == (4, [(20, S), (30, S), (10, S)])


def test_only_replica_that_restarts_serves_again_at_once() -> None:
    bench = Bench(1, replicas=1)
    bench.register(1, 101)
    assert bench.chain() == (3, [(10, S)])


def test_all_restarted_at_once_end_up_serving() -> None:
    bench = Bench(3, replicas=3)
    for node in (1, 2, 3):
        bench.register(node, node * 100 + 1)
    # Node 3 served all the time as far as anybody knows, so it has everything.
    assert bench.chain()[1] == [(30, S), (10, Y), (20, W)]
    bench.beat(1, 101)
    assert bench.chain()[1] == [(30, S), (10, S), (20, Y)]
    bench.beat(2, 201)
    assert bench.chain()[1] == [(30, S), (10, S), (20, S)]


def test_uptodate_of_another_chain_version_is_only_online() -> None:
    bench = Bench(3, replicas=3)
    bench.register(1, 101)
    bench.beat_at(1, 101, LocalState.UPTODATE, 1)
    bench.beat_at(1, 101, LocalState.UPTODATE, 2)
    assert bench.chain() == (3, [(20, S), (30, S), (10, Y)])
    bench.beat_at(1, 101, LocalState.UPTODATE, 3)
    assert bench.chain() == (4, [(20, S), (30, S), (10, S)])


def test_registration_never_counts_as_up_to_date() -> None:
    bench = Bench(3, replicas=3)
    bench.register(1, 101, LocalState.UPTODATE)
    assert bench.chain() == (3, [(20, S), (30, S), (10, Y)])


def test_failed_disk_and_a_target_that_is_not_reported_are_offline() -> None:
    bench = Bench(3, replicas=3)
    bench.beat(1, 100, LocalState.OFFLINE)
    assert bench.chain() == (2, [(20, S), (30, S), (10, X)])
    bench.do(bench.cluster.heartbeat(HeartbeatRequest(2, 200, ()), bench.now))
    assert bench.chain() == (3, [(30, S), (10, X), (20, X)])
    assert bench.cluster.routing.nodes[2].alive


def test_repeated_registration_changes_nothing_and_an_old_one_is_refused() -> None:
    bench = Bench(3, replicas=3)
    bench.register(1, 100)
    assert bench.last.head is None
    assert bench.chain()[0] == 1
    bench.register(1, 101)
    with refused(Code.STALE_INCARNATION):
        bench.register(1, 100)
    bench.do(bench.cluster.unregister(UnregisterRequest(1, 101), bench.now))
    with refused(Code.STALE_INCARNATION):
        bench.register(1, 101)


def test_unregister_ends_the_lease_at_once_but_only_ones_own() -> None:
    bench = Bench(3, replicas=3)
    bench.register(1, 101)
    version = bench.cluster.version
    for request in (UnregisterRequest(1, 100), UnregisterRequest(77, 1)):
        bench.do(bench.cluster.unregister(request, bench.now))
    assert bench.cluster.version == version
    bench.do(bench.cluster.unregister(UnregisterRequest(1, 101), bench.now))
    assert not bench.cluster.routing.nodes[1].alive
    assert bench.chain() == (4, [(20, S), (30, S), (10, X)])


def test_restart_of_mgmtd_keeps_chains_and_gives_everybody_a_whole_lease() -> None:
    bench = Bench(3, replicas=3)
    bench.do(bench.cluster.unregister(UnregisterRequest(3, 300), bench.now))
    before = (bench.chain(), bench.cluster.version)
    bench.now += 100
    bench.restart()
    assert (bench.chain(), bench.cluster.version) == before
    bench.now += 0.9
    bench.do(bench.cluster.tick(bench.now))
    bench.beat(1, 100)
    with refused(Code.STALE_INCARNATION):
        bench.beat(3, 300)
    assert (bench.chain(), bench.cluster.version) == before
    bench.now += 0.2
    bench.do(bench.cluster.tick(bench.now))
    assert bench.chain() == (3, [(10, S), (30, X), (20, X)])


def test_syncing_goes_on_over_a_restart_of_mgmtd() -> None:
    bench = Bench(3, replicas=3)
    bench.register(1, 101)
    bench.restart()
    bench.beat(2, 200)
    assert bench.chain() == (3, [(20, S), (30, S), (10, Y)])
    bench.beat(1, 101)
    assert bench.chain() == (4, [(20, S), (30, S), (10, S)])


def test_fill_levels_are_fresh_but_worth_a_version_only_when_they_move() -> None:
    bench = Bench(1)
    version = bench.cluster.version
    for used in (20, 40, 50):
        bench.beat(1, 100, used=used)
        assert bench.last.head is None
        assert bench.cluster.routing.targets[10].used == used
    assert bench.cluster.version == version
    bench.beat(1, 100, used=51)
    assert bench.cluster.version == version + 1
    bench.beat(1, 100, used=90)
    assert bench.cluster.version == version + 1


def test_target_stays_with_its_node_while_that_lives() -> None:
    bench = Bench(2, replicas=2)
    report = TargetReport(10, 0, LocalState.ONLINE, 1000, 0)
    stranger = RegisterRequest(7, NodeKind.STORAGE, "mem://7", "h", 700, (), (report,))
    with refused(Code.CONFIG):
        bench.cluster.register(stranger, bench.now)
    bench.do(bench.cluster.unregister(UnregisterRequest(1, 100), bench.now))
    bench.do(bench.cluster.register(stranger, bench.now))
    node = bench.cluster.routing.node_of(10)
    assert node is not None and node.id == 7
    assert bench.chain() == (3, [(20, S), (10, Y)])
    # The former owner comes back with another disk: the moved target is no longer its own.
    fresh = TargetReport(11, 0, LocalState.ONLINE, 1000, 0)
    bench.do(bench.cluster.register(RegisterRequest(1, NodeKind.STORAGE, "mem://1", "h", 102, (), (fresh,)), bench.now))
    assert bench.chain() == (3, [(20, S), (10, Y)])


@pytest.mark.parametrize(
    ("node", "kind", "code"),
    [(0, NodeKind.STORAGE, Code.CONFIG), (FIRST_CLIENT, NodeKind.META, Code.CONFIG), (-1, NodeKind.META, Code.CONFIG),
     (1, NodeKind.META, Code.CONFIG), (5, NodeKind.MGMTD, Code.CONFIG), (5, 77, Code.CONFIG),
     (5, NodeKind.CLIENT, Code.UNKNOWN_NODE), (FIRST_CLIENT, NodeKind.CLIENT, Code.UNKNOWN_NODE)],
)  # fmt: skip
def test_registrations_that_are_refused(node: int, kind: int, code: Code) -> None:
    bench = Bench(1)
    with refused(code):
        bench.cluster.register(RegisterRequest(node, kind, "mem://x", "h", 1), bench.now)


def test_unknown_node_cannot_beat() -> None:
    with refused(Code.UNKNOWN_NODE):
        Bench(1).cluster.heartbeat(HeartbeatRequest(9, 1), 0.0)


def test_clients_get_fresh_ids_and_stay_listed_for_a_while_after_death() -> None:
    bench = Bench(0)
    version = bench.cluster.version
    request = RegisterRequest(0, NodeKind.CLIENT, "", "host", 5)
    first, second = (bench.do(bench.cluster.register(request, bench.now)) for _ in range(2))
    assert (first.node, second.node, first.lease_ms) == (FIRST_CLIENT, FIRST_CLIENT + 1, 3000)
    assert bench.cluster.version == version and not bench.cluster.routing.nodes
    bench.now += 2
    bench.do(bench.cluster.heartbeat(HeartbeatRequest(first.node, 5), bench.now))
    bench.now += 1.5
    bench.do(bench.cluster.tick(bench.now))
    assert [(c.client, c.alive) for c in bench.cluster.client_list()] == [(first.node, True), (second.node, False)]
    bench.restart()
    assert [(c.client, c.alive) for c in bench.cluster.client_list()] == [(first.node, True), (second.node, False)]
    with refused(Code.STALE_INCARNATION):
        bench.cluster.heartbeat(HeartbeatRequest(second.node, 5), bench.now)
    bench.do(bench.cluster.unregister(UnregisterRequest(first.node, 5), bench.now))
    assert not any(c.alive for c in bench.cluster.client_list())
    bench.now += 61
    bench.do(bench.cluster.tick(bench.now))
    assert bench.cluster.client_list() == () and not bench.stored.clients
    assert bench.do(bench.cluster.register(request, bench.now)).node == FIRST_CLIENT + 2


def test_client_that_replaces_another_ends_it_at_once() -> None:
    bench = Bench(0)
    first = bench.do(bench.cluster.register(RegisterRequest(0, NodeKind.CLIENT, "", "h", 5), bench.now)).node
    other = bench.do(bench.cluster.register(RegisterRequest(0, NodeKind.CLIENT, "", "h", 6), bench.now)).node

    def replace_by(incarnation: int, node: int, of: int) -> dict[int, tuple[bool, bool]]:
        request = RegisterRequest(0, NodeKind.CLIENT, "", "h", incarnation, predecessor=node, predecessor_incarnation=of)
        bench.do(bench.cluster.register(request, bench.now))
        return {c.client: (c.alive, c.ended) for c in bench.cluster.client_list()}

    assert replace_by(7, first, 4)[first] == (True, False), "an incarnation that is not this one's is somebody else"
    assert replace_by(8, first, 5)[first] == (False, True)
    bench.restart()
    found = {c.client: (c.alive, c.ended) for c in bench.cluster.client_list()}
    assert found[first] == (False, True) and found[other] == (True, False)
    bench.now += 4
    bench.do(bench.cluster.tick(bench.now))
    assert {c.client: (c.alive, c.ended) for c in bench.cluster.client_list()}[other] == (False, False)
    assert replace_by(9, other, 6)[other] == (False, True), "its lease ran out before, but only now it is surely gone"


def test_client_may_come_back_under_its_id_with_a_new_incarnation() -> None:
    bench = Bench(0)
    client = bench.do(bench.cluster.register(RegisterRequest(0, NodeKind.CLIENT, "", "h", 5), bench.now)).node
    bench.do(bench.cluster.unregister(UnregisterRequest(client, 5), bench.now))
    with refused(Code.STALE_INCARNATION):
        bench.cluster.register(RegisterRequest(client, NodeKind.CLIENT, "", "h", 5), bench.now)
    bench.do(bench.cluster.register(RegisterRequest(client, NodeKind.CLIENT, "", "h", 6), bench.now))
    assert [(c.client, c.alive) for c in bench.cluster.client_list()] == [(client, True)]
    bench.now += 61
    bench.do(bench.cluster.heartbeat(HeartbeatRequest(client, 6), bench.now))
    bench.do(bench.cluster.tick(bench.now))
    assert [(c.client, c.alive) for c in bench.cluster.client_list()] == [(client, True)]


def test_chains_that_were_placed_a_moment_ago_are_taken_if_their_targets_are_still_free() -> None:
    bench = Bench(3)
    request = FormatRequest(2, 1 << 20, 0)
    assert sorted(target.id for target in bench.cluster.free_targets()) == [10, 20, 30]
    with refused(Code.CONFLICT):
        bench.cluster.format(request, [(10, 40)])
    bench.do(bench.cluster.unregister(UnregisterRequest(2, 200), bench.now))
    with refused(Code.CONFLICT):
        bench.cluster.format(request, [(20, 30)])
    assert bench.do(bench.cluster.format(request, [(30, 10)])).chains == 1
    assert [t.target for t in bench.cluster.routing.chains[1].targets] == [30, 10]
