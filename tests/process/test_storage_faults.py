"""Storage daemons that are killed at random points, lost in turn, or stopped, under a writer whose promises are noted."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs3.cli.folder import STORAGE_NODE_FIRST
from fs3.ids import NodeKind
from tests.process.faults import read_back, wait_equal, write_down, writing
from tests.process.harness import SOAK, Cluster, cluster, wait_until, watchdog
from tests.process.replicas import routing_of

pytestmark = pytest.mark.process

KILLS = 50 if SOAK else 10
LIMIT_S = 90.0 + 6 * KILLS
STORAGES = ("storage-1", "storage-2", "storage-3")


def test_kills_at_random_points_under_load(victims: Cluster, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    print(f"seed {seed}")
    start = time.monotonic()
    with watchdog(victims, LIMIT_S):
        with writing(victims, tmp_path, seed) as writer:
            kills = 0
            while kills < KILLS:
                # Some right one behind the other: of one that starts or is being filled, of one that served last.
                for _ in range(rng.randint(1, 5)):
                    time.sleep(rng.uniform(0.05, 0.8))
                    alive = sorted(victims.pids().keys() & set(STORAGES))
                    for name in alive if rng.random() < 0.15 else rng.sample(alive, min(1, len(alive))):
                        victims.kill(name)
                        kills += 1
                # The supervisor lets ever more time pass; a call would meet its deadline if this went on and on.
                victims.wait_serving(120)
                writer.wait_steps(50)
                print(f"{kills} kills, {writer.steps()} steps, {time.monotonic() - start:.1f} s")
        wait_equal(victims)


@pytest.fixture(scope="module")
def pair(fuse: None) -> Iterator[Cluster]:
    """Two daemons, two replicas, and a lease that ends soon."""
    with cluster(storages=2, replicas=2, lease_ms=3000) as made:
        made.wait_serving()
        yield made


def test_a_daemon_that_is_stopped_is_fenced_and_rejoins(pair: Cluster, tmp_path: Path) -> None:
    """Writes wait at most until it is fenced; when it goes on, it finds itself superseded, ends, and is filled up.

    Before the tests that start daemons by themselves: here the supervisor does it.
    """
    start = time.monotonic()
    with watchdog(pair, LIMIT_S):
        with writing(pair, tmp_path) as writer:
            pid = pair.pids()["storage-1"]
            os.kill(pid, signal.SIGSTOP)
            try:
                writer.wait_steps(200)
                print(f"writes go on after {time.monotonic() - start:.1f} s")
                assert len(living(pair)) == 1, "fenced"
            finally:
                os.kill(pid, signal.SIGCONT)
            pair.wait_restarted("storage-1", pid)
            pair.wait_serving()
            print(f"all serve after {time.monotonic() - start:.1f} s")
        wait_equal(pair)


def test_a_chain_of_two_loses_both_in_turn(pair: Cluster, tmp_path: Path) -> None:
    start = time.monotonic()
    folder = pair.mount / tmp_path.name
    folder.mkdir()
    write_down(folder, b"kept")
    with watchdog(pair, LIMIT_S):
        with writing(pair, tmp_path) as writer:
            for lost in ("storage-1", "storage-2"):
                pair.keep_down(lost)
                writer.wait_steps(200)  # writes go on with one
                print(f"without {lost} writes go on after {time.monotonic() - start:.1f} s")
                read_back(folder, b"kept")
                pair.bring_back(lost)
                pair.wait_serving()
                print(f"all serve after {time.monotonic() - start:.1f} s")
        wait_equal(pair)


@pytest.mark.soak
def test_a_replica_that_missed_writes_waits_for_the_one_that_has_them(pair: Cluster, tmp_path: Path) -> None:
    folder = pair.mount / tmp_path.name
    folder.mkdir()
    with watchdog(pair, LIMIT_S):
        write_down(folder, b"old")
        pair.keep_down("storage-1")
        write_down(folder, b"new")
        pair.keep_down("storage-2")
        pair.bring_back("storage-1")
        wait_until(lambda: living(pair) == {STORAGE_NODE_FIRST}, "storage-1 to be back, storage-2 to be dead", 30)
        time.sleep(0.5)
        assert serving(pair) == 0, "a target serves that lacks what was acknowledged"
        pair.bring_back("storage-2")
        pair.wait_serving()
        read_back(folder, b"new")
    wait_equal(pair)


def serving(made: Cluster) -> int:
    """How many chains have a serving target on a daemon that lives."""
    routing = routing_of(made.mgmtd())
    heads = [head for chain in routing.chains.values() if (head := chain.head()) is not None]
    nodes = [routing.node_of(head) for head in heads]
    return sum(node is not None and node.alive for node in nodes)


def living(made: Cluster) -> set[int]:
    """The ids of the storage daemons that live, as mgmtd sees it."""
    nodes = routing_of(made.mgmtd()).nodes.values()
    return {node.id for node in nodes if node.kind == NodeKind.STORAGE and node.alive}
