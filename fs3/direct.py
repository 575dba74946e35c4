"""Waiting for a descriptor on the spot, past trio's loop: for a process that mostly does one thing at a time.

A trip through the loop costs more than what most requests of a mount take: it arms the descriptor, lets the task go, asks
the kernel, finds the task again. A single poll() does as long as nothing else can be done meanwhile: no task can run, and
nothing has come that the loop waits for, which its own descriptor tells. Timers may be late by as long as such waits last in
a row.
"""

from __future__ import annotations

import select
from collections.abc import Sized
from typing import Any

TIMEOUT_MS = 4
"""A wait that takes longer than this is the loop's."""
IN_A_ROW_MAX = 16
"""So many waits on the spot, and the loop has its turn."""


class DirectWaits:
    """What the waits of one process have in common. runnable: the tasks that can run. loop: descriptor that is readable when
    the loop has something to do. requests: the one by which requests come; whoever waits for anything else lets them in."""

    __slots__ = ("in_a_row", "loop", "requests", "runnable", "timeout_ms")

    def __init__(self, runnable: Sized, loop: int, requests: int) -> None:
        self.runnable = runnable
        self.loop = loop
        self.requests = requests
        self.in_a_row = 0
        self.timeout_ms = TIMEOUT_MS

    @classmethod
    def here(cls, requests: int | None = None) -> DirectWaits | None:
        """For the loop that is running. None where this version of trio does not let us see what it has to do."""
        try:
            from trio._core._run import GLOBAL_RUN_CONTEXT

            runner: Any = GLOBAL_RUN_CONTEXT.runner
            loop = runner.io_manager._epoll.fileno()
            return cls(runner.runq, loop, loop if requests is None else requests)
        except (ImportError, AttributeError):
            return None

    def waiter(self, descriptor: int) -> DirectWaiter:
        return DirectWaiter(self, descriptor)


class DirectWaiter:
    """Waits for one descriptor, which stays open meanwhile."""

    __slots__ = ("_descriptor", "_poll", "_waits")

    def __init__(self, waits: DirectWaits, descriptor: int) -> None:
        self._waits = waits
        self._descriptor = descriptor
        self._poll = select.poll()
        for each in (waits.loop, waits.requests, descriptor):
            self._poll.register(each, select.POLLIN)

    def readable(self, timeout_ms: int | None = None) -> bool:
        """Wait until it is readable, for timeout_ms, or for as long as all do. False where the loop is to do that, or has
        other things to do."""
        waits = self._waits
        if waits.in_a_row < IN_A_ROW_MAX and not waits.runnable:
            for found, _ in self._poll.poll(waits.timeout_ms if timeout_ms is None else timeout_ms):
                if found == self._descriptor:
                    waits.in_a_row += 1
                    return True
        waits.in_a_row = 0
        return False
