"""kill -9 of a mount's daemon in the worst moment: while one of its threads is in the kernel and waits for the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fs3.cli.mounts import mount_at, unmount
from fuse import guard
from tests.process.harness import PROGRAMS, REPOSITORY, Cluster, alive, wait_until, watchdog

pytestmark = pytest.mark.process

GONE_S = 10.0
OPEN_AND_WAIT = "import sys, time; file = open(sys.argv[1]); print(file.read(), flush=True); time.sleep(600)"


@pytest.fixture
def mountpoint(fuse: None) -> Iterator[Path]:
    """A folder to mount on."""
    folder = Path(tempfile.mkdtemp(prefix="fs3-stuck-"))
    yield folder
    end_mount(folder)


def end_mount(folder: Path) -> None:
    """Take away what is mounted there, even if its daemon hangs."""
    while mount_at(folder) is not None:
        guard.abort(str(folder), guard.device_of(str(folder)))
        if mount_at(folder) is not None:
            unmount(folder, lazy=True)


def gone(pid: int) -> bool:
    """Whether all threads of a process have ended."""
    return not os.path.exists(f"/proc/{pid}/task") or os.listdir(f"/proc/{pid}/task") == [str(pid)]


def test_the_guard_ends_a_mount_whose_daemon_waits_for_itself(mountpoint: Path) -> None:
    line = [sys.executable, str(PROGRAMS / "stuck_mount.py"), str(mountpoint), "--guard"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}) as process:
        assert process.stdout is not None
        word, reader = process.stdout.readline().split()
        assert word == b"stuck"
        process.kill()
        try:
            wait_until(lambda: gone(process.pid), "the killed daemon's threads to end", GONE_S)
            wait_until(lambda: not alive(int(reader)), "the reader to get an error", GONE_S)
        finally:
            end_mount(mountpoint)  # or nobody could wait for the process


def test_a_mount_killed_while_it_stops(victims: Cluster) -> None:
    """Its stop waits for meta, which hangs; then it is killed, while a program has a file open."""
    made = victims
    with watchdog(made, 90):
        path = made.mount / "words"
        path.write_text("words")
        line = [sys.executable, "-c", OPEN_AND_WAIT, str(path)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as program:
            try:
                assert program.stdout is not None
                assert program.stdout.readline() == "words\n"
                pids = made.pids()
                os.kill(pids["meta"], signal.SIGSTOP)
                try:
                    os.kill(pids["mount"], signal.SIGTERM)
                    wait_until(lambda: len(children(pids["mount"])) > 1, "its stop to ask itself by a child", 20)
                    time.sleep(0.5)
                    os.kill(pids["mount"], signal.SIGKILL)
                    wait_until(lambda: gone(pids["mount"]), "the killed mount's threads to end", GONE_S)
                finally:
                    os.kill(pids["meta"], signal.SIGCONT)
            except BaseException:
                made.force_away()  # or nobody could wait for the program
                raise
            finally:
                program.kill()
        wait_until(lambda: works(made, path), "the mount to be back", 30)


def children(pid: int) -> list[str]:
    found = ""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += path.read_text()
    return found.split()


def works(made: Cluster, path: Path) -> bool:
    """Asked by a process that can be given up."""
    line = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(path)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.stdout == "words\n"
