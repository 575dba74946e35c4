"""Throughput of the storage service over TCP loopback, without FUSE: `python -m tests.bench.storage`.

Starts mgmtd, meta and storage daemons as processes in temporary folders, on tmpfs and on disk, and drives them with
FileClient and StorageClient from one more process. Prints, for each row, the median of several slices, its spread, the CPU
time that client and storage daemons spent per operation, and the target. With --against another checkout is measured too,
slice by slice in turn, so that what else the machine does meets both alike: believe its ratios more than its rates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.storage_cluster import CHECKOUT, MIB, Cluster, Load, Slice

GIB = 1024 * MIB


@dataclass(frozen=True)
class Row:
    """One line: what to run at which depth. target: GiB/s or operations/s of one replica on tmpfs; 0 for none."""

    name: str
    operation: str
    depth: int
    unit: str
    target: float = 0.0

    def rate(self, found: Slice) -> float:
        if self.unit == "GiB/s":
            return found.bytes / found.seconds / GIB
        return found.bytes / 4096 / found.seconds


ROWS = (
    Row("write 1 MiB, fresh", "write-1m", 4, "GiB/s"),
    Row("write 1 MiB", "write-1m", 4, "GiB/s", 1.2),
    Row("write 1 MiB, one by one", "write-1m", 1, "GiB/s"),
    Row("read 1 MiB", "read-1m", 4, "GiB/s", 2.5),
    Row("read 1 MiB, one by one", "read-1m", 1, "GiB/s"),
    Row("read 64 x 128 KiB", "batch-128k", 2, "GiB/s", 2.5),
    Row("read 4 KiB", "read-4k", 16, "/s", 25_000),
    Row("read 4 KiB, one by one", "read-4k", 1, "/s"),
    Row("read 64 x 4 KiB", "batch-4k", 4, "/s", 100_000),
    Row("write 4 KiB", "write-4k", 16, "/s", 10_000),
    Row("write 4 KiB, one by one", "write-4k", 1, "/s"),
)
"""The first one makes the file that the others work on."""
THREE_REPLICAS = 0.3
"""Of one replica's rate, at least, when three share the machine."""


@dataclass(frozen=True)
class Result:
    """A row's outcome. cpu_us: per operation (of a batch: per range). rates: of each slice."""

    checkout: str
    where: str
    replicas: int
    row: str
    unit: str
    target: float
    median: float
    rates: list[float]
    client_us: float
    server_us: float
    latency_ms: float
    p99_ms: float


def run(options: argparse.Namespace, where: str, folder: str, replicas: int) -> list[Result]:
    checkouts = [CHECKOUT, *([Path(options.against).resolve()] if options.against else [])]
    results = []
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="fs3-bench-")))
        loads = []
        for number, checkout in enumerate(checkouts):
            flags = ["--log-level=warning", *(options.storage_option if number == 0 else [])]
            cluster = stack.enter_context(Cluster(checkout, root / str(number), replicas, 2, flags))
            loads.append(cluster.load(options.mib))
        for row in ROWS:
            if options.rows and row is not ROWS[0] and row.operation not in options.rows:
                continue
            slices = _slices(row, loads, options)
            for checkout, found in zip(checkouts, slices, strict=True):
                results.append(_result(row, str(checkout), where, replicas, found))
            _show(results[-len(checkouts) :])
    return results


def _slices(row: Row, loads: list[Load], options: argparse.Namespace) -> list[list[Slice]]:
    slices: list[list[Slice]] = [[] for _ in loads]
    for number in range(options.runs):
        order = list(zip(loads, slices, strict=True))
        for load, found in order if number % 2 == 0 else reversed(order):
            time.sleep(options.pause)
            found.append(load.run(f"{row.operation}:{row.depth}", options.seconds))
    return slices


def _result(row: Row, checkout: str, where: str, replicas: int, found: list[Slice]) -> Result:
    rates = [row.rate(entry) for entry in found]
    unit_bytes = {"write-1m": MIB, "read-1m": MIB, "batch-128k": 128 * 1024}.get(row.operation, 4096)
    operations = sum(entry.bytes for entry in found) / unit_bytes
    return Result(
        checkout,
        where,
        replicas,
        row.name,
        row.unit,
        row.target if replicas == 1 and where == "tmpfs" else 0.0,
        statistics.median(rates),
        rates,
        sum(entry.client_s for entry in found) / operations * 1e6,
        sum(entry.server_s for entry in found) / operations * 1e6,
        statistics.median(entry.latencies_ms[0] for entry in found),
        statistics.median(entry.latencies_ms[1] for entry in found),
    )


def _show(results: list[Result]) -> None:
    for number, found in enumerate(results):
        digits = 2 if found.unit == "GiB/s" else 0
        against = ""
        if number:
            ratios = [ours / theirs for ours, theirs in zip(results[0].rates, found.rates, strict=True)]
            against = f"  ours is {statistics.median(ratios):.2f} of it"
        elif found.target:
            against = f"  {'reaches' if found.median >= found.target else 'MISSES'} {found.target:.{digits}f}"
        print(
            f"{found.where:5} x{found.replicas} {found.row if not number else '  against':24} "
            f"{found.median:10.{digits}f} {found.unit:5} "
            f"({min(found.rates):.{digits}f} to {max(found.rates):.{digits}f})  "
            f"CPU us {found.client_us:6.1f} + {found.server_us:6.1f}  ms {found.latency_ms:6.2f}, p99 {found.p99_ms:6.2f}"
            f"{against}",
            flush=True,
        )


def _compare_replicas(results: list[Result]) -> None:
    """Rates of several replicas as parts of one replica's."""
    own = [found for found in results if found.checkout == str(CHECKOUT)]
    single = {(found.where, found.row): found.median for found in own if found.replicas == 1}
    for found in own:
        alone = single.get((found.where, found.row))
        if found.replicas > 1 and alone:
            part = found.median / alone
            verdict = "" if part >= THREE_REPLICAS else f"  MISSES {THREE_REPLICAS:.2f}"
            print(f"{found.where:5} x{found.replicas} {found.row:24} {part:.2f} of one replica's{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 3], help="one cluster after the other")
    parser.add_argument("--where", nargs="+", choices=("tmpfs", "disk"), default=["tmpfs", "disk"])
    parser.add_argument("--tmpfs", default="/dev/shm", help="a folder in memory")
    parser.add_argument("--disk", default=None, help="a folder on disk; the one for temporary files by default")
    parser.add_argument("--mib", type=int, default=256, help="size of the file")
    parser.add_argument("--runs", type=int, default=5, help="slices for each row")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a slice")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between slices, for what else the machine does")
    parser.add_argument("--rows", nargs="+", choices=sorted({row.operation for row in ROWS}), help="only these")
    parser.add_argument("--against", metavar="CHECKOUT", help="another checkout, measured in turn with this one")
    parser.add_argument("--storage-option", nargs="+", default=[], help="flags for this checkout's storage daemons")
    parser.add_argument("--json", metavar="FILE", help="where all results go, too")
    options = parser.parse_args()
    folders = {"tmpfs": options.tmpfs, "disk": options.disk or tempfile.gettempdir()}
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options.runs} slices of {options.seconds} s", flush=True)
    results: list[Result] = []
    for where in options.where:
        for replicas in options.replicas:
            results += run(options, where, folders[where], replicas)
    _compare_replicas(results)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(found) for found in results], indent=1))


if __name__ == "__main__":
    main()
