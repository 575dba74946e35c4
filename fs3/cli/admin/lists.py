"""`fs3 admin node|disk|target|chain|table|client list|show`: what a cluster consists of."""

from __future__ import annotations

import click

from .common import Admin, Cluster, command, rows_table
from .rows import Row, node_rows


@click.group("node")
def node() -> None:
    """The daemons: list, show."""


@command(node, "list")
@click.option("--kind", type=click.Choice(["meta", "storage"]), help="Only daemons of this kind.")
def node_list(go: Admin, kind: str | None) -> None:
    """List the daemons, with their targets and what lies on them."""

    async def gather(cluster: Cluster) -> list[Row]:
        return [row for row in node_rows(cluster.routing) if kind in (None, row["kind"])]

    rows = go.visit(gather)
    go.show(rows, lambda: rows_table(rows, _NODE_COLUMNS, right=_NUMBERS))


_NODE_COLUMNS = {
    "node": "node",
    "kind": "kind",
    "state": "state",
    "drained": "drained",
    "host": "host",
    "address": "address",
    "tags": "tags",
    "disks": "disks",
    "targets": "targets",
    "in_chains": "in chains",
    "free": "free",
    "used_bytes": "used",
    "capacity_bytes": "capacity",
}
_NUMBERS = ("node", "disks", "targets", "in_chains", "free", "used_bytes", "capacity_bytes")

commands = (node,)
