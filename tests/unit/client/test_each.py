from __future__ import annotations

import pytest
import trio
import trio.lowlevel

from fs3.client.each import each
from fs3.errors import Code, FS3Error


async def test_all_are_done_in_order_and_some_at_a_time() -> None:
    begun: list[int] = []
    running = most = 0

    async def work(number: int) -> None:
        nonlocal running, most
        begun.append(number)
        running += 1
        most = max(most, running)
        await trio.lowlevel.checkpoint()
        running -= 1

    await each(range(10), work, 3)
    assert sorted(begun) == list(range(10)) and most == 3
    begun.clear()
    await each((), work, 3)
    await each([5], work, 3)
    assert begun == [5]


async def test_the_first_error_ends_it() -> None:
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        await trio.lowlevel.checkpoint()
        raise FS3Error(Code.IO, str(number))

    with pytest.raises(FS3Error):
        await each(range(10), work, 2)
    assert len(begun) == 2
