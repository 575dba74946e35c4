"""`fs3 bench`: how fast a file system is, fs3 or any other."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...config import format_size
from ...errors import Code, ConfigError, FS3Error
from ...metrics import quantile_ns
from ..admin.common import table
from ..mounts import FILE_SYSTEM_TYPE, mounts
from ..options import console, folder, size
from ..stats import milliseconds
from .crew import Crew, Outcome
from .kvtrace import LAYOUTS, LOCAL, WAYS, Wish, replay_trace
from .plan import MIB, NAMES, Options, Step, room, steps
from .worker import PAGE, Job

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
SPARE_BYTES = 64 * MIB
COLD = ("auto", "drop", "advise", "off")

Row = dict[str, Any]


@click.command()
@click.argument("words", nargs=-1, metavar="[PATH] [BENCHMARK...]")
@click.option("--threads", type=click.IntRange(1, 256), default=4, show_default=True, help="Workers; each is a process.")
@click.option("--size", type=size, default="256MiB", show_default=True, metavar="SIZE", help="Of each worker's big files.")
@click.option("--block-size", type=size, default="1MiB", show_default=True, metavar="SIZE", help="Of one read or write.")
@click.option("--files", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="Of each worker.")
@click.option("--small-size", type=size, default="128KiB", show_default=True, metavar="SIZE", help="Of each small file.")
@click.option("--kv-size", type=size, default="4MiB", show_default=True, metavar="SIZE", help="Of each block of a KV cache.")
@click.option(
    "--time", "seconds", type=click.FloatRange(0.01), default=5.0, show_default=True, metavar="SECONDS",
    help="How long random reads and writes go on.",
)  # fmt: skip
@click.option("--verify", is_flag=True, help="Compare all that is read with what was written; costs some CPU.")
@click.option(
    "--cold", type=click.Choice(COLD), default="auto", show_default=True,
    help="Before cold reads: drop all caches of this machine (as root), have the kernel drop the files' pages, or nothing.",
)  # fmt: skip
@click.option("--trace", type=folder, metavar="FILE", help="Replay this trace of a KV cache's requests; see below.")
@click.option("--way", "ways", type=click.Choice(WAYS), multiple=True, help="Of a replay, several times; default: all.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="slots", show_default=True, help="Of a replay's blocks.")
@click.option("--local", type=folder, default=LOCAL, show_default=True, metavar="DIR", help="For the way `local`.")
@click.option("--capacity", type=size, metavar="SIZE", help="Of a replayed cache; blocks that were not used longest go.")
@click.option("--requests", type=click.IntRange(1), metavar="N", help="Replay the first ones only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def bench(
    context: click.Context, words: Sequence[str], threads: int, size: int, block_size: int, files: int, small_size: int,
    kv_size: int, seconds: float, verify: bool, cold: str, trace: Path | None, ways: tuple[str, ...], layout: str,
    local: Path, capacity: int | None, requests: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the file system that PATH is on: fs3, or any other, to compare.

    \b
    BENCHMARKs (default: all):
      big         one big file of each worker: write and fsync, read cold, read again
      small       many small files: write, read cold
      metadata    create, stat, open, readdir, rename, unlink
      checkpoint  ranks that save at once (write, fsync, rename), and load at once
      kvcache     blocks that are written once, read many times by all, and removed
      random      reads and writes of 4 KiB at random places

    \b
      fs3 bench mnt                                  everything, on the mount at ./mnt
      fs3 bench mnt metadata checkpoint --threads 8
      fs3 bench /var/tmp --json > disk.json          the local disk, to compare
      fs3 bench mnt big --size 4GiB --block-size 4MiB --verify

    PATH defaults to the fs3 mount of this machine, if there is one, else to the current folder. It all happens in a new
    folder below PATH, which is removed at the end, after Ctrl-C too. Rates are of all workers together, latencies of
    single calls: of one block or 4 KiB, or of a whole small file. Writes end with an fsync, which counts in the rate.

    \b
      fs3 bench mnt kvcache --trace conversation_trace.jsonl --capacity 4GiB --requests 500

    replays requests to a KV cache: a block that is held is read, another one is written (`--kv-size`, default here: 2MiB,
    or less so that all fit), then all requests read once more what is held. It does so through the mount, through its
    rings, and in a plain local folder, which the page cache serves; the mount's pages are dropped from the kernel's cache,
    as if another machine had written them, unless `--cold off`. `--threads` are threads of one process here, 1 by
    default, and `--time` is for each pass, without end by default. Layouts: `slots` in a few large files, or `files`, one
    for each block.
    """
    path, names = _chosen(words)
    given = [name for name in ("threads", "kv_size", "seconds") if _is_given(context, name)]
    if trace is not None:
        if names != ["kvcache"]:
            raise ConfigError("--trace: give `kvcache` as the only benchmark")
        wish = Wish(
            trace, ways, layout, local, kv_size if "kv_size" in given else None, capacity, requests,
            seconds if "seconds" in given else None, threads if "threads" in given else 1, cold != "off",
        )  # fmt: skip
        with _interruptible():
            replay_trace(path, _type_of(path), wish, _folder, as_json)
        return
    for option in ("ways", "layout", "local", "capacity", "requests"):
        if _is_given(context, option):
            raise ConfigError(f"--{option.removesuffix('s') if option == 'ways' else option}: only with --trace")
    options = Options(threads, size, block_size, files, small_size, kv_size, seconds, verify)
    _check(options)
    how = _how(cold)
    _check_room(path, names, options)
    err = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    started = time.monotonic()
    try:
        with _interruptible(), _folder(path) as work:
            _measure(work, names, options, how, err, rows)
    finally:
        found = {
            "path": str(path), "file_system": _type_of(path), "threads": threads, "cold": how,
            "verified": verify, "seconds": round(time.monotonic() - started, 1), "rows": rows,
        }  # fmt: skip
        if as_json:
            click.echo(json.dumps(found, indent=1))
        elif rows:
            _show(found)


