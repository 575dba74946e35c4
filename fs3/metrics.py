"""Counters, gauges and timings of one process, cheap enough for hot paths; and who is told of each operation. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

STEPS = 8
"""Buckets in which a histogram cuts the times from one power of two to the next: a bucket is 6 to 12 % wide."""
_BITS = STEPS.bit_length() - 1
_SIZE = 64 * STEPS

Buckets = Mapping[int, int]
"""How many times lie in each bucket; those that are not named are empty."""


class Histogram:
    """How long operations of one kind took, in buckets of logarithmic width."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * _SIZE
        self.total_ns = 0

    def observe(self, took_ns: int) -> None:
        """Take in one operation; took_ns is 0 or more. Costs some 200 ns."""
        self.total_ns += took_ns
        took_ns |= STEPS  # so that there are enough bits below the highest; changes nothing that counts
        bits = took_ns.bit_length()
        # The highest bit gives the power of two, the next ones the step.
        self.counts[(bits << _BITS) + (took_ns >> (bits - 1 - _BITS) & (STEPS - 1))] += 1

    def buckets(self) -> dict[int, int]:
        return {index: count for index, count in enumerate(self.counts) if count}


def bounds_ns(bucket: int) -> tuple[int, int]:
    """From, and up to, which times lie in a bucket."""
    bits, step = divmod(bucket, STEPS)
    shift = bits - 1 - _BITS
    return (STEPS + step) << shift, (STEPS + step + 1) << shift


def quantile_ns(buckets: Buckets, part: float) -> float:
    """The time within which a part (0 to 1) of the operations was done, as exactly as buckets tell; 0 for none."""
    total = sum(buckets.values())
    wanted = part * total
    seen = 0
    for bucket in sorted(buckets):
        count = buckets[bucket]
        if count and seen + count >= wanted:
            low, high = bounds_ns(bucket)
            return low + (high - low) * max(0.0, wanted - seen) / count
        seen += count
    return 0.0


def difference(new: Buckets, old: Buckets) -> dict[int, int]:
    """What came in between two looks at one histogram."""
    return {bucket: more for bucket, count in new.items() if (more := count - old.get(bucket, 0)) > 0}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that has ended, as listeners are told of it.

    name: such as `fuse.read`. caller: who asked; a peer's address, or `pid:uid` of a program. error: empty where it went
    well. inode: 0 where none is known. path: of it, as far as it is known. detail: arguments, in words.
    """

    name: str
    took_ns: int
    caller: str
    error: str = ""
    inode: int = 0
    path: str = ""
    detail: str = ""


@dataclass(slots=True, eq=False)
class Metrics:
    """Named counters (only grow), gauges (set) and timings. Names are dotted, units last: `storage.read_bytes`.

    Timings are named `part.operation`. listeners: called with each Operation that ends, while there are any; making one up
    costs more than counting. sources: asked for more values when somebody looks.
    """

    counters: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    gauges: dict[str, float] = field(default_factory=dict)
    timings: dict[str, Histogram] = field(default_factory=dict)
    listeners: list[Callable[[Operation], None]] = field(default_factory=list)
    sources: list[Callable[[], Mapping[str, float]]] = field(default_factory=list)

    def count(self, name: str, amount: int = 1) -> None:
        self.counters[name] += amount

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def timing(self, name: str) -> Histogram:
        """The histogram of this name, to be kept by who fills it."""
        found = self.timings.get(name)
        if found is None:
            found = self.timings[name] = Histogram()
        return found

    def tell(self, operation: Operation) -> None:
        """Tell all listeners."""
        for listener in list(self.listeners):
            listener(operation)

    def snapshot(self) -> dict[str, float]:
        """Counters and gauges by name."""
        more = [source() for source in self.sources]
        found = {**self.counters, **self.gauges}
        for values in more:
            found.update(values)
        return found

    def timed(self) -> dict[str, tuple[int, dict[int, int]]]:
        """By name of a timing what all its operations took together, in ns, and its buckets."""
        return {name: (timing.total_ns, timing.buckets()) for name, timing in self.timings.items()}
