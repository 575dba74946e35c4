"""transact: what it tries again, how long, and how it waits in between. The rest is in the engines' kit."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import trio

from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn
from fs3.kv.memory import Fault, MemoryEngine, Operation
from fs3.kv.transact import TIMEOUT_MS, transact
from fs3.transport.memory import MemoryTransport


def make(faults: Iterable[Fault | None]) -> tuple[MemoryEngine, Env]:
    """An engine whose commits meet these faults in turn, then none."""
    left = iter(faults)

    async def hook(operation: Operation) -> Fault | None:
        return next(left, None) if operation is Operation.COMMIT else None

    return MemoryEngine(hook=hook), Env(transport=MemoryTransport(), random=random.Random(1))


async def count(txn: Txn) -> int:
    n = int(await txn.get(b"n") or b"0") + 1
    txn.set(b"n", b"%d" % n)
    return n


async def test_conflicts_and_outages_are_tried_again(autojump_clock: object) -> None:
    engine, env = make([Fault.CONFLICT, Fault.UNAVAILABLE, Fault.CONFLICT])
    assert await transact(engine, count, env=env) == 1


async def test_a_transaction_too_old_is_tried_again(autojump_clock: object) -> None:
    engine, env = make([])
    runs = 0

    async def slow_at_first(txn: Txn) -> int:
        nonlocal runs
        runs += 1
        n = await count(txn)
        await trio.sleep(6 if runs == 1 else 0)
        return n

    assert await transact(engine, slow_at_first, env=env) == 1
    assert runs == 2


async def test_an_idempotent_body_is_tried_again_after_an_unknown_result(autojump_clock: object) -> None:
    engine, env = make([Fault.UNKNOWN_APPLIED])
    assert await transact(engine, count, env=env, idempotent=True) == 2  # this one was not, as it said


async def test_time_bounds_it_by_default(autojump_clock: object) -> None:
    engine, env = make(iter(lambda: Fault.UNAVAILABLE, None))
    start = trio.current_time()
    with pytest.raises(FS3Error, match="KV_UNAVAILABLE"):
        await transact(engine, count, env=env)
    assert TIMEOUT_MS / 1000 - 0.5 <= trio.current_time() - start <= TIMEOUT_MS / 1000


async def test_the_pauses_grow_and_have_jitter(autojump_clock: object) -> None:
    async def elapsed(seed: int, attempts_max: int) -> float:
        engine, env = make(iter(lambda: Fault.CONFLICT, None))
        env.random.seed(seed)
        start = trio.current_time()
        with pytest.raises(FS3Error, match="CONFLICT"):
            await transact(engine, count, env=env, attempts_max=attempts_max)
        return trio.current_time() - start

    one, four = [await elapsed(1, attempts) for attempts in (2, 5)]
    assert 0 < one <= 0.001 < four <= 0.001 + 0.002 + 0.004 + 0.008
    assert await elapsed(2, 5) != four


async def test_what_no_retry_helps_is_raised_at_once() -> None:
    engine, env = make([])

    async def body(txn: Txn) -> None:
        txn.set(b"a", bytes(200_000))

    with pytest.raises(FS3Error) as raised:
        await transact(engine, body, env=env)
    assert raised.value.code is Code.VALUE_TOO_LARGE
