"""Runs simulations: `python -m tests.sim --seeds 100 --shape crash`. A failure prints its seed and the end of its trace."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from tests.sim.cluster import SimulationError
from tests.sim.scenario import SHAPES, UNMET, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sim", description="Simulate whole clusters under faults.")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds of each shape")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--shape", default="", help=f"one of {', '.join(SHAPES)}, or several with commas; all by default")
    parser.add_argument("--load-s", type=float, help="virtual seconds of load")
    parser.add_argument("--canary", default="", help="plant a bug")
    parser.add_argument("--verbose", action="store_true", help="print the trace with every message, of one seed")
    parser.add_argument("--keep-going", action="store_true", help="count failures instead of stopping at the first")
    options = parser.parse_args()
    names = options.shape.split(",") if options.shape else list(SHAPES)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    started = time.monotonic()
    runs = failures = operations = faults = undecided = 0
    virtual_s = 0.0
    for seed in seeds:
        for name in names:
            shape = replace((SHAPES | UNMET)[name], canary=options.canary)
            if options.load_s is not None:
                shape = replace(shape, load_s=options.load_s)
            try:
                outcome = run_seed(seed, shape, verbose=options.verbose)
            except SimulationError as error:
                failures += 1
                text = str(error)
                print(text.partition("\n")[0] if options.keep_going else text, flush=True)
                if not options.keep_going:
                    print(f"failed: make sim SEED={seed} SHAPE={name}")
                    return 1
                continue
            runs += 1
            operations += outcome.operations
            faults += outcome.faults
            undecided += outcome.undecided
            virtual_s += outcome.virtual_s
            if options.seed is not None or options.verbose:
                print(f"{name} seed {seed}: {outcome}")
    real_s = time.monotonic() - started
    print(
        f"{runs} runs, {failures} failures, {undecided} undecided in {real_s:.1f} s: {60 * runs / real_s:.0f} seeds a minute"
    )
    print(f"{virtual_s / 3600:.2f} virtual hours, {operations} operations, {faults} faults injected")
    print(f"{operations / real_s:.0f} operations a second, {virtual_s / real_s:.0f} times faster than the clock")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
