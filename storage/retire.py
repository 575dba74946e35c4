"""Empties targets that have left their chains, so that others can use their space, and they can come into other chains.

What they hold is thrown away for good, so it must be certain that nobody counts on it: the routing says so, by a flag that
mgmtd set when it took the target out of its chain; it is of the cluster that the disk belongs to, and not older than our
registration; and our lease runs. A crash at any moment leaves a target that is empty, or that is retired still.
"""

from __future__ import annotations

import logging

import trio

from fs3.errors import Code, FS3Error
from fs3.routing import RoutingInfo

from .data_files import parse_name
from .disks import Home, Homes
from .local import LocalTarget
from .service import StorageService

logger = logging.getLogger("fs3.storage.retire")

RETRY_S = 1.0


def retired_since(routing: RoutingInfo, target: int) -> int:
    """The routing version at which a target was retired; 0 for one that was not."""
    entry = routing.targets.get(target)
    if entry is None or not entry.retired or entry.chain:
        return 0
    return 0 if any(chain.state_of(target) is not None for chain in routing.chains.values()) else entry.since


async def empty_retired(service: StorageService, homes: Homes, cluster: str, routing_version: int) -> None:
    """Whenever a target of ours is retired: empty it. Runs until cancelled.

    cluster, routing_version: as our registration was answered.
    """
    node = service.node
    while True:
        routing = node.mgmtd.routing
        left = False
        for target in list(node.targets.values()):
            since = retired_since(routing, target.id)
            if not since or target.emptied == since or target.failed:
                continue
            home = homes.homes[target.disk]
            ours = home.cluster == routing.cluster == cluster and routing.version >= routing_version
            # Until new routing was taken in the target may have its role still.
            if ours and node.may_serve() and target.role is None and not target.empty:
                await _empty(service, homes, home, target, since)
            else:
                left = True
        with trio.move_on_after(RETRY_S if left else float("inf")):
            await node.mgmtd.wait_change(routing.version)


async def _empty(service: StorageService, homes: Homes, home: Home, target: LocalTarget, since: int) -> None:
    used = target.engine.used_bytes()
    await service.remove(target)
    try:
        home.forget(target.id)  # from now on a restart opens it empty
        for name in home.disk.files(home.folder(target.id)):  # one by one, since large ones take their time
            if parse_name(name) is not None:
                await home.disk.remove_file(f"{home.folder(target.id)}/{name}")
        fresh = home.open(target.id, service.node.env.monotonic())
        home.settle(target.id)
    except FS3Error as error:
        if error.code not in (Code.DISK_FAILED, Code.RECORDS_DAMAGED, Code.NO_SPACE):
            raise
        logger.error("target %d, which left its chain, cannot be emptied: %s", target.id, error.message)
        return
    fresh.empty = False
    fresh.emptied = since
    homes.targets[homes.targets.index(target)] = fresh
    service.add(fresh)
    service.node.env.metrics.count("storage.targets_emptied")
    logger.info("target %d has left its chain and is emptied: %d bytes are free again", target.id, used)
