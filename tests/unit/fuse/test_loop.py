from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from fuse.loop import IMMEDIATE_MAX, QuickLock, RequestLoopTrio


async def test_the_lock_excludes_and_passes_on() -> None:
    lock = QuickLock()
    order: list[int] = []

    async def use(number: int) -> None:
        async with lock:
            order.append(number)
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(use, number)
    assert order[::2] == order[1::2] and sorted(order[::2]) == [0, 1, 2, 3, 4]


async def test_a_waiter_that_is_cancelled_leaves_the_lock_to_others() -> None:
    lock = QuickLock()
    async with trio.open_nursery() as nursery, lock:

        async def wait() -> None:
            async with lock:
                raise AssertionError("it was cancelled")

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(1):
        async with lock:
            pass


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
        loop = RequestLoopTrio()
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
    loop = RequestLoopTrio()
    assert loop.open_nursery is trio.open_nursery
    assert loop.lowlevel.current_task is trio.lowlevel.current_task
    with pytest.raises(AttributeError):
        _ = loop.lowlevel.no_such_thing
