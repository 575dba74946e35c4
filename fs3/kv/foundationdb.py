"""The FoundationDB engine: the same port over the `foundationdb` package, which is loaded only when it is used.

The binding's network thread completes futures; a callback there wakes the waiting trio task, and nothing else of ours
runs on that thread. The binding keeps one API version and one network thread per process.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import trio

from ..errors import Code, ConfigError, FS3Error
from .base import KVEngine, Txn
from .limits import KEY_END, check_key, check_value

API_VERSION = 730
API_VERSION_MIN = 730
API_VERSION_MAX = 800
TIMEOUT_MS = 10_000
"""Of a transaction as a whole, so that an unreachable cluster becomes an error; it may live 5 s only anyway."""
PREFIX_SIZE_MAX = 256

_U64_MASK = (1 << 64) - 1

_CODES = {
    1007: Code.TRANSACTION_TOO_OLD,
    1020: Code.CONFLICT,
    2101: Code.TRANSACTION_TOO_LARGE,
    2102: Code.KEY_TOO_LARGE,
    2103: Code.VALUE_TOO_LARGE,
}
"""Errors that say the same wherever they come from, and that a commit did not happen."""
_CLIENT_ERRORS = range(2000, 3000)
"""Refused by the client library before anything was sent."""


class FoundationDBEngine(KVEngine):
    """A key space in a FoundationDB cluster. Made by `open`."""

    def __init__(self, fdb: Any, database: Any, prefix: bytes, timeout_ms: int) -> None:
        self._fdb = fdb
        self._database = database
        self._prefix = prefix
        self._timeout_ms = timeout_ms

    @classmethod
    def open(
        cls,
        cluster_file: str | None,
        *,
        prefix: bytes = b"",
        api_version: int = API_VERSION,
        timeout_ms: int = TIMEOUT_MS,
    ) -> FoundationDBEngine:
        """Use the cluster of a cluster file (None: the system's). Does not wait for the cluster to answer.

        All keys begin with `prefix` there, which the user of this engine does not see; it counts for the size of keys.
        Raises CONFIG: package or client library missing or unfit, bad cluster file, bad prefix.
        """
        if not API_VERSION_MIN <= api_version <= API_VERSION_MAX:
            raise ConfigError(f"FoundationDB API version {api_version}: expected {API_VERSION_MIN} to {API_VERSION_MAX}")
        if len(prefix) > PREFIX_SIZE_MAX or prefix >= KEY_END:
            raise ConfigError(f"FoundationDB key prefix {prefix!r}: expected {PREFIX_SIZE_MAX} bytes at most, below 0xff")
        fdb = _load(api_version)
        try:
            database = fdb.open(cluster_file)
        except fdb.FDBError as error:
            raise ConfigError(f"FoundationDB cluster file {cluster_file or '(default)'}: {error}") from error
        return cls(fdb, database, prefix, timeout_ms)

    def transaction(self) -> Txn:
        return _FoundationDBTxn(self)

    async def sync(self) -> None:
        """FoundationDB's commits are durable already."""
        if self._database is None:
            raise FS3Error(Code.KV_UNAVAILABLE, "the store is closed")
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._database = None

    def create(self) -> Any:
        """A transaction of the binding."""
        if self._database is None:
            raise FS3Error(Code.KV_UNAVAILABLE, "the store is closed")
        transaction = self._database.create_transaction()
        transaction.options.set_timeout(self._timeout_ms)
        return transaction

    def translate(self, error: Any, *, committing: bool) -> FS3Error:
        """Our error for an FDBError.

        A commit's error means COMMIT_UNKNOWN unless it is known to say that nothing was committed.
        """
        number = error.code
        message = f"FoundationDB error {number}: {error.description}"
        code = _CODES.get(number)
        if code is not None:
            return FS3Error(code, message)
        predicates = self._fdb.predicates
        if predicates.is_retryable_not_committed(error):
            return FS3Error(Code.KV_UNAVAILABLE, message)
        if number in _CLIENT_ERRORS:
            return FS3Error(Code.KV_UNAVAILABLE, message, retryable=False)
        if committing:
            return FS3Error(Code.COMMIT_UNKNOWN, message)
        transient = predicates.is_retryable(error) or number == 1031  # transaction_timed_out
        return FS3Error(Code.KV_UNAVAILABLE, message, retryable=transient)


class _FoundationDBTxn(Txn):
    """A transaction of the binding, which already does read-your-writes."""

    __slots__ = ("_engine", "_prefix", "_transaction", "_usable", "_writes")

    def __init__(self, engine: FoundationDBEngine) -> None:
        self._engine = engine
        self._prefix = engine._prefix
        self.reset()

    def reset(self) -> None:
        self._usable = True
        self._writes = False
        # A fresh one, made when it is needed: resetting the old one would go on counting its time-out.
        self._transaction: Any = None

    def _begun(self) -> Any:
        assert self._usable
        if self._transaction is None:
            self._transaction = self._engine.create()
        return self._transaction

    def _key(self, key: bytes) -> bytes:
        """The key to write in the database, checked here, since the binding would tell only at the commit."""
        assert key < KEY_END, key
        key = self._prefix + key
        check_key(key)
        return key

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        transaction = self._begun()
        future = (transaction.snapshot if snapshot else transaction).get(self._prefix + key)
        await _ready(future)
        try:
            value: bytes | None = future.value
        except self._engine._fdb.FDBError as error:
            raise self._engine.translate(error, committing=False) from error
        return value

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        transaction = self._begun()
        assert limit >= 0 and end <= KEY_END
        if begin >= end:
            return []
        fdb, cut = self._engine._fdb, len(self._prefix)
        reader = transaction.snapshot if snapshot else transaction
        mode = fdb.StreamingMode.exact if limit else fdb.StreamingMode.want_all
        first = fdb.KeySelector.first_greater_or_equal(self._prefix + begin)
        last = fdb.KeySelector.first_greater_or_equal(self._prefix + end)
        pairs: list[tuple[bytes, bytes]] = []
        iteration = 1
        while True:
            # The binding's own iteration blocks the thread between batches; this is what it does, with an await.
            future = reader._get_range(first, last, limit - len(pairs) if limit else 0, mode, iteration, reverse)
            await _ready(future)
            try:
                found, count, more = future.wait()
            except fdb.FDBError as error:
                raise self._engine.translate(error, committing=False) from error
            pairs += [(pair.key[cut:], pair.value) for pair in found]
            if not count or not more or len(pairs) == limit:
                return pairs
            if reverse:
                last = fdb.KeySelector.first_greater_or_equal(found[-1].key)
            else:
                first = fdb.KeySelector.first_greater_than(found[-1].key)
            iteration += 1

    def set(self, key: bytes, value: bytes) -> None:
        transaction = self._begun()
        check_value(value)
        transaction.set(self._key(key), value)
        self._writes = True

    def clear(self, key: bytes) -> None:
        self._begun().clear(self._key(key))
        self._writes = True

    def clear_range(self, begin: bytes, end: bytes) -> None:
        transaction = self._begun()
        assert end <= KEY_END
        if begin < end:
            transaction.clear_range(self._prefix + begin, self._prefix + end)
            self._writes = True

    def atomic_add(self, key: bytes, delta: int) -> None:
        self._begun().add(self._key(key), (delta & _U64_MASK).to_bytes(8, "little"))
        self._writes = True

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        transaction = self._begun()
        assert end <= KEY_END
        if begin < end:
            transaction.add_read_conflict_range(self._prefix + begin, self._prefix + end)

    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None:
        transaction = self._begun()
        assert end <= KEY_END
        if begin < end:
            transaction.add_write_conflict_range(self._prefix + begin, self._prefix + end)
            self._writes = True

    async def commit(self) -> None:
        transaction = self._begun()
        self._usable = False
        if not self._writes:  # FoundationDB would commit it without asking the cluster, too
            await trio.lowlevel.checkpoint()
            return
        future = transaction.commit()
        await _ready(future)
        try:
            future.wait()
        except self._engine._fdb.FDBError as error:
            raise self._engine.translate(error, committing=True) from error


def _load(api_version: int) -> ModuleType:
    """The binding, at an API version. Raises CONFIG."""
    try:
        fdb = importlib.import_module("fdb")
    except ImportError as error:
        raise ConfigError(
            "the FoundationDB store needs the Python package `foundationdb` (pip install 'fs3[foundationdb]'), "
            "of the same version as the client library"
        ) from error
    try:
        fdb.api_version(api_version)
    except RuntimeError as error:  # the versions do not fit: the binding explains
        raise ConfigError(f"FoundationDB: {error}") from error
    except Exception as error:  # the binding raises plain Exception where it finds no library
        raise ConfigError(
            f"the FoundationDB store needs the client library libfdb_c.so (Debian package foundationdb-clients): {error}"
        ) from error
    return fdb


async def _ready(future: Any) -> None:
    """Wait for a future of the binding without blocking; when cancelled, cancel it."""
    if future.is_ready():
        await trio.lowlevel.checkpoint()
        return
    task = trio.lowlevel.current_task()
    token = trio.lowlevel.current_trio_token()
    waiting = True

    def wake() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            trio.lowlevel.reschedule(task)

    def on_ready(_future: Any) -> None:  # on the network thread
        try:
            token.run_sync_soon(wake)
        except trio.RunFinishedError:  # nobody waits any more
            return

    def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
        nonlocal waiting
        waiting = False
        future.cancel()
        return trio.lowlevel.Abort.SUCCEEDED

    future.on_ready(on_ready)
    await trio.lowlevel.wait_task_rescheduled(abort)
