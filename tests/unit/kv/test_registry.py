"""Stores by URL."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.kv.embedded import EmbeddedEngine
from fs3.kv.foundationdb import FoundationDBEngine
from fs3.kv.memory import MemoryEngine
from fs3.kv.registry import open_engine
from fs3.transport.memory import MemoryTransport


@pytest.fixture
def env() -> Env:
    return Env(transport=MemoryTransport())


async def test_memory(env: Env) -> None:
    async with open_engine("memory:", env) as engine:
        assert isinstance(engine, MemoryEngine)
        assert await engine.transaction().get(b"a") is None


@pytest.mark.parametrize("form", ["embedded:{}", "embedded://{}"])
async def test_embedded(env: Env, tmp_path: Path, form: str) -> None:
    url = form.format(tmp_path / "with%20space")
    async with open_engine(url, env) as engine:
        assert isinstance(engine, EmbeddedEngine)
        txn = engine.transaction()
        txn.set(b"a", b"1")
        await txn.commit()
    async with open_engine(url, env) as engine:
        assert await engine.transaction().get(b"a") == b"1"
    assert (tmp_path / "with space" / "FORMAT").exists()


async def test_the_blocks_error_comes_out_as_it_is(env: Env, tmp_path: Path) -> None:
    with pytest.raises(FS3Error, match="NOT_FOUND"):
        async with open_engine(f"embedded:{tmp_path}/kv", env):
            raise FS3Error(Code.NOT_FOUND)
    EmbeddedEngine.open(tmp_path / "kv")._directory.close()  # it was closed


@pytest.mark.expects_error_log
async def test_a_store_that_fails_ends_the_block(env: Env, tmp_path: Path, autojump_clock: object) -> None:
    ended = False
    with pytest.raises(FS3Error, match=r"KV_UNAVAILABLE: .*out of order"):
        async with open_engine(f"embedded:{tmp_path}/kv", env) as engine:
            assert isinstance(engine, EmbeddedEngine)
            await trio.testing.wait_all_tasks_blocked()
            engine.fail("out of order")
            await trio.sleep(1)
            ended = True
    assert not ended


async def test_a_cancelled_block_closes(env: Env, tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_engine(f"embedded:{tmp_path}/kv", env):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    EmbeddedEngine.open(tmp_path / "kv")._directory.close()


async def test_foundationdb(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def open_it(*arguments: object, **options: object) -> FoundationDBEngine:
        opened.append((*arguments, options))
        return FoundationDBEngine(None, object(), b"", 0)

    monkeypatch.setattr(FoundationDBEngine, "open", open_it)
    for url in ("fdb:", "fdb:/etc/fdb.cluster?prefix=a%20b%ff%2F&api_version=800&timeout_ms=5"):
        async with open_engine(url, env) as engine:
            assert isinstance(engine, FoundationDBEngine)
    assert opened == [
        (None, {"prefix": b"", "api_version": 730, "timeout_ms": 10_000}),
        ("/etc/fdb.cluster", {"prefix": b"a b\xff/", "api_version": 800, "timeout_ms": 5}),
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "expected memory:, embedded:DIRECTORY or fdb:CLUSTER_FILE"),
        ("/var/lib/kv", "expected memory:, embedded:DIRECTORY or fdb:CLUSTER_FILE"),
        ("mysql:x", "expected memory:, embedded:DIRECTORY or fdb:CLUSTER_FILE"),
        ("embedded:", "expected embedded:DIRECTORY"),
        ("embedded:/x?prefix=1", "expected embedded:DIRECTORY"),
        ("fdb:/x?prefex=1", "unknown option prefex"),
        ("fdb:/x?api_version=new", "must be whole numbers"),
        ("fdb:/x?prefix=ä", "other than ASCII"),
        ("fdb:/x?api_version=1", "expected 730 to 800"),
    ],
)
async def test_bad_urls(env: Env, url: str, expected: str) -> None:
    with pytest.raises(FS3Error, match=expected) as raised:
        async with open_engine(url, env):
            pass
    assert raised.value.code is Code.CONFIG
