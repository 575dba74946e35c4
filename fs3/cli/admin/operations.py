"""`fs3 admin operation ...`: plans under way, as mgmtd carries them out."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from ...api.admin import (
    CONTROL,
    LIST_OPERATIONS,
    Control,
    ControlRequest,
    ListOperationsRequest,
    MoveState,
    Operation,
)
from ...errors import Code, ConfigError, FS3Error
from .common import Admin, Cluster, command, yes_option
from .lists import listing, watch_option
from .plans import ROWS_MAX, watch
from .progress import filled_parts, find_operation, move_row, moves_of, operation_row, standing
from .rows import Row, counted
from .shows import properties, titled


@click.group("operation")
def operation() -> None:
    """Drains, replacements and other plans that are under way, or over."""


commands = (operation,)


@command(operation, "list")
@click.option("--running", is_flag=True, help="Only those that are not over.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@watch_option
def operation_list(go: Admin, running: bool, limit: int, watch: float | None) -> None:
    """List operations, the newest first, with their moves by state."""

    async def gather(cluster: Cluster) -> list[Row]:
        found = (await cluster.call(LIST_OPERATIONS, ListOperationsRequest(limit))).operations
        rows = [operation_row(entry) for entry in sorted(found, key=lambda entry: entry.id, reverse=True)]
        return [{**row, "begun": moment(row["created_ms"])} for row in rows if not running or not row["ended_ms"]]

    listing(go, gather, "operation title state begun at_once moves waiting filling done failed cancelled", watch)


def moment(wall_ms: int) -> str:
    """A time of the wall clock in the local time zone."""
    return datetime.fromtimestamp(wall_ms / 1000).astimezone().isoformat(" ", "seconds") if wall_ms else ""


_number = click.argument("operation", type=int, metavar="OPERATION")


@command(operation, "show")
@_number
@click.option(
    "--state",
    "states",
    type=click.Choice([state.name.lower() for state in MoveState]),
    multiple=True,
    help="Only moves in this state; may be given several times.",
)
@click.option("--all", "show_all", is_flag=True, help=f"Show all moves, not just the first {ROWS_MAX}.")
def operation_show(go: Admin, operation: int, states: tuple[str, ...], show_all: bool) -> None:
    """Show an operation: how far it is, its moves, and what those wait for or failed of."""

    async def gather(cluster: Cluster) -> Row:
        found, moves = await moves_of(cluster, operation)
        now = standing(moves, cluster.routing, await filled_parts(cluster, moves))
        wanted = [MoveState[state.upper()] for state in states] or list(MoveState)
        return {
            **operation_row(found),
            "begun": moment(found.created_ms),
            "ended": moment(found.ended_ms),
            "copied_bytes": now.done_bytes,
            "to_copy_bytes": now.total_bytes,
            "move_list": [move_row(cluster.routing, status.move, status) for status in moves if status.state in wanted],
        }

    found = go.visit(gather)
    rows = found["move_list"] if show_all else found["move_list"][:ROWS_MAX]
    rest = len(found["move_list"]) - len(rows)
    go.show(
        found,
        lambda: [
            properties(
                found,
                "operation title state begun ended at_once moves waiting filling done failed copied_bytes to_copy_bytes",
            ),
            *titled("moves", rows, "move state chain from to head copied_bytes note"),
            *([f"... and {rest} more (--all)"] if rest else []),
        ],
    )


@command(operation, "watch")
@_number
def operation_watch(go: Admin, operation: int) -> None:
    """Show an operation until it is over; Ctrl-C leaves it running. Exit code: 0 where all is done."""
    sys.exit(watch(go, operation))


@command(operation, "pause")
@_number
def operation_pause(go: Admin, operation: int) -> None:
    """Begin no more moves; those under way are finished."""
    changed(go, ControlRequest(operation, Control.PAUSE))


@command(operation, "resume")
@_number
def operation_resume(go: Admin, operation: int) -> None:
    """Go on with a paused operation."""
    changed(go, ControlRequest(operation, Control.RESUME))


@command(operation, "retry")
@_number
def operation_retry(go: Admin, operation: int) -> None:
    """Begin failed and cancelled moves anew."""
    changed(go, ControlRequest(operation, Control.RETRY))


@command(operation, "limit")
@_number
@click.option(
    "--at-once", type=click.IntRange(min=1), required=True, help="How many targets may be filled at the same time."
)
def operation_limit(go: Admin, operation: int, at_once: int) -> None:
    """Change how many moves of an operation go on at the same time."""
    changed(go, ControlRequest(operation, 0, at_once))


@command(operation, "cancel")
@_number
@yes_option
def operation_cancel(go: Admin, operation: int, yes: bool) -> None:
    """End an operation: moves not begun are dropped, targets that are being filled leave their chains again.

    What was moved stays where it is. Nodes that were to be drained stay drained: `fs3 admin node undrain`.
    """

    async def look(cluster: Cluster) -> Operation:
        return await find_operation(cluster, operation)

    row = operation_row(go.visit(look))
    open_moves = row["waiting"] + row["filling"]
    if not go.as_json:
        what = f"Operation {operation} ({row['title']}) is {row['state']}"
        done = f"{row['done']} of {counted(row['moves'], 'move')} done"
        click.echo(f"{what}: {done}; cancelling drops {open_moves}, of which {row['filling']} have begun.")
    if go.confirmed(yes):
        changed(go, ControlRequest(operation, Control.CANCEL))
    elif go.as_json:
        go.show(row, list)


def changed(go: Admin, request: ControlRequest) -> None:
    """Change an operation and say how it is then."""

    async def run(cluster: Cluster) -> Operation:
        try:
            return (await cluster.call(CONTROL, request)).operation
        except FS3Error as error:
            if error.code is Code.NOT_FOUND:
                await find_operation(cluster, request.operation)
            raise ConfigError(error.message) from None if error.code is Code.BAD_PLAN else error

    row = operation_row(go.visit(run))
    go.show(
        row,
        lambda: (
            f"Operation {row['operation']} ({row['title']}) is {row['state']}, {row['at_once']} moves at once;"
            f" {row['done']} of {counted(row['moves'], 'move')} done."
        ),
    )
