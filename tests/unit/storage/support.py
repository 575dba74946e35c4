"""What the storage tests share: engines in a folder, and chains of services in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from fs3.api.storage import READ as READ_METHOD
from fs3.api.storage import WRITE, ReadRange, ReadRequest, Update, UpdateKind, UpdateResult, WriteRequest
from fs3.checksum import piece_checksums
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, NodeKind, RequestTag
from fs3.routing import Chain, ChainTarget, LocalState, Node, PublicState, RoutingInfo, Target
from fs3.rpc.client import RpcClient
from fs3.rpc.server import RpcServer
from fs3.testing.mgmtd import StaticMgmtd
from storage.chunk_engine import ChunkEngine
from storage.disk_linux import LinuxDisk
from storage.local import LocalTarget
from storage.service import StorageService
from storage.space import SpaceBudget
from tests import transports

CHAIN = 7
MIB = 1024 * 1024
NO_TAG = RequestTag(0, 0, 0)
SERVING, SYNCING, WAITING, LASTSRV, OFFLINE = PublicState


def open_engine(path: Path) -> tuple[ChunkEngine, LinuxDisk]:
    disk = LinuxDisk(str(path))
    return ChunkEngine(disk, "target-1", SpaceBudget(disk, 0)), disk


def write_update(
    chunk: ChunkId,
    offset: int,
    data: bytes,
    *,
    tag: RequestTag = NO_TAG,
    chain_version: int = 1,
    target: int = 1,
    kind: UpdateKind = UpdateKind.WRITE,
    version: int = 0,
    chunk_size: int = MIB,
) -> Update:
    return Update(
        tag, CHAIN, chain_version, target, chunk, kind, offset, len(data), chunk_size, piece_checksums(data, offset), version
    )


def other_update(
    chunk: ChunkId,
    kind: UpdateKind,
    length: int = 0,
    *,
    tag: RequestTag = NO_TAG,
    chain_version: int = 1,
    target: int = 1,
    version: int = 0,
    chunk_size: int = MIB,
) -> Update:
    return Update(tag, CHAIN, chain_version, target, chunk, kind, 0, length, chunk_size, (), version)


class Replica:
    """A storage service with one target on a disk of its own; can be stopped, killed and started again."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.address = transports.address(f"storage-{number}")
        self.service: StorageService | None = None
        self.target: LocalTarget | None = None
        self.pokes = 0
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def start(self) -> None:
        self._ended = trio.Event()
        await self.cluster.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        engine, disk = open_engine(self.cluster.path / f"disk{self.number}")
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    env = Env(self.cluster.transport)
                    self.target = LocalTarget(self.number, 0, engine, env.monotonic())
                    rpc = RpcClient(env, nursery)
                    self.service = StorageService(env, rpc, self.cluster.mgmtd, [self.target], spaces=lambda _: disk.space())
                    server = RpcServer(env)
                    self.service.bind(server)
                    await nursery.start(self.service.run, self._poked)
                    await nursery.start(server.serve, await env.transport.listen(self.address))
                    task_status.started()
        finally:
            engine.close()
            disk.close()
            self._ended.set()

    def _poked(self) -> None:
        self.pokes += 1

    async def stop(self) -> None:
        """End it at once, wherever its tasks stand."""
        self._scope.cancel()
        await self._ended.wait()

    def content(self, chunk: ChunkId) -> tuple[int, int, bytes] | None:
        """(version, chain version, checksums) of the committed version."""
        assert self.target is not None
        state = self.target.engine.get(chunk)
        if state is None or state.committed is None:
            return None
        return state.committed.number, state.committed.length, state.committed.checksums


class Cluster:
    """Replicas of one chain, whose routing the test sets."""

    def __init__(self, path: Path, nursery: trio.Nursery, count: int) -> None:
        self.path = path
        self.nursery = nursery
        self.transport = transports.transport()
        self.mgmtd = StaticMgmtd()
        self.env = Env(self.transport)
        self.rpc = RpcClient(self.env, nursery)
        self.replicas = [Replica(self, number) for number in range(1, count + 1)]
        self.version = 0
        self._sequence = 0

    def chain(self, *targets: tuple[int, PublicState]) -> None:
        """Give everybody the next routing."""
        self.version += 1
        entries = tuple([ChainTarget(number, state) for number, state in targets])
        self.mgmtd.routing = RoutingInfo(
            self.version,
            "test",
            {CHAIN: Chain(CHAIN, self.version, entries)},
            {},
            {r.number: Target(r.number, r.number, 0, CHAIN, LocalState.UPTODATE, 0, 0) for r in self.replicas},
            {
                r.number: Node(r.number, NodeKind.STORAGE, r.address, "host", True, 1)
                for r in self.replicas
            },
        )  # fmt: skip

    def tag(self, channel: int = 0) -> RequestTag:
        self._sequence += 1
        return RequestTag(99, channel, self._sequence)

    def deadline(self, seconds: float = 10.0) -> float:
        return self.env.monotonic() + seconds

    async def send(
        self, updates: Sequence[Update], data: bytes = b"", *, to: int = 1, seconds: float = 10.0, from_client: bool = True
    ) -> list[UpdateResult]:
        request = WriteRequest(tuple(updates), from_client)
        payload = [data] if data else []
        address = self.replicas[to - 1].address
        reply = await self.rpc.call(address, WRITE, request, deadline=self.deadline(seconds), payload=payload)
        return list(reply.results)

    async def write(self, chunk: ChunkId, offset: int, data: bytes, *, channel: int = 0) -> UpdateResult:
        """Write at the head, as a client does: with retries of the same tag until it succeeds."""
        tag = self.tag(channel)
        while True:
            head = self.mgmtd.routing.chains[CHAIN].head()
            if head is not None:
                update = write_update(chunk, offset, data, tag=tag, chain_version=self.version, target=head)
                try:
                    result = (await self.send([update], data, to=head, seconds=1.0))[0]
                    if result.code == 0:
                        return result
                    error = FS3Error(Code(result.code), result.message)
                except FS3Error as failure:
                    error = failure
                if not error.retryable and error.code is not Code.DEADLINE_EXCEEDED:
                    raise error
            await trio.sleep(0.01)

    async def read(self, chunk: ChunkId, offset: int, length: int, *, target: int = 1) -> bytes:
        """Read from one target; checks the checksums."""
        item = ReadRange(CHAIN, self.version, target, chunk, offset, length)
        address = self.replicas[target - 1].address
        request = ReadRequest((item,))
        reply, payload = await self.rpc.call_bulk(address, READ_METHOD, request, deadline=self.deadline())
        result = reply.results[0]
        if result.code:
            raise FS3Error(Code(result.code), result.message)
        assert len(payload) == result.length
        assert piece_checksums(payload, offset) == result.checksums
        return bytes(payload)

    def contents(self, chunk: ChunkId) -> list[tuple[int, int, bytes] | None]:
        return [replica.content(chunk) for replica in self.replicas]


async def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that other tasks bring about."""
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110 (nothing tells of it)
            await trio.sleep(0.002)


@asynccontextmanager
async def cluster(path: Path, count: int) -> AsyncIterator[Cluster]:
    """A running cluster whose replicas all serve."""
    async with trio.open_nursery() as nursery:
        made = Cluster(path, nursery, count)
        made.chain(*[(number, SERVING) for number in range(1, count + 1)])
        for replica in made.replicas:
            await replica.start()
        yield made
        nursery.cancel_scope.cancel()


def tune(service: StorageService, **settings: Any) -> None:
    """Change some of the settings of a daemon that runs."""
    service.node.use_settings(replace(service.node.settings, **settings))
