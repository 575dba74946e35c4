"""The embedded engine: what it keeps for open transactions, durability, faults of the disk, its directory."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fs3.errors import Code, FS3Error
from fs3.kv.base import TRANSACTION_SIZE_MAX, VALUE_SIZE_MAX
from fs3.kv.embedded import FLUSH_INTERVAL_MS, EmbeddedEngine

FORMAT = "fs3 embedded key-value store, format "


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine.open(tmp_path / "kv")
    yield engine
    await engine.aclose()


class Disk:
    """RocksDB, but for the calls that a test replaces: counts syncs, lets them wait, breaks."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.syncs = 0
        self.broken: str | None = None
        self.may_sync = threading.Event()
        self.may_sync.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)

    def flush_wal(self, sync: bool) -> None:
        assert sync
        assert self.may_sync.wait(10)
        self.check("flush_wal")
        self.syncs += 1
        self.db.flush_wal(sync)

    def write(self, batch: Any) -> None:
        self.check("write")
        self.db.write(batch)

    def get(self, key: bytes) -> Any:
        self.check("get")
        return self.db.get(key)

    def iter(self, *options: Any) -> Any:
        self.check("iter")
        return self.db.iter(*options)

    def check(self, call: str) -> None:
        if self.broken == call:
            raise Exception("IO error: no such luck")


@pytest.fixture
def disk(engine: EmbeddedEngine) -> Disk:
    disk = Disk(engine._db)
    engine._db = disk
    return disk


async def put(engine: EmbeddedEngine, key: bytes, value: bytes = b"") -> None:
    txn = engine.transaction()
    txn.set(key, value)
    await txn.commit()


# What open transactions cost.


async def test_a_transaction_alone_keeps_no_state(engine: EmbeddedEngine) -> None:
    head = engine._head
    for _ in range(3):
        txn = engine.transaction()
        await txn.get(b"a")
        txn.set(b"a", b"1")
        await txn.commit()
    assert engine._head is head and not engine._past


async def test_what_no_transaction_needs_is_freed(engine: EmbeddedEngine) -> None:
    old = engine.transaction()
    await old.get(b"a")
    await put(engine, b"first")
    first = weakref.ref(engine._past[0]())  # type: ignore[arg-type]
    for number in range(10):
        await put(engine, b"k%d" % number)
    chain = engine._past[0]().written  # type: ignore[union-attr]
    count = 0
    while chain is not None and chain.next is not None:
        chain, count = chain.next, count + 1
    assert count == 11
    del old, chain
    gc.collect()
    assert first() is None
    await put(engine, b"last")
    assert not engine._past


async def test_a_forgotten_transaction_keeps_its_state_for_its_age_only(tmp_path: Path) -> None:
    now = 0.0
    engine = EmbeddedEngine.open(tmp_path / "kv", lambda: now)
    forgotten = engine.transaction()
    await forgotten.get(b"a")
    await put(engine, b"a")
    view = engine._past[0]()
    assert view is not None and view.iterator is not None
    now = 4.9
    await put(engine, b"b")
    assert view.iterator is not None
    now = 5.1
    await put(engine, b"c")
    assert view.iterator is None and view.written is None and not engine._past
    with pytest.raises(FS3Error, match="TRANSACTION_TOO_OLD"):
        await forgotten.get(b"a")
    await engine.aclose()


async def test_a_long_window_is_freed_without_recursion(engine: EmbeddedEngine) -> None:
    old = engine.transaction()
    await old.get(b"a")
    for _ in range(20_000):
        await put(engine, b"k")
    old.set(b"b", b"")
    await old.commit()
    del old
    await put(engine, b"k")
    assert not engine._past


