"""What fsck makes of what it found: which replica is right, exit codes, output."""

from __future__ import annotations

import io
import json

import pytest

from fs3.ids import ChunkId
from meta.examine import Holes, Report, Reported
from meta.examine_chunks import Content, Difference, decide
from meta.fsck import Fault
from meta.fsck_command import Bar, as_json, lines_of, main

A: Content = (3, 7, 100, 1)
B: Content = (3, 7, 100, 2)
OLD: Content = (3, 6, 100, 3)
RENEWED: Content = (4, 1, 50, 4)
"""Removed and written again: numbers start anew, chain versions do not."""


@pytest.mark.parametrize(
    ("copies", "right", "decided"),
    [
        ((A, OLD), A, True),
        ((OLD, OLD, A), A, True),
        ((A, RENEWED), RENEWED, True),
        ((A, None), A, True),
        ((A, A, B), A, True),
        ((A, B), None, False),
        ((A, B, OLD), None, False),
        ((A, B, None), None, False),
    ],
)
def test_which_replica_is_right(copies: tuple[Content | None, ...], right: Content | None, decided: bool) -> None:
    difference = Difference(ChunkId(1, 0), dict(enumerate(copies)))
    decide(difference)
    assert difference.decided == decided
    if decided:
        assert difference.right == right


def reported(state: str, path: str = "") -> Reported:
    return Reported(Fault.LOOP, 5, "directory 5 does not lie below the root", state, "what to do", path)


def test_exit_codes_are_those_of_fsck() -> None:
    assert Report().exit_code() == 0
    assert Report([reported("repaired")]).exit_code() == 1
    assert Report([reported("repaired"), reported("left")]).exit_code() == 4
    assert Report([reported("found")]).exit_code() == 4
    assert Report(unchecked=["chain 3"]).exit_code() == 8
    assert Report([reported("repaired")], unchecked=["chain 3"]).exit_code() == 9


def test_people_and_programs_are_told_the_same() -> None:
    report = Report(
        [reported("repaired", "/a/b"), reported("found")], [Holes(7, "", 4, 1)], 10, 20, 40, 1, ["chain 3: away"]
    )
    text = "\n".join(lines_of(report, 1.5))
    for part in (
        "/a/b",
        "repaired: what to do",
        "inode 7: 1 of 4 chunks",
        "chain 3: away",
        "1 repaired, 1 left",
        "1 kept changing",
    ):
        assert part in text
    found = json.loads(as_json(report, 1.5))
    assert [entry["fault"] for entry in found["findings"]] == ["loop", "loop"]
    assert (found["exit_code"], found["holes"][0]["absent"], found["seconds"]) == (12, 1, 1.5)
    assert "nothing is wrong" in lines_of(Report(), 0.1)[-1]


def test_the_bar_is_for_terminals() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        bar = Bar(stream)
        bar("reading", 1, 2)
        bar("reading", 0, 0)
        bar.end()
    assert pipe.getvalue() == "" and "###############..............." in terminal.getvalue()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "--mgmtd"),
        (("--mgmtd", "host"), "expected addresses such as"),
        (("--mgmtd", "tcp://h:1", "--memory", "much"), "expected a size such as"),
    ],
)
def test_bad_usage_is_refused(words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and why in capsys.readouterr().err
