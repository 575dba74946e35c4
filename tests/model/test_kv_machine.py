"""Random interleavings of transactions: the embedded engine does what the memory engine does, conflict by conflict."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fs3.errors import FS3Error
from fs3.kv.base import Txn
from fs3.kv.embedded import EmbeddedEngine
from fs3.kv.memory import MemoryEngine

SLOTS = st.integers(0, 3)
KEYS = st.sampled_from([b"", b"a", b"a\x00", b"b", b"bb", b"c", b"d", b"e"])
BOUNDS = st.sampled_from([b"", b"a", b"a\x00", b"b", b"c", b"cc", b"e", b"\xff"])
VALUES = st.sampled_from([b"", b"1", b"22", b"\xff" * 8, b"longer than eight"])
FLAGS = st.booleans()


class KVMachine(RuleBasedStateMachine):
    """Four pairs of transactions, one of each pair on either engine."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.directory = tempfile.TemporaryDirectory()
        self.embedded = EmbeddedEngine.open(Path(self.directory.name) / "kv", lambda: self.now)
        self.memory = MemoryEngine(lambda: self.now)
        self.txns: list[tuple[Txn, Txn]] = []
        self.ended: set[int] = set()

    @initialize()
    def begin(self) -> None:
        self.txns = [(self.memory.transaction(), self.embedded.transaction()) for _ in range(4)]

    def both(self, slot: int, action: Callable[[Txn], Awaitable[Any] | None]) -> Any:
        """Do the same on both, and demand the same outcome, which is returned."""
        if slot in self.ended:
            return None

        async def outcome(txn: Txn) -> Any:
            try:
                awaited = action(txn)
                return None if awaited is None else await awaited
            except FS3Error as error:
                return error.code

        expected, actual = (trio.run(outcome, txn) for txn in self.txns[slot])
        assert actual == expected
        return expected

    @rule(slot=SLOTS, key=KEYS, snapshot=FLAGS)
    def get(self, slot: int, key: bytes, snapshot: bool) -> None:
        self.both(slot, lambda txn: txn.get(key, snapshot=snapshot))

    @rule(slot=SLOTS, begin=BOUNDS, end=BOUNDS, limit=st.sampled_from([0, 0, 1, 2, 3]), reverse=FLAGS, snapshot=FLAGS)
    def get_range(self, slot: int, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> None:
        self.both(slot, lambda txn: txn.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot))

    @rule(slot=SLOTS, key=KEYS, value=VALUES)
    def set(self, slot: int, key: bytes, value: bytes) -> None:
        self.both(slot, lambda txn: txn.set(key, value))

    @rule(slot=SLOTS, key=KEYS)
    def clear(self, slot: int, key: bytes) -> None:
        self.both(slot, lambda txn: txn.clear(key))

    @rule(slot=SLOTS, begin=BOUNDS, end=BOUNDS)
    def clear_range(self, slot: int, begin: bytes, end: bytes) -> None:
        self.both(slot, lambda txn: txn.clear_range(begin, end))

    @rule(slot=SLOTS, key=KEYS, delta=st.sampled_from([0, 1, -1, 1 << 62]))
    def atomic_add(self, slot: int, key: bytes, delta: int) -> None:
        self.both(slot, lambda txn: txn.atomic_add(key, delta))

    @rule(slot=SLOTS, begin=BOUNDS, end=BOUNDS, read=FLAGS)
    def add_conflict_range(self, slot: int, begin: bytes, end: bytes, read: bool) -> None:
        if read:
            self.both(slot, lambda txn: txn.add_read_conflict_range(begin, end))
        else:
            self.both(slot, lambda txn: txn.add_write_conflict_range(begin, end))

    @rule(slot=SLOTS, anew=FLAGS)
    def commit(self, slot: int, anew: bool) -> None:
        self.both(slot, lambda txn: txn.commit())
        if anew:
            self.txns[slot] = self.memory.transaction(), self.embedded.transaction()
            self.ended.discard(slot)
        else:
            self.ended.add(slot)

    @rule(slot=SLOTS)
    def reset(self, slot: int) -> None:
        self.ended.discard(slot)
        self.both(slot, lambda txn: txn.reset())

    @rule(seconds=st.sampled_from([0.5, 2.0, 4.9, 5.1]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def committed_alike(self) -> None:
        async def read_all() -> None:
            memory, embedded = self.memory.transaction(), self.embedded.transaction()
            assert await embedded.get_range(b"", b"\xff") == await memory.get_range(b"", b"\xff")

        trio.run(read_all)

    def teardown(self) -> None:
        trio.run(self.embedded.aclose)
        self.directory.cleanup()


TestKV = KVMachine.TestCase
TestKV.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
