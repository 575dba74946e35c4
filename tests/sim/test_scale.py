"""A small cluster under tests/bench/scale.py, without its CPU time: how often and how much mgmtd tells, not how fast."""

from __future__ import annotations

from tests.bench.scale import Size, measure


def test_many_are_told_little() -> None:
    size = Size(storages=24, targets=5, clients=80, mgmtds=2, watchers=2, rack=4, steady_s=4.0, cpu=False)
    report = measure(size)
    people = size.storages + size.clients
    assert report.register_commits <= 12, "those who come together make one change"
    assert report.register_versions <= 12
    assert report.death_delta_bytes < report.full_bytes / 8
    assert report.death_sent_bytes < 2 * people * report.death_delta_bytes
    assert report.death_last_ms - report.death_notice_ms < 100
    assert report.rack_versions == 1, "a rack that dies is one change"
    assert report.rack_chains > size.rack
    assert report.failover_delta_bytes < 200, "the next primary tells of itself alone"
    assert report.failover_sent_bytes < people * 2_000
    assert report.failover_died == 0 and report.lost_heartbeats == 0
