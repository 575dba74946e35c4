"""`fs3 warmup`: brings files into the page caches of the storage daemons' hosts, and of this one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import click
import trio
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..api.meta import READDIR, Attr, Caller, FileKind, ReaddirRequest
from ..api.storage_admin import PREFETCH, PREFETCH_INODES_MAX, PrefetchRequest
from ..client.paths import own_caller
from ..errors import Code, ConfigError, FS3Error
from .admin.common import Admin, Cluster, command, plain
from .admin.files import Files
from .admin.rows import Row
from .mounts import FILE_SYSTEM_TYPE, mounts
from .options import folder
from .status import human
from .watched import watching

CALL_S = 60.0
LISTING_LIMIT = 1024
DIRECTORIES_AT_ONCE = 16
TARGETS_AT_ONCE = 4
"""Of one node."""
READERS = 8
_PIECE = 1024 * 1024
_PROBLEMS_SHOWN = 10


@dataclass(slots=True)
class Warmth:
    """What was found and done. wanted: bytes of all copies that are to be read; warmed: those that are in memory. local: of
    this host. uncached: targets whose disks are read past the page cache."""

    files: int = 0
    size: int = 0
    wanted: int = 0
    warmed: int = 0
    local: int = 0
    uncached: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


@click.group()
def _top() -> None:
    """Holds the command until it joins `fs3`."""


@command(_top, "warmup")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--file",
    "lists",
    type=click.Path(),
    multiple=True,
    metavar="LIST",
    help="Also all paths in a file, one a line; -: stdin.",
)
@click.option("--local", is_flag=True, help="Also into this host's page cache, through the mount that PATH is on.")
def warmup(go: Admin, paths: tuple[str, ...], lists: tuple[str, ...], local: bool) -> None:
    """Bring files into the page caches of the storage daemons, so that the first reads of a job are as fast as the next.

    PATH is a file, or a directory with all that is in it: below a mount of this machine, or a path of the cluster (/a/b),
    for which no mount is needed. Every serving replica is read, since a reader may turn to any; none of the bytes comes
    over the network. It costs memory on the daemons' hosts, where the kernel drops what is unused for longest.

    \b
      fs3 warmup mnt/dataset                    a directory with all that is in it
      fs3 warmup mnt/model.pt --local           and into this host's cache too
      fs3 warmup /dataset --mgmtd tcp://10.0.0.1:7000
      find mnt -name '*.parquet' | fs3 warmup --file -

    --local reads the files through the mount, which brings every byte here: it helps programs on this host that open
    them without O_DIRECT, as long as nobody changes the files.
    """
    wanted = [*paths, *[line for name in lists for line in _lines(name)]]
    if not wanted:
        raise ConfigError("expected a PATH, or --file LIST")
    if local:
        for path in wanted:
            if not os.path.exists(path):
                raise ConfigError(f"{path}: --local needs a path on a mount of this machine")
    go = _reachable(go, wanted[0])
    found = Warmth()
    started = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=go.console, transient=True, disable=go.as_json or not go.console.is_terminal) as bar:
        go.visit(lambda cluster: _Warmup(cluster, found, bar).run(wanted))
        if local:
            _read_all(wanted, found, bar)
    row = _row(found, time.monotonic() - started)
    go.show(row, lambda: _words(row))
    if found.problems:
        sys.exit(1)


def _lines(name: str) -> list[str]:
    """The paths in a list."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None
    return [line for line in text.splitlines() if line]


def _reachable(go: Admin, path: str) -> Admin:
    """Where nobody said which cluster: that of the mount that the path is on, whose daemon knows."""
    try:
        go.where()
    except ConfigError:
        at = Path(os.path.abspath(path))
        if not any(mount.type == FILE_SYSTEM_TYPE and at.is_relative_to(mount.path) for mount in mounts()):
            raise
        told = trio.run(_ask_mount, path)
        return Admin(lambda: told, go.as_json)
    return go


async def _ask_mount(path: str) -> tuple[str, ...]:
    async with watching(path) as watched:
        return tuple((await watched.figures())["mgmtd"])


