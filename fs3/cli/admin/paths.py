"""`fs3 admin stat|locate PATH` and `fs3 admin layout get|set`: where a file's bytes are, and where those of new ones go."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import RenderableType

from ...api.meta import Attr, FileKind
from ...api.meta_admin import LIST_SESSIONS, SET_LAYOUT, ListSessionsRequest, SetLayoutRequest
from ...config import format_size
from ...errors import Code, FS3Error
from ...layout import split
from ...routing import Chain, RoutingInfo
from ..options import size
from .common import Admin, Cluster, cell, command, rows_table, table
from .files import Files, kind_name, mode_text
from .rows import Row

CHUNKS_MAX = 1000
"""Chunks shown by one `locate`, unless it is told otherwise."""

path_argument = click.argument("path", metavar="PATH")


@click.group()
def _top() -> None:
    """Holds the commands until they join `fs3 admin`."""


@command(_top, "stat")
@path_argument
def stat_command(go: Admin, path: str) -> None:
    """Show what the metadata service knows of PATH: a path of the cluster (/a/b), or below a mount of it here."""

    async def gather(cluster: Cluster) -> Row:
        files = Files(cluster)
        attr = await files.find(path, follow=False)
        request = ListSessionsRequest(inode=attr.inode)
        sessions = (await files.meta.call(LIST_SESSIONS, request, deadline=files.deadline)).sessions
        row = stat_row(path, attr)
        row["sessions"] = [{"client": each.client, "session": each.session, "hold": each.hold} for each in sessions]
        row["chains"] = list(files.chains(attr)) if attr.kind is FileKind.FILE else None
        return row

    row = go.visit(gather)
    go.show(row, lambda: stat_view(row))


def stat_row(path: str, attr: Attr) -> Row:
    """What --json prints. Times in nanoseconds since 1970."""
    row: Row = {
        "path": path,
        "inode": attr.inode,
        "kind": kind_name(attr.kind),
        "mode": mode_text(attr),
        "uid": attr.uid,
        "gid": attr.gid,
        "nlink": attr.nlink,
        "length": attr.length,
        "atime_ns": attr.atime_ns,
        "mtime_ns": attr.mtime_ns,
        "ctime_ns": attr.ctime_ns,
        "truncate_version": attr.truncate_version,
        "data_version": attr.data_version,
    }
    return row | {"layout": layout_row(attr)}


def layout_row(attr: Attr) -> Row | None:
    layout = attr.layout
    if layout is None or not layout.chunk_size:
        return None
    return {
        "table": layout.table,
        "table_version": layout.table_version,
        "chunk_size": layout.chunk_size,
        "stripe": layout.stripe,
        "seed": f"{layout.seed:016x}",
    }


def stat_view(row: Row) -> RenderableType:
    made = table("", "")
    made.show_header = False
    for key, value in row.items():
        if key.endswith("_ns"):
            value = when(value)
        elif key == "layout" and value is not None:
            value = layout_words(value)
        elif key == "sessions":
            value = ", ".join([f"client {each['client']}{' (held)' if each['hold'] else ''}" for each in value])
        made.add_row(key.removesuffix("_ns").replace("_", " "), cell(key, value))
    return made


def layout_words(row: Row) -> str:
    stripe = row["stripe"]
    chains = f"{stripe} chain{'' if stripe == 1 else 's'}"
    return (
        f"chunks of {format_size(row['chunk_size'])} over {chains} of table {row['table']} (version {row['table_version']})"
    )


def when(time_ns: int) -> str:
    """A wall clock time for people, UTC."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{time_ns} ns"


# Locate


@command(_top, "locate")
@path_argument
@click.option("--offset", type=size, metavar="SIZE", default="0", help="From this byte on.")
@click.option("--length", type=size, metavar="SIZE", help="So many bytes; default: to the end.")
@click.option("--limit", type=click.IntRange(1), default=CHUNKS_MAX, show_default=True, help="Show at most so many chunks.")
def locate(go: Admin, path: str, offset: int, length: int | None, limit: int) -> None:
    """Show on which chains, targets, nodes and disks the chunks of a file lie."""

    async def gather(cluster: Cluster) -> Row:
        files = Files(cluster)
        attr = await files.file(path)
        rows, more = chunk_rows(cluster.routing, attr, files.chains(attr), offset, length, limit)
        return {"path": path, "inode": attr.inode, "length": attr.length, "chunks": rows, "more": more}

    found = go.visit(gather)
    go.show(found, lambda: locate_view(found, limit))


