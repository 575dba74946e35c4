from __future__ import annotations

import json
from typing import Any

import pytest

from fs3.cli.rates import NOTHING, report
from fs3.cli.stats import summary, view
from fs3.metrics import Metrics


def figures(metrics: Metrics, at_s: float, cpu_s: float = 0.0) -> dict[str, Any]:
    """As they come over the wire."""
    timings = {name: [total, buckets] for name, (total, buckets) in metrics.timed().items()}
    found = {"at_s": at_s, "uptime_s": at_s, "cpu_s": cpu_s, "memory_bytes": 1 << 20, "values": metrics.snapshot()}
    return json.loads(json.dumps(found | {"timings": timings}))


def test_a_report_is_of_what_came_between_two_looks() -> None:
    metrics = Metrics()
    metrics.count("fuse.read_bytes", 1000)
    for _ in range(5):
        metrics.timing("fuse.read").observe(10_000_000_000)
    before = figures(metrics, 10.0, 1.0)
    for _ in range(98):
        metrics.timing("fuse.read").observe(1_000_000)
    for _ in range(2):
        metrics.timing("fuse.read").observe(50_000_000)
    metrics.timing("call.meta.lookup").observe(2_000_000)
    metrics.count("fuse.read_bytes", 4000)
    found = report(before, figures(metrics, 12.0, 1.5))
    (read,) = found.rates["fuse"]
    assert (read.name, read.per_s, found.seconds, found.cpu) == ("read", 50.0, 2.0, 0.25)
    assert read.p50_ms == pytest.approx(1.0, rel=0.1) and read.p99_ms == pytest.approx(50, rel=0.1)
    assert 50 <= read.max_ms <= 56, "the slow ones before do not count any more"
    assert read.mean_ms == pytest.approx(1.98) and read.busy == pytest.approx(0.099)
    assert found.per_s["fuse.read_bytes"] == 2000
    assert [rate.name for rate in found.rates["call"]] == ["meta.lookup"]
    assert found.as_json()["operations"]["fuse"]["read"]["per_s"] == 50


def test_since_the_start_and_nothing_at_all() -> None:
    metrics = Metrics()
    empty = report(figures(metrics, 1.0), figures(metrics, 2.0))
    assert not empty.rates and "CPU 0 %" in summary(empty)
    metrics.timing("rpc.meta.lookup").observe(1000)
    assert report(NOTHING, figures(metrics, 100.0), 10.0).rates["rpc"][0].per_s == 0.1


def test_a_daemon_that_has_started_again_counts_from_there() -> None:
    old, new = Metrics(), Metrics()
    for _ in range(100):
        old.timing("rpc.meta.lookup").observe(1000)
    old.count("storage.reads", 1000)
    new.timing("rpc.meta.lookup").observe(1000)
    new.count("storage.reads", 10)
    found = report(figures(old, 500.0, 99.0), figures(new, 0.5, 0.1))
    assert found.rates["rpc"][0].per_s == 2 and found.per_s["storage.reads"] == 20 and found.cpu == 0.2


def test_operations_that_took_most_time_come_first() -> None:
    metrics = Metrics()
    metrics.timing("fuse.getattr").observe(1000)
    metrics.timing("fuse.fsync").observe(1_000_000)
    metrics.gauge("fuse.in_flight", 2)
    found = report(figures(Metrics(), 0.0), figures(metrics, 1.0))
    assert [rate.name for rate in found.rates["fuse"]] == ["fsync", "getattr"]
    assert "2 operations/s" in summary(found) and "2 in flight" in summary(found)
    assert view("mnt", found) is not None


def test_rings_are_shown_where_programs_have_some() -> None:
    metrics = Metrics()
    metrics.timing("rings.read").observe(1000)
    for name, value in (("programs", 2), ("open", 3)):
        metrics.gauge(f"rings.{name}", value)
    metrics.count("rings.read_operations", 64)
    metrics.count("rings.read_bytes", 64 << 20)
    found = report(figures(Metrics(), 0.0), figures(metrics, 1.0))
    assert "3 rings of 2 programs: 64 operations/s, 64.0 MiB/s" in summary(found)
    assert [rate.name for rate in found.rates["rings"]] == ["read"] and view("mnt", found) is not None
