"""`fs3 admin drain|replace|rebalance|set-replicas`: plans of moves are shown, and with --yes carried out by mgmtd."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.console import RenderableType

from ...api.admin import (
    GET_CONFIG,
    SET_CONFIG,
    SUBMIT,
    GetConfigRequest,
    Move,
    Operation,
    OperationState,
    SetConfigRequest,
    Setting,
    SubmitRequest,
)
from ...config import parse_size
from ...daemon import EXIT_ERROR, EXIT_OK
from ...errors import ConfigError
from ...ids import NodeKind
from ...placement import moves as planning
from ...placement import rebalance as rebalancing
from ...placement.moves import Plan
from ...routing import RoutingInfo
from ...settings import StorageSettings
from ..access import setter
from ..options import say, size
from ..status import human
from .common import Admin, Cluster, command, known_node, lasting, node_ids, ranges, rows_table, table_ids, yes_option
from .progress import Watcher, move_row, operation_row, pending_moves
from .rows import Row, counted
from .shows import known_table

ROWS_MAX = 40
"""Of a plan on a terminal; --all and --json show every move."""
SUBMIT_TIMEOUT_S = 30.0


class _Options:
    """The options of all commands that begin an operation."""

    def __init__(self, yes: bool, detach: bool, at_once: int, resync_rate: int | None, show_all: bool) -> None:
        self.yes = yes
        self.detach = detach
        self.at_once = at_once
        self.resync_rate = resync_rate
        self.show_all = show_all


def plan_command(group: click.Group, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command that makes a plan: the function gets an Admin and the _Options first."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def run(
            go: Admin, yes: bool, detach: bool, at_once: int, resync_rate: int | None, show_all: bool, **values: Any
        ) -> None:
            function(go, _Options(yes, detach, at_once, resync_rate, show_all), **values)

        run.__doc__ = function.__doc__
        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        wrapped: Callable[..., None] = run
        for option in reversed(_PLAN_OPTIONS):
            wrapped = option(wrapped)
        return command(group, name)(wrapped)

    return decorate


_PLAN_OPTIONS = (
    yes_option,
    click.option("--detach", is_flag=True, help="Return once it has begun; `fs3 admin operation watch` shows it."),
    click.option(
        "--at-once",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        help="How many targets may be filled at the same time.",
    ),
    click.option(
        "--resync-rate",
        type=size,
        metavar="SIZE",
        help="A second, at most, sent to each; set for all recoveries, as by `fs3 recovery`.",
    ),
    click.option("--all", "show_all", is_flag=True, help=f"Show all moves, not just the first {ROWS_MAX}."),
)


@click.group()
def _top() -> None:
    """Holds the commands until they join `fs3 admin`."""


@plan_command(_top, "drain")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=node_ids)
def drain(go: Admin, options: _Options, nodes: tuple[str, ...]) -> None:
    """Move everything away from nodes (by id or host), so that they can be taken out.

    They get no new targets from then on. Afterwards stop their daemons and `fs3 admin node forget` them; or take it back
    by `fs3 admin node undrain`. Dead nodes can be drained too, as long as other replicas serve.
    """

    def plan(routing: RoutingInfo, pending: Sequence[Move]) -> Plan:
        return planning.drain(routing, [storage_node(routing, node) for node in nodes], pending)

    propose(go, options, plan)


@plan_command(_top, "replace")
@click.argument("disk", metavar="NODE/DISK")
def replace(go: Admin, options: _Options, disk: str) -> None:
    """Move everything away from one disk, dead or alive, such as 101/0: then it can be taken out.

    `fs3 admin disk list` shows the numbers of disks, which are their places in the daemon's `data`.
    """
    number, slash, place = disk.partition("/")
    if not slash or not place.isdecimal():
        raise ConfigError(f"{disk!r}: expected NODE/DISK, such as 101/0; `fs3 admin disk list` shows all disks")

    def plan(routing: RoutingInfo, pending: Sequence[Move]) -> Plan:
        return planning.replace(routing, storage_node(routing, number), int(place), pending)

    propose(go, options, plan)


@plan_command(_top, "rebalance")
def rebalance(go: Admin, options: _Options) -> None:
    """Spread chains, and who leads them, evenly over all nodes and disks, such as after some were added."""
    propose(go, options, rebalancing.rebalance)


@plan_command(_top, "set-replicas")
@click.argument("table", type=int, metavar="TABLE", shell_complete=table_ids)
@click.argument("replicas", type=int, metavar="N")
def set_replicas(go: Admin, options: _Options, table: int, replicas: int) -> None:
    """Give each chain of a table more or fewer replicas; with the number that it has, mends chains that differ."""

    def plan(routing: RoutingInfo, pending: Sequence[Move]) -> Plan:
        known_table(routing, table)
        return planning.set_replicas(routing, table, replicas, pending)

    propose(go, options, plan)


def storage_node(routing: RoutingInfo, text: str) -> int:
    """The id of a storage node that an operator means. Raises CONFIG."""
    node = known_node(routing, text)
    if node.kind != NodeKind.STORAGE:
        storages = [other.id for other in routing.nodes.values() if other.kind == NodeKind.STORAGE]
        kind = NodeKind(node.kind).name.lower()
        raise ConfigError(f"node {node.id} is a {kind} daemon and holds no chunks; storage nodes are {ranges(storages)}")
    return node.id


Planner = Callable[[RoutingInfo, Sequence[Move]], Plan]


def propose(go: Admin, options: _Options, planner: Planner) -> None:
    """Show a plan; submit and watch it where the operator agrees. Ends the program with an exit code."""

    async def make(cluster: Cluster) -> tuple[RoutingInfo, Plan, int]:
        pending = await pending_moves(cluster)
        return cluster.routing, planner(cluster.routing, pending), await resync_rate(cluster, options)

    routing, plan, rate = go.visit(make)
    rows = [move_row(routing, move) for move in plan.moves]
    found = plan_row(plan, rows, estimate_s(plan, options.at_once, rate))
    if not go.as_json:
        for part in plan_view(found, options.show_all):
            go.console.print(part)
    if not plan.moves and not plan.drain and not plan.table:
        go.show(found, lambda: "Nothing is to be moved.")
        return
    if not go.confirmed(options.yes):
        if go.as_json:
            go.show(found, list)
        return
    sys.exit(carry_out(go, options, plan, found))


def carry_out(go: Admin, options: _Options, plan: Plan, found: Row) -> int:
    """Submit a plan and, unless detached, watch it to its end; the exit code."""

    async def submit(cluster: Cluster) -> Operation:
        token = cluster.env.random.getrandbits(63) | 1
        request = SubmitRequest(
            token, plan.kind, plan.title, plan.moves, options.at_once, plan.drain, plan.table, plan.replicas
        )
        await tune(cluster, options)
        return (await cluster.call(SUBMIT, request, SUBMIT_TIMEOUT_S)).operation

    operation = go.visit(submit)
    if options.detach:
        go.show({**found, "operation": operation_row(operation)}, lambda: goes_on(operation.id))
        return EXIT_OK
    return watch(go, operation.id, found)


def watch(go: Admin, number: int, found: Row | None = None) -> int:
    """Show an operation until its end; Ctrl-C leaves it running. The exit code: 0 where all is done."""

    async def run(cluster: Cluster) -> Operation:
        return await Watcher(cluster, number, go.console, None if go.as_json else say).run()

    try:
        operation = go.visit(run)
    except KeyboardInterrupt:
        click.echo(f"\n{goes_on(number)}", err=True)
        return EXIT_ERROR
    done = operation.state is OperationState.DONE
    go.show({**(found or {}), "operation": operation_row(operation)}, lambda: outcome(operation))
    return EXIT_OK if done else EXIT_ERROR


def goes_on(number: int) -> str:
    return (
        f"Operation {number} goes on by itself: `fs3 admin operation watch {number}` shows it,"
        f" `fs3 admin operation pause {number}` or `cancel {number}` holds it up."
    )


def outcome(operation: Operation) -> str:
    """The last words on an operation that is over."""
    if operation.state is OperationState.DONE:
        return f"Operation {operation.id} ({operation.title}) is done."
    state = operation.state.name.lower()
    return (
        f"Operation {operation.id} ({operation.title}) {'was' if state == 'cancelled' else 'has'} {state}:"
        f" `fs3 admin operation show {operation.id}` says why, `fs3 admin operation retry {operation.id}` begins anew"
        " what is not done."
    )


async def resync_rate(cluster: Cluster, options: _Options) -> int:
    """Bytes a second, at most, to each target that is being filled, as asked for or as it is set; 0: no limit."""
    if options.resync_rate is not None:
        return options.resync_rate
    settings = (await cluster.call(GET_CONFIG, GetConfigRequest("storage"))).settings
    known = {setting.key: setting.value for setting in settings}
    return parse_size(known[_RATE_KEY]) if _RATE_KEY in known else StorageSettings().resync_rate_bytes


_RATE_KEY = "resync_rate_bytes"


async def tune(cluster: Cluster, options: _Options) -> None:
    """Set how fast recoveries may go, where asked for."""
    if options.resync_rate is not None:
        setting = Setting(_RATE_KEY, str(options.resync_rate))
        await cluster.call(SET_CONFIG, SetConfigRequest("storage", (setting,), by=setter(), comment="fs3 admin"))


def estimate_s(plan: Plan, at_once: int, rate: int) -> float | None:
    """Seconds that the copying takes at least, so many targets at a time at so many bytes a second; None: not known."""
    adding = sum(1 for move in plan.moves if move.add)
    if not rate or not adding:
        return None
    return sum(plan.copied.values()) / (rate * min(at_once, adding))


def plan_row(plan: Plan, rows: list[Row], seconds: float | None) -> Row:
    """A plan as --json prints it."""
    return {
        "plan": {
            "kind": plan.kind,
            "title": plan.title,
            "notes": list(plan.notes),
            "drain": list(plan.drain),
            "table": plan.table,
            "replicas": plan.replicas,
            "copied_bytes": sum(plan.copied.values()),
            "copied_to": [{"node": node, "copied_bytes": count} for node, count in sorted(plan.copied.items())],
            "estimate_s": None if seconds is None else round(seconds),
            "moves": rows,
        }
    }


def plan_view(found: Row, show_all: bool) -> list[RenderableType]:
    """A plan for people."""
    plan = found["plan"]
    rows = plan["moves"]
    parts: list[RenderableType] = [f"[bold]{plan['title']}[/]: {counted(len(rows), 'move')}"]
    if rows:
        shown = rows if show_all else rows[:ROWS_MAX]
        parts.append(rows_table(shown, "chain from to head copied_bytes"))
        if len(shown) < len(rows):
            parts.append(f"... and {len(rows) - len(shown)} more (--all)")
        spread = [row["copied_bytes"] for row in plan["copied_to"]]
        words = f"{human(plan['copied_bytes'])} to copy"
        if spread:
            words += f", {human(min(spread))} to {human(max(spread))} to each of {counted(len(spread), 'node')}"
        if plan["estimate_s"]:
            words += f"; at least {lasting(plan['estimate_s'])}"
        parts.append(words + ".")
    return [*parts, *plan["notes"]]


commands = tuple(_top.commands.values())
