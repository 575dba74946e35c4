"""The checker itself: histories that must pass, and histories that must fail."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from .linear import FILE, REGISTER, Model, Operation, check


def write(client: int, start: float, end: float, value: int) -> Operation:
    return Operation(client, "x", start, end, ("write", value))


def read(client: int, start: float, end: float, value: int | None) -> Operation:
    return Operation(client, "x", start, end, ("read", None), value)


GOOD = {
    "in turn": [write(1, 0, 1, 1), read(2, 2, 3, 1)],
    "a read during a write may see the old value": [write(1, 0, 1, 1), write(1, 2, 5, 2), read(2, 3, 4, 1)],
    "a read during a write may see the new value": [write(1, 0, 1, 1), write(1, 2, 5, 2), read(2, 3, 4, 2)],
    "concurrent writes in either order": [write(1, 0, 9, 1), write(2, 0, 9, 2), read(3, 10, 11, 1), read(3, 12, 13, 1)],
    "an unknown write that took effect late": [write(1, 0, math.inf, 7), read(2, 5, 6, None), read(2, 7, 8, 7)],
    "an unknown write that never did": [write(1, 0, math.inf, 7), read(2, 5, 6, None), read(2, 7, 8, None)],
}

BAD = {
    "a read of nothing after a write returned": [write(1, 0, 1, 1), read(2, 2, 3, None)],
    "a value that nobody wrote": [read(1, 0, 1, 9)],
    "the old value after the new one was seen": [
        write(1, 0, 1, 1),
        write(1, 2, 9, 2),
        read(2, 3, 4, 2),
        read(3, 5, 6, 1),
    ],
    "two readers that saw two writes in different order": [
        write(1, 0, 10, 1),
        write(2, 0, 10, 2),
        read(3, 11, 12, 1),
        read(4, 13, 14, 2),
    ],
    "an unknown write that took effect and went back": [
        write(1, 0, math.inf, 7),
        read(2, 1, 2, 7),
        read(2, 3, 4, None),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_linearizable_history_passes(name: str) -> None:
    assert check(GOOD[name], REGISTER).ok


@pytest.mark.parametrize("name", BAD)
def test_any_other_history_fails(name: str) -> None:
    verdict = check(BAD[name], REGISTER)
    assert not verdict.ok and not verdict.gave_up
    assert "no order explains" in verdict.explain()


def test_objects_are_judged_each_by_itself() -> None:
    history = [
        Operation(1, "a", 0, 1, ("write", 1)),
        Operation(1, "b", 0, 1, ("write", 2)),
        Operation(2, "a", 2, 3, ("read", None), 1),
        Operation(2, "b", 2, 3, ("read", None), 1),
    ]
    verdict = check(history, REGISTER)
    assert not verdict.ok and verdict.key == "b"


def test_file_model_knows_gaps_appends_and_truncation() -> None:
    def op(start: float, request: tuple[object, ...], output: object = None) -> Operation:
        return Operation(1, "f", start, start + 0.5, request, output)

    good = [
        op(0, ("write", 2, b"ab")),
        op(1, ("read", 0, 10), b"\0\0ab"),
        op(2, ("append", b"c"), 4),
        op(3, ("truncate", 3)),
        op(4, ("truncate", 5)),
        op(5, ("read", 0, 10), b"\0\0a\0\0"),
        op(6, ("length",), 5),
    ]
    assert check(good, FILE).ok
    assert not check([*good[:5], op(5, ("read", 0, 10), b"\0\0ab\0")], FILE).ok, "truncated bytes must not come back"


def _brute_force(history: list[Operation], model: Model) -> bool:
    """Try every order of every choice of the unknown operations: obviously right, hopelessly slow."""
    known = [o for o in history if o.known]
    unknown = [o for o in history if not o.known]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if any(later.returned < earlier.called for earlier, later in itertools.combinations(order, 2)):
                    continue
                state = model.initial("x")
                for operation in order:
                    state = model.step(state, operation.input, operation.output, operation.known)
                    if state is None:
                        break
                else:
                    return True
    return False


def test_agrees_with_trying_every_order() -> None:
    source = random.Random(3)
    verdicts = {True: 0, False: 0}
    for _ in range(300):
        history = []
        for client in range(source.randrange(2, 6)):
            start = source.randrange(6)
            end = math.inf if source.random() < 0.2 else start + source.randrange(1, 5)
            value = source.choice([None, 1, 2])
            history.append(
                read(client, start, end, value) if source.random() < 0.5 else write(client, start, end, value or 1)
            )
        expected = _brute_force(history, REGISTER)
        verdicts[expected] += 1
        assert check(history, REGISTER).ok is expected, history
    assert min(verdicts.values()) > 50, "the sample must hold both kinds"
