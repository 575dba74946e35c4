"""Runs simulations: `python -m tests.sim --seeds 100 --shape crash`. A failure prints its seed and the end of its trace."""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, replace

from tests.sim.cluster import Shape, SimulationError
from tests.sim.scenario import SHAPES, UNMET, Outcome, run_seed


@dataclass(slots=True)
class Totals:
    """What all runs came to."""

    runs: int = 0
    failures: int = 0
    undecided: int = 0
    operations: int = 0
    faults: int = 0
    virtual_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.undecided += outcome.undecided
        self.operations += outcome.operations
        self.faults += outcome.faults
        self.virtual_s += outcome.virtual_s

    def lines(self, real_s: float) -> str:
        return (
            f"{self.runs} runs, {self.failures} failures, {self.undecided} searches given up, in {real_s:.1f} s:"
            f" {60 * self.runs / real_s:.0f} seeds a minute\n"
            f"{self.virtual_s / 3600:.2f} virtual hours, {self.operations} operations, {self.faults} faults injected\n"
            f"{self.operations / real_s:.0f} operations a second, {self.virtual_s / real_s:.0f} times faster than the clock"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make sim", description="Simulate whole clusters under faults.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds of each shape")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--shape", default="", help=f"one of {', '.join(SHAPES)}, or several with commas; all by default")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further run after so long")
    parser.add_argument("--load-s", type=float, help="virtual seconds of load")
    parser.add_argument("--canary", default="", help="plant a bug")
    parser.add_argument("--verbose", action="store_true", help="put every message into the trace")
    parser.add_argument("--keep-going", action="store_true", help="count failures instead of stopping at the first")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    names = options.shape.split(",") if options.shape else list(SHAPES)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    started = time.monotonic()
    totals = Totals()
    try:
        for seed in seeds:
            for name in names:
                if time.monotonic() - started > 60 * options.minutes:
                    raise KeyboardInterrupt
                one(seed, (SHAPES | UNMET)[name], options, totals)
                if totals.failures and not options.keep_going:
                    return 1
    except KeyboardInterrupt:
        pass
    print(totals.lines(time.monotonic() - started))
    return 1 if totals.failures else 0


def one(seed: int, shape: Shape, options: argparse.Namespace, totals: Totals) -> None:
    """Run one seed of one shape."""
    shape = replace(shape, canary=options.canary)
    if options.load_s is not None:
        shape = replace(shape, load_s=options.load_s)
    try:
        outcome = run_seed(seed, shape, verbose=options.verbose)
    except SimulationError as error:
        totals.failures += 1
        text = str(error)
        print(text.partition("\n")[0] if options.keep_going else text)
        print(f"failed: make sim SEED={seed} SHAPE={shape.name}", flush=True)
        return
    totals.add(outcome)
    if options.seed is not None:
        print(f"{shape.name} seed {seed}: {outcome}")


if __name__ == "__main__":
    sys.exit(main())
