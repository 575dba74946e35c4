"""`fs3 stats`: what a mount or a daemon does, and how long that takes, second by second."""

from __future__ import annotations

import json
import signal
import time
from contextlib import nullcontext

import click
import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from .admin.common import table
from .options import console, nobody_reads
from .rates import NOTHING, Rate, Report, report
from .status import human
from .watched import watching

_TITLES = {"fuse": "operation", "rings": "batch of a ring", "rpc": "method answered", "call": "method called"}
_COLUMNS = ("/s", "p50", "p99", "max", "mean ms", "busy")


@click.command()
@click.argument("target", required=False, metavar="[MOUNT|ADDRESS]")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS")
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="End after so many reports (default: go on until Ctrl-C)."
)
@click.option("--total", is_flag=True, help="One report of all since the start of the daemon, and no more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each interval.")
def stats(target: str | None, interval: float, count: int | None, total: bool, as_json: bool) -> None:
    """Show what a mount does, live: how often, and how long each operation takes.

    MOUNT is a mount of this machine (or a path below one); it may be left out where there is only one. ADDRESS is any
    daemon's, such as tcp://10.0.0.1:7001. Only root and the user who mounted it may ask a mount.

    \b
      fs3 stats                          the only mount here, every second
      fs3 stats mnt --interval 5 --count 12
      fs3 stats mnt --total              since it was mounted
      fs3 stats tcp://127.0.0.1:7001     a metadata or storage daemon
      fs3 stats mnt --json | jq '.operations.fuse.read.p99_ms'

    `busy` is how many such operations were under way on average: the greatest is where the time goes. `max` is rounded
    up by up to 12 %. What the kernel answers from its caches never reaches a mount, and is not in these figures.
    """
    trio.run(_run, target, interval, count, total, as_json)


async def _run(target: str | None, interval: float, count: int | None, total: bool, as_json: bool) -> None:
    out = console()
    async with watching(target) as watched:
        if total:
            found = await watched.figures()
            _show(out, None, watched.name, report(NOTHING, found, found["uptime_s"]), as_json)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_interrupted, nursery.cancel_scope)
            live = Live(console=out, auto_refresh=False, transient=False) if out.is_terminal and not as_json else None
            before = await watched.figures()
            with live or nullcontext():
                number = 0
                while count is None or number < count:
                    await trio.sleep(interval)
                    found = await watched.figures()
                    _show(out, live, watched.name, report(before, found), as_json)
                    before, number = found, number + 1
            nursery.cancel_scope.cancel()


async def until_interrupted(scope: trio.CancelScope) -> None:
    """Cancel the scope at Ctrl-C."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _show(out: Console, live: Live | None, name: str, found: Report, as_json: bool) -> None:
    try:
        if as_json:
            click.echo(json.dumps({"at_ms": int(time.time() * 1000), "of": name, **found.as_json()}))
        elif live is not None:
            live.update(view(name, found), refresh=True)
        else:
            out.print(view(name, found))
            out.print()
    except BrokenPipeError:
        nobody_reads()
        raise SystemExit(0) from None


def view(name: str, found: Report) -> RenderableType:
    """One report for people."""
    parts: list[RenderableType] = [Text(f"{name}  {time.strftime('%H:%M:%S')}  {summary(found)}", style="bold")]
    for part, rates in found.rates.items():
        made = table(_TITLES[part], *_COLUMNS, right=_COLUMNS)
        for rate in rates:
            made.add_row(rate.name, *_cells(rate))
        parts.append(made)
    if not found.rates:
        parts.append(Text("nothing happened"))
    return Group(*parts)


def _cells(rate: Rate) -> list[str]:
    times = [milliseconds(rate.p50_ms), milliseconds(rate.p99_ms), milliseconds(rate.max_ms), f"{rate.mean_ms:.3f}"]
    return [f"{rate.per_s:,.0f}" if rate.per_s >= 10 else f"{rate.per_s:.1f}", *times, f"{rate.busy:.2f}"]


def milliseconds(value: float) -> str:
    """A latency for people."""
    if value < 1:
        return f"{value * 1000:.0f} µs"
    return f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def summary(found: Report) -> str:
    """The figures that are no latencies."""
    words = []
    for part, what in (("fuse", "operations"), ("rpc", "requests")):
        if part in found.rates or (part == "fuse" and "fuse.in_flight" in found.values):
            words.append(f"{sum([rate.per_s for rate in found.rates.get(part, ())]):,.0f} {what}/s")
    for title, name in (("read", "fuse.read_bytes"), ("write", "fuse.written_bytes"),
                        ("read", "storage.read_bytes"), ("write", "storage.written_bytes")):  # fmt: skip
        if name in found.values:
            words.append(f"{title} {human(int(found.per_s[name]))}/s")
    if "fuse.in_flight" in found.values:
        words.append(f"{found.values['fuse.in_flight']:.0f} in flight")
    if found.values.get("rings.programs"):
        open_, programs = found.values["rings.open"], found.values["rings.programs"]
        done = [found.per_s.get(f"rings.{kind}", 0.0) for kind in ("read_operations", "written_operations")]
        moved = sum([found.per_s.get(f"rings.{kind}", 0.0) for kind in ("read_bytes", "written_bytes")])
        words.append(f"{open_:.0f} rings of {programs:.0f} programs: {sum(done):,.0f} operations/s, {human(int(moved))}/s")
    ahead = [found.per_s.get(f"mount.readahead_{name}", 0.0) for name in ("hits", "waits", "misses")]
    if sum(ahead) > 0:
        words.append(f"read ahead {100 * (ahead[0] + ahead[1]) / sum(ahead):.0f} % of reads")
    return ", ".join([*words, f"CPU {100 * found.cpu:.0f} %", f"memory {human(found.memory_bytes)}"])
