"""Disks that fail below real daemons: errors of reads, writes and syncs, rot, damaged records, no space.

In this cluster of two replicas a lease is long, so that nothing here is helped by a daemon being taken for dead.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fs3.routing import LocalState
from tests.process.faults import FILES, Faults, read_back, record_stores, rot, wait_equal, write_down, writing
from tests.process.harness import Cluster, cluster, wait_until, watchdog
from tests.process.replicas import metrics_of, routing_of

pytestmark = pytest.mark.process

LIMIT_S = 90.0
GIVEN_BACK_S = 30.0
MIB = 1 << 20
BLOCK = bytes(range(256)) * (MIB // 256)
DISK_MIB = {"storage-1": 256, "storage-2": 288}
RESERVE_MIB = 48
NODES = {"storage-1": 101, "storage-2": 102}


@dataclass(frozen=True)
class Hurt:
    """A cluster whose daemons' system calls can be made to fail."""

    cluster: Cluster
    faults: Faults
    small_disks: bool

    def folder(self, name: str) -> Path:
        made = self.cluster.mount / name
        made.mkdir()
        return made

    def restart(self, name: str) -> None:
        """As an operator would, once the disk was replaced or repaired."""
        self.faults.set()
        with self.returning(name):
            self.cluster.kill(name)

    def counted(self, name: str, what: str) -> float:
        """A counter of a daemon."""
        found = metrics_of(self.cluster.mgmtd(), NODES[name]).get(f"storage.{what}", 0)
        assert isinstance(found, float | int)
        return found

    @contextmanager
    def returning(self, name: str) -> Iterator[None]:
        """Waits until a daemon that the block starts serves. Until it registers, mgmtd takes the one before for alive."""
        before = self._incarnation(name)
        yield
        wait_until(lambda: self._incarnation(name) != before, f"{name} to register", 30)
        self.cluster.wait_serving()

    def _incarnation(self, name: str) -> int:
        return routing_of(self.cluster.mgmtd()).nodes[NODES[name]].incarnation

    def offline(self, name: str) -> int:
        """How many targets of a daemon are offline."""
        targets = routing_of(self.cluster.mgmtd()).targets.values()
        return sum(target.node == NODES[name] and target.local is LocalState.OFFLINE for target in targets)


@pytest.fixture(scope="module")
def hurt(fuse: None) -> Iterator[Hurt]:
    """On small disks, where they can be mounted."""
    home = Path(tempfile.mkdtemp(prefix="fs3-faults-"))
    faults = Faults(home)
    root = os.geteuid() == 0

    def prepare(data: Path) -> None:
        for name, mib in DISK_MIB.items() if root else ():
            (home / name).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(home / name)], check=True)
            (data / name).symlink_to(home / name)

    shape = {"storages": 2, "replicas": 2, "lease_ms": 60_000}
    settings = dict.fromkeys(NODES, f'reserve_bytes = "{RESERVE_MIB}MiB"')
    settings["storage-2"] += "\nscrub_period_ms = 3000"
    try:
        with cluster(**shape, settings=settings, environment=faults.environment, prepare=prepare) as made:
            made.wait_serving()
            made.expected_errors += ["go offline", "goes offline"]
            try:
                yield Hurt(made, faults, root)
            finally:
                faults.set()
    finally:
        for name in NODES:
            subprocess.run(["umount", "--lazy", str(home / name)], capture_output=True, check=False)


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
            hurt.faults.set(f"{operation} /storage-2/ eio")
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
        hurt.faults.set("read /storage-1/ eio")
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


def test_rot_that_nobody_reads(hurt: Hurt, tmp_path: Path) -> None:
    """The scrubber finds it, and it is repaired."""
    made, folder, pattern = hurt.cluster, hurt.folder(tmp_path.name), secrets.token_bytes(16)
    with watchdog(made, LIMIT_S):
        write_down(folder, pattern)
        before = hurt.counted("storage-2", "repaired_chunks")
        assert rot(made.data / "storage-2", pattern) >= FILES
        wait_until(lambda: hurt.counted("storage-2", "repaired_chunks") >= before + FILES, "the scrubber to find all", 40)
        wait_equal(made)


