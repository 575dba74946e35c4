"""The collector: removes the chunks of removed files, completes what daemons that died left behind, ends the sessions of
dead clients and forgets old records.

Any number of daemons may run it over one store. They share the work by inode (shares.py), and none of it is harmed by being
done twice, as where two of them know different members for a moment."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from fs3.api.mgmtd import ClientInfo
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn
from fs3.kv.transact import transact

from . import resolve
from .chunks import ChunkStore
from .context import REMOVED_MAX, Context
from .intents import Intents
from .ops.unlink import discard, has_session
from .resolve import IntentPending
from .schema import (
    FILE,
    INODE_PENDING,
    INTENT_SETTLE,
    Garbage,
    Intent,
    Session,
    garbage_key,
    inode_key,
    inode_of_key,
    intent_key,
    lock_key,
    session_key,
    session_key_parts,
    span,
    unpack_record,
)
from .trees import Trees

logger = logging.getLogger("fs3.meta.gc")

PAGE = 256
LOOK_S = 60.0
"""How often all sessions are looked at, where no client has died; and the queue, if all that comes is told."""
SEARCH_PART = 50
"""Searching the queue takes at most one part in so many of the time: removed keys make that slow for a while."""
_RECORDS = 0
"""The work of forgetting old records, as it is shared out; no inode has this number."""


@dataclass(frozen=True, slots=True)
class GcTimes:
    """gather_ms: files that were removed so close to each other are collected together. sweep_ms: how often to look for
    what others left to this one. work_ms: for one file. session_grace_ms: how long a client is dead before its sessions
    end; unknown_grace_ms: how long it is not known at all. record_age_ms: when a record of a done request may go (no client
    retries for so long). files_at_once: whose chunks are being removed."""

    gather_ms: int = 50
    sweep_ms: int = 5_000
    work_ms: int = 20_000
    session_grace_ms: int = 10_000
    unknown_grace_ms: int = 600_000
    record_age_ms: int = 3_600_000
    record_sweep_ms: int = 600_000
    files_at_once: int = 16


ClientStates = Callable[[], Awaitable[dict[int, ClientInfo]]]
"""Asks mgmtd which clients there are, by id."""


class Collector:
    """Does all that in three tasks: for garbage, for removed trees, and for the rest."""

    def __init__(
        self,
        ctx: Context,
        chunks: ChunkStore,
        intents: Intents,
        clients: ClientStates,
        times: GcTimes = GcTimes(),
    ) -> None:
        self._ctx = ctx
        self._chunks = chunks
        self._intents = intents
        self.trees = Trees(ctx)
        self.clients = clients
        self.times = times  # may be changed at any time
        self._gone_since: dict[int, float] = {}  # clients that are dead or not known, and since when
        self._ended_for: tuple[set[int], tuple[int, ...]] = (set(), ())  # dead clients and members when that was last done
        self._look_at = 0.0  # when all sessions are looked at again
        self._collected = False  # whether there may be more of it
        self._search_at = 0.0  # when the queue is searched again
        self._old_records: dict[bytes, tuple[int, float]] = {}  # key -> sequence, and since when it looks old
        self._failing = False
        self._problems: dict[str, str] = {}  # what failed in its last round, and why

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_garbage)
            nursery.start_soon(self._run_trees)
            nursery.start_soon(self._run_sweeps)

    async def _run_garbage(self) -> None:
        ctx = self._ctx
        while True:
            ctx.garbage = trio.Event()
            if ctx.env.monotonic() >= self._search_at or len(ctx.removed) > REMOVED_MAX:
                await self._guarded(self.collect, "collecting removed files")
            else:
                await self._guarded(self.collect_told, "collecting files removed just now")
            if not self._collected:
                with trio.move_on_after(max(0.0, self._search_at - ctx.env.monotonic())):
                    await ctx.garbage.wait()
            await trio.sleep(self.times.gather_ms / 1000)

    async def _run_trees(self) -> None:
        ctx = self._ctx
        while True:
            ctx.trees = trio.Event()
            await self._guarded(self.trees.work, "removing trees")
            with trio.move_on_after(self.times.sweep_ms / 1000):
                await ctx.trees.wait()
            await trio.sleep(self.times.gather_ms / 1000)

    async def _run_sweeps(self) -> None:
        records_at = 0.0
        while True:
            await self._guarded(self._intents.sweep, "completing intents")
            await self._guarded(self.end_dead_sessions, "ending the sessions of dead clients")
            now = self._ctx.env.monotonic()
            if now >= records_at:
                await self._guarded(self.forget_records, "forgetting old records")
                records_at = now + self.times.record_sweep_ms / 1000
            await trio.sleep(self.times.sweep_ms / 1000)

    async def _guarded(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        """Run one round; what fails is tried again in the next."""
        try:
            await work()
            self._failing = False
            self._problems.pop(what, None)
        except FS3Error as error:
            self._problems[what] = str(error)
            self._ctx.env.metrics.count("meta.gc_failures")
            if not self._failing:
                logger.warning("%s failed, trying again: %s", what, error)
            self._failing = True
        except Exception:
            logger.exception("%s failed", what)

    def problem(self) -> str:
        """What failed in its last round, and why; "" where nothing did."""
        return "; ".join([f"{what}: {why}" for what, why in self._problems.items()])

    # Garbage

    async def collect(self) -> None:
        """Remove the chunks of all removed files that are this daemon's share."""
        ctx = self._ctx
        begin, end = span(b"GCQ_")
        share = ctx.share()
        self._collected = False
        ctx.removed.clear()
        began = ctx.env.monotonic()
        self._search_at = began + self.times.sweep_ms / 1000
        while True:
            pairs = await ctx.engine.transaction().get_range(begin, end, limit=PAGE, snapshot=True)
            took_s = ctx.env.monotonic() - began
            found = [(inode_of_key(key), value) for key, value in pairs]
            await self._collect_some([(inode, Garbage.unpack(value)) for inode, value in found if share.has(inode)])
            if len(pairs) < PAGE:
                break
            begin = pairs[-1][0] + b"\0"
            began = ctx.env.monotonic()
        # The last look went through all that is left of keys that were removed.
        now = ctx.env.monotonic()
        self._search_at = max(self._search_at, now + took_s * SEARCH_PART)
        if len(share.members) <= 1:
            self._search_at = max(self._search_at, now + LOOK_S)

    async def collect_told(self) -> None:
        """Remove the chunks of what operations of this daemon say that they have removed, if it is its share: without a
        search, which would go through the traces of all that was removed lately, each time."""
        ctx = self._ctx
        share = ctx.share()
        self._collected = False
        told = [inode for inode in ctx.removed if share.has(inode)]
        ctx.removed.clear()
        for at in range(0, len(told), PAGE):
            await trio.lowlevel.checkpoint()
            txn = ctx.engine.transaction()
            todo = []
            for inode in told[at : at + PAGE]:
                value = await txn.get(garbage_key(inode), snapshot=True)
                if value is not None:
                    todo.append((inode, Garbage.unpack(value)))
            try:
                await self._collect_some(todo)
            except FS3Error:
                self._search_at = min(self._search_at, ctx.env.monotonic() + self.times.sweep_ms / 1000)
                raise

    async def _collect_some(self, todo: list[tuple[int, Garbage]]) -> None:
        if not todo:
            return
        # A power failure that brings a file back must not find it without its chunks.
        await self._ctx.engine.sync()
        done: list[int] = []
        failed: list[FS3Error] = []

        async def worker() -> None:
            while todo:
                inode, garbage = todo.pop()
                deadline = self._ctx.env.monotonic() + self.times.work_ms / 1000
                try:
                    await self._chunks.remove(inode, garbage.layout, garbage.bound, deadline=deadline)
                    done.append(inode)
                except FS3Error as error:
                    failed.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(self.times.files_at_once, len(todo))):
                nursery.start_soon(worker)

        async def forget(txn: Txn) -> None:
            for inode in done:
                txn.clear(garbage_key(inode))

        if self._ctx.env.rare("meta.gc.interrupted"):
            raise FS3Error(Code.KV_UNAVAILABLE, "meta.gc.interrupted")
        if done:
            await transact(self._ctx.engine, forget, env=self._ctx.env, idempotent=True)
            self._collected = True
            self._ctx.env.metrics.count("meta.files_collected", len(done))
        if failed:
            raise failed[0]

    # Sessions

    async def end_dead_sessions(self) -> None:
        """End the sessions of clients that have been dead, or unknown to mgmtd, for long enough."""
        states = await self.clients()
        now = self._ctx.env.monotonic()
        for client, info in states.items():
            if info.alive:
                self._gone_since.pop(client, None)
            else:
                self._gone_since.setdefault(client, now)
        grace_s = self.times.session_grace_ms / 1000
        dead = {
            client
            for client, info in states.items()
            if not info.alive and (info.ended or now - self._gone_since[client] >= grace_s)
        }
        share = self._ctx.share()
        if dead <= self._ended_for[0] and share.members == self._ended_for[1] and now < self._look_at:
            return  # to look at all sessions takes long where there are, or were, many
        self._ended_for = (set(), ())
        known = set(dead)
        holders = await self._holders()
        for client in holders - states.keys():
            since = self._gone_since.setdefault(client, now)
            if now - since >= self.times.unknown_grace_ms / 1000:
                dead.add(client)
        for client in [client for client in self._gone_since if client not in states and client not in holders]:
            del self._gone_since[client]
        if dead & holders:
            await self.end_sessions(dead & holders, share.has)
        self._ended_for = (known, share.members)
        self._look_at = now + min(LOOK_S, self.times.unknown_grace_ms / 4000)

    async def _holders(self) -> set[int]:
        """All clients that have sessions or locks."""
        found: set[int] = set()
        for tag in (b"SESS", b"LOCK"):
            await self._each(tag, lambda inode, client, session, value: found.add(client))
        return found

    async def _each(self, tag: bytes, visit: Callable[[int, int, int, bytes], None]) -> None:
        """All sessions, or all locks."""
        begin, end = span(tag)
        while True:
            pairs = await self._ctx.engine.transaction().get_range(begin, end, limit=PAGE, snapshot=True)
            for key, value in pairs:
                visit(*session_key_parts(key), value)
            if len(pairs) < PAGE:
                return
            begin = pairs[-1][0] + b"\0"
            await trio.lowlevel.checkpoint()

    async def end_sessions(self, dead: set[int], wanted: Callable[[int], bool] = lambda inode: True) -> int:
        """End the sessions and locks of clients that are gone, of those inodes that are wanted; returns how many there
        were."""
        found: list[tuple[int, int, int, bytes]] = []

        def note(inode: int, client: int, session: int, value: bytes) -> None:
            if client in dead and wanted(inode):
                found.append((inode, client, session, value))

        await self._each(b"SESS", note)
        for inode, client, session, value in found:
            await self._end_session(inode, client, session, Session.unpack(value).hold)
        # Whoever gets a lock next finds the files as their holder left them, lengths included: so locks end last.
        sessions = len(found)
        await self._each(b"LOCK", note)
        await self._unlock([lock_key(inode, client, owner) for inode, client, owner, _ in found[sessions:]])
        if found:
            clients = sorted({client for _, client, _, _ in found})
            logger.info("ended %d sessions and %d locks of dead clients %s", sessions, len(found) - sessions, clients)
        return len(found)

    async def _unlock(self, keys: list[bytes]) -> None:
        """Remove locks. Their inodes may be gone, and keep the mark where they are not."""
        for at in range(0, len(keys), PAGE):

            async def clear(txn: Txn, some: list[bytes] = keys[at : at + PAGE]) -> None:
                for key in some:
                    txn.clear(key)

            await transact(self._ctx.engine, clear, env=self._ctx.env, idempotent=True)

    async def _end_session(self, number: int, client: int, session: int, hold: bool) -> None:
        """End one session; what its client wrote and did not report is found on the chains."""
        ctx = self._ctx

        async def end(txn: Txn) -> bool:
            key = session_key(number, client, session)
            if await txn.get(key) is None:
                return False
            txn.clear(key)
            inode = await resolve.load(txn, number)
            assert inode is not None, f"a session of inode {number}, which does not exist"
            settle = inode.kind == FILE and not hold
            if inode.nlink == 0 and not await has_session(txn, number):
                # Nobody knows how far it was written: the flag makes the collector look everywhere.
                inode.flags |= INODE_PENDING if settle else 0
                discard(ctx, txn, inode)
                return False
            if not settle:
                return False
            if inode.flags & INODE_PENDING:
                raise IntentPending(number)
            inode.flags |= INODE_PENDING
            txn.set(intent_key(number), Intent(INTENT_SETTLE, 0, -1, ctx.owner, 0).pack())
            txn.set(inode_key(number), inode.pack())
            return True

        while True:
            try:
                settle = await transact(ctx.engine, end, env=ctx.env, idempotent=True)
                break
            except IntentPending:
                await self._intents.complete(number)
        if settle:
            await self._intents.complete(number)

    # Records of requests

    async def forget_records(self) -> None:
        """Remove the records of requests done so long ago that nobody asks for them again. Wall clocks may be wrong, also
        that of whoever wrote a record: one that looks old goes once it has done so for all that time, by our own clock.
        One daemon does so: it has to read all of them."""
        ctx = self._ctx
        if not ctx.share().has(_RECORDS):
            self._old_records.clear()
            return
        age_s = self.times.record_age_ms / 1000
        now = ctx.env.monotonic()
        known, self._old_records = self._old_records, {}
        begin, end = span(b"IDEM")
        while True:
            oldest = ctx.now_ns() / 1e9 - age_s
            pairs = await ctx.engine.transaction().get_range(begin, end, limit=PAGE, snapshot=True)
            old = []
            for key, value in pairs:
                sequence, _, second, _, _ = unpack_record(value)
                if second >= oldest:
                    continue
                seen, since = known.get(key, (0, now))
                if seen == sequence and now - since >= age_s:
                    old.append((key, value))
                else:
                    self._old_records[key] = (sequence, since if seen == sequence else now)

            async def forget(txn: Txn, old: list[tuple[bytes, bytes]] = old) -> None:
                for key, value in old:
                    if await txn.get(key) == value:
                        txn.clear(key)

            if old:
                await transact(ctx.engine, forget, env=ctx.env, idempotent=True)
            if len(pairs) < PAGE:
                return
            begin = pairs[-1][0] + b"\0"
            await trio.lowlevel.checkpoint()
