"""Locks between clients of a whole cluster in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from fs3.api.meta import FileKind
from fs3.api.meta_locks import LOCK, LockMode, LockRequest
from fs3.client.file import ROOT_CALLER, FileClient
from fs3.client.locks import Lock
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from tests.unit.client.live import Live


@pytest.fixture
async def clients(tmp_path: Path) -> AsyncIterator[tuple[FileClient, FileClient, int]]:
    """Two clients, and a file."""
    async with (
        Live(tmp_path, storages=1, replicas=1).running() as live,
        live.client() as one,
        live.client() as other,
    ):
        made = await one.mknod(ROOT_CALLER, ROOT_INODE, b"f", FileKind.FILE, 0o644)
        yield one, other, made.inode


async def refused(client: FileClient, inode: int, **what: bool | int) -> bool:
    try:
        lock = await client.locks.acquire(ROOT_CALLER, inode, timeout_s=0, **what)  # type: ignore[arg-type]
    except FS3Error as error:
        assert error.code is Code.BUSY
        return True
    await lock.release()
    return False


async def test_they_exclude_each_other(clients: tuple[FileClient, FileClient, int]) -> None:
    one, other, inode = clients
    async with one.locks.hold(ROOT_CALLER, inode) as lock:
        assert lock.is_held()
        assert await refused(other, inode) and await refused(one, inode, shared=True)
        holder = await other.locks.holder(inode, shared=True)
        assert holder is not None and (holder.client, holder.owner) == (one.node, lock.owner)
        await lock.convert(shared=True)
        assert await refused(other, inode) and not await refused(other, inode, shared=True)
        async with other.locks.hold(ROOT_CALLER, inode, shared=True):
            with pytest.raises(FS3Error):
                await lock.convert(shared=False, timeout_s=0.01)
            assert lock.is_held() and lock.mode is LockMode.SHARED
    assert not lock.is_held() and not await refused(other, inode)
    assert await other.locks.holder(inode) is None
    async with one.locks.hold(ROOT_CALLER, inode, start=0, end=10):
        assert await refused(other, inode, start=9, end=20) and not await refused(other, inode, start=10, end=20)


async def test_who_waits_gets_it_and_who_gives_up_leaves_nothing(clients: tuple[FileClient, FileClient, int]) -> None:
    one, other, inode = clients
    order: list[str] = []

    async def wait() -> None:
        async with other.locks.hold(ROOT_CALLER, inode, timeout_s=30):
            order.append("other")

    async with trio.open_nursery() as nursery, one.locks.hold(ROOT_CALLER, inode):
        nursery.start_soon(wait)
        with pytest.raises(FS3Error, match=f"locked by client {one.node}"):
            await other.locks.acquire(ROOT_CALLER, inode, timeout_s=0.02)
        with trio.move_on_after(0.02):
            await other.locks.acquire(ROOT_CALLER, inode)
        order.append("one")
    assert order == ["one", "other"]
    assert await one.locks.holder(inode) is None


async def test_a_grant_whose_reply_was_lost_does_not_stay(clients: tuple[FileClient, FileClient, int]) -> None:
    one, other, inode = clients
    ask = one.locks._ask

    async def lossy(lock: Lock, mode: LockMode) -> object:
        found = await ask(lock, mode)
        if mode is not LockMode.UNLOCKED:
            raise FS3Error(Code.DEADLINE_EXCEEDED, LOCK.name)
        return found

    one.locks._ask = lossy  # type: ignore[method-assign, assignment]
    with pytest.raises(FS3Error, match=LOCK.name):
        await one.locks.acquire(ROOT_CALLER, inode)
    assert not await refused(other, inode)


async def test_a_client_that_was_cut_off_knows_what_it_has(clients: tuple[FileClient, FileClient, int]) -> None:
    one, other, inode = clients
    lost = await one.locks.acquire(ROOT_CALLER, inode, start=0, end=10)
    kept = await one.locks.acquire(ROOT_CALLER, inode, start=10, end=20)
    before = one.locks.sure_until
    one.locks.sure_until = lambda: 0.0  # the lease has run out
    assert not lost.is_held() and not kept.is_held()
    await other.locks.meta.call(LOCK, _end_of(lost, one.node))  # as meta does with what a dead client has
    await one.locks.verify()
    one.locks.sure_until = before
    assert kept.is_held() and not lost.is_held()
    with pytest.raises(FS3Error, match="lost"):
        await lost.convert(shared=True)
    await lost.release()
    await kept.release()
    assert not await refused(other, inode)


def _end_of(lock: Lock, node: int) -> LockRequest:
    return LockRequest(lock.channel.next_tag(), ROOT_CALLER, node, lock.inode, lock.owner, LockMode.UNLOCKED)
