"""Leases of other times than before, by configuration or by the next mgmtd: none that was granted is cut short."""

from __future__ import annotations

import pytest

from fs3.api.admin import SetConfigRequest, Setting
from fs3.api.mgmtd import HeartbeatRequest, RegisterRequest
from fs3.ids import NodeKind
from fs3.routing import Node
from mgmtd.cluster import Cluster, Timing
from tests.unit.mgmtd.test_cluster import TIMING, Bench

ME = Node(900, NodeKind.MGMTD, "mem://900", "h", True, 9)
SHORT = Timing(lease_ms=200, client_lease_ms=500, forget_client_ms=60_000)
LONG = Timing(lease_ms=5000, client_lease_ms=9000, forget_client_ms=60_000)


def client(bench: Bench) -> int:
    return bench.do(bench.cluster.register(RegisterRequest(0, NodeKind.CLIENT, "", "h", 7), bench.now)).node


def beat(bench: Bench, node: int) -> int:
    return bench.do(bench.cluster.heartbeat(HeartbeatRequest(node, 7), bench.now)).lease_ms


def change(bench: Bench, timing: Timing) -> None:
    """As the service does it when the setting is changed."""
    request = SetConfigRequest("mgmtd", (Setting("client_lease_ms", f"{timing.client_lease_ms}ms"),))
    bench.do(bench.cluster.set_config(request, 0, lambda version: timing))
    bench.cluster.timing = timing


def alive(bench: Bench, node: int) -> bool:
    bench.do(bench.cluster.tick(bench.now))
    return next(info.alive for info in bench.cluster.client_list() if info.client == node)


def test_a_shorter_lease_begins_when_the_longer_one_that_was_granted_is_over() -> None:
    bench = Bench(0)
    bench.do(bench.cluster.take_office(ME))
    node = client(bench)
    change(bench, SHORT)
    bench.now += 0.1
    assert beat(bench, node) == 500  # the answer may be lost: the node may go on for half of its first lease
    bench.now += 2.0
    assert alive(bench, node)
    assert bench.cluster.head.client_lease_ms == TIMING.client_lease_ms
    bench.now += 0.85
    assert alive(bench, node)
    assert bench.cluster.head.client_lease_ms == 500, "none is left that ends later"
    beat(bench, node)
    bench.now += 0.49
    assert alive(bench, node)
    bench.now += 0.02
    assert not alive(bench, node)


@pytest.mark.parametrize("first", [TIMING, LONG])
def test_the_next_mgmtd_waits_for_leases_that_are_longer_than_its_own(first: Timing) -> None:
    bench = Bench(0)
    bench.do(bench.cluster.take_office(ME))
    node = client(bench)
    if first is LONG:
        change(bench, LONG)
        assert beat(bench, node) == 9000
    bench.cluster = Cluster(bench.stored, SHORT, bench.now)
    bench.do(bench.cluster.take_office(ME))
    bench.now += first.client_lease_ms / 1000 - 0.01
    assert alive(bench, node)
    bench.now += 0.02
    assert not alive(bench, node)
    assert bench.cluster.head.client_lease_ms == 500
    assert bench.cluster.head.lease_ms == 200


def test_a_longer_lease_is_granted_only_once_the_store_says_so() -> None:
    bench = Bench(0)
    bench.do(bench.cluster.take_office(ME))
    change(bench, LONG)
    assert bench.stored.head.client_lease_ms == 9000


def test_storage_nodes_get_whole_leases_after_a_restart_with_shorter_ones() -> None:
    bench = Bench(1)
    bench.do(bench.cluster.take_office(ME))
    bench.cluster = Cluster(bench.stored, SHORT, bench.now)
    bench.do(bench.cluster.take_office(ME))
    bench.now += 0.99
    bench.do(bench.cluster.tick(bench.now))
    assert bench.cluster.routing.nodes[1].alive
    bench.now += 0.02
    bench.do(bench.cluster.tick(bench.now))
    assert not bench.cluster.routing.nodes[1].alive
