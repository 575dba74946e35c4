"""The replay of a trace: what is a hit, what is evicted, what is verified."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fs3.cli.bench import replay
from fs3.cli.bench.command import bench
from fs3.cli.bench.replay import Content, FewFiles, ManyFiles, Part, Replay
from fs3.cli.bench.trace import BLOCK_BYTES, distinct, fitting, load
from fs3.doors import PlainDoor
from fs3.errors import Code, ConfigError, FS3Error

SIZE = 8192
GIB = 1024**3
PUBLIC = Path(__file__).resolve().parents[5] / "shared" / "traces" / "conversation_trace.jsonl"


def trace(path: Path, *requests: Sequence[int]) -> Path:
    path.write_text("".join([json.dumps({"timestamp": 0, "hash_ids": list(request)}) + "\n" for request in requests]))
    return path


def replayed(path: Path, capacity: int, *requests: Sequence[int], layout: str = "slots", threads: int = 1) -> list[Any]:
    door = PlainDoor(str(path))
    door.make(["blocks"])
    made: Any
    made = ManyFiles(door, SIZE, "blocks", cold=True) if layout == "files" else FewFiles(door, SIZE, "blocks", cold=True)
    found = Replay(made, [tuple(r) for r in requests], SIZE, capacity, threads=threads, seconds=None, lend=None)
    passes = [found.run(write=write, tell=lambda done: None) for write in (True, False)]
    made.close()
    return passes


@pytest.mark.parametrize("layout", ["slots", "files"])
def test_hits_are_read_and_misses_written(tmp_path: Path, layout: str) -> None:
    first, again = replayed(tmp_path, 5, [1, 2, 3], [1, 2, 4], [5], [1], layout=layout)
    assert (first.read.blocks, first.written.blocks, first.evicted, first.references) == (3, 5, 0, 8)
    assert first.read.bytes == 3 * SIZE and sum(first.read.times.buckets().values()) == 2
    assert (again.read.blocks, again.written.blocks, again.requests) == (8, 0, 4)


@pytest.mark.parametrize("layout", ["slots", "files"])
def test_what_was_not_used_longest_goes(tmp_path: Path, layout: str) -> None:
    first, again = replayed(tmp_path, 3, [1, 2, 3], [1], [4], [2], [1, 4], layout=layout)
    assert (first.read.blocks, first.written.blocks, first.evicted) == (3, 5, 2)  # 2 went for 4, and 3 for 2
    assert again.read.blocks == 7  # all but 3
    assert layout == "slots" or len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_several_threads_keep_the_bound(tmp_path: Path) -> None:
    requests = [[(turn * 7 + each) % 40 for each in range(8)] for turn in range(200)]
    first, again = replayed(tmp_path, 16, *requests, threads=4)
    assert first.requests == 200 and first.read.blocks + first.written.blocks <= 1600
    assert first.evicted == first.written.blocks - 16 and again.read.blocks


def test_a_wrong_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mixed(FewFiles):
        def read(self, parts: Sequence[Part]) -> list[int]:
            return super().read([(block, slot ^ 1, view) for block, slot, view in parts])

    monkeypatch.setitem(globals(), "FewFiles", Mixed)
    with pytest.raises(FS3Error, match="not what was written") as raised:
        replayed(tmp_path, 4, [1, 2], [1])
    assert raised.value.code is Code.CHECKSUM


def test_each_block_has_its_own_content() -> None:
    content = Content(1, SIZE)
    one, same = memoryview(bytearray(SIZE)), memoryview(bytearray(SIZE))
    content.fill(5, one)
    content.fill(5 + replay.PATTERNS, same)
    assert content.is_right(5, one) and content.is_right(5 + replay.PATTERNS, same)
    assert not content.is_right(5, same) and not content.is_right(6, one)
    one[4000] ^= 1
    assert not content.is_right(5, one)


def test_sizes_that_fit() -> None:
    requests = [tuple(range(100)), tuple(range(50, 150))]
    assert fitting(requests, None, None, 10 * GIB) == (BLOCK_BYTES, 150)
    assert fitting(requests, None, None, 100_000_000) == (532480, 150)
    assert fitting(requests, 4096, None, GIB) == (4096, 150)
    assert fitting(requests, None, 120 * BLOCK_BYTES + 5, GIB) == (BLOCK_BYTES, 120)
    assert fitting(requests, None, 100 * GIB, GIB) == (BLOCK_BYTES, 150)
    with pytest.raises(ConfigError, match="at least the 100 blocks"):
        fitting(requests, None, 10 * BLOCK_BYTES, GIB)
    with pytest.raises(ConfigError, match="do not fit"):
        fitting(requests, BLOCK_BYTES, None, GIB // 8)


def test_bad_traces_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    with pytest.raises(ConfigError, match="bad: No such file"):
        load(bad, None)
    for text, why in (("", "no requests"), ("\n{}\n", "line 2: expected"), ('{"hash_ids": [-1]}', "numbers from 0")):
        bad.write_text(text)
        with pytest.raises(ConfigError, match=why):
            load(bad, None)
    assert load(trace(bad, [1, 1, 2], [3]), 1) == [(1, 2)]


def test_the_public_trace() -> None:
    if not PUBLIC.exists():
        pytest.skip(f"no {PUBLIC.name} in ../shared/traces")
    requests = load(PUBLIC, None)
    assert len(requests) == 12_031 and distinct(requests) == 182_790
    assert sum([len(request) for request in requests]) == 288_500


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace(tmp_path / "trace", [1, 2, 3], [2, 3])
    line = [str(tmp_path), "kvcache", "--trace", str(path), "--kv-size", "16KiB", "--local", str(tmp_path)]
    bench.main([*line, "--way", "mount", "--way", "local", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["hit_rate"], found["block_bytes"], found["blocks_held"]) == (0.4, 16384, 3)
    assert [(row["way"], row["item"], row["blocks"]) for row in found["rows"]] == [
        (way, item, count)
        for way in ("mount", "local")
        for item, count in (("read hits", 2), ("write misses", 3), ("read again", 5))
    ]
    assert all(row["gb_s"] > 0 and row["p50_ms"] <= row["p99_ms"] for row in found["rows"])
    bench.main([*line, "--way", "local", "--layout", "files"], standalone_mode=False)
    assert "40.0% of references are hits" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace"]
    for words, why in ((["--way", "rings"], "only fs3 has rings"), (["big"], "kvcache` as the only")):
        with pytest.raises(ConfigError, match=why):
            bench.main([*line, *words], standalone_mode=False)
    with pytest.raises(ConfigError, match="--way: only with --trace"):
        bench.main([str(tmp_path), "kvcache", "--way", "local"], standalone_mode=False)


def test_a_failure_of_one_thread_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FewFiles):
        def write(self, parts: Sequence[Part]) -> list[int]:
            return [-errno.ENOSPC for _ in parts]

    monkeypatch.setitem(globals(), "FewFiles", Full)
    with pytest.raises(FS3Error, match="No space left"):
        replayed(tmp_path, 4, *[[1, 2]] * 20, threads=3)  # of whom all but one wait for its blocks
