from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.placement.design import Bound, Design, Problem, bound_of, chains_possible, degrees, design, first_chains
from fs3.placement.search import Dice, Shares
from fs3.placement.solver import SETS_MAX, solver
from fs3.placement.topology import domain_limit

STEPS = 60_000


def uniform(nodes: int, places: int, replicas: int, rack: int = 1) -> Problem:
    domains = tuple([node // rack for node in range(nodes)])
    return Problem((places,) * nodes, replicas, domains, domain_limit([str(d) for d in domains], replicas))


def check(problem: Problem, found: Design) -> None:
    """A design keeps to its problem, and says of itself what is so."""
    shared: Counter[tuple[int, int]] = Counter()
    used: Counter[int] = Counter()
    for chain in found.chains:
        assert len(set(chain)) == problem.replicas
        assert max(Counter([problem.domains[node] for node in chain]).values()) <= problem.limit
        used.update(chain)
        shared.update(combinations(sorted(chain), 2))
    assert all(used[node] <= count for node, count in enumerate(problem.counts))
    pairs = [
        shared[pair]
        for pair in combinations(sorted(used), 2)
        if problem.limit > 1 or problem.domains[pair[0]] != problem.domains[pair[1]]
    ]
    assert (found.least, found.most) == (min(pairs, default=0), max(pairs, default=0))
    assert found.most >= found.bound.most and found.least <= found.bound.least


@pytest.mark.parametrize(
    ("nodes", "places", "replicas", "shared"),
    [(7, 3, 3, 1), (9, 4, 3, 1), (13, 4, 4, 1), (16, 5, 4, 1), (13, 6, 3, 1), (15, 7, 3, 1), (5, 6, 3, 3), (10, 9, 3, 2)],
)
def test_block_designs_that_exist_are_found(nodes: int, places: int, replicas: int, shared: int) -> None:
    problem = uniform(nodes, places, replicas)
    found = design(problem, STEPS)
    check(problem, found)
    assert (found.least, found.most, found.bound) == (shared, shared, Bound(shared, shared))
    assert found.proof == "it is at the theoretical bound"


@pytest.mark.parametrize(
    ("nodes", "places", "replicas", "rack"), [(25, 64, 3, 1), (25, 64, 3, 5), (6, 8, 3, 3), (40, 24, 2, 4)]
)
def test_what_cannot_be_equal_differs_by_one(nodes: int, places: int, replicas: int, rack: int) -> None:
    problem = uniform(nodes, places, replicas, rack)
    found = design(problem, STEPS)
    check(problem, found)
    assert (found.least, found.most) == (found.bound.least, found.bound.most)


def test_the_solver_improves_and_proves() -> None:
    """With next to no local search, the design of 8 nodes with chains of 4 is the solver's."""
    problem = uniform(8, 7, 4)
    poor, good = design(problem, 1), design(problem, 1, solver(30.0))
    assert (poor.least, poor.most) != (3, 3)
    check(problem, good)
    assert (good.least, good.most, good.method) == (3, 3, "HiGHS")


def test_the_solver_proves_that_a_bound_is_out_of_reach() -> None:
    problem = uniform(5, 4, 3)  # 6 chains: the bound is 1 to 2, and some pair shares none
    found = design(problem, STEPS, solver(30.0))
    check(problem, found)
    assert (found.least, found.most, found.bound) == (0, 2, Bound(1, 2))
    assert found.proof == "the solver has shown that there is no better one"


def test_the_solver_leaves_large_problems_alone() -> None:
    problem = uniform(60, 3, 3)
    assert comb(60, 3) > SETS_MAX
    assert solver(1.0)(problem, 60, Bound(0, 1), design(problem, 1)) == (None, "")


def test_a_table_that_grows_evens_out_what_is_shared() -> None:
    """Nodes 0 and 1 share 3 chains already: the new ones join each of them with the others."""
    fixed = ((0, 3, 0, 0), (3, 0, 0, 0), (0, 0, 0, 3), (0, 0, 3, 0))
    found = design(Problem((3,) * 4, 2, (0, 1, 2, 3), 1, fixed), STEPS)
    assert Counter(found.chains)[0, 1] == Counter(found.chains)[2, 3] == 0
    assert found.most == 3


problems = st.builds(
    lambda counts, replicas, racks: Problem(
        tuple(counts), replicas, tuple([racks[i % len(racks)] for i in range(len(counts))]), 0
    ),
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
    st.integers(1, 4),
    st.lists(st.integers(0, 8), min_size=1, max_size=9),
)


@settings(deadline=None, max_examples=60)
@given(problems, st.booleans())
def test_every_problem_gets_as_many_chains_as_there_can_be(problem: Problem, racks: bool) -> None:
    nodes = range(len(problem.counts))
    domains = problem.domains if racks else tuple(nodes)
    holders = [domains[node] for node in nodes if problem.counts[node]]
    problem = Problem(problem.counts, problem.replicas, domains, domain_limit([str(d) for d in holders], problem.replicas))
    found = design(problem, 2_000)
    check(problem, found)
    if not racks:
        # k chains need k * replicas places, of which no node gives more than k.
        most = max(
            k for k in range(sum(problem.counts) + 1) if sum(min(c, k) for c in problem.counts) >= k * problem.replicas
        )
        assert len(found.chains) == most
    assert design(problem, 2_000) == found


@settings(max_examples=50, deadline=None)
@given(problems, st.integers(1, 3))
def test_the_first_chains_keep_to_the_numbers(problem: Problem, limit: int) -> None:
    problem = Problem(problem.counts, problem.replicas, problem.domains, limit)
    chains = chains_possible(problem.counts, problem.domains, problem.replicas, limit)
    used = degrees(problem, chains)
    made = first_chains(problem, used, chains)
    got = Counter([node for chain in made for node in chain])
    assert [got[node] for node in range(len(used))] == used
    assert bound_of(problem, used, chains).most >= 0


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 40), st.integers(1, 1000))
def test_dice_stay_below(seed: int, limit: int) -> None:
    dice = Dice(seed)
    assert all(0 <= dice.below(limit) < limit for _ in range(10))


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 9), st.integers(1, 6), st.integers(1, 500))
def test_a_search_keeps_its_books(nodes: int, places: int, steps: int) -> None:
    problem = uniform(nodes, places, 3)
    chains = chains_possible(problem.counts, problem.domains, 3, 1)
    used = degrees(problem, chains)
    shares = Shares(nodes, first_chains(problem, used, chains), problem.domains, 1)
    bound = bound_of(problem, used, chains)
    bad = shares.spread(bound.least, bound.most, Dice(steps), steps)
    after = Shares(nodes, shares.chains, problem.domains, 1)
    assert after.shared == shares.shared
    assert [sorted(held) for held in after.held] == [sorted(held) for held in shares.held]
    values = [after.shared[a][b] for a, b in combinations([n for n in range(nodes) if used[n]], 2)]
    assert bad == sum(not bound.least <= value <= bound.most for value in values)
