"""What all commands of `fs3 admin` share: options, a visit to the cluster, tables and JSON, consent.

A command is a function whose first argument is an Admin:

    @command(node, "list")
    @click.option("--kind", ...)
    def node_list(go: Admin, kind: str | None) -> None:
        found = go.visit(gather)               # async def gather(cluster: Cluster) -> ...
        go.show(found, lambda: table_of(found))

Every command so has --data, --mgmtd and --json. Errors are raised as FS3Error: main() makes one line and an exit code of
them.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import trio
from click.core import ParameterSource
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ...api.common import Method, Rep, Req
from ...client.mgmtd import MgmtdClient
from ...env import Env
from ...errors import Code, ConfigError, FS3Error
from ...ids import NodeKind
from ...routing import Node, RoutingInfo
from ...rpc.client import RpcClient
from ..access import visiting
from ..options import addresses, console, folder
from ..status import human

T = TypeVar("T")

MGMTD_TIMEOUT_S = 5.0
DAEMON_TIMEOUT_S = 3.0
AT_ONCE_MAX = 64
"""How many daemons are asked at the same time."""


class Cluster:
    """A running cluster as seen by one command, with routing loaded."""

    def __init__(self, env: Env, rpc: RpcClient, mgmtd: MgmtdClient, addresses: Sequence[str]) -> None:
        """addresses: of all mgmtd daemons, as the operator gave them."""
        self.env = env
        self.rpc = rpc
        self.mgmtd = mgmtd
        self.addresses = tuple(addresses)

    @property
    def routing(self) -> RoutingInfo:
        return self.mgmtd.routing

    async def call(self, method: Method[Req, Rep], request: Req, timeout_s: float = MGMTD_TIMEOUT_S) -> Rep:
        """Ask the primary mgmtd. Raises its error, or DEADLINE_EXCEEDED."""
        try:
            return await self.mgmtd.call(method, request, timeout_ms=int(timeout_s * 1000))
        except FS3Error as error:
            if error.code is not Code.UNKNOWN_METHOD:
                raise
            raise FS3Error(error.code, f"mgmtd does not know {method.name}: it is older than this fs3; upgrade it") from None

    async def ask(self, node: Node, method: Method[Req, Rep], request: Req, timeout_s: float = DAEMON_TIMEOUT_S) -> Rep:
        """Ask one daemon. Raises FS3Error, which names it."""
        try:
            return await self.rpc.call(node.address, method, request, deadline=self.env.monotonic() + timeout_s)
        except FS3Error as error:
            kind = NodeKind(node.kind).name.lower()
            raise FS3Error(
                error.code, f"{kind} node {node.id} at {node.address}: {error}", retryable=error.retryable
            ) from None

    async def ask_all(
        self, nodes: Iterable[Node], method: Method[Req, Rep], request: Req, timeout_s: float = DAEMON_TIMEOUT_S
    ) -> dict[int, Rep | FS3Error]:
        """Ask daemons, many at once: by node id the reply, or why there is none."""
        answers: dict[int, Rep | FS3Error] = {}
        limit = trio.CapacityLimiter(AT_ONCE_MAX)

        async def one(node: Node) -> None:
            async with limit:
                try:
                    reply = await self.ask(node, method, request, timeout_s)
                except FS3Error as error:
                    answers[node.id] = error
                else:
                    answers[node.id] = reply

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(one, node)
        return dict(sorted(answers.items()))

    async def reload(self) -> RoutingInfo:
        """Fetch all routing info anew, with what is told only to who asks: how full targets are."""
        fresh = MgmtdClient(self.env, self.rpc, self.addresses)
        await fresh.refresh(0, timeout_ms=int(MGMTD_TIMEOUT_S * 1000))
        if fresh.routing.version:
            self.mgmtd = fresh
        return self.routing

    def living(self, kind: NodeKind) -> tuple[Node, ...]:
        """The living daemons of a kind, by id. Raises CONNECT_FAILED where there is none."""
        nodes = self.routing.nodes_of(kind)
        if not nodes:
            raise FS3Error(Code.CONNECT_FAILED, f"no {kind.name.lower()} daemon is alive")
        return nodes


@asynccontextmanager
async def cluster(mgmtd: Sequence[str], timeout_s: float = MGMTD_TIMEOUT_S) -> AsyncIterator[Cluster]:
    """Visit a cluster. Raises CONNECT_FAILED where no mgmtd answers."""
    async with visiting() as (env, rpc):
        client = MgmtdClient(env, rpc, mgmtd)
        await client.refresh(0, timeout_ms=int(timeout_s * 1000))
        if not client.routing.version:
            raise FS3Error(Code.CONNECT_FAILED, f"no management daemon answers at {', '.join(mgmtd)}")
        yield Cluster(env, rpc, client, mgmtd)


@dataclass(frozen=True, slots=True)
class Admin:
    """How one command was called. where: finds the addresses of mgmtd, or raises CONFIG; asked when a cluster is visited."""

    where: Callable[[], tuple[str, ...]]
    as_json: bool

    @property
    def mgmtd(self) -> tuple[str, ...]:
        """Addresses. Raises CONFIG."""
        return self.where()

    @property
    def console(self) -> Console:
        return console()

    def visit(self, act: Callable[[Cluster], Awaitable[T]]) -> T:
        """Run something on the cluster. Raises what it raises, alone; KeyboardInterrupt."""
        try:
            return trio.run(visited, self.mgmtd, act)
        except BaseExceptionGroup as group:
            raise _alone(group) from None

    def show(self, value: Any, render: Callable[[], RenderableType | Iterable[RenderableType]]) -> None:
        """Print a result: as JSON, or as render() says for people."""
        if self.as_json:
            click.echo(json.dumps(value, indent=1))
            return
        rendered = render()
        for part in rendered if isinstance(rendered, (list, tuple)) else [rendered]:
            self.console.print(part)

    def confirmed(self, yes: bool, question: str = "Carry it out?") -> bool:
        """Whether to go on: as --yes says, or as somebody at a terminal answers; else says how to."""
        if yes:
            return True
        if not self.as_json and sys.stdin.isatty() and sys.stdout.isatty():
            return click.confirm(question)
        if not self.as_json:
            click.echo("Nothing was changed. The same command with --yes carries it out.")
        return False


def _alone(error: BaseException) -> BaseException:
    """The one error in groups of one; Ctrl-C before all others."""
    if isinstance(error, BaseExceptionGroup):
        if error.subgroup(KeyboardInterrupt) is not None:
            return KeyboardInterrupt()
        if len(error.exceptions) == 1:
            return _alone(error.exceptions[0])
    return error


async def visited(mgmtd: Sequence[str], act: Callable[[Cluster], Awaitable[T]]) -> T:
    """Run something on the cluster at these addresses."""
    async with cluster(mgmtd) as found:
        return await act(found)


def _where(ctx: click.Context) -> tuple[str, ...]:
    """The addresses of mgmtd: --mgmtd or --data of the command or of a group above it, then the environment."""
    here: click.Context | None = ctx
    while here is not None:
        for key in ("mgmtd", "data"):
            if here.get_parameter_source(key) is ParameterSource.COMMANDLINE:
                value = here.params[key]
                return addresses(Path(), value) if key == "mgmtd" else addresses(value, None)
        here = here.parent
    return addresses(ctx.params.get("data") or folder("./data"), ctx.params.get("mgmtd"))


def location(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --data and --mgmtd."""
    data = click.option(
        "--data", type=folder, metavar="DIR", envvar="FS3_DATA", help="The cluster's data folder.  [default: ./data]"
    )
    mgmtd = click.option(
        "--mgmtd",
        metavar="ADDR[,ADDR...]",
        envvar="FS3_MGMTD",
        help="Management daemons, such as tcp://10.0.0.1:7000, instead of --data.",
    )
    return data(mgmtd(function))


