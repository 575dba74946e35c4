"""Everything that is not pure, in one argument: clocks, chance, transport, metrics. A simulator passes another."""

from __future__ import annotations

import os
import random
import resource
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from . import log
from .direct import DirectWaits
from .metrics import Metrics
from .transport.base import Transport


def never(point: str) -> bool:
    """Nothing rare is made to happen."""
    return False


@dataclass(slots=True)
class Env:
    """The world of one daemon or client. Subclasses override the clocks."""

    transport: Transport
    random: random.Random = field(default_factory=lambda: random.Random(secrets.randbits(128)))
    metrics: Metrics = field(default_factory=Metrics)
    born: float = field(default_factory=time.monotonic)
    """When the process began, on a clock that only uptime_s() knows."""
    rare: Callable[[str], bool] = never
    """Asked, by its name, at a place where something rare but allowed may be done, or may have happened. A simulator says
    yes often enough to see what comes of it; in production the answer is always no."""
    direct: DirectWaits | None = None
    """Where it pays to wait for a reply on the spot: in a mount. None: by the event loop."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, for time stamps that people see; never for order or leases."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return trio.current_time()

    def uptime_s(self) -> float:
        """How long this process runs, for people."""
        return time.monotonic() - self.born

    def usage(self) -> tuple[float, int]:
        """CPU seconds that this process has used, and the bytes of memory that it occupies now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        try:
            with open("/proc/self/statm", encoding="ascii") as file:
                memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            memory = used.ru_maxrss * 1024  # its most
        return used.ru_utime + used.ru_stime, memory

    def client_id(self) -> int:
        """A fresh random id of a client incarnation, 63 bits, never 0."""
        return self.random.getrandbits(63) | 1

    def set_log_level(self, level: str) -> None:
        """What this process logs from now on: one of log.LEVELS."""
        log.set_level(level)


class SystemEnv(Env):
    """The real world. Its clocks are those of the system, without a step between: a request looks at them several times,
    and asking trio costs ten times as much. The clock of trio's deadlines runs alike, with another zero."""

    __slots__ = ()
    wall_ns = staticmethod(time.time_ns)
    monotonic = staticmethod(time.monotonic)
