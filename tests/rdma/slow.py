"""A plugin of pytest: trio's seconds last FS3_TEST_PATIENCE times as long, for machines that are emulated."""

from __future__ import annotations

import pytest
import trio.testing

from tests.process.harness import PATIENCE


@pytest.fixture(autouse=True)
def slow_clock(request: pytest.FixtureRequest) -> trio.testing.MockClock | None:
    if {"autojump_clock", "mock_clock"} & set(request.fixturenames):
        return None  # it has a clock of its own
    return trio.testing.MockClock(rate=1 / PATIENCE)
