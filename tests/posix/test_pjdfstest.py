"""What the runner of pjdfstest makes of the suite's output. The suite itself runs by `make pjdfstest`."""

from __future__ import annotations

from pathlib import Path

from tests.posix.pjdfstest import parsed, why_not


def test_counts_what_passed_failed_and_was_expected_to_fail() -> None:
    outcome = parsed("a.t", "1..4\nok 1\nnot ok 2 - tried 'x', expected 0, got EPERM\nok 3\nnot ok 4 # todo known\n")
    assert (outcome.planned, outcome.passed, outcome.todo) == (4, 2, 1)
    assert outcome.failures == ("a.t: not ok 2 - tried 'x', expected 0, got EPERM",)


def test_tests_that_tell_nothing_have_failed() -> None:
    assert parsed("a.t", "1..3\nok 1\n").failures == ("a.t: 2 of 3 tests told nothing",)
    assert len(parsed("a.t", "sh: not found\n").failures) == 1


def test_without_a_copy_it_says_how_to_get_one(tmp_path: Path) -> None:
    for nothing in (None, tmp_path):
        assert "github.com/pjd/pjdfstest" in (why_not(nothing) or "")
