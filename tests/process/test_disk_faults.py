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
from tests.process.faults import FILES, Faults, read_back, record_stores, rot, wait_equal, write_down, writing
from tests.process.harness import Cluster, cluster, wait_until, watchdog
from tests.process.replicas import metrics_of, routing_of

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

    def counted(self, name: str, what: str) -> float:
        """A counter of a daemon."""
        found = metrics_of(self.cluster.mgmtd(), NODES[name]).get(f"storage.{what}", 0)
        assert isinstance(found, float | int)
        return found

    def incarnation(self, name: str) -> int:
        return routing_of(self.cluster.mgmtd()).nodes[NODES[name]].incarnation

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


def test_bytes_that_rot(hurt: Hurt, tmp_path: Path) -> None:
    """Readers get the right bytes from the other replica; the damaged one is found, counted and repaired."""
    made, folder, pattern = hurt.cluster, hurt.folder(tmp_path.name), secrets.token_bytes(16)
    with watchdog(made, LIMIT_S):
        write_down(folder, pattern)
        assert rot(made.data / "storage-1", pattern) >= FILES
        read_back(folder, pattern)
        wait_equal(made)
        assert hurt.counted("storage-1", "repaired_chunks") >= FILES
        read_back(folder, pattern)


def test_records_that_are_damaged(hurt: Hurt, tmp_path: Path) -> None:
    """The target does not serve what it has; it is filled from its chain."""
    made, folder, pattern = hurt.cluster, hurt.folder(tmp_path.name), secrets.token_bytes(16)
    with watchdog(made, LIMIT_S):
        write_down(folder, pattern)
        hurt.restart("storage-1")  # so that all kinds of files are there
        write_down(folder, pattern[::-1])
        made.keep_down("storage-1")
        stores = record_stores(made.data / "storage-1")
        for number, store in enumerate(stores):
            damage(store, ("CURRENT", "MANIFEST-*", "*.sst", "*.log")[number % 4])
        before = hurt.incarnation("storage-1")
        made.bring_back("storage-1")
        wait_until(lambda: hurt.incarnation("storage-1") != before, "storage-1 to register again", 30)
        made.wait_serving()
        assert hurt.counted("storage-1", "targets_rebuilt") >= 3, "at least those with a bad CURRENT, MANIFEST or SST file"
        read_back(folder, pattern[::-1])
        wait_equal(made)


def damage(store: Path, files: str) -> None:
    """Overwrites the middle of some of a RocksDB's files."""
    paths = [path for path in store.glob(files) if path.stat().st_size]
    assert paths, f"no {files} in {store}: {sorted(store.iterdir())}"
    for path in paths:
        with path.open("r+b") as file:
            size = path.stat().st_size
            file.seek(size // 3)
            file.write(b"\xa5" * max(1, size // 3))


def test_the_last_copy_is_not_thrown_away(fuse: None) -> None:
    """Its records are damaged: the target stays offline, the log says so, the daemon lives and serves its others."""
    with cluster(storages=1, replicas=1) as made, watchdog(made, LIMIT_S):
        made.wait_serving()
        made.keep_down("storage-1")
        before = sorted(made.data.glob("storage-1/**/data-*"))
        store = record_stores(made.data / "storage-1")[0]
        damage(store, "CURRENT")
        made.expected_errors.append("last copy")
        made.bring_back("storage-1")
        log = made.data / "log" / "storage-1.log"
        wait_until(lambda: "it is the last copy of its chain: it stays offline" in log.read_text(), "the log to say so", 30)
        heads = [chain.head() for chain in routing_of(made.mgmtd()).chains.values()]
        assert sum(head is not None for head in heads) == 3
        assert "storage-1" in made.pids()
        assert sorted(made.data.glob("storage-1/**/data-*")) == before
