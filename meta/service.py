"""The metadata service: which operation answers which method, and what has to happen before and after it."""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import trio

from fs3.api import meta as api
from fs3.api.common import Empty, Method
from fs3.api.meta_locks import GET_LOCK, LOCK, LockReply, LockRequest
from fs3.api.mgmtd import CLUSTER_CONFIG, GET_ROUTING, LIST_CLIENTS, ClientInfo, GetRoutingRequest
from fs3.client.mgmtd import MgmtdClient
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.kv.base import KVEngine, Txn
from fs3.kv.transact import transact
from fs3.layout import FileLayout
from fs3.rpc.server import Call, RpcServer

from . import resolve, trees
from .admin import MetaAdmin
from .chunks import ChunkStore
from .context import Context
from .gc import Collector, GcTimes
from .idempotent import Tagged, mutate, read
from .inode_ids import InodeIds
from .intents import Intents
from .lock_waits import LockWaits
from .ops import attr, create, lock, lookup, readdir, rename, session, unlink, xattr
from .schema import INODE_PENDING

logger = logging.getLogger("fs3.meta.service")

Req = TypeVar("Req")
Rep = TypeVar("Rep")
Change = TypeVar("Change", bound=Tagged)
WithAttr = TypeVar("WithAttr", api.AttrReply, api.OpenReply)

FORMAT_POLL_MS = 200
CLIENTS_TIMEOUT_MS = 2_000
GONE_TIMEOUT_MS = 1_000


