"""Advisory locks at meta: who excludes whom, and how they end."""

from __future__ import annotations

from itertools import count

import pytest
import trio

from fs3.api.meta import Caller, FileKind
from fs3.api.meta_admin import PRUNE_SESSIONS, PruneSessionsRequest
from fs3.api.meta_locks import (
    GET_LOCK,
    LIST_LOCKS,
    LOCK,
    LOCK_END,
    GetLockRequest,
    ListLocksRequest,
    LockMode,
    LockRequest,
)
from fs3.errors import Code
from fs3.kv.memory import MemoryEngine
from tests.unit.meta.world import ALICE, CAROL, CLIENT, ROOT, Cluster, R, World, refused, world

SHARED, EXCLUSIVE, UNLOCKED = LockMode.SHARED, LockMode.EXCLUSIVE, LockMode.UNLOCKED
OTHER = CLIENT + 1


async def ask(
    w: World,
    inode: int,
    owner: int,
    mode: LockMode,
    start: int = 0,
    end: int = LOCK_END,
    client: int = CLIENT,
    caller: Caller = ROOT,
) -> bool:
    """Whether it is granted."""
    reply = await w.call(LOCK, LockRequest(w.tag(), caller, client, inode, owner, mode, start, end))
    return reply.holder is None


@pytest.mark.parametrize(
    ("there", "wanted", "granted"),
    [
        ((SHARED, 0, 10), (SHARED, 5, 15), True),
        ((SHARED, 0, 10), (EXCLUSIVE, 9, 15), False),
        ((EXCLUSIVE, 0, 10), (SHARED, 0, 1), False),
        ((EXCLUSIVE, 0, 10), (EXCLUSIVE, 10, 20), True),
        ((EXCLUSIVE, 10, 20), (EXCLUSIVE, 0, 10), True),
        ((EXCLUSIVE, 10, 20), (EXCLUSIVE, 0, LOCK_END), False),
    ],
)
async def test_who_excludes_whom(there: tuple[LockMode, int, int], wanted: tuple[LockMode, int, int], granted: bool) -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        assert await ask(w, inode, 1, *there)
        tested = await w.call(GET_LOCK, GetLockRequest(inode, 2, *wanted))
        assert (tested.holder is None) == granted
        assert await ask(w, inode, 2, *wanted) == granted
        if not granted:
            assert tested.holder is not None and tested.holder.owner == 1 and tested.holder.client == CLIENT
            assert await ask(w, inode, 1, UNLOCKED)
            assert await ask(w, inode, 2, *wanted)
        assert await ask(w, (await w.mkdir(R, b"d")).inode, 2, EXCLUSIVE), "another inode, a directory"


async def test_a_lock_is_changed_in_place_or_stays_as_it_was() -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        assert await ask(w, inode, 1, EXCLUSIVE)
        assert await ask(w, inode, 1, SHARED)
        assert await ask(w, inode, 2, SHARED, client=OTHER)
        assert not await ask(w, inode, 1, EXCLUSIVE)
        found = (await w.call(LIST_LOCKS, ListLocksRequest())).locks
        assert [(lock.client, lock.owner, lock.mode) for lock in found] == [(CLIENT, 1, SHARED), (OTHER, 2, SHARED)]
        assert [lock.owner for lock in (await w.call(LIST_LOCKS, ListLocksRequest(client=OTHER))).locks] == [2]
        first = await w.call(LIST_LOCKS, ListLocksRequest(limit=1, inode=inode))
        rest = await w.call(LIST_LOCKS, ListLocksRequest(first.after, inode=inode))
        assert [lock.owner for lock in first.locks + rest.locks] == [1, 2] and not rest.after


