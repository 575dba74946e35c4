"""`fs3 format`: make the chain table of a new cluster."""

from __future__ import annotations

import trio

from ..api.common import Empty
from ..api.mgmtd import CLUSTER_CONFIG, FORMAT, FormatRequest
from ..client.mgmtd import MgmtdClient
from ..errors import Code, FS3Error
from ..ids import NodeKind
from .access import visiting

STRIPE_ALL = 1 << 16
"""More than there are chains: a file is spread over all of them."""

_POLL_S = 0.1


async def registered(mgmtd: MgmtdClient, storages: int) -> bool:
    """Whether so many storage daemons, with their targets, have come."""
    routing = await mgmtd.refresh(mgmtd.routing.version, timeout_ms=200)
    nodes = {node.id for node in routing.nodes_of(NodeKind.STORAGE)}
    return len(nodes) >= storages and nodes <= {target.node for target in routing.targets.values()}


async def formatted(mgmtd: MgmtdClient) -> bool:
    """Whether the cluster has a chain table."""
    return (await mgmtd.call(CLUSTER_CONFIG, Empty(), timeout_ms=10_000)).version > 0


async def make_table(mgmtd: MgmtdClient, replicas: int, chunk_size: int, stripe: int = STRIPE_ALL) -> int:
    """Format; returns the number of chains. A first attempt whose answer was lost counts."""
    try:
        return (await mgmtd.call(FORMAT, FormatRequest(replicas, chunk_size, stripe))).chains
    except FS3Error as error:
        if error.code is not Code.ALREADY_FORMATTED:
            raise
        return len((await mgmtd.refresh(0)).chains)


async def format_cluster(
    addresses: tuple[str, ...], storages: int, replicas: int, chunk_size: int, stripe: int, if_needed: bool, timeout_s: float
) -> str:
    """Wait for the storage daemons, then format. Returns what was done, in words. Raises FS3Error."""
    async with visiting() as (env, rpc):
        mgmtd = MgmtdClient(env, rpc, addresses)
        if await formatted(mgmtd):
            if if_needed:
                return "formatted already"
            raise FS3Error(Code.ALREADY_FORMATTED, "the cluster is formatted already; nothing was changed")
        with trio.move_on_after(timeout_s):
            while True:
                if await registered(mgmtd, storages):
                    chains = await make_table(mgmtd, replicas, chunk_size, stripe)
                    return f"formatted: {chains} chains of {replicas} targets"
                await trio.sleep(_POLL_S)
        raise FS3Error(Code.DEADLINE_EXCEEDED, f"waited {timeout_s:.0f} s in vain for {storages} storage daemons")
