from __future__ import annotations

import os
from contextlib import suppress

import pytest
import trio
import trio.testing

from fuse.loop import IMMEDIATE_MAX, RequestLoopTrio, Turn


async def test_one_at_a_time_has_the_turn_and_a_waiting_one_follows() -> None:
    turn = Turn()
    order: list[int] = []

    async def use(number: int) -> None:
        async with turn:
            order.append(number)
            await trio.lowlevel.checkpoint()
            order.append(number)
        turn.blocked()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(use, number)
    assert order[::2] == order[1::2] and sorted(order[::2]) == [0, 1, 2, 3, 4]


async def test_who_does_not_wait_keeps_the_turn() -> None:
    turn = Turn()
    taken = []

    async def other() -> None:
        async with turn:
            taken.append(True)

    async with trio.open_nursery() as nursery:
        async with turn:
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            async with turn:
                await trio.testing.wait_all_tasks_blocked()
        assert not taken
        turn.blocked()
        turn.blocked()  # it has not got it any more
        await trio.testing.wait_all_tasks_blocked()
        assert taken


async def test_the_turn_passes_on_where_its_task_ends_or_fails() -> None:
    turn = Turn()
    trio.lowlevel.add_instrument(turn)
    try:
        for fails in (False, True):

            async def end(fails: bool = fails) -> None:
                with suppress(ValueError):
                    async with turn:
                        await trio.testing.wait_all_tasks_blocked()
                        if fails:
                            raise ValueError

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(end)
    finally:
        trio.lowlevel.remove_instrument(turn)


async def test_a_waiter_that_is_cancelled_leaves_the_turn_to_others() -> None:
    turn = Turn()
    async with trio.open_nursery() as nursery, turn:

        async def wait() -> None:
            async with turn:
                raise AssertionError("it was cancelled")

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    turn.blocked()

    async def take() -> None:
        async with turn:
            pass

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)


async def test_waiting_for_a_readable_descriptor_yields_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = os.pipe()
    waits = 0
    wait_readable = trio.lowlevel.wait_readable

    async def counted(descriptor: int) -> None:
        nonlocal waits
        waits += 1
        await wait_readable(descriptor)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
    try:
        loop = RequestLoopTrio(Turn())
        os.write(here, b"x")
        for _ in range(IMMEDIATE_MAX):
            await loop.lowlevel.wait_readable(there)
        assert waits == 0
        await loop.lowlevel.wait_readable(there)
        assert waits == 1
        os.read(there, 1)
        with trio.move_on_after(0.01) as scope:
            await loop.lowlevel.wait_readable(there)
        assert scope.cancelled_caught and waits == 2
    finally:
        os.close(there)
        os.close(here)


def test_all_else_is_trios() -> None:
    turn = Turn()
    loop = RequestLoopTrio(turn)
    assert loop.Lock() is turn
    assert loop.open_nursery is trio.open_nursery
    assert loop.lowlevel.current_task is trio.lowlevel.current_task
    with pytest.raises(AttributeError):
        _ = loop.lowlevel.no_such_thing
