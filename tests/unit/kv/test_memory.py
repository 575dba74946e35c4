"""The memory engine's own: faults on request, and forgetting what nobody can read."""

from __future__ import annotations

import random

import pytest
import trio

from fs3.errors import Code, FS3Error
from fs3.kv.memory import Fault, Hook, MemoryEngine, Operation, RandomFaults


def always(fault: Fault, at: Operation) -> Hook:
    async def hook(operation: Operation) -> Fault | None:
        return fault if operation is at else None

    return hook


@pytest.mark.parametrize(
    ("fault", "code", "applied"),
    [
        (Fault.CONFLICT, Code.CONFLICT, False),
        (Fault.UNAVAILABLE, Code.KV_UNAVAILABLE, False),
        (Fault.UNKNOWN_APPLIED, Code.COMMIT_UNKNOWN, True),
        (Fault.UNKNOWN_NOT_APPLIED, Code.COMMIT_UNKNOWN, False),
    ],
)
async def test_faults_of_a_commit(fault: Fault, code: Code, applied: bool) -> None:
    engine = MemoryEngine(hook=always(fault, Operation.COMMIT))
    txn = engine.transaction()
    assert await txn.get(b"a") is None
    txn.set(b"a", b"1")
    with pytest.raises(FS3Error) as raised:
        await txn.commit()
    assert raised.value.code is code
    assert await engine.transaction().get(b"a") == (b"1" if applied else None)


async def test_faults_of_a_read() -> None:
    engine = MemoryEngine(hook=always(Fault.UNAVAILABLE, Operation.READ))
    for read in (engine.transaction().get(b"a"), engine.transaction().get_range(b"a", b"b")):
        with pytest.raises(FS3Error, match="KV_UNAVAILABLE"):
            await read


async def outcomes(seed: int) -> list[str]:
    hook = RandomFaults(random.Random(seed), dict.fromkeys(Fault, 0.2), delay_ms_max=5)
    engine = MemoryEngine(hook=hook)
    seen = []
    start = trio.current_time()
    for _ in range(50):
        txn = engine.transaction()
        try:
            value = await txn.get(b"n")
            txn.atomic_add(b"n", 1)
            await txn.commit()
            seen.append(f"{value!r}")
        except FS3Error as error:
            seen.append(error.code.name)
    return [*seen, f"{trio.current_time() - start:.6f} s"]


async def test_random_faults_are_the_seeds_alone(autojump_clock: object) -> None:
    first = await outcomes(1)
    assert {"CONFLICT", "COMMIT_UNKNOWN", "KV_UNAVAILABLE"} < set(first)
    assert await outcomes(1) == first
    assert await outcomes(2) != first


async def test_what_no_transaction_may_read_is_forgotten() -> None:
    now = 0.0
    engine = MemoryEngine(lambda: now)
    for number in range(20):
        txn = engine.transaction()
        txn.set(b"often", b"%d" % number)
        txn.set(b"once %d" % number, b"")
        if number:
            txn.clear(b"once %d" % (number - 1))
        await txn.commit()
        now += 1.0
    assert len(engine._commits) <= 7
    assert len(engine._history[b"often"]) <= 7
    assert sorted(engine._history) == [b"often", *sorted(b"once %d" % number for number in range(13, 20))]
    assert await engine.transaction().get_range(b"", b"\xff") == [(b"often", b"19"), (b"once 19", b"")]
