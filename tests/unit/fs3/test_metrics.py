from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.metrics import STEPS, Histogram, Metrics, Operation, bounds_ns, difference, quantile_ns


@given(st.integers(min_value=STEPS, max_value=1 << 50))
def test_a_time_lies_within_the_bounds_of_its_bucket(took_ns: int) -> None:
    histogram = Histogram()
    histogram.observe(took_ns)
    (bucket,) = histogram.buckets()
    low, high = bounds_ns(bucket)
    # Below some 100 ns the bucket is one too high at times, which nobody minds.
    assert low <= took_ns | STEPS < high
    assert high - low <= low / STEPS


@given(
    st.lists(st.integers(min_value=1000, max_value=10**9), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0])
)
def test_quantiles_are_as_exact_as_buckets(times: list[int], part: float) -> None:
    histogram = Histogram()
    for took in times:
        histogram.observe(took)
    wanted = sorted(times)[max(0, -int(-part * len(times) // 1) - 1)]
    assert wanted * (1 - 1.2 / STEPS) <= quantile_ns(histogram.buckets(), part) <= wanted * (1 + 1.2 / STEPS)


def test_quantiles_of_a_smooth_distribution_are_interpolated() -> None:
    chance = random.Random(1)
    histogram = Histogram()
    for _ in range(20_000):
        histogram.observe(int(chance.uniform(0, 1e6)))
    assert quantile_ns(histogram.buckets(), 0.5) == pytest.approx(5e5, rel=0.03)
    assert quantile_ns(histogram.buckets(), 0.99) == pytest.approx(9.9e5, rel=0.03)
    assert quantile_ns({}, 0.5) == 0


def test_the_difference_of_two_looks_is_what_came_between() -> None:
    assert difference({10: 5, 11: 2, 12: 1}, {10: 5, 11: 1}) == {11: 1, 12: 1}


def test_listeners_may_leave_while_they_are_told() -> None:
    metrics = Metrics()
    heard: list[str] = []

    def once(operation: Operation) -> None:
        heard.append(operation.name)
        metrics.listeners.remove(once)

    metrics.listeners += [once, lambda operation: heard.append("other")]
    metrics.tell(Operation("fuse.read", 1, ""))
    metrics.tell(Operation("fuse.read", 1, ""))
    assert heard == ["fuse.read", "other", "other"]


def test_snapshots_hold_counters_and_gauges_and_timings_are_apart() -> None:
    metrics = Metrics()
    metrics.count("a.b", 2)
    metrics.gauge("a.c", 0.5)
    metrics.timing("fuse.read").observe(1000)
    metrics.timing("fuse.read").observe(1000)
    assert metrics.snapshot() == {"a.b": 2, "a.c": 0.5}
    assert metrics.timed() == {"fuse.read": (2000, {bucket_of(1000): 2})}


def bucket_of(took_ns: int) -> int:
    histogram = Histogram()
    histogram.observe(took_ns)
    return next(iter(histogram.buckets()))
