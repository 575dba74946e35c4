"""The storage daemon's process: opens its disks, registers, serves, and stops in time when it is cut off."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from fs3.api.mgmtd import UNREGISTER, RegisterReply, RegisterRequest, UnregisterRequest
from fs3.client.lease import UNREGISTER_MS, Lease
from fs3.client.mgmtd import MgmtdClient
from fs3.client.settings import CentralSettings
from fs3.config import option
from fs3.daemon import main as daemon_main
from fs3.daemon import version
from fs3.direct import DirectWaits
from fs3.env import Env
from fs3.errors import ConfigError, FS3Error
from fs3.ids import NodeKind
from fs3.rpc.client import RpcClient
from fs3.rpc.server import RpcServer, ServerLimits
from fs3.settings import RdmaKeys, StorageSettings
from fs3.transport.base import Listener

from . import inspect
from .disk import Disk
from .disk_linux import LinuxDisk
from .disks import ClosedTarget, Homes
from .rebuild import reopen, settle_empty
from .retire import empty_retired
from .service import StorageService

logger = logging.getLogger("fs3.storage.daemon")

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class StorageConfig(StorageSettings, RdmaKeys):
    """fs3-storage's configuration."""

    node_id: int = option(help="this daemon's id, of which no other daemon has the like", at_least=1, at_most=9_999)
    mgmtd: tuple[str, ...] = option(help="addresses of the mgmtd daemons")
    data: tuple[str, ...] = option(("/var/lib/fs3/storage",), help="folders for its data, one on each disk, in fixed order")
    listen: str = option("tcp://127.0.0.1:0", help="address to listen on; port 0 picks a free one")
    advertise: str = option("", help="address that others use for it, where that is not the one it listens on")
    host: str = option("", help="name of this machine; its host name by default")
    metrics: str = option("", help="HOST:PORT where Prometheus may fetch /metrics; none by default")
    tags: tuple[str, ...] = option((), help="labels such as rack=r7: replicas are spread over the racks that these name")
    targets_per_disk: int = option(4, help="targets of each disk; more are made when it grows", at_least=1, at_most=99)
    short_circuit: bool = option(
        True, help="let processes of this host, and other storage daemons here, use shared memory in place of TCP"
    )
    direct_io: bool = option(
        False, help="read and write data past the page cache: for NVMe disks, where memory is needed for other things"
    )


async def run(
    config: StorageConfig, env: Env, started: Callable[[str], None], open_folder: Callable[[str], Disk] | None = None
) -> None:
    """Serve until cancelled. open_folder: opens a disk by its name in the configuration; one of Linux by default.

    Raises CONFIG, FORMAT_VERSION, STALE_INCARNATION (cut off from mgmtd), DISK_FAILED.
    """
    if not config.mgmtd:
        raise ConfigError("mgmtd: expected at least one address")
    if not config.data:
        raise ConfigError("data: expected at least one folder")
    # First of all, so that a taken address changes nothing on the disks.
    listener = await env.transport.listen(config.listen)
    # At once: who reaches the one and does not find the other stays with TCP.
    address = config.advertise or listener.address
    local = await env.transport.listen_locally(address) if config.short_circuit else None
    homes = Homes()
    try:
        opener = open_folder or partial(LinuxDisk, direct=config.direct_io)
        homes.open(config.data, opener, config.node_id, config.targets_per_disk, config.reserve_bytes, env.monotonic())
        await serve(config, env, listener, homes, started, local)
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()
            if local is not None:
                await local.aclose()
        homes.close()


async def serve(
    config: StorageConfig,
    env: Env,
    listener: Listener,
    homes: Homes,
    started: Callable[[str], None],
    local: Listener | None = None,
) -> None:
    """Register the targets of our disks and serve them until cancelled. local: for processes of this host."""
    address = config.advertise or listener.address
    host = config.host or socket.gethostname()
    incarnation = env.client_id()
    registered = False
    try:
        async with trio.open_nursery() as nursery:
            rpc = RpcClient(env, nursery)
            mgmtd = MgmtdClient(env, rpc, config.mgmtd, urgent=True)
            service = StorageService(
                env, rpc, mgmtd, homes.targets, spaces=homes.space, node_id=config.node_id, version=version()
            )

            def registration() -> RegisterRequest:
                return RegisterRequest(
                    config.node_id, NodeKind.STORAGE, address, host, incarnation, config.tags, service.reports()
                )

            async def apply(settings: StorageSettings) -> None:
                service.use_settings(settings)
                homes.keep_free(settings.reserve_bytes)

            await apply(config)
            central = CentralSettings(env, "storage", config, apply)
            lease = Lease(env, mgmtd, registration, service.reports, central.use)
            service.node.may_serve = lease.holds
            if any(target.empty for target in homes.targets):
                await nursery.start(mgmtd.run)
                homes.settle_new(mgmtd.routing)
            else:
                nursery.start_soon(mgmtd.run)
            reply: RegisterReply = await nursery.start(lease.run)
            registered = True
            nursery.start_soon(central.follow, mgmtd, lease)
            # Older routing speaks of our former incarnation, whose targets may have been serving: never act on that.
            while mgmtd.routing.version < reply.routing_version:
                await mgmtd.refresh(reply.routing_version - 1)
            for home in homes.homes.values():
                home.join(reply.cluster)
            await nursery.start(service.run, lease.poke)
            nursery.start_soon(empty_retired, service, homes, reply.cluster, reply.routing_version)
            for target in homes.targets:
                if target.empty:
                    nursery.start_soon(settle_empty, service.node, target, homes.homes[target.disk])
            for closed in homes.closed:
                if closed.damaged:
                    nursery.start_soon(_reopen, service, homes, closed)
            server = RpcServer(env, ServerLimits(bytes_max=256 * _MIB), DirectWaits.here())
            service.bind(server)
            await nursery.start(server.serve, listener)
            if local is not None:
                await nursery.start(server.serve, local)
            lease.poke()
            started(address)
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()
            if registered:
                await _unregister(config, env, incarnation)


async def _reopen(service: StorageService, homes: Homes, closed: ClosedTarget) -> None:
    target = await reopen(service.node, closed)
    if target is not None:
        homes.targets.append(target)  # to be closed at the end
        service.add(target)


async def _unregister(config: StorageConfig, env: Env, incarnation: int) -> None:
    """Say goodbye, over a connection of its own, since all others have ended: nobody waits for our lease to run out."""
    async with trio.open_nursery() as nursery:
        mgmtd = MgmtdClient(env, RpcClient(env, nursery), config.mgmtd)
        try:
            await mgmtd.call(UNREGISTER, UnregisterRequest(config.node_id, incarnation), timeout_ms=UNREGISTER_MS)
        except FS3Error as error:
            logger.info("could not say goodbye to mgmtd: %s", error)
        nursery.cancel_scope.cancel()


def main() -> None:
    if sys.argv[1:2] == ["inspect"]:
        sys.exit(inspect.main(sys.argv[2:]))
    daemon_main("fs3-storage", StorageConfig, run, "The storage daemon of fs3: replicated chunks of files.")


if __name__ == "__main__":
    main()
