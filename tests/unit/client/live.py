"""A whole cluster in this process: real daemons over memory or a real transport, with real folders for chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

import meta.daemon
import mgmtd.daemon
import storage.daemon
from fs3.api.mgmtd import FORMAT, FormatRequest
from fs3.client.connect import connect
from fs3.client.file import FileClient
from fs3.client.mgmtd import MgmtdClient
from fs3.env import Env
from fs3.kv.memory import MemoryEngine
from fs3.rpc.client import RpcClient
from tests import transports

CHUNK_SIZE = 1 << 16


class Live:
    """storages: how many there are, each in a cancel scope of its own, to be stopped and started."""

    def __init__(self, folder: Path, storages: int, replicas: int) -> None:
        self.env = Env(transports.transport())
        self.mgmtd = transports.address("mgmtd")
        self._folder = folder
        self._storages = storages
        self._addresses = {number: transports.address(f"storage-{number}") for number in range(1, storages + 1)}
        self._replicas = replicas
        self._nursery: trio.Nursery | None = None
        self._daemons: dict[int, _Daemon] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Live]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            clock = self.env.monotonic
            mgmtd_config = mgmtd.daemon.MgmtdConfig(listen=self.mgmtd, lease_ms=10_000)
            await nursery.start(_start, mgmtd.daemon.run, mgmtd_config, self.env, {"engine": MemoryEngine(clock)})
            for number in range(1, self._storages + 1):
                await self.start_storage(number)
            await self._format()
            meta_config = meta.daemon.MetaConfig(listen=transports.address("meta"), mgmtd=(self.mgmtd,))
            await nursery.start(_start, meta.daemon.run, meta_config, self.env, {"engine": MemoryEngine(clock)})
            yield self
            nursery.cancel_scope.cancel()

    async def start_storage(self, number: int) -> None:
        folder = self._folder / f"storage-{number}"
        folder.mkdir(exist_ok=True)
        config = storage.daemon.StorageConfig(
            node_id=100 + number,
            mgmtd=(self.mgmtd,),
            data=(str(folder),),
            listen=self._addresses[number],
            targets_per_disk=2,
            reserve_bytes=0,
        )
        assert self._nursery is not None
        self._daemons[number] = await self._nursery.start(_start, storage.daemon.run, config, self.env, {})

    async def stop_storage(self, number: int) -> None:
        self._daemons[number].scope.cancel()
        await self._daemons[number].ended.wait()

    async def _format(self) -> None:
        async with trio.open_nursery() as nursery:
            client = MgmtdClient(self.env, RpcClient(self.env, nursery), [self.mgmtd])
            await client.call(FORMAT, FormatRequest(self._replicas, CHUNK_SIZE, 2))
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[FileClient]:
        async with connect(self.env, [self.mgmtd], "here") as client:
            yield client


class _Daemon:
    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


async def _start(
    run: Callable[..., Any], config: Any, env: Env, more: dict[str, Any], *, task_status: trio.TaskStatus[_Daemon]
) -> None:
    daemon = _Daemon()
    try:
        with daemon.scope:
            await run(config, env, lambda _: task_status.started(daemon), **more)
    finally:
        daemon.ended.set()
