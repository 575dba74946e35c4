"""`fs3 bench kvcache --trace FILE`: the same trace on several ways to files, and what they were worth."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...config import format_size
from ...doors import PlainDoor
from ...errors import ConfigError
from ...metrics import quantile_ns
from ...ring_door import LANES, RingDoor
from ..admin.common import table
from ..mounts import FILE_SYSTEM_TYPE
from ..options import console
from ..stats import milliseconds
from .replay import FewFiles, Found, Layout, ManyFiles, Replay, Tally
from .trace import distinct, fitting, load

WAYS = ("mount", "rings", "local")
LAYOUTS = ("slots", "files")
LOCAL = Path("/var/tmp")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wish:
    """The options. size: of a block, None: as fits. capacity: bytes. local: where the plain directory is made."""

    trace: Path
    ways: tuple[str, ...]
    layout: str
    local: Path
    size: int | None
    capacity: int | None
    requests: int | None
    seconds: float | None
    threads: int
    cold: bool


def replay_trace(path: Path, type_: str, wish: Wish, folder: Any, as_json: bool) -> None:
    """Replay on `path`, whose file system is of this type, and print. folder: makes one below a path, for a `with`. Raises
    CONFIG, CHECKSUM, IO."""
    ways = wish.ways or (WAYS if type_ == FILE_SYSTEM_TYPE else ("mount",))
    if "rings" in ways and type_ != FILE_SYSTEM_TYPE:
        raise ConfigError(f"--way rings: {path} is on {type_}, and only fs3 has rings")
    requests = load(wish.trace, wish.requests)
    places = {way: wish.local if way == "local" else path for way in ways}
    if not all(place.is_dir() for place in places.values()):
        raise ConfigError(f"--local {wish.local}: no such folder")
    sharing = Counter([os.stat(place).st_dev for place in places.values()])
    free = min([_free(place) // sharing[os.stat(place).st_dev] for place in places.values()])
    size, held = fitting(requests, wish.size, wish.capacity, free)
    err = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    hits = 0.0
    for way in ways:
        with folder(places[way]) as work, _layout(way, work, wish, size) as made:
            layout, lend = made
            replay = Replay(layout, requests, size, held, threads=wish.threads, seconds=wish.seconds, lend=lend)
            passes = []
            for write in (True, False):
                with _progress(err, f"{way}: {'replay' if write else 'read again'}", len(requests)) as tell:
                    passes.append(replay.run(write=write, tell=tell))
        first = passes[0]
        hits = first.read.blocks / max(1, first.references)
        rows += _rows(way, passes, wish.threads)
    found = {
        "path": str(path), "file_system": type_, "trace": str(wish.trace), "requests": len(requests),
        "distinct_blocks": distinct(requests), "block_bytes": size, "blocks_held": held, "layout": wish.layout,
        "threads": wish.threads, "cold": wish.cold, "verified": True, "hit_rate": round(hits, 4), "rows": rows,
        "ratios": _ratios(rows),
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _show(found)


def _free(place: Path) -> int:
    try:
        found = os.statvfs(place)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}") from None
    return found.f_bavail * found.f_frsize


@contextmanager
def _layout(way: str, work: Path, wish: Wish, size: int) -> Iterator[tuple[Layout, Any]]:
    """Where blocks go, and who gives memory for them."""
    door: PlainDoor
    if way == "rings":
        try:
            door = RingDoor(str(work), lanes=max(LANES, wish.threads))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--way rings: {error}") from None
    else:
        door = PlainDoor(str(work))
    cold = wish.cold and way == "mount"
    door.make(["blocks"])
    layout: Layout
    if wish.layout == "files":
        layout = ManyFiles(door, size, "blocks", cold=cold)
    else:
        layout = FewFiles(door, size, "blocks", cold=cold)
    try:
        yield layout, door.lend if isinstance(door, RingDoor) else None
    finally:
        layout.close()
        door.end()


@contextmanager
def _progress(err: Console, title: str, total: int) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began = time.monotonic()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
    if not err.is_terminal:
        click.echo(f"{title}: {time.monotonic() - began:.1f} s", err=True)


def _rows(way: str, passes: Sequence[Found], threads: int) -> list[Row]:
    first, again = passes
    made = []
    for item, done, tally in (
        ("read hits", first, first.read),
        ("write misses", first, first.written),
        ("read again", again, again.read),
    ):
        made.append({"way": way, "item": item, **_row(tally, threads), "requests_done": done.requests})
    made[1]["evicted"] = first.evicted
    return made


def _row(tally: Tally, threads: int) -> Row:
    """gb_s: of all threads, by the time that they spent in reading or writing."""
    buckets = tally.times.buckets()
    seconds = tally.ns / 1e9 / threads
    return {
        "gb_s": round(tally.bytes / 1e9 / seconds, 3) if seconds else 0.0,
        "p50_ms": round(quantile_ns(buckets, 0.5) / 1e6, 3),
        "p99_ms": round(quantile_ns(buckets, 0.99) / 1e6, 3),
        "requests": sum(buckets.values()),
        "blocks": tally.blocks,
        "bytes": tally.bytes,
    }


def _ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Of rings to the other ways."""
    rates = {(row["way"], row["item"]): row["gb_s"] for row in rows}
    found: dict[str, dict[str, float]] = {}
    for way in ("mount", "local"):
        for (name, item), rate in rates.items():
            other = rates.get((way, item))
            if name == "rings" and other:
                found.setdefault(f"rings/{way}", {})[item] = round(rate / other, 2)
    return found


def _show(found: dict[str, Any]) -> None:
    out = console()
    what = f"{found['requests']:,} requests, {found['distinct_blocks']:,} blocks of {format_size(found['block_bytes'])}"
    kept = f", of which {found['blocks_held']:,} are kept" if found["blocks_held"] < found["distinct_blocks"] else ""
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    out.print(f"{found['path']} ({found['file_system']}), {found['trace']}: {what}{kept}; {threads}")
    cold = "; the mount's pages are dropped from the kernel after use" if found["cold"] else ""
    out.print(f"{found['hit_rate']:.1%} of references are hits; layout {found['layout']}; all contents are verified{cold}")
    made = table(
        "way", "what", "GB/s", "p50", "p99", "requests", "blocks", right=("GB/s", "p50", "p99", "requests", "blocks")
    )
    last = ""
    for row in found["rows"]:
        made.add_row(
            row["way"] if row["way"] != last else "", row["item"], f"{row['gb_s']:.2f}",
            milliseconds(row["p50_ms"]), milliseconds(row["p99_ms"]), f"{row['requests']:,}", f"{row['blocks']:,}",
        )  # fmt: skip
        last = row["way"]
    out.print(made)
    for name, each in found["ratios"].items():
        out.print(f"{name}: " + ", ".join([f"{item} {ratio:.2f}" for item, ratio in each.items()]))
