"""Rare branches made common: the points in the product that ask `env.rare(name)`, and how often a simulation says yes."""

from __future__ import annotations

from collections import Counter
from random import Random

POINTS: dict[str, float] = {}
"""Name -> how often it is taken, in a run whose plan has it. What stands after the check of a point must be something that
could happen in production just so."""


class Rare:
    """Answers for one run. Each point has its own chance, so that one of them changes nothing for the others."""

    def __init__(self, seed: int, names: tuple[str, ...]) -> None:
        self._chances = {name: Random(f"{seed}/rare/{name}") for name in names}
        self.fired: Counter[str] = Counter()

    def ask(self, point: str) -> bool:
        """Whether to take it now. Raises KeyError for a point that nobody has listed."""
        often = POINTS[point]
        chance = self._chances.get(point)
        if chance is None or chance.random() >= often:
            return False
        self.fired[point] += 1
        return True