class _Warmup:
    """Walks through the namespace, and has the daemons read what it finds."""

    def __init__(self, cluster: Cluster, found: Warmth, bar: Progress) -> None:
        self._cluster = cluster
        self._caller: Caller = own_caller()
        self._files = Files(cluster, self._caller)
        self._found = found
        self._bar = bar
        self._task: TaskID | None = None
        self._seen: set[int] = set()
        self._of_target: dict[int, list[int]] = {}

    async def run(self, paths: Sequence[str]) -> None:
        self._task = self._bar.add_task("looking", total=None)
        for path in dict.fromkeys(paths):
            attr = await self._files.find(path)
            if attr.kind is FileKind.DIRECTORY:
                await self._walk(path, attr.inode)
            else:
                self._note(attr)
        self._bar.update(self._task, description="warming", total=self._found.wanted)
        nodes: dict[int, trio.CapacityLimiter] = {}
        async with trio.open_nursery() as nursery:
            for target, inodes in self._of_target.items():
                node = self._cluster.routing.targets[target].node
                limit = nodes.setdefault(node, trio.CapacityLimiter(TARGETS_AT_ONCE))
                nursery.start_soon(self._warm, target, inodes, limit)

    async def _walk(self, path: str, top: int) -> None:
        """All directories below, several at once."""
        send, receive = trio.open_memory_channel[tuple[str, int]](float("inf"))
        under_way = 1
        send.send_nowait((path, top))

        async def work() -> None:
            nonlocal under_way
            async for path, inode in receive:
                try:
                    for name, child in await self._list(inode):
                        under_way += 1
                        send.send_nowait((f"{path}/{name}", child))
                except FS3Error as error:
                    self._found.problems.append(f"{path}: {error.message or error.code.name}")
                under_way -= 1
                if not under_way:
                    send.close()

        async with trio.open_nursery() as nursery:
            for _ in range(DIRECTORIES_AT_ONCE):
                nursery.start_soon(work)

    async def _list(self, inode: int) -> list[tuple[str, int]]:
        """Note the files of a directory; returns its directories."""
        directories: list[tuple[str, int]] = []
        after, more = b"", True
        while more:
            request = ReaddirRequest(self._caller, inode, after, LISTING_LIMIT)
            reply = await self._files.meta.call(READDIR, request, deadline=self._files.deadline)
            for entry in reply.entries:
                after = entry.name
                if entry.attr.kind is FileKind.DIRECTORY:
                    directories.append((os.fsdecode(entry.name), entry.attr.inode))
                else:
                    self._note(entry.attr)
            more = reply.more
        return directories

    def _note(self, attr: Attr) -> None:
        """A file, or something that has no content."""
        if attr.kind is not FileKind.FILE or attr.layout is None or attr.inode in self._seen:
            return
        self._seen.add(attr.inode)
        self._found.files += 1
        self._found.size += attr.length
        chunks = -(-attr.length // attr.layout.chunk_size)
        routing = self._cluster.routing
        for position, number in enumerate(self._files.chains(attr)[:chunks]):
            chain = routing.chains.get(number)
            targets = chain.serving() if chain is not None else ()
            if not targets:
                self._found.problems.append(f"inode {attr.inode}: chain {number} has no serving target")
            if position == 0:
                self._found.wanted += attr.length * len(targets)
            for target in targets:
                self._of_target.setdefault(target, []).append(attr.inode)

    async def _warm(self, target: int, inodes: list[int], limit: trio.CapacityLimiter) -> None:
        """Have one target read its chunks of these files."""
        node = self._cluster.routing.node_of(target)
        if node is None:
            self._found.problems.append(f"target {target}: nobody knows where it is")
            return
        async with limit:
            at, first = 0, 0
            while at < len(inodes):
                request = PrefetchRequest(target, tuple(inodes[at : at + PREFETCH_INODES_MAX]), first)
                try:
                    reply = await self._cluster.ask(node, PREFETCH, request, CALL_S)
                except FS3Error as error:
                    old = error.code is Code.UNKNOWN_METHOD
                    why = "this daemon is older than `fs3 warmup`" if old else error.message
                    self._found.problems.append(f"target {target}: {why}")
                    return
                if not reply.cached:
                    self._found.uncached.add(target)
                    return
                at, first = at + reply.done, reply.next_index
                self._found.warmed += reply.size
                if self._task is not None:
                    self._bar.update(self._task, advance=reply.size)


def _read_all(paths: Sequence[str], found: Warmth, bar: Progress) -> None:
    """Read files through the mount, in threads: they wait for the kernel, not for each other."""
    task = bar.add_task("reading here", total=found.size or None)
    stop: list[bool] = []

    def read(path: str) -> int:
        done = 0
        buffer = memoryview(bytearray(_PIECE))
        file = os.open(path, os.O_RDONLY)
        try:
            while not stop and (count := os.readv(file, [buffer])):
                done += count
                bar.update(task, advance=count)
        finally:
            os.close(file)
        return done

    with ThreadPoolExecutor(READERS) as pool:
        try:
            waiting: dict[Future[int], str] = {}
            for path in _local_files(paths):
                waiting[pool.submit(read, path)] = path
            for future in as_completed(waiting):
                try:
                    found.local += future.result()
                except OSError as error:
                    found.problems.append(f"{waiting[future]}: {error.strerror}")
        except BaseException:
            stop.append(True)
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _local_files(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if not os.path.isdir(path):
            yield str(folder(path))
            continue
        for place, _, names in os.walk(path):
            for name in names:
                below = os.path.join(place, name)
                if os.path.isfile(below) and not os.path.islink(below):
                    yield below


def _row(found: Warmth, seconds: float) -> Row:
    return {
        "files": found.files,
        "content_bytes": found.size,
        "warmed_bytes": found.warmed,
        "local_bytes": found.local,
        "seconds": round(seconds, 2),
        "uncached_targets": sorted(found.uncached),
        "problems": found.problems,
    }


def _words(row: Row) -> list[str]:
    rate = human(row["warmed_bytes"] / max(row["seconds"], 1e-3))
    warmed = f"{human(row['warmed_bytes'])} in the daemons' memory, all replicas counted"
    lines = [f"{row['files']} files of {human(row['content_bytes'])}: {warmed}, in {row['seconds']:.1f} s ({rate}/s)"]
    if row["local_bytes"]:
        lines.append(f"{human(row['local_bytes'])} read into this host's page cache")
    if row["uncached_targets"]:
        lines.append(
            f"nothing of {len(row['uncached_targets'])} targets: their disks are read past the page cache (direct_io)"
        )
    problems = row["problems"]
    lines += [f"not warmed: {plain(problem)}" for problem in problems[:_PROBLEMS_SHOWN]]
    if len(problems) > _PROBLEMS_SHOWN:
        lines.append(f"and {len(problems) - _PROBLEMS_SHOWN} more like that (--json shows all)")
    return lines
