"""`fs3 admin placement`: designs chain tables, and says how evenly a failure would spread, against what is possible."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from ...api.admin import CREATE_TABLE, CreateTableReply, CreateTableRequest, Move
from ...errors import ConfigError, FS3Error
from ...ids import NodeKind
from ...placement.balance import measure
from ...placement.chain_file import ChainFile, check_chains, render, render_json
from ...placement.design import Solver
from ...placement.moves import GROW_STEPS, new_chains
from ...placement.place import Placed, place_well
from ...placement.solver import solver
from ...routing import LocalState, Node, RoutingInfo, Target
from .common import Admin, Cluster, command, table, table_ids, yes_option
from .progress import pending_moves
from .rows import Row, counted
from .shows import known_table

NODES_MAX = 2_000


@click.group()
def _top() -> None:
    """Holds the command until it joins `fs3 admin`."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A cluster that need not exist."""

    nodes: int
    disks: int
    targets_per_disk: int
    racks: int


_dry = (
    click.option(
        "--nodes",
        type=click.IntRange(1, NODES_MAX),
        metavar="N",
        help="Design for so many storage nodes, which need not exist; without it: of the cluster's free targets.",
    ),
    click.option("--disks", type=click.IntRange(1, 99), metavar="N", help="With --nodes: disks of each.  [default: 1]"),
    click.option("--targets-per-disk", type=click.IntRange(1, 99), metavar="N", help="With --nodes.  [default: 4]"),
    click.option("--racks", type=click.IntRange(0), metavar="N", help="With --nodes: racks that they are spread over."),
)


def _dry_options(function: Any) -> Any:
    for option in reversed(_dry):
        function = option(function)
    return function


