"""Claims on work that is noted in the store: who is at it, and when others may take it over.

A claim is a pair (owner, beat) in the record of the work. Clocks of daemons are not compared: a claim counts as abandoned
once this daemon has seen it unchanged for longer than its owner may work without renewing it.
"""

from __future__ import annotations

from fs3.env import Env

_SEEN_MAX = 100_000


class Claims:
    """What this daemon has seen of others' claims on one kind of work."""

    def __init__(self, env: Env, owner: int, abandoned_ms: int) -> None:
        self._env = env
        self._owner = owner
        self._abandoned_s = abandoned_ms / 1000
        self._seen: dict[int, tuple[int, int, float]] = {}

    def free(self, work: int, owner: int, beat: int) -> bool:
        """Whether this daemon may go at a piece of work that has this claim on it."""
        if owner == self._owner:
            return True
        now = self._env.monotonic()
        seen = self._seen.get(work)
        if seen is None or seen[:2] != (owner, beat):
            if len(self._seen) >= _SEEN_MAX:
                self._seen.clear()
            self._seen[work] = (owner, beat, now)
            return False
        return now - seen[2] >= self._abandoned_s

    def forget(self, work: int) -> None:
        """The work is done."""
        self._seen.pop(work, None)
