"""kill -9 of every daemon at once, in the middle of writes; then `fs3 up` finds all that was promised."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process.harness import PROGRAMS, SOAK, Cluster, wait_until, watchdog

pytestmark = pytest.mark.process

ROUNDS = 3 if SOAK else 2
LIMIT_S = 120.0
SETTLE_S = 25.0
"""In which the lengths of files that the killed mount had open are settled: less than its lease, since the mount that
replaces it says that it is gone."""


def writer(folder: Path, manifest: Path, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAMS / "crash_writer.py"), str(folder), str(manifest), "--seed", str(seed)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wrongs(folder: Path, manifest: Path) -> str:
    """What the check finds wrong; empty if all is well."""
    command = [sys.executable, str(PROGRAMS / "crash_writer.py"), str(folder), str(manifest), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert bool(done.stdout.strip()) == (done.returncode == 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_everything_promised_is_there_after_a_crash_of_all(victims: Cluster, tmp_path: Path, seed: int) -> None:
    folder, manifest = victims.mount / f"round{seed}", tmp_path / "manifest"
    folder.mkdir()
    # In later rounds the writer dies early and late in its life, by different seeds.
    enough = (200, 1500, 600)[seed]
    with watchdog(victims, LIMIT_S):
        with writer(folder, manifest, seed) as program:
            wait_until(lambda: _lines(manifest) > enough or program.poll() is not None, f"{enough} steps", LIMIT_S)
            assert program.poll() is None, program.communicate()[1]
            start = time.monotonic()
            victims.kill_all()
            program.wait(30)
        assert _lines(manifest) > enough
        victims.up()
        print(f"killed all and up again in {time.monotonic() - start:.1f} s")
        victims.wait_serving()
        end = time.monotonic() + SETTLE_S
        while (wrong := wrongs(folder, manifest)) and time.monotonic() < end:
            time.sleep(0.5)
        assert not wrong, wrong + victims.logs()
        print(f"all {_lines(manifest)} steps right {time.monotonic() - start:.1f} s after the kill")
        # It can be worked with.
        again = folder / "again"
        again.mkdir()
        with writer(again, tmp_path / "second", seed + 100) as program:
            wait_until(lambda: _lines(tmp_path / "second") > 100 or program.poll() is not None, "100 more steps", LIMIT_S)
            assert program.poll() is None, program.communicate()[1]
            program.kill()
        assert not wrongs(again, tmp_path / "second")


def test_the_check_finds_what_is_wrong(tmp_path: Path) -> None:
    """The check itself is checked, on the local disk."""
    folder, manifest = tmp_path / "files", tmp_path / "manifest"
    folder.mkdir()
    with writer(folder, manifest, 1) as program:
        wait_until(lambda: _lines(manifest) > 1000, "1000 steps", 60)
        program.kill()
    assert wrongs(folder, manifest) == ""
    target = folder / "slots0"
    whole = target.read_bytes()
    target.write_bytes(whole[:70_000] + b"torn" + whole[70_004:])
    assert "slots0 slot 1: torn" in wrongs(folder, manifest)
    target.write_bytes(whole[: len(whole) - 65_536])
    assert "slots0" in wrongs(folder, manifest)
    target.write_bytes(whole)
    text = manifest.read_text()
    manifest.write_text(text + "B 0 0 99999\nA 0 0 99999\n")
    assert "slots0 slot 0: generation" in wrongs(folder, manifest)
    manifest.write_text(text)
    (folder / "renamed3").unlink()
    assert "renamed3 slot 0: generation 0" in wrongs(folder, manifest)


def _lines(manifest: Path) -> int:
    try:
        return manifest.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
