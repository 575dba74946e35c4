"""The quick ways do what the slow ones do: heartbeats without a change, registrations of many nodes in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.api.mgmtd import FormatRequest, HeartbeatRequest, RegisterReply, RegisterRequest, TargetReport
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import LocalState
from mgmtd.cluster import Cluster, Timing
from mgmtd.registration import TOGETHER_MAX, together
from mgmtd.state import FIRST_CLIENT, Change, Head, Saved, State

NODES = (101, 102, 103)
CAPACITY = 1000
NOW = 100.0


def formatted() -> Cluster:
    """Three storage nodes of two targets each, in two chains, and a client; all have said that they are up to date."""
    cluster = Cluster(Saved(Head(1, 1, "c", FIRST_CLIENT)), Timing(), NOW)
    for node in NODES:
        reports = tuple([TargetReport(node * 10 + n, n, LocalState.ONLINE, CAPACITY, 0) for n in range(2)])
        apply(cluster, cluster.register(storage(node, 1, reports), NOW))
    apply(cluster, cluster.register(RegisterRequest(0, NodeKind.CLIENT, "", "h", 7), NOW))
    apply(cluster, cluster.format(FormatRequest(3, 1 << 20, 0)))
    for node in NODES:
        apply(cluster, cluster.heartbeat(HeartbeatRequest(node, 1, plain(cluster, node)), NOW))
    apply(cluster, cluster.heartbeat(HeartbeatRequest(FIRST_CLIENT, 7), NOW))
    return cluster


def storage(node: int, incarnation: int, reports: tuple[TargetReport, ...]) -> RegisterRequest:
    return RegisterRequest(node, NodeKind.STORAGE, f"mem://{node}", "h", incarnation, (), reports)


def apply(cluster: Cluster, made: tuple[Change, Any]) -> Any:
    cluster.apply(made[0])
    return made[1]


def plain(cluster: Cluster, node: int) -> tuple[TargetReport, ...]:
    """What a node reports when nothing is new."""
    targets = [cluster.routing.targets[node * 10 + n] for n in range(2)]
    version = {t.id: cluster.routing.chains[t.chain].version for t in targets}
    return tuple([TargetReport(t.id, t.disk, LocalState.UPTODATE, t.capacity, t.used, version[t.id]) for t in targets])


def contents(state: State, *, versions: bool = True) -> dict[str, Any]:
    """All that a state holds; versions: of the head too."""
    found = {name: value for name, value in vars(state).items() if name not in ("_routing", "configs", "operations")}
    if not versions:
        found["head"] = (state.head.next_client, state.head.lease_ms, state.head.client_lease_ms)
    return found


_REPORTS = st.builds(
    lambda local, disk, used, capacity, version, chain, obeyed: (local, disk, used, capacity, version, chain, obeyed),
    st.sampled_from([LocalState.UPTODATE] * 6 + list(LocalState)),
    st.sampled_from([0] * 9 + [1]),
    st.sampled_from([0, 0, 1, 50, 51, 900]),
    st.sampled_from([CAPACITY] * 9 + [CAPACITY + 1, 2 * CAPACITY]),
    st.sampled_from([0] * 9 + [1, -1]),
    st.sampled_from([0] * 9 + [1, 2]),
    st.sampled_from([0] * 9 + [5]),
)


def reported(base: TargetReport, change: tuple[Any, ...]) -> TargetReport:
    local, disk, used, capacity, version, chain, obeyed = change
    return TargetReport(base.target, base.disk + disk, local, capacity, used, base.chain_version + version, chain, obeyed)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([*NODES, 104, FIRST_CLIENT, FIRST_CLIENT + 1]),
    st.sampled_from([1, 1, 1, 2, 7]),
    st.lists(_REPORTS, min_size=2, max_size=2),
    st.sampled_from(["all", "all", "all", "one", "twice", "other's"]),
    st.sampled_from([0, 0, 0, 3]),
)
def test_a_renewal_does_what_the_heartbeat_would(
    node: int, incarnation: int, changes: list[Any], which: str, config_version: int
) -> None:
    quick, slow = formatted(), formatted()
    reports = [reported(base, change) for base, change in zip(plain(slow, min(node, 103)), changes, strict=True)]
    if which == "one":
        reports.pop()
    elif which == "twice":
        reports[1] = reports[0]
    elif which == "other's":
        reports[1] = replace(reports[1], target=1011 if node != 101 else 1021)
    request = HeartbeatRequest(node, incarnation, tuple(reports), config_version=config_version)
    before = contents(quick.state)
    reply = quick.renew(request, NOW + 1)
    if reply is None:
        assert contents(quick.state) == before
        return
    change, expected = slow.heartbeat(request, NOW + 1)
    assert change.head is None, "nothing has to be stored"
    slow.apply(change)
    assert reply == expected and contents(quick.state) == contents(slow.state)
    assert quick.routing == slow.routing


def test_usual_heartbeats_are_renewals() -> None:
    cluster = formatted()
    for node in NODES:
        reports = tuple([replace(report, used=40) for report in plain(cluster, node)])
        assert cluster.renew(HeartbeatRequest(node, 1, reports), NOW + 3) is not None
        assert {cluster.routing.targets[node * 10 + n].used for n in range(2)} == {40}
        assert cluster.state.leases[node] == NOW + 13
    assert cluster.renew(HeartbeatRequest(FIRST_CLIENT, 7), NOW + 3) is not None
    assert cluster.tick(NOW + 12.9).nodes == {}
    assert set(cluster.tick(NOW + 13).nodes) == set(NODES)


def test_what_others_must_hear_of_is_no_renewal() -> None:
    cluster = formatted()
    usual = plain(cluster, 101)
    for odd in (
        replace(usual[0], local=LocalState.OFFLINE),
        replace(usual[0], local=LocalState.ONLINE),
        replace(usual[0], chain_version=77),
        replace(usual[0], used=CAPACITY // 2),
        replace(usual[0], disk=5),
    ):
        assert cluster.renew(HeartbeatRequest(101, 1, (odd, usual[1])), NOW + 1) is None
    assert cluster.renew(HeartbeatRequest(101, 1, usual[:1]), NOW + 1) is None
    assert cluster.renew(HeartbeatRequest(101, 2, usual), NOW + 1) is None, "of another incarnation"
    assert cluster.renew(HeartbeatRequest(999, 1), NOW + 1) is None
    assert cluster.state.leases[101] == NOW + 10


_CLIENTS = st.builds(
    RegisterRequest,
    st.sampled_from([0, 0, FIRST_CLIENT, FIRST_CLIENT + 1, FIRST_CLIENT + 9]),
    st.just(NodeKind.CLIENT),
    st.just(""),
    st.just("h"),
    st.integers(6, 9),
    predecessor=st.sampled_from([0, 0, 0, FIRST_CLIENT, FIRST_CLIENT + 1]),
    predecessor_incarnation=st.integers(6, 8),
)
_STORAGES = st.builds(
    lambda node, incarnation, targets: storage(
        node, incarnation, tuple([TargetReport(t, 0, LocalState.ONLINE, CAPACITY, 0) for t in sorted(targets)])
    ),
    st.sampled_from([*NODES, 104, 105, FIRST_CLIENT]),
    st.integers(1, 2),
    st.sets(st.sampled_from([1010, 1011, 1020, 1021, 1030, 1040, 1050]), max_size=3),
)


def one_by_one(cluster: Cluster, requests: list[RegisterRequest]) -> list[RegisterReply | Code]:
    outcomes: list[RegisterReply | Code] = []
    for request in requests:
        try:
            outcomes.append(apply(cluster, cluster.register(request, NOW)))
        except FS3Error as error:
            outcomes.append(error.code)
    return outcomes


def at_once(cluster: Cluster, requests: list[RegisterRequest]) -> list[RegisterReply | Code]:
    outcomes: list[RegisterReply | Code] = []
    while len(outcomes) < len(requests):
        try:
            replies = apply(cluster, cluster.register_all(requests[len(outcomes) :], NOW))
            assert replies
            outcomes += replies
        except FS3Error as error:
            outcomes.append(error.code)
    return outcomes


def known(outcome: RegisterReply | Code) -> RegisterReply | Code:
    return replace(outcome, routing_version=0) if isinstance(outcome, RegisterReply) else outcome


@settings(max_examples=100, deadline=None)
@given(st.lists(_CLIENTS | _STORAGES, min_size=1, max_size=6))
def test_registering_at_once_is_registering_one_by_one(requests: list[RegisterRequest]) -> None:
    once, each = formatted(), formatted()
    assert list(map(known, at_once(once, requests))) == list(map(known, one_by_one(each, requests)))
    assert contents(once.state, versions=False) == contents(each.state, versions=False)
    assert once.head.revision <= each.head.revision


def test_a_crowd_makes_few_changes() -> None:
    cluster = formatted()
    revision, version = cluster.head.revision, cluster.version
    crowd = [RegisterRequest(0, NodeKind.CLIENT, "", "h", n) for n in range(TOGETHER_MAX + 10)]
    crowd += [storage(node, 5, (TargetReport(node * 10, 0, LocalState.ONLINE, CAPACITY, 0),)) for node in range(200, 220)]
    replies = at_once(cluster, crowd)
    assert len({reply.node for reply in replies if isinstance(reply, RegisterReply)}) == len(crowd)
    assert (cluster.head.revision - revision, cluster.version - version) == (2, 1)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_is_refused_spoils_nothing_for_the_others(place: int) -> None:
    cluster = formatted()
    crowd = [RegisterRequest(0, NodeKind.CLIENT, "", "h", n) for n in range(2)]
    crowd.insert(place, RegisterRequest(FIRST_CLIENT + 50, NodeKind.CLIENT, "", "h", 9))
    outcomes = at_once(cluster, crowd)
    assert outcomes.pop(place) is Code.UNKNOWN_NODE
    assert all(isinstance(outcome, RegisterReply) for outcome in outcomes)


def test_what_looks_at_each_other_does_not_go_together() -> None:
    state = formatted().state
    client = RegisterRequest(FIRST_CLIENT, NodeKind.CLIENT, "", "h", 8)
    fresh = RegisterRequest(0, NodeKind.CLIENT, "", "h", 9)
    heir = replace(fresh, predecessor=FIRST_CLIENT, predecessor_incarnation=8)
    mover = storage(104, 1, (TargetReport(1010, 0, LocalState.ONLINE, CAPACITY, 0),))
    assert together(state, [client, client]) == 1
    assert together(state, [client, fresh, fresh, heir]) == 3
    assert together(state, [fresh, mover]) == 1 and together(state, [mover, fresh]) == 1
