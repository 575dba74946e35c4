"""`fs3 rmtree PATH`: removes a directory with all that is in it, without walking through it."""

from __future__ import annotations

import os

import click
import trio
from rich.progress import Progress, SpinnerColumn, TextColumn

from ..api.meta import RMTREE, Attr, Caller, FileKind, RmtreeRequest
from ..api.meta_admin import LIST_TREES, TREE_DIRECTORIES_MAX, ListTreesRequest, TreeInfo
from ..errors import Code, FS3Error
from .admin.common import Admin, Cluster, command
from .admin.files import Files, kind_name
from .admin.rows import Row
from .options import say

POLL_S = 0.5
LINES_S = 5.0
"""Between two lines in a pipe."""
_WORDS = {
    Code.PERMISSION_DENIED: "permission denied: you need to write to the directory that it is in, and to read and write it",
    Code.NOT_PERMITTED: "not permitted: the directory that it is in is sticky, and it is not yours",
    Code.NOT_FOUND: "somebody else has removed it",
}


@click.group()
def _top() -> None:
    """Holds the command until it joins `fs3`."""


@command(_top, "rmtree")
@click.argument("path", metavar="PATH")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Wait until all of it is removed, and show how far that is.")
def rmtree(go: Admin, path: str, yes: bool, wait: bool) -> None:
    """Remove the directory PATH with all that is in it: a path of the cluster (/a/b), or below a mount of it here.

    It is gone at once, for everybody; what was in it is removed in the background, by the metadata daemons. It is done with
    your rights: what is in it and `rm -r` could not remove for you gets a name in /lost+found.
    """

    async def look(cluster: Cluster) -> Row:
        _, _, attr = await _directory(Files(cluster, _caller()), path)
        return {"path": path, "inode": attr.inode, "removed": False}

    async def remove(cluster: Cluster) -> Row:
        files = Files(cluster, _caller())
        parent, name, _ = await _directory(files, path)
        try:
            reply = await files.meta.change(
                RMTREE, lambda tag: RmtreeRequest(tag, _caller(), parent, name), deadline=files.deadline
            )
        except FS3Error as error:
            raise FS3Error(error.code, f"{path}: {_WORDS.get(error.code, error)}") from None
        last = await _watch(go, cluster, files, reply.tree) if wait else None
        kept = last.kept if last is not None else 0
        return {"path": path, "inode": reply.tree, "removed": True, "waited": wait, "kept": kept}

    if not yes:
        row = go.visit(look)
        if not go.confirmed(False, f"Remove {path} and all that is in it?"):
            if go.as_json:
                go.show(row, list)
            return
    row = go.visit(remove)
    go.show(row, lambda: _words(row))


def _words(row: Row) -> str:
    if not row["waited"]:
        return f"{row['path']} is gone; what was in it is being removed: `fs3 admin gc status` shows how far that is"
    kept = f"; {row['kept']} names in it were not yours to remove, and are in /lost+found" if row["kept"] else ""
    return f"{row['path']} is removed; its space comes back as `fs3 admin gc status` tells{kept}"


def _caller() -> Caller:
    return Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))


async def _directory(files: Files, path: str) -> tuple[int, bytes, Attr]:
    """The directory's parent, its name there and its attributes. Raises FS3Error."""
    parent, name, attr = await files.find_name(path)
    if attr.kind is not FileKind.DIRECTORY:
        raise FS3Error(Code.NOT_DIRECTORY, f"{path}: this is a {kind_name(attr.kind)}; `rm` removes it")
    return parent, name, attr


async def _watch(go: Admin, cluster: Cluster, files: Files, tree: int) -> TreeInfo | None:
    """Show how far it is until it is done; returns what was seen last."""
    last: TreeInfo | None = None
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=go.console, disable=go.as_json or not go.console.is_terminal, transient=True) as bar:
        task = bar.add_task("removing")
        said_at = cluster.env.monotonic()
        while True:
            request = ListTreesRequest(tree - 1, 1)
            found = (await files.meta.call(LIST_TREES, request, deadline=files.deadline)).trees
            if not found or found[0].tree != tree:
                return last
            last = found[0]
            bar.update(task, description=progress(last))
            now = cluster.env.monotonic()
            if bar.disable and not go.as_json and now - said_at >= LINES_S:
                said_at = now
                say(progress(last))
            await trio.sleep(POLL_S)


def progress(tree: TreeInfo) -> str:
    """How far a removal is, in words."""
    more = "+" if tree.directories == TREE_DIRECTORIES_MAX else ""
    return f"{tree.removed} names removed, {tree.directories}{more} directories known to be left"
