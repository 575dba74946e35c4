"""Leaving a process in the background."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fs3.cli.supervisor import process_alive

PROGRAM = """
import os, sys, time
from pathlib import Path
from fs3.cli.detach import detached

def child(done):
    print("coming up", flush=True)
    if sys.argv[2] == "fails":
        print("cannot", file=sys.stderr)
        return 3
    done()
    print(os.getpid(), os.getsid(0), flush=True)
    time.sleep(0.3)
    print("late", flush=True)
    return 0

sys.exit(detached(child, Path(sys.argv[1])))
"""


def run(log: Path, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, str(log), how], capture_output=True, text=True, timeout=10)


def test_it_returns_once_all_works_and_goes_on_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log" / "up.log"
    done = run(log, "works")
    assert (done.returncode, done.stdout, done.stderr) == (0, "coming up\n", "")
    while "late" not in log.read_text():
        pass
    pid, session = map(int, log.read_text().splitlines()[0].split())
    assert pid == session, "it has a session of its own"
    while process_alive(pid):
        pass


def test_a_failed_start_is_the_callers_exit_code(tmp_path: Path) -> None:
    done = run(tmp_path / "up.log", "fails")
    assert (done.returncode, done.stdout, done.stderr) == (3, "coming up\n", "cannot\n")
    assert not (tmp_path / "up.log").exists()
