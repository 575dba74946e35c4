"""Counters and gauges of one process, cheap enough for hot paths."""

from __future__ import annotations

from collections import defaultdict


class Metrics:
    """Named counters (only grow) and gauges (set). Names are dotted, units last: `storage.read_bytes`."""

    __slots__ = ("counters", "gauges")

    def __init__(self) -> None:
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.gauges: dict[str, float] = {}

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] += amount

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def snapshot(self) -> dict[str, float]:
        """All values by name."""
        return {**self.counters, **self.gauges}
