"""The world of one incarnation of a simulated process: its host's clocks, chance, and what rare branches it takes."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from fs3.env import Env, never
from tests.sim.net import SimTransport

EPOCH_NS = 1_700_000_000_000_000_000


class HostClock:
    """A host's clocks, which run a little wrong. They outlive its processes.

    offset_s, rate: of the monotonic clock against the simulation's; skew_ns: of the wall clock.
    """

    __slots__ = ("_offset_s", "rate", "skew_ns", "usual_rate")

    def __init__(self, offset_s: float = 0.0, rate: float = 1.0, skew_ns: int = 0) -> None:
        self._offset_s = offset_s
        self.rate = self.usual_rate = rate
        self.skew_ns = skew_ns

    def monotonic(self) -> float:
        return self._offset_s + self.rate * trio.current_time()

    def run_at(self, rate: float) -> None:
        """Go on from now at another rate."""
        self._offset_s += (self.rate - rate) * trio.current_time()
        self.rate = rate


class SimEnv(Env):
    """What a simulated daemon or client gets."""

    def __init__(
        self,
        transport: SimTransport,
        chance: random.Random,
        clock: HostClock | None = None,
        rare: Callable[[str], bool] = never,
    ) -> None:
        super().__init__(transport, chance, rare=rare)
        self.clock = clock or HostClock()
        self._time = transport.network.clock

    def monotonic(self) -> float:
        clock = self.clock
        return clock._offset_s + clock.rate * self._time.now

    def wall_ns(self) -> int:
        return EPOCH_NS + self.clock.skew_ns + int(self._time.now * 1e9)

    def set_log_level(self, level: str) -> None:
        """Many daemons share this process and its log, which is the trace."""
