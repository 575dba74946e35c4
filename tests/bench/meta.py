"""Speed of metadata through a mount: `python -m tests.bench.meta [--files 2000] [--threads 1 8] [--rounds 3]`.

Starts a cluster of its own by `fs3 up` in a temporary folder, and runs each row in a process of its own. Prints medians of
all rounds, the CPU time that mount and meta spend per operation, and whether the target is reached. With --against another
checkout is measured too, row by row in turn: on a busy machine believe CPU times and ratios more than rates.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.systems import REPOSITORY, BenchError, cpu_seconds

LOAD = Path(__file__).with_name("meta_load.py")
TIMEOUT_S = 300.0
SETTLE_S = 1.1
"""What the kernel was told of names and attributes is out of date after this."""

TARGETS = {
    "create": 4_000,
    "stat": 8_000,
    "shuffled": 0,
    "open": 0,
    "readdir": 30_000,
    "create4k": 2_000,
    "unlink4k": 5_000,
    "rename": 4_000,
    "unlink": 5_000,
    "mkdir": 0,
    "rmdir": 0,
}
"""Rows in the order in which they run, with operations (entries) per second wanted; 0 for none."""
_COLD = frozenset({"stat", "shuffled", "readdir"})


@dataclass(frozen=True)
class Result:
    checkout: str
    row: str
    threads: int
    rate: float
    mount_us: float
    meta_us: float


class Mounted:
    """A cluster of a checkout, mounted, below a folder."""

    def __init__(self, checkout: Path, home: Path, replicas: int) -> None:
        self.checkout = checkout
        self.data, self.mount = home / "data", home / "mnt"
        self._replicas = replicas
        self._home = home
        # The packages as they are installed, wherever the interpreter has its own from.
        package = home / "packages" / "fs3"
        package.mkdir(parents=True)
        for source in [*(checkout / "fs3").iterdir(), *[checkout / name for name in ("mgmtd", "meta", "storage", "fuse")]]:
            (package / source.name).symlink_to(source)

    def command(self, *words: str) -> None:
        line = [sys.executable, "-m", "fs3.cli.main", *words, "--data", str(self.data)]
        environment = {**os.environ, "PYTHONPATH": str(self._home / "packages")}
        done = subprocess.run(
            line, cwd=self._home, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode:
            raise BenchError(f"{' '.join(line)}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def start(self) -> None:
        count = str(self._replicas)
        self.command("up", "--mount", str(self.mount), "--storages", count, "--replicas", count, "--detach")

    def stop(self) -> None:
        if self.data.exists():
            self.command("down")

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far of the mount and of meta."""
        config = self.data / "config"
        return cpu_seconds((f"{config}/mount",)), cpu_seconds((f"{config}/meta",))

    def run(self, row: str, number: int, files: int, threads: int) -> Result:
        folder = self.mount / f"bench-{number}-{threads}"
        folder.mkdir(exist_ok=True)
        if row in _COLD:
            if os.geteuid() == 0:
                Path("/proc/sys/vm/drop_caches").write_text("2\n")
            time.sleep(SETTLE_S)
        before = self.cpu()
        line = [sys.executable, "-I", "-S", str(LOAD), row, str(folder), str(files), str(threads)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            raise BenchError(f"{row}: exit {done.returncode}\n{done.stderr}")
        seconds, count = map(float, done.stdout.split())
        mount_s, meta_s = (after - then for after, then in zip(self.cpu(), before, strict=True))
        return Result(str(self.checkout), row, threads, count / seconds, mount_s * 1e6 / count, meta_s * 1e6 / count)


def measure(systems: list[Mounted], options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    for number in range(options.rounds):
        for threads in options.threads:
            for row in TARGETS:
                if row in options.rows:
                    order = systems if number % 2 == 0 else systems[::-1]
                    results += [system.run(row, number, options.files, threads) for system in order]
    return results


def show(results: list[Result], systems: list[Mounted], options: argparse.Namespace) -> None:
    for threads in options.threads:
        for row in [row for row in TARGETS if row in options.rows]:
            medians: list[float] = []
            for number, system in enumerate(systems):
                found = [r for r in results if (r.checkout, r.row, r.threads) == (str(system.checkout), row, threads)]
                rate = statistics.median([r.rate for r in found])
                mount, meta = (statistics.median([getattr(r, f) for r in found]) for f in ("mount_us", "meta_us"))
                target = TARGETS[row]
                verdict = "" if not target or number else f"  {'reaches' if rate >= target else 'MISSES'} {target}"
                if number:
                    verdict = f"  ours is {medians[0] / rate:.2f} of it"
                print(
                    f"{row if not number else '  against':10} x{threads} {rate:9.0f} /s "
                    f"({min(r.rate for r in found):.0f} to {max(r.rate for r in found):.0f})  "
                    f"CPU us mount {mount:6.1f} meta {meta:6.1f}{verdict}",
                    flush=True,
                )
                medians.append(rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="for each row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1, help="and as many storage daemons")
    parser.add_argument("--rows", nargs="+", choices=tuple(TARGETS), default=tuple(TARGETS), help="needs the rows before it")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, measured in turn with this one")
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure (default: for temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every single result goes, too")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options.rounds} rounds of {options.files} files", flush=True
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is stopped then, too
    with tempfile.TemporaryDirectory(prefix="fs3-bench-", dir=options.scratch) as scratch:
        checkouts = [REPOSITORY, *([options.against.resolve()] if options.against else [])]
        systems = []
        try:
            for number, checkout in enumerate(checkouts):
                home = Path(scratch) / str(number)
                home.mkdir()
                systems.append(Mounted(checkout, home, options.replicas))
                systems[-1].start()
            results = measure(systems, options)
        finally:
            for system in systems:
                system.stop()
    show(results, systems, options)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
