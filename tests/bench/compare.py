"""Runs the same workloads on fs3, on its peers and on the plain disk in turn, and prints medians and ratios.

    python tests/bench/compare.py [--systems fs3-r1,juicefs,fs3-r3,moosefs,glusterfs,local] [--rows create,...] ...

Each round starts every system afresh in an empty folder of the same disk, runs all rows on it in processes of their own,
and removes it, so that slow drifts of the machine meet all systems alike. Dirty pages are written out before every row; the
kernel's caches are dropped before the reading rows (needs root). Rates are per second: larger is better, and so are ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from peers import GlusterFs, MooseFs
from systems import BenchError, Fs3, JuiceFs, Local, System, cpu_seconds, find_juicefs
from workloads import BY_NAME, ROWS, SKIPPED_EXIT, Row, Sizes

ROW_TIMEOUT_S = 900.0
SYSTEMS = ("fs3-r1", "fs3-r3", "juicefs", "moosefs", "glusterfs", "local")
PEERS = {"fs3-r1": ("juicefs",), "fs3-r3": ("juicefs", "moosefs", "glusterfs")}
"""Whom a system is set against: one copy against one, three against three (and JuiceFS's one)."""


@dataclass(frozen=True)
class Result:
    """One row on one system in one round: a rate, or why there is none. cpu_ms: of the system's own processes, per unit of
    work; it tells much also on a machine that others use too."""

    row: str
    system: str
    round: int
    rate: float | None
    unit: str
    seconds: float
    note: str = ""
    cpu_ms: float | None = None


def make_system(name: str, juicefs: str | None) -> System:
    if name == "local":
        return Local()
    if name == "moosefs":
        return MooseFs()
    if name == "glusterfs":
        return GlusterFs()
    if name == "juicefs":
        return JuiceFs(find_juicefs(juicefs))
    if name.startswith("fs3-r"):
        kind, _, options = name.removeprefix("fs3-r").partition(":")
        replicas, *mounting = kind.split("+")
        if replicas.isdigit():
            return Fs3(int(replicas), tuple(options.split()), name, tuple([f"--{flag}" for flag in mounting]))
    known = ", ".join(SYSTEMS)
    raise SystemExit(f"unknown system {name!r}: one of {known}; options of `fs3 up` may follow a colon, of `fs3 mount` a +")


def with_needs(wanted: Sequence[str]) -> list[Row]:
    """The wanted rows in the order of ROWS, each after what it needs."""
    plan: list[Row] = []

    def add(row: Row) -> None:
        if row.needs is not None:
            add(BY_NAME[row.needs])
        if row not in plan:
            plan.append(row)

    for row in ROWS:
        if row.name in wanted:
            add(row)
    return plan


def drop_caches() -> None:
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def run_row(row: Row, root: Path, sizes: Sizes, python: str) -> dict[str, object]:
    """The workload's own JSON; BenchError if it failed."""
    flags = [item for field, value in asdict(sizes).items() for item in (f"--{field.replace('_', '-')}", str(value))]
    command = [python, str(Path(__file__).with_name("workloads.py")), row.name, "--dir", str(root), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ROW_TIMEOUT_S, check=False)
    if done.returncode not in (0, SKIPPED_EXIT):
        raise BenchError(f"{row.name} on {root}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run_system(system: System, plan: Sequence[Row], number: int, sizes: Sizes, scratch: Path, python: str) -> list[Result]:
    """One round on one system. A row that fails is noted and the others go on; a system that does not start raises."""
    home = scratch / f"{system.name.partition(':')[0]}-{number}"
    home.mkdir()
    results: list[Result] = []
    try:
        root = system.start(home)
        for row in plan:
            os.sync()
            if row.cold:
                drop_caches()
            result = _measured(row, system, number, root, sizes, python)
            results.append(result)
            shown = (
                f"{result.rate:12.1f} {result.unit:6} {result.cpu_ms or 0:8.3f} ms CPU"
                if result.rate is not None
                else f"     - {result.note}"
            )
            print(f"round {number} {system.name:10} {row.name:18} {shown}", file=sys.stderr, flush=True)
        run_row(BY_NAME["clear"], root, sizes, python)
    finally:
        system.stop()
        shutil.rmtree(home)
        os.sync()
    return results


def _measured(row: Row, system: System, number: int, root: Path, sizes: Sizes, python: str) -> Result:
    start, cpu = time.perf_counter(), cpu_seconds(system.marks())
    try:
        answer = run_row(row, root, sizes, python)
    except (BenchError, subprocess.TimeoutExpired) as exc:
        return Result(row.name, system.name, number, None, "", time.perf_counter() - start, str(exc))
    if "skipped" in answer:
        return Result(row.name, system.name, number, None, "", 0.0, str(answer["skipped"]))
    rate, amount, seconds = (float(str(answer[key])) for key in ("rate", "amount", "seconds"))
    cpu_ms = (cpu_seconds(system.marks()) - cpu) * 1000 / amount
    return Result(row.name, system.name, number, rate, str(answer["unit"]), seconds, cpu_ms=cpu_ms)


def medians(results: Sequence[Result]) -> dict[tuple[str, str], float]:
    rates: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.rate is not None:
            rates.setdefault((result.row, result.system), []).append(result.rate)
    return {key: statistics.median(values) for key, values in rates.items()}


def cpu_table(results: Sequence[Result], rows: Sequence[str], systems: Sequence[str]) -> str:
    """Markdown: CPU time of each system's processes per unit of work, in ms; medians."""
    lines = ["| row | " + " | ".join(systems) + " |", "|---" * (1 + len(systems)) + "|"]
    for row in rows:
        cells = [row]
        for name in systems:
            found = [r.cpu_ms for r in results if r.row == row and r.system == name and r.cpu_ms is not None]
            cells.append(f"{statistics.median(found):.3f}" if found else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(results: Sequence[Result], rows: Sequence[str], systems: Sequence[str]) -> str:
    """Markdown: one line per row with each system's median and the ratios to its peers."""
    middle = medians(results)
    units = {result.row: result.unit for result in results if result.unit}
    compared = [(name, peer) for name in systems for peer in PEERS.get(name.partition(":")[0], ()) if peer in systems]
    lines = [
        "| row | unit | " + " | ".join(systems) + "".join(f" | {name}/{peer}" for name, peer in compared) + " |",
        "|---" * (2 + len(systems) + len(compared)) + "|",
    ]
    for row in rows:
        cells = [row, units.get(row, "")]
        cells += [_number(middle.get((row, name))) for name in systems]
        cells += [_ratio(middle.get((row, name)), middle.get((row, peer))) for name, peer in compared]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _ratio(value: float | None, reference: float | None) -> str:
    return "-" if value is None or not reference else f"{value / reference:.2f}"


def machine() -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_mib": memory >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="in the order of each round (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="and what they need (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure (default: for temporary files)")
    parser.add_argument("--juicefs", help="its binary (default: from the PATH, else installed into .venv-juicefs)")
    parser.add_argument("--python", default=sys.executable, help="of the workloads; one with torch for the torch rows")
    parser.add_argument("--json", type=Path, help="write every single result there")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    wanted, names = args.rows.split(","), args.systems.split(",")
    if unknown := [name for name in wanted if name not in BY_NAME]:
        parser.error(f"unknown rows: {', '.join(unknown)}")
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    systems = [make_system(name, args.juicefs) for name in names]
    if os.geteuid() != 0:
        print("note: not root, so caches are not dropped before reads", file=sys.stderr)

    results: list[Result] = []
    scratch = Path(tempfile.mkdtemp(prefix="fs3-bench-", dir=args.scratch))
    plan = with_needs(wanted)
    failed = False
    try:
        for number in range(1, args.rounds + 1):
            for system in systems:
                try:
                    results += run_system(system, plan, number, sizes, scratch, args.python)
                except (BenchError, subprocess.TimeoutExpired, OSError) as exc:
                    failed = True
                    print(f"round {number} {system.name}: {exc}", file=sys.stderr, flush=True)
            if args.json is not None:
                document = {"machine": machine(), "sizes": asdict(sizes), "results": [asdict(result) for result in results]}
                args.json.write_text(json.dumps(document, indent=1) + "\n")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{args.rounds} rounds; {sizes}; {machine()}")
    shown = [row.name for row in plan if row.name in wanted]
    print(table(results, shown, names))
    print("\nCPU time of the system's own processes per MiB or operation, ms:")
    print(cpu_table(results, shown, [name for name in names if name != "local"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
