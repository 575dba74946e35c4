"""A fixed number of seeds of every shape; that a seed decides everything; and that planted bugs are found."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.sim.canaries import CANARIES
from tests.sim.cluster import Shape, SimulationError, World, simulate
from tests.sim.scenario import SHAPES, run_seed

REPOSITORY = Path(__file__).resolve().parents[2]
CANARY_SEEDS_MAX = 8


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str) -> None:
    outcome = run_seed(1, SHAPES[name])
    assert outcome.operations > 50, "hardly anything was done"
    assert bool(SHAPES[name].faults) == bool(outcome.faults)


@pytest.mark.parametrize("name", ["mixed", "files-all", "disk"])
def test_same_seed_same_run(name: str) -> None:
    shape = replace(SHAPES[name], load_s=4.0)
    first = run_seed(2, shape)
    assert run_seed(2, shape).digest == first.digest
    assert run_seed(3, shape).digest != first.digest


def test_same_run_in_other_processes() -> None:
    """Neither the hashes of strings nor what ran before matter."""
    command = [sys.executable, "-m", "tests.sim", "--seed", "2", "--shape", "mixed", "--load-s", "2"]
    runs = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    digests = [run.communicate()[0].partition("digest='")[2].partition("'")[0] for run in runs]
    here = run_seed(2, replace(SHAPES["mixed"], load_s=2.0)).digest
    assert digests == [here, here]


@pytest.mark.parametrize("name", CANARIES)
def test_planted_bug_is_found(name: str) -> None:
    shape = replace(SHAPES[CANARIES[name][1]], canary=name)
    for seed in range(1, CANARY_SEEDS_MAX + 1):
        try:
            run_seed(seed, shape)
        except SimulationError:
            return
    raise AssertionError(f"not found by {CANARY_SEEDS_MAX} seeds of {shape.name}")


def test_touching_the_real_world_fails() -> None:
    async def main(world: World) -> None:
        await trio.sleep(1)
        time.monotonic()

    with pytest.raises(SimulationError, match=r"calls time\.monotonic inside a simulation"):
        simulate(1, Shape("bare"), main)
