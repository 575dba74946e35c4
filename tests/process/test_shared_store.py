"""What the shared store, a fixture of other tests, does when something breaks. That it is a store: tests/conformance."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from fs3.errors import Code, FS3Error
from fs3.kv.memory import MemoryEngine
from tests.process.harness import REPOSITORY
from tests.process.shared_store import IDLE_S, SharedEngine, StoreServer


@asynccontextmanager
async def serving(path: Path, server: StoreServer) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, path)
        yield
        nursery.cancel_scope.cancel()


class BreaksInCommits(StoreServer):
    """Commits, or does not, and hangs up."""

    applies = True

    async def _do(
        self, key: bytes, known: bool, operations: tuple[tuple[object, ...], ...], question: tuple[object, ...]
    ) -> object:
        if question[0] == "commit":
            if self.applies:
                await super()._do(key, known, operations, question)
            raise EOFError
        return await super()._do(key, known, operations, question)


@pytest.mark.parametrize("applies", [True, False])
async def test_a_connection_that_breaks_in_a_commit_leaves_it_unknown(tmp_path: Path, applies: bool) -> None:
    server = BreaksInCommits(MemoryEngine())
    server.applies = applies
    async with serving(tmp_path / "socket", server):
        engine = SharedEngine(tmp_path / "socket")
        txn = engine.transaction()
        txn.set(b"a", b"1")
        with pytest.raises(FS3Error) as caught:
            await txn.commit()
        assert caught.value.code is Code.COMMIT_UNKNOWN
        assert await engine.transaction().get(b"a") == (b"1" if applies else None)
        await engine.aclose()


async def test_one_cancelled_half_way_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    async with serving(tmp_path / "socket", StoreServer(MemoryEngine())):
        engine = SharedEngine(tmp_path / "socket")
        txn = engine.transaction()
        txn.set(b"a", b"1")
        await txn.commit()
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.transaction().get(b"a")
        assert await engine.transaction().get(b"b") is None
        await engine.aclose()


async def test_a_transaction_that_was_forgotten_is_too_old(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Begun anew it would conflict with nothing that it has read."""
    async with serving(tmp_path / "socket", StoreServer(MemoryEngine())):
        engine = SharedEngine(tmp_path / "socket")
        txn = engine.transaction()
        await txn.get(b"a")
        txn.set(b"b", b"1")
        await trio.sleep(2 * IDLE_S)
        with pytest.raises(FS3Error) as caught:
            await txn.commit()
        assert caught.value.code is Code.TRANSACTION_TOO_OLD
        await engine.aclose()


@pytest.mark.process
def test_a_server_that_was_killed_goes_on_with_what_was_committed(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.process.programs.store_server", str(tmp_path / "kv"), str(tmp_path / "socket")]
    for life in range(2):
        with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            trio.run(_write if life == 0 else _read, tmp_path / "socket", server.kill)


async def _write(path: Path, kill: Callable[[], None]) -> None:
    engine = SharedEngine(path)
    txn = engine.transaction()
    txn.set(b"a", b"1")
    await txn.commit()
    kill()
    with pytest.raises(FS3Error) as caught:
        while True:
            await engine.transaction().get(b"a")
    assert caught.value.code is Code.KV_UNAVAILABLE
    await engine.aclose()


async def _read(path: Path, kill: Callable[[], None]) -> None:
    engine = SharedEngine(path)
    assert await engine.transaction().get(b"a") == b"1"
    await engine.aclose()
    kill()
