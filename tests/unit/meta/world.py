"""A metadata service over a store in memory and chunks in a dictionary, with a short way to call it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import trio

from fs3.api import meta as api
from fs3.api.common import Empty, Method, Rep, Req
from fs3.api.meta import Access, Attr, Caller, FileKind, RenameFlags
from fs3.api.mgmtd import (
    CLUSTER_CONFIG,
    GET_ROUTING,
    LIST_CLIENTS,
    ClientInfo,
    ClusterConfigReply,
    GetRoutingReply,
    GetRoutingRequest,
    ListClientsReply,
    RoutingMessage,
)
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE, NodeKind, RequestTag
from fs3.kv.base import KVEngine
from fs3.kv.memory import MemoryEngine
from fs3.layout import FileLayout
from fs3.routing import Node, RoutingInfo, Table
from fs3.rpc.server import RpcServer
from fs3.testing.mgmtd import StaticMgmtd
from fs3.transport.memory import MemoryTransport
from meta.gc import GcTimes
from meta.service import MetaService

ROOT = Caller(0, 0, (0,))
ALICE = Caller(1000, 1000, (1000, 50))
BOB = Caller(1001, 1001, (1001, 50))
CAROL = Caller(1002, 1002, (1002,))
CHUNK = 64 * 1024
CHAINS = (11, 12, 13)
CLIENT = 10_007
_seeds = count(1)


class FakeChunks:
    """Chunks of files, by (inode, index). `fail` is raised by every call while it is set; `calls` names them all."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int], bytearray] = {}
        self.calls: list[str] = []
        self.fail: FS3Error | None = None
        self.gate: trio.Event | None = None
        """Calls wait for it."""
        self.step: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        """Awaited before each call and after each chunk that it changed."""

    async def _begin(self, name: str) -> None:
        self.calls.append(name)
        await self.step()
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail

    async def remove(self, inode: int, layout: FileLayout, bound: int, *, deadline: float) -> None:
        await self._begin("remove")
        for number, index in list(self.chunks):
            if number == inode and (bound < 0 or index * layout.chunk_size < bound):
                del self.chunks[number, index]
                await self.step()

    async def truncate(
        self, inode: int, layout: FileLayout, length: int, bound: int, version: int, *, deadline: float
    ) -> None:
        await self._begin("truncate")
        for (number, index), data in list(self.chunks.items()):
            start = index * layout.chunk_size
            if number != inode or start + len(data) <= length or (0 <= bound <= start):
                continue
            if start >= length:
                del self.chunks[number, index]
            else:
                del data[length - start :]
            await self.step()

    async def file_length(self, inode: int, layout: FileLayout, *, deadline: float) -> int:
        await self._begin("file_length")
        ends = [index * layout.chunk_size + len(data) for (number, index), data in self.chunks.items() if number == inode]
        return max(ends, default=0)

    def write(self, attr: Attr, offset: int, data: bytes) -> None:
        """What a client does: the storage service takes any bytes."""
        assert attr.layout is not None
        size = attr.layout.chunk_size
        while data:
            index, at = divmod(offset, size)
            part, data = data[: size - at], data[size - at :]
            chunk = self.chunks.setdefault((attr.inode, index), bytearray())
            chunk.extend(bytes(max(0, at - len(chunk))))
            chunk[at : at + len(part)] = part
            offset += len(part)

    def read(self, attr: Attr) -> bytes:
        """The whole file as a client that knows these attributes reads it."""
        assert attr.layout is not None
        size = attr.layout.chunk_size
        found = bytearray(attr.length)
        for (number, index), data in self.chunks.items():
            if number == attr.inode:
                start = index * size
                part = data[: max(0, attr.length - start)]
                found[start : start + len(part)] = part
        return bytes(found)

    def count(self, inode: int) -> int:
        return sum(number == inode for number, _ in self.chunks)


class SteppingEnv(Env):
    """Each look at the wall clock finds it a microsecond later."""

    _now_ns = 1_700_000_000_000_000_000

    def wall_ns(self) -> int:
        self._now_ns += 1000
        return self._now_ns


