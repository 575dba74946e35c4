"""`fs3-meta fsck`: checks a running cluster, in use or not, and repairs it where that is asked for.

Exit codes, after fsck(8): 0 nothing is wrong; 1 all that was wrong is repaired; 4 something is wrong, or left so; 8 added
where not everything could be checked; 2 where it cannot be begun (wrong usage, no mgmtd).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

import trio

from fs3.client.meta import MetaClient
from fs3.client.mgmtd import MgmtdClient
from fs3.config import parse_size
from fs3.daemon import EXIT_CONFIG
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from fs3.transport.registry import Transports

from .examine import INODES_AT_ONCE, Names, Progress, Report, add_paths, holes_of, parts_of
from .examine_chunks import Chunks

REACH_S = 10.0
BAR_COLUMNS = 30
INODE_BYTES = 1024
"""What an inode takes in memory while it is checked, about."""


async def examine(
    env: Env,
    rpc: RpcClient,
    mgmtd: MgmtdClient,
    progress: Progress,
    *,
    repair: bool = False,
    chunks: bool = True,
    holes: bool = False,
    inodes_at_once: int = INODES_AT_ONCE,
) -> Report:
    """Check a cluster, given an mgmtd client that runs. Raises FS3Error where meta cannot be asked."""
    report = Report()
    meta = MetaClient(env, rpc, mgmtd, env.client_id())
    names = Names(env, meta, lambda: dict(mgmtd.routing.tables), report, progress, repair=repair)
    contents = Chunks(env, rpc, mgmtd, meta, report, progress, repair=repair)
    parts = await names.parts(inodes_at_once)
    found = await names.check(0, parts)
    if parts_of(found.records["INOD"], inodes_at_once) != parts:  # the store's own count was wrong
        parts = parts_of(found.records["INOD"], inodes_at_once)
        found = await names.check(0, parts)
    for part in range(parts):
        found = found if part == 0 else await names.check(part, parts)
        if chunks:
            await contents.check(found, count=holes)
        add_paths(report, found)
        if holes and contents.counted is not None:
            report.holes += holes_of(found, contents.counted)
    return report


class Bar:
    """Progress in one line on a terminal; nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty()
        self._last = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._shown:
            return
        filled = min(BAR_COLUMNS, BAR_COLUMNS * done // total) if total > 0 else 0
        line = f"[{'#' * filled}{'.' * (BAR_COLUMNS - filled)}] {what}"
        if line != self._last:
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()
            self._last = line

    def end(self) -> None:
        if self._last:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


async def visit(addresses: Sequence[str], options: argparse.Namespace, progress: Progress) -> tuple[Report, float]:
    """Connect, check, and say how long it took in seconds. Raises FS3Error."""
    env = Env(Transports())
    async with trio.open_nursery() as nursery:
        rpc = RpcClient(env, nursery)
        mgmtd = MgmtdClient(env, rpc, addresses)
        with trio.move_on_after(REACH_S):
            await nursery.start(mgmtd.run)
        if not mgmtd.routing.version:
            raise FS3Error(Code.CONNECT_FAILED, f"no management daemon answers at {', '.join(addresses)}")
        started = env.monotonic()
        report = await examine(
            env,
            rpc,
            mgmtd,
            progress,
            repair=options.repair,
            chunks=not options.names_only,
            holes=options.holes,
            inodes_at_once=max(1, options.memory // INODE_BYTES),
        )
        took_s = env.monotonic() - started
        nursery.cancel_scope.cancel()
    return report, took_s


def lines_of(report: Report, took_s: float) -> list[str]:
    """What people read: a line for each finding, one for what was done about it, and a summary."""
    lines = []
    for each in report.findings:
        lines.append(f"{each.fault.value}: {each.text}" + (f": {each.path}" if each.path else ""))
        if each.state != "found":
            lines.append(f"    {each.state}: {each.action}")
    for hole in report.holes:
        where = hole.path or f"inode {hole.inode}"
        lines.append(
            f"a sparse file, or one that has lost chunks: {where}: {hole.absent} of {hole.chunks} chunks are absent"
        )
    lines += [f"could not be checked: {what}" for what in report.unchecked]
    states = [each.state for each in report.findings]
    found = len(states)
    summary = f"{report.inodes} inodes, {report.chunks} chunks, {report.copies} copies looked at in {took_s:.1f} s: "
    summary += "nothing is wrong" if not found else f"{found} found"
    if found:
        summary += f", {states.count('repaired')} repaired, {found - states.count('repaired')} left"
    if report.unsettled:
        summary += f"; {report.unsettled} kept changing and are not decided"
    return [*lines, summary]


def as_json(report: Report, took_s: float) -> str:
    found = asdict(report)
    for entry, each in zip(found["findings"], report.findings, strict=True):
        entry["fault"] = each.fault.name.lower()
        entry["meaning"] = each.fault.value
    found |= {"seconds": round(took_s, 3), "exit_code": report.exit_code()}
    return json.dumps(found, indent=1)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 1GiB") from None


def _addresses(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or not all("://" in address for address in found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected addresses such as tcp://10.0.0.1:7000")
    return found


def main(argv: Sequence[str]) -> int:
    """The sub-command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fs3-meta fsck", description="Check a running cluster: names, chunks, replicas.")
    parser.add_argument("--mgmtd", type=_addresses, required=True, metavar="ADDR[,ADDR...]", help="management daemons")
    parser.add_argument("--repair", action="store_true", help="repair what can be repaired safely")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--names-only", action="store_true", help="check the namespace, and no chunks")
    parser.add_argument(
        "--holes",
        action="store_true",
        help="also name files of which chunks are absent: sparse ones, and those that lost some when a chain's content was"
        " given up; that is no finding",
    )
    parser.add_argument(
        "--memory",
        type=_size,
        default=parse_size("1GiB"),
        metavar="SIZE",
        help="about how much to use; a namespace that needs more is checked in parts, each of which reads all of it (1GiB)",
    )
    options = parser.parse_args(argv)
    bar = Bar(sys.stderr)
    try:
        report, took_s = trio.run(visit, options.mgmtd, options, bar)
    except BaseExceptionGroup as group:
        wanted, rest = group.split(FS3Error)
        if wanted is None or rest is not None:
            raise
        bar.end()
        return _failed(wanted)
    except FS3Error as error:
        bar.end()
        return _failed(error)
    bar.end()
    sys.stdout.write(as_json(report, took_s) + "\n" if options.json else "".join(f"{x}\n" for x in lines_of(report, took_s)))
    return report.exit_code()


def _failed(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    sys.stderr.write(f"fs3-meta fsck: {error}\n")
    return EXIT_CONFIG
