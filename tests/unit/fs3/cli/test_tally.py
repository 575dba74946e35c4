from __future__ import annotations

from pathlib import Path

import pytest

from fs3.cli import tally as module
from fs3.cli.profile import Callers
from fs3.cli.tally import REST, Event, Tally, read_log
from fs3.errors import ConfigError


def event(name: str = "fuse.read", took_ns: int = 1000, caller: str = "a", path: str = "/x", error: str = "") -> Event:
    return Event(1_700_000_000_000_000_000, name, took_ns, caller, error, 5, path, "off=0")


def test_sums_by_operation_caller_and_path() -> None:
    tally = Tally()
    for one in (event(), event(took_ns=3000, path="/y"), event("fuse.open", 10_000, "b", error="ENOENT")):
        tally.add(one)
    found = tally.as_json(1.0, 10)
    assert [(row["operation"], row["count"], row["errors"]) for row in found["by_operation"]] == [
        ("fuse.open", 1, 1),
        ("fuse.read", 2, 0),
    ]
    assert [row["caller"] for row in found["by_caller"]] == ["b", "a"]
    assert [(row["path"], row["total_ms"]) for row in found["by_path"]] == [("/x", 0.011), ("/y", 0.003)]
    assert found["by_operation"][1]["max_ms"] == 0.003 >= found["by_operation"][1]["p99_ms"]


def test_files_without_a_path_go_by_their_inode() -> None:
    tally = Tally()
    tally.add(event(path=""))
    assert tally.top("path", 1)[0][0] == "#5"


def test_what_took_least_is_put_together_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS_MAX", 10)
    tally = Tally()
    for number in range(100):
        tally.add(event(path=f"/{number}", took_ns=number + 1))
    tops = dict(tally.top("path", 1000))
    assert len(tops) <= 11 and "/99" in tops
    assert sum(one.count for one in tops.values()) == 100 and tops[REST].count >= 89
    assert sum(one.total_ns for one in tops.values()) == tally.total_ns == 5050


def test_a_log_gives_the_same_sums_again(tmp_path: Path) -> None:
    path = tmp_path / "ops.jsonl"
    with open(path, "w", encoding="utf-8") as log:
        first = Tally(log)
        first.add(event(took_ns=123_456))
        first.add(event("fuse.open", 7_000, "ls (pid 3, root)", "/a b\udcff".encode(errors="replace").decode(), "EIO"))
    again = Tally()
    for one in read_log(path):
        again.add(one)
    assert again.as_json(1.0, 10) == first.as_json(1.0, 10)
    path.write_text(path.read_text() + '{"at": "yesterday"}\n')
    with pytest.raises(ConfigError, match="line 3 is not one that"):
        list(read_log(path))
    with pytest.raises(ConfigError, match="No such file"):
        list(read_log(tmp_path / "none"))


def test_callers_are_told_by_the_command_that_runs() -> None:
    callers = Callers()
    assert callers.named("1:0").endswith("(pid 1, root)")
    assert callers.named("tcp://10.0.0.1:7000") == "tcp://10.0.0.1:7000"
    assert callers.named("999999999:4242") == "? (pid 999999999, 4242)"
    assert callers.named("") == "(kernel, or opened before)"
