"""SIGSTOP: a process whose tasks do not run, while the clock and the world go on.

What reaches it waits: messages in its sockets, data from its disk, timers that went off. When it is continued all its tasks
that could have run meanwhile run at once, with what they knew when they were stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import trio


class Stopper:
    """Which processes are stopped. owner: of a task, the process that it belongs to.

    While one is stopped, the scheduler's queue of tasks that can run is one that holds back those of stopped processes.
    """

    def __init__(self, owner: Callable[[trio.lowlevel.Task], str]) -> None:
        self._owner = owner
        self._held: dict[str, list[trio.lowlevel.Task]] = {}

    def stop(self, process: str) -> None:
        assert process not in self._held, f"{process} is stopped already"
        runner = _runner()
        ready = list(runner.runq)
        self._held[process] = []
        runner.runq = _Queue(self)
        for task in ready:
            runner.runq.append(task)

    def resume(self, process: str) -> None:
        """Let it run again; nothing happens where it is not stopped."""
        if process not in self._held:
            return
        held = self._held.pop(process)
        runner = _runner()
        if not self._held:
            runner.runq = deque(runner.runq)
        runner.runq.extend(held)

    def stopped(self, process: str) -> bool:
        return process in self._held

    def holds_back(self, task: trio.lowlevel.Task) -> bool:
        held = self._held.get(self._owner(task))
        if held is None:
            return False
        held.append(task)
        return True


class _Queue(deque[trio.lowlevel.Task]):
    def __init__(self, stopper: Stopper) -> None:
        super().__init__()
        self._stopper = stopper

    def append(self, task: trio.lowlevel.Task) -> None:
        if not self._stopper.holds_back(task):
            super().append(task)


def _runner() -> Any:
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner
