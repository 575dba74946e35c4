"""The reference engine: everything in memory, simple rather than fast, with faults on request.

Each key has its history of (commit version, value). A transaction keeps its operations in a list and replays them over
what its read version shows; a commit compares the ranges read with the ranges that later commits wrote.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

import trio
from sortedcontainers import SortedDict

from ..errors import Code, FS3Error
from .base import TRANSACTION_AGE_MAX_MS, KVEngine, Txn
from .limits import KEY_END, add_to_counter, check_key, check_size, check_value
from .ranges import Range, contains, insert, intersects, key_range, subtract


class Operation(Enum):
    """Where a hook is asked."""

    READ = "read"
    COMMIT = "commit"


class Fault(Enum):
    """What a hook may make of an operation. A read can only become unavailable."""

    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    UNKNOWN_APPLIED = "commit unknown, applied"
    UNKNOWN_NOT_APPLIED = "commit unknown, not applied"


Hook = Callable[[Operation], Awaitable[Fault | None]]
"""Awaited before each operation; it may sleep, and may return a fault."""


@dataclass(slots=True)
class RandomFaults:
    """A hook that draws faults and a delay from the caller's seeded random."""

    random: random.Random
    probability: dict[Fault, float] = field(default_factory=dict)
    delay_ms_max: float = 0

    async def __call__(self, operation: Operation) -> Fault | None:
        if self.delay_ms_max:
            await trio.sleep(self.random.uniform(0, self.delay_ms_max) / 1000)
        for fault, probability in self.probability.items():
            if operation is Operation.READ and fault is not Fault.UNAVAILABLE:
                continue
            if self.random.random() < probability:
                return fault
        return None


@dataclass(slots=True)
class _Set:
    key: bytes
    value: bytes


@dataclass(slots=True)
class _Clear:
    begin: bytes
    end: bytes


@dataclass(slots=True)
class _Add:
    key: bytes
    delta: int


_Mutation = _Set | _Clear | _Add


@dataclass(slots=True)
class _Commit:
    version: int
    time: float
    written: list[Range]
    keys: list[bytes]


class MemoryEngine(KVEngine):
    """A store that forgets everything when it goes."""

    def __init__(self, clock: Callable[[], float] = trio.current_time, hook: Hook | None = None) -> None:
        """`clock`: seconds on a clock that never goes back, for TRANSACTION_TOO_OLD."""
        self._clock = clock
        self.hook = hook
        self._version = 0
        self._history: SortedDict[bytes, list[tuple[int, bytes | None]]] = SortedDict()
        self._commits: deque[_Commit] = deque()
        """The commits of the last TRANSACTION_AGE_MAX_MS, oldest first."""
        self._closed = False

    def transaction(self) -> Txn:
        return _MemoryTxn(self)

    async def sync(self) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise FS3Error(Code.KV_UNAVAILABLE, "the store is closed")

    async def _before(self, operation: Operation) -> Fault | None:
        """Let others run, and ask the hook. Raises what is sure not to have done anything."""
        await trio.lowlevel.checkpoint()
        fault = await self.hook(operation) if self.hook is not None else None
        self._check_open()
        if fault is Fault.UNAVAILABLE:
            raise FS3Error(Code.KV_UNAVAILABLE, "injected")
        if fault is Fault.CONFLICT:
            raise FS3Error(Code.CONFLICT, "injected")
        return fault

    def _read(self, key: bytes, version: int) -> bytes | None:
        history: list[tuple[int, bytes | None]] = self._history.get(key, [])
        for written_at, value in reversed(history):
            if written_at <= version:
                return value
        return None

    def _keys(self, begin: bytes, end: bytes) -> list[bytes]:
        return list(self._history.irange(begin, end, inclusive=(True, False)))

    def _conflicts(self, version: int, read: set[Range]) -> bool:
        later = [commit for commit in self._commits if commit.version > version]
        return any(intersects(commit.written, begin, end) for commit in later for begin, end in read)

    def _apply(self, mutations: list[_Mutation], written: list[Range]) -> None:
        self._version += 1
        touched: list[bytes] = []
        for mutation in mutations:
            match mutation:
                case _Set(key, value):
                    self._write(key, value, touched)
                case _Add(key, delta):
                    self._write(key, add_to_counter(self._read(key, self._version), delta), touched)
                case _Clear(begin, end):
                    for key in self._keys(begin, end):
                        self._write(key, None, touched)
        self._commits.append(_Commit(self._version, self._clock(), written, touched))
        self._forget_old()

    def _write(self, key: bytes, value: bytes | None, touched: list[bytes]) -> None:
        self._history.setdefault(key, []).append((self._version, value))
        touched.append(key)

    def _forget_old(self) -> None:
        """Drop what only transactions that are too old could see."""
        horizon = self._clock() - TRANSACTION_AGE_MAX_MS / 1000
        while self._commits and self._commits[0].time < horizon:
            commit = self._commits.popleft()
            for key in commit.keys:
                history = self._history.get(key)
                if history is None:
                    continue
                while len(history) > 1 and history[1][0] <= commit.version:
                    del history[0]
                if history[-1][1] is None and len(history) == 1:
                    del self._history[key]


