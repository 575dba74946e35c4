"""What goes wrong at a successor must stay there."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from fs3.api.storage import SYNC, SyncRequest, UpdateKind
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.routing import LocalState
from tests.unit.storage.support import CHAIN, OFFLINE, SERVING, SYNCING, cluster, other_update, tune, until, write_update

pytestmark = pytest.mark.expects_error_log

C1 = ChunkId(5, 0)


async def _broken(*arguments: object, **more: object) -> None:
    raise FS3Error(Code.DISK_FAILED, "the disk makes a noise")


async def test_a_disk_that_fails_while_it_is_filled_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, OFFLINE))
        await c.write(C1, 0, b"a" * 1000)
        good, bad = c.replicas[0].target, c.replicas[1].target
        assert good is not None and bad is not None
        monkeypatch.setattr(bad.engine, "put", _broken)
        c.chain((1, SERVING), (2, SYNCING))
        await until(lambda: bool(bad.failed))
        await trio.sleep(0.05)
        assert not good.failed


async def test_a_disk_that_fails_at_a_sync_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"a" * 1000)
        good, bad = c.replicas[0].target, c.replicas[1].target
        assert good is not None and bad is not None
        monkeypatch.setattr(bad.engine, "sync", _broken)
        with pytest.raises(FS3Error) as caught:
            await c.rpc.call(c.replicas[0].address, SYNC, SyncRequest(CHAIN, c.version, 1, (C1,)), deadline=c.deadline())
        assert caught.value.retryable
        assert bad.failed and not good.failed


async def test_a_retry_is_done_once_at_a_head_that_was_away(tmp_path: Path) -> None:
    """What was done while a target was away must be known to it when it leads."""
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, OFFLINE))
        tag = c.tag()
        first = write_update(C1, 0, b"a" * 1000, tag=tag, chain_version=c.version)
        done = (await c.send([first], b"a" * 1000))[0]
        assert done.code == 0
        await c.write(C1, 0, b"b" * 1000, channel=1)
        c.chain((1, SERVING), (2, SYNCING))
        filled = c.replicas[1].target
        assert filled is not None
        await until(lambda: filled.synced_version == c.version)
        c.chain((2, SERVING), (1, OFFLINE))
        again = write_update(C1, 0, b"a" * 1000, tag=tag, chain_version=c.version, target=2)
        assert (await c.send([again], b"a" * 1000, to=2))[0] == done
        assert await c.read(C1, 0, 1000, target=2) == b"b" * 1000
        await c.replicas[1].stop()
        await c.replicas[1].start()
        assert (await c.send([again], b"a" * 1000, to=2))[0] == done


async def test_a_pending_update_gets_to_a_target_that_knew_later_ones(tmp_path: Path) -> None:
    """After a loss of power everywhere the one that serves may have less than the one that it fills."""
    async with cluster(tmp_path, 2) as c:
        c.chain((2, SERVING), (1, OFFLINE))
        tag = c.tag()
        first = write_update(C1, 0, b"first", tag=tag, chain_version=c.version, target=2)
        assert (await c.send([first], b"first", to=2))[0].code == 0
        await c.write(C1, 0, b"second")
        source, filled = c.replicas[0].target, c.replicas[1].target
        assert source is not None and filled is not None
        await source.engine.put(first, 1, 1, memoryview(b"first"), commit=False, remember=False)
        c.chain((1, SERVING), (2, SYNCING))
        await until(lambda: filled.synced_version == c.version)
        assert c.contents(C1)[0] == c.contents(C1)[1] and not source.engine.pending()
        assert await c.read(C1, 0, 10) == b"first"


async def test_a_target_too_full_to_be_filled_leaves_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, OFFLINE))
        await c.write(C1, 0, b"a" * 1000)
        full, service = c.replicas[1].target, c.replicas[1].service
        assert full is not None and service is not None
        tune(service, full_retry_ms=50)

        async def no_room(*arguments: object, **more: object) -> None:
            raise FS3Error(Code.NO_SPACE, "full")

        with monkeypatch.context() as patch:
            patch.setattr(full.engine, "put", no_room)
            c.chain((1, SERVING), (2, SYNCING))
            await until(lambda: full.local_state() is LocalState.OFFLINE)
            update = write_update(C1, 0, b"b" * 1000, tag=c.tag(), chain_version=c.version)
            with pytest.raises(FS3Error, match="DEADLINE_EXCEEDED"):  # it waits for the chain to go on without the full one
                await c.send([update], b"b" * 1000, seconds=0.3)
            c.chain((1, SERVING), (2, OFFLINE))
            assert (await c.write(C1, 0, b"c" * 1000)).code == 0
        service._retry_full(full)
        await trio.sleep(0.05)
        service._retry_full(full)
        assert full.local_state() is LocalState.ONLINE
        c.chain((1, SERVING), (2, SYNCING))
        await until(lambda: full.synced_version == c.version)
        assert c.contents(C1)[0] == c.contents(C1)[1]


async def test_an_update_under_way_ends_with_the_lease(tmp_path: Path) -> None:
    """It was not acknowledged, and stays pending for whoever leads the chain then."""
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"old")
        await c.replicas[1].stop()
        head, service = c.replicas[0].target, c.replicas[0].service
        assert head is not None and service is not None
        results = []

        async def send() -> None:
            update = write_update(C1, 0, b"new", tag=c.tag())
            results.append((await c.send([update], b"new", seconds=30.0))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await until(lambda: bool(head.engine.pending()))
            service.node.may_serve = lambda: False
            await until(lambda: bool(results))
        assert results[0].code == Code.NOT_SERVING and head.engine.pending() == [C1]


async def test_a_replica_without_a_lease_takes_no_forwarded_update(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        service = c.replicas[1].service
        assert service is not None
        service.node.may_serve = lambda: False
        update = write_update(C1, 0, b"new", tag=c.tag(), version=1, target=2)
        assert (await c.send([update], b"new", to=2, from_client=False))[0].code == Code.NOT_SERVING
        assert c.contents(C1) == [None, None]


async def test_the_lease_is_asked_again_after_waiting_for_a_chunk(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        target, service = c.replicas[0].target, c.replicas[0].service
        assert target is not None and service is not None
        await target.locks.acquire(C1)
        results = []

        async def send() -> None:
            results.append((await c.send([other_update(C1, UpdateKind.TRUNCATE, 5, tag=c.tag())]))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await until(lambda: len(target.channels) > 0)
            service.node.may_serve = lambda: False
            target.locks.release(C1)
        assert results[0].code == Code.NOT_SERVING and c.contents(C1) == [None]


async def test_a_resync_shows_its_progress_and_its_rate_can_be_changed(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, OFFLINE))
        for index in range(20):
            await c.write(ChunkId(5, index), 0, bytes(10_000))
        service, filled = c.replicas[0].service, c.replicas[1].target
        assert service is not None and filled is not None
        tune(service, resync_rate_bytes=100_000)
        gauges = service.node.env.metrics.gauges
        c.chain((1, SERVING), (2, SYNCING))
        await until(lambda: 0 < gauges.get(f"storage.resync.{CHAIN}.bytes_sent", 0) < 150_000)
        assert gauges[f"storage.resync.{CHAIN}.bytes_total"] == 20 * 65536
        tune(service, resync_rate_bytes=0)
        await until(lambda: filled.synced_version == c.version, 1.0)
        await until(lambda: not [name for name in gauges if name.startswith("storage.resync.")])
        assert service.node.env.metrics.counters["storage.resynced_bytes"] == 200_000


@pytest.mark.expects_error_log
async def test_a_disk_too_full_to_forget_requests_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, OFFLINE))
        await c.write(C1, 0, b"a")
        full, service = c.replicas[1].target, c.replicas[1].service
        assert full is not None and service is not None
        tune(service, full_retry_ms=50)

        def no_room(channels: object) -> None:
            raise FS3Error(Code.NO_SPACE, "full")

        with monkeypatch.context() as patch:
            patch.setattr(full.engine, "forget", no_room)
            c.chain((1, SERVING), (2, SYNCING))
            await until(lambda: full.local_state() is LocalState.OFFLINE)
            assert not full.failed
            c.chain((1, SERVING), (2, OFFLINE))
        full.full_until = 0.0
        c.chain((1, SERVING), (2, SYNCING))
        await until(lambda: full.synced_version == c.version)