def _is_given(context: click.Context, parameter: str) -> bool:
    return context.get_parameter_source(parameter) is not ParameterSource.DEFAULT


def _chosen(words: Sequence[str]) -> tuple[Path, list[str]]:
    """PATH and the benchmarks. Raises CONFIG."""
    names = [word for word in words if word in NAMES]
    others = [word for word in words if word not in NAMES]
    if len(others) > 1:
        raise ConfigError(f"expected one PATH and benchmarks out of {', '.join(NAMES)}; found {', '.join(others)}")
    ours = [mount.path for mount in mounts() if mount.type == FILE_SYSTEM_TYPE]
    path = folder(others[0]) if others else (ours[0] if len(ours) == 1 else Path.cwd())
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; benchmarks are {', '.join(NAMES)}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: this user may not write here")
    return path, list(dict.fromkeys(names)) or list(NAMES)


def _check(options: Options) -> None:
    for name, value in (("--size", options.size), ("--block-size", options.block), ("--kv-size", options.kv_block)):
        if value < PAGE:
            raise ConfigError(f"{name}: expected at least 4KiB, found {format_size(value)}")
    if options.small < 1:
        raise ConfigError("--small-size: expected at least 1 byte")


def _how(cold: str) -> str:
    """How caches are dropped. Raises CONFIG."""
    may_drop = os.access(DROP_CACHES, os.W_OK)
    if cold == "drop" and not may_drop:
        raise ConfigError(f"--cold drop: this user may not write {DROP_CACHES}")
    return ("drop" if may_drop else "advise") if cold == "auto" else cold


