"""What must hold at the end: histories that do pass, and those that do not fail."""

from __future__ import annotations

import math

import pytest

from tests.sim.cells import CELLS
from tests.sim.checkers import check_linearizable, check_origins
from tests.sim.failure import SimulationError
from tests.sim.history import History
from tests.sim.linear import Operation

WRITE = Operation(1, "a", 1.0, 2.0, ("write", 0, 2, 7), 2)
LOST = Operation(1, "a", 3.0, math.inf, ("write", 1, 2, 8))


def read(called: float, returned: float, *cells: int, key: str = "a") -> Operation:
    return Operation(2, key, called, returned, ("read", 0, 2), cells)


def test_reads_of_what_was_written_or_begun_pass() -> None:
    check_origins([WRITE, LOST, read(0.5, 1.5, 7, 7), read(4, 5, 7, 7), read(5, 6, 7, 8), read(6, 7), read(6, 7, 0, 8)])


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(read(4, 5, 7, 9), id="nobody ever wrote it"),
        pytest.param(read(0.1, 0.9, 7, 7), id="before the write began"),
        pytest.param(read(2, 2.5, 7, 8), id="before the lost write began"),
        pytest.param(read(4, 5, 7, 7, key="b"), id="written to another object"),
    ],
)
def test_reads_out_of_nowhere_fail(wrong: Operation) -> None:
    with pytest.raises(SimulationError, match="nobody had begun the write"):
        check_origins([WRITE, LOST, wrong])


def test_the_check_of_a_history_begins_with_origins() -> None:
    history = History([WRITE, read(4, 5, 7, 9)])
    with pytest.raises(SimulationError, match="nobody had begun the write 9"):
        check_linearizable(history, CELLS)
