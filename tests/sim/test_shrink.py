"""Plans: that they can be written down, that each fault stands for itself, and that a failing one is shortened."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.sim.canaries import CANARIES
from tests.sim.plan import Fault, Plan, draw, parse
from tests.sim.rare import POINTS
from tests.sim.scenario import SHAPES, run_seed
from tests.sim.shrink import failing, plans, shorter, shrink
from tests.sim.trace import about

REPOSITORY = Path(__file__).resolve().parents[2]
MIXED = SHAPES["mixed"]


@given(plans(MIXED), st.sampled_from(["\n", "; "]))
def test_plan_is_read_as_it_was_written(plan: Plan, separator: str) -> None:
    assert parse(plan.text(separator)) == plan


def test_plan_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="knows nothing of storm"):
        parse("load_s=1 clients=2 storm=3")


def test_drawn_plan_depends_on_the_seed_alone() -> None:
    empty = Plan(100.0, 3)
    first, again, other = [
        draw(Random(seed), empty, MIXED.faults, 1.0, 1.0, ("a", "b")) for seed in ("1/plan", "1/plan", "2/plan")
    ]
    assert first == again != other
    assert len(first.faults) > 50
    assert {fault.kind for fault in first.faults} == set(MIXED.faults)


@given(plans(MIXED).flatmap(lambda plan: st.tuples(st.just(plan), shorter(plan))))
@settings(max_examples=50)
def test_shorter_plan_is_a_part_of_the_whole(both: tuple[Plan, Plan]) -> None:
    whole, part = both
    assert part.load_s <= whole.load_s and part.clients <= whole.clients and set(part.rare) <= set(whole.rare)
    known = {(fault.kind, fault.subject): fault for fault in whole.faults}
    for fault in part.faults:
        full = known[fault.kind, fault.subject]
        assert fault.at_s <= full.at_s


def test_fault_does_the_same_whatever_else_goes_wrong() -> None:
    kinds = [kind for kind in dict.fromkeys(MIXED.faults) if kind != "crash_client"]  # a client may have done its work
    faults = tuple([Fault(0.2 * n, kind, 1000 + n, 0.1, 0.5) for n, kind in enumerate(kinds, 1)])

    def happened(some: tuple[Fault, ...]) -> dict[float, str]:
        outcome = run_seed(1, replace(MIXED, plan=Plan(0.2 * len(kinds) + 0.5, 2, faults=some)))
        return {fault.at_s: outcome.happened.get(number, "") for number, fault in enumerate(some)}

    whole = happened(faults)
    assert all(whole.values())
    assert happened(faults[::2]).items() <= whole.items()


@given(plan=plans(replace(MIXED, load_s=1.0)))
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_any_plan_holds(plan: Plan) -> None:
    outcome = run_seed(1, replace(MIXED, plan=plan))
    assert outcome.faults >= len(plan.faults)


def test_shortest_schedule_is_short_and_its_command_shows_it_again() -> None:
    canary = "resync-compares-nothing"
    shape = replace(SHAPES[CANARIES[canary][1]], canary=canary, load_s=4.0)
    found = next(failure for failure in (failing(seed, shape) for seed in range(1, 9)) if failure is not None)
    shortest, _ = shrink(found, shape, lambda: False, 25)
    assert len(found.plan.faults) > len(shortest.plan.faults)
    assert len(shortest.plan.faults) <= 2
    assert "is down" in shortest.schedule()
    command = shlex.split(shortest.command())
    assert command[:2] == ["make", "sim"]
    named = dict(word.split("=", 1) for word in command[2:])
    words = ["--seed", named["SEED"], "--shape", named["SHAPE"], "--plan", named["PLAN"], *shlex.split(named["ARGS"])]
    run = subprocess.run([sys.executable, "-m", "tests.sim", *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"digest {shortest.digest}" in run.stdout
    # The trace speaks of the object that failed, in messages too, and of no other.
    objects = about(shortest.reason)
    updates = [line for line in run.stdout.splitlines() if " -> storage" in line and "(updates=" in line]
    assert objects and updates
    assert all(any(f"chunk={each}." in line for each in objects) for line in updates)


def test_rare_branches_are_those_of_the_plan() -> None:
    names = tuple(sorted(POINTS))
    taken = run_seed(1, replace(MIXED, load_s=3.0, plan=Plan(3.0, 3, rare=names))).rare
    assert taken and set(taken) <= set(names)
    assert not run_seed(1, replace(MIXED, load_s=3.0, plan=Plan(3.0, 3))).rare