def _check_room(path: Path, names: Sequence[str], options: Options) -> None:
    """Raises CONFIG where it would not fit."""
    size, files = room(names, options)
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    if size + SPARE_BYTES > free:
        raise ConfigError(
            f"{path}: {format_size(free // MIB * MIB)} are free, and {format_size(-(-size // MIB) * MIB + SPARE_BYTES)} are"
            " needed: give a smaller --size, fewer --threads or --files, or some benchmarks only"
        )
    if found.f_files and files > found.f_favail:
        raise ConfigError(f"{path}: room for {found.f_favail} files, and {files} are needed: give fewer --files")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end it as Ctrl-C does, which cleans up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder for one run, removed at the end."""
    work = path / f".fs3-bench-{os.getpid()}-{random.getrandbits(32):08x}"
    try:
        work.mkdir()
    except OSError as error:
        raise ConfigError(f"{work}: {error.strerror}") from None
    try:
        yield work
    finally:
        _remove(work)


def _remove(work: Path) -> None:
    try:
        shutil.rmtree(work)
    except (OSError, KeyboardInterrupt) as error:
        why = error.strerror if isinstance(error, OSError) else "interrupted"
        click.echo(f"fs3: {work} could not be removed ({why}): remove it yourself", err=True)


def _measure(work: Path, names: Sequence[str], options: Options, how: str, err: Console, rows: list[Row]) -> None:
    """Run the benchmarks; rows get what was measured."""
    seed = random.getrandbits(32)
    with Crew(options.workers) as crew:
        for name in names:
            place = work / name
            place.mkdir()
            for step in steps(name, options):
                jobs = partial(_jobs, place, step, options, seed)
                cold = how == "drop" if step.cold == "names" else bool(step.cold) and how != "off"
                if cold:
                    _chill(crew, how, jobs)
                outcome = _step(crew, jobs(step.job), name, step, options, err)
                if step.row:
                    rows.append(row_of(name, step, outcome, cold))
            shutil.rmtree(place)


def _jobs(place: Path, step: Step, options: Options, seed: int, job: str) -> list[Job]:
    """One for each worker."""
    common = {"size": options.size, "block": step.block, "files": options.files, "small": options.small}
    return [
        Job(job, str(place), number, options.workers, 0.0, seed, seconds=options.seconds, verify=options.verify, **common)
        for number in range(options.workers)
    ]


def _chill(crew: Crew, how: str, jobs: Callable[[str], list[Job]]) -> None:
    """Make what was written be read from where it lies."""
    crew.run(jobs("forget"), lambda units: None)
    if how == "drop":
        os.sync()
        try:
            DROP_CACHES.write_text("3", encoding="ascii")
        except OSError as error:
            raise FS3Error(Code.IO, f"{DROP_CACHES}: {error.strerror}; give --cold advise") from None


def _step(crew: Crew, jobs: Sequence[Job], name: str, step: Step, options: Options, err: Console) -> Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    title = f"{name}: {step.row or 'preparing'}"
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=step.units * options.workers or None)
        outcome = crew.run(jobs, lambda units: bar.update(task, completed=units))
    if not err.is_terminal:
        click.echo(f"{title}: {outcome.seconds:.1f} s", err=True)
    return outcome


def row_of(name: str, step: Step, outcome: Outcome, cold: bool) -> Row:
    """What --json prints. value: in the unit. cold: whether caches were dropped before."""
    amount = outcome.bytes / MIB if step.unit == "MiB/s" else outcome.units
    return {
        "benchmark": name,
        "item": step.row,
        "value": round(amount / outcome.seconds, 2),
        "unit": step.unit,
        "p50_ms": round(quantile_ns(outcome.buckets, 0.5) / 1e6, 4),
        "p99_ms": round(quantile_ns(outcome.buckets, 0.99) / 1e6, 4),
        "mean_ms": round(outcome.total_ns / 1e6 / max(1, sum(outcome.buckets.values())), 4),
        "operations": outcome.units,
        "bytes": outcome.bytes,
        "seconds": round(outcome.seconds, 3),
        "cold": cold,
    }


_WORDS = {
    "drop": "all caches of this machine are dropped before cold reads",
    "advise": "the kernel is advised to drop the pages of files before cold reads; names, and caches of daemons, stay",
    "off": "no caches are dropped",
}


def _show(found: dict[str, Any]) -> None:
    workers = found["threads"]
    heading = f"{found['path']} ({found['file_system']}), {workers} worker{'s' if workers > 1 else ''}"
    out = console()
    out.print(f"{heading}; {_WORDS[found['cold']]}{'; all that was read is verified' if found['verified'] else ''}")
    made = table("benchmark", "what", "rate", "unit", "p50", "p99", right=("rate", "p50", "p99"))
    last = ""
    for row in found["rows"]:
        value = row["value"]
        made.add_row(
            row["benchmark"] if row["benchmark"] != last else "",
            row["item"] + (", cold" if row["cold"] else ""),
            f"{value:,.0f}" if value >= 100 else f"{value:,.1f}",
            row["unit"],
            milliseconds(row["p50_ms"]),
            milliseconds(row["p99_ms"]),
        )
        last = row["benchmark"]
    out.print(made)


def _type_of(path: Path) -> str:
    """What is mounted where `path` is."""
    above = [mount for mount in mounts() if path.resolve().is_relative_to(mount.path)]
    return max(above, key=lambda mount: len(mount.path.parts)).type if above else sys.platform
