"""The same work for several things, some of them at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from ..errors import FS3Error

T = TypeVar("T")


async def each(things: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Run work(thing) for all, in their order, at most so many at once. Raises the first error, once no other runs."""
    todo = list(things)[::-1]
    if len(todo) == 1:
        await work(todo[0])
        return
    failed: list[FS3Error] = []

    async def worker() -> None:
        while todo and not failed:
            try:
                await work(todo.pop())
            except FS3Error as error:
                failed.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(min(at_once, len(todo))):
            nursery.start_soon(worker)
    if failed:
        raise failed[0]
