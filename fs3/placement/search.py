"""Local search for chains that share nodes evenly, by exchanges of members between chains. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_MASK = (1 << 64) - 1
_STALE = 200
"""After so many rounds without progress, exchanges that make it a little worse are taken for one round."""
_TRIES = 24
"""Exchanges that are tried for one pair of nodes that share too many or too few chains."""


class Dice:
    """A fixed sequence of numbers that look like chance: the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._state = (seed * 2 + 1) & _MASK

    def below(self, limit: int) -> int:
        """0 to limit - 1 (an LCG's high bits)."""
        self._state = state = (self._state * 6364136223846793005 + 1442695040888963407) & _MASK
        return ((state >> 32) * limit) >> 32


class Shares:
    """Chains as lists of node indexes, and how many chains each pair of nodes shares.

    domains: of each node; at most `limit` members of a chain are in one. fixed: what pairs share besides these chains.
    """

    def __init__(
        self,
        nodes: int,
        chains: list[list[int]],
        domains: Sequence[int],
        limit: int,
        fixed: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.chains = chains
        self.shared = [list(row) for row in fixed] if fixed is not None else [[0] * nodes for _ in range(nodes)]
        self.held: list[list[int]] = [[] for _ in range(nodes)]
        """Node -> the chains that it is in."""
        self._domains = domains
        self._limit = limit
        self._apart = limit < 1 or len(set(domains)) < len(domains)
        for number, chain in enumerate(chains):
            for node in chain:
                self.held[node].append(number)
                row = self.shared[node]
                for other in chain:
                    if other != node:
                        row[other] += 1

    def spread(self, least: int, most: int, dice: Dice, steps: int) -> int:
        """Exchange until every pair shares `least` to `most` chains, or for about `steps` tries; 0 left: reached.

        Returns the number of pairs that share too many or too few; where there are some, the best that was seen is left.
        """
        taken = stale = 0
        record = best = None
        while bad := self._bad(least, most):
            if record is None or len(bad) < record:
                record, stale = len(bad), 0
            stale += 1
            shake = stale > _STALE or taken >= steps
            if shake:
                kept = (self.most(), len(bad), [list(chain) for chain in self.chains])
                best = kept if best is None or kept[:2] < best[:2] else best
                record, stale = None, 0
            if taken >= steps:
                break
            for a, b in bad:
                taken += self._mend(a, b, least, most, dice, shake)
            taken += 1 + len(self.shared) // 8  # for looking at the pairs
        if bad and best is not None:
            self._restore(best[2])
            return best[1]
        return 0

    def most(self) -> int:
        return max([max(row) for row in self.shared], default=0)

    def _restore(self, chains: list[list[int]]) -> None:
        for number, wanted in enumerate(chains):
            leavers = [node for node in self.chains[number] if node not in wanted]
            comers = [node for node in wanted if node not in self.chains[number]]
            for x, y in zip(leavers, comers, strict=True):
                self._replace(number, x, y)

    def _bad(self, least: int, most: int) -> list[tuple[int, int]]:
        """Pairs that share too many or too few."""
        shared = self.shared
        if least <= 0:  # then only pairs that share a chain can be bad
            found = {
                (a, b) if a > b else (b, a)
                for chain in self.chains
                for a in chain
                for b in chain
                if a != b and shared[a][b] > most
            }
            return sorted(found)
        return [
            (a, b) for a, row in enumerate(shared) for b in range(a) if not least <= row[b] <= most and self._may_share(a, b)
        ]

    def _may_share(self, a: int, b: int) -> bool:
        if not (self.held[a] and self.held[b]):
            return False
        return self._limit > 1 or self._domains[a] != self._domains[b]

    def _mend(self, a: int, b: int, least: int, most: int, dice: Dice, shake: bool) -> int:
        """Try exchanges for a pair that shares too many or too few. Returns how many were tried."""
        chains = self.chains
        value = self.shared[a][b]
        if least <= value <= most or not self.held[a] or not self.held[b]:
            return 0
        if dice.below(2):
            a, b = b, a
        for tried in range(1, _TRIES + 1):
            if value > most:  # b leaves a chain of a
                both = [number for number in self.held[a] if b in chains[number]]
                if not both:
                    return tried
                one = both[dice.below(len(both))]
                other = dice.below(len(chains))
                leaver = b
                comer = chains[other][dice.below(len(chains[other]))]
            else:  # b comes into a chain of a
                one = self.held[a][dice.below(len(self.held[a]))]
                other = self.held[b][dice.below(len(self.held[b]))]
                leaver = chains[one][dice.below(len(chains[one]))]
                comer = b
                if leaver == a:
                    continue
            if self._exchange(one, leaver, other, comer, 1 if shake else 0):
                return tried
        return _TRIES

    def _exchange(self, one: int, x: int, other: int, y: int, slack: int) -> bool:
        """Put y in place of x in a chain, and x in place of y in the other, where that is allowed and no worse."""
        first, second = self.chains[one], self.chains[other]
        if x in second or y in first:
            return False
        shared_x, shared_y = self.shared[x], self.shared[y]
        gain = 0
        for node in first:
            if node != x and node not in second:
                gain += shared_x[node] - shared_y[node] - 1
        for node in second:
            if node != y and node not in first:
                gain += shared_y[node] - shared_x[node] - 1
        if gain < -slack or (self._apart and not (self._fits(first, x, y) and self._fits(second, y, x))):
            return False
        self._replace(one, x, y)
        self._replace(other, y, x)
        return True

    def _fits(self, chain: Sequence[int], leaver: int, comer: int) -> bool:
        domains = self._domains
        domain = domains[comer]
        return sum([domains[node] == domain for node in chain if node != leaver]) < self._limit

    def _replace(self, number: int, x: int, y: int) -> None:
        chain = self.chains[number]
        chain[chain.index(x)] = y
        self.held[x].remove(number)
        self.held[y].append(number)
        shared = self.shared
        for node in chain:
            if node != y:
                shared[x][node] -= 1
                shared[node][x] -= 1
                shared[y][node] += 1
                shared[node][y] += 1