async def test_rights_and_nonsense() -> None:
    async with world() as w:
        file = await w.file(R, b"f", mode=0o640)
        await w.setattr(file.inode, uid=ALICE.uid, gid=50)
        assert await ask(w, file.inode, 1, EXCLUSIVE, caller=ALICE)
        async with refused(Code.PERMISSION_DENIED):
            await ask(w, file.inode, 2, SHARED, caller=CAROL)
        for start, end in ((5, 5), (-1, 5), (0, LOCK_END + 1)):
            async with refused(Code.INVALID):
                await ask(w, file.inode, 2, SHARED, start, end)
        async with refused(Code.STALE_HANDLE):
            await ask(w, 12345, 1, SHARED)
        assert await ask(w, 12345, 1, UNLOCKED), "whoever ends a lock wants it ended"


async def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meta.ops.lock.LOCKS_MAX", 3)
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        for owner in range(1, 4):
            assert await ask(w, inode, owner, SHARED)
        async with refused(Code.NO_LOCKS):
            await ask(w, inode, 4, SHARED)


async def test_locks_go_with_their_inode() -> None:
    async with world() as w:
        for name, kind in ((b"f", FileKind.FILE), (b"d", FileKind.DIRECTORY)):
            inode = (await w.mknod(R, name, kind, 0o755)).inode
            assert await ask(w, inode, 1, SHARED) and await ask(w, inode, 2, SHARED)
            await (w.unlink if kind is FileKind.FILE else w.rmdir)(R, name)
            assert await w.keys(b"LOCK") == []


async def test_locks_of_a_dead_client_end_after_its_grace(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(clients={CLIENT: True, OTHER: False})
    async with world(cluster=cluster, collecting=True) as w:
        inode = (await w.file(R, b"f")).inode
        assert await ask(w, inode, 1, EXCLUSIVE, 0, 10)
        assert await ask(w, inode, 2, EXCLUSIVE, 10, 20, client=OTHER)
        began = trio.current_time()
        while (await w.call(GET_LOCK, GetLockRequest(inode, 3, EXCLUSIVE, 10, 20, 2_000))).holder:
            assert trio.current_time() < began + 20
        assert [lock.owner for lock in (await w.call(LIST_LOCKS, ListLocksRequest())).locks] == [1]
        cluster.clients[CLIENT] = False
        cluster.ended.add(CLIENT)
        assert (await w.call(PRUNE_SESSIONS, PruneSessionsRequest(CLIENT))).ended == 1
        assert await w.keys(b"LOCK") == []


async def test_who_waits_is_told_by_the_same_daemon_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        assert await ask(w, inode, 1, EXCLUSIVE)
        began = trio.current_time()
        assert (await w.call(GET_LOCK, GetLockRequest(inode, 2, SHARED, wait_ms=900))).holder
        assert trio.current_time() == pytest.approx(began + 0.9)

        async def unlock() -> None:
            await trio.sleep(0.3)
            await ask(w, inode, 1, UNLOCKED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(unlock)
            began = trio.current_time()
            assert (await w.call(GET_LOCK, GetLockRequest(inode, 2, SHARED, wait_ms=900))).holder is None
            assert trio.current_time() == pytest.approx(began + 0.3)


async def test_many_at_once_by_two_daemons_exclude_each_other(autojump_clock: trio.testing.MockClock) -> None:
    """Each adds one to a number that all of them read and write; a lock that two have at once loses a step."""
    engine = MemoryEngine()
    value = 0
    numbers = count(1)
    async with world(engine) as one, world(engine) as two:
        inode = (await one.file(R, b"f")).inode

        async def work(w: World) -> None:
            nonlocal value
            for _ in range(5):
                owner = next(numbers)
                while not await ask(w, inode, owner, EXCLUSIVE):
                    await w.call(GET_LOCK, GetLockRequest(inode, owner, EXCLUSIVE, wait_ms=1000))
                before = value
                await trio.sleep(0.01)
                value = before + 1
                await ask(w, inode, owner, UNLOCKED)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(work, one)
                nursery.start_soon(work, two)
    assert value == 40
