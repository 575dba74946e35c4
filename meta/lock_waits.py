"""Those who wait for somebody else's lock to end: they are told at once by the daemon that ended it, where they ask the same
one, and else by the next look at the store."""

from __future__ import annotations

import trio

from fs3.api.meta_locks import GetLockRequest, LockReply

from .context import Context
from .idempotent import Completer, read
from .ops import lock

WAIT_MS_MAX = 2_000
POLL_S = 0.25


class LockWaits:
    """Answers GetLockRequests, waiting as they ask."""

    def __init__(self, ctx: Context, complete: Completer) -> None:
        self._ctx = ctx
        self._complete = complete
        self._ends: dict[int, trio.Event] = {}  # by inodes that somebody waits for

    def ended(self, inode: int) -> None:
        """A lock of this inode has ended, or become a shared one."""
        event = self._ends.pop(inode, None)
        if event is not None:
            event.set()

    async def get(self, request: GetLockRequest) -> LockReply:
        now = self._ctx.env.monotonic
        until = now() + max(0, min(request.wait_ms, WAIT_MS_MAX)) / 1000
        while True:
            event = self._ends.setdefault(request.inode, trio.Event())  # before the look, so that no end goes unseen
            try:
                reply = await read(self._ctx, lock.get, request, self._complete)
                left_s = until - now()
                if reply.holder is None or left_s <= 0:
                    return reply
                with trio.move_on_after(min(left_s, POLL_S)):
                    await event.wait()
            finally:
                if not event.statistics().tasks_waiting and self._ends.get(request.inode) is event:
                    del self._ends[request.inode]
