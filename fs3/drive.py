"""Awaiting with a word about whether it took any waiting."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def drive(coroutine: Coroutine[Any, Any, T], blocked: Callable[[], None]) -> Generator[Any, Any, T]:
    """Await `coroutine`; call blocked() when it is about to wait for the first time. Returns what it returns."""
    try:
        trap = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    blocked()
    result = yield from resume(coroutine, trap)
    return result


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
