"""A stopped process does nothing, misses nothing, and does not notice."""

from __future__ import annotations

import contextvars

import trio

from tests.sim.clock import SimClock, cheap_sleeps
from tests.sim.stop import Stopper

name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="-")


def test_stopped_tasks_wait_while_time_passes() -> None:
    clock, did = SimClock(), []

    async def process(its_name: str, told: trio.Event) -> None:
        name.set(its_name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick, its_name)
            await told.wait()
            did.append((trio.current_time(), its_name, "told"))
            with trio.move_on_after(0.5) as scope:
                await trio.sleep(10)
            assert scope.cancelled_caught
            did.append((trio.current_time(), its_name, "late"))

    async def tick(its_name: str) -> None:
        for _ in range(3):
            await trio.sleep(1)
            did.append((trio.current_time(), its_name, "tick"))

    async def main() -> None:
        stopper = Stopper(lambda task: task.context.get(name, "-"))
        told = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process, "a", told)
            nursery.start_soon(process, "b", told)
            await trio.sleep(0.25)
            stopper.stop("a")
            assert stopper.stopped("a")
            told.set()
            await trio.sleep(5)
            assert not [entry for entry in did if entry[1] == "a"]
            stopper.resume("a")
            stopper.resume("a")
            assert not stopper.stopped("a")

    with cheap_sleeps(clock):
        trio.run(main, clock=clock)
    assert [entry for entry in did if entry[1] == "b"] == [
        (0.25, "b", "told"),
        (0.75, "b", "late"),
        (1.0, "b", "tick"),
        (2.0, "b", "tick"),
        (3.0, "b", "tick"),
    ]
    late = sorted(entry for entry in did if entry[1] == "a")
    assert late == [
        (5.25, "a", "tick"),
        (5.25, "a", "told"),
        (5.75, "a", "late"),
        (6.25, "a", "tick"),
        (7.25, "a", "tick"),
    ]
