"""`fs3 admin session list|prune`, `lock list`, `gc status`: who has files open or locked, what is left of removed ones."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import click
import trio

from ...api.common import Empty
from ...api.meta_admin import (
    GC_STATUS,
    LIST_SESSIONS,
    LIST_TREES,
    PRUNE_SESSIONS,
    GcStatusReply,
    ListSessionsRequest,
    ListTreesRequest,
    PruneSessionsRequest,
    SessionInfo,
    TreeInfo,
)
from ...api.meta_locks import LIST_LOCKS, LOCK_END, ListLocksRequest, LockInfo
from ...api.mgmtd import LIST_CLIENTS, ClientInfo
from ...errors import FS3Error
from ...ids import NodeKind
from .common import Admin, Cluster, command, lasting, rows_table, yes_option
from .files import Files
from .rows import Row

TREES_MAX = 20
"""Removed trees that are shown."""
T = TypeVar("T", SessionInfo, LockInfo)

RATE_S = 1.0
"""How long the collector is watched, to tell its rate."""


@click.group("session")
def session() -> None:
    """Files that are open for writing, and by whom: list, prune."""


async def _pages(
    cluster: Cluster,
    path: str | None,
    limit: int,
    page: Callable[[Files, bytes, int, int], Awaitable[tuple[Sequence[T], bytes]]],
) -> list[tuple[T, ClientInfo | None]]:
    """What meta lists page by page, with the client of each. page: of (after, count_max, inode)."""
    files = Files(cluster)
    inode = (await files.find(path)).inode if path is not None else 0
    clients = {each.client: each for each in (await cluster.call(LIST_CLIENTS, Empty())).clients}
    found: list[T] = []
    after = b""
    while len(found) < limit:
        listed, after = await page(files, after, min(1000, limit - len(found)), inode)
        found += listed
        if not after:
            break
    return [(each, clients.get(each.client)) for each in found]


async def _sessions(cluster: Cluster, client: int, path: str | None, limit: int) -> list[Row]:
    async def page(files: Files, after: bytes, count_max: int, inode: int) -> tuple[Sequence[SessionInfo], bytes]:
        request = ListSessionsRequest(after, count_max, client, inode)
        reply = await files.meta.call(LIST_SESSIONS, request, deadline=files.deadline)
        return reply.sessions, reply.after

    return [session_row(found, owner, time.time_ns()) for found, owner in await _pages(cluster, path, limit, page)]


def session_row(found: SessionInfo, client: ClientInfo | None, now_ns: int) -> Row:
    """age_s: since it was opened, by this machine's clock. kind: write, or hold: removed by its own mount while open."""
    return {
        "client": found.client,
        "host": client.host if client is not None else "",
        "state": _state(client),
        "inode": found.inode,
        "kind": "hold" if found.hold else "write",
        "length": found.length,
        "nlink": found.nlink,
        "uid": found.uid,
        "age_s": max(0, (now_ns - found.since_ns) // 1_000_000_000),
        "session": found.session,
    }


@command(session, "list")
@click.option("--client", type=int, default=0, metavar="ID", help="Only those of this client.")
@click.option("--path", metavar="PATH", help="Only those of this file.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
def session_list(go: Admin, client: int, path: str | None, limit: int) -> None:
    """List the sessions: each is a file open for writing, or one that was removed while its mount has it open."""
    rows = go.visit(lambda cluster: _sessions(cluster, client, path, limit))
    go.show(rows, lambda: rows_table(rows, "client host state inode kind length nlink uid age_s"))


@command(session, "prune")
@click.argument("client", type=int, metavar="CLIENT")
@yes_option
def session_prune(go: Admin, client: int, yes: bool) -> None:
    """End all sessions and locks of a client that is dead, now. They end by themselves a while after its death.

    Lengths of its files are settled from what their chains hold; those without a name are removed.
    """
    rows = go.visit(lambda cluster: _sessions(cluster, client, None, 1000))
    locks = go.visit(lambda cluster: _locks(cluster, client, None, 1000))
    if not go.as_json:
        go.show(rows, lambda: rows_table(rows, "client host state inode kind length nlink uid age_s"))
        if locks:
            go.show(locks, lambda: rows_table(locks, LOCK_COLUMNS))
    ended = 0
    if (rows or locks) and go.confirmed(yes, "End them?"):

        async def prune(cluster: Cluster) -> int:
            files = Files(cluster)
            request = PruneSessionsRequest(client)
            return (await files.meta.call(PRUNE_SESSIONS, request, deadline=files.deadline)).ended

        ended = go.visit(prune)
    count = len(rows) + len(locks)
    row = {"client": client, "sessions": len(rows), "locks": len(locks), "ended": ended}
    go.show(row, lambda: f"{ended} of {count} sessions and locks ended")


@click.group("lock")
def lock() -> None:
    """Locks between clients, such as `fs3 lock` makes: list."""


@command(lock, "list")
@click.option("--client", type=int, default=0, metavar="ID", help="Only those of this client.")
@click.option("--path", metavar="PATH", help="Only those of this file or directory.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
def lock_list(go: Admin, client: int, path: str | None, limit: int) -> None:
    """List the locks: who has locked what. Those of a dead client end by themselves a while after its death."""
    rows = go.visit(lambda cluster: _locks(cluster, client, path, limit))
    go.show(rows, lambda: rows_table(rows, LOCK_COLUMNS))


LOCK_COLUMNS = "client host state inode mode start length uid age_s"


async def _locks(cluster: Cluster, client: int, path: str | None, limit: int) -> list[Row]:
    async def page(files: Files, after: bytes, count_max: int, inode: int) -> tuple[Sequence[LockInfo], bytes]:
        request = ListLocksRequest(after, count_max, client, inode)
        reply = await files.meta.call(LIST_LOCKS, request, deadline=files.deadline)
        return reply.locks, reply.after

    return [lock_row(found, owner, time.time_ns()) for found, owner in await _pages(cluster, path, limit, page)]


def lock_row(found: LockInfo, client: ClientInfo | None, now_ns: int) -> Row:
    """length: None for a lock of all behind start. age_s: since it was made, by this machine's clock."""
    return {
        "client": found.client,
        "host": client.host if client is not None else "",
        "state": _state(client),
        "inode": found.inode,
        "mode": found.mode.name.lower(),
        "start": found.start,
        "length": found.end - found.start if found.end < LOCK_END else None,
        "uid": found.uid,
        "age_s": max(0, (now_ns - found.since_ns) // 1_000_000_000),
        "owner": found.owner,
    }


def _state(client: ClientInfo | None) -> str:
    return "unknown" if client is None else "alive" if client.alive else "dead"


@click.group("gc")
def gc() -> None:
    """What is removed in the background, trees and chunks: status."""


@command(gc, "status")
def gc_status(go: Admin) -> None:
    """Show what is left of removed trees, how many removed files wait for the removal of their chunks, and since when."""

    async def gather(cluster: Cluster) -> Row:
        nodes = cluster.living(NodeKind.META)
        first = await cluster.ask_all(nodes, GC_STATUS, Empty())
        await trio.sleep(RATE_S)
        second = await cluster.ask_all(nodes, GC_STATUS, Empty())
        files = Files(cluster)
        found = (await files.meta.call(LIST_TREES, ListTreesRequest(limit=TREES_MAX), deadline=files.deadline)).trees
        return gc_row(first, second, RATE_S) | {"trees": [tree_row(each, time.time_ns()) for each in found]}

    row = go.visit(gather)
    go.show(row, lambda: gc_lines(row))


def tree_row(tree: TreeInfo, now_ns: int) -> Row:
    """One removed tree. age_s: by this machine's clock. directories: known and not removed yet."""
    return {
        "inode": tree.tree,
        "uid": tree.uid,
        "age_s": max(0, (now_ns - tree.since_ns) // 1_000_000_000),
        "removed": tree.removed,
        "kept": tree.kept,
        "directories": tree.directories,
    }


def gc_row(
    before: Mapping[int, GcStatusReply | FS3Error], after: Mapping[int, GcStatusReply | FS3Error], seconds: float
) -> Row:
    """Of two looks at all meta daemons. Raises the error of one where none answered."""
    answers = {node: reply for node, reply in after.items() if isinstance(reply, GcStatusReply)}
    if not answers:
        raise next(reply for reply in after.values() if isinstance(reply, FS3Error))
    queue = max(answers.values(), key=lambda reply: reply.files)
    done = 0
    for node, reply in answers.items():
        former = before.get(node)
        done += reply.collected - former.collected if isinstance(former, GcStatusReply) else 0
    return {
        "files": queue.files,
        "more": queue.more,
        "bytes": queue.bytes,
        "unsized": queue.unsized,
        "oldest_ms": queue.oldest_ms,
        "intents": queue.intents,
        "files_a_second": round(max(0, done) / seconds, 1),
        "daemons": [
            {
                "node": node,
                "collected": reply.collected,
                "failures": reply.failures,
                "uptime_ms": reply.uptime_ms,
                "problem": reply.problem,
            }
            for node, reply in answers.items()
        ],
        "silent": [node for node, reply in after.items() if isinstance(reply, FS3Error)],
    }


def gc_lines(row: Row) -> str:
    files = f"{'more than ' if row['more'] else ''}{row['files']}"
    lines = [f"{files} removed files wait for the removal of their chunks, {row['bytes']} bytes at most"]
    if row["unsized"]:
        lines[0] += f" without {row['unsized']} whose length is not known"
    if row["files"] and row["oldest_ms"] >= 0:
        lines.append(f"the first was removed {lasting(row['oldest_ms'] / 1000)} ago")
    lines.append(f"{row['files_a_second']} files a second are being collected")
    if row["intents"]:
        lines.append(f"{row['intents']} files have their chunks put in order")
    for daemon in row["daemons"]:
        uptime = lasting(daemon["uptime_ms"] / 1000)
        line = f"meta node {daemon['node']}: {daemon['collected']} files collected, {daemon['failures']} rounds failed"
        line += f" in {uptime}"
        lines.append(line + (f"; now: {daemon['problem']}" if daemon["problem"] else ""))
    lines += [f"meta node {node} does not answer" for node in row["silent"]]
    for tree in row.get("trees", ()):
        line = f"tree {tree['inode']}, removed {lasting(tree['age_s'])} ago by uid {tree['uid']}: "
        line += f"{tree['removed']} names removed, {tree['directories']} directories known to be left"
        lines.append(line + (f", {tree['kept']} kept in /lost+found" if tree["kept"] else ""))
    return "\n".join(lines)


commands = (session, lock, gc)