@command(_top, "placement")
@_dry_options
@click.option(
    "--replicas", type=click.IntRange(min=1), metavar="N", help="Targets of each chain.  [default: the table's, or 3]"
)
@click.option(
    "--table", "number", type=int, metavar="TABLE", help="Chains that are to be added to a table.", shell_complete=table_ids
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For the solver, which is asked where the search has not reached the bound; 0: do not ask it.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write a chain file; FILE.json: as JSON.")
@click.option("--create", is_flag=True, help="Make a chain table of it, or add to --table.")
@yes_option
def placement(
    go: Admin,
    nodes: int | None,
    disks: int | None,
    targets_per_disk: int | None,
    racks: int | None,
    replicas: int | None,
    number: int | None,
    time_limit: float,
    output: Path | None,
    create: bool,
    yes: bool,
) -> None:
    """Design chains so that when a node fails, all others share the work of it evenly.

    Any two nodes are to share equally many chains, and every node leads equally many. Two replicas of a chain are never on
    one node, nor in one rack (tags = "rack=NAME" of storage daemons) where there are enough racks. Nothing is changed
    without --create.
    """
    ask = solver(time_limit) if time_limit > 0 else None
    shape = _shape(nodes, disks, targets_per_disk, racks)
    if shape is not None and (number is not None or create):
        raise ConfigError("--nodes designs for a cluster that need not exist: leave it out for --table and --create")
    started = time.perf_counter()
    if shape is not None:
        routing = imagined(shape)
        placed = place_well(routing.targets.values(), replicas or 3, routing.nodes, steps=GROW_STEPS, solver=ask)
    else:
        routing, placed = go.visit(lambda cluster: of_cluster(cluster, number or 0, replicas, ask))
    seconds = time.perf_counter() - started
    found = report(routing, placed, time_limit, seconds)
    if output is not None:
        found["file"] = write(output, placed, found)
    if not go.as_json:
        for part in view(found):
            go.console.print(part)
    if not create or not go.confirmed(yes):
        if go.as_json:
            go.show(found, list)
        return
    reply = go.visit(lambda cluster: make_table(cluster, placed, number or 0))
    made = {**found, "table": reply.table, "version": reply.version}
    go.show(made, lambda: f"Table {reply.table} is there, version {reply.version}; `fs3 admin table show {reply.table}`.")


def _shape(nodes: int | None, disks: int | None, targets_per_disk: int | None, racks: int | None) -> _Shape | None:
    """Raises CONFIG."""
    if nodes is None:
        given = {"--disks": disks, "--targets-per-disk": targets_per_disk, "--racks": racks}
        for option, value in given.items():
            if value is not None:
                raise ConfigError(f"{option} goes with --nodes, which designs for a cluster that need not exist")
        return None
    if racks and racks > nodes:
        raise ConfigError(f"{racks} racks for {nodes} nodes: expected at most {nodes}, or 0 where they are not told")
    return _Shape(nodes, disks or 1, targets_per_disk or 4, racks or 0)


def imagined(shape: _Shape) -> RoutingInfo:
    """Nodes 1, 2, ... with the target ids that their fresh disks get; racks of nodes that are neighbours."""
    nodes, targets = {}, {}
    for node in range(1, shape.nodes + 1):
        tags = (f"rack={(node - 1) * shape.racks // shape.nodes + 1}",) if shape.racks else ()
        nodes[node] = Node(node, NodeKind.STORAGE, "", "", True, 1, tags)
        for disk in range(shape.disks):
            for index in range(shape.targets_per_disk):
                target = node * 10_000 + disk * 100 + index + 1
                targets[target] = Target(target, node, disk, 0, LocalState.UPTODATE, 1, 0)
    return RoutingInfo(1, "", targets=targets, nodes=nodes)


async def of_cluster(cluster: Cluster, number: int, replicas: int | None, ask: Solver | None) -> tuple[RoutingInfo, Placed]:
    """Chains of all free targets. Raises CONFIG."""
    routing = cluster.routing
    if number:
        known_table(routing, number)
        have = routing.tables[number].replicas
        if replicas not in (None, have):
            raise ConfigError(
                f"table {number} has {have} replicas: `fs3 admin set-replicas` changes that for all its chains"
            )
        replicas = have
    pending: tuple[Move, ...] = tuple(await pending_moves(cluster))
    try:
        return routing, new_chains(routing, replicas or 3, pending, steps=GROW_STEPS, solver=ask)
    except FS3Error as error:
        raise ConfigError(f"{error.message}; `fs3 admin node list` shows what is free") from None


async def make_table(cluster: Cluster, placed: Placed, number: int) -> CreateTableReply:
    """Raises FS3Error."""
    replicas = len(placed.chains[0])
    check_chains(placed.chains, replicas, cluster.routing)
    token = cluster.env.random.getrandbits(63) | 1
    return await cluster.call(CREATE_TABLE, CreateTableRequest(placed.chains, replicas, number, token), 30.0)


def write(path: Path, placed: Placed, found: Row) -> str:
    """Write a chain file; returns its name. Raises CONFIG."""
    made = ChainFile(len(placed.chains[0]), placed.chains)
    shared = found["shared"]
    comment = (
        f"{counted(found['chains_made'], 'chain')} of {made.replicas} on {counted(found['nodes'], 'node')};"
        f" any two share {shared['least']} to {shared['most']} (bound {shared['bound_least']} to {shared['bound_most']})"
    )
    try:
        path.write_text(render_json(made) if path.suffix == ".json" else render(made, comment), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    return str(path)


def report(routing: RoutingInfo, placed: Placed, time_limit_s: float, seconds: float) -> Row:
    """A design as --json prints it, together with the chains that are there already. Shares are parts of 1."""
    design = placed.design
    others = [[entry.target for entry in chain.targets] for chain in routing.chains.values()]
    balance = measure([*others, *placed.chains], {t.id: (t.node, t.disk) for t in routing.targets.values()})
    replicas = len(placed.chains[0])
    return {
        "nodes": balance.nodes,
        "racks": placed.domains if placed.racks else 0,
        "replicas": replicas,
        "chains_made": len(placed.chains),
        "chains_there": len(others),
        "unused_targets": placed.unused,
        "shared": {
            "least": design.least,
            "most": design.most,
            "bound_least": design.bound.least,
            "bound_most": design.bound.most,
        },
        "method": design.method,
        "proof": design.proof,
        "node_chains": list(balance.node_chains),
        "disk_chains": list(balance.disk_chains),
        "leads": list(balance.leads),
        "shares": {
            "node": balance.share,
            "node_bound": min(1.0, design.bound.most / max(1, balance.work)),
            "even": balance.share_ideal,
            "disk": balance.disk_share,
            "disk_bound": balance.disk_share_ideal,
        },
        "takeover": {"most": balance.takeover, "bound_most": balance.takeover_ideal},
        "seconds": round(seconds, 2),
        "notes": _notes(placed, replicas, time_limit_s),
        "chains": [list(chain) for chain in placed.chains],
    }


def _notes(placed: Placed, replicas: int, time_limit_s: float) -> list[str]:
    notes = []
    if placed.racks and placed.limit > 1:
        notes.append(
            f"{placed.domains} racks are too few for {replicas} replicas: up to {placed.limit} of a chain are in one rack"
        )
    if placed.unused:
        notes.append(f"{counted(placed.unused, 'target')} left over: no further chain could be made of them")
    if not placed.design.proof:
        asked = f"the solver did not settle it within {time_limit_s:g} s, or there are too many nodes for it"
        why = asked if time_limit_s else "the solver was not asked (--time-limit)"
        notes.append(f"the bound is not reached, and may be out of reach: {why}")
    return notes


def view(found: Row) -> list[RenderableType]:
    """A design for people."""
    shares, shared, takeover = found["shares"], found["shared"], found["takeover"]
    racks = f" in {counted(found['racks'], 'rack')}" if found["racks"] else ""
    chains = f"{counted(found['chains_made'], 'chain')} of {counted(found['replicas'], 'replica')}"
    parts: list[RenderableType] = [f"[bold]{chains}[/] on {counted(found['nodes'], 'node')}{racks}"]
    if found["chains_there"]:
        parts.append(f"With the {counted(found['chains_there'], 'chain')} that are there:")
    rows = table("", "reached", "bound")
    rows.add_row(
        "chains that two nodes share",
        f"{shared['least']} to {shared['most']}",
        f"{shared['bound_least']} to {shared['bound_most']}",
    )
    if found["replicas"] > 1:
        rows.add_row(
            "work of one peer when a node fails, at most",
            _percent(shares["node"]),
            f"{_percent(shares['node_bound'])} (even: {_percent(shares['even'])})",
        )
        rows.add_row("the same when a disk fails", _percent(shares["disk"]), _percent(shares["disk_bound"]))
        rows.add_row("leads that one peer takes over, at most", str(takeover["most"]), str(takeover["bound_most"]))
    rows.add_row("chains of a node", _range(found["node_chains"]), "")
    rows.add_row("chains of a disk", _range(found["disk_chains"]), "")
    rows.add_row("chains that a node leads", _range(found["leads"]), "")
    parts.append(rows)
    proof = f": {found['proof']}" if found["proof"] else ""
    parts.append(f"Found by {found['method']} in {found['seconds']} s{proof}.")
    parts += [f"Note: {note}." for note in found["notes"]]
    if "file" in found:
        parts.append(f"Written to {found['file']}; `fs3 admin table create --file {found['file']}` makes a table of it.")
    return parts


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %"


def _range(bounds: list[int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"


commands = tuple(_top.commands.values())
