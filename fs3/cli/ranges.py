"""`fs3 fallocate`, `fs3 holes` and `fs3 cp`: what the kernel does not pass on to a mount, on files of the cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import trio
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from ..api.meta import Attr, FileKind
from ..client.file import FileClient
from ..errors import Code, FS3Error
from .admin.common import Admin, command, rows_table
from .admin.rows import Row
from .clients import Visitor, about, visitor
from .options import size

T = TypeVar("T")

COPY_STEP = 256 * 1024 * 1024
"""How much is copied between two looks at the progress."""


@click.group()
def _top() -> None:
    """Holds the commands until they join `fs3`."""


@command(_top, "fallocate")
@click.argument("path", metavar="PATH")
@click.option("-o", "--offset", type=size, default="0", show_default=True, metavar="SIZE", help="Where the range begins.")
@click.option("-l", "--length", type=size, required=True, metavar="SIZE", help="How long it is.")
@click.option("-p", "--punch-hole", is_flag=True, help="Make it a hole: zeros that take no space. The length stays.")
@click.option("-z", "--zero-range", is_flag=True, help="Make it zeros that take no space.")
@click.option("-n", "--keep-size", is_flag=True, help="Do not make the file longer.")
def fallocate(go: Admin, path: str, offset: int, length: int, punch_hole: bool, zero_range: bool, keep_size: bool) -> None:
    """Make a range of a file a hole or zeros, or make the file as long as that; like fallocate(1).

    PATH is a file of the cluster (/a/b), or below a mount of it here. No space is reserved: without -p and -z it is looked
    whether there is enough, and the file made longer.
    """
    if punch_hole and zero_range:
        raise click.UsageError("give --punch-hole or --zero-range, not both")

    async def act(found: Visitor) -> Row:
        await found.file(path)
        try:
            async with found.paths.open(found.path(path), "r+") as file:
                if punch_hole:
                    await file.punch(offset, length)
                elif zero_range:
                    await file.zero_range(offset, length, keep_size=keep_size)
                else:
                    await file.allocate(offset, length, keep_size=keep_size)
                await file.sync()
                return await _usage(found.client, path, await file.stat())
        except FS3Error as error:
            raise about(path, error) from None

    row = _visit(go, act)
    go.show(row, lambda: rows_table([row], "path length_bytes used_bytes"))


@command(_top, "holes")
@click.argument("path", metavar="PATH")
@click.option("-o", "--offset", type=size, default="0", show_default=True, metavar="SIZE", help="Where to begin.")
@click.option("-l", "--length", type=size, metavar="SIZE", help="How far (default: to the end of the file).")
def holes(go: Admin, path: str, offset: int, length: int | None) -> None:
    """Show which ranges of a file are data, and which are holes that take no space.

    Holes are chunks that are absent, and what lies behind a chunk's end; those inside of a chunk show as data.
    """

    async def act(found: Visitor) -> list[Row]:
        attr = await found.file(path)
        end = attr.length if length is None else min(attr.length, offset + length)
        try:
            async with found.paths.open(found.path(path)) as file:
                data = await file.data_ranges(offset, max(0, end - offset))
        except FS3Error as error:
            raise about(path, error) from None
        return hole_rows(data, offset, end)

    rows = _visit(go, act)
    go.show(rows, lambda: rows_table(rows, "kind offset length") if rows else "nothing there: the file ends before")


def hole_rows(data: list[tuple[int, int]], offset: int, end: int) -> list[Row]:
    """Data and holes of the range offset..end in turn, given what is data."""
    rows: list[Row] = []
    at = offset
    for begin, count in [*data, (end, 0)]:
        if begin > at:
            rows.append({"kind": "hole", "offset": at, "length": begin - at})
        if count:
            rows.append({"kind": "data", "offset": begin, "length": count})
        at = begin + count
    return rows


@command(_top, "cp")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("-n", "--no-clobber", is_flag=True, help="Do not touch a file that is there.")
def cp(go: Admin, source: str, target: str, no_clobber: bool) -> None:
    """Copy a file within the cluster, holes as holes, many chunks at once and past the kernel.

    SOURCE and TARGET are paths of the cluster (/a/b), or below a mount of it here. A TARGET that is a directory gets the
    file under its name. The mode is copied, the owner is who runs this.
    """

    async def act(found: Visitor) -> Row:
        attr = await found.file(source)
        where = await _place(found, source, target)
        try:
            return await _copy(go, found, source, attr, where, no_clobber)
        except FS3Error as error:
            raise about(target, error) from None

    row = _visit(go, act)
    go.show(row, lambda: rows_table([row], "path length_bytes used_bytes"))


async def _place(found: Visitor, source: str, target: str) -> str:
    """The path in the cluster that a copy gets."""
    path = found.path(target)
    try:
        attr = await found.paths.stat(path)
    except FS3Error as error:
        if error.code is not Code.NOT_FOUND:
            raise about(target, error) from None
        return path
    if attr.kind is FileKind.DIRECTORY:
        return path.rstrip("/") + "/" + found.path(source).rstrip("/").rpartition("/")[2]
    return path


async def _copy(go: Admin, found: Visitor, source: str, attr: Attr, where: str, no_clobber: bool) -> Row:
    paths = found.paths
    there = await paths.exists(where)
    if there and no_clobber:
        raise FS3Error(Code.EXISTS, "there is such a file already")
    if there and (await paths.stat(where)).inode == attr.inode:
        raise FS3Error(Code.INVALID, f"{source} is the same file")
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    quiet = go.as_json or not go.console.is_terminal
    async with (
        paths.open(found.path(source)) as reader,
        paths.open(where, "r+" if there else "x", attr.mode & 0o777) as file,
    ):
        await file.truncate(0)
        with Progress(*columns, console=go.console, disable=quiet, transient=True) as bar:
            task = bar.add_task("copying", total=attr.length)
            for at in range(0, attr.length, COPY_STEP):
                await reader.copy_to(at, file, at, min(COPY_STEP, attr.length - at))
                bar.update(task, completed=min(at + COPY_STEP, attr.length))
        await paths.chmod(where, attr.mode & 0o777)
        await file.sync()
        return await _usage(found.client, where, await file.stat())


async def _usage(client: FileClient, path: str, attr: Attr) -> Row:
    return {"path": path, "inode": attr.inode, "length_bytes": attr.length, "used_bytes": await client.used(attr)}


def _visit(go: Admin, act: Callable[[Visitor], Awaitable[T]]) -> T:
    async def work() -> T:
        async with visitor(go.mgmtd) as found:
            return await act(found)

    return trio.run(work)


commands = (fallocate, holes, cp)
