"""Random interleavings of transactions: the embedded engine does what the memory engine does, conflict by conflict."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fs3.errors import Code, FS3Error
from fs3.kv.base import KVEngine, Txn
from fs3.kv.embedded import EmbeddedEngine
from fs3.kv.memory import MemoryEngine

KEYS = st.sampled_from([b"", b"a", b"a\x00", b"b", b"bb", b"c", b"d"])
BOUNDS = st.sampled_from([b"", b"a", b"a\x00", b"b", b"c", b"cc", b"\xff"])
RANGES = st.tuples(BOUNDS, BOUNDS)
VALUES = st.sampled_from([b"", b"1", b"\xff" * 8, b"longer than eight"])
FLAGS = st.booleans()
SLOTS = st.integers(0, 2)
"""Transactions that are open at once."""

Action = Callable[[Txn], Awaitable[Any] | None]


def named(name: str, *arguments: Any, **keywords: Any) -> Action:
    def action(txn: Txn) -> Awaitable[Any] | None:
        result: Awaitable[Any] | None = getattr(txn, name)(*arguments, **keywords)
        return result

    action.__name__ = f"{name}{arguments}{keywords or ''}"
    return action


READS = st.one_of(
    st.builds(lambda key, snapshot: named("get", key, snapshot=snapshot), KEYS, FLAGS),
    st.builds(
        lambda ends, limit, reverse, snapshot: named("get_range", *ends, limit=limit, reverse=reverse, snapshot=snapshot),
        RANGES,
        st.sampled_from([0, 1, 2]),
        FLAGS,
        FLAGS,
    ),
    st.builds(lambda ends: named("add_read_conflict_range", *ends), RANGES),
)
WRITES = st.one_of(
    st.builds(lambda key, value: named("set", key, value), KEYS, VALUES),
    st.builds(lambda key: named("clear", key), KEYS),
    st.builds(lambda ends: named("clear_range", *ends), RANGES),
    st.builds(lambda key, delta: named("atomic_add", key, delta), KEYS, st.sampled_from([0, 1, -1, 1 << 62])),
    st.builds(lambda ends: named("add_write_conflict_range", *ends), RANGES),
)
END = st.sampled_from([named("commit"), named("commit"), named("commit"), named("reset")])
STEPS = st.one_of(
    st.tuples(SLOTS, st.tuples(READS)),
    st.tuples(SLOTS, st.tuples(READS, WRITES, READS)),
    st.tuples(SLOTS, st.tuples(WRITES)),
    st.tuples(SLOTS, st.tuples(WRITES, END)),
    st.tuples(SLOTS, st.tuples(READS, WRITES, END)),
    st.tuples(st.none(), st.tuples(WRITES, st.just(named("commit")))),  # a rival, at once
    st.tuples(st.none(), st.tuples(WRITES, WRITES, st.just(named("commit")))),
    st.sampled_from([0.1, 0.3, 1.0, 5.1]),  # seconds pass
)


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine.open(tmp_path_factory.mktemp("kv") / "store", CLOCK)
    yield engine
    trio.run(engine.aclose)


class Pair:
    """The same transaction on both engines."""

    def __init__(self, engines: tuple[KVEngine, KVEngine]) -> None:
        self.engines = engines
        self.errors = 0
        self.txns = [engine.transaction() for engine in engines]

    async def do(self, action: Action) -> None:
        """Do the same on both, and demand the same outcome. After a commit, begin anew."""
        expected, actual = [await self._outcome(txn, action) for txn in self.txns]
        assert actual == expected, action.__name__
        self.errors += isinstance(actual, Code)
        if action.__name__.startswith("commit"):
            self.txns = [engine.transaction() for engine in self.engines]

    @staticmethod
    async def _outcome(txn: Txn, action: Action) -> Any:
        try:
            awaited = action(txn)
            return None if awaited is None else await awaited
        except FS3Error as error:
            return error.code


async def play(engines: tuple[KVEngine, KVEngine], steps: list[Any]) -> int:
    """Returns how many operations failed."""
    cleaner = engines[1].transaction()
    cleaner.clear_range(b"", b"\xff")
    await cleaner.commit()
    pairs = [Pair(engines) for _ in range(3)]
    for step in steps:
        if isinstance(step, float):
            CLOCK.now += step
            continue
        slot, actions = step
        pair = Pair(engines) if slot is None else pairs[slot]
        for action in actions:
            await pair.do(action)
        await Pair(engines).do(named("get_range", b"", b"\xff"))
    return sum(pair.errors for pair in pairs)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=30, max_size=60))
def test_embedded_does_what_the_reference_does(embedded: EmbeddedEngine, steps: list[Any]) -> None:
    event(f"{trio.run(play, (MemoryEngine(CLOCK), embedded), steps)} errors")


def test_the_comparison_finds_what_differs(tmp_path: Path) -> None:
    """A canary: an engine that forgets conflicts is found by a history of a few steps."""

    class Careless(MemoryEngine):
        def _conflicts(self, version: int, read: object) -> bool:
            return False

    steps = [
        (0, [named("get", b"a")]),
        (None, [named("set", b"a", b"1"), named("commit")]),
        (0, [named("set", b"b", b"1"), named("commit")]),
    ]
    trio.run(play, (MemoryEngine(CLOCK), MemoryEngine(CLOCK)), steps)
    with pytest.raises(AssertionError, match="commit"):
        trio.run(play, (MemoryEngine(CLOCK), Careless(CLOCK)), steps)