def test_records_that_are_damaged(hurt: Hurt, tmp_path: Path) -> None:
    """The target does not serve what it has; it is filled from its chain. `fs3-storage inspect` tells what is wrong."""
    made, folder, pattern = hurt.cluster, hurt.folder(tmp_path.name), secrets.token_bytes(16)
    with watchdog(made, LIMIT_S):
        write_down(folder, pattern)
        hurt.restart("storage-1")  # so that all kinds of files are there
        write_down(folder, pattern[::-1])
        disk = made.data / "storage-1"
        stores = record_stores(disk)
        target = stores[0].parent  # of the others it would put the records' log in order
        code, said = inspect(disk)
        assert code == 2 and "in use" in said, said
        made.keep_down("storage-1")
        code, said = inspect(target)
        assert code == 0, said
        assert rot(disk, pattern[::-1]) >= FILES
        code, said = inspect(target)
        assert code == 1 and "DAMAGED" in said, said
        for number, store in enumerate(stores):
            damage(store, ("CURRENT", "MANIFEST-*", "*.sst", "*.log")[number % 4])
        code, said = inspect(target)
        assert code == 1 and "Corruption" in said, said
        with hurt.returning("storage-1"):
            made.bring_back("storage-1")
        assert hurt.counted("storage-1", "targets_rebuilt") >= 3, "at least those with a bad CURRENT, MANIFEST or SST file"
        read_back(folder, pattern[::-1])
        wait_equal(made)


def test_a_full_disk(hurt: Hurt, tmp_path: Path) -> None:
    """A clean ENOSPC; what is there stays; when files are removed, everything goes on."""
    if not hurt.small_disks:
        pytest.skip("only root can mount small disks")
    small, folder = hurt.cluster, hurt.folder(tmp_path.name)
    big, more = folder / "big", folder / "more"
    with watchdog(small, LIMIT_S):
        write_down(folder, b"kept")
        written = fill(big)
        assert written > (DISK_MIB["storage-1"] - RESERVE_MIB) * MIB // 2, "full far too early"
        assert free(small.data / "storage-1") > RESERVE_MIB * MIB // 2, "the reserve was used up"
        fill(more)
        read_back(folder, b"kept")
        check_big(big, written)
        start = time.monotonic()
        # Removed files give their space back, in the background.
        again = 0
        while again < written * 9 // 10:
            assert time.monotonic() < start + GIVEN_BACK_S, f"{again} bytes after {written} before"
            big.unlink()
            more.unlink(missing_ok=True)
            time.sleep(0.5)
            again = fill(big)
        print(f"{written >> 20} MiB; after their removal {again >> 20} MiB, in {time.monotonic() - start:.1f} s")
        big.unlink()
        wait_until(lambda: writes(folder), "writes to go on", GIVEN_BACK_S)
        read_back(folder, b"then")
    wait_equal(small)


@pytest.mark.soak
def test_the_last_copy_is_not_thrown_away(fuse: None) -> None:
    """Its records are damaged: the target stays offline, the log says so, the daemon lives and serves its others."""
    with cluster(storages=1, replicas=1) as made, watchdog(made, LIMIT_S):
        made.wait_serving()
        (made.mount / "files").mkdir()
        write_down(made.mount / "files", b"kept")
        made.keep_down("storage-1")
        before = sorted(made.data.glob("storage-1/**/data-*"))
        stores = record_stores(made.data / "storage-1")
        damage(stores[0], "CURRENT")
        damage(stores[1], "*.log")
        made.expected_errors.append("last copy")
        made.bring_back("storage-1")
        log = made.data / "log" / "storage-1.log"
        words = "it is the last copy of its chain: it stays offline"
        wait_until(lambda: log.read_text().count(words) == 2, "the log to say so", 30)
        heads = [chain.head() for chain in routing_of(made.mgmtd()).chains.values()]
        assert sum(head is not None for head in heads) == 2
        assert "storage-1" in made.pids()
        assert sorted(made.data.glob("storage-1/**/data-*")) == before


def inspect(disk: Path) -> tuple[int, str]:
    """What `fs3-storage inspect` makes of a disk: exit code and words."""
    command = [sys.executable, "-m", "fs3.storage.daemon", "inspect", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def damage(store: Path, files: str) -> None:
    """Overwrites the middle of some of a RocksDB's files."""
    paths = [path for path in store.glob(files) if path.stat().st_size]
    assert paths, f"no {files} in {store}: {sorted(store.iterdir())}"
    for path in paths:
        with path.open("r+b") as file:
            size = path.stat().st_size
            file.seek(size // 3)
            file.write(b"\xa5" * max(1, size // 3))


def fill(path: Path) -> int:
    """Writes until the disk is full; how many bytes were written."""
    done = 0
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        while True:
            done += os.write(fd, BLOCK)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return done
    finally:
        os.close(fd)


def free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def writes(folder: Path) -> bool:
    """Whether there is space for small files again."""
    try:
        write_down(folder, b"then")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    return True


def check_big(path: Path, written: int) -> None:
    """What write(2) returned for is there, although others failed."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for at in range(0, written, MIB):
            assert file.read(MIB) == BLOCK[: written - at], f"wrong bytes at {at}"
