"""The metadata daemon's process."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import trio

from fs3.api.mgmtd import UNREGISTER, RegisterRequest, UnregisterRequest
from fs3.client.lease import UNREGISTER_MS, Lease
from fs3.client.mgmtd import MgmtdClient
from fs3.client.settings import CentralSettings
from fs3.client.storage import StorageClient
from fs3.config import option
from fs3.daemon import main as daemon_main
from fs3.daemon import tell_status
from fs3.direct import DirectWaits
from fs3.env import Env
from fs3.errors import FS3Error
from fs3.ids import NodeKind
from fs3.kv.base import KVEngine
from fs3.kv.registry import open_engine
from fs3.rpc.client import RpcClient
from fs3.rpc.server import RpcServer
from fs3.settings import MetaSettings, RdmaKeys
from fs3.transport.base import Listener

from . import fsck_command
from .chunks import RoutedChunks
from .gc import GcTimes
from .service import MetaService

logger = logging.getLogger("fs3.meta.daemon")


@dataclass(frozen=True, kw_only=True)
class MetaConfig(MetaSettings, RdmaKeys):
    """fs3-meta's configuration."""

    node_id: int = option(11, help="this daemon's id, of which no other daemon has the like", at_least=1)
    listen: str = option("tcp://127.0.0.1:7001", help="address to listen on; port 0 picks a free one")
    advertise: str = option("", help="address that others use for it, where that is not the one it listens on")
    short_circuit: bool = option(True, help="let processes of this host use a Unix socket in place of TCP")
    host: str = option("", help="name of this machine, for people; its host name by default")
    mgmtd: tuple[str, ...] = option(("tcp://127.0.0.1:7000",), help="addresses of all management daemons")
    data: str = option("/var/lib/fs3/meta", help="folder for its data, if the store is embedded")
    store: str = option("", help="store URL, such as fdb:/etc/foundationdb/fdb.cluster; embedded in `data` by default")
    metrics: str = option("", help="HOST:PORT where Prometheus may fetch /metrics; none by default")
    root_uid: int = option(0, help="owner of the root directory, when it is made", at_least=0)
    root_gid: int = option(0, help="group of the root directory, when it is made", at_least=0)

    def __post_init__(self) -> None:
        if not self.mgmtd:
            raise ValueError("key 'mgmtd': expected at least one address")


async def run(config: MetaConfig, env: Env, started: Callable[[str], None], engine: KVEngine | None = None) -> None:
    """Serve until cancelled. engine: a store that others have opened, and may share, instead of the configured one.

    Raises CONFIG, STALE_INCARNATION when mgmtd does not take us for alive any more, and what opening the store raises.
    """
    listener = await env.transport.listen(config.listen)
    listeners = [listener]
    # At once: who reaches the one and does not find the other stays with TCP.
    address = config.advertise or listener.address
    if config.short_circuit and (local := await env.transport.listen_locally(address)) is not None:
        listeners.append(local)
    try:
        async with _store(config, env, engine) as store:
            await _serve(config, env, started, store, listeners)
    finally:
        with trio.CancelScope(shield=True):
            for each in listeners:
                await each.aclose()


async def _serve(
    config: MetaConfig, env: Env, started: Callable[[str], None], store: KVEngine, listeners: list[Listener]
) -> None:
    host = config.host or socket.gethostname()
    address = config.advertise or listeners[0].address
    incarnation = env.client_id()
    registered = False
    try:
        async with trio.open_nursery() as nursery:
            rpc = RpcClient(env, nursery)
            mgmtd = MgmtdClient(env, rpc, config.mgmtd)
            await nursery.start(mgmtd.run)
            storage = StorageClient(env, rpc, mgmtd, env.client_id(), host)
            chunks = RoutedChunks(storage, lambda: mgmtd.routing, lambda: lease.holds())
            times = _times(config)
            root_owner = (config.root_uid, config.root_gid)
            service = MetaService(env, store, mgmtd, chunks, nursery, times, root_owner, config.node_id, incarnation)
            server = RpcServer(env, direct=DirectWaits.here())
            service.bind(server)
            tell_status(server, env, "meta", config.node_id)
            env.metrics.gauge("meta.store_embedded", not config.store)
            for listener in listeners:
                await nursery.start(server.serve, listener)
            request = RegisterRequest(config.node_id, NodeKind.META, address, host, incarnation)

            async def apply(settings: MetaSettings) -> None:
                service.collector.times = _times(settings)

            central = CentralSettings(env, "meta", config, apply)
            lease = Lease(env, mgmtd, lambda: request, config=central.use)
            await nursery.start(lease.run)
            registered = True
            nursery.start_soon(central.follow, mgmtd, lease)
            await nursery.start(service.run)
            started(address)
    finally:
        if registered:
            with trio.CancelScope(shield=True):
                await _unregister(config, env, incarnation)


def _times(settings: MetaSettings) -> GcTimes:
    return GcTimes(
        gather_ms=settings.gc_gather_ms,
        sweep_ms=settings.gc_sweep_ms,
        session_grace_ms=settings.session_grace_ms,
        unknown_grace_ms=settings.unknown_grace_ms,
        files_at_once=settings.gc_files_at_once,
    )


async def _unregister(config: MetaConfig, env: Env, incarnation: int) -> None:
    """Say goodbye, over a connection of its own, since all others have ended."""
    async with trio.open_nursery() as nursery:
        mgmtd = MgmtdClient(env, RpcClient(env, nursery), config.mgmtd)
        try:
            await mgmtd.call(UNREGISTER, UnregisterRequest(config.node_id, incarnation), timeout_ms=UNREGISTER_MS)
        except FS3Error as error:
            logger.info("could not say goodbye to mgmtd: %s", error)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _store(config: MetaConfig, env: Env, engine: KVEngine | None) -> AsyncIterator[KVEngine]:
    if engine is not None:
        yield engine
        return
    async with open_engine(_store_url(config), env) as opened:
        yield opened


def _store_url(config: MetaConfig) -> str:
    return config.store or f"embedded:{quote(str(Path(config.data).absolute() / 'store'))}"


def main() -> None:
    if sys.argv[1:2] == ["fsck"]:
        sys.exit(fsck_command.main(sys.argv[2:]))
    daemon_main("fs3-meta", MetaConfig, run, "The metadata daemon of fs3: names, attributes, permissions.")


if __name__ == "__main__":
    main()
