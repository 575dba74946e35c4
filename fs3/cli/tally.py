"""Operations one by one, summed up: which kinds, whose, and on which files took the time."""

from __future__ import annotations

import datetime
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError
from ..metrics import Histogram, quantile_ns

VIEWS = ("operation", "caller", "path")
KEYS_MAX = 50_000
"""Callers, or files, that are told apart; those that took least are then put together."""
REST = "(others)"


@dataclass(frozen=True, slots=True)
class Event:
    """One operation. at_ns: when it ended, since 1970. caller: as people know it."""

    at_ns: int
    name: str
    took_ns: int
    caller: str
    error: str
    inode: int
    path: str
    detail: str

    def as_line(self) -> str:
        """One line of JSON."""
        at = datetime.datetime.fromtimestamp(self.at_ns // 1000 / 1e6, datetime.UTC).isoformat(timespec="microseconds")
        row = {"at": at, "name": self.name, "us": self.took_ns / 1000, "caller": self.caller, "error": self.error}
        return json.dumps(row | {"inode": self.inode, "path": self.path, "detail": self.detail})

    @property
    def place(self) -> str:
        return self.path or (f"#{self.inode}" if self.inode else "-")


def read_log(path: Path) -> Iterator[Event]:
    """What `fs3 profile --log` has written. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    at = datetime.datetime.fromisoformat(row["at"])
                    yield Event(
                        round(at.timestamp() * 1e9), row["name"], round(row["us"] * 1000), row["caller"], row["error"],
                        row["inode"], row["path"], row["detail"],
                    )  # fmt: skip
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(f"{path}: line {number} is not one that `fs3 profile --log` writes") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


class Sum:
    """What operations of one key took."""

    __slots__ = ("count", "errors", "max_ns", "times")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.max_ns = 0
        self.times = Histogram()

    @property
    def total_ns(self) -> int:
        return self.times.total_ns

    @property
    def p99_ns(self) -> float:
        return min(quantile_ns(self.times.buckets(), 0.99), self.max_ns)

    def add(self, took_ns: int, failed: bool) -> None:
        self.count += 1
        self.errors += failed
        self.max_ns = max(self.max_ns, took_ns)
        self.times.observe(took_ns)

    def merge(self, other: Sum) -> None:
        self.count += other.count
        self.errors += other.errors
        self.max_ns = max(self.max_ns, other.max_ns)
        self.times.total_ns += other.total_ns
        self.times.counts = [a + b for a, b in zip(self.times.counts, other.times.counts, strict=True)]


class Tally:
    """Sums by operation, by caller, by path."""

    def __init__(self, log: IO[str] | None = None) -> None:
        """log: where each event is written to."""
        self.count = 0
        self.total_ns = 0
        self.dropped = 0
        self.first_ns = 0
        self.last_ns = 0
        self._log = log
        self._views: dict[str, OrderedDict[str, Sum]] = {view: OrderedDict() for view in VIEWS}

    def add(self, event: Event) -> None:
        if self._log is not None:
            self._log.write(event.as_line() + "\n")
        self.count += 1
        self.total_ns += event.took_ns
        self.first_ns = self.first_ns or event.at_ns - event.took_ns
        self.last_ns = max(self.last_ns, event.at_ns)
        for view, key in (("operation", event.name), ("caller", event.caller or "-"), ("path", event.place)):
            sums = self._views[view]
            found = sums.get(key)
            if found is None:
                if len(sums) >= KEYS_MAX:
                    self._make_room(sums)
                found = sums[key] = Sum()
            found.add(event.took_ns, bool(event.error))

    def _make_room(self, sums: OrderedDict[str, Sum]) -> None:
        ordered = sorted(sums, key=lambda key: sums[key].total_ns)
        rest = sums.setdefault(REST, Sum())
        for key in ordered[: len(ordered) // 2]:
            if key != REST:
                rest.merge(sums.pop(key))

    def top(self, view: str, limit: int) -> list[tuple[str, Sum]]:
        """The keys that took most time together."""
        return sorted(self._views[view].items(), key=lambda item: -item[1].total_ns)[:limit]

    def as_json(self, seconds: float, limit: int) -> dict[str, Any]:
        return {
            "seconds": round(seconds, 3),
            "operations": self.count,
            "dropped": self.dropped,
            "total_ms": self.total_ns / 1e6,
            **{f"by_{view}": [_row(view, key, found) for key, found in self.top(view, limit)] for view in VIEWS},
        }


def _row(view: str, key: str, found: Sum) -> dict[str, Any]:
    return {
        view: key,
        "count": found.count,
        "errors": found.errors,
        "total_ms": round(found.total_ns / 1e6, 3),
        "mean_ms": round(found.total_ns / found.count / 1e6, 4),
        "p99_ms": round(found.p99_ns / 1e6, 4),
        "max_ms": round(found.max_ns / 1e6, 4),
    }


def event_of(row: Sequence[Any], caller: str) -> Event:
    """From a row of fs3.watching, with its caller in words."""
    at_ns, name, took_ns, _, error, inode, path, detail = row
    return Event(at_ns, name, took_ns, caller, error, inode, path, detail)