async def test_overwritten_values_count_once_for_the_size(engine: EmbeddedEngine) -> None:
    txn = engine.transaction()
    for number in range(3 * TRANSACTION_SIZE_MAX // VALUE_SIZE_MAX):
        txn.set(b"k%d" % (number % 50), bytes(VALUE_SIZE_MAX))
    await txn.commit()
    assert len(await engine.transaction().get_range(b"", b"\xff")) == 50


# Durability.


async def test_the_flusher_makes_commits_durable_soon(
    engine: EmbeddedEngine, disk: Disk, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    began = []

    async def run_inline(function: Any, *arguments: Any, limiter: object) -> None:
        began.append(trio.current_time())  # the virtual clock would not wait for a thread
        function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", run_inline)
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            await trio.sleep(10)
            assert began == []  # nothing to do
            await put(engine, b"a")
            await put(engine, b"b")
            await trio.sleep(5)
            await put(engine, b"c")
            await trio.sleep(5)
            assert began == pytest.approx([10 + FLUSH_INTERVAL_MS / 1000, 15 + FLUSH_INTERVAL_MS / 1000])
            nursery.cancel_scope.cancel()


async def test_concurrent_syncs_share_one(engine: EmbeddedEngine, disk: Disk) -> None:
    await engine.sync()
    assert disk.syncs == 0  # nothing was committed
    await put(engine, b"a")
    disk.may_sync.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.sync)
        await trio.testing.wait_all_tasks_blocked()
        await put(engine, b"b")  # the sync under way does not cover this one
        for _ in range(20):
            nursery.start_soon(engine.sync)
        await trio.testing.wait_all_tasks_blocked()
        disk.may_sync.set()
    assert disk.syncs == 2
    await engine.sync()
    assert disk.syncs == 2


async def test_a_cancelled_sync_leaves_the_others_to_it(engine: EmbeddedEngine, disk: Disk) -> None:
    await put(engine, b"a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await engine.sync()
    assert disk.syncs == 0
    await engine.sync()
    assert disk.syncs == 1


@pytest.mark.expects_error_log
async def test_a_failed_sync_makes_the_store_unavailable(
    engine: EmbeddedEngine, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    await put(engine, b"a", b"1")
    open_txn = engine.transaction()
    await open_txn.get(b"a")
    disk.broken = "flush_wal"
    with pytest.raises(FS3Error, match=r"KV_UNAVAILABLE: .*cannot sync its log: IO error"):
        await engine.sync()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    disk.broken = None
    for operation in (engine.sync, lambda: put(engine, b"b"), lambda: open_txn.get(b"a"), open_txn.commit, engine.run):
        with pytest.raises(FS3Error, match="KV_UNAVAILABLE"):
            await operation()


@pytest.mark.expects_error_log
async def test_a_failed_write_leaves_the_result_unknown_and_ends_the_flusher(
    engine: EmbeddedEngine, disk: Disk, autojump_clock: object
) -> None:
    failures = []

    async def run() -> None:
        try:
            await engine.run()
        except FS3Error as error:
            failures.append(error.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        disk.broken = "write"
        with pytest.raises(FS3Error, match=r"COMMIT_UNKNOWN: .*cannot be written: IO error"):
            await put(engine, b"a")
    assert failures == [Code.KV_UNAVAILABLE]


@pytest.mark.expects_error_log
@pytest.mark.parametrize("call", ["get", "iter"])
async def test_a_failed_read_is_not_taken_for_absence(engine: EmbeddedEngine, disk: Disk, call: str) -> None:
    await put(engine, b"a", b"1")
    disk.broken = call
    txn = engine.transaction()
    with pytest.raises(FS3Error, match=r"KV_UNAVAILABLE: .*cannot be read: IO error"):
        await (txn.get(b"a") if call == "get" else txn.get_range(b"", b"\xff"))


async def test_close_waits_for_the_sync_under_way(engine: EmbeddedEngine, disk: Disk) -> None:
    await put(engine, b"a")
    disk.may_sync.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_swallow, engine.sync)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(engine.aclose)
        await trio.testing.wait_all_tasks_blocked()
        assert disk.syncs == 0 and engine._db is disk
        disk.may_sync.set()
    assert disk.syncs == 1 and engine._db is None


async def _swallow(operation: Any) -> None:
    try:
        await operation()
    except FS3Error as error:
        assert error.code is Code.KV_UNAVAILABLE


# The directory.


async def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    values = {b"k%d" % number: random.Random(number).randbytes(100) for number in range(100)}
    engine = EmbeddedEngine.open(tmp_path / "new" / "kv")
    for key, value in values.items():
        await put(engine, key, value)
    reader = engine.transaction()
    await reader.get(b"k1")
    await put(engine, b"k1", values[b"k1"])  # an open view does not keep the store open
    await engine.aclose()
    engine = EmbeddedEngine.open(tmp_path / "new" / "kv")
    assert dict(await engine.transaction().get_range(b"", b"\xff")) == values
    await engine.aclose()
    assert (tmp_path / "new" / "kv" / "FORMAT").read_text() == FORMAT + "1\n"


async def test_a_store_is_open_once(engine: EmbeddedEngine, tmp_path: Path) -> None:
    with pytest.raises(FS3Error, match=r"BUSY: the store .*/kv is already open in process \d+") as raised:
        EmbeddedEngine.open(tmp_path / "kv")
    assert not raised.value.retryable
    await put(engine, b"a")


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text(FORMAT + "2\n")
    with pytest.raises(FS3Error, match=rf"FORMAT_VERSION: {tmp_path}/FORMAT says format 2; .* knows 1 at most"):
        EmbeddedEngine.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["FORMAT"]


@pytest.mark.parametrize("content", [b"", b"something else\n", b"\xff\xfe"])
def test_a_foreign_format_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "FORMAT").write_bytes(content)
    with pytest.raises(FS3Error, match=f"{tmp_path}/FORMAT"):
        EmbeddedEngine.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["FORMAT"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("")
    with pytest.raises(FS3Error, match=f"IO: .*{tmp_path}/kv"):
        EmbeddedEngine.open(tmp_path / "kv")


def test_a_directory_that_cannot_be_made() -> None:
    with pytest.raises(FS3Error, match="IO: cannot use the store directory /proc/kv"):
        EmbeddedEngine.open(Path("/proc/kv"))


async def test_a_damaged_store_is_not_made_anew(engine: EmbeddedEngine, tmp_path: Path) -> None:
    await put(engine, b"a")
    await engine.aclose()
    current = tmp_path / "kv" / "rocksdb" / "CURRENT"
    current.rename(tmp_path / "kept")
    with pytest.raises(FS3Error, match=r"IO: cannot open the store .*/kv, which may be damaged"):
        EmbeddedEngine.open(tmp_path / "kv")
    (tmp_path / "kept").rename(current)
    again = EmbeddedEngine.open(tmp_path / "kv")  # the failed attempt left no lock
    assert await again.transaction().get(b"a") == b""
    await again.aclose()


async def test_an_interrupted_making_is_finished(engine: EmbeddedEngine, tmp_path: Path) -> None:
    await engine.aclose()
    (tmp_path / "kv" / "FORMAT").unlink()
    again = EmbeddedEngine.open(tmp_path / "kv")
    assert await again.transaction().get_range(b"", b"\xff") == []
    await again.aclose()
    assert (tmp_path / "kv" / "FORMAT").exists()
