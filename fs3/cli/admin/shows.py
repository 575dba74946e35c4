"""`fs3 admin node|target|chain|table show`: one of them in detail, with what its daemon says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
from rich.console import RenderableType
from rich.table import Table

from ...api.common import STATUS, Empty, StatusReply
from ...api.mgmtd import CLUSTER_CONFIG
from ...errors import ConfigError, FS3Error
from ...routing import RoutingInfo
from .common import (
    Admin,
    Cluster,
    cell,
    chain_ids,
    command,
    known_node,
    lasting,
    node_ids,
    ranges,
    rows_table,
    table,
    table_ids,
    target_ids,
    title,
)
from .lists import chain, node, target
from .lists import table as table_group
from .rows import Row, chain_rows, disk_rows, node_rows, percent, table_rows, target_rows

commands: tuple[click.Command, ...] = ()
"""They join the groups of lists.py."""

_RESYNC = "storage.resync."


@command(node, "show")
@click.argument("node", metavar="NODE", shell_complete=node_ids)
def node_show(go: Admin, node: str) -> None:
    """Show a daemon (by id, or by host): version, disks, targets and their chains."""

    async def gather(cluster: Cluster) -> Row:
        known = known_node(cluster.routing, node)
        row = next(row for row in node_rows(cluster.routing) if row["node"] == known.id)
        statuses = await cluster.ask_all([known] if known.alive else [], STATUS, Empty())
        row["status"] = status_row(statuses.get(known.id))
        row["disk_list"] = [row for row in disk_rows(cluster.routing) if row["node"] == known.id]
        row["target_list"] = [row for row in target_rows(cluster.routing) if row["node"] == known.id]
        return row

    found = go.visit(gather)
    go.show(
        found,
        lambda: [
            properties(found, "node kind state drained host address tags used_bytes capacity_bytes", found["status"]),
            *titled("disks", found["disk_list"], "disk state targets in_chains free retired used_bytes capacity_bytes"),
            *titled("targets", found["target_list"], "target disk chain state local used_bytes capacity_bytes"),
        ],
    )


@command(target, "show")
@click.argument("target", type=int, metavar="TARGET", shell_complete=target_ids)
def target_show(go: Admin, target: int) -> None:
    """Show a target and its chain."""

    async def gather(cluster: Cluster) -> Row:
        routing = cluster.routing
        if target not in routing.targets:
            raise ConfigError(f"target {target}: there is no such target; `fs3 admin target list` shows all")
        row = next(row for row in target_rows(routing) if row["target"] == target)
        row["chain_list"] = [found for found in chain_rows(routing) if found["chain"] == row["chain"]]
        row["recovery"] = await recovery(cluster, row["chain"]) if row["state"] == "syncing" else None
        return row

    found = go.visit(gather)
    keys = "target node node_state disk chain state local used_bytes capacity_bytes"
    go.show(
        found,
        lambda: [
            properties(found, keys, found["recovery"]),
            *titled("chain", found["chain_list"], "chain version state tables replicas wanted targets"),
        ],
    )


@command(chain, "show")
@click.argument("chain", type=int, metavar="CHAIN", shell_complete=chain_ids)
def chain_show(go: Admin, chain: int) -> None:
    """Show a chain: its targets, where they are, and how far the one that is being filled is."""

    async def gather(cluster: Cluster) -> Row:
        known_chain(cluster.routing, chain)
        row = next(row for row in chain_rows(cluster.routing) if row["chain"] == chain)
        known = {row["target"]: row for row in target_rows(cluster.routing)}
        row["target_list"] = [known[entry["target"]] for entry in row["targets"] if entry["target"] in known]
        row["recovery"] = await recovery(cluster, chain)
        return row

    found = go.visit(gather)
    go.show(
        found,
        lambda: [
            properties(found, "chain version state tables replicas wanted used_bytes", found["recovery"]),
            *titled("targets", found["target_list"], "target node disk state local node_state used_bytes capacity_bytes"),
        ],
    )


@command(table_group, "show")
@click.argument("table", type=int, metavar="TABLE", shell_complete=table_ids)
def table_show(go: Admin, table: int) -> None:
    """Show a chain table and its chains."""

    async def gather(cluster: Cluster) -> Row:
        known_table(cluster.routing, table)
        config = await cluster.call(CLUSTER_CONFIG, Empty())
        row = next(row for row in table_rows(cluster.routing, config.table) if row["table"] == table)
        row["lengths"] = list(cluster.routing.tables[table].lengths)
        row["chain_list"] = [row for row in chain_rows(cluster.routing) if table in row["tables"]]
        return row

    found = go.visit(gather)
    keys = "table version default replicas chains degraded unavailable used_bytes capacity_bytes"
    go.show(
        found,
        lambda: [
            properties(found, keys, {"chains at each version": found["lengths"]} if found["lengths"] else None),
            *titled("chains", found["chain_list"], "chain version state replicas used_bytes targets"),
        ],
    )


def known_chain(routing: RoutingInfo, chain: int) -> None:
    """Raises CONFIG where there is no such chain."""
    if chain not in routing.chains:
        raise ConfigError(f"chain {chain}: there is no such chain; `fs3 admin chain list` shows {ranges(routing.chains)}")


def known_table(routing: RoutingInfo, table: int) -> None:
    """Raises CONFIG where there is no such chain table."""
    if table not in routing.tables:
        raise ConfigError(f"table {table}: there is no such table; `fs3 admin table list` shows {ranges(routing.tables)}")


def properties(row: Row, keys: str, more: dict[str, Any] | None = None) -> Table:
    """Names and values, one below the other."""
    made = table("", "")
    made.show_header = False
    for key in keys.split():
        made.add_row(title(key), cell(key, row[key]))
    for key, value in (more or {}).items():
        made.add_row(title(key), cell(key, value))
    return made


def titled(name: str, rows: list[Row], columns: str) -> Iterable[RenderableType]:
    """A table with a title above it; nothing where it has no rows."""
    return ["", f"[bold]{name}[/]", rows_table(rows, columns)] if rows else []


def status_row(status: StatusReply | FS3Error | None) -> dict[str, Any]:
    """What a daemon said of itself."""
    if status is None:
        return {"answers": False}
    if isinstance(status, FS3Error):
        return {"answers": False, "error": status.message}
    return {"answers": True, "version": status.version, "up": lasting(status.uptime_ms / 1000)}


async def recovery(cluster: Cluster, chain: int) -> dict[str, Any] | None:
    """How far the target of a chain that is being filled is, as its source tells; None where nothing is known."""
    serving = cluster.routing.chains[chain].serving()
    nodes = [found for found in [cluster.routing.node_of(target) for target in serving] if found is not None and found.alive]
    for reply in (await cluster.ask_all(nodes, STATUS, Empty())).values():
        if not isinstance(reply, FS3Error):
            found = progress(json.loads(reply.metrics), chain)
            if found is not None:
                return found
    return None


def progress(metrics: dict[str, float], chain: int) -> dict[str, Any] | None:
    """How far the recovery of a chain is by its source's metrics; None where that is not the source."""
    total = metrics.get(f"{_RESYNC}{chain}.bytes_total")
    if total is None:
        return None
    compared = metrics.get(f"{_RESYNC}{chain}.bytes_compared", 0)
    return {
        "compared_bytes": int(compared),
        "total_bytes": int(total),
        "sent_bytes": int(metrics.get(f"{_RESYNC}{chain}.bytes_sent", 0)),
        "compared_percent": percent(compared, total),
    }
