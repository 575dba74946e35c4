from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fs3.cli.bench import command
from fs3.cli.bench.command import bench
from fs3.cli.bench.crew import merged
from fs3.cli.bench.plan import MIB, NAMES, Options, room, steps
from fs3.cli.bench.worker import Job, Pattern, Wrong, run
from fs3.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[4]
TINY = ["--size", "64KiB", "--block-size", "16KiB", "--files", "5", "--small-size", "4KiB", "--kv-size", "32KiB"]
OPTIONS = Options(2, 64 * MIB, MIB, 100, 128 * 1024, 4 * MIB, 5.0, False)


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    bench.main([*words, *TINY, "--time", "0.05", "--threads", "2", "--cold", "advise", "--json"], standalone_mode=False)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_all_benchmarks_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, str(tmp_path), "--verify")
    assert [row["benchmark"] for row in found["rows"]] == [
        name for name in NAMES for step in steps(name, OPTIONS) if step.row
    ]
    rows = {row["item"]: row for row in found["rows"]}
    assert all(row["value"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in found["rows"])
    assert rows["sequential read"]["bytes"] == 2 * 65536 and rows["sequential read"]["cold"]
    assert rows["create"]["operations"] == rows["readdir and stat"]["operations"] == rows["unlink"]["operations"] == 10
    assert list(tmp_path.iterdir()) == []


def test_some_benchmarks_may_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, "checkpoint", str(tmp_path))
    assert {row["benchmark"] for row in found["rows"]} == {"checkpoint"} and found["cold"] == "advise"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpint"], "no such folder; benchmarks are big, small"),
        ([".", "elsewhere"], "expected one PATH and benchmarks"),
        ([".", "--size", "1000"], "--size: expected at least 4KiB"),
        ([".", "--size", "1000TiB"], "are needed: give a smaller --size"),
        ([".", "metadata", "--files", str(10**15)], "give fewer --files"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        bench.main(words, standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_caches_can_only_be_dropped_by_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "DROP_CACHES", tmp_path / "none")
    assert command._how("auto") == "advise" and command._how("off") == "off"
    with pytest.raises(ConfigError, match="may not write"):
        command._how("drop")


def test_interrupted_it_cleans_up_and_ends_its_workers(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "fs3.cli.main", "bench", str(tmp_path), "random", *TINY, "--time", "600"]
    line += ["--threads", "2", "--cold", "advise"]
    with subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 30
        while not list(tmp_path.glob("*/random/random-*")) and time.monotonic() < end:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
    assert process.returncode == 1 and "Aborted" in words, words
    assert list(tmp_path.iterdir()) == [] and len(children) == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def job(folder: Path, name: str, *, verify: bool = True, number: int = 0) -> Job:
    return Job(name, str(folder), number, 2, 0.0, 7, 100_000, 16_384, 3, 5_000, 0.05, verify)


def test_what_is_not_as_it_was_written_is_found(tmp_path: Path) -> None:
    run(job(tmp_path, "big_write"), lambda row: None)
    told = run(job(tmp_path, "big_read"), lambda row: None)
    assert (told["units"], told["bytes"]) == (7, 100_000)
    with open(tmp_path / "big-0", "r+b") as file:
        file.seek(50_000)
        byte = file.read(1)
        file.seek(50_000)
        file.write(bytes([byte[0] ^ 1]))
    run(job(tmp_path, "big_read", verify=False), lambda row: None)
    with pytest.raises(Wrong, match="at 49152 are not those"):
        run(job(tmp_path, "big_read"), lambda row: None)
    os.truncate(tmp_path / "big-0", 60_000)
    with pytest.raises(Wrong, match="ends at 60000"):
        run(job(tmp_path, "big_read", verify=False), lambda row: None)


def test_pieces_of_the_pattern_differ_by_file_and_offset() -> None:
    pattern = Pattern(1, 65536)
    pieces = {bytes(pattern.at(number, offset, 4096)) for number in range(5) for offset in range(0, 1 << 20, 65536)}
    assert len(pieces) == 5 * 16
    assert bytes(pattern.at(3, 8192, 65536))[4096:8192] == bytes(pattern.at(3, 12288, 4096))


def test_outcomes_are_from_the_first_beginning_to_the_last_end() -> None:
    one = {"began": 10.0, "ended": 12.0, "units": 3, "bytes": 30, "total_ns": 5, "buckets": {"40": 2, "41": 1}}
    two = {"began": 11.0, "ended": 14.0, "units": 1, "bytes": 10, "total_ns": 5, "buckets": {"41": 1}}
    found = merged([one, two])
    assert (found.seconds, found.units, found.bytes, found.buckets) == (4.0, 4, 40, {40: 2, 41: 2})


def test_room_counts_all_workers() -> None:
    assert room(["big"], OPTIONS) == (128 * MIB, 2)
    assert room(["small", "metadata"], OPTIONS) == (2 * 100 * 128 * 1024, 400)
    assert room(["kvcache"], OPTIONS)[1] == 32