@dataclass
class Cluster:
    """What mgmtd would tell. clients: id -> alive. ended: those of the others whose process is surely gone. metas: ids of
    the living meta daemons; without any, each is alone."""

    formatted: bool = True
    clients: dict[int, bool] = field(default_factory=lambda: {CLIENT: True})
    ended: set[int] = field(default_factory=set)
    metas: tuple[int, ...] = ()
    version: int = 1
    informed: list[StaticMgmtd] = field(default_factory=list)

    def routing(self) -> RoutingInfo:
        nodes = {node: Node(node, NodeKind.META, f"test://{node}", "host", True, 1000 + node) for node in self.metas}
        return RoutingInfo(self.version, "test", tables={1: Table(1, 1, CHAINS, 1)}, nodes=nodes)

    def set_metas(self, *metas: int) -> None:
        """All daemons hear at once which of them live."""
        self.metas = metas
        self.version += 1
        for each in self.informed:
            each.routing = self.routing()

    def mgmtd(self) -> StaticMgmtd:
        made = StaticMgmtd(self.routing())
        self.informed.append(made)

        async def config(request: Empty) -> ClusterConfigReply:
            return ClusterConfigReply(int(self.formatted), "test", 1, 1, CHUNK, 3)

        async def clients(request: Empty) -> ListClientsReply:
            return ListClientsReply(
                tuple([ClientInfo(each, "host", alive, each in self.ended) for each, alive in self.clients.items()])
            )

        async def newer(request: GetRoutingRequest) -> GetRoutingReply:
            news = self.routing() if request.known_version < self.version else None
            return GetRoutingReply(RoutingMessage.of(news) if news else None)

        made.handlers = {CLUSTER_CONFIG.id: config, LIST_CLIENTS.id: clients}
        if self.metas:
            made.handlers[GET_ROUTING.id] = newer
        return made


