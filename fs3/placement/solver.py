"""Designs by HiGHS, a solver of integer programs. The only module here that imports packages, and only when it is used.

One whole number for each set of nodes that can make up a chain says how many chains have just these; so chains that have
the same nodes are not told apart, and models stay small. Wanted: the least maximum, then the largest minimum.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

from .design import Bound, Design, Problem

if TYPE_CHECKING:
    from .design import Solver

SETS_MAX = 20_000
"""With more sets of nodes than these, the solver is not asked."""
_MOST_WEIGHT = 1000.0
# One thread and one seed, so that it does the same each time. The objective is a whole number: what it calls optimal must be
# the best, not merely near.
_OPTIONS = {"output_flag": False, "threads": 1, "random_seed": 1, "mip_rel_gap": 0.0, "mip_abs_gap": 0.5}


def solver(time_limit_s: float) -> Solver:
    """A solver for `design`, which stops after a time; what it found until then is used if it is better."""

    def solve(problem: Problem, chains: int, bound: Bound, found: Design) -> tuple[list[list[int]] | None, str]:
        sets = comb(len(problem.counts), problem.replicas)
        if sets > SETS_MAX:
            return None, ""
        return _Model(problem, chains, bound, found).solve(time_limit_s)

    return solve


class _Model:
    """Columns: the sets, then the maximum, then the minimum. Rows: as they are made in __init__."""

    def __init__(self, problem: Problem, chains: int, bound: Bound, found: Design) -> None:
        self._problem = problem
        self._chains = chains
        self._bound = bound
        self._found = found
        nodes = [node for node, count in enumerate(problem.counts) if count]
        self._sets = [nodes_of for nodes_of in combinations(nodes, problem.replicas) if self._apart(nodes_of)]
        self._pairs = [
            (a, b) for a, b in combinations(nodes, 2) if problem.limit > 1 or problem.domains[a] != problem.domains[b]
        ]
        self._nodes = nodes

    def _apart(self, nodes: tuple[int, ...]) -> bool:
        return max(Counter([self._problem.domains[node] for node in nodes]).values()) <= self._problem.limit

    def solve(self, time_limit_s: float) -> tuple[list[list[int]] | None, str]:
        import highspy

        highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in {**_OPTIONS, "time_limit": time_limit_s}.items():
            highs.setOptionValue(option, value)
        highs.passModel(self._linear_program(highspy))
        highs.run()
        status = highs.getModelStatus()
        optimal = status == highspy.HighsModelStatus.kOptimal
        proof = "the solver has shown that there is no better one" if optimal else ""
        if not optimal and highs.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return None, ""
        values = [round(value) for value in highs.getSolution().col_value]
        most, least = values[-2], values[-1]
        if (most, -least) >= (self._found.most, -self._found.least):
            return None, proof
        chains = [list(nodes) for nodes, times in zip(self._sets, values, strict=False) for _ in range(times)]
        return chains, proof

    def _linear_program(self, highspy: Any) -> Any:
        """Rows: places of each node, number of chains, then for each pair: shared - most <= 0, and shared - least >= 0."""
        problem, sets, pairs = self._problem, self._sets, self._pairs
        node_row = {node: row for row, node in enumerate(self._nodes)}
        total_row = len(node_row)
        pair_row = {pair: total_row + 1 + 2 * index for index, pair in enumerate(pairs)}
        starts, rows, values = [0], [], []
        for nodes in sets:
            column = [node_row[node] for node in nodes] + [total_row]
            for pair in combinations(nodes, 2):
                if pair in pair_row:
                    column += [pair_row[pair], pair_row[pair] + 1]
            rows += column
            values += [1.0] * len(column)
            starts.append(len(rows))
        for offset in (0, 1):  # the maximum is in the first row of each pair, the minimum in the second
            rows += [row + offset for row in pair_row.values()]
            values += [-1.0] * len(pairs)
            starts.append(len(rows))
        infinite = highspy.kHighsInf
        fixed = [float(problem.fixed[a][b]) if problem.fixed else 0.0 for a, b in pairs]
        lower = [0.0] * total_row + [float(self._chains)]
        upper = [float(problem.counts[node]) for node in self._nodes] + [float(self._chains)]
        for shared in fixed:
            lower += [-infinite, -shared]
            upper += [-shared, infinite]
        program = highspy.HighsLp()
        program.num_col_ = len(sets) + 2
        program.num_row_ = len(lower)
        program.col_cost_ = [0.0] * len(sets) + [_MOST_WEIGHT, -1.0]
        program.col_lower_ = [0.0] * len(sets) + [float(self._bound.most), 0.0]
        program.col_upper_ = [float(self._chains)] * len(sets) + [float(self._found.most), float(self._bound.least)]
        program.row_lower_, program.row_upper_ = lower, upper
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = starts, rows, values
        program.integrality_ = [highspy.HighsVarType.kInteger] * program.num_col_
        return program