def chunk_rows(
    routing: RoutingInfo, attr: Attr, chains: tuple[int, ...], offset: int, length: int | None, limit: int
) -> tuple[list[Row], bool]:
    """The chunks of a range of a file, at most `limit`, and whether there are more."""
    assert attr.layout is not None
    offset = min(offset, attr.length)
    wanted = attr.length - offset if length is None else max(0, min(length, attr.length - offset))
    rows: list[Row] = []
    for extent in split(attr.layout, chains, offset, wanted):
        if len(rows) == limit:
            return rows, True
        chain = routing.chains.get(extent.chain)
        rows.append(
            {
                "chunk": extent.index,
                "offset": extent.file_offset,
                "length": extent.length,
                "chain": extent.chain,
                "chain_version": chain.version if chain is not None else 0,
                "targets": target_places(routing, chain) if chain is not None else [],
            }
        )
    return rows, False


def target_places(routing: RoutingInfo, chain: Chain) -> list[Row]:
    """The targets of a chain, head first, and where they are."""
    places = []
    for entry in chain.targets:
        target, node = routing.targets.get(entry.target), routing.node_of(entry.target)
        places.append(
            {
                "target": entry.target,
                "state": entry.state.name.lower(),
                "node": node.id if node is not None else 0,
                "host": node.host if node is not None else "",
                "disk": target.disk if target is not None else 0,
            }
        )
    return places


def locate_view(found: Row, limit: int) -> list[RenderableType]:
    if not found["chunks"]:
        return [f"no chunks in that range: the file has {found['length']} bytes"]
    made = table(
        "chunk", "offset", "length", "chain", "targets, head first (host, disk)", right=("chunk", "offset", "length")
    )
    for row in found["chunks"]:
        places = [_place(place) for place in row["targets"]]
        numbers = [str(row[key]) for key in ("chunk", "offset", "length", "chain")]
        made.add_row(*numbers, cell("targets", places))
    more = f"... and more; --limit shows more than {limit} chunks, --offset those behind" if found["more"] else ""
    return [made, more] if more else [made]


def _place(place: dict[str, Any]) -> str:
    state = "" if place["state"] == "serving" else f" {place['state']}"
    return f"{place['target']}{state} ({place['host'] or '?'}, {place['disk']})"


# Layouts


@click.group("layout")
def layout() -> None:
    """How files are cut into chunks and spread over chains: get, set."""


@command(layout, "get")
@path_argument
def layout_get(go: Admin, path: str) -> None:
    """Show the layout of a file, or the one that new files in a directory get."""

    async def gather(cluster: Cluster) -> Row:
        attr = await Files(cluster).find(path)
        row = layout_row(attr)
        if row is None:
            raise FS3Error(Code.INVALID, f"{path}: a {kind_name(attr.kind)} has no layout")
        return {"path": path, "kind": kind_name(attr.kind)} | row

    row = go.visit(gather)
    go.show(row, lambda: rows_table([row], "path kind table table_version chunk_size stripe"))


@command(layout, "set")
@path_argument
@click.option("--table", "table_id", type=click.IntRange(1), metavar="ID", help="Chain table.")
@click.option("--chunk-size", type=size, metavar="SIZE", help="A power of two, 64KiB to 64MiB.")
@click.option("--stripe", type=click.IntRange(1), metavar="N", help="Over how many chains a file is spread.")
def layout_set(go: Admin, path: str, table_id: int | None, chunk_size: int | None, stripe: int | None) -> None:
    """Change the layout of files that are made in a directory from now on, and of directories made in it.

    What is there keeps the layout that it has.
    """
    if table_id is None and chunk_size is None and stripe is None:
        raise click.UsageError("nothing to set: give --table, --chunk-size or --stripe")

    async def change(cluster: Cluster) -> Row:
        files = Files(cluster)
        attr = await files.find(path)
        if attr.kind is not FileKind.DIRECTORY:
            why = f"{path}: this is a {kind_name(attr.kind)}, which keeps the layout that it was made with; give a directory"
            raise FS3Error(Code.NOT_DIRECTORY, why)
        request = SetLayoutRequest(attr.inode, table_id or 0, chunk_size or 0, stripe or 0)
        try:
            reply = await files.meta.call(SET_LAYOUT, request, deadline=files.deadline)
        except FS3Error as error:
            raise FS3Error(error.code, f"{path}: {error.message}") from None
        return {"path": path, "kind": kind_name(attr.kind)} | (layout_row(reply.attr) or {})

    row = go.visit(change)
    go.show(row, lambda: f"{path}: new files have {layout_words(row)}")


commands = (*_top.commands.values(), layout)
