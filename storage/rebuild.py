"""Targets that lost what they held come back empty, to be filled by their chain; but only where another one serves it.

Two kinds: the records of a target are damaged, so that it could not be opened; or its disk is new, or was replaced, so that
it is empty while its chain may count on it. The last copy of a chain never comes back empty: it stays offline, and an
operator is told.
"""

from __future__ import annotations

import logging
from enum import Enum, auto

from fs3.errors import Code, FS3Error
from fs3.routing import PublicState, RoutingInfo

from .disks import ClosedTarget, Home
from .local import LocalTarget, StorageNode

logger = logging.getLogger("fs3.storage.rebuild")


class Verdict(Enum):
    """What an empty target may do."""

    RETURN = auto()
    """Come back: its chain is served by another one, or it is in none."""
    WAIT = auto()
    """Nothing, until another target of its chain serves."""
    LAST = auto()
    """Nothing: it was the last that served its chain."""


def verdict(routing: RoutingInfo, target: int) -> Verdict:
    """Judge by routing that knows of our present incarnation, by which the target does not serve."""
    for chain in routing.chains.values():
        state = chain.state_of(target)
        if state is None:
            continue
        if state is PublicState.LASTSRV:
            return Verdict.LAST
        if state is not PublicState.SERVING and chain.serving():
            return Verdict.RETURN
        return Verdict.WAIT
    return Verdict.RETURN


async def settle_empty(node: StorageNode, target: LocalTarget, home: Home) -> None:
    """Let an open, empty target speak for itself as soon as it may."""
    await _until_it_may_return(node, target.id, f"is empty, on {home.disk.name}")
    try:
        home.settle(target.id)
    except FS3Error as error:
        node.disk_failed(target, error)
        return
    target.empty = False
    node.on_change()


async def reopen(node: StorageNode, closed: ClosedTarget) -> LocalTarget | None:
    """Throw away what is left of a target whose records are damaged, and open it afresh, once it may be; None where its
    disk fails."""
    await _until_it_may_return(node, closed.id, f"cannot be read: {closed.reason}")
    home = closed.home
    try:
        home.forget(closed.id)
        target = home.open(closed.id, node.env.monotonic())
        home.settle(closed.id)
    except FS3Error as error:
        if error.code not in (Code.DISK_FAILED, Code.RECORDS_DAMAGED, Code.NO_SPACE):
            raise
        logger.error("target %d cannot be made anew: %s", closed.id, error.message)
        return None
    target.empty = False
    node.env.metrics.count("storage.targets_rebuilt")
    logger.warning("target %d is made anew, and its chain will fill it; it was: %s", closed.id, closed.reason)
    return target


async def _until_it_may_return(node: StorageNode, target: int, what: str) -> None:
    complained = False
    while True:
        routing = node.mgmtd.routing
        found = verdict(routing, target)
        if found is Verdict.RETURN:
            return
        if found is Verdict.LAST and not complained:
            complained = True
            logger.error(
                "target %d %s, but it is the last copy of its chain: it stays offline; bring back its data or its disk",
                target,
                what,
            )
        await node.mgmtd.wait_change(routing.version)
