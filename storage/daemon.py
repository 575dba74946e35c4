"""The storage daemon's process: opens its disks, registers, serves, and stops in time when it is cut off."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from fs3.api.mgmtd import UNREGISTER, RegisterReply, RegisterRequest, UnregisterRequest
from fs3.client.lease import UNREGISTER_MS, Lease
from fs3.client.mgmtd import MgmtdClient
from fs3.config import option
from fs3.daemon import main as daemon_main
from fs3.daemon import version
from fs3.env import Env
from fs3.errors import Code, ConfigError, FS3Error
from fs3.ids import NodeKind
from fs3.rpc.client import RpcClient
from fs3.rpc.server import RpcServer, ServerLimits
from fs3.transport.base import Listener

from .chunk_engine import ChunkEngine
from .disk import Disk
from .disk_linux import LinuxDisk
from .local import LocalTarget
from .service import StorageService
from .space import SpaceBudget

logger = logging.getLogger("fs3.storage.daemon")

FORMAT_VERSION = 1
_FORMAT_NAME = "fs3-storage"
_MIB = 1024 * 1024


@dataclass(frozen=True)
class StorageConfig:
    """fs3-storage's configuration."""

    node_id: int = option(help="this daemon's id, of which no other daemon has the like", at_least=1, at_most=9_999)
    mgmtd: tuple[str, ...] = option(help="addresses of the mgmtd daemons")
    data: tuple[str, ...] = option(("/var/lib/fs3/storage",), help="folders for its data, one on each disk, in fixed order")
    listen: str = option("tcp://127.0.0.1:0", help="address to listen on; port 0 picks a free one")
    advertise: str = option("", help="address that others use for it, where that is not the one it listens on")
    host: str = option("", help="name of this machine; its host name by default")
    targets_per_disk: int = option(4, help="targets made on a fresh disk", at_least=1, at_most=99)
    reserve_bytes: int = option(256 * _MIB, help="space kept free on each disk", unit="bytes", at_least=0)
    resync_rate_bytes: int = option(
        0, help="bytes a second, at most, that a target sends to one that came back; 0: no limit", unit="bytes", at_least=0
    )
    log_level: str = option("info", help="what to log", choices=("debug", "info", "warning", "error"))


def open_disk(disk: Disk, number: int, node_id: int, targets: int) -> list[int]:
    """The ids of the targets on a disk, which is formatted if it is empty. Raises CONFIG, FORMAT_VERSION."""
    found = disk.read_small("FORMAT")
    if found is None:
        strangers = [name for name in disk.files("") if name not in ("LOCK", "FORMAT.new", "lost+found")]
        if strangers:
            raise ConfigError(f"data folder {disk.name} is no fs3 data, but holds {strangers[0]}")
        ids = [node_id * 10_000 + number * 100 + index + 1 for index in range(targets)]
        head = f"{_FORMAT_NAME} {FORMAT_VERSION}\n"
        disk.write_small("FORMAT", (head + json.dumps({"node": node_id, "targets": ids}) + "\n").encode())
        return ids
    head, _, rest = found.decode(errors="replace").partition("\n")
    name, _, number_text = head.partition(" ")
    if name != _FORMAT_NAME or not number_text.isdigit():
        raise ConfigError(f"data folder {disk.name} is no data of a storage daemon (its FORMAT says {head[:40]!r})")
    if int(number_text) > FORMAT_VERSION:
        raise FS3Error(
            Code.FORMAT_VERSION,
            f"data folder {disk.name} has format {number_text}, this program knows {FORMAT_VERSION} and older",
        )
    try:
        content = json.loads(rest)
        owner, ids = int(content["node"]), [int(target) for target in content["targets"]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"data folder {disk.name}: its FORMAT file is damaged") from None
    if owner != node_id:
        raise ConfigError(f"data folder {disk.name} belongs to node {owner}, this is node {node_id} (node_id)")
    return ids


def open_targets(disk: Disk, number: int, ids: list[int], reserve_bytes: int, now: float) -> Iterator[LocalTarget]:
    """Open the engines of a disk's targets, one after the other."""
    space = SpaceBudget(disk, reserve_bytes)
    for target in ids:
        yield LocalTarget(target, number, ChunkEngine(disk, f"target-{target}", space), now)


async def run(
    config: StorageConfig, env: Env, started: Callable[[str], None], open_folder: Callable[[str], Disk] = LinuxDisk
) -> None:
    """Serve until cancelled. open_folder: opens a disk by its name in the configuration.

    Raises CONFIG, FORMAT_VERSION, STALE_INCARNATION (cut off from mgmtd), DISK_FAILED.
    """
    if not config.mgmtd:
        raise ConfigError("mgmtd: expected at least one address")
    if not config.data:
        raise ConfigError("data: expected at least one folder")
    # First of all, so that a taken address changes nothing on the disks.
    listener = await env.transport.listen(config.listen)
    disks: list[Disk] = []
    targets: list[LocalTarget] = []
    try:
        for number, path in enumerate(config.data):
            disk = open_folder(path)
            disks.append(disk)
            ids = open_disk(disk, number, config.node_id, config.targets_per_disk)
            targets.extend(open_targets(disk, number, ids, config.reserve_bytes, env.monotonic()))
        await serve(config, env, listener, disks, targets, started)
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()
        for target in targets:
            target.engine.close()
        for disk in disks:
            disk.close()


async def serve(
    config: StorageConfig,
    env: Env,
    listener: Listener,
    disks: list[Disk],
    targets: list[LocalTarget],
    started: Callable[[str], None],
) -> None:
    """Register the opened targets and serve them until cancelled; the listener is closed at the end."""
    address = config.advertise or listener.address
    host = config.host or socket.gethostname()
    incarnation = env.client_id()
    registered = False
    try:
        async with trio.open_nursery() as nursery:
            rpc = RpcClient(env, nursery)
            mgmtd = MgmtdClient(env, rpc, config.mgmtd)
            service = StorageService(
                env,
                rpc,
                mgmtd,
                targets,
                spaces=lambda disk: disks[disk].space(),
                reserve_bytes=config.reserve_bytes,
                resync_rate_bytes=config.resync_rate_bytes,
                node_id=config.node_id,
                version=version(),
            )

            def registration() -> RegisterRequest:
                return RegisterRequest(
                    config.node_id, NodeKind.STORAGE, address, host, incarnation, targets=service.reports()
                )

            lease = Lease(env, mgmtd, registration, service.reports)
            service.node.may_serve = lease.holds
            nursery.start_soon(mgmtd.run)
            reply: RegisterReply = await nursery.start(lease.run)
            registered = True
            # Older routing speaks of our former incarnation, whose targets may have been serving: never act on that.
            while mgmtd.routing.version < reply.routing_version:
                await mgmtd.refresh(reply.routing_version - 1)
            await nursery.start(service.run, lease.poke)
            server = RpcServer(env, ServerLimits(bytes_max=256 * _MIB))
            service.bind(server)
            await nursery.start(server.serve, listener)
            lease.poke()
            started(address)
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()
            if registered:
                await _unregister(config, env, incarnation)


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
    daemon_main("fs3-storage", StorageConfig, run, "The storage daemon of fs3: replicated chunks of files.")


if __name__ == "__main__":
    main()