class World:
    """One meta daemon's service, and a client of it."""

    def __init__(
        self, env: Env, engine: KVEngine, chunks: FakeChunks, cluster: Cluster, nursery: trio.Nursery, node: int
    ) -> None:
        self.env = env
        self.engine = engine
        self.chunks = chunks
        self.cluster = cluster
        times = GcTimes(session_grace_ms=1000)
        self.service = MetaService(
            env, engine, cluster.mgmtd(), chunks, nursery, times, node=node, incarnation=1000 + node if node else 0
        )
        self.server = RpcServer(env)
        self.service.bind(self.server)
        self._channels = count(1)
        self._tags = env.client_id()
        self.caller = ROOT

    def tag(self) -> RequestTag:
        return RequestTag(self._tags, next(self._channels), 1)

    async def call(self, method: Method[Req, Rep], request: Req) -> Rep:
        handler: Callable[[Any, Any], Awaitable[Any]] = self.server.handlers[method.id][1]
        reply: Rep = await handler(request, None)
        return reply

    async def lookup(self, parent: int, name: bytes) -> Attr:
        return (await self.call(api.LOOKUP, api.LookupRequest(self.caller, parent, name))).attr

    async def getattr(self, inode: int) -> Attr:
        return (await self.call(api.GETATTR, api.GetattrRequest(inode))).attr

    async def setattr(self, inode: int, **changes: Any) -> Attr:
        return (await self.call(api.SETATTR, api.SetattrRequest(self.tag(), self.caller, inode, **changes))).attr

    async def mknod(
        self, parent: int, name: bytes, kind: FileKind, mode: int = 0o644, rdev: int = 0, target: bytes = b""
    ) -> Attr:
        request = api.MknodRequest(self.tag(), self.caller, parent, name, kind, mode, rdev, target)
        return (await self.call(api.MKNOD, request)).attr

    async def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> Attr:
        return await self.mknod(parent, name, FileKind.DIRECTORY, mode)

    async def file(self, parent: int, name: bytes, mode: int = 0o644) -> Attr:
        """An empty file, open nowhere."""
        return await self.mknod(parent, name, FileKind.FILE, mode)

    async def create(
        self,
        parent: int,
        name: bytes,
        mode: int = 0o644,
        access: Access = Access.READ_WRITE,
        exclusive: bool = False,
        truncate: bool = False,
        session: int = 1,
        client: int = CLIENT,
    ) -> api.OpenReply:
        request = api.CreateRequest(
            self.tag(), self.caller, client, parent, name, mode, access, exclusive, truncate, session
        )
        return await self.call(api.CREATE, request)

    async def open(
        self, inode: int, access: Access = Access.READ, truncate: bool = False, session: int = 1, client: int = CLIENT
    ) -> Attr:
        request = api.OpenRequest(self.tag(), self.caller, client, inode, access, truncate, session)
        return (await self.call(api.OPEN, request)).attr

    async def close(
        self, attr: Attr, hint: int = -1, session: int = 1, wrote: bool | None = None, client: int = CLIENT
    ) -> Attr:
        written = hint >= 0 if wrote is None else wrote
        request = api.CloseRequest(self.tag(), client, attr.inode, session, hint, attr.truncate_version, written)
        return (await self.call(api.CLOSE, request)).attr

    async def report(
        self, attr: Attr, hint: int = -1, session: int = 1, wrote: bool | None = None, sync: bool = False
    ) -> Attr:
        written = hint >= 0 if wrote is None else wrote
        request = api.ReportRequest(self.tag(), CLIENT, attr.inode, session, hint, attr.truncate_version, written, sync)
        return (await self.call(api.REPORT, request)).attr

    async def append(self, attr: Attr, length: int, hint: int = -1) -> api.AppendReply:
        request = api.AppendRequest(self.tag(), CLIENT, attr.inode, 1, length, hint, attr.truncate_version)
        return await self.call(api.APPEND, request)

    async def unlink(self, parent: int, name: bytes, hold: int = 0) -> api.RemoveReply:
        request = api.RemoveRequest(self.tag(), self.caller, parent, name, False, CLIENT, hold)
        return await self.call(api.REMOVE, request)

    async def rmdir(self, parent: int, name: bytes) -> api.RemoveReply:
        return await self.call(api.REMOVE, api.RemoveRequest(self.tag(), self.caller, parent, name, True))

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: RenameFlags = RenameFlags.NONE,
        hold: int = 0,
    ) -> api.RenameReply:
        request = api.RenameRequest(self.tag(), self.caller, parent, name, new_parent, new_name, flags, CLIENT, hold)
        return await self.call(api.RENAME, request)

    async def link(self, inode: int, parent: int, name: bytes) -> Attr:
        return (await self.call(api.LINK, api.LinkRequest(self.tag(), self.caller, inode, parent, name))).attr

    async def symlink(self, parent: int, name: bytes, target: bytes) -> Attr:
        return await self.mknod(parent, name, FileKind.SYMLINK, 0o777, target=target)

    async def readdir(self, inode: int, after: bytes = b"", limit: int = 100) -> api.ReaddirReply:
        return await self.call(api.READDIR, api.ReaddirRequest(self.caller, inode, after, limit))

    async def names(self, inode: int) -> list[bytes]:
        return [entry.name for entry in (await self.readdir(inode)).entries]

    async def written(self, parent: int, name: bytes, data: bytes) -> Attr:
        """A closed file with content."""
        attr = (await self.create(parent, name, session=999)).attr
        self.chunks.write(attr, 0, data)
        return await self.close(attr, len(data), session=999)

    async def keys(self, tag: bytes) -> list[bytes]:
        """All keys of a kind."""
        end = (int.from_bytes(tag, "big") + 1).to_bytes(4, "big")
        return [key for key, _ in await self.engine.transaction().get_range(tag, end)]


@asynccontextmanager
async def world(
    engine: KVEngine | None = None,
    chunks: FakeChunks | None = None,
    cluster: Cluster | None = None,
    collecting: bool = False,
    node: int = 0,
) -> AsyncIterator[World]:
    """A service that has its root. collecting: also runs the collector (it needs a mock clock). node: the daemon's id."""
    env = SteppingEnv(MemoryTransport(), random.Random(next(_seeds)))
    async with trio.open_nursery() as nursery:
        made = World(env, engine or MemoryEngine(), chunks or FakeChunks(), cluster or Cluster(), nursery, node)
        if collecting:
            await nursery.start(made.service.run)
        else:
            assert await made.service.prepare()
        yield made
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def refused(code: Code) -> AsyncIterator[None]:
    """What is done inside fails with this code."""
    with pytest.raises(FS3Error) as caught:
        yield
    assert caught.value.code is code, caught.value


R = int(ROOT_INODE)
