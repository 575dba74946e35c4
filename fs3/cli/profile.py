"""`fs3 profile`: which operations, whose, and on which files a mount or a daemon spends its time."""

from __future__ import annotations

import json
import pwd
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import click
import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..api.common import TRACE
from ..errors import ConfigError
from .admin.common import table
from .options import console, folder
from .stats import milliseconds, until_interrupted
from .tally import VIEWS, Sum, Tally, event_of, read_log
from .watched import Watched, watching

POLL_S = 0.25
REFRESH_S = 1.0
TOP_LIVE = 8
_OWN = f"rpc.{TRACE.name}"
"""Our own requests."""
_COLUMNS = ("time", "%", "count", "errors", "mean", "p99", "max")
_NUMBERS_WIDTH = 64
_KEY_MIN = 16


@click.command()
@click.argument("target", required=False, metavar="[MOUNT|ADDRESS]")
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), default=10.0, show_default=True, help="How long to look.")
@click.option("--by", "views", type=click.Choice(VIEWS), multiple=True, help="Only sums by these (default: all three).")
@click.option("--top", type=click.IntRange(1), default=15, show_default=True, metavar="N", help="Lines of each sum.")
@click.option("--log", type=folder, metavar="FILE", help="Also write each operation to FILE, one JSON object a line.")
@click.option("--replay", type=folder, metavar="FILE", help="Sum up such a file, and ask nobody.")
@click.option("--json", "as_json", is_flag=True, help="Print the sums as JSON at the end.")
def profile(
    target: str | None, seconds: float, views: Sequence[str], top: int, log: Path | None, replay: Path | None, as_json: bool
) -> None:
    """Show what takes the time of a mount: which operations, of which processes, on which files.

    Every operation of the mount is told while this runs, and nothing of it costs anything before and after. MOUNT is a
    mount of this machine; ADDRESS is a daemon's, such as tcp://10.0.0.1:7001, and callers then are its peers. Ctrl-C
    ends it early.

    \b
      fs3 profile mnt                          10 s of the mount at ./mnt
      fs3 profile mnt --seconds 60 --by path --top 30
      fs3 profile mnt --log ops.jsonl          keep each operation
      fs3 profile --replay ops.jsonl           sum them up again
      fs3 profile tcp://127.0.0.1:7001         a metadata daemon's requests
      jq 'select(.us > 10000)' ops.jsonl       the slow ones

    Reads and writes are laid to the process that opened the file. The time of an operation is what it took in the
    daemon; those that run at the same time each count in full.
    """
    if replay is not None:
        if target is not None or log is not None:
            raise ConfigError("--replay reads a file: it goes with no mount, address or --log")
        tally = Tally()
        for event in read_log(replay):
            tally.add(event)
        _finish(tally, str(replay), (tally.last_ns - tally.first_ns) / 1e9, views or VIEWS, top, as_json)
        return
    with ExitStack() as stack:
        file: IO[str] | None = None
        if log is not None:
            try:
                file = stack.enter_context(open(log, "w", encoding="utf-8"))
            except OSError as error:
                raise ConfigError(f"{log}: {error.strerror}") from None
        tally = Tally(file)
        name, looked_s = trio.run(_listen, target, seconds, tally, views or VIEWS, as_json)
    _finish(tally, name, looked_s, views or VIEWS, top, as_json)


async def _listen(
    target: str | None, seconds: float, tally: Tally, views: Sequence[str], as_json: bool
) -> tuple[str, float]:
    """Fill the tally; returns of whom, and for how long."""
    out = console()
    async with watching(target) as watched:
        started = trio.current_time()
        people = Callers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_interrupted, nursery.cancel_scope)
            with ExitStack() as stack:
                live = None
                if out.is_terminal and not as_json:
                    live = stack.enter_context(Live(console=out, auto_refresh=False, transient=True))
                await _gather(watched, seconds, tally, people, live, views)
            nursery.cancel_scope.cancel()
        return watched.name, trio.current_time() - started


async def _gather(
    watched: Watched, seconds: float, tally: Tally, people: Callers, live: Live | None, views: Sequence[str]
) -> None:
    started = shown = trio.current_time()
    await watched.operations()  # from now on
    while True:
        now = trio.current_time()
        left = started + seconds - now
        await trio.sleep(max(0.0, min(POLL_S, left)))
        full = True
        while full:
            rows, dropped = await watched.operations()
            tally.dropped += dropped
            for row in rows:
                if row[1] == _OWN:
                    continue
                tally.add(event_of(row, people.named(row[3])))
            full = len(rows) >= 1000 and trio.current_time() < started + seconds
        if left <= POLL_S:
            return
        if live is not None and now - shown >= REFRESH_S:
            shown = now
            live.update(view(tally, watched.name, now - started, views, TOP_LIVE, _room(live.console)), refresh=True)


def _finish(tally: Tally, name: str, seconds: float, views: Sequence[str], top: int, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"of": name, **tally.as_json(seconds, top)}, indent=1))
        return
    out: Console = console()
    out.print(view(tally, name, seconds, views, top, _room(out)))


def _room(out: Console) -> int:
    """Characters for a caller or path beside the numbers; 0: as many as it takes."""
    return max(_KEY_MIN, out.width - _NUMBERS_WIDTH) if out.is_terminal else 0


def view(tally: Tally, name: str, seconds: float, views: Sequence[str], top: int, room: int = 0) -> RenderableType:
    """The sums for people. room: for keys; of longer paths the ends are shown."""
    head = f"{name}  {tally.count:,} operations in {seconds:.1f} s, {tally.total_ns / 1e9:.2f} s of time in all"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if tally.dropped:
        parts.append(Text(f"{tally.dropped:,} more came too fast to be told, and are missing here", style="yellow"))
    for each in views:
        made = table(*_COLUMNS, each, right=_COLUMNS)
        for key, found in tally.top(each, top):
            if room and len(key) > room:
                key = f"…{key[1 - room :]}" if each == "path" else f"{key[: room - 1]}…"
            made.add_row(*_cells(found, tally.total_ns), Text(key))
        parts.append(made)
    return Group(*parts)


def _cells(found: Sum, total_ns: int) -> list[str]:
    times = [found.total_ns / found.count, found.p99_ns, found.max_ns]
    share = 100 * found.total_ns / max(1, total_ns)
    return [
        milliseconds(found.total_ns / 1e6),
        f"{share:.1f}",
        f"{found.count:,}",
        f"{found.errors:,}",
        *[milliseconds(value / 1e6) for value in times],
    ]


class Callers:
    """Who stands behind `pid:uid`: the command is looked up when it is first seen, since it may end any moment."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {"": "(kernel, or opened before)"}

    def named(self, caller: str) -> str:
        found = self._known.get(caller)
        if found is None:
            found = self._known[caller] = _described(caller)
        return found


def _described(caller: str) -> str:
    pid, colon, uid = caller.partition(":")
    if not (colon and pid.isdecimal() and uid.isdecimal()):
        return caller
    try:
        # The kernel names the thread.
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        pid = next((line.split()[1] for line in status.splitlines() if line.startswith("Tgid:")), pid)
        command = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        command = "?"
    try:
        user = pwd.getpwuid(int(uid)).pw_name
    except KeyError:
        user = uid
    return f"{command} (pid {pid}, {user})" if int(pid) else f"(outside this pid namespace, {user})"
