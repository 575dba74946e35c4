"""Checks of key-value engines: the life of a transaction, transact, several tasks."""

from __future__ import annotations

import trio

from ..errors import Code, FS3Error
from ..kv.base import KVEngine, Txn
from ..kv.transact import transact
from .kv_kit import Check, Store, commits, raises, read, read_all, refuses, write

CHECKS: list[Check] = []


# The life of a transaction.


@CHECKS.append
async def reset_forgets_reads_and_writes(store: Store) -> None:
    txn = store.engine.transaction()
    await txn.get(b"a")
    txn.set(b"b", b"1")
    txn.add_write_conflict_range(b"x", b"y")
    await write(store, (b"a", b"1"))
    txn.reset()
    other = store.engine.transaction()
    await other.get(b"x")
    txn.set(b"c", b"1")
    assert await commits(txn)
    other.set(b"d", b"1")
    assert await commits(other)
    assert await read_all(store) == [(b"a", b"1"), (b"c", b"1"), (b"d", b"1")]


@CHECKS.append
async def a_transaction_ends_with_its_commit(store: Store) -> None:
    done, failed = store.engine.transaction(), store.engine.transaction()
    await failed.get(b"a")
    for txn in (done, failed):
        txn.set(b"a", b"1")
    assert await commits(done)
    assert not await commits(failed)
    for txn in (done, failed):
        with refuses():
            await txn.get(b"a")
        with refuses():
            await txn.get_range(b"a", b"b")
        with refuses():
            txn.set(b"a", b"2")
        with refuses():
            txn.clear_range(b"a", b"b")
        with refuses():
            await txn.commit()
        txn.reset()
        assert await txn.get(b"a") == b"1"
        txn.set(b"b", b"2")
        assert await commits(txn)


@CHECKS.append
async def a_closed_store_is_unavailable(store: Store) -> None:
    await write(store, (b"a", b"1"))
    open_before = store.engine.transaction()
    await store.engine.sync()
    await store.engine.aclose()
    await store.engine.aclose()
    with raises(Code.KV_UNAVAILABLE):
        await store.engine.sync()
    for txn in (open_before, store.engine.transaction()):
        with raises(Code.KV_UNAVAILABLE):
            txn.set(b"a", b"2")
            await txn.get(b"b")
        with raises(Code.KV_UNAVAILABLE):
            txn.set(b"a", b"2")
            await txn.commit()


# Several tasks.


@CHECKS.append
async def read_modify_write_loses_nothing(store: Store) -> None:
    async def increment() -> None:
        async def body(txn: Txn) -> None:
            value = int(await txn.get(b"n") or b"0")
            await trio.lowlevel.checkpoint()
            txn.set(b"n", b"%d" % (value + 1))

        for _ in range(5):
            await transact(store.engine, body, env=store.env, idempotent=False)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(increment)
    assert await read(store, b"n") == b"25"


@CHECKS.append
async def transfers_keep_the_sum(store: Store) -> None:
    accounts = [b"account %d" % number for number in range(4)]
    await write(store, *((account, b"100") for account in accounts))

    async def transfer(source: bytes, target: bytes) -> None:
        async def body(txn: Txn) -> None:
            sums = [int(value) for _, value in await txn.get_range(b"account", b"b", snapshot=True)]
            assert sum(sums) == 400
            amount = int(await txn.get(source) or b"0") // 3
            txn.set(source, b"%d" % (int(await txn.get(source) or b"0") - amount))
            await trio.lowlevel.checkpoint()
            txn.set(target, b"%d" % (int(await txn.get(target) or b"0") + amount))

        for _ in range(5):
            await transact(store.engine, body, env=store.env)

    async with trio.open_nursery() as nursery:
        for number, source in enumerate(accounts):
            nursery.start_soon(transfer, source, accounts[(number + 1) % 4])
            nursery.start_soon(transfer, source, accounts[(number + 2) % 4])
    assert sum(int(value) for _, value in await read_all(store)) == 400


# transact.


