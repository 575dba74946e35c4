"""What happened between two looks at a process's figures: rates, latencies, parts of the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..metrics import Buckets, bounds_ns, difference, quantile_ns

Figures = Mapping[str, Any]
"""See fs3.watching."""

PARTS = {
    "fuse": "of programs, by the kernel",
    "rings": "of programs, by rings: batches of them",
    "rpc": "answered for others",
    "call": "asked of others",
}
"""What timings there are, by the beginning of their names."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One kind of operation. Latencies in ms; busy: how many were under way on average."""

    name: str
    per_s: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    busy: float


@dataclass(frozen=True, slots=True)
class Report:
    """One interval. rates by part, those first that took most time. values: gauges as they are now. per_s: what was added to
    each counter or gauge in a second. cpu: of one core, 0 to the number of cores."""

    seconds: float
    rates: Mapping[str, tuple[Rate, ...]]
    values: Mapping[str, float]
    per_s: Mapping[str, float]
    cpu: float
    memory_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "cpu": round(self.cpu, 4),
            "memory_bytes": self.memory_bytes,
            "operations": {
                part: {
                    rate.name: {
                        key: round(getattr(rate, key), 4)
                        for key in ("per_s", "mean_ms", "p50_ms", "p99_ms", "max_ms", "busy")
                    }
                    for rate in rates
                }
                for part, rates in self.rates.items()
            },
            "values": dict(self.values),
            "per_s": {name: round(value, 3) for name, value in self.per_s.items()},
        }


NOTHING: Figures = {"at_s": 0.0, "uptime_s": 0.0, "cpu_s": 0.0, "memory_bytes": 0, "values": {}, "timings": {}}


def report(old: Figures, new: Figures, since_s: float | None = None) -> Report:
    """Compare two looks at one process. since_s: the time between them, where it is known better than by the looks."""
    if new["uptime_s"] < old["uptime_s"]:  # it has started again
        old, since_s = NOTHING, new["uptime_s"]
    seconds = max(since_s if since_s is not None else new["at_s"] - old["at_s"], 1e-9)
    rates: dict[str, list[Rate]] = {}
    for name, (total, buckets) in new["timings"].items():
        before_total, before = old["timings"].get(name, (0, {}))
        more = difference(_numbered(buckets), _numbered(before))
        if more:
            part, _, operation = name.partition(".")
            rates.setdefault(part, []).append(rate(operation, more, total - before_total, seconds))
    values = new["values"]
    per_s = {name: (value - old["values"].get(name, 0)) / seconds for name, value in values.items()}
    return Report(
        seconds,
        {part: tuple(sorted(rates[part], key=lambda one: -one.busy)) for part in PARTS if part in rates},
        values,
        per_s,
        (new["cpu_s"] - old["cpu_s"]) / seconds,
        new["memory_bytes"],
    )


def rate(name: str, buckets: Buckets, total_ns: int, seconds: float) -> Rate:
    """Of operations that are in these buckets and took so long together, within some seconds."""
    count = sum(buckets.values())
    return Rate(
        name,
        count / seconds,
        total_ns / count / 1e6,
        quantile_ns(buckets, 0.5) / 1e6,
        quantile_ns(buckets, 0.99) / 1e6,
        bounds_ns(max(buckets))[1] / 1e6,
        total_ns / 1e9 / seconds,
    )


def _numbered(buckets: Mapping[Any, int]) -> dict[int, int]:
    """JSON has only text for keys."""
    return {int(bucket): count for bucket, count in buckets.items()}
