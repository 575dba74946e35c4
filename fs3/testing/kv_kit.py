"""What the checks of key-value engines share: the store under test, and helpers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..env import Env
from ..errors import Code, FS3Error
from ..kv.base import KEY_SIZE_MAX, KVEngine, Txn

Pairs = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Store:
    """An engine under test."""

    engine: KVEngine
    env: Env
    pass_time: Callable[[float], Awaitable[None]]
    """Let so many seconds pass on the engine's clock."""
    key_size_max: int = KEY_SIZE_MAX
    """Less than KEY_SIZE_MAX where the engine puts something before its keys."""


Check = Callable[[Store], Awaitable[None]]


@contextmanager
def raises(code: Code) -> Iterator[None]:
    """Demand this error of the block."""
    try:
        yield
    except FS3Error as error:
        assert error.code is code, f"expected {code.name}, got {error}"
    else:
        raise AssertionError(f"expected {code.name}, but nothing was raised")


@contextmanager
def refuses() -> Iterator[None]:
    """Demand of the block that it is refused as a bug of the caller."""
    try:
        yield
    except AssertionError:
        return
    raise AssertionError("a misuse was let pass")


async def write(store: Store, *pairs: tuple[bytes, bytes | None]) -> None:
    """Commit values, None clears."""
    txn = store.engine.transaction()
    for key, value in pairs:
        if value is None:
            txn.clear(key)
        else:
            txn.set(key, value)
    await txn.commit()


async def read(store: Store, key: bytes) -> bytes | None:
    return await store.engine.transaction().get(key)


async def read_all(store: Store) -> Pairs:
    return await store.engine.transaction().get_range(b"", b"\xff")


async def commits(txn: Txn) -> bool:
    """Commit; False where it conflicts."""
    try:
        await txn.commit()
    except FS3Error as error:
        assert error.code is Code.CONFLICT, error
        return False
    return True


def pairs_of(count: int) -> Pairs:
    return [(b"k%05d" % number, b"value %d " % number + b"x" * 100) for number in range(count)]
