"""The scrubber finds what nobody reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fs3.ids import U64_MAX, ChunkId
from storage import scrub
from storage.disk_linux import LinuxDisk
from storage.disks import Home
from tests.unit.storage.support import MIB, Cluster, cluster, tune, until, write_update
from tests.unit.storage.test_repair import count, damage

CHUNKS = [ChunkId(5, 0), ChunkId(5, U64_MAX), ChunkId(6, 0), ChunkId(7, 3)]


def begin(c: Cluster, number: int, period_s: float = 0.2) -> None:
    """Scrub one replica from now on."""
    service = c.replicas[number - 1].service
    assert service is not None
    tune(service, scrub_period_ms=int(period_s * 1000))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "SETTLE_S", 0.0)


@pytest.mark.parametrize("victim", [1, 2])
async def test_damage_is_found_and_repaired(tmp_path: Path, victim: int) -> None:
    async with cluster(tmp_path, 2) as c:
        for chunk in CHUNKS:
            await c.write(chunk, 0, bytes([chunk.inode]) * 100_000)
        damage(c, victim)
        begin(c, victim)
        await until(lambda: count(c, victim, "repaired_chunks") == len(CHUNKS))
        for chunk in CHUNKS:
            assert await c.read(chunk, 0, MIB, target=victim) == bytes([chunk.inode]) * 100_000
        await until(lambda: count(c, victim, "scrub_passes") > 1)
        assert count(c, victim, "scrubbed_bytes") >= 400_000 and count(c, victim, "replicas_differ") == 0


@pytest.mark.expects_error_log
async def test_replicas_that_differ_are_reported_and_left_alone(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        for chunk in CHUNKS:
            await c.write(chunk, 0, b"equal")
        tail = c.replicas[1].target
        assert tail is not None
        for chunk in CHUNKS[1:3]:
            await tail.engine.put(write_update(chunk, 0, b"other"), 1, 1, memoryview(b"other"), commit=True, remember=False)
        begin(c, 1)
        await until(lambda: count(c, 1, "replicas_differ") >= 2)
        service = c.replicas[0].service
        assert service is not None
        tune(service, scrub_period_ms=0)
        assert await c.read(CHUNKS[1], 0, 10, target=2) == b"other"
        assert await c.read(CHUNKS[1], 0, 10, target=1) == b"equal"


async def test_the_walk_is_spread_over_the_period_and_keeps_to_its_rate(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, 1) as c:
        for index in range(10):
            await c.write(ChunkId(5, index), 0, bytes(65536))
        target = c.replicas[0].target
        assert target is not None

        async def verify(chunk: ChunkId) -> bool:
            """Without a thread, of whose time the clock does not know."""
            await trio.lowlevel.checkpoint()
            return True

        monkeypatch.setattr(target.engine, "verify", verify)
        began = trio.current_time()
        begin(c, 1, period_s=10.0)
        await until(lambda: count(c, 1, "scrub_passes") > 0, 20)
        assert 9.9 <= trio.current_time() - began <= 11
        service = c.replicas[0].service
        assert service is not None
        tune(service, scrub_rate_bytes=65536 // 100)
        await trio.sleep(500)
        assert count(c, 1, "scrubbed_chunks") <= 10 + 6


async def test_it_stands_still_while_the_target_does_not_serve(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        await c.write(CHUNKS[0], 0, b"x")
        target = c.replicas[0].target
        assert target is not None
        c.chain()
        await until(lambda: target.role is None)
        begin(c, 1)
        await wait_all_tasks_blocked(0.01)
        assert count(c, 1, "scrubbed_chunks") == 0


def test_where_the_walk_stands_is_kept(tmp_path: Path) -> None:
    for expected, then in ((None, CHUNKS[3]), (CHUNKS[3], None), (None, None)):
        disk = LinuxDisk(str(tmp_path))
        home = Home(disk, 0, 1, 1, 0)
        target = home.open(10001, 0.0)
        home.settle(10001)
        assert target.scrubbed_to == expected
        target.save_scrubbed(then)
        target.engine.close()
        disk.close()