class _UnsureTxn(Txn):
    """A transaction whose commit says that its result is unknown."""

    def __init__(self, txn: Txn, applied: bool) -> None:
        self._txn = txn
        self._applied = applied

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        return await self._txn.get(key, snapshot=snapshot)

    async def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return await self._txn.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot)

    def set(self, key: bytes, value: bytes) -> None:
        self._txn.set(key, value)

    def clear(self, key: bytes) -> None:
        self._txn.clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        self._txn.clear_range(begin, end)

    def atomic_add(self, key: bytes, delta: int) -> None:
        self._txn.atomic_add(key, delta)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        self._txn.add_read_conflict_range(begin, end)

    def add_write_conflict_range(self, begin: bytes, end: bytes) -> None:
        self._txn.add_write_conflict_range(begin, end)

    async def commit(self) -> None:
        if self._applied:
            await self._txn.commit()
        raise FS3Error(Code.COMMIT_UNKNOWN, "as the check wants it")

    def reset(self) -> None:
        self._txn.reset()


class _UnsureEngine(KVEngine):
    """An engine whose first commit ends with an unknown result, whether applied or not."""

    def __init__(self, engine: KVEngine, applied: bool) -> None:
        self._engine = engine
        self._applied = applied
        self.transactions = 0

    def transaction(self) -> Txn:
        self.transactions += 1
        txn = self._engine.transaction()
        return _UnsureTxn(txn, self._applied) if self.transactions == 1 else txn

    async def sync(self) -> None:
        await self._engine.sync()

    async def aclose(self) -> None:
        await self._engine.aclose()


async def _append_once(txn: Txn) -> bytes:
    """Append to a log unless that was recorded: idempotent."""
    log = await txn.get(b"log") or b""
    if await txn.get(b"done") is None:
        log += b"x"
        txn.set(b"log", log)
        txn.set(b"done", b"")
    return log


@CHECKS.append
async def an_unknown_commit_is_tried_again_only_if_idempotent(store: Store) -> None:
    for applied in (True, False):
        await write(store, (b"log", None), (b"done", None))
        engine = _UnsureEngine(store.engine, applied)
        assert await transact(engine, _append_once, env=store.env, idempotent=True) == b"x"
        assert engine.transactions == 2
        assert await read(store, b"log") == b"x"

        await write(store, (b"log", None), (b"done", None))
        engine = _UnsureEngine(store.engine, applied)
        with raises(Code.COMMIT_UNKNOWN):
            await transact(engine, _append_once, env=store.env)
        assert engine.transactions == 1
        assert await read(store, b"log") == (b"x" if applied else None)


@CHECKS.append
async def retries_are_bounded(store: Store) -> None:
    runs = 0

    async def always_conflicts(txn: Txn) -> None:
        nonlocal runs
        runs += 1
        await txn.get(b"a")
        await write(store, (b"a", b"%d" % runs))
        txn.set(b"b", b"")

    with raises(Code.CONFLICT):
        await transact(store.engine, always_conflicts, env=store.env, attempts_max=4)
    assert runs == 4
    with raises(Code.CONFLICT):
        await transact(store.engine, always_conflicts, env=store.env, deadline=store.env.monotonic())
    assert runs == 5
    assert await read(store, b"b") is None


@CHECKS.append
async def transact_returns_commits_and_composes(store: Store) -> None:
    async def inner(txn: Txn) -> bytes | None:
        txn.set(b"inner", b"1")
        return await txn.get(b"outer")

    async def outer(txn: Txn) -> bytes | None:
        txn.set(b"outer", b"1")
        found = await transact(txn, inner, env=store.env)
        assert await read(store, b"inner") is None  # not committed by itself
        return found

    assert await transact(store.engine, outer, env=store.env) == b"1"
    assert await read_all(store) == [(b"inner", b"1"), (b"outer", b"1")]


@CHECKS.append
async def a_body_that_fails_writes_nothing(store: Store) -> None:
    runs = 0

    async def body(txn: Txn) -> None:
        nonlocal runs
        runs += 1
        txn.set(b"a", b"1")
        raise FS3Error(Code.NOT_FOUND, "as the check wants it")

    with raises(Code.NOT_FOUND):
        await transact(store.engine, body, env=store.env)
    assert runs == 1
    assert await read_all(store) == []
