"""Which of the living meta daemons does a piece of work that any of them could do: rendezvous hashing. Pure.

Each daemon has a weight for each piece of work, and the one with the greatest does it. So all who know the same members
agree without a word, the work of one that goes is spread over all the others, and nobody else's work moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fs3.layout import splitmix64

U64_MAX = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Share:
    """One daemon's part of the work, among members (node ids; none: it is alone).

    One that is not among them has no part: the others take it for dead, and it will stop.
    """

    node: int
    members: tuple[int, ...]

    def has(self, work: int) -> bool:
        """Whether a piece of work, by its number (an inode, a client), is this daemon's."""
        return not self.members or holder(work, self.members) == self.node


def holder(work: int, members: Iterable[int]) -> int:
    """The member that does it."""
    return max(members, key=lambda member: (weight(work, member), member))


def weight(work: int, member: int) -> int:
    """64 bits, which for another member have nothing to do with these."""
    return splitmix64((splitmix64((member + 1) * _STEP & U64_MAX) + (work + 1) * _STEP) & U64_MAX)