def command(group: click.Group, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function whose first argument is an Admin, in a group; with --data, --mgmtd, --json."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, data: Path | None, mgmtd: str | None, as_json: bool, **values: Any) -> None:
            function(Admin(functools.partial(_where, click.get_current_context()), as_json), *args, **values)

        wrapped = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(location(run))
        return group.command(name)(wrapped)

    return decorate


def completing(ids: Callable[[RoutingInfo], Iterable[int]]) -> Callable[..., list[str]]:
    """For shell_complete of an argument: those of the ids that begin as typed; none where the cluster does not answer."""

    async def gather(cluster: Cluster) -> RoutingInfo:
        return cluster.routing

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            routing = Admin(functools.partial(_where, ctx), True).visit(gather)
        except FS3Error:
            return []
        return [str(number) for number in sorted(ids(routing)) if str(number).startswith(incomplete)]

    return complete


def _daemons(routing: RoutingInfo) -> list[int]:
    return [node.id for node in routing.nodes.values() if node.kind != NodeKind.CLIENT]


node_ids = completing(_daemons)
target_ids = completing(lambda routing: routing.targets)
chain_ids = completing(lambda routing: routing.chains)
table_ids = completing(lambda routing: routing.tables)

yes_option = click.option("--yes", is_flag=True, help="Do it; without this the command only shows what it would do.")


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without frames. right: columns of numbers, which are flush right."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def rows_table(rows: Sequence[dict[str, Any]], columns: str) -> Table:
    """A table of rows as --json prints them. columns: keys, which are the titles too; values go through `cell`."""
    keys = columns.split()
    numbers = [key for key in keys if rows and all(_number(row[key]) for row in rows)]
    made = table(*[title(key) for key in keys], right=[title(key) for key in numbers])
    for row in rows:
        made.add_row(*[cell(key, row[key]) for key in keys])
    return made


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def title(key: str) -> str:
    """Of a column: used_bytes is "used"."""
    return key.removesuffix("_bytes").replace("_percent", " %").replace("_", " ")


_COLOURS = {
    "serving": "green",
    "syncing": "yellow",
    "waiting": "yellow",
    "lastsrv": "red",
    "offline": "red",
    "alive": "green",
    "dead": "red",
    "healthy": "green",
    "degraded": "yellow",
    "unavailable": "red",
    "running": "cyan",
    "filling": "cyan",
    "done": "green",
    "failed": "red",
    "paused": "yellow",
    "cancelled": "yellow",
    "retired": "yellow",
    "unused": "dim",
}


def cell(key: str, value: Any) -> Text:
    """A value in a table. Keys that end in _bytes hold sizes; words that name states have their colours."""
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if value is None or value == "" or (value == 0 and key in ("chain", "head")):
        return Text("-")
    if isinstance(value, dict):  # a target in a chain
        name = Text(f"{value['target']}@{value['node']}")
        return name if value["state"] == "serving" else Text.assemble(name, " ", cell("state", value["state"]))
    if isinstance(value, (list, tuple)):
        return Text("  ").join([cell(key, entry) for entry in value]) if value else Text("-")
    if key.endswith("_bytes"):
        return Text(human(value))
    if isinstance(value, str):
        return Text(value, style=_COLOURS.get(value, ""))
    return Text(str(value))


def plain(text: str) -> str:
    """Text for a console, its brackets kept as they are."""
    return escape(text)


def lasting(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def known_node(routing: RoutingInfo, text: str) -> Node:
    """The daemon that an operator means: by id, or by host where just one storage daemon runs there. Raises CONFIG."""
    nodes = {node.id: node for node in routing.nodes.values() if node.kind != NodeKind.CLIENT}
    if text.isdecimal() and int(text) in nodes:
        return nodes[int(text)]
    there = [node for node in nodes.values() if node.host == text and node.kind == NodeKind.STORAGE]
    if len(there) == 1:
        return there[0]
    if there:
        ids = ", ".join([str(node.id) for node in sorted(there, key=lambda node: node.id)])
        raise ConfigError(f"host {text} has several storage nodes ({ids}): give the id of one")
    raise ConfigError(f"node {text}: there is no such node; `fs3 admin node list` shows {ranges(nodes)}")


def ranges(ids: Iterable[int]) -> str:
    """Ids in short: 1, 11, 101-104."""
    parts: list[tuple[int, int]] = []
    for number in sorted(ids):
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ", ".join([str(a) if a == b else f"{a}-{b}" for a, b in parts]) or "none"