class MetaService:
    """One meta daemon's service. `bind` its handlers to a server, and keep `run` running."""

    def __init__(
        self,
        env: Env,
        engine: KVEngine,
        mgmtd: MgmtdClient,
        chunks: ChunkStore,
        nursery: trio.Nursery,
        times: GcTimes = GcTimes(),  # noqa: B008 (frozen)
        root_owner: tuple[int, int] = (0, 0),
        node: int = 0,
        incarnation: int = 0,
    ) -> None:
        """nursery: for work on chunks that outlives the request which began it. root_owner: uid and gid, when it is made.
        node, incarnation: of the daemon, as it registers."""
        owner = incarnation or env.client_id()
        self.ctx = Context(env, engine, InodeIds(env, engine), lambda: mgmtd.routing, owner, node)
        self._mgmtd = mgmtd
        self._dead: set[int] = set()  # incarnations of meta daemons, which never come back
        self._intents = Intents(self.ctx, chunks, nursery, self._gone)
        self.collector = Collector(self.ctx, chunks, self._intents, self._clients, times)
        self._admin = MetaAdmin(self.ctx, self.collector, self._intents)
        self._lock_waits = LockWaits(self.ctx, self._intents.complete)
        self._root_owner = root_owner
        self._formatted = False

    def bind(self, server: RpcServer) -> None:
        self._reads(server, api.LOOKUP, lookup.lookup)
        self._reads(server, api.GETATTR, lookup.getattr)
        self._reads(server, api.READLINK, lookup.readlink)
        self._reads(server, api.READDIR, readdir.readdir)
        self._reads(server, api.ACCESS, lookup.access)
        self._reads(server, api.STATFS, lookup.statfs)
        self._reads(server, api.GETXATTR, xattr.getxattr)
        self._reads(server, api.LISTXATTR, xattr.listxattr)
        server.handle(LOCK, self._guarded(self.lock))
        server.handle(GET_LOCK, self._guarded(self._lock_waits.get))
        self._changes(server, api.MKNOD, create.mknod)
        self._changes(server, api.LINK, create.link)
        self._changes(server, api.REMOVE, unlink.remove)
        self._changes(server, api.RENAME, rename.rename)
        self._changes(server, api.SETXATTR, xattr.setxattr)
        self._changes(server, api.RELEASE, session.release)
        self._changes(server, api.HOLD, session.hold)
        self._changes(server, api.RMTREE, trees.rmtree)
        server.handle(api.SETATTR, self._guarded(self.setattr))
        server.handle(api.CREATE, self._guarded(self.create))
        server.handle(api.OPEN, self._guarded(self.open))
        server.handle(api.CLOSE, self._guarded(self.close))
        server.handle(api.REPORT, self._guarded(self.report))
        server.handle(api.APPEND, self._guarded(self.append))
        self._admin.bind(server)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait until the cluster is formatted, make the root if it is not there, then collect, until cancelled.

        Started once it serves, or has found that it must wait: then every request is refused with NO_ROUTING, and its
        client tries again.
        """
        ready = await self.prepare()
        task_status.started()
        while not ready:
            await trio.sleep(FORMAT_POLL_MS / 1000)
            ready = await self.prepare()
        await self.collector.run()

    async def prepare(self) -> bool:
        """See to it that there is a root, if the cluster is formatted. Returns whether requests are served now."""
        ctx = self.ctx
        try:
            config = await self._mgmtd.call(CLUSTER_CONFIG, Empty())
            if not config.version:
                return False
            table = ctx.routing().tables.get(config.table)
            layout = FileLayout(config.table, table.version if table else 1, config.chunk_size, config.stripe, 0)

            async def make_root(txn: Txn) -> bool:
                return await create.make_root(ctx, txn, layout, *self._root_owner)

            if await transact(ctx.engine, make_root, env=ctx.env, idempotent=True):
                logger.info("made the root directory; files are cut into chunks of %d bytes", config.chunk_size)
            self._formatted = True
        except FS3Error as error:
            if not error.retryable and error.code is not Code.DEADLINE_EXCEEDED:
                raise
            logger.warning("cannot learn yet whether the cluster is formatted: %s", error)
        return self._formatted

    # Requests

    def _reads(
        self, server: RpcServer, method: Method[Req, Rep], operation: Callable[[Context, Txn, Req], Awaitable[Rep]]
    ) -> None:
        async def handle(request: Req) -> Rep:
            return await read(self.ctx, operation, request, self._intents.complete)

        server.handle(method, self._guarded(handle))

    def _changes(
        self, server: RpcServer, method: Method[Change, Rep], operation: Callable[[Context, Txn, Change], Awaitable[Rep]]
    ) -> None:
        async def handle(request: Change) -> Rep:
            return await mutate(self.ctx, method, operation, request, self._intents.complete)

        server.handle(method, self._guarded(handle))

    def _guarded(self, handle: Callable[[Req], Awaitable[Rep]]) -> Callable[[Req, Call], Coroutine[Any, Any, Rep]]:
        """A handler: refuses while there is no root, and numbers that fit no key or value."""

        async def handler(request: Req, call: Call) -> Rep:
            if not self._formatted:
                raise FS3Error(Code.NO_ROUTING, "the cluster is not formatted yet")
            try:
                return await handle(request)
            except (OverflowError, struct.error) as error:
                raise FS3Error(Code.INVALID, f"a number is out of range: {error}") from None

        return handler

    async def setattr(self, request: api.SetattrRequest) -> api.AttrReply:
        reply = await mutate(self.ctx, api.SETATTR, attr.setattr, request, self._intents.complete)
        return reply if request.length is None else await self._settled(reply)

    async def create(self, request: api.CreateRequest) -> api.OpenReply:
        reply = await mutate(self.ctx, api.CREATE, create.create, request, self._intents.complete)
        return reply if reply.created or not request.truncate else await self._settled(reply)

    async def open(self, request: api.OpenRequest) -> api.OpenReply:
        if request.access == api.Access.READ and not request.truncate:
            return await read(self.ctx, session.open, request, self._intents.complete)
        reply = await mutate(self.ctx, api.OPEN, session.open, request, self._intents.complete)
        return await self._settled(reply) if request.truncate else reply

    async def close(self, request: api.CloseRequest) -> api.AttrReply:
        reply = await mutate(self.ctx, api.CLOSE, session.close, request, self._intents.complete)
        stale = request.length_hint >= 0 and request.truncate_version != reply.attr.truncate_version
        return await self._settled(reply) if stale else reply

    async def report(self, request: api.ReportRequest) -> api.AttrReply:
        reply: api.AttrReply | None = None
        if not request.wrote:
            reply = await read(self.ctx, session.peek, request, self._intents.complete)
        if reply is None:
            reply = await mutate(self.ctx, api.REPORT, session.report, request, self._intents.complete)
            if request.length_hint >= 0 and request.truncate_version != reply.attr.truncate_version:
                reply = await self._settled(reply)
        if request.sync:
            await self.ctx.engine.sync()
        return reply

    async def append(self, request: api.AppendRequest) -> api.AppendReply:
        ctx, complete = self.ctx, self._intents.complete
        try:
            return await mutate(ctx, api.APPEND, session.append, request, complete)
        except session.StaleHint:
            await transact(ctx.engine, lambda txn: session.settle(ctx, txn, request.inode), env=ctx.env, idempotent=True)
            await complete(request.inode)
            return await mutate(ctx, api.APPEND, session.append, replace(request, length_hint=-1), complete)

    async def lock(self, request: LockRequest) -> LockReply:
        reply = await mutate(self.ctx, LOCK, lock.lock, request, self._intents.complete)
        self._lock_waits.ended(request.inode)
        return reply

    async def _settled(self, reply: WithAttr) -> WithAttr:
        """The reply once no intent is pending on its inode, with the attributes as they are then."""
        number = reply.attr.inode
        while True:
            txn = self.ctx.engine.transaction()
            inode = await resolve.load(txn, number)
            if inode is None:
                return reply
            if not inode.flags & INODE_PENDING:
                return replace(reply, attr=await resolve.attr(txn, inode))
            await self._intents.complete(number)

    # The cluster

    async def _clients(self) -> dict[int, ClientInfo]:
        reply = await self._mgmtd.call(LIST_CLIENTS, Empty(), timeout_ms=CLIENTS_TIMEOUT_MS)
        return {each.client: each for each in reply.clients}

    async def _gone(self, owner: int) -> bool:
        """Whether a meta daemon that was seen to have a claim is surely dead: it had registered before, so it is if the
        latest routing does not know its incarnation. Ours may be older: mgmtd must say that there is no newer one."""
        if owner in self._dead:
            return True
        routing = self._mgmtd.routing
        if any(node.incarnation == owner for node in routing.nodes_of(NodeKind.META)):
            return False
        try:
            request = GetRoutingRequest(routing.version, 0, True)
            reply = await self._mgmtd.call(GET_ROUTING, request, timeout_ms=GONE_TIMEOUT_MS)
        except FS3Error as error:
            logger.debug("cannot learn whether %d is dead: %s", owner, error)
            return False
        if reply.routing is not None or reply.delta is not None:
            return False
        self._dead.add(owner)
        return True
