"""What operators ask of the metadata service: sessions, removed files, layouts of directories, and what fsck needs."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

from fs3.api.common import Empty, Method, Rep, Req
from fs3.api.meta import AttrReply
from fs3.api.meta_admin import (
    GC_STATUS,
    LIST_SESSIONS,
    LIST_TREES,
    MEND,
    PROBLEMS_MAX,
    PRUNE_SESSIONS,
    SCAN,
    SCAN_BYTES_MAX,
    SET_LAYOUT,
    TABLE_USE,
    UNUSED_IDS,
    GcStatusReply,
    ListSessionsReply,
    ListSessionsRequest,
    MendReply,
    MendRequest,
    PruneSessionsReply,
    PruneSessionsRequest,
    ScanReply,
    ScanRequest,
    SessionInfo,
    SetLayoutRequest,
    TableUseReply,
    TableUseRequest,
    UnusedIdsReply,
)
from fs3.api.meta_locks import LIST_LOCKS, ListLocksReply, ListLocksRequest
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn
from fs3.kv.transact import transact
from fs3.layout import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, valid_chunk_size
from fs3.rpc.server import Call, RpcServer

from . import resolve
from .context import Context
from .gc import Collector
from .intents import Intents
from .mend import mend
from .ops import lock
from .schema import (
    DIRECTORY,
    FILE,
    Garbage,
    Inode,
    Session,
    inode_key,
    inode_of_key,
    pack_times,
    session_key,
    session_key_parts,
    span,
    times_key,
)

PAGE = 1000
SCAN_MAX = 10_000
GARBAGE_MAX = 100_000
"""Removed files that are counted for one GcStatusReply."""


class MetaAdmin:
    """Answers operators' requests."""

    def __init__(self, ctx: Context, collector: Collector, intents: Intents) -> None:
        self._ctx = ctx
        self._collector = collector
        self._intents = intents
        self._started_at = ctx.env.monotonic()

    def bind(self, server: RpcServer) -> None:
        self._handle(server, LIST_SESSIONS, self.list_sessions)
        self._handle(server, PRUNE_SESSIONS, self.prune_sessions)
        self._handle(server, LIST_LOCKS, self.list_locks)
        self._handle(server, GC_STATUS, self.gc_status)
        self._handle(server, LIST_TREES, self._collector.trees.list)
        self._handle(server, SET_LAYOUT, self.set_layout)
        self._handle(server, SCAN, self.scan)
        self._handle(server, MEND, self.mend)
        self._handle(server, UNUSED_IDS, self.unused_ids)
        self._handle(server, TABLE_USE, self.table_use)

    def _handle(self, server: RpcServer, method: Method[Req, Rep], answer: Callable[[Req], Awaitable[Rep]]) -> None:
        async def handler(request: Req, call: Call) -> Rep:
            try:
                return await answer(request)
            except (OverflowError, struct.error) as error:
                raise FS3Error(Code.INVALID, f"a number is out of range: {error}") from None

        server.handle(method, handler)

    def _uptime_ms(self) -> int:
        return int((self._ctx.env.monotonic() - self._started_at) * 1000)

    # Sessions

    async def list_sessions(self, request: ListSessionsRequest) -> ListSessionsReply:
        begin, end = span(session_key(request.inode, 0, 0)[:12] if request.inode else b"SESS")
        if request.after:
            begin = max(begin, request.after + b"\0")
        limit = max(1, min(request.limit, PAGE))
        txn = self._ctx.engine.transaction()
        found: list[SessionInfo] = []
        pairs = await txn.get_range(begin, end, limit=PAGE, snapshot=True)
        for key, value in pairs:
            number, client, session = session_key_parts(key)
            if request.client in (0, client):
                inode = await resolve.load(txn, number)
                length, nlink = (inode.length, inode.nlink) if inode is not None else (-1, -1)
                opened = Session.unpack(value)
                since = opened.since_ns
                found.append(SessionInfo(number, client, session, opened.uid, opened.hold, since, length, nlink))
            if len(found) == limit:
                return ListSessionsReply(tuple(found), key)
        return ListSessionsReply(tuple(found), pairs[-1][0] if len(pairs) == PAGE else b"")

    async def prune_sessions(self, request: PruneSessionsRequest) -> PruneSessionsReply:
        info = (await self._collector.clients()).get(request.client)
        if info is not None and info.alive:
            raise FS3Error(Code.BUSY, f"client {request.client} on {info.host} is alive: unmount it there")
        return PruneSessionsReply(await self._collector.end_sessions({request.client}))

    async def list_locks(self, request: ListLocksRequest) -> ListLocksReply:
        return await lock.list_locks(self._ctx.engine.transaction(), request)

    # Removed files

    async def gc_status(self, request: Empty) -> GcStatusReply:
        ctx = self._ctx
        files = size = unsized = 0
        oldest_ns = 0
        begin, end = span(b"GCQ_")
        more = True
        while more and files < GARBAGE_MAX:
            pairs = await ctx.engine.transaction().get_range(begin, end, limit=PAGE, snapshot=True)
            for _, value in pairs:
                garbage = Garbage.unpack(value)
                files += 1
                unsized += garbage.bound < 0
                size += max(0, garbage.bound)
                if garbage.since_ns and (not oldest_ns or garbage.since_ns < oldest_ns):
                    oldest_ns = garbage.since_ns
            more = len(pairs) == PAGE
            begin = pairs[-1][0] + b"\0" if pairs else begin
        intents = await ctx.engine.transaction().get_range(*span(b"INTN"), limit=PAGE, snapshot=True)
        oldest_ms = max(0, (ctx.now_ns() - oldest_ns) // 1_000_000) if oldest_ns else -1
        counters = ctx.env.metrics.counters
        return GcStatusReply(
            files, size, unsized, oldest_ms, more, len(intents),
            counters["meta.files_collected"], counters["meta.gc_failures"], self._uptime_ms(), self._collector.problem(),
        )  # fmt: skip

    # Layouts

    async def set_layout(self, request: SetLayoutRequest) -> AttrReply:
        async def change(txn: Txn) -> AttrReply:
            return await _set_layout(self._ctx, txn, request)

        return await transact(self._ctx.engine, change, env=self._ctx.env, idempotent=True)

    async def table_use(self, request: TableUseRequest) -> TableUseReply:
        """What would miss the table. Whoever removes it asks until all was looked at."""
        files = directories = example = 0
        begin, end = span(b"INOD")
        if request.after:
            begin = request.after + b"\0"
        else:
            # Few at a time, as a rule; while there are more, the table is in use anyway.
            garbage = await self._ctx.engine.transaction().get_range(*span(b"GCQ_"), limit=SCAN_MAX, snapshot=True)
            removed = [inode_of_key(key) for key, value in garbage if Garbage.unpack(value).layout.table == request.table]
            files += len(removed)
            example = removed[0] if removed else 0
        pairs = await self._ctx.engine.transaction().get_range(begin, end, limit=SCAN_MAX, snapshot=True)
        for key, value in pairs:
            number = inode_of_key(key)
            inode = Inode.unpack(number, value)
            if inode.table == request.table and inode.kind in (FILE, DIRECTORY):
                files += inode.kind == FILE
                directories += inode.kind == DIRECTORY
                example = example or number
        return TableUseReply(files, directories, example, pairs[-1][0] if len(pairs) == SCAN_MAX else b"")

    # fsck

    async def scan(self, request: ScanRequest) -> ScanReply:
        limit = max(1, min(request.limit, SCAN_MAX))
        txn = self._ctx.engine.transaction()
        pairs = await txn.get_range(request.begin, request.end, limit=limit, snapshot=True)
        more = len(pairs) == limit
        size = 0
        for count, (key, value) in enumerate(pairs, 1):
            size += len(key) + len(value)
            if size >= SCAN_BYTES_MAX and count < len(pairs):
                pairs, more = pairs[:count], True
                break
        return ScanReply(tuple([key for key, _ in pairs]), tuple([value for _, value in pairs]), more)

    async def mend(self, request: MendRequest) -> MendReply:
        if len(request.problems) > PROBLEMS_MAX:
            raise FS3Error(Code.INVALID, f"{len(request.problems)} problems in one request")
        return MendReply(tuple(await mend(self._ctx, self._intents, request)))

    async def unused_ids(self, request: Empty) -> UnusedIdsReply:
        return UnusedIdsReply(*self._ctx.ids.unused())


async def _set_layout(ctx: Context, txn: Txn, request: SetLayoutRequest) -> AttrReply:
    inode = await resolve.present(txn, request.inode)
    if inode.kind != DIRECTORY:
        raise FS3Error(
            Code.NOT_DIRECTORY, f"inode {request.inode} is no directory: a file keeps the layout it was made with"
        )
    if min(request.table, request.chunk_size, request.stripe) < 0:
        raise FS3Error(Code.INVALID, "a negative number")
    tables = ctx.routing().tables
    number = request.table or inode.table
    chunk_size = request.chunk_size or inode.chunk_size
    stripe = request.stripe or inode.stripe
    table = tables.get(number)
    if table is None:
        known = ", ".join([str(each) for each in sorted(tables)]) or "none"
        raise FS3Error(Code.INVALID, f"there is no chain table {number}; there are: {known}")
    if not valid_chunk_size(chunk_size):
        limits = f"a power of two from {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX}"
        raise FS3Error(Code.INVALID, f"a chunk size of {chunk_size} bytes: expected {limits}")
    if stripe > len(table.chains):
        advice = "" if request.stripe else "; give a smaller stripe with it"
        raise FS3Error(Code.INVALID, f"a stripe of {stripe} chains: table {number} has {len(table.chains)}{advice}")
    inode.table, inode.table_version = table.id, table.version
    inode.chunk_size, inode.stripe = chunk_size, stripe
    await resolve.complete(txn, inode)
    changed_ns = ctx.now_ns()
    txn.set(inode_key(inode.id), inode.pack())
    txn.set(times_key(inode.id), pack_times(inode.mtime_ns, changed_ns))
    inode.ctime_ns = changed_ns
    return AttrReply(inode.attr())
