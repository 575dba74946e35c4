"""`fs3 bench`, `stats`, `profile` and `warmup` on a real mount and real daemons."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from fs3.cli.folder import DataFolder, free_ports
from fs3.cli.main import cli
from fs3.cli.mounts import mount_at
from fs3.control import door
from fs3.errors import ConfigError, FS3Error
from tests.process.harness import REPOSITORY, Cluster, fs3, wait_until

pytestmark = pytest.mark.process


def told(*words: str) -> dict[str, Any]:
    """What a command prints as JSON; run in this process, since each start of another costs half a second."""
    out = io.StringIO()
    with redirect_stdout(out):
        cli.main([*words, "--json"], standalone_mode=False)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@contextmanager
def busy(folder: Path) -> Iterator[None]:
    """Somebody who makes, reads and removes files meanwhile."""
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = folder / f"busy-{number}"
            path.write_bytes(b"x" * 10_000)
            path.read_bytes()
            path.unlink()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_stats_tell_of_a_mount_and_of_daemons(mounted: Path, shared_cluster: Cluster) -> None:
    with busy(mounted):
        found = told("stats", str(mounted), "--interval", "0.5", "--count", "1")
    operations = found["operations"]["fuse"]
    assert operations["create"]["per_s"] > 0 and operations["unlink"]["p99_ms"] >= operations["unlink"]["p50_ms"] > 0
    assert found["per_s"]["fuse.written_bytes"] > 0 and found["memory_bytes"] > 1 << 20
    assert "meta.create" in found["operations"]["call"] and "storage.write" in found["operations"]["call"]
    meta = next(daemon for daemon in DataFolder(shared_cluster.data).daemons() if daemon.kind == "meta")
    total = told("stats", meta.address, "--total")
    assert total["operations"]["rpc"]["meta.create"]["per_s"] > 0 and total["seconds"] > 1
    words = fs3("stats", str(mounted), "--total").stdout
    assert "operations/s" in words and "method called" in words


def test_a_profile_tells_who_does_what_on_which_file(mounted: Path, shared_cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "ops.jsonl"
    with busy(mounted):
        found = told("profile", str(mounted), "--seconds", "0.7", "--log", str(log), "--top", "1000")
    assert found["operations"] > 10 and not found["dropped"]
    assert {"fuse.create", "fuse.write", "fuse.unlink"} <= {row["operation"] for row in found["by_operation"]}
    mine = [row for row in found["by_caller"] if f"(pid {os.getpid()}, " in row["caller"]]
    assert mine and mine[0]["count"] > found["operations"] / 2
    paths = [row["path"] for row in found["by_path"]]
    assert any(path.startswith(f"/{mounted.name}/busy-") for path in paths)
    again = told("profile", "--replay", str(log), "--top", "1000")
    assert again["by_operation"] == found["by_operation"]
    with busy(mounted):
        meta = next(daemon for daemon in DataFolder(shared_cluster.data).daemons() if daemon.kind == "meta")
        served = told("profile", meta.address, "--seconds", "0.5")
    assert "rpc.meta.create" in {row["operation"] for row in served["by_operation"]}
    assert "rpc.trace" not in {row["operation"] for row in served["by_operation"]}


def test_only_its_user_and_root_may_ask_a_mount(mounted: Path, shared_cluster: Cluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: no other user can be played")
    mount = mount_at(shared_cluster.mount)
    assert mount is not None
    words = f"""
import os, socket
os.setgid(65534), os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect({door(mount.device)!r})
sock.sendall(b'{{"ask": "trace"}}\\n')
print(sock.recv(1000).decode())
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=30, check=True)
    assert "only root" in json.loads(done.stdout)["error"]


def test_warmup_reads_every_replica_by_path_or_list(mounted: Path, shared_cluster: Cluster, tmp_path: Path) -> None:
    (mounted / "a" / "b").mkdir(parents=True)
    sizes = {"one": 3_000_000, "a/two": 5, "a/b/three": 1_500_000}
    for name, size in sizes.items():
        (mounted / name).write_bytes(os.urandom(size))
    (mounted / "a" / "empty").touch()
    os.truncate(mounted / "a" / "empty", 1 << 40)
    (mounted / "a" / "link").symlink_to("two")
    at = ["--data", str(shared_cluster.data)]
    found = told("warmup", str(mounted), *at)
    assert found["files"] == 4 and found["warmed_bytes"] == 3 * sum(sizes.values()) and not found["problems"]
    assert told("warmup", f"/{mounted.name}/a/b", *at)["warmed_bytes"] == 3 * sizes["a/b/three"]
    names = tmp_path / "names"
    names.write_text(f"{mounted}/one\n/{mounted.name}/a/two\n")
    assert told("warmup", "--file", str(names), *at)["content_bytes"] == 3_000_005
    here = told("warmup", str(mounted / "one"), str(mounted / "a/b"), "--local")
    assert here["local_bytes"] == sizes["one"] + sizes["a/b/three"], "whose cluster it is, its mount says"
    with pytest.raises(FS3Error, match="no such file"):
        told("warmup", str(mounted / "none"), *at)
    with pytest.raises(ConfigError, match="expected a PATH"):
        told("warmup", *at)


def test_bench_runs_on_a_mount(mounted: Path) -> None:
    small = ("--size", "256KiB", "--block-size", "64KiB", "--files", "10", "--small-size", "8KiB", "--kv-size", "64KiB")
    found = told("bench", str(mounted), *small, "--time", "0.1", "--threads", "2", "--cold", "advise", "--verify")
    assert found["file_system"] == "fuse.fs3" and {row["benchmark"] for row in found["rows"]} == {
        "big", "small", "metadata", "checkpoint", "kvcache", "random",
    }  # fmt: skip
    assert all(row["value"] > 0 for row in found["rows"]) and list(mounted.iterdir()) == []


def test_prometheus_reads_a_mount(shared_cluster: Cluster, mounted: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    place = tmp_path / "mnt"
    place.mkdir()
    line = [sys.executable, "-m", "fuse.daemon", "--mgmtd", ",".join(shared_cluster.mgmtd()), "--mount", str(place)]
    flags = ["--metrics", f"127.0.0.1:{port}", *([] if os.geteuid() == 0 else ["--no-allow-other"])]
    with subprocess.Popen([*line, *flags], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: mount_at(place) is not None, "the mount", 30)
            os.listdir(place)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        finally:
            process.terminate()
            assert process.wait(30) == 0
    assert 'fs3_fuse_seconds_count{operation="readdir"}' in text and "fs3_fuse_known_inodes" in text
