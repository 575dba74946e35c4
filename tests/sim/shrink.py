"""Finds the shortest plan that still fails: hypothesis drives the plans, and what it shrinks are integers.

Each fault of the failing plan is kept unless its integer is 0, each time and strength is full unless its integer is small;
since hypothesis makes integers smaller, it leaves out what the failure does not need and shortens the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, find, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, NoSuchExample

from tests.sim.cluster import Shape
from tests.sim.failure import Failure, SimulationFailed
from tests.sim.plan import SUBJECTS, Fault, Plan
from tests.sim.rare import POINTS
from tests.sim.scenario import run_seed

T = TypeVar("T")

RUNS_MAX = 400
_KEEP = st.integers(0, 15)
"""0 leaves something out. Large, so that the first attempts leave out little."""
_PARTS = 4
"""A time can be cut to this many fractions."""


@st.composite
def shorter(draw: Callable[[st.SearchStrategy[int]], int], plan: Plan) -> Plan:
    """The plan, or a shorter one."""

    def share() -> float:
        return min(1.0, (1 + draw(_KEEP)) / _PARTS)

    def some(what: tuple[T, ...]) -> tuple[T, ...]:
        return tuple([each for each in what if draw(_KEEP)])

    faults = some(plan.faults)
    rare = some(plan.rare)
    kv_faults = plan.kv_faults if plan.kv_faults and draw(_KEEP) else 0.0
    clients = min(plan.clients, 1 + draw(_KEEP))
    sooner = share()  # all of it
    load_s = round(plan.load_s * sooner * share(), 3)
    # Few operations are the shortest of all, but hardly any failure needs so few: begin with no limit.
    operations = plan.operations or (0, 200, 100, 50, 20, 10)[draw(st.integers(0, 5))]
    shortened = [
        replace(
            fault,
            at_s=round(fault.at_s * sooner, 3),
            duration_s=round(fault.duration_s * share(), 3),
            strength=round(fault.strength * share(), 2),
        )
        for fault in faults
    ]
    return Plan(load_s, clients, operations, kv_faults, rare, tuple([each for each in shortened if each.at_s < load_s]))


def plans(shape: Shape) -> st.SearchStrategy[Plan]:
    """Any plan for a shape."""
    kinds = st.sampled_from(sorted(set(shape.faults)) or ["cut"])
    times = st.integers(1, 4000)  # of the load a 4,000th each, and before its end: a fault at the very end would not happen
    fault = st.builds(
        lambda at, kind, subject, duration, strength: Fault(
            int(shape.load_s * (at - 1) / 4) / 1000, kind, subject, duration / 1000, strength / 100
        ),
        times,
        kinds,
        st.integers(0, SUBJECTS - 1),
        times,
        st.integers(0, 100),
    )
    faults = st.lists(fault, max_size=12 if shape.faults else 0).map(
        lambda found: tuple(sorted(found, key=lambda each: each.at_s))
    )
    rare = st.lists(st.sampled_from(sorted(POINTS)), unique=True).map(tuple) if POINTS else st.just(())
    return st.builds(
        Plan,
        st.just(shape.load_s),
        st.integers(1, shape.clients),
        st.just(0),
        st.just(shape.kv_faults),
        rare,
        faults,
    )


def shrink(failure: Failure, shape: Shape, over: Callable[[], bool], runs_max: int = RUNS_MAX) -> tuple[Failure, int]:
    """The failure of the shortest plan found that fails in the same way, and how many runs that took.

    over: asked before each run whether to stop.
    """
    best = failure
    runs = 0
    known: dict[Plan, bool] = {failure.plan: True}

    def fails(plan: Plan) -> bool:
        nonlocal best, runs
        if plan not in known:
            if runs >= runs_max or over():
                return False
            runs += 1
            found = failing(failure.seed, replace(shape, plan=plan))
            known[plan] = found is not None and found.kind == failure.kind
            if known[plan] and found is not None and plan.size() < best.plan.size():
                best = found
        return known[plan]

    quiet: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "verbosity": Verbosity.quiet}
    rules = settings(
        max_examples=runs_max,
        database=None,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        **quiet,
    )
    try:
        find(shorter(failure.plan), fails, settings=rules, random=random.Random(failure.seed))
    except (NoSuchExample, Flaky):
        return best, runs  # no time was left to repeat what it had found
    return best, runs


def failing(seed: int, shape: Shape, *, verbose: bool = False) -> Failure | None:
    """How a seed fails, if it does."""
    try:
        run_seed(seed, shape, verbose=verbose)
    except SimulationFailed as error:
        return error.failure
    return None
