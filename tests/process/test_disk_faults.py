"""Disks that fail below real daemons: errors of reads, writes and syncs, bytes that rot, records that are damaged.

In this cluster of two replicas a lease is long, so that nothing here is helped by a daemon being taken for dead.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fs3.routing import LocalState
from tests.process.faults import Faults, read_back, wait_equal, write_down, writing
from tests.process.harness import Cluster, cluster, wait_until, watchdog
from tests.process.replicas import routing_of

pytestmark = pytest.mark.process

LIMIT_S = 90.0
NODES = {"storage-1": 101, "storage-2": 102}


@dataclass(frozen=True)
class Hurt:
    """A cluster whose daemons' system calls can be made to fail."""

    cluster: Cluster
    faults: Faults

    def folder(self, name: str) -> Path:
        made = self.cluster.mount / name
        made.mkdir()
        return made

    def restart(self, name: str) -> None:
        """As an operator would, once the disk was replaced or repaired."""
        self.faults.set()
        self.cluster.wait_restarted(name, self.cluster.kill(name))
        self.cluster.wait_serving()

    def offline(self, name: str) -> int:
        """How many targets of a daemon are offline."""
        targets = routing_of(self.cluster.mgmtd()).targets.values()
        return sum(target.node == NODES[name] and target.local is LocalState.OFFLINE for target in targets)


@pytest.fixture(scope="module")
def hurt(fuse: None) -> Iterator[Hurt]:
    folder = Path(tempfile.mkdtemp(prefix="fs3-faults-"))
    faults = Faults(folder)
    with cluster(storages=2, replicas=2, lease_ms=60_000, environment=faults.environment) as made:
        made.wait_serving()
        made.expected_errors += ["goes offline"]
        try:
            yield Hurt(made, faults)
        finally:
            faults.set()


def test_reads_pass_by_a_daemon_that_is_stopped(hurt: Hurt, tmp_path: Path) -> None:
    made, folder = hurt.cluster, hurt.folder(tmp_path.name)
    before = routing_of(made.mgmtd()).chains
    start = time.monotonic()
    with watchdog(made, LIMIT_S):
        write_down(folder, b"slow")
        pid = made.pids()["storage-1"]
        os.kill(pid, signal.SIGSTOP)
        try:
            read_back(folder, b"slow")
            print(f"read without storage-1 in {time.monotonic() - start:.1f} s")
            assert routing_of(made.mgmtd()).chains == before, "it was fenced, so this shows nothing"
        finally:
            os.kill(pid, signal.SIGCONT)
        made.wait_serving()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_disk_that_cannot_be_written(hurt: Hurt, tmp_path: Path, operation: str) -> None:
    """Its targets go offline, the daemon lives, and whoever writes notices nothing."""
    made = hurt.cluster
    with watchdog(made, LIMIT_S):
        with writing(made, tmp_path) as writer:
            pid = made.pids()["storage-2"]
            hurt.faults.set(f"{operation} {made.data}/storage-2/ eio")
            wait_until(lambda: hurt.offline("storage-2") == 4, "the targets of the bad disk to go offline", 30)
            writer.wait_steps(200)
            assert made.pids()["storage-2"] == pid
        hurt.restart("storage-2")
        wait_equal(made)


def test_a_disk_that_cannot_be_read(hurt: Hurt, tmp_path: Path) -> None:
    """Readers get the bytes from the other replica. What could not be read is repaired when the disk works again."""
    made, folder, pattern = hurt.cluster, hurt.folder(tmp_path.name), secrets.token_bytes(16)
    with watchdog(made, LIMIT_S):
        write_down(folder, pattern)
        pid = made.pids()["storage-1"]
        hurt.faults.set(f"read {made.data}/storage-1/ eio")
        read_back(folder, pattern)
        read_back(folder, pattern)
        assert made.pids()["storage-1"] == pid
        hurt.restart("storage-1")
        wait_equal(made)
        read_back(folder, pattern)
