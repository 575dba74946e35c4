"""A fixed number of seeds of every shape; that a seed decides everything; and that planted bugs are found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import trio

from tests.sim.canaries import CANARIES
from tests.sim.cluster import Shape, SimulationError, World, simulate
from tests.sim.rare import POINTS
from tests.sim.scenario import SHAPES, UNMET, Outcome, run_seed

REPOSITORY = Path(__file__).resolve().parents[2]
CANARY_SEEDS_MAX = 24
SEEDS = (1, 2)
LOAD_S_MAX = {"late": 20.0}


@cache
def outcome(name: str, seed: int) -> Outcome:
    """What a seed comes to; the same when it is run again."""
    shape = brief(SHAPES[name])
    first = run_seed(seed, shape)
    assert run_seed(seed, shape).digest == first.digest
    return first


def brief(shape: Shape) -> Shape:
    return replace(shape, load_s=min(shape.load_s, LOAD_S_MAX.get(shape.name, 4.0)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str, seed: int) -> None:
    assert outcome(name, seed).operations > 20, "hardly anything was done"


def test_all_faults_and_rare_branches_happen() -> None:
    outcomes = [outcome(name, seed) for name in SHAPES for seed in SEEDS]
    injected = {kind for each in outcomes for kind in each.faults_by_kind}
    wanted = {kind for shape in SHAPES.values() for kind in shape.faults} | {"deposed"}
    assert not wanted - injected
    assert not POINTS.keys() - {point for each in outcomes for point in each.rare}
    assert len({each.digest for each in outcomes}) == len(outcomes)


def test_every_point_of_the_product_is_listed() -> None:
    """A point that is asked for must have its chance, and one that is listed must be asked for."""
    asked = set()
    for package in ("fs3", "mgmtd", "meta", "storage", "fuse"):
        for path in (REPOSITORY / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            asked |= set(re.findall(r"""(?:rare|_lose_reply|_fail)\((?:env, )?"([a-z.-]+)\"""", text))
    assert asked == POINTS.keys()


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


def test_clock_beyond_what_leases_stand_is_noticed() -> None:
    """Nobody can hold a lease by a clock that stands still: reads of old data must be seen."""
    for seed in range(1, CANARY_SEEDS_MAX + 1):
        try:
            run_seed(seed, UNMET["clock-broken"])
        except SimulationError as error:
            assert "no order explains" in str(error) or "version" in str(error)
            return
    raise AssertionError("not found")


def test_touching_the_real_world_fails() -> None:
    async def main(world: World) -> None:
        await trio.sleep(1)
        time.monotonic()

    with pytest.raises(SimulationError, match=r"calls time\.monotonic inside a simulation"):
        simulate(1, Shape("bare"), main)