class _MemoryTxn(Txn):
    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        self._usable = True
        self._version: int | None = None
        self._started = 0.0
        self._mutations: list[_Mutation] = []
        self._read: set[Range] = set()
        self._written: list[Range] = []

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        assert self._usable
        await self._engine._before(Operation.READ)
        if not self._determined(key):
            self._start()
            if not snapshot:
                self._read.add(key_range(key))
        return self._value(key)

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        assert self._usable and limit >= 0 and end <= KEY_END
        await self._engine._before(Operation.READ)
        if begin >= end:
            return []
        self._start()
        own = {m.key for m in self._mutations if not isinstance(m, _Clear) and begin <= m.key < end}
        pairs: list[tuple[bytes, bytes]] = []
        for key in sorted(own.union(self._engine._keys(begin, end)), reverse=reverse):
            value = self._value(key)
            if value is not None:
                pairs.append((key, value))
            if limit and len(pairs) == limit:
                begin, end = (key, end) if reverse else (begin, key + b"\x00")
                break
        if not snapshot:
            holes = [key_range(key) for key in own if self._determined(key)]
            holes += [(m.begin, m.end) for m in self._mutations if isinstance(m, _Clear)]
            # A key that was cleared and then added to depends on nothing outside; so the holes need no order.
            self._read.update(subtract(begin, end, holes))
        return pairs

    def set(self, key: bytes, value: bytes) -> None:
        assert self._usable
        check_key(key)
        check_value(value)
        self._mutations.append(_Set(key, value))

    def clear(self, key: bytes) -> None:
        check_key(key)
        self.clear_range(*key_range(key))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        assert self._usable and end <= KEY_END
        if begin < end:
            self._mutations.append(_Clear(begin, end))

    def atomic_add(self, key: bytes, delta: int) -> None:
        assert self._usable
        check_key(key)
        self._mutations.append(_Add(key, delta))

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert self._usable and end <= KEY_END
        if begin < end:
            self._read.add((begin, end))

    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert self._usable and end <= KEY_END
        if begin < end:
            self._written.append((begin, end))

    async def commit(self) -> None:
        assert self._usable
        self._usable = False
        engine = self._engine
        written = self._written + [(m.begin, m.end) if isinstance(m, _Clear) else key_range(m.key) for m in self._mutations]
        if not written:
            await trio.lowlevel.checkpoint()
            engine._check_open()
            return
        check_size(self._size())
        fault = await engine._before(Operation.COMMIT)
        if self._version is not None:
            self._check_age()
            if engine._conflicts(self._version, self._read):
                raise FS3Error(Code.CONFLICT, "what was read has been written meanwhile")
        if fault is not Fault.UNKNOWN_NOT_APPLIED:
            engine._apply(self._mutations, written)
        if fault is not None:
            raise FS3Error(Code.COMMIT_UNKNOWN, "injected")

    def _start(self) -> None:
        """Take the snapshot at the first read."""
        if self._version is None:
            self._version = self._engine._version
            self._started = self._engine._clock()
        self._check_age()

    def _check_age(self) -> None:
        if self._engine._clock() - self._started > TRANSACTION_AGE_MAX_MS / 1000:
            raise FS3Error(Code.TRANSACTION_TOO_OLD, f"older than {TRANSACTION_AGE_MAX_MS} ms")

    def _determined(self, key: bytes) -> bool:
        """Whether the transaction's own writes alone say what the key holds."""
        return any(
            contains([(m.begin, m.end)], key) if isinstance(m, _Clear) else isinstance(m, _Set) and m.key == key
            for m in self._mutations
        )

    def _value(self, key: bytes) -> bytes | None:
        value = None if self._version is None else self._engine._read(key, self._version)
        for mutation in self._mutations:
            match mutation:
                case _Set(own, new) if own == key:
                    value = new
                case _Add(own, delta) if own == key:
                    value = add_to_counter(value, delta)
                case _Clear(begin, end) if begin <= key < end:
                    value = None
        return value

    def _size(self) -> int:
        """Bytes of keys and values written, counting what was overwritten here once, and of conflict ranges."""
        values: dict[bytes, int] = {}
        cleared: list[Range] = []
        for mutation in self._mutations:
            match mutation:
                case _Set(key, value):
                    values[key] = len(value)
                case _Add(key, _):
                    values[key] = 8
                case _Clear(begin, end):
                    values = {key: size for key, size in values.items() if not begin <= key < end}
                    insert(cleared, begin, end)
        size = sum(len(key) + value_size + 2 * len(key) + 1 for key, value_size in values.items())
        size += sum(2 * (len(begin) + len(end)) for begin, end in cleared)
        return size + sum(len(begin) + len(end) for begin, end in [*self._read, *self._written])
