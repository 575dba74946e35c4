"""Runs simulations: `python -m tests.sim --seeds 100 --shape crash`.

A failure prints its seed, the shortest schedule that still fails, what shows it again, and the events of that run.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom

from tests.sim.cluster import Shape
from tests.sim.failure import Failure, SimulationFailed
from tests.sim.plan import parse
from tests.sim.rare import POINTS
from tests.sim.scenario import SHAPES, UNMET, Outcome, run_seed

TELL_S = 60.0
"""How often to say how far it is."""


@dataclass(slots=True)
class Totals:
    """What all runs came to."""

    runs: int = 0
    failures: int = 0
    undecided: int = 0
    operations: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    rare: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.undecided += outcome.undecided
        self.operations += outcome.operations
        self.virtual_s += outcome.virtual_s
        self.faults.update(outcome.faults_by_kind)
        self.rare.update(outcome.rare)

    def line(self, real_s: float) -> str:
        return (
            f"{self.runs} runs, {self.failures} failures, {self.undecided} searches given up, in {real_s:.1f} s:"
            f" {60 * self.runs / real_s:.0f} seeds a minute"
        )

    def lines(self, real_s: float, cpu_s: float) -> str:
        return "\n".join(
            [
                self.line(real_s),
                f"{self.virtual_s / 3600:.2f} virtual hours, {self.operations} operations:"
                f" {self.operations / real_s:.0f} a second, {self.virtual_s / real_s:.0f} times faster than the clock",
                f"by the time of one core, {cpu_s:.1f} s: {self.operations / cpu_s:.0f} operations a second,"
                f" {self.virtual_s / cpu_s:.0f} times faster than the clock",
                f"{self.faults.total()} faults injected: {_counts(self.faults)}",
                f"{len(self.rare)} of {len(POINTS)} rare branches taken, {self.rare.total()} times: {_counts(self.rare)}",
            ]
        )


def _counts(counter: Counter[str]) -> str:
    return ", ".join([f"{count} {name}" for name, count in sorted(counter.items())]) or "none"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make sim", description="Simulate whole clusters under faults.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds of each shape")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--first", type=int, default=1, help="the first seed; 0: any")
    parser.add_argument("--shape", default="", help=f"one of {', '.join(SHAPES)}, or several with commas; all by default")
    parser.add_argument("--plan", default="", help="what goes wrong instead of what the seed says: a file, or its text")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further run after so long")
    parser.add_argument("--load-s", type=float, help="virtual seconds of load")
    parser.add_argument("--transport", choices=("tcp", "rdma"), help="what the hosts are connected by; as the shape has it")
    parser.add_argument("--canary", default="", help="plant a bug")
    parser.add_argument("--shrink-s", type=float, default=120, help="how long to look for a shorter schedule that fails")
    parser.add_argument("--verbose", action="store_true", help="show every message, not only those of what failed")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--failures", type=Path, help="add what fails to this file")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    names = options.shape.split(",") if options.shape else list(SHAPES)
    first = options.first or SystemRandom().randrange(1, 1 << 32)
    seeds = [options.seed] if options.seed is not None else range(first, first + options.seeds)
    if options.seeds > 1 and first != 1 and options.seed is None:
        print(f"from seed {first} on", flush=True)
    started, cpu_started = time.monotonic(), time.process_time()
    totals = Totals()
    told = started
    try:
        for seed in seeds:
            for name in names:
                if time.monotonic() - started > 60 * options.minutes:
                    raise KeyboardInterrupt
                one(seed, (SHAPES | UNMET)[name], options, totals)
                if totals.failures and not options.keep_going:
                    return 1
                if time.monotonic() - told > TELL_S:
                    told = time.monotonic()
                    print(totals.line(told - started), flush=True)
    except KeyboardInterrupt:
        pass
    print(totals.lines(time.monotonic() - started, time.process_time() - cpu_started))
    return 1 if totals.failures else 0


def one(seed: int, shape: Shape, options: argparse.Namespace, totals: Totals) -> None:
    """Run one seed of one shape."""
    shape = replace(shape, canary=options.canary, transport=options.transport or shape.transport)
    if options.load_s is not None:
        shape = replace(shape, load_s=options.load_s)
    if options.plan:
        text = options.plan if "=" in options.plan else Path(options.plan).read_text(encoding="utf-8")
        shape = replace(shape, plan=parse(text))
    failure: Failure | None = None
    try:
        outcome = run_seed(seed, shape, verbose=options.verbose)
    except SimulationFailed as error:
        failure = error.failure
    if failure is not None:
        totals.failures += 1
        report(failure, shape, options)
        return
    totals.add(outcome)
    if options.seed is not None:
        print(f"{shape.name} seed {seed}: {outcome}")


def report(failure: Failure, shape: Shape, options: argparse.Namespace) -> None:
    """Shorten a failure, tell people, and keep it where it is wanted."""
    from tests.sim.shrink import failing, shrink

    first = failure.reason.partition("\n")[0]
    print(f"seed {failure.seed}, shape {failure.shape}: {first}")
    print(f"failed: make sim SEED={failure.seed} SHAPE={failure.shape}", flush=True)
    shortest, runs = failure, 0
    if options.shrink_s > 0 and not options.plan:
        until = time.monotonic() + options.shrink_s
        shortest, runs = shrink(failure, shape, lambda: time.monotonic() > until)
    shortest = failing(failure.seed, replace(shape, plan=shortest.plan), verbose=True) or shortest
    text = (
        f"{shortest.reason}\n"
        f"the shortest schedule that still fails, by {runs} runs, of {len(failure.plan.faults)} faults:\n"
        f"{shortest.schedule()}\nagain: {shortest.command()}\ndigest {shortest.digest}\n"
    )
    print(text, flush=True)
    if not options.keep_going:
        print(shortest.trace(everything=options.verbose))
    if options.failures is not None:
        with options.failures.open("a", encoding="utf-8") as kept:
            kept.write(f"seed {failure.seed}, shape {failure.shape}: {first}\n{text}\n")


if __name__ == "__main__":
    sys.exit(main())
