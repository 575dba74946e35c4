"""`fs3 up` and its companions on real processes: what is stopped is gone, what was written is found again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.harness import REPOSITORY, Cluster, alive, fs3, wait_until

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("fuse")]


@pytest.fixture
def small() -> Iterator[Cluster]:
    """One storage daemon, one replica; not started."""
    home = Path(tempfile.mkdtemp(prefix="fs3-test-"))
    made = Cluster(home, storages=1, replicas=1)
    try:
        yield made
    finally:
        made.force_away()
        shutil.rmtree(home, ignore_errors=True)


def test_ctrl_c_stops_everything_and_the_next_up_finds_the_data(small: Cluster) -> None:
    command = [sys.executable, "-m", "fs3.cli.main", "up", "--data", str(small.data), "--mount", str(small.mount)]
    with subprocess.Popen(
        [*command, "--storages", "1", "--replicas", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C stops it all" in line:
                break
        pids = small.pids()
        assert set(pids) == {"mgmtd", "meta", "storage-1", "mount", "up"}, said + process.stderr.read()
        for name, pid in pids.items():
            assert name == "up" or str(pid) in said
        assert "Try next:" in said and str(small.data / "log" / "meta.log") in said and "\x1b" not in said
        (small.mount / "kept").write_text("kept")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the whole group
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
    assert not os.path.ismount(small.mount)
    assert not small.pids() and not any(map(alive, pids.values()))
    assert not small.bad_lines()
    small.up()
    assert (small.mount / "kept").read_text() == "kept"
    small.down()
    assert small.bad_lines() == []


def test_daemons_do_not_outlive_their_supervisor(small: Cluster) -> None:
    small.up()
    (small.mount / "kept").write_text("kept")
    pids = small.pids()
    os.kill(pids["up"], signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids.values())), "the daemons to stop by themselves", 30)
    assert not os.path.ismount(small.mount)
    small.up()
    assert (small.mount / "kept").read_text() == "kept"
    small.down()


def test_down_clears_what_a_killed_supervisor_left(small: Cluster) -> None:
    small.up()
    small.kill_all()
    small.down()
    assert not small.pids() and not os.path.ismount(small.mount)
    again = fs3("down", "--data", str(small.data))
    assert again.returncode == 0 and "nothing runs" in again.stdout


def test_a_killed_mount_comes_back_with_its_files(small: Cluster) -> None:
    small.up()
    (small.mount / "kept").write_text("kept")
    with open(small.mount / "open", "wb", buffering=0) as writer:
        writer.write(b"o" * 100_000)
        small.wait_restarted("mount", small.kill("mount"))

        def readable(name: str, content: bytes) -> bool:
            try:
                return (small.mount / name).read_bytes() == content
            except OSError:
                return False

        wait_until(lambda: readable("kept", b"kept"), "the file on the new mount", 20)
        # Long before the lease of the killed mount runs out, since the new one says that it is gone.
        wait_until(lambda: readable("open", b"o" * 100_000), "what was written to a file that was not closed", 12)
        with contextlib.suppress(OSError):
            writer.close()  # the old mount's file is dead
    assert "mount" in (small.data / "log" / "up.log").read_text()
    small.down()


def test_a_second_mount_of_a_running_cluster(small: Cluster) -> None:
    small.up()
    other = small.home / "other"
    (small.mount / "shared").write_bytes(b"x" * 100_000)
    done = fs3("mount", str(other), "--data", str(small.data), "--log", str(small.home / "other.log"))
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        assert (other / "shared").read_bytes() == b"x" * 100_000
        (other / "back").write_text("from the other mount")
        assert (small.mount / "back").read_text() == "from the other mount"
        status = small.status()
        assert {str(small.mount), str(other)} <= {mount["path"] for mount in status["mounts"]}
        assert sum(client["alive"] for client in status["clients"]) == 2
        twice = fs3("mount", str(other), "--data", str(small.data))
        assert twice.returncode == 2 and "in use" in twice.stderr
    finally:
        done = fs3("umount", str(other))
    assert done.returncode == 0, done.stderr
    assert not os.path.ismount(other)
    small.down()


def test_a_busy_mount_is_not_taken_away_unless_asked(small: Cluster) -> None:
    small.up()
    with open(small.mount / "open", "w") as file:
        file.write("x")
        file.flush()
        refused = fs3("umount", str(small.mount))
        assert refused.returncode == 1 and "busy" in refused.stderr.lower()
        assert os.path.ismount(small.mount)
    small.down()


def test_a_mount_that_was_unmounted_stays_away(small: Cluster) -> None:
    small.up()
    done = fs3("umount", str(small.mount))
    assert done.returncode == 0, done.stderr
    log = small.data / "log" / "up.log"
    wait_until(lambda: "as somebody wished" in log.read_text(), "the supervisor to say so", 20)
    assert not os.path.ismount(small.mount)
    again = fs3("mount", str(small.mount), "--data", str(small.data), "--log", str(small.home / "mount.log"))
    assert again.returncode == 0, again.stderr
    (small.mount / "file").write_text("x")
    small.down()
    assert not os.path.ismount(small.mount)


def test_status_in_words_and_its_exit_code(small: Cluster) -> None:
    small.up()
    shown = fs3("status", "--data", str(small.data))
    assert shown.returncode == 0, shown.stdout
    assert "all targets serve" in shown.stdout and f"mounted here at {small.mount}" in shown.stdout
    os.kill(small.pids()["storage-1"], signal.SIGSTOP)
    try:
        wait_until(lambda: fs3("status", "--data", str(small.data)).returncode == 1, "the lease to run out", 30)
    finally:
        os.kill(small.pids()["storage-1"], signal.SIGCONT)
    small.wait_serving()
    small.down()
