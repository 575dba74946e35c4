"""Optimistic transactions over RocksDB in one process, for one event loop.

All code between awaits is atomic, and nothing here suspends but sync and close. So a transaction that awaits nothing
else never meets another's commit, and pays for no snapshot: it reads the present state. Only when a commit finds other
transactions reading the present state does it first give them an iterator that keeps this state (`_View`), and only then
is it noted what it wrote (`_Written`), in a chain that each view holds from its own version on: what the oldest view
does not need is freed with it.

A commit is one write to the write-ahead log, without fsync: it survives kill -9 at once. `run` makes the log durable
at least every FLUSH_INTERVAL_MS while there is something new; concurrent `sync` calls share one fsync.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio
from rocksdict import ReadOptions, WriteBatch

from ..errors import Code, FS3Error
from .base import KEY_SIZE_MAX, TRANSACTION_AGE_MAX_MS, TRANSACTION_SIZE_MAX, VALUE_SIZE_MAX, KVEngine, Txn
from .directory import StoreDirectory
from .limits import KEY_END, add_to_counter, check_key, check_size, check_value
from .ranges import Range, contains, insert, intersects, key_range, subtract

logger = logging.getLogger("fs3.kv.embedded")

FLUSH_INTERVAL_MS = 50
"""From a commit to the start of the fsync that covers it: half of the 100 ms promised, the rest is for the fsync."""

_AGE_MAX_S = TRANSACTION_AGE_MAX_MS / 1000
_SMALL_COUNT = TRANSACTION_SIZE_MAX // (3 * (KEY_SIZE_MAX + 1) + VALUE_SIZE_MAX)
"""A transaction that read and wrote no more keys and ranges than this cannot be too large."""
_DELETES_MAX = 64
"""A cleared range with more keys becomes a range tombstone, which costs every later read nearby a little."""


class _Written:
    """What one commit wrote, linked to what the next one wrote."""

    __slots__ = ("keys", "next", "ranges")

    def __init__(self, keys: set[bytes], ranges: list[Range]) -> None:
        self.keys = keys
        self.ranges = ranges
        self.next: _Written | None = None


class _View:
    """The state at one version, shared by all transactions that began to read it."""

    __slots__ = ("__weakref__", "ended", "iterator", "written")

    def __init__(self, written: _Written) -> None:
        self.written: _Written | None = written
        """The last commit that this view sees; None once every transaction of the view is too old."""
        self.iterator: Any = None
        """Over the view's state; None while that is the present. (rocksdict's own snapshots lose theirs when iterated.)"""
        self.ended = 0.0
        """When the first commit came that this view does not see."""


class EmbeddedEngine(KVEngine):
    """A store in a directory. Made by `open`; `run` belongs in a nursery for as long as the store is used."""

    def __init__(self, directory: StoreDirectory, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._db: Any = directory.db
        self.clock = clock
        self._head = _Written(set(), [])
        self._present: weakref.ref[_View] | None = None
        """The view of the present state, alive while some transaction reads it."""
        self._past: deque[weakref.ref[_View]] = deque()
        """Views of former states, by `ended`."""
        self.failure: str | None = None
        """Why nothing can be done any more."""
        self._commits = 0
        self._synced_commits = 0
        self._syncing: trio.Event | None = None
        self._unsynced = trio.Event()
        self._thread = trio.CapacityLimiter(1)

    @classmethod
    def open(cls, path: Path, clock: Callable[[], float] = trio.current_time) -> EmbeddedEngine:
        """Open the store in a directory, made if absent. `clock`: monotonic seconds, for TRANSACTION_TOO_OLD.

        Raises FORMAT_VERSION, BUSY (open elsewhere), IO (not writable, damaged).
        """
        return cls(StoreDirectory.open(path), clock)

    def transaction(self) -> Txn:
        return EmbeddedTxn(self)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the log durable until cancelled. Raises KV_UNAVAILABLE when that fails: the store is then of no use."""
        task_status.started()
        while True:
            await self._unsynced.wait()
            await trio.sleep(FLUSH_INTERVAL_MS / 1000)
            await self.sync()

    async def sync(self) -> None:
        commits = self._commits
        self.check_usable()
        while self._synced_commits < commits:
            if self._syncing is not None:
                await self._syncing.wait()
            else:
                await self._sync_group()
            self.check_usable()

    async def _sync_group(self) -> None:
        """One fsync of the log, for everything committed until now."""
        done = self._syncing = trio.Event()
        commits = self._commits
        self._unsynced = trio.Event()
        try:
            await trio.to_thread.run_sync(self._db.flush_wal, True, limiter=self._thread)
            self._synced_commits = commits
        except Exception as error:
            self.fail(f"cannot sync its log: {error}")
        finally:
            if self._synced_commits < self._commits:
                self._unsynced.set()
            self._syncing = None
            done.set()

    async def aclose(self) -> None:
        if self.failure is None:
            self.failure = f"the store {self._directory.path} is closed"
        with trio.CancelScope(shield=True):
            while self._syncing is not None:
                await self._syncing.wait()
            for reference in [self._present, *self._past]:
                view = reference() if reference is not None else None
                if view is not None:
                    view.iterator = view.written = None  # an iterator would keep RocksDB open
            self._present = None
            self._past.clear()
            self._db = None
            await trio.to_thread.run_sync(self._directory.close)

    def check_usable(self) -> None:
        if self.failure is not None:
            raise FS3Error(Code.KV_UNAVAILABLE, self.failure)

    def fail(self, why: str) -> FS3Error:
        """Refuse everything from now on: what is on disk is no longer known to be what was committed."""
        if self.failure is None:
            self.failure = f"the store {self._directory.path} {why}"
            self._unsynced.set()  # so that `run` ends
            logger.error("%s; it refuses everything until it is opened anew", self.failure)
        return FS3Error(Code.KV_UNAVAILABLE, self.failure)

    # What transactions use.

    def view(self) -> _View:
        """The view of the present state."""
        view = self._present() if self._present is not None else None
        if view is None:
            view = _View(self._head)
            self._present = weakref.ref(view)
        return view

    def value(self, view: _View, key: bytes) -> bytes | None:
        """The value of a key in a view."""
        if self.failure is not None:
            self.check_usable()
        value: bytes | None
        try:
            if view.iterator is None:
                value = self._db.get(key)
                return value
            iterator = view.iterator
            iterator.seek(key)
            if iterator.valid():
                value = iterator.value() if iterator.key() == key else None
                return value
            iterator.status()
        except Exception as error:
            raise self.fail(f"cannot be read: {error}") from error
        return None

    def pairs(self, view: _View, begin: bytes, end: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """The pairs of a view with begin <= key < end. To be used up before anything is awaited."""
        self.check_usable()
        try:
            iterator = view.iterator
            if iterator is None:
                # Without a bound it would walk on over everything that was deleted behind the range.
                options = ReadOptions()
                options.set_iterate_upper_bound(end)
                iterator = self._db.iter(options)
            valid, key_of, value_of = iterator.valid, iterator.key, iterator.value
            if reverse:
                iterator.seek_for_prev(end)
                if valid() and key_of() == end:
                    iterator.prev()
                step = iterator.prev
                while valid() and (key := key_of()) >= begin:
                    yield key, value_of()
                    step()
            else:
                iterator.seek(begin)
                step = iterator.next
                while valid() and (key := key_of()) < end:
                    yield key, value_of()
                    step()
            if not valid():
                iterator.status()  # an iterator that meets an error looks as if it came to the end
        except Exception as error:
            raise self.fail(f"cannot be read: {error}") from error

    def apply(self, writes: dict[bytes, bytes | int | None], cleared: list[Range], touched: list[Range]) -> None:
        """Commit. `touched`: ranges that others shall take as written besides `writes` and `cleared`."""
        batch = WriteBatch(raw_mode=True)
        present = self._present() if self._present is not None else None
        try:
            for begin, end in cleared:
                self._clear(batch, begin, end)
            for key, value in writes.items():
                if value is None:
                    batch.delete(key)
                elif value.__class__ is int:
                    batch.put(key, add_to_counter(self._db.get(key), value))
                else:
                    batch.put(key, value)
            if present is not None:
                present.iterator = self._db.iter()
        except Exception as error:
            raise self.fail(f"cannot be read: {error}") from error
        try:
            self._db.write(batch)
        except Exception as error:
            raise FS3Error(Code.COMMIT_UNKNOWN, self.fail(f"cannot be written: {error}").message) from error
        self._note(present, writes, [*cleared, *touched])
        self._commits += 1
        self._unsynced.set()

    def _clear(self, batch: Any, begin: bytes, end: bytes) -> None:
        keys: list[bytes] = []
        for key, _ in self.pairs(_View(self._head), begin, end, False):
            keys.append(key)
            if len(keys) > _DELETES_MAX:
                batch.delete_range(begin, end)
                return
        for key in keys:
            batch.delete(key)

    def _note(self, present: _View | None, writes: dict[bytes, bytes | int | None], ranges: list[Range]) -> None:
        """Move on to the next version: remember for open transactions what was written."""
        past = self._past
        if present is None and not past:
            return
        now = self.clock()
        if present is not None:
            present.ended = now
            past.append(weakref.ref(present))
            self._present = None
        while past:
            oldest = past[0]()
            if oldest is not None:
                if now - oldest.ended <= _AGE_MAX_S:
                    break
                oldest.iterator = oldest.written = None  # all its transactions are too old
            past.popleft()
        if not past:
            return
        written = _Written(set(writes), ranges)
        self._head.next = written
        self._head = written


class EmbeddedTxn(Txn):
    """Read-your-writes over a view."""

    __slots__ = ("_cleared", "_engine", "_read_keys", "_read_ranges", "_started", "_touched", "_usable", "_view", "_writes")

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        self._usable = True
        self._view: _View | None = None
        self._started = 0.0
        self._writes: dict[bytes, bytes | int | None] = {}
        """Own writes by key: a value, None = cleared, an int = to be added to what is there."""
        self._cleared: list[Range] = []
        """Ranges cleared before those of `_writes` that lie in them."""
        self._touched: list[Range] = []
        self._read_keys: set[bytes] = set()
        self._read_ranges: list[Range] = []

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        assert self._usable
        delta: int | None = None
        if key in self._writes:
            own = self._writes[key]
            if not isinstance(own, int):
                return own
            delta = own
        elif self._cleared and contains(self._cleared, key):
            return None
        view = self._view
        if view is None or self._engine.clock() - self._started > _AGE_MAX_S:
            view = self._start()
        if not snapshot:
            self._read_keys.add(key)
        value = self._engine.value(view, key)
        return value if delta is None else add_to_counter(value, delta)

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        assert self._usable and limit >= 0 and end <= KEY_END
        if begin >= end:
            return []
        found = self._engine.pairs(self._start(), begin, end, reverse)
        overlaid = bool(self._writes or self._cleared)
        if overlaid:
            found = self._overlay(found, begin, end, reverse)
        pairs: list[tuple[bytes, bytes]] = []
        for pair in found:
            pairs.append(pair)
            if len(pairs) == limit:
                begin, end = (pair[0], end) if reverse else (begin, pair[0] + b"\x00")
                break
        if not snapshot:
            if overlaid:
                self._read_ranges += subtract(begin, end, self._determined(begin, end))
            else:
                self._read_ranges.append((begin, end))
        return pairs

    def set(self, key: bytes, value: bytes) -> None:
        assert self._usable and key < KEY_END
        if len(key) > KEY_SIZE_MAX or len(value) > VALUE_SIZE_MAX:
            check_key(key)
            check_value(value)
        self._writes[key] = value

    def clear(self, key: bytes) -> None:
        assert self._usable
        check_key(key)
        self._writes[key] = None

    def clear_range(self, begin: bytes, end: bytes) -> None:
        assert self._usable and end <= KEY_END
        if begin >= end:
            return
        for key in [key for key in self._writes if begin <= key < end]:
            del self._writes[key]
        insert(self._cleared, begin, end)

    def atomic_add(self, key: bytes, delta: int) -> None:
        assert self._usable
        check_key(key)
        if key in self._writes:
            own = self._writes[key]
            self._writes[key] = own + delta if isinstance(own, int) else add_to_counter(own, delta)
        elif contains(self._cleared, key):
            self._writes[key] = add_to_counter(None, delta)
        else:
            self._writes[key] = delta

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert self._usable and end <= KEY_END
        if begin < end:
            self._read_ranges.append((begin, end))

    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert self._usable and end <= KEY_END
        if begin < end:
            self._touched.append((begin, end))

    async def commit(self) -> None:
        assert self._usable
        self._usable = False
        if self._engine.failure is not None:
            self._engine.check_usable()
        view, self._view = self._view, None
        if not (self._writes or self._cleared or self._touched):
            return
        self._check_size()
        if view is not None:
            self._check_age()
            assert view.written is not None
            if view.written.next is not None and self._conflicts(view.written.next):
                raise FS3Error(Code.CONFLICT, "what was read has been written meanwhile")
            del view  # where no other transaction shares it, its state need not be kept
        self._engine.apply(self._writes, self._cleared, self._touched)

    def _start(self) -> _View:
        """The view, taken at the first read."""
        view = self._view
        if view is None:
            view = self._view = self._engine.view()
            self._started = self._engine.clock()
        else:
            self._check_age()
        return view

    def _check_age(self) -> None:
        if self._engine.clock() - self._started > _AGE_MAX_S:
            raise FS3Error(Code.TRANSACTION_TOO_OLD, f"older than {TRANSACTION_AGE_MAX_MS} ms")

    def _overlay(
        self, found: Iterator[tuple[bytes, bytes]], begin: bytes, end: bytes, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Merge what the store holds with the own writes, both in the order asked for."""
        writes, cleared = self._writes, self._cleared
        own = sorted((key for key in writes if begin <= key < end), reverse=not reverse)  # the next one last
        for key, stored in found:
            while own and (own[-1] > key if reverse else own[-1] < key):
                yield from self._own_pair(own.pop(), None)
            if own and own[-1] == key:
                yield from self._own_pair(own.pop(), stored)
            elif not contains(cleared, key):
                yield key, stored
        while own:
            yield from self._own_pair(own.pop(), None)

    def _own_pair(self, key: bytes, stored: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        value = self._writes[key]
        if isinstance(value, int):
            yield key, add_to_counter(stored, value)
        elif value is not None:
            yield key, value

    def _determined(self, begin: bytes, end: bytes) -> list[Range]:
        """Where in a range the own writes alone decide."""
        keys = [key_range(key) for key, value in self._writes.items() if begin <= key < end and not isinstance(value, int)]
        return keys + self._cleared

    def _conflicts(self, written: _Written | None) -> bool:
        read_keys, read_ranges = self._read_keys, self._read_ranges
        while written is not None:
            if not read_keys.isdisjoint(written.keys):
                return True
            for begin, end in read_ranges:
                if any(begin <= key < end for key in written.keys) or intersects(written.ranges, begin, end):
                    return True
            if written.ranges and any(contains(written.ranges, key) for key in read_keys):
                return True
            written = written.next
        return False

    def _check_size(self) -> None:
        """Bytes of keys and values written, counting what was overwritten here once, and of conflict ranges."""
        count = len(self._writes) + len(self._read_keys)
        if count + 2 * len(self._cleared) + len(self._touched) + len(self._read_ranges) <= _SMALL_COUNT:
            return
        ranges = [*self._cleared, *self._cleared, *self._touched, *self._read_ranges]
        size = sum(len(begin) + len(end) for begin, end in ranges)
        size += sum(2 * len(key) + 1 for key in self._read_keys)
        for key, value in self._writes.items():
            size += 3 * len(key) + 1 + (len(value) if isinstance(value, bytes) else 8 if value is not None else len(key) + 1)
        check_size(size)
