"""The rules about versions and heads: what keeps them passes, and each is broken by a history of its own."""

from __future__ import annotations

import math

import pytest

from fs3.ids import ChunkId
from tests.sim.witness import Answer, BrokenRuleError, Rules

CHUNK, OTHER = ChunkId(7, 0), ChunkId(7, 1)


def answers(*told: tuple[float, float, int] | tuple[float, float, int, bool]) -> Rules:
    """Rules that saw these (called, returned, version, whether it removed) of one chunk."""
    rules = Rules()
    rules.answers[1, CHUNK] = [
        Answer(a[0], a[1], a[2], len(a) > 3 and bool(a[3]), f"request {n}") for n, a in enumerate(told)
    ]
    return rules


def test_one_head_for_each_version_of_a_chain() -> None:
    rules = Rules()
    rules.numbered(1, 1, "disk1/t1")
    rules.numbered(1, 1, "disk1/t1")
    rules.numbered(2, 1, "disk2/t2")
    rules.numbered(1, 2, "disk2/t1")
    with pytest.raises(BrokenRuleError, match="chain 1 version 2: both disk2/t1 and disk1/t1"):
        rules.numbered(1, 2, "disk1/t1")


def test_committed_versions_grow_by_chain_version_first() -> None:
    rules = Rules()
    for order in ((1, 1), (1, 2), (1, 2), (2, 1), (3, 1)):
        rules.holds("disk1/t1", CHUNK, order)
    rules.holds("disk1/t1", OTHER, (1, 1))
    rules.holds("disk2/t1", CHUNK, (1, 1))
    with pytest.raises(BrokenRuleError, match=r"goes back from \(3, 1\) to \(2, 9\)"):
        rules.holds("disk1/t1", CHUNK, (2, 9))


def test_a_removal_begins_anew() -> None:
    rules = Rules()
    rules.holds("disk1/t1", CHUNK, (1, 8))
    rules.holds("disk1/t1", CHUNK, None)
    rules.holds("disk1/t1", CHUNK, (1, 1))


def test_crashes_lose_nothing_that_was_committed() -> None:
    rules = Rules()
    rules.holds("disk1/t1", CHUNK, (1, 8))
    rules.opened("disk1/t1", {CHUNK: (1, 9)})  # one more was on its way
    with pytest.raises(BrokenRuleError, match=r"had committed \(1, 9\).* has \(1, 8\)"):
        rules.opened("disk1/t1", {CHUNK: (1, 8)})
    with pytest.raises(BrokenRuleError, match="has None"):
        rules.opened("disk1/t1", {})


def test_loss_of_power_may_lose_versions() -> None:
    rules = Rules()
    rules.holds("disk1/t1", CHUNK, (1, 8))
    rules.holds("disk11/t1", CHUNK, (1, 8))
    rules.forget("disk1")
    rules.opened("disk1/t1", {})
    with pytest.raises(BrokenRuleError):
        rules.opened("disk11/t1", {})


def test_answers_in_order_pass() -> None:
    answers((0, 1, 1), (2, 3, 2), (2.5, 4, 1), (5, 6, 2), (7, math.inf, 0), (8, 9, 3)).check_answers()
    answers((0, 5, 9), (1, 2, 3), (4, 6, 3)).check_answers()  # the first may have been done last


def test_answers_that_go_back_fail() -> None:
    with pytest.raises(BrokenRuleError, match=r"request 2 tells version 1 at 6.*request 1 told 2 at 3"):
        answers((0, 1, 1), (2, 3, 2), (4, 6, 1)).check_answers()
    with pytest.raises(BrokenRuleError):
        answers((0, 1, 5), (2, 3, 0)).check_answers()


def test_answers_may_go_back_over_the_removal_of_a_file() -> None:
    rules = answers((0, 1, 5), (4, 5, 1))
    rules.removals[2, CHUNK.inode] = rules.removals[1, CHUNK.inode + 1] = [Answer(2, 3, 0, True, "removal")]
    with pytest.raises(BrokenRuleError):
        rules.check_answers()
    rules.removals[1, CHUNK.inode] = [Answer(2, 3, 0, True, "removal")]
    rules.check_answers()


def test_answers_may_go_back_over_a_removal() -> None:
    answers((0, 1, 5), (2, 3, 6, True), (4, 5, 1)).check_answers()
    answers((0, 1, 5), (2, math.inf, 0, True), (4, 5, 1)).check_answers()
    with pytest.raises(BrokenRuleError):
        answers((0, 1, 5, True), (2, 3, 6), (4, 5, 1)).check_answers()
    with pytest.raises(BrokenRuleError):
        answers((0, 1, 5), (2, 3, 4), (4, 5, 6, True)).check_answers()
