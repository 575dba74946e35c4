"""A stand-in for the `fdb` package: the parts that the engine uses, with futures completed by another thread.

What the real one does inside the cluster, the memory engine does here, in a trio loop of the "network thread".
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn
from fs3.kv.memory import Hook, MemoryEngine

NUMBERS = {
    Code.CONFLICT: 1020,
    Code.COMMIT_UNKNOWN: 1021,
    Code.TRANSACTION_TOO_OLD: 1007,
    Code.TRANSACTION_TOO_LARGE: 2101,
    Code.KEY_TOO_LARGE: 2102,
    Code.VALUE_TOO_LARGE: 2103,
    Code.KV_UNAVAILABLE: 1037,
}
BATCH = 100
"""Rows of a range that come at once."""


class FDBError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    @property
    def description(self) -> str:
        return f"error {self.code}"


class Predicates:
    def is_retryable(self, error: FDBError) -> bool:
        return error.code in (1007, 1009, 1020, 1021, 1037, 1039)

    def is_maybe_committed(self, error: FDBError) -> bool:
        return error.code in (1021, 1039)

    def is_retryable_not_committed(self, error: FDBError) -> bool:
        return error.code in (1007, 1009, 1020, 1037)


class KeySelector:
    def __init__(self, key: bytes) -> None:
        self.key = key

    @classmethod
    def first_greater_or_equal(cls, key: bytes) -> KeySelector:
        return cls(key)

    @classmethod
    def first_greater_than(cls, key: bytes) -> KeySelector:
        return cls(key + b"\x00")


class StreamingMode:
    want_all = -2
    exact = 0


class KeyValue:
    def __init__(self, key: bytes, value: bytes) -> None:
        self.key = key
        self.value = value


class Future:
    """Completed on the network thread. Callbacks run there, or at once where it is complete already."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = False
        self.outcome: Any = None
        self.error: FDBError | None = None
        self.callbacks: list[Callable[[Future], None]] = []
        self.cancelled = False

    def is_ready(self) -> bool:
        return self.done

    def on_ready(self, callback: Callable[[Future], None]) -> None:
        with self.lock:
            if not self.done:
                self.callbacks.append(callback)
                return
        callback(self)

    def complete(self, outcome: Any, error: FDBError | None) -> None:
        with self.lock:
            if self.done:
                return
            self.outcome, self.error, self.done = outcome, error, True
        for callback in self.callbacks:
            callback(self)

    def cancel(self) -> None:
        self.cancelled = True
        self.complete(None, FDBError(1101))

    def wait(self) -> Any:
        assert self.done, "this would block the event loop"
        if self.error is not None:
            raise self.error
        return self.outcome

    @property
    def value(self) -> Any:
        return self.wait()


class Network:
    """The thread, and the store behind it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.engine = MemoryEngine(lambda: self.now)
        self.hook: Hook | None = None
        self.error: int | None = None
        """Fail all with this number."""
        self.stalled = False
        self.futures: list[Future] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._thread.start()
        self._started.wait()

    async def _run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._stop = trio.Event()
            self._started.set()
            await self._stop.wait()
            self._nursery.cancel_scope.cancel()

    def stop(self) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join()

    def do(self, action: Callable[[], Awaitable[Any]]) -> Future:
        future = Future()
        self.futures.append(future)

        async def act() -> None:
            if self.stalled:
                return
            try:
                if self.error is not None:
                    raise FDBError(self.error)
                outcome = await action()
            except FS3Error as error:
                future.complete(None, FDBError(NUMBERS[error.code]))
            except FDBError as error:
                future.complete(None, error)
            else:
                future.complete(outcome, None)

        self._token.run_sync_soon(self._nursery.start_soon, act)
        return future


class Options:
    def __init__(self) -> None:
        self.timeout_ms: int | None = None

    def set_timeout(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms


class Reader:
    def __init__(self, network: Network, txn: Txn, snapshot: bool) -> None:
        self.network = network
        self.txn = txn
        self.is_snapshot = snapshot

    def get(self, key: bytes) -> Future:
        return self.network.do(lambda: self.txn.get(key, snapshot=self.is_snapshot))

    def _get_range(
        self, begin: KeySelector, end: KeySelector, limit: int, mode: int, iteration: int, reverse: bool
    ) -> Future:
        assert iteration >= 1
        assert mode == (StreamingMode.exact if limit else StreamingMode.want_all)

        async def read() -> tuple[list[KeyValue], int, int]:
            rows = min(limit, BATCH) if limit else BATCH
            pairs = await self.txn.get_range(
                begin.key, end.key, limit=rows, reverse=bool(reverse), snapshot=self.is_snapshot
            )
            return [KeyValue(*pair) for pair in pairs], len(pairs), int(len(pairs) == rows)

        return self.network.do(read)


class Transaction(Reader):
    def __init__(self, network: Network) -> None:
        super().__init__(network, network.engine.transaction(), False)
        self.snapshot = Reader(network, self.txn, True)
        self.options = Options()

    def set(self, key: bytes, value: bytes) -> None:
        self.txn.set(key, value)

    def clear(self, key: bytes) -> None:
        self.txn.clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        assert begin <= end, "inverted_range"
        self.txn.clear_range(begin, end)

    def add(self, key: bytes, param: bytes) -> None:
        assert len(param) == 8
        self.txn.atomic_add(key, int.from_bytes(param, "little"))

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert begin <= end, "inverted_range"
        self.txn.add_read_conflict_range(begin, end)

    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None:
        assert begin <= end, "inverted_range"
        self.txn.add_write_conflict_range(begin, end)

    def commit(self) -> Future:
        return self.network.do(self.txn.commit)


class Database:
    def __init__(self, network: Network) -> None:
        self.network = network

    def create_transaction(self) -> Transaction:
        return Transaction(self.network)


class FakeFDB:
    """What `import fdb` gives."""

    FDBError = FDBError
    KeySelector = KeySelector
    StreamingMode = StreamingMode

    def __init__(self) -> None:
        self.predicates = Predicates()
        self.network = Network()
        self.versions: list[int] = []
        self.opened: list[str | None] = []

    def api_version(self, version: int) -> None:
        self.versions.append(version)

    def open(self, cluster_file: str | None) -> Database:
        self.opened.append(cluster_file)
        if cluster_file == "/absent":
            raise FDBError(1515)
        return Database(self.network)
