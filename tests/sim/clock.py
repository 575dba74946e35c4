"""Virtual time: it stands still while any task can run, then jumps to what comes next, an event or a deadline."""

from __future__ import annotations

import gc
import heapq
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import trio

CALLS_MAX = 2_000_000
"""How often the clock is asked at one instant before that counts as a standstill; each turn of the scheduler asks it."""


class StandstillError(Exception):
    """Time does not go on."""


class SimClock(trio.abc.Clock):
    """The clock of one `trio.run`, and its queue of events by (time, number).

    Events are plain functions, and run where the scheduler asks how long it may sleep: what moves messages and wakes
    sleepers costs neither a task nor a turn of its own. failed: called once, with what an event raised, or because an
    instant never ends, or because nothing would ever happen any more; it has to end the run. None: the first are raised,
    and who waits for nothing waits.
    """

    def __init__(self, failed: Callable[[Exception], None] | None = None) -> None:
        self.now = 0.0
        self.failed = failed
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._calls = 0
        self._over = False
        self._waiting_for_idle: Sized = ()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a time; at the same time, in the order of these calls."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    # What trio asks

    def start_clock(self) -> None:
        self._waiting_for_idle = trio._core._run.GLOBAL_RUN_CONTEXT.runner.waiting_for_idle

    def current_time(self) -> float:
        self._calls += 1
        if self._calls > CALLS_MAX:
            self._fail(StandstillError("tasks run on and on while no time passes"))
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """No task can run before `deadline`, unless an event wakes one: go there."""
        if self._waiting_for_idle:
            return math.inf  # they come first, and need no time
        events = self._events
        if events and events[0][0] <= deadline:
            now = events[0][0]
            if now > self.now:
                self.now = now
                self._calls = 0
            else:
                now = self.now
            while events and events[0][0] <= now:
                try:
                    heapq.heappop(events)[2]()
                except Exception as error:
                    if not self._over:  # what follows from the first one tells nothing
                        self._fail(error)
        elif deadline == math.inf:
            if self.failed is None:
                return deadline
            self._fail(StandstillError("nothing will ever happen any more"))
        elif deadline > self.now:
            self.now = deadline
            self._calls = 0
        return 0

    def _fail(self, error: Exception) -> None:
        if self.failed is None or self._over:
            raise error
        self._over = True
        self._calls = 0
        self.failed(error)

    # A cheaper trio.sleep

    async def sleep(self, seconds: float) -> None:
        """As trio.sleep, which takes a cancel scope, a deadline and the raising of Cancelled for each."""
        if seconds <= 0 or seconds == math.inf:
            await _SLEEP(seconds)
            return
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

        def wake() -> None:
            if task is not None:
                trio.lowlevel.reschedule(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal task
            task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self.at(self.now + seconds, wake)
        await trio.lowlevel.wait_task_rescheduled(abort)


_SLEEP: Callable[[float], Awaitable[None]] = trio.sleep


_TURNS_PER_COLLECTION = 1024
"""Tasks that end leave cycles with their buffers: a run of some seconds leaves gigabytes."""


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """While this lasts: seeded scheduling, and garbage collection at turns of its own, not by the process's past.

    The system is asked seldom whether something has come in from outside: nothing does, but a signal.
    """
    runner: Any = trio._core._run
    manager = runner.TheIOManager
    before = runner._ALLOW_DETERMINISTIC_SCHEDULING, runner._r, manager.get_events
    turns = 0

    def get_events(self: Any, timeout: float) -> Any:
        nonlocal turns
        turns += 1
        if turns % 256 and not timeout:
            return ()
        if turns % _TURNS_PER_COLLECTION == 0:
            gc.collect(2 if turns % (32 * _TURNS_PER_COLLECTION) == 0 else 1)
        return before[2](self, timeout)

    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # all that there is already need not be looked at afterwards
    runner._ALLOW_DETERMINISTIC_SCHEDULING = True
    runner._r = _Shuffler(seed)
    manager.get_events = get_events
    try:
        yield
    finally:
        runner._ALLOW_DETERMINISTIC_SCHEDULING, runner._r, manager.get_events = before
        gc.unfreeze()
        gc.collect()
        if collecting:
            gc.enable()


class _Shuffler(random.Random):
    """Trio shuffles what can run at each turn; mostly that is one task."""

    def shuffle(self, x: Any) -> None:
        if len(x) > 1:
            super().shuffle(x)


@contextmanager
def cheap_sleeps(clock: SimClock) -> Iterator[None]:
    """While this lasts, trio.sleep is the clock's."""
    trio.sleep = clock.sleep
    try:
        yield
    finally:
        trio.sleep = _SLEEP  # type: ignore[assignment]
