"""`fs3 admin doctor`: what is wrong with a cluster, and the way out."""

from __future__ import annotations

import dataclasses
import sys

import click
import trio
from rich.text import Text

from ...api.admin import CONFIG_USE, LIST_OPERATIONS, ConfigUse, ListOperationsRequest, Operation
from ...api.common import STATUS, Empty, StatusReply
from ...api.mgmtd import CLUSTER_CONFIG
from ...daemon import EXIT_ERROR, EXIT_OK
from ...errors import Code, FS3Error
from ...ids import NodeKind
from ...routing import PublicState
from ..access import answers
from .common import Admin, Cluster, command
from .diagnosis import ERROR, NOTE, WARNING, Advice, Facts, diagnose, no_mgmtd

_BETWEEN_S = 2.0
"""Between two looks at recoveries, to tell one that goes on from one that does not."""

_COLOURS = {ERROR: "bold red", WARNING: "yellow", NOTE: "dim"}


@click.group()
def _top() -> None:
    """Holds the command until it joins `fs3 admin`."""


@command(_top, "doctor")
def doctor(go: Admin) -> None:
    """Say what is wrong with the cluster, why that matters, and what to do. Changes nothing.

    Exit code: 0 where nothing is to be done (notes do not count), else 1. docs/operations.md explains each state.
    """
    try:
        found = diagnose(go.visit(gather))
    except FS3Error as error:
        if error.code not in (Code.CONNECT_FAILED, Code.DEADLINE_EXCEEDED):
            raise
        found = [no_mgmtd(go.mgmtd)]
    go.show([dataclasses.asdict(advice) for advice in found], lambda: view(found))
    sys.exit(EXIT_OK if all(advice.severity == NOTE for advice in found) else EXIT_ERROR)


commands = tuple(_top.commands.values())


def view(found: list[Advice]) -> list[Text]:
    """Advice for people."""
    parts = []
    for advice in found:
        part = Text.assemble((advice.severity, _COLOURS[advice.severity]), f" {advice.what} [{advice.kind}]\n")
        parts.append(part.append(f"    {advice.why}\n    way out: {advice.way_out}"))
    to_do = sum(advice.severity != NOTE for advice in found)
    words = "1 thing is to be done." if to_do == 1 else f"{to_do} things are to be done." if to_do else "All is well."
    return [*parts, Text(words)]


async def gather(cluster: Cluster) -> Facts:
    """Ask all living daemons."""
    routing = await cluster.reload()
    config = await cluster.call(CLUSTER_CONFIG, Empty())
    filling = any(entry.state is PublicState.SYNCING for chain in routing.chains.values() for entry in chain.targets)
    earlier = {}
    if filling:
        earlier = await statuses(cluster)
        await trio.sleep(_BETWEEN_S)
        routing = await cluster.reload()
    return Facts(
        routing,
        config.version > 0,
        {address: await answers(cluster.env, cluster.rpc, address) for address in cluster.addresses},
        await statuses(cluster),
        earlier,
        await _operations(cluster),
        await _uses(cluster),
    )


async def statuses(cluster: Cluster) -> dict[int, StatusReply | None]:
    """What living daemons say of themselves; None for one that does not answer."""
    nodes = [node for node in cluster.routing.nodes.values() if node.alive and node.kind != NodeKind.CLIENT]
    replies = await cluster.ask_all(nodes, STATUS, Empty())
    return {number: None if isinstance(reply, FS3Error) else reply for number, reply in replies.items()}


async def _operations(cluster: Cluster) -> tuple[Operation, ...]:
    return (await cluster.call(LIST_OPERATIONS, ListOperationsRequest())).operations


async def _uses(cluster: Cluster) -> tuple[ConfigUse, ...]:
    return (await cluster.call(CONFIG_USE, Empty())).uses
