"""Completes intents: what a transaction has decided about the chunks of a file, and what must be done to them before anybody
goes on with the file.

A shrinking file gets its new length, a new truncate version and the intent in one transaction. Then the bytes behind the
new length are removed, and only then may anybody extend the file, or count on what it writes there. The truncate version
grows once more when the intent is done, so that what a writer reports under the version in between is checked against the
chains instead of being believed. A crash anywhere leaves the intent, and the next who needs the file, or the collector,
completes it. One daemon works on an intent at a time: a second one would cut off what was written after the first was done.
So another's claim is taken over only when mgmtd says that its owner is dead, or when it is too old for work to go on for it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn
from fs3.kv.transact import transact

from . import resolve
from .chunks import ChunkStore
from .claims import Claims
from .context import Context
from .schema import (
    INODE_PENDING,
    INTENT_TRUNCATE,
    Inode,
    Intent,
    inode_key,
    inode_of_key,
    intent_key,
    span,
)

logger = logging.getLogger("fs3.meta.intents")

WORK_MS = 10_000
"""How long one attempt at the storage service may take."""
ABANDONED_MS = 12_000
"""A claim that stays as it is for so long is nobody's: its owner would have finished, or begun a new attempt."""
POLL_MS = 20
"""How often somebody who waits for another daemon's work looks."""
PAGE = 256


class _Running:
    """Work in progress on one file."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: FS3Error | None = None


class Intents:
    """Completes intents in tasks of its own, so that a request that is given up does not stop half-way."""

    def __init__(
        self, ctx: Context, chunks: ChunkStore, nursery: trio.Nursery, gone: Callable[[int], Awaitable[bool]]
    ) -> None:
        """gone: whether the owner of a claim that was read before is surely dead."""
        self._ctx = ctx
        self._gone = gone
        self._chunks = chunks
        self._nursery = nursery
        self._claims = Claims(ctx.env, ctx.owner, ABANDONED_MS)
        self._running: dict[int, _Running] = {}

    async def complete(self, inode: int) -> None:
        """Return once the intent that was pending on an inode is done. Raises what the storage service says."""
        running = self._running.get(inode)
        if running is None:
            running = self._running[inode] = _Running()
            self._nursery.start_soon(self._run, inode, running)
        await running.done.wait()
        if running.error is not None:
            raise running.error

    async def sweep(self) -> None:
        """Complete the intents that are free, such as those of daemons that died, and this daemon's share."""
        begin, end = span(b"INTN")
        share = self._ctx.share()
        while True:
            pairs = await self._ctx.engine.transaction().get_range(begin, end, limit=PAGE, snapshot=True)
            for key, value in pairs:
                intent = Intent.unpack(value)
                inode = inode_of_key(key)
                # Others' shares are looked at too: when one of them dies, it is known how long its claims are unchanged.
                free = self._claims.free(inode, intent.owner, intent.beat)
                if inode in self._running or not share.has(inode) or not (free or await self._gone(intent.owner)):
                    continue
                try:
                    await self.complete(inode)
                except FS3Error as error:
                    logger.warning("cannot put the chunks of inode %d in order yet, trying again: %s", inode, error)
            if len(pairs) < PAGE:
                return
            begin = pairs[-1][0] + b"\0"

    async def _run(self, inode: int, running: _Running) -> None:
        try:
            while True:
                if await self._attempt(inode):
                    break
                await trio.sleep(POLL_MS / 1000)
        except FS3Error as error:
            running.error = error
        except Exception as error:
            logger.exception("cannot put the chunks of inode %d in order", inode)
            running.error = FS3Error(Code.INTERNAL, f"inode {inode}: {type(error).__name__}: {error}")
        finally:
            del self._running[inode]
            running.done.set()

    async def _attempt(self, inode: int) -> bool:
        """Do the work if it is free. Returns whether nothing is left to do."""
        ctx = self._ctx
        value = await ctx.engine.transaction().get(intent_key(inode))
        if value is None:
            self._claims.forget(inode)
            return True
        intent = Intent.unpack(value)
        if not self._claims.free(inode, intent.owner, intent.beat) and not await self._gone(intent.owner):
            return False
        claimed = await self._claim(inode, intent)
        if claimed is None:
            return False
        mine, layout = claimed
        # Whoever sees the chunks cut must never see the old length again, not even after a power failure.
        await ctx.engine.sync()
        deadline = ctx.env.monotonic() + WORK_MS / 1000
        length = 0
        if mine.kind == INTENT_TRUNCATE:
            version = layout.truncate_version
            await self._chunks.truncate(inode, layout.layout(), mine.length, mine.bound, version, deadline=deadline)
        else:
            length = await self._chunks.file_length(inode, layout.layout(), deadline=deadline)
        if ctx.env.rare("meta.intent.interrupted"):
            raise FS3Error(Code.KV_UNAVAILABLE, "meta.intent.interrupted")
        await transact(ctx.engine, lambda txn: self._finish(txn, inode, mine, length), env=ctx.env, idempotent=True)
        return True

    async def _claim(self, inode: int, seen: Intent) -> tuple[Intent, Inode] | None:
        """Mark the intent as ours, with a new beat. None where it has changed meanwhile."""
        ctx = self._ctx
        beat = ctx.env.random.getrandbits(63)

        async def claim(txn: Txn) -> tuple[Intent, Inode] | None:
            value = await txn.get(intent_key(inode))
            if value is None:
                return None
            now = Intent.unpack(value)
            if (now.owner, now.beat) != (seen.owner, seen.beat) and (now.owner, now.beat) != (ctx.owner, beat):
                return None
            found = await resolve.load(txn, inode)
            assert found is not None, f"an intent for inode {inode}, which does not exist"
            mine = Intent(now.kind, now.length, now.bound, ctx.owner, beat)
            txn.set(intent_key(inode), mine.pack())
            return mine, found

        return await transact(ctx.engine, claim, env=ctx.env, idempotent=True)

    async def _finish(self, txn: Txn, inode: int, mine: Intent, length: int) -> None:
        """The chunks are in order: so is the file."""
        value = await txn.get(intent_key(inode))
        if value is None or Intent.unpack(value) != mine:
            return  # removed with its file, or taken over by another daemon
        found = await resolve.load(txn, inode)
        assert found is not None, f"an intent for inode {inode}, which does not exist"
        txn.clear(intent_key(inode))
        found.flags &= ~INODE_PENDING
        found.data_version += 1
        if mine.kind == INTENT_TRUNCATE:
            found.truncate_version += 1
        elif length > found.length:
            found.length = length
            found.mtime_ns = found.ctime_ns = self._ctx.now_ns()
        txn.set(inode_key(inode), found.pack())
