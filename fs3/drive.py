"""Going on with a coroutine that was begun by hand, to see whether it has to wait."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def resume(coroutine: Coroutine[Any, Any, T], trap: Any) -> Generator[Any, Any, T]:
    """Await a coroutine that was begun by send(None), and gave `trap` to wait for. Returns what it returns."""
    try:
        while True:
            try:
                answer = yield trap
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                trap = coroutine.throw(error)
            else:
                trap = coroutine.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result
