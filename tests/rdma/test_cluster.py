"""A whole cluster, `fs3 up` with a mount, whose daemons talk RDMA over real verbs: what it stores, and what it survives."""

from __future__ import annotations

import filecmp
import hashlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.process.harness import REPOSITORY, Cluster, cluster, wait_until, watchdog
from tests.process.replicas import differences
from tests.rdma import device

MIB = 1 << 20
LIMIT_S = 300.0
STORAGES = ("storage-1", "storage-2", "storage-3")


@pytest.fixture(scope="module")
def made(fuse: None) -> Iterator[Cluster]:
    # An emulated machine may be busy for a while: that must not look like death.
    with cluster(storages=3, replicas=3, lease_ms=20_000) as up:
        up.wait_serving()
        yield up


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def forget_pages() -> None:
    """The kernel's: what is read next comes from the daemons."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def completion_channels(pid: int) -> int:
    """Of a process: each connection over RDMA has one."""
    return sum("infinibandevent" in os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink())


def test_all_talk_rdma(made: Cluster) -> None:
    (made.mount / "first").write_bytes(content(0, MIB))
    pids = made.pids()
    for name in ("mgmtd", "meta", "mount", *STORAGES):
        assert completion_channels(pids[name]), f"{name} has no connection over RDMA\n{made.logs(5)}"
    for log in made.log_files():
        assert "using TCP" not in log.read_text(), log.name


def test_a_tree_is_copied_and_equal(made: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    shutil.copytree(REPOSITORY / "fs3" / "transport", source / "code", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "docs", source / "docs")
    (source / "empty").mkdir()
    (source / "nothing").write_bytes(b"")
    (source / "link").symlink_to("docs/design.md")
    copied = made.mount / "tree"
    with watchdog(made, LIMIT_S):
        subprocess.run(["cp", "-a", str(source), str(copied)], check=True)
        forget_pages()
        done = subprocess.run(["diff", "-r", "--no-dereference", str(source), str(copied)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")
        (copied / "docs").rename(copied / "papers")
        assert not (copied / "link").exists() and (copied / "link").is_symlink()
        shutil.rmtree(copied)
        assert not copied.exists()


def test_a_big_file_comes_back(made: Cluster, tmp_path: Path) -> None:
    local, far = tmp_path / "big", made.mount / "big"
    local.write_bytes(content(1, 16 * MIB + 12_345))
    before = device.counters()
    with watchdog(made, LIMIT_S):
        shutil.copyfile(local, far)
        forget_pages()
        assert digest(far) == digest(local)
        with far.open("rb") as file:  # out of order, past chunks' ends
            for at in (15 * MIB, MIB - 5, 7 * MIB + 3, 0):
                file.seek(at)
                assert file.read(3 * MIB) == local.read_bytes()[at : at + 3 * MIB]
    sent = device.since(before)["sent_pkts"] * device.PACKET_SIZE
    assert sent > 3 * 16 * MIB, "three replicas were written, and one was read, by RDMA"


def test_readers_and_writers_at_once(made: Cluster) -> None:
    piece, count, writers = 300_000, 24, 4
    whole = content(2, piece * count)
    shared, steady = made.mount / "shared", made.mount / "steady"
    steady.write_bytes(whole)
    shared.write_bytes(b"")
    ended = threading.Event()

    def write(number: int) -> None:
        with shared.open("r+b", buffering=0) as file:
            for index in range(number, count, writers):
                assert os.pwrite(file.fileno(), whole[index * piece : (index + 1) * piece], index * piece) == piece
            os.fsync(file.fileno())

    def read(seed: int) -> int:
        rng = random.Random(seed)
        rounds = 0
        while not ended.is_set() or not rounds:
            forget_pages()
            at = rng.randrange(len(whole) - MIB)
            with steady.open("rb") as file:
                file.seek(at)
                assert file.read(MIB) == whole[at : at + MIB]
            rounds += 1
        return rounds

    with watchdog(made, LIMIT_S), ThreadPoolExecutor(writers + 2) as threads:
        readers = [threads.submit(read, seed) for seed in (1, 2)]
        try:
            list(threads.map(write, range(writers)))
        finally:
            ended.set()
        assert all(reader.result() for reader in readers)
        forget_pages()
        assert digest(shared) == hashlib.sha256(whole).hexdigest()


def copying(source: Path, target: Path) -> subprocess.Popen[bytes]:
    """A copy in a process of its own, which syncs each MiB."""
    words = ["dd", f"if={source}", f"of={target}", "bs=1M", "oflag=dsync"]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def test_a_storage_daemon_killed_under_a_copy_loses_nothing(made: Cluster, tmp_path: Path) -> None:
    local, far = tmp_path / "source", made.mount / "killed"
    local.write_bytes(content(3, 8 * MIB))
    with watchdog(made, LIMIT_S):
        copy = copying(local, far)
        wait_until(lambda: far.exists() and far.stat().st_size >= 2 * MIB, "the copy to begin", 60)
        pid = made.kill("storage-2")
        assert copy.poll() is None, "the copy had ended before the daemon was killed"
        assert copy.wait(LIMIT_S) == 0
        forget_pages()
        assert filecmp.cmp(local, far, shallow=False)
        made.wait_restarted("storage-2", pid)
        made.wait_serving(120)
        wait_until(lambda: not differences(made.mgmtd()), "the replicas to agree", 120)


def test_a_link_that_flaps_fails_nothing(made: Cluster, tmp_path: Path) -> None:
    local, far = tmp_path / "source", made.mount / "flapped"
    local.write_bytes(content(4, 8 * MIB))
    with watchdog(made, LIMIT_S):
        copy = copying(local, far)
        wait_until(lambda: far.exists() and far.stat().st_size >= MIB, "the copy to begin", 60)
        for _ in range(3):
            device.link(up=False)
            time.sleep(1)
            device.link(up=True)
            time.sleep(0.5)
        assert copy.wait(LIMIT_S) == 0
        forget_pages()
        assert filecmp.cmp(local, far, shallow=False)
        made.wait_serving(120)
