"""`fs3 status`: what a cluster consists of and how it is, as data and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..api.common import Empty
from ..api.mgmtd import CLUSTER_CONFIG, LIST_CLIENTS, ClientInfo, ClusterConfigReply
from ..client.mgmtd import MgmtdClient
from ..config import format_size
from ..errors import Code, FS3Error
from ..ids import NodeKind
from ..routing import Chain, PublicState, RoutingInfo, Target
from .access import visiting
from .mounts import FILE_SYSTEM_TYPE, is_stale, mounts

_TIMEOUT_MS = 5_000


async def gather(addresses: Sequence[str]) -> dict[str, Any]:
    """Ask mgmtd. Raises FS3Error where none of them answers."""
    async with visiting() as (env, rpc):
        mgmtd = MgmtdClient(env, rpc, addresses)
        try:
            config = await mgmtd.call(CLUSTER_CONFIG, Empty(), timeout_ms=_TIMEOUT_MS)
            routing = await mgmtd.refresh(0, timeout_ms=_TIMEOUT_MS)
            clients = (await mgmtd.call(LIST_CLIENTS, Empty(), timeout_ms=_TIMEOUT_MS)).clients
        except FS3Error as error:
            reason = f"no management daemon answers at {', '.join(addresses)} ({error})"
            raise FS3Error(Code.CONNECT_FAILED, reason) from None
    return report(config, routing, clients, local_mounts(routing.cluster))


def local_mounts(cluster: str) -> list[dict[str, Any]]:
    """A cluster's mounts on this machine."""
    found = [mount for mount in mounts() if mount.type == FILE_SYSTEM_TYPE and mount.source == f"fs3:{cluster}"]
    return [{"path": str(mount.path), "source": mount.source, "alive": not is_stale(mount.path)} for mount in found]


def report(
    config: ClusterConfigReply, routing: RoutingInfo, clients: Iterable[ClientInfo], here: list[dict[str, Any]]
) -> dict[str, Any]:
    """All that `fs3 status --json` prints. Sizes in bytes; capacity and used count every replica."""
    targets = [_target(routing, target) for _, target in sorted(routing.targets.items())]
    chains = [_chain(routing, chain) for _, chain in sorted(routing.chains.items())]
    states = [target["state"] for target in targets if target["chain"]]
    return {
        "cluster": routing.cluster,
        "routing_version": routing.version,
        "formatted": bool(config.version),
        "replicas": config.replicas,
        "chunk_size": config.chunk_size,
        "stripe": config.stripe,
        "serving": bool(chains) and all(state == "serving" for state in states),
        "available": bool(chains) and all(chain.head() is not None for chain in routing.chains.values()),
        "capacity": sum(target["capacity"] for target in targets),
        "used": sum(target["used"] for target in targets),
        "nodes": [
            {
                "id": node.id,
                "kind": NodeKind(node.kind).name.lower(),
                "address": node.address,
                "host": node.host,
                "alive": node.alive,
                "targets": sum(target["node"] == node.id for target in targets),
            }
            for _, node in sorted(routing.nodes.items())
            if node.kind != NodeKind.CLIENT
        ],
        "chains": chains,
        "targets": targets,
        "clients": [{"id": client.client, "host": client.host, "alive": client.alive} for client in clients],
        "mounts": here,
    }


def _target(routing: RoutingInfo, target: Target) -> dict[str, Any]:
    chain = routing.chains.get(target.chain)
    state = chain.state_of(target.id) if chain is not None else None
    return {
        "id": target.id,
        "node": target.node,
        "disk": target.disk,
        "chain": target.chain,
        "state": state.name.lower() if state is not None else "unused",
        "capacity": target.capacity,
        "used": target.used,
    }


def _chain(routing: RoutingInfo, chain: Chain) -> dict[str, Any]:
    targets = []
    for entry in chain.targets:
        target = routing.targets.get(entry.target)
        targets.append({"target": entry.target, "node": target.node if target else 0, "state": entry.state.name.lower()})
    return {"id": chain.id, "version": chain.version, "targets": targets}


def render(found: dict[str, Any], console: Console) -> None:
    """Print a report for people."""
    health = "[green]all targets serve[/]" if found["serving"] else "[yellow]available, but not all targets serve[/]"
    if not found["formatted"]:
        health = "[red]not formatted[/]"
    elif not found["available"]:
        health = "[red]some chains have no serving target[/]"
    console.print(f"cluster {found['cluster'] or '?'}: {health} (routing version {found['routing_version']})")
    console.print(
        f"{found['replicas']} replicas, chunks of {format_size(found['chunk_size'])},"
        f" used {human(found['used'])} of {human(found['capacity'])} over all replicas"
    )
    nodes = plain_table("node", "kind", "address", "host", "alive", "targets")
    for node in found["nodes"]:
        alive = "[green]yes[/]" if node["alive"] else "[red]no[/]"
        nodes.add_row(str(node["id"]), node["kind"], node["address"], node["host"], alive, str(node["targets"] or ""))
    console.print(nodes)
    chains = plain_table("chain", "version", "targets, head first (state, node)")
    for chain in found["chains"]:
        entries = [f"{entry['target']} {_coloured(entry['state'])} @{entry['node']}" for entry in chain["targets"]]
        chains.add_row(str(chain["id"]), str(chain["version"]), "   ".join(entries))
    console.print(chains)
    alive = sum(client["alive"] for client in found["clients"])
    console.print(f"{alive} client{'' if alive == 1 else 's'} connected")
    for mount in found["mounts"]:
        console.print(f"mounted here at {mount['path']}{'' if mount['alive'] else ' ([red]its daemon is gone[/])'}")


def plain_table(*columns: str) -> Table:
    """A table without frames, for logs and pipes as well as terminals."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def human(size: float) -> str:
    """A size in bytes, rounded for people: 1.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def _coloured(state: str) -> str:
    colour = {PublicState.SERVING.name.lower(): "green", PublicState.OFFLINE.name.lower(): "red"}.get(state, "yellow")
    return f"[{colour}]{state}[/]"
