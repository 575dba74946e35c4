"""Every key-value engine passes the one kit."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from fs3.env import Env
from fs3.kv.base import KEY_SIZE_MAX
from fs3.kv.embedded import EmbeddedEngine
from fs3.kv.foundationdb import FoundationDBEngine
from fs3.kv.memory import MemoryEngine
from fs3.testing.kv import CHECKS, check_kv
from fs3.testing.kv_kit import Check, Store
from fs3.transport.memory import MemoryTransport
from tests.process.shared_store import SharedEngine, StoreServer

CLUSTER_FILE = "FS3_TEST_FDB_CLUSTER_FILE"


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds


def env() -> Env:
    return Env(transport=MemoryTransport(), random=random.Random(1))


@asynccontextmanager
async def memory(_path: Path) -> AsyncIterator[Store]:
    clock = Clock()
    yield Store(MemoryEngine(clock), env(), clock.pass_time)


@asynccontextmanager
async def embedded(path: Path) -> AsyncIterator[Store]:
    clock = Clock()
    engine = EmbeddedEngine.open(path / "kv", clock)
    try:
        yield Store(engine, env(), clock.pass_time)
    finally:
        await engine.aclose()


@asynccontextmanager
async def shared(path: Path) -> AsyncIterator[Store]:
    """The fixture by which tests share a store between processes; server and client in this one."""
    clock = Clock()
    served = EmbeddedEngine.open(path / "kv", clock)
    engine = SharedEngine(path / "socket")
    async with trio.open_nursery() as nursery:
        await nursery.start(StoreServer(served).serve, path / "socket")
        yield Store(engine, env(), clock.pass_time)
        await engine.aclose()
        nursery.cancel_scope.cancel()
    await served.aclose()


@asynccontextmanager
async def foundationdb(_path: Path) -> AsyncIterator[Store]:
    """A key space of its own in a live cluster, removed afterwards."""
    cluster_file = os.environ[CLUSTER_FILE]
    prefix = b"fs3-test/" + secrets.token_hex(8).encode() + b"/"
    engine = FoundationDBEngine.open(cluster_file, prefix=prefix)
    try:
        yield Store(engine, env(), trio.sleep, KEY_SIZE_MAX - len(prefix))
    finally:
        cleaner = FoundationDBEngine.open(cluster_file, prefix=prefix)
        txn = cleaner.transaction()
        txn.clear_range(b"", b"\xff")
        await txn.commit()
        await engine.aclose()


NO_CLUSTER = pytest.mark.skipif(
    CLUSTER_FILE not in os.environ, reason=f"{CLUSTER_FILE} does not name the cluster file of a FoundationDB to test with"
)
ENGINES = [
    pytest.param(memory, id="memory"),
    pytest.param(embedded, id="embedded"),
    pytest.param(shared, id="shared"),
    pytest.param(foundationdb, id="foundationdb", marks=NO_CLUSTER),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", ENGINES)
async def test_engine(make: Callable[[Path], AbstractAsyncContextManager[Store]], check: Check, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with make(tmp_path) as store:
            await check(store)


async def test_the_kit_finds_an_engine_that_forgets_conflicts() -> None:
    class Careless(MemoryEngine):
        def _conflicts(self, version: int, read: object) -> bool:
            return False

    async def make() -> Store:
        clock = Clock()
        return Store(Careless(clock), env(), clock.pass_time)

    with pytest.raises(AssertionError):
        await check_kv(make)


async def test_the_kit_runs_as_one() -> None:
    async def make() -> Store:
        clock = Clock()
        return Store(MemoryEngine(clock), env(), clock.pass_time)

    await check_kv(make)
