from collections import Counter

from fs3.client.selection import ReplicaSelector
from fs3.ids import ChunkId
from fs3.routing import PublicState
from tests.unit.client.cluster import routing

NONE: frozenset[int] = frozenset()


def pick(selector: ReplicaSelector, index: int = 0, tried: frozenset[int] = NONE, now: float = 0.0) -> int | None:
    info = routing()
    return selector.pick(info, info.chains[1], ChunkId(5, index), tried, now)


def test_chunks_spread_over_all_replicas() -> None:
    selector = ReplicaSelector("elsewhere", 99)
    picked = Counter(pick(selector, index) for index in range(300))
    assert set(picked) == {11, 12, 13}
    assert min(picked.values()) > 60


def test_clients_spread_over_the_replicas_of_one_chunk() -> None:
    assert {pick(ReplicaSelector("elsewhere", client)) for client in range(30)} == {11, 12, 13}


def test_one_client_reads_a_chunk_from_one_place() -> None:
    selector = ReplicaSelector("elsewhere", 4)
    assert len({pick(selector, 7) for _ in range(10)}) == 1


def test_the_own_host_comes_first() -> None:
    assert {pick(ReplicaSelector("b", 3), index) for index in range(30)} == {12}


def test_a_tried_replica_is_not_picked_again() -> None:
    selector = ReplicaSelector("b", 3)
    assert pick(selector, tried=frozenset({12})) in (11, 13)
    assert pick(selector, tried=frozenset({11, 12, 13})) is None


def test_a_failed_node_is_avoided_until_its_penalty_ends() -> None:
    selector = ReplicaSelector("b", 3)
    selector.failed(2, now=10.0)
    assert pick(selector, now=10.1) in (11, 13)
    assert pick(selector, now=11.0) == 12


def test_penalties_grow_and_success_ends_them() -> None:
    selector = ReplicaSelector("b", 3)
    selector.failed(2, now=10.0)
    selector.failed(2, now=10.0)
    assert pick(selector, now=10.6) != 12
    selector.succeeded(2, 0.001, now=10.6)
    assert pick(selector, now=10.6) == 12


def test_a_much_slower_node_is_avoided_for_a_while() -> None:
    selector = ReplicaSelector("b", 3)
    for _ in range(10):
        selector.succeeded(1, 0.001, now=1.0)
    selector.succeeded(2, 1.0, now=1.0)
    assert pick(selector, now=1.1) != 12
    assert pick(selector, now=2.0) == 12


def test_an_avoided_replica_is_better_than_none() -> None:
    selector = ReplicaSelector("", 3)
    for node in (1, 2, 3):
        selector.failed(node, now=1.0)
    assert pick(selector, now=1.1) in (11, 12, 13)


def test_new_routing_is_seen() -> None:
    selector = ReplicaSelector("b", 3)
    assert pick(selector) == 12
    info = routing(2, (PublicState.SERVING, PublicState.OFFLINE, PublicState.SERVING))
    assert selector.pick(info, info.chains[1], ChunkId(5, 0), NONE, 0.0) in (11, 13)


def test_the_usual_choice_is_what_pick_says() -> None:
    for hosts in (("a", "b", "c"), ("b", "b", "c"), ("c", "c", "c")):
        info = routing(hosts=hosts)
        selector = ReplicaSelector("b", 12345)
        usual = selector.usual(info, info.chains[1], 1.0)
        for index in range(100):
            chunk = ChunkId(7, index)
            found = usual[selector.turn(chunk.inode, chunk.index) % len(usual)]
            assert found == selector.pick(info, info.chains[1], chunk, frozenset(), 1.0)
        selector.failed(1, 1.0)
        assert selector.usual(info, info.chains[1], 1.0) == ()
        assert selector.usual(info, info.chains[1], 100.0) == usual
