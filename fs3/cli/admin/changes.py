"""`fs3 admin node|target|chain|table` commands that change one thing at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from ...api.admin import (
    CREATE_TABLE,
    NODE_ACTION,
    REMOVE_TABLE,
    TARGET_ACTION,
    CreateTableReply,
    CreateTableRequest,
    NodeAction,
    NodeActionRequest,
    RemoveTableRequest,
    TargetAction,
    TargetActionRequest,
)
from ...api.common import Empty
from ...api.meta_admin import TABLE_USE, TableUseRequest
from ...api.mgmtd import CLUSTER_CONFIG
from ...errors import Code, ConfigError, FS3Error
from ...ids import NodeKind
from ...placement import chain_file
from ...placement import moves as planning
from ...routing import RoutingInfo
from ..status import human
from .common import Admin, Cluster, command, known_node, node_ids, rows_table, table_ids, target_ids, yes_option
from .lists import node, table, target
from .plans import storage_node
from .progress import pending_moves
from .rows import Row, counted, table_rows, target_rows
from .shows import known_table

commands: tuple[click.Command, ...] = ()
"""They join the groups of lists.py."""


@command(node, "forget")
@click.argument("node", metavar="NODE", shell_complete=node_ids)
@yes_option
def node_forget(go: Admin, node: str, yes: bool) -> None:
    """Drop a dead node, and its targets, from the list. Its targets must have left their chains (`fs3 admin drain`)."""

    async def look(cluster: Cluster) -> Row:
        known = known_node(cluster.routing, node)
        own = [row for row in target_rows(cluster.routing) if row["node"] == known.id]
        if known.alive:
            raise ConfigError(f"node {known.id} is alive; stop its daemon first, and drain it before that")
        chains = [row["chain"] for row in own if row["chain"]]
        if chains:
            raise ConfigError(
                f"node {known.id} has targets in {counted(len(chains), 'chain')} ({_some(chains)}):"
                f" `fs3 admin drain {known.id}` moves them to other nodes first"
            )
        return {"node": known.id, "host": known.host, "targets": [row["target"] for row in own]}

    found = go.visit(look)
    what = f"node {found['node']} (host {found['host']}) and its {counted(len(found['targets']), 'target')}"
    act(go, yes, found, f"Forget {what}.", NODE_ACTION, NodeActionRequest(found["node"], NodeAction.FORGET))


@command(node, "drain")
@click.argument("node", metavar="NODE", shell_complete=node_ids)
def node_drain(go: Admin, node: str) -> None:
    """Give a node no more targets, but leave those it has: `fs3 admin drain` moves them away too."""
    _mark(go, node, NodeAction.DRAIN, "gets no more targets")


@command(node, "undrain")
@click.argument("node", metavar="NODE", shell_complete=node_ids)
def node_undrain(go: Admin, node: str) -> None:
    """Let a node that was drained get targets again; `fs3 admin rebalance` then moves some to it."""
    _mark(go, node, NodeAction.UNDRAIN, "may get targets again")


def _mark(go: Admin, node: str, action: NodeAction, words: str) -> None:
    async def run(cluster: Cluster) -> Row:
        number = storage_node(cluster.routing, node)
        await cluster.call(NODE_ACTION, NodeActionRequest(number, action))
        return {"node": number, "drained": action is NodeAction.DRAIN}

    found = go.visit(run)
    go.show(found, lambda: f"Node {found['node']} {words}.")


@command(target, "resync")
@click.argument("target", type=int, metavar="TARGET", shell_complete=target_ids)
@yes_option
def target_resync(go: Admin, target: int, yes: bool) -> None:
    """Take a target out of service and fill it anew from the others of its chain, such as when replicas differ."""

    async def look(cluster: Cluster) -> Row:
        row = known_target(cluster.routing, target)
        others = [t for t in _serving(cluster.routing, row["chain"]) if t != target]
        if not row["chain"] or not others:
            why = "is in no chain" if not row["chain"] else f"is the only one that serves chain {row['chain']}"
            raise ConfigError(f"target {target} {why}: there is nothing to fill it from")
        return {**row, "others": others}

    found = go.visit(look)
    size = human(found["used_bytes"])
    what = f"Fill target {target} anew from target {found['others'][0]}, {size} in chain {found['chain']}."
    act(go, yes, found, what, TARGET_ACTION, TargetActionRequest(target, TargetAction.RESYNC))


@command(target, "empty")
@click.argument("target", type=int, metavar="TARGET", shell_complete=target_ids)
@yes_option
def target_empty(go: Admin, target: int, yes: bool) -> None:
    """Throw away what a target holds that is in no chain, so that it can come into one."""

    async def look(cluster: Cluster) -> Row:
        row = known_target(cluster.routing, target)
        if row["chain"]:
            raise ConfigError(
                f"target {target} is in chain {row['chain']}: `fs3 admin replace {row['node']}/{row['disk']}` moves it away,"
                f" `fs3 admin target resync {target}` fills it anew"
            )
        return row

    found = go.visit(look)
    what = f"Throw away the {human(found['used_bytes'])} that target {target} of node {found['node']} holds."
    act(go, yes, found, what, TARGET_ACTION, TargetActionRequest(target, TargetAction.EMPTY))


@command(target, "forget")
@click.argument("target", type=int, metavar="TARGET", shell_complete=target_ids)
@yes_option
def target_forget(go: Admin, target: int, yes: bool) -> None:
    """Drop a target that is in no chain, and that no living node has, from the list."""

    async def look(cluster: Cluster) -> Row:
        row = known_target(cluster.routing, target)
        if row["chain"]:
            raise ConfigError(
                f"target {target} is in chain {row['chain']}: `fs3 admin replace {row['node']}/{row['disk']}` moves it away"
            )
        return row

    found = go.visit(look)
    act(
        go, yes, found, f"Forget target {target} of node {found['node']}.", TARGET_ACTION,
        TargetActionRequest(target, TargetAction.FORGET),
    )  # fmt: skip


_file = click.option(
    "--file", "path", type=click.Path(path_type=Path), metavar="FILE", help="A chain file, see `fs3 admin placement`."
)
_auto = click.option("--auto", is_flag=True, help="Of all targets that are free, spread evenly.")


@command(table, "create")
@_file
@_auto
@click.option("--replicas", type=click.IntRange(min=1), metavar="N", help="With --auto: how many targets each chain has.")
@yes_option
def table_create(go: Admin, path: Path | None, auto: bool, replicas: int | None, yes: bool) -> None:
    """Make a chain table, of chains in a file or of free targets. Directories use it by `fs3 admin layout set`."""
    if auto and replicas is None:
        raise ConfigError("--auto needs --replicas: how many targets each chain has")
    _add_chains(go, _given(path, auto), 0, replicas or 0, yes)


@command(table, "grow")
@click.argument("table", type=int, metavar="TABLE", shell_complete=table_ids)
@_file
@_auto
@yes_option
def table_grow(go: Admin, table: int, path: Path | None, auto: bool, yes: bool) -> None:
    """Add chains to a table, of a file or of free targets: new files use them, files made before stay where they are."""
    _add_chains(go, _given(path, auto), table, 0, yes)


def _given(path: Path | None, auto: bool) -> Path | None:
    """The path, or None for --auto. Raises CONFIG."""
    if auto == (path is not None):
        raise ConfigError("give either --auto, or --file with a chain file such as `fs3 admin placement` makes")
    return path


def _add_chains(go: Admin, path: Path | None, number: int, replicas: int, yes: bool) -> None:
    async def look(cluster: Cluster) -> Row:
        routing = cluster.routing
        if number:
            known_table(routing, number)
        wanted = read_chains(path) if path is not None else await automatic(cluster, number, replicas)
        have = routing.tables[number].replicas if number else wanted.replicas
        source = f"{path}: " if path is not None else ""
        if have != wanted.replicas:
            raise ConfigError(f"{source}chains of {wanted.replicas} targets, but table {number} has {have} replicas")
        try:
            chain_file.check_chains(wanted.chains, wanted.replicas, routing)
        except FS3Error as error:
            raise ConfigError(f"{source}{error.message}") from None
        nodes = Counter([routing.targets[target].node for entry in wanted.chains for target in entry])
        return {
            "table": number,
            "replicas": wanted.replicas,
            "chains": [list(entry) for entry in wanted.chains],
            "targets_of_nodes": [{"node": node, "targets": count} for node, count in sorted(nodes.items())],
        }

    found = go.visit(look)
    chains = counted(len(found["chains"]), "chain")
    what = f"Add {chains} to table {number}" if number else f"Make a chain table of {chains}"
    if not go.as_json:
        go.console.print(rows_table(found["targets_of_nodes"], "node targets"))
        click.echo(f"{what} of {counted(found['replicas'], 'target')} each.")
    if not go.confirmed(yes):
        if go.as_json:
            go.show(found, list)
        return

    async def run(cluster: Cluster) -> CreateTableReply:
        token = cluster.env.random.getrandbits(63) | 1
        made = tuple([tuple(entry) for entry in found["chains"]])
        return await cluster.call(CREATE_TABLE, CreateTableRequest(made, found["replicas"], number, token), 30.0)

    reply = go.visit(run)
    result = {**found, "table": reply.table, "version": reply.version}
    go.show(result, lambda: f"Table {reply.table} is there, version {reply.version}; `fs3 admin table show {reply.table}`.")


async def automatic(cluster: Cluster, table: int, replicas: int) -> chain_file.ChainFile:
    """Chains of all free targets, for a table that is there, or of so many replicas. Raises CONFIG."""
    routing = cluster.routing
    replicas = routing.tables[table].replicas if table else replicas
    pending = await pending_moves(cluster)
    try:
        return chain_file.ChainFile(replicas, planning.new_chains(routing, replicas, pending).chains)
    except FS3Error as error:
        raise ConfigError(f"{error.message}; `fs3 admin node list` shows what is free") from None


def read_chains(path: Path) -> chain_file.ChainFile:
    """Raises CONFIG, naming the file."""
    try:
        return chain_file.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a chain file: it is no text") from None
    except FS3Error as error:
        raise ConfigError(f"{path}: {error.message}") from None


@command(table, "remove")
@click.argument("table", type=int, metavar="TABLE", shell_complete=table_ids)
@yes_option
def table_remove(go: Admin, table: int, yes: bool) -> None:
    """Remove a chain table and its chains, which must hold no data, and which no file or directory may name."""

    async def look(cluster: Cluster) -> Row:
        known_table(cluster.routing, table)
        config = await cluster.call(CLUSTER_CONFIG, Empty())
        row = next(row for row in table_rows(cluster.routing, config.table) if row["table"] == table)
        if row["default"]:
            raise ConfigError(f"table {table} is the default one, which new directories use: it cannot be removed")
        await check_unused(cluster, table)
        return row

    found = go.visit(look)
    what = f"Remove table {table} and its {counted(found['chains'], 'chain')}."
    act(go, yes, found, what, REMOVE_TABLE, RemoveTableRequest(table), 60.0)


META_TIMEOUT_S = 30.0


async def check_unused(cluster: Cluster, table: int) -> None:
    """Raises ConfigError where a file or directory names the table: it could not be read, written or removed any more."""
    nodes = cluster.living(NodeKind.META)
    if not nodes:
        raise FS3Error(Code.CONNECT_FAILED, "no metadata daemon is alive, which alone knows who uses the table")
    files = directories = example = 0
    after = b""
    while True:
        found = await cluster.ask(nodes[0], TABLE_USE, TableUseRequest(table, after), META_TIMEOUT_S)
        files, directories, example = files + found.files, directories + found.directories, example or found.example
        after = found.after
        if not after:
            break
    if example:
        users = f"{counted(files, 'file')} and {counted(directories, 'directory', 'directories')}, such as inode {example}"
        way = "`fs3 admin layout set` gives directories another one, files have to be copied and removed"
        raise ConfigError(f"table {table} is that of {users}; {way}")


def act(go: Admin, yes: bool, found: Row, what: str, method: Any, request: Any, timeout_s: float = 10.0) -> None:
    """Say what would be done, do it where the operator agrees. A refusal is a CONFIG error."""
    if not go.as_json:
        click.echo(what)
    if not go.confirmed(yes):
        if go.as_json:
            go.show({**found, "changed": False}, list)
        return

    async def run(cluster: Cluster) -> None:
        await cluster.call(method, request, timeout_s)

    go.visit(run)
    go.show({**found, "changed": True}, lambda: "Done.")


def known_target(routing: RoutingInfo, target: int) -> Row:
    """A target's row. Raises CONFIG where there is no such target."""
    found = [row for row in target_rows(routing) if row["target"] == target]
    if not found:
        raise ConfigError(f"target {target}: there is no such target; `fs3 admin target list` shows all")
    return found[0]


def _serving(routing: RoutingInfo, chain: int) -> tuple[int, ...]:
    found = routing.chains.get(chain)
    return found.serving() if found is not None else ()


def _some(ids: Any) -> str:
    """The first few of many ids."""
    listed = list(ids)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return (", ".join([str(number) for number in listed[:5]]) or "none") + more
