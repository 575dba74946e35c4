"""What cannot work is refused by one clear line and an exit code, before anything is touched; random bytes harm nobody."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fs3.api import common, meta, mgmtd, storage
from fs3.api.common import PING
from fs3.checksum import crc32c
from fs3.wire import frame
from tests.process.harness import Cluster, alive, fs3, own_mounts, wait_until

pytestmark = pytest.mark.process

METHODS = sorted(
    value.id
    for module in (common, meta, mgmtd, storage)
    for value in vars(module).values()
    if isinstance(value, common.Method)
)
DAEMONS = ("fs3-mgmtd", "fs3-meta", "fs3-storage", "fs3-mount")


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on standard error with these words, and an exit code that says so."""
    assert done.returncode != 0, done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is missing in: {lines[0]}"


def daemon(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a daemon that is expected to refuse."""
    command = [sys.executable, str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for locks and logs."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name not in ("run", "log"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """The data folder of a small cluster that ran and was stopped."""
    home = Path(tempfile.mkdtemp(prefix="fs3-test-"))
    try:
        done = fs3("up", "--data", str(home / "data"), "--storages", "1", "--replicas", "1", "--no-mount", "--detach")
        assert done.returncode == 0, done.stdout + done.stderr
        assert fs3("down", "--data", str(home / "data")).returncode == 0
        yield home / "data"
    finally:
        Cluster(home).force_away()
        shutil.rmtree(home)


@pytest.fixture
def data(stopped: Path) -> Iterator[Path]:
    """The same; the test must leave the daemons' data as it was, and a start must work again after it."""
    before = contents(stopped)
    config = {path: path.read_bytes() for path in (stopped / "config").iterdir()}
    yield stopped
    for path, text in config.items():
        path.write_bytes(text)
    assert contents(stopped) == before


def up(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return fs3("up", "--data", str(data), "--detach", *arguments)


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_refuses_an_unknown_key(name: str, tmp_path: Path) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text("lisen = 'tcp://127.0.0.1:0'\n")
    refused(daemon(name, "--config", str(config)), name, "daemon.toml", "lisen")


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_refuses_a_value_of_the_wrong_type(name: str, tmp_path: Path) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text("log_level = 7\n")
    refused(daemon(name, "--config", str(config)), "daemon.toml", "log_level", "expected")


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_refuses_a_file_that_is_no_toml(name: str, tmp_path: Path) -> None:
    config = tmp_path / "daemon.toml"
    config.write_bytes(os.urandom(300))
    refused(daemon(name, "--config", str(config)), "daemon.toml")
    refused(daemon(name, "--config", str(tmp_path / "absent.toml")), "absent.toml")


def test_up_refuses_an_unknown_key(data: Path) -> None:
    config = data / "config" / "meta.toml"
    config.write_text(config.read_text() + "\nchunksize = 5\n")
    refused(up(data, "--no-mount"), "meta.toml", "chunksize")


@pytest.mark.parametrize("name", ["mgmtd", "meta", "storage-1"])
def test_a_taken_port(data: Path, name: str) -> None:
    line = next(line for line in (data / "config" / f"{name}.toml").read_text().splitlines() if line.startswith("listen"))
    port = int(line.rpartition(":")[2].strip().strip('"'))
    with socket.create_server(("127.0.0.1", port)):
        refused(up(data, "--no-mount"), str(port), "taken")
        refused(daemon(f"fs3-{name.partition('-')[0]}", "--config", str(data / "config" / f"{name}.toml")), str(port))


def test_a_data_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(up(tmp_path / "file" / "data", "--no-mount"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b""


def test_a_data_folder_on_a_read_only_file_system(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting read-only needs root")
    folder = tmp_path / "readonly"
    folder.mkdir()
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}"'
    prefix = own_mounts(script)
    refused(fs3("up", "--data", str(folder / "data"), "--no-mount", "--detach", prefix=prefix), str(folder))
    assert not any(folder.iterdir())


def test_a_data_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refused(up(tmp_path, "--no-mount"), str(tmp_path), "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("fuse")
def test_a_mount_point_that_holds_files(data: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    refused(up(data, "--mount", str(tmp_path)), str(tmp_path), "precious")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.usefixtures("fuse")
def test_a_mount_point_where_something_is_mounted(data: Path, shared_cluster: Cluster) -> None:
    refused(up(data, "--mount", str(shared_cluster.mount)), str(shared_cluster.mount), "in use")
    assert os.path.ismount(shared_cluster.mount)


@pytest.mark.usefixtures("fuse")
def test_a_mount_point_that_is_a_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(up(data, "--mount", str(tmp_path / "file")), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_a_newer_format(data: Path) -> None:
    present = (data / "FORMAT").read_bytes()
    (data / "FORMAT").write_text("999\n")
    try:
        refused(up(data, "--no-mount"), "999", "newer")
    finally:
        (data / "FORMAT").write_bytes(present)


@pytest.mark.parametrize("name", ["mgmtd", "meta", "storage-1"])
def test_data_of_a_daemon_of_a_newer_format(stopped: Path, name: str) -> None:
    """Its data stays as it was; the other daemons may have run for a moment."""
    data = stopped
    found = sorted((data / name).rglob("FORMAT"))
    assert found, f"{name} keeps no FORMAT file"
    before = contents(data / name)
    present = found[0].read_bytes()
    found[0].write_text("999\n")
    try:
        refused(daemon(f"fs3-{name.partition('-')[0]}", "--config", str(data / "config" / f"{name}.toml")), "999")
        refused(up(data, "--no-mount"), "999")
    finally:
        found[0].write_bytes(present)
    after = contents(data / name)
    assert {path: text for path, text in after.items() if not path.endswith("LOCK")} == {
        path: text for path, text in before.items() if not path.endswith("LOCK")
    }


@pytest.mark.parametrize("instead", ["nothing", "an empty file"])
def test_no_dev_fuse(data: Path, tmp_path: Path, instead: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("hiding /dev/fuse needs root")
    dev = tmp_path / "dev"
    dev.mkdir()
    script = f'mount -t tmpfs none "{dev}"'
    for name in ("null", "zero", "urandom", "random"):
        script += f' && touch "{dev}/{name}" && mount --bind "/dev/{name}" "{dev}/{name}"'
    script += f' && mount --rbind "{dev}" /dev' + (" && touch /dev/fuse" if instead == "an empty file" else "")
    prefix = own_mounts(script)
    mount = tmp_path / "mnt"
    done = fs3("up", "--data", str(data), "--mount", str(mount), "--detach", prefix=prefix)
    refused(done, "/dev/fuse")
    assert not mount.exists() or not any(mount.iterdir())


def test_a_second_up(shared_cluster: Cluster, tmp_path: Path) -> None:
    pids = shared_cluster.pids()
    refused(up(shared_cluster.data, "--mount", str(tmp_path / "other")), str(shared_cluster.data), "runs here already")
    assert shared_cluster.pids() == pids
    assert not (tmp_path / "other").exists()


def test_a_daemon_refuses_data_that_another_process_holds(shared_cluster: Cluster) -> None:
    for name in ("mgmtd", "meta", "storage-1"):
        config = shared_cluster.data / "config" / f"{name}.toml"
        done = daemon(f"fs3-{name.partition('-')[0]}", "--config", str(config), "--listen", "tcp://127.0.0.1:0")
        refused(done, str(shared_cluster.data))


def test_wrong_flags_of_up(tmp_path: Path) -> None:
    refused(up(tmp_path / "data", "--no-mount", "--replicas", "5", "--storages", "2"), "replicas")
    refused(up(tmp_path / "data", "--no-mount", "--chunk-size", "1000000"), "chunk_size")
    assert not (tmp_path / "data").exists()


def test_the_number_of_replicas_is_fixed(data: Path) -> None:
    refused(up(data, "--no-mount", "--storages", "3"), "storages", "1", "3")


def test_down_and_status_without_a_cluster(tmp_path: Path) -> None:
    refused(fs3("down", "--data", str(tmp_path / "absent")), "absent")
    refused(fs3("status", "--data", str(tmp_path / "absent")), "absent")
    refused(fs3("umount", str(tmp_path)), str(tmp_path))
    assert not (tmp_path / "absent").exists()


def test_status_of_a_stopped_cluster(data: Path) -> None:
    refused(fs3("status", "--data", str(data)), "no management daemon answers")


def test_random_bytes_on_every_port(shared_cluster: Cluster) -> None:
    """After all of it the same processes serve, and their memory has not grown by what was announced to them."""
    status = shared_cluster.status()
    assert status is not None
    addresses = [node["address"] for node in status["nodes"]]
    assert len(addresses) == 5
    pids = shared_cluster.pids()
    before = {name: _resident_mib(pid) for name, pid in pids.items()}
    with ThreadPoolExecutor(len(addresses)) as threads:
        list(threads.map(_throw_all, addresses))
    probe = shared_cluster.mount / "after random bytes"
    probe.write_bytes(b"x" * 3_000_000)
    assert probe.read_bytes() == b"x" * 3_000_000
    probe.unlink()
    assert shared_cluster.pids() == pids and all(map(alive, pids.values()))
    wait_until(lambda: (shared_cluster.status() or {}).get("serving") is True, "all targets to serve", 10)
    for name, pid in pids.items():
        assert _resident_mib(pid) < before[name] + 200, f"{name} has grown from {before[name]:.0f} MiB"


def _garbage(rng: random.Random) -> Iterator[bytes]:
    """Noise; noise after a true magic; true headers over wrong bodies, and such that announce much and send nothing."""
    yield b""
    for size in (1, 7, 40, 1000, 100_000):
        yield rng.randbytes(size)
        yield frame.MAGIC + bytes([frame.VERSION]) + rng.randbytes(size)
    yield b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield b"\xff" * 4096
    yield b"\x00" * 4096
    header = frame.HEADER.pack(frame.MAGIC, frame.VERSION, frame.Kind.REQUEST, 1, 0, 1, 1000, 2**32 - 1, 2**32 - 1)
    yield header + frame.HEADER_CRC.pack(crc32c(header))
    for kind in (frame.Kind.REPLY, frame.Kind.ERROR):
        yield frame.encode_head(kind, PING.id, 0, 1, 1000, rng.randbytes(30), 0)
    yield frame.encode_head(frame.Kind.REQUEST, PING.id, 0, 1, 1000, b"\x90", frame.PAYLOAD_SIZE_MAX)
    for method in (*METHODS, 0, 65_535):
        yield frame.encode_head(frame.Kind.REQUEST, method, 0, 1, 1000, rng.randbytes(30), 0)
        yield frame.encode_head(frame.Kind.REQUEST, method, 65_535, 1, 0, b"\x90", 100) + rng.randbytes(100)


def _throw_all(address: str) -> None:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    for garbage in _garbage(random.Random(int(port))):
        _throw(host, int(port), garbage)


def _throw(host: str, port: int, garbage: bytes) -> None:
    """Sends it and waits until the daemon hangs up, or a moment."""
    with socket.create_connection((host, port), timeout=5) as peer:
        peer.settimeout(0.05)
        try:
            peer.sendall(garbage)
            end = time.monotonic() + 0.05
            while time.monotonic() < end and peer.recv(65_536):
                pass
        except (TimeoutError, ConnectionError):
            pass


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
