"""Advisory locks that hold between all clients of a cluster.

    async with client.locks.hold(caller, inode):
        ...  # nobody else has it

A lock ends when it is released, or when meta ends those of a client that is dead: some time after the client's lease ran
out. A client that is cut off knows that by its own clock before: is_held() says no then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ..api.meta import Caller
from ..api.meta_locks import (
    GET_LOCK,
    LIST_LOCKS,
    LOCK,
    LOCK_END,
    GetLockRequest,
    ListLocksRequest,
    LockInfo,
    LockMode,
    LockRequest,
)
from ..env import Env
from ..errors import Code, FS3Error
from .meta import MetaClient

logger = logging.getLogger("fs3.client.locks")

WAIT_MS = 1_000
WAITS_MAX = 16
"""Questions of one client that wait at meta; the others ask again and again."""
POLL_S = (0.1, 0.3)
RELEASE_S = 5.0
"""How long somebody who gave up waits for meta to know that."""


def _for_ever() -> float:
    return math.inf


class Lock:
    """A lock of the bytes start <= at < end of an inode. Made by Locks.acquire."""

    def __init__(self, locks: Locks, caller: Caller, inode: int, start: int, end: int) -> None:
        self.inode = inode
        self.start, self.end = start, end
        self.mode = LockMode.UNLOCKED
        self.owner = locks.env.random.getrandbits(63) | 1
        self.caller = caller
        self.channel = locks.meta.lane()
        self._locks = locks

    def is_held(self) -> bool:
        """Whether nobody else can have it: it was not released, nor lost while this client was cut off."""
        return self.mode is not LockMode.UNLOCKED and self._locks.env.monotonic() < self._locks.sure_until()

    async def convert(self, *, shared: bool, timeout_s: float | None = None) -> None:
        """Make it a shared or an exclusive one, waiting as acquire() does. Where that fails it is shared."""
        if self.mode is LockMode.UNLOCKED:
            raise FS3Error(Code.INVALID, "this lock was released, or lost")
        await self._locks.take(self, LockMode.SHARED if shared else LockMode.EXCLUSIVE, timeout_s)

    async def release(self) -> None:
        """End it; again is no error."""
        await self._locks.release(self)


class Locks:
    """The locks of one client."""

    def __init__(self, env: Env, meta: MetaClient, node: int) -> None:
        self.env = env
        self.meta = meta
        self.sure_until: Callable[[], float] = _for_ever
        """Until when (env.monotonic()) meta surely keeps what this client has, if no more heartbeat is answered."""
        self._node = node
        self._held: dict[int, Lock] = {}  # by owner
        self._leftover: list[Lock] = []  # given up, and meta may not know
        self._waiting = 0

    async def acquire(
        self,
        caller: Caller,
        inode: int,
        *,
        shared: bool = False,
        start: int = 0,
        end: int = LOCK_END,
        timeout_s: float | None = None,
    ) -> Lock:
        """Lock, waiting at most timeout_s for others (None: for as long as it takes). Who waits is served when the lock is
        free, in no order. Raises BUSY after timeout_s, PERMISSION_DENIED, STALE_HANDLE, NO_LOCKS."""
        await self._clean_up()
        lock = Lock(self, caller, inode, start, end)
        try:
            await self.take(lock, LockMode.SHARED if shared else LockMode.EXCLUSIVE, timeout_s)
        except BaseException:
            self._leftover.append(lock)  # the last request may have been done, or be done yet
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_S):
                await self._clean_up()
            raise
        self._held[lock.owner] = lock
        return lock

    @asynccontextmanager
    async def hold(
        self,
        caller: Caller,
        inode: int,
        *,
        shared: bool = False,
        start: int = 0,
        end: int = LOCK_END,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Lock]:
        """acquire(), and release() at the end."""
        lock = await self.acquire(caller, inode, shared=shared, start=start, end=end, timeout_s=timeout_s)
        try:
            yield lock
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_S):
                await self.release(lock)

    async def holder(self, inode: int, *, shared: bool = False, start: int = 0, end: int = LOCK_END) -> LockInfo | None:
        """Somebody whose lock is in the way of such a one; None where it is free."""
        mode = LockMode.SHARED if shared else LockMode.EXCLUSIVE
        return (await self.meta.call(GET_LOCK, GetLockRequest(inode, 0, mode, start, end))).holder

    async def take(self, lock: Lock, mode: LockMode, timeout_s: float | None) -> None:
        """Have a lock granted in this mode."""
        limit = math.inf if timeout_s is None else self.env.monotonic() + timeout_s
        if lock.mode is LockMode.EXCLUSIVE:
            lock.mode = mode  # others may share it before the reply is here
        while (found := await self._ask(lock, mode)) is not None:
            while found is not None:
                found = await self._wait(lock, mode, limit, found)
        lock.mode = mode

    async def release(self, lock: Lock) -> None:
        if lock.mode is LockMode.UNLOCKED:
            return
        lock.mode = LockMode.UNLOCKED
        self._held.pop(lock.owner, None)
        self._leftover.append(lock)
        await self._clean_up()

    async def verify(self) -> None:
        """This client was away, and is registered again: find out which locks meta has ended."""
        if not self._held and not self._leftover:
            return
        try:
            kept = await self._kept()
        except FS3Error as error:
            logger.warning("cannot learn which locks are left, they count as lost: %s", error)
            kept = set()
        for lock in list(self._held.values()):
            if lock.owner not in kept:
                logger.warning("inode %d: its lock was lost while this client was cut off", lock.inode)
                lock.mode = LockMode.UNLOCKED
                del self._held[lock.owner]
                self._leftover.append(lock)
        await self._clean_up()

    async def _kept(self) -> set[int]:
        """The owners of this client's locks."""
        found: set[int] = set()
        after, more = b"", True
        while more:
            reply = await self.meta.call(LIST_LOCKS, ListLocksRequest(after, client=self._node))
            found.update([info.owner for info in reply.locks])
            after = reply.after
            more = bool(after)
        return found

    async def _ask(self, lock: Lock, mode: LockMode) -> LockInfo | None:
        request = LockRequest(
            lock.channel.next_tag(), lock.caller, self._node, lock.inode, lock.owner, mode, lock.start, lock.end
        )
        return (await self.meta.call(LOCK, request)).holder

    async def _wait(self, lock: Lock, mode: LockMode, limit: float, found: LockInfo) -> LockInfo | None:
        """Wait for a while; returns who is in the way then. Raises BUSY at the limit."""
        left_s = limit - self.env.monotonic()
        if left_s <= 0:
            raise FS3Error(Code.BUSY, f"inode {lock.inode} is locked by client {found.client}")
        wait_ms = 0
        if self._waiting < WAITS_MAX:
            wait_ms = int(min(WAIT_MS, 1000 * left_s) + 1)
        else:
            await trio.sleep(min(left_s, self.env.random.uniform(*POLL_S)))
        request = GetLockRequest(lock.inode, lock.owner, mode, lock.start, lock.end, wait_ms)
        self._waiting += wait_ms > 0
        try:
            return (await self.meta.call(GET_LOCK, request)).holder
        finally:
            self._waiting -= wait_ms > 0

    async def _clean_up(self) -> None:
        """Tell meta of the locks that ended here. Those that it cannot be told of now are kept for the next time."""
        while self._leftover:
            lock = self._leftover.pop()
            try:
                await self._ask(lock, LockMode.UNLOCKED)
            except BaseException as error:
                self._leftover.append(lock)
                if not isinstance(error, FS3Error):
                    raise
                logger.warning("inode %d stays locked until meta hears that it is not: %s", lock.inode, error)
                return
            self.meta.end_lane(lock.channel)
