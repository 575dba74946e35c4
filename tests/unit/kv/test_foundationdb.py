"""The FoundationDB engine over a stand-in for its binding: the kit, waiting, cancelling, errors."""

from __future__ import annotations

import builtins
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.kv.base import KEY_SIZE_MAX
from fs3.kv.foundationdb import FoundationDBEngine
from fs3.testing.kv import CHECKS
from fs3.testing.kv_kit import Check, Store
from fs3.transport.memory import MemoryTransport
from tests.unit.kv.fake_fdb import FakeFDB

PREFIX = b"test/"


@pytest.fixture
def fdb(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFDB]:
    fake = FakeFDB()
    monkeypatch.setitem(sys.modules, "fdb", fake)
    yield fake
    fake.network.stop()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_kit(fdb: FakeFDB, check: Check) -> None:
    async def pass_time(seconds: float) -> None:
        fdb.network.now += seconds

    engine = FoundationDBEngine.open("/cluster", prefix=PREFIX)
    env = Env(transport=MemoryTransport(), random=random.Random(1))
    with trio.fail_after(30):
        await check(Store(engine, env, pass_time, KEY_SIZE_MAX - len(PREFIX)))
    assert fdb.versions == [730] and fdb.opened == ["/cluster"]
    outside = fdb.network.engine.transaction()
    assert await outside.get_range(b"", PREFIX) == []
    assert await outside.get_range(b"test0", b"\xff") == []


async def test_cancelling_a_wait_cancels_the_future(fdb: FakeFDB) -> None:
    txn = FoundationDBEngine.open(None).transaction()
    fdb.network.stalled = True
    with trio.move_on_after(0.01) as scope:
        await txn.get(b"a")
    assert scope.cancelled_caught
    assert fdb.network.futures[-1].cancelled
    await trio.testing.wait_all_tasks_blocked()  # the late wake-up finds nobody


def test_a_future_may_outlive_the_loop(fdb: FakeFDB, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        txn = FoundationDBEngine.open(None).transaction()
        fdb.network.stalled = True
        with trio.move_on_after(0.01):
            await txn.get(b"a")
        fdb.network.futures[-1].done = False  # as if its callback had not run yet

    trio.run(main)
    fdb.network.futures[-1].complete(None, None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "of_read", "of_commit", "retryable"),
    [
        (1007, Code.TRANSACTION_TOO_OLD, Code.TRANSACTION_TOO_OLD, True),
        (1020, Code.CONFLICT, Code.CONFLICT, True),
        (1021, Code.KV_UNAVAILABLE, Code.COMMIT_UNKNOWN, True),
        (1031, Code.KV_UNAVAILABLE, Code.COMMIT_UNKNOWN, True),
        (1037, Code.KV_UNAVAILABLE, Code.KV_UNAVAILABLE, True),
        (1039, Code.KV_UNAVAILABLE, Code.COMMIT_UNKNOWN, True),
        (2004, Code.KV_UNAVAILABLE, Code.KV_UNAVAILABLE, False),
        (2101, Code.TRANSACTION_TOO_LARGE, Code.TRANSACTION_TOO_LARGE, False),
        (2102, Code.KEY_TOO_LARGE, Code.KEY_TOO_LARGE, False),
        (2103, Code.VALUE_TOO_LARGE, Code.VALUE_TOO_LARGE, False),
    ],
)
async def test_errors(fdb: FakeFDB, number: int, of_read: Code, of_commit: Code, retryable: bool) -> None:
    engine = FoundationDBEngine.open(None)
    fdb.network.error = number
    for read in (lambda txn: txn.get(b"a"), lambda txn: txn.get_range(b"a", b"b", limit=1)):
        with pytest.raises(FS3Error, match=str(number)) as raised:
            await read(engine.transaction())
        assert (raised.value.code, raised.value.retryable) == (of_read, retryable)
    txn = engine.transaction()
    txn.set(b"a", b"")
    with pytest.raises(FS3Error, match=str(number)) as raised:
        await txn.commit()
    assert (raised.value.code, raised.value.retryable) == (of_commit, retryable)


async def test_an_unknown_error_of_a_read_is_not_retried(fdb: FakeFDB) -> None:
    fdb.network.error = 1510
    txn = FoundationDBEngine.open(None).transaction()
    with pytest.raises(FS3Error) as raised:
        await txn.get(b"a")
    assert raised.value.code is Code.KV_UNAVAILABLE and not raised.value.retryable


async def test_an_unknown_error_of_a_commit_leaves_the_result_unknown(fdb: FakeFDB) -> None:
    fdb.network.error = 1510
    txn = FoundationDBEngine.open(None).transaction()
    txn.set(b"a", b"")
    with pytest.raises(FS3Error) as raised:
        await txn.commit()
    assert raised.value.code is Code.COMMIT_UNKNOWN


async def test_a_commit_without_writes_asks_nobody(fdb: FakeFDB) -> None:
    txn = FoundationDBEngine.open(None).transaction()
    assert await txn.get(b"a") is None
    asked = len(fdb.network.futures)
    await txn.commit()
    assert len(fdb.network.futures) == asked


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"api_version": 720}, "720: expected 730 to 800"),
        ({"api_version": 801}, "801: expected 730 to 800"),
        ({"prefix": b"\xff"}, "below 0xff"),
        ({"prefix": b"p" * 300}, "256 bytes at most"),
        ({"cluster_file": "/absent"}, "/absent: 1515"),
    ],
)
def test_bad_arguments(fdb: FakeFDB, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(FS3Error, match=expected) as raised:
        FoundationDBEngine.open(**{"cluster_file": None, **arguments})
    assert raised.value.code is Code.CONFIG


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fdb", None)
    with pytest.raises(FS3Error, match="pip install") as raised:
        FoundationDBEngine.open(None)
    assert raised.value.code is Code.CONFIG


def test_the_library_is_missing(fdb: FakeFDB, monkeypatch: pytest.MonkeyPatch) -> None:
    def api_version(version: int) -> None:
        raise builtins.Exception("Unable to locate the FoundationDB API shared library!")

    monkeypatch.setattr(fdb, "api_version", api_version)
    with pytest.raises(FS3Error, match=r"libfdb_c\.so .*foundationdb-clients") as raised:
        FoundationDBEngine.open(None)
    assert raised.value.code is Code.CONFIG


def test_the_versions_do_not_fit(fdb: FakeFDB, monkeypatch: pytest.MonkeyPatch) -> None:
    def api_version(version: int) -> None:
        raise RuntimeError("API version 800 is not supported by the installed FoundationDB C library.")

    monkeypatch.setattr(fdb, "api_version", api_version)
    with pytest.raises(FS3Error, match="API version 800 is not supported"):
        FoundationDBEngine.open(None, api_version=800)
