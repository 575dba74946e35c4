"""A plugin of pytest for machines that are emulated: trio's seconds last FS3_TEST_PATIENCE times as long, and a failure is
shown at once, since the end may be far."""

from __future__ import annotations

import pytest
import trio.testing

from tests.process.harness import PATIENCE


@pytest.fixture(autouse=True)
def slow_clock(request: pytest.FixtureRequest) -> trio.testing.MockClock | None:
    if {"autojump_clock", "mock_clock"} & set(request.fixturenames):
        return None  # it has a clock of its own
    return trio.testing.MockClock(rate=1 / PATIENCE)


class _AtOnce:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._config.get_terminal_writer().line(f"\n{report.longreprtext}")


def pytest_configure(config: pytest.Config) -> None:
    # Transports are left to the garbage collector with their devices, which pyverbs then closes in any order.
    pyverbs = "Exception ignored in. 'pyverbs"  # a pattern, which colons would end
    config.addinivalue_line("filterwarnings", f"ignore:{pyverbs}:pytest.PytestUnraisableExceptionWarning")
    config.pluginmanager.register(_AtOnce(config))
