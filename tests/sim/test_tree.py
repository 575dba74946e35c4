"""The checker of namespaces: histories that some order explains, and histories that none does."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from fs3.api.meta import FileKind, RenameFlags
from tests.sim.linear import Operation
from tests.sim.tree import EMPTY, READS, apply, check_namespace

DIRECTORY, FILE = int(FileKind.DIRECTORY), int(FileKind.FILE)
NONE, NOREPLACE, EXCHANGE = (int(flag) for flag in (RenameFlags.NONE, RenameFlags.NOREPLACE, RenameFlags.EXCHANGE))


def op(start: float, end: float, request: tuple[Any, ...], output: Any = None) -> Operation:
    return Operation(1, "names", start, end, request, output)


def folder(mark: int, links: int = 0) -> tuple[int, ...]:
    return (mark, DIRECTORY, 0o755, links, 0, 0)


def file(mark: int, links: int = 1, mode: int = 0o644, length: int = 0) -> tuple[int, ...]:
    return (mark, FILE, mode, links, length, 0)


BEGUN = [
    op(0, 1, ("make", 0, b"a", DIRECTORY, 1, 0o755), folder(1)),
    op(0, 1, ("make", 0, b"b", DIRECTORY, 2, 0o755), folder(2)),
    op(2, 3, ("make", 1, b"x", FILE, 3, 0o644), file(3)),
]
RENAME = ("rename", 1, b"x", 2, b"y", NONE)

GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "a listing before and one after a rename, while it runs": [
        op(4, 9, RENAME, "ok"),
        op(5, 6, ("list", 2), ()),
        op(7, 8, ("list", 2), ((b"y", file(3)),)),
    ],
    "a rename that nobody knows the end of, seen late": [
        op(4, math.inf, RENAME),
        op(5, 6, ("lookup", 1, b"x"), file(3)),
        op(7, 8, ("lookup", 1, b"x"), "NOT_FOUND"),
    ],
    "two exclusive creations, one of which was refused": [
        op(4, 9, ("create", 1, b"n", 10, 0o600, True), file(10, mode=0o600)),
        op(4, 9, ("create", 1, b"n", 11, 0o600, True), "EXISTS"),
    ],
    "a creation that found what another had made": [
        op(4, 9, ("create", 1, b"n", 10, 0o600, False), file(10, mode=0o600)),
        op(4, 9, ("create", 1, b"n", 11, 0o600, False), file(10, mode=0o600)),
    ],
    "two names of one file": [
        op(4, 5, ("link", 3, 2, b"y"), file(3, 2)),
        op(6, 7, ("remove", 1, b"x", False), "ok"),
        op(8, 9, ("set", 3, "length", 100), "ok"),
        op(10, 11, ("lookup", 2, b"y"), file(3, 1, length=100)),
    ],
    "directories change places": [
        op(4, 5, ("rename", 0, b"a", 0, b"b", EXCHANGE), "ok"),
        op(6, 7, ("lookup", 0, b"b"), folder(1, 2)),
        op(6, 7, ("lookup", 1, b".."), (0, DIRECTORY, 0o755, 4, 0, 0)),
    ],
    "a time that was set, and one that the service set": [
        op(4, 5, ("set", 1, "mtime", 77), (1, DIRECTORY, 0o755, 0, 0, 77)),
        op(6, 7, ("stat", 1), (1, DIRECTORY, 0o755, 2, 0, 77)),
        op(8, 9, ("remove", 1, b"x", False), "ok"),
        op(10, 11, ("stat", 1), folder(1, 2)),
    ],
    "a removal that was never done": [
        op(4, math.inf, ("remove", 1, b"x", False)),
        op(5, 6, ("lookup", 1, b"x"), file(3)),
    ],
}

BAD: dict[str, list[Operation]] = {
    "a file that is seen under both names of its rename": [
        op(4, 9, RENAME, "ok"),
        op(5, 6, ("lookup", 2, b"y"), file(3)),
        op(7, 8, ("lookup", 1, b"x"), file(3)),
    ],
    "a file that is seen under neither": [
        op(4, 9, RENAME, "ok"),
        op(5, 6, ("lookup", 1, b"x"), "NOT_FOUND"),
        op(7, 8, ("lookup", 2, b"y"), "NOT_FOUND"),
    ],
    "a rename of unknown outcome that was half done": [
        op(4, math.inf, RENAME),
        op(5, 6, ("lookup", 1, b"x"), "NOT_FOUND"),
        op(7, 8, ("list", 2), ()),
    ],
    "one of two names exists after an exchange": [
        op(4, 5, ("rename", 0, b"a", 0, b"b", EXCHANGE), "ok"),
        op(6, 7, ("lookup", 0, b"a"), "NOT_FOUND"),
    ],
    "an exclusive creation done twice, whose second answer came back": [
        op(4, 5, ("create", 1, b"n", 10, 0o600, True), "EXISTS"),
    ],
    "two exclusive creations that both made the file": [
        op(4, 9, ("create", 1, b"n", 10, 0o600, True), file(10, mode=0o600)),
        op(4, 9, ("create", 1, b"n", 11, 0o600, True), file(11, mode=0o600)),
    ],
    "a rename that must not replace, and did": [
        op(4, 5, ("make", 2, b"y", FILE, 4, 0o644), file(4)),
        op(6, 7, ("rename", 1, b"x", 2, b"y", NOREPLACE), "ok"),
    ],
    "a directory removed with what was in it": [op(4, 5, ("remove", 0, b"a", True), "ok")],
    "a listing that is of two moments": [
        op(4, 5, ("make", 1, b"y", FILE, 4, 0o644), file(4)),
        op(6, 7, ("remove", 1, b"x", False), "ok"),
        op(8, 9, ("make", 1, b"z", FILE, 5, 0o644), file(5)),
        op(3.5, 10, ("list", 1), ((b"x", file(3)), (b"z", file(5)))),
    ],
    "a link count that forgets a name": [
        op(4, 5, ("link", 3, 2, b"y"), file(3, 2)),
        op(6, 7, ("stat", 3), file(3, 1)),
    ],
    "a mode that went back": [
        op(4, 5, ("set", 3, "mode", 0o600), file(3, mode=0o600)),
        op(6, 7, ("stat", 3), file(3)),
    ],
    "a file that is there after its last name was removed": [
        op(4, 5, ("remove", 1, b"x", False), "ok"),
        op(6, 7, ("stat", 3), file(3)),
    ],
    "a file that is gone while it has a name": [op(4, 5, ("stat", 3), "STALE_HANDLE")],
    "a directory moved into itself": [op(4, 5, ("rename", 0, b"a", 1, b"z", NONE), "ok")],
    "a loop tied by two renames": [
        op(4, 9, ("rename", 0, b"a", 2, b"z", NONE), "ok"),
        op(4, 9, ("rename", 0, b"b", 1, b"z", NONE), "ok"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_an_order_explains_passes(name: str) -> None:
    verdict = check_namespace(BEGUN + GOOD[name])
    assert verdict.ok, verdict.explain()


@pytest.mark.parametrize("name", BAD)
def test_what_none_explains_fails(name: str) -> None:
    verdict = check_namespace(BEGUN + BAD[name])
    assert not verdict.ok and not verdict.gave_up


def _random_history(chance: random.Random, count: int) -> list[Operation]:
    """Operations of three clients that overlap, each of which took effect at one instant."""
    state, history = EMPTY, []
    for number in range(count):
        mark = number + 1
        marks = [row[0] for row in state] + [mark]
        folders = [row[0] for row in state if row[1] == DIRECTORY]
        at, to, name, other = chance.choice(folders), chance.choice(folders), chance.choice(b"xyz"), chance.choice(b"xyz")
        request: tuple[Any, ...] = chance.choice(
            [
                ("make", at, bytes([name]), chance.choice((FILE, DIRECTORY)), mark, 0o644),
                ("make", at, bytes([name]), chance.choice((FILE, DIRECTORY)), mark, 0o644),
                ("remove", at, bytes([name]), chance.random() < 0.5),
                ("rename", at, bytes([name]), to, bytes([other]), chance.choice((NONE, NOREPLACE, EXCHANGE))),
                ("link", chance.choice(marks), to, bytes([other])),
                ("lookup", at, bytes([name])),
                ("list", at),
                ("stat", chance.choice(marks)),
            ]
        )
        state, output = apply(state, request)
        start, end = number - 3 * chance.random(), number + 3 * chance.random()
        unknown = chance.random() < 0.02
        history.append(op(start, math.inf if unknown else end, request, output))
    return history


def test_long_histories_are_decided() -> None:
    """Those of one order pass; with one answer changed they mostly fail, and are decided all the same."""
    chance = random.Random(1)
    found = 0
    for _ in range(20):
        history = [o for o in _random_history(chance, 150) if o.known or o.input[0] not in READS]
        verdict = check_namespace(history)
        assert verdict.ok, verdict.explain()
        at = next(n for n in range(75, 150) if history[n].known and history[n].input[0] in ("lookup", "list"))
        wrong = "NOT_FOUND" if history[at].output != "NOT_FOUND" else file(10_000)
        one = history[at]
        history[at] = Operation(one.client, one.key, one.called, one.returned, one.input, wrong)
        found += not check_namespace(history).ok
    assert found > 12
