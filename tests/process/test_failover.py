"""kill -9 of one daemon after the other, while a program writes and reads: it must notice nothing but a delay."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.harness import PROGRAMS, SOAK, Cluster, watchdog

pytestmark = pytest.mark.process

MIB_OF_THE_STORAGE_TEST = 1024
MIB = 256
SLOWEST_CALL_S = 30.0
"""Detection (a lease of 3 s), promotion and retries; far below a client's deadline."""
LIMIT_S = 240.0


@contextmanager
def busy(made: Cluster, tmp_path: Path, mib: int) -> Iterator[None]:
    """While a program writes and reads at least so much on the mount; at the end it must report success."""
    folder = made.mount / tmp_path.name
    folder.mkdir()
    stop = tmp_path / "stop"
    command = [sys.executable, str(PROGRAMS / "write_and_read.py"), str(folder), "--mib", str(mib), "--stop", str(stop)]
    start = time.monotonic()
    with (
        watchdog(made, LIMIT_S),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program,
    ):
        try:
            time.sleep(1)
            yield
            assert program.poll() is None, "the program ended before all daemons were killed"
        finally:
            stop.touch()
            out, err = program.communicate(timeout=LIMIT_S)
        assert program.returncode == 0, f"the program met an error:\n{err}\n{made.logs()}"
    done = json.loads(out.splitlines()[-1])
    print(f"{done} in {time.monotonic() - start:.1f} s")
    assert done["written_mib"] >= mib and done["read_mib"] >= mib
    assert done["slowest_call_s"] < SLOWEST_CALL_S
    for path in folder.iterdir():
        path.unlink()


def kill_and_wait(made: Cluster, name: str) -> None:
    """One daemon dies, comes back, and everything serves again."""
    start = time.monotonic()
    old = made.kill(name)
    made.wait_restarted(name, old)
    made.wait_serving()
    print(f"{name}: killed, back and all serving after {time.monotonic() - start:.1f} s")


def test_each_storage_daemon_in_turn(victims: Cluster, tmp_path: Path) -> None:
    with busy(victims, tmp_path, MIB_OF_THE_STORAGE_TEST):
        for name in ("storage-1", "storage-2", "storage-3"):
            kill_and_wait(victims, name)
            time.sleep(1)
    victims.wait_serving()


@pytest.mark.parametrize("name", ["meta", "mgmtd"])
def test_meta_and_mgmtd(victims: Cluster, tmp_path: Path, name: str) -> None:
    with busy(victims, tmp_path, MIB):
        for _ in range(2 if SOAK else 1):
            kill_and_wait(victims, name)
            time.sleep(1)
    victims.wait_serving()
