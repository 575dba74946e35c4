"""What a process tells of itself to those who watch it: its figures, and its operations one by one.

Figures are one JSON object: at_s (on the process's own clock), uptime_s, cpu_s, memory_bytes, values (counters and
gauges by name) and timings (by name what they took together in ns, and the buckets of fs3.metrics with their counts).
An operation is a row: when it ended (ns since 1970), and the fields of fs3.metrics.Operation in order.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

from .env import Env
from .metrics import Operation

KEPT_MAX = 20_000
"""Operations that wait for one listener."""
TOLD_MAX = 5_000
"""Operations told at once."""
AWAY_S = 5.0
"""A listener that has not asked for so long is gone."""
LISTENERS_MAX = 16

Row = tuple[int, str, int, str, str, int, str, str]


def figures(env: Env) -> dict[str, Any]:
    """The state of a process's metrics now."""
    cpu_s, memory_bytes = env.usage()
    timings = {name: [total, buckets] for name, (total, buckets) in env.metrics.timed().items() if buckets}
    return {
        "at_s": env.monotonic(),
        "uptime_s": env.uptime_s(),
        "cpu_s": cpu_s,
        "memory_bytes": memory_bytes,
        "values": env.metrics.snapshot(),
        "timings": timings,
    }


class Listener:
    """Gathers operations for one who asks for them now and then. Metrics tell it until close(), or until it is not asked any
    more; it costs nothing where nothing happens."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._kept: deque[tuple[int, Operation]] = deque()
        self._dropped = 0
        self._asked_at = env.monotonic()
        env.metrics.listeners.append(self._hear)

    def _hear(self, operation: Operation) -> None:
        if self.away:
            self.close()
        elif len(self._kept) < KEPT_MAX:
            self._kept.append((self._env.wall_ns(), operation))
        else:
            self._dropped += 1

    @property
    def away(self) -> bool:
        return self._env.monotonic() - self._asked_at > AWAY_S

    def take(self) -> tuple[list[Row], int]:
        """Rows of what has ended since the last time, the oldest first, and how many operations found no room."""
        self._asked_at = self._env.monotonic()
        count = min(TOLD_MAX, len(self._kept))
        rows: list[Row] = []
        for _ in range(count):
            at_ns, operation = self._kept.popleft()
            rows.append((at_ns, *dataclasses.astuple(operation)))
        dropped, self._dropped = self._dropped, 0
        return rows, dropped

    def close(self) -> None:
        """Hear no more."""
        metrics = self._env.metrics
        metrics.listeners = [each for each in metrics.listeners if each != self._hear]
        self._kept.clear()
