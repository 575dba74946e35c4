"""`fs3 admin node|disk|target|chain|table|client list`: what a cluster consists of."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import click
import trio
from rich.live import Live

from ...api.common import Empty
from ...api.mgmtd import CLUSTER_CONFIG, LIST_CLIENTS
from .common import Admin, Cluster, command, known_node, node_ids, rows_table
from .rows import STATES, Row, chain_rows, client_rows, disk_rows, node_rows, table_rows, target_rows


@click.group("node")
def node() -> None:
    """Daemons and the machines that they run on."""


@click.group("disk")
def disk() -> None:
    """Disks of storage daemons."""


@click.group("target")
def target() -> None:
    """Targets: the parts of disks that chains are made of."""


@click.group("chain")
def chain() -> None:
    """Chains: the targets that hold the same chunks."""


@click.group("table")
def table() -> None:
    """Chain tables: the chains that files are spread over."""


@click.group("client")
def client() -> None:
    """Clients, such as mounts."""


commands = (node, disk, target, chain, table, client)

watch_option = click.option(
    "--watch", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Show it again every so many seconds, until Ctrl-C."
)


def listing(go: Admin, gather: Callable[[Cluster], Awaitable[list[Row]]], columns: str, watch: float | None) -> None:
    """Show rows, once or again and again: on a terminal in the same place, else one below the other, JSON a line each."""

    async def forever(cluster: Cluster) -> None:
        console = go.console
        live = Live(console=console, auto_refresh=False, screen=True) if console.is_terminal and not go.as_json else None
        if live is not None:
            live.start()
        try:
            while True:
                rows = await gather(cluster)
                if go.as_json:
                    click.echo(json.dumps(rows))
                elif live is not None:
                    live.update(rows_table(rows, columns), refresh=True)
                else:
                    console.print(rows_table(rows, columns), "")
                await trio.sleep(watch or 0)
                await cluster.reload()
        finally:
            if live is not None:
                live.stop()

    if watch is not None:
        try:
            go.visit(forever)
        except KeyboardInterrupt:
            return
    else:
        found = go.visit(gather)
        go.show(found, lambda: rows_table(found, columns))


@command(node, "list")
@click.option("--kind", type=click.Choice(["mgmtd", "meta", "storage"]), help="Only daemons of this kind.")
@watch_option
def node_list(go: Admin, kind: str | None, watch: float | None) -> None:
    """List the daemons, with their targets and what lies on them."""

    async def gather(cluster: Cluster) -> list[Row]:
        return [row for row in node_rows(cluster.routing) if kind in (None, row["kind"])]

    columns = "node kind state drained host address tags disks targets in_chains free retired used_bytes capacity_bytes"
    listing(go, gather, columns, watch)


@command(disk, "list")
@click.option("--node", "of_node", metavar="NODE", shell_complete=node_ids, help="Only of this node.")
@watch_option
def disk_list(go: Admin, of_node: str | None, watch: float | None) -> None:
    """List the disks, as the targets on them tell of them. `fs3 admin replace NODE/DISK` empties one."""

    async def gather(cluster: Cluster) -> list[Row]:
        only = known_node(cluster.routing, of_node).id if of_node else None
        return [row for row in disk_rows(cluster.routing) if only in (None, row["node"])]

    columns = "node disk host state targets in_chains free retired used_bytes capacity_bytes used_percent"
    listing(go, gather, columns, watch)


@command(target, "list")
@click.option("--node", "of_node", metavar="NODE", shell_complete=node_ids, help="Only of this node.")
@click.option("--chain", "of_chain", type=int, metavar="CHAIN", help="Only of this chain; 0: of none.")
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Only in this state; may be given several times.")
@watch_option
def target_list(go: Admin, of_node: str | None, of_chain: int | None, state: tuple[str, ...], watch: float | None) -> None:
    """List the targets and their states: in their chain, or unused, offline or retired (to be emptied)."""

    async def gather(cluster: Cluster) -> list[Row]:
        only = known_node(cluster.routing, of_node).id if of_node else None
        return [
            row
            for row in target_rows(cluster.routing)
            if only in (None, row["node"]) and of_chain in (None, row["chain"]) and (not state or row["state"] in state)
        ]

    columns = "target node disk chain state local node_state used_bytes capacity_bytes"
    listing(go, gather, columns, watch)


@command(chain, "list")
@click.option("--degraded", is_flag=True, help="Only chains that lack a replica, or of which none serves.")
@click.option("--table", "of_table", type=int, metavar="TABLE", help="Only of this chain table.")
@click.option("--node", "of_node", metavar="NODE", shell_complete=node_ids, help="Only with a target on this node.")
@watch_option
def chain_list(go: Admin, degraded: bool, of_table: int | None, of_node: str | None, watch: float | None) -> None:
    """List the chains, with their targets, head first: TARGET@NODE, and its state where it does not serve."""

    async def gather(cluster: Cluster) -> list[Row]:
        only = known_node(cluster.routing, of_node).id if of_node else None
        return [
            row
            for row in chain_rows(cluster.routing)
            if (not degraded or row["state"] != "healthy")
            and (of_table is None or of_table in row["tables"])
            and (only is None or only in [entry["node"] for entry in row["targets"]])
        ]

    columns = "chain version state tables replicas wanted used_bytes targets"
    listing(go, gather, columns, watch)


@command(table, "list")
@watch_option
def table_list(go: Admin, watch: float | None) -> None:
    """List the chain tables, with how many of their chains lack a replica."""

    async def gather(cluster: Cluster) -> list[Row]:
        config = await cluster.call(CLUSTER_CONFIG, Empty())
        return table_rows(cluster.routing, config.table)

    columns = "table version default replicas chains degraded unavailable used_bytes capacity_bytes"
    listing(go, gather, columns, watch)


@command(client, "list")
@click.option("--alive", is_flag=True, help="Only those that are alive.")
@watch_option
def client_list(go: Admin, alive: bool, watch: float | None) -> None:
    """List the clients. One that is dead is kept until its open files are closed."""

    async def gather(cluster: Cluster) -> list[Row]:
        rows = client_rows((await cluster.call(LIST_CLIENTS, Empty())).clients)
        return [row for row in rows if not alive or row["state"] == "alive"]

    listing(go, gather, "client host state", watch)
