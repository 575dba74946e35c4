"""Chains of storage services in one process: writes, reads, retries, failures, recovery."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio

from fs3.api.storage import (
    QUERY,
    REMOVE_FILE,
    SYNC,
    SYNC_DONE,
    QueryRequest,
    RemoveFileRequest,
    SyncDoneRequest,
    SyncRequest,
    UpdateKind,
)
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.routing import LocalState
from tests.unit.storage.support import (
    CHAIN,
    MIB,
    OFFLINE,
    SERVING,
    SYNCING,
    WAITING,
    Cluster,
    cluster,
    other_update,
    tune,
    until,
    write_update,
)

C1 = ChunkId(5, 0)
C2 = ChunkId(5, 1)


async def test_write_and_read_at_one_replica(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        data = Random(1).randbytes(MIB)
        result = await c.write(C1, 0, data)
        assert (result.version, result.chunk_length) == (1, MIB)
        assert await c.read(C1, 0, MIB) == data
        assert await c.read(C1, 1000, 200_000) == data[1000:201_000]
        assert await c.read(C1, MIB - 10, 100) == data[-10:]
        assert await c.read(C2, 0, 10) == b""
        await c.write(C1, 70_000, b"x" * 5000)
        assert await c.read(C1, 0, MIB) == data[:70_000] + b"x" * 5000 + data[75_000:]


@pytest.mark.parametrize("count", [2, 3])
async def test_all_replicas_get_the_same(tmp_path: Path, count: int) -> None:
    async with cluster(tmp_path, count) as c:
        await c.write(C1, 0, b"a" * 100_000)
        await c.write(C1, 50_000, b"b" * 100_000)
        contents = c.contents(C1)
        assert contents[0] is not None and contents[0][:2] == (2, 150_000)
        assert contents.count(contents[0]) == count
        for target in range(1, count + 1):
            assert await c.read(C1, 0, MIB, target=target) == b"a" * 50_000 + b"b" * 100_000


async def test_batch_of_updates(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as c:
        updates = [
            write_update(C2, 0, b"2" * 10, tag=c.tag(1)),
            write_update(C1, 0, b"1" * 20, tag=c.tag(2)),
            write_update(C1, 5, b"3" * 5, tag=c.tag(3)),
            other_update(ChunkId(9, 9), UpdateKind.REMOVE, tag=c.tag(4)),
        ]
        results = await c.send(updates, b"2" * 10 + b"1" * 20 + b"3" * 5)
        assert [(r.code, r.version) for r in results] == [(0, 1), (0, 1), (0, 2), (0, 0)]
        assert await c.read(C1, 0, 100, target=3) == b"1" * 5 + b"3" * 5 + b"1" * 10
        assert await c.read(C2, 0, 100, target=2) == b"2" * 10


async def test_wrong_chain_version_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        update = write_update(C1, 0, b"x", tag=c.tag(), chain_version=5)
        assert (await c.send([update], b"x"))[0].code == Code.CHAIN_VERSION
        update = write_update(C1, 0, b"x", tag=c.tag(), target=2)
        assert (await c.send([update], b"x", to=2))[0].code == Code.NOT_HEAD
        assert c.contents(C1) == [None, None]
        with pytest.raises(FS3Error) as caught:
            c.version += 1
            await c.read(C1, 0, 1)
        assert caught.value.code is Code.CHAIN_VERSION


async def test_damaged_payload_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        update = write_update(C1, 0, b"good", tag=c.tag())
        assert (await c.send([update], b"evil"))[0].code == Code.CHECKSUM
        assert c.contents(C1) == [None]
        with pytest.raises(FS3Error, match="payload of 5"):
            await c.send([update], b"long!")


async def test_retry_is_done_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        update = write_update(C1, 0, b"x" * 10, tag=c.tag())
        first = await c.send([update], b"x" * 10)
        assert await c.send([update], b"x" * 10) == first
        assert c.contents(C1)[0] == c.contents(C1)[1]
        assert first[0].version == 1
        later = write_update(C1, 0, b"y" * 10, tag=c.tag())
        assert (await c.send([later], b"y" * 10))[0].version == 2
        assert (await c.send([update], b"x" * 10))[0].code == Code.STALE_WRITE
        assert await c.read(C1, 0, 10) == b"y" * 10


async def test_retry_is_done_once_after_restart_and_at_a_new_head(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        tag = c.tag(1)
        first = await c.send([write_update(C1, 0, b"first", tag=tag)], b"first")
        await c.write(C1, 0, b"other", channel=2)
        await c.replicas[0].stop()
        c.chain((2, SERVING), (1, OFFLINE))
        again = write_update(C1, 0, b"first", tag=tag, chain_version=c.version, target=2)
        assert await c.send([again], b"first", to=2) == first
        assert await c.read(C1, 0, 10, target=2) == b"other"
        await c.replicas[1].stop()
        await c.replicas[1].start()
        assert await c.send([again], b"first", to=2) == first
        assert await c.read(C1, 0, 10, target=2) == b"other"


async def test_successor_dies_in_the_middle(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as c:
        await c.write(C1, 0, b"a" * 1000)
        await c.replicas[1].stop()
        done = trio.Event()

        async def writer() -> None:
            await c.write(C1, 500, b"b" * 1000)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            await trio.sleep(0.05)
            assert not done.is_set()
            with pytest.raises(FS3Error) as caught:
                await c.read(C1, 0, 10)
            assert caught.value.code is Code.CHUNK_PENDING
            c.chain((1, SERVING), (3, SERVING), (2, OFFLINE))
            with trio.fail_after(5):
                await done.wait()
        assert await c.read(C1, 0, 2000, target=3) == b"a" * 500 + b"b" * 1000
        first, _, third = c.contents(C1)
        assert first == third
        await c.replicas[2].stop()
        c.chain((1, SERVING), (2, OFFLINE), (3, OFFLINE))
        await c.write(C1, 0, b"c" * 10)
        assert (await c.read(C1, 0, 2000))[:12] == b"c" * 10 + b"aa"


async def wait_for_sync_done(c: Cluster, number: int) -> None:
    target = c.replicas[number - 1].target
    assert target is not None
    await until(lambda: target.synced_version == c.version)
    assert target.local_state() is LocalState.UPTODATE


async def test_fill_an_empty_target(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, OFFLINE))
        for index in range(30):
            await c.write(ChunkId(3, index), 0, bytes([index]) * (1000 * index + 1))
        c.chain((1, SERVING), (2, WAITING))
        c.chain((1, SERVING), (2, SYNCING))
        await wait_for_sync_done(c, 2)
        c.chain((1, SERVING), (2, SERVING))
        for index in range(30):
            first, second = c.contents(ChunkId(3, index))
            assert first == second and first is not None
        assert await c.read(ChunkId(3, 29), 0, MIB, target=2) == bytes([29]) * 29001


async def test_fill_a_stale_target(tmp_path: Path) -> None:
    """Changed, removed, recreated, unchanged and new chunks, and updates that go on meanwhile."""
    async with cluster(tmp_path, 2) as c:
        chunks = [ChunkId(inode, index) for inode in (1, 2, 3) for index in range(20)]
        for chunk in chunks:
            await c.write(chunk, 0, b"old" * 1000)
        await c.replicas[1].stop()
        c.chain((1, SERVING), (2, OFFLINE))
        for chunk in chunks[:20]:
            await c.write(chunk, 10, b"new" * 2000)
        remove = RemoveFileRequest(c.tag(7), CHAIN, c.version, 1, 2)
        reply = await c.rpc.call(c.replicas[0].address, REMOVE_FILE, remove, deadline=c.deadline())
        assert (reply.removed, reply.more) == (20, False)
        await c.write(ChunkId(2, 5), 0, b"NEW" * 1000)  # version 1 again, of the same length
        await c.write(ChunkId(4, 0), 0, b"fresh")
        await c.replicas[1].start()
        c.chain((1, SERVING), (2, SYNCING))
        await c.write(ChunkId(4, 1), 0, b"during")
        await c.write(chunks[0], 0, b"during")
        await wait_for_sync_done(c, 2)
        c.chain((1, SERVING), (2, SERVING))
        await c.write(chunks[1], 0, b"after")
        for chunk in [*chunks, ChunkId(4, 0), ChunkId(4, 1)]:
            first, second = c.contents(chunk)
            assert first == second, chunk
        assert c.contents(ChunkId(2, 6)) == [None, None]
        assert await c.read(ChunkId(2, 5), 0, MIB, target=2) == b"NEW" * 1000
        metrics = c.replicas[0].service.node.env.metrics.counters  # type: ignore[union-attr]
        assert metrics["storage.resynced_chunks"] < 50  # those that had not changed stayed


async def test_concurrent_writers_leave_equal_replicas(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as c:
        random = Random(2)
        async with trio.open_nursery() as nursery:
            for writer in range(8):

                async def run(writer: int = writer) -> None:
                    for _ in range(10):
                        data = random.randbytes(random.randrange(1, 100_000))
                        await c.write(random.choice((C1, C2)), random.randrange(200_000), data, channel=writer)

                nursery.start_soon(run)
        for chunk in (C1, C2):
            contents = c.contents(chunk)
            assert contents[0] is not None
            assert contents.count(contents[0]) == 3
            data = await c.read(chunk, 0, MIB)
            assert data == await c.read(chunk, 0, MIB, target=2) == await c.read(chunk, 0, MIB, target=3)
        assert sum(content[0] for chunk in (C1, C2) for content in c.contents(chunk)[:1] if content) == 80


async def test_head_rolls_forward_what_a_dead_caller_left(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"a" * 10)
        await c.replicas[1].stop()
        tag = c.tag(3)
        update = write_update(C1, 0, b"b" * 10, tag=tag)
        with pytest.raises(FS3Error) as caught:
            await c.send([update], b"b" * 10, seconds=0.05)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        target = c.replicas[0].target
        assert target is not None and target.engine.pending() == [C1]
        c.chain((1, SERVING), (2, OFFLINE))
        await until(lambda: not target.engine.pending())
        assert await c.read(C1, 0, 10) == b"b" * 10
        retry = write_update(C1, 0, b"b" * 10, tag=tag, chain_version=c.version)
        result = (await c.send([retry], b"b" * 10))[0]
        assert (result.code, result.version) == (0, 2)


async def test_pending_version_survives_a_restart_of_the_last_one(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"a" * 200_000)
        await c.replicas[1].stop()
        head = c.replicas[0].target
        assert head is not None
        async with trio.open_nursery() as callers:
            for number, chunk in enumerate((C1, C2), 1):
                callers.start_soon(c.send, [write_update(chunk, 5, b"b" * 10, tag=c.tag(number))], b"b" * 10)
            await until(lambda: len(head.engine.pending()) == 2)
            callers.cancel_scope.cancel()
        await c.replicas[0].stop()
        c.chain((1, SERVING), (2, OFFLINE))
        await c.replicas[0].start()
        target = c.replicas[0].target
        assert target is not None
        await until(lambda: not target.engine.pending())
        assert await c.read(C1, 0, 20) == b"a" * 5 + b"b" * 10 + b"a" * 5
        assert await c.read(C2, 0, 20) == bytes(5) + b"b" * 10


async def test_truncate_remove_query_and_sync(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        for index in range(5):
            await c.write(ChunkId(8, index), 0, b"z" * 1000)
        cut = other_update(ChunkId(8, 4), UpdateKind.TRUNCATE, 10, tag=c.tag())
        assert (await c.send([cut]))[0].chunk_length == 10
        query = QueryRequest(CHAIN, 1, 2, 8, 1)
        reply = await c.rpc.call(c.replicas[1].address, QUERY, query, deadline=c.deadline())
        assert (reply.chunks, reply.last_index, reply.last_length, reply.bytes) == (4, 4, 10, 3010)
        sync = SyncRequest(CHAIN, 1, 1, (ChunkId(8, 0),))
        await c.rpc.call(c.replicas[0].address, SYNC, sync, deadline=c.deadline())
        for replica in c.replicas:
            assert replica.service is not None and replica.service.node.env.metrics.counters["storage.syncs"] == 1
        remove = RemoveFileRequest(c.tag(), CHAIN, 1, 1, 8, 2, 2)
        removed = await c.rpc.call(c.replicas[0].address, REMOVE_FILE, remove, deadline=c.deadline())
        assert (removed.removed, removed.more) == (2, True)
        for target in (1, 2):
            query = QueryRequest(CHAIN, 1, target, 8)
            reply = await c.rpc.call(c.replicas[target - 1].address, QUERY, query, deadline=c.deadline())
            assert (reply.chunks, reply.last_index) == (3, 4)


async def pending_at_head(c: Cluster) -> None:
    """The tail has committed a chunk, and readers have seen it, and the head has not heard of that."""
    head = c.replicas[0].target
    assert head is not None
    update = write_update(C1, 0, b"new", tag=c.tag(3), version=1, target=2)
    assert (await c.send([update], b"new", to=2, from_client=False))[0].code == 0
    await head.engine.put(replace(update, version=0, target=1), 1, 1, memoryview(b"new"), commit=False, remember=False)
    assert await c.read(C1, 0, 10, target=2) == b"new"


async def test_a_query_counts_what_is_pending(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await pending_at_head(c)
        query = QueryRequest(CHAIN, 1, 1, C1.inode)
        reply = await c.rpc.call(c.replicas[0].address, QUERY, query, deadline=c.deadline())
        assert (reply.chunks, reply.last_length) == (1, 3)


async def test_a_removal_takes_along_what_is_pending(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await pending_at_head(c)
        remove = RemoveFileRequest(c.tag(7), CHAIN, 1, 1, C1.inode)
        assert (await c.rpc.call(c.replicas[0].address, REMOVE_FILE, remove, deadline=c.deadline())).removed == 1
        assert [await c.read(C1, 0, 10, target=target) for target in (1, 2)] == [b"", b""]


async def test_a_removal_is_not_done_again_by_another_head(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as c:
        chunks = [ChunkId(8, index) for index in range(3)]
        for chunk in chunks:
            await c.write(chunk, 0, b"old")
        c.chain((1, SERVING), (2, SERVING), (3, SYNCING))
        await wait_for_sync_done(c, 3)
        remove = RemoveFileRequest(c.tag(7), CHAIN, c.version, 1, 8, 1)
        assert (await c.rpc.call(c.replicas[0].address, REMOVE_FILE, remove, deadline=c.deadline())).removed == 2
        await c.write(chunks[1], 0, b"new")
        for head, others in ((2, (3, 1)), (3, (2, 1))):
            c.chain((head, SERVING), *[(other, SERVING) for other in others])
            again = replace(remove, chain_version=c.version, target=head)
            reply = await c.rpc.call(c.replicas[head - 1].address, REMOVE_FILE, again, deadline=c.deadline())
            assert (reply.removed, reply.more) == (2, False)
            assert await c.read(chunks[1], 0, 10, target=head) == b"new"


async def test_a_removal_that_not_all_know_of_is_not_answered_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"old")
        service, target = c.replicas[1].service, c.replicas[0].target
        assert service is not None and target is not None

        def deaf(*arguments: object) -> None:
            raise FS3Error(Code.NOT_SERVING, "deaf")

        remove = RemoveFileRequest(c.tag(7), CHAIN, c.version, 1, C1.inode)
        other = c.replicas[1].target
        assert other is not None
        with monkeypatch.context() as patch:
            patch.setattr(other, "learn", deaf)
            with pytest.raises(FS3Error, match="deaf"):
                await c.rpc.call(c.replicas[0].address, REMOVE_FILE, remove, deadline=c.deadline())
        await c.write(C1, 0, b"new")
        assert (await c.rpc.call(c.replicas[0].address, REMOVE_FILE, remove, deadline=c.deadline())).removed == 1
        assert await c.read(C1, 0, 10) == b"new" and not target.removals


async def test_sync_done_counts_only_while_syncing(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        with pytest.raises(FS3Error) as caught:
            done = SyncDoneRequest(CHAIN, 1, 2)
            await c.rpc.call(c.replicas[1].address, SYNC_DONE, done, deadline=c.deadline())
        assert caught.value.code is Code.NOT_SERVING


@pytest.mark.expects_error_log
async def test_damage_at_a_successor_is_repaired_by_the_next_update(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"a" * 200_000)
        with (tmp_path / "disk2/target-1/data-18-0").open("r+b") as file:
            file.seek(70_000)
            file.write(b"!")
        with pytest.raises(FS3Error) as caught:
            await c.read(C1, 65_537, 10, target=2)
        assert caught.value.code is Code.CHECKSUM
        await c.write(C1, 65_600, b"b" * 10)
        first, second = c.contents(C1)
        assert first == second
        expected = b"a" * 65_600 + b"b" * 10 + b"a" * (200_000 - 65_610)
        assert await c.read(C1, 0, MIB, target=2) == expected


@pytest.mark.expects_error_log
async def test_a_failed_disk_takes_its_target_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"a" * 1000)
        bad = c.replicas[1]
        assert bad.target is not None and bad.service is not None

        async def broken(*arguments: object, **more: object) -> None:
            raise FS3Error(Code.DISK_FAILED, "the disk makes a noise")

        monkeypatch.setattr(bad.target.engine, "put", broken)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(c.write, C1, 0, b"b" * 1000)
            await until(lambda: bad.pokes > 1)
            assert [report.local for report in bad.service.reports()] == [LocalState.OFFLINE]
            with pytest.raises(FS3Error) as caught:
                await c.read(C1, 0, 10, target=2)
            assert caught.value.code is Code.DISK_FAILED
            c.chain((1, SERVING), (2, OFFLINE))
        assert await c.read(C1, 0, 1000) == b"b" * 1000


async def test_without_a_lease_nothing_is_served(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        await c.write(C1, 0, b"a")
        service = c.replicas[0].service
        assert service is not None
        service.node.may_serve = lambda: False
        with pytest.raises(FS3Error) as caught:
            await c.read(C1, 0, 1)
        assert caught.value.code is Code.NOT_SERVING
        assert (await c.send([write_update(C1, 0, b"b", tag=c.tag())], b"b"))[0].code == Code.NOT_SERVING


async def test_a_full_successor_refuses_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 2) as c:
        await c.write(C1, 0, b"a" * 1000)
        target = c.replicas[1].target
        assert target is not None
        put = target.engine.put

        async def full(*arguments: object, **more: object) -> None:
            raise FS3Error(Code.NO_SPACE, "full")

        monkeypatch.setattr(target.engine, "put", full)
        update = write_update(C1, 0, b"b" * 1000, tag=c.tag(1))
        assert (await c.send([update], b"b" * 1000))[0].code == Code.NO_SPACE
        assert c.contents(C1)[0] == c.contents(C1)[1]
        assert await c.read(C1, 0, 1000) == b"a" * 1000
        monkeypatch.setattr(target.engine, "put", put)
        assert (await c.write(C1, 0, b"c" * 1000, channel=1)).version == 2


async def test_reports_share_the_disk(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as c:
        await c.write(C1, 0, b"a" * 1000)
        service = c.replicas[0].service
        assert service is not None
        (report,) = service.reports()
        assert (report.target, report.local, report.used, report.chain_version) == (1, LocalState.UPTODATE, 65536, 1)
        assert report.capacity > report.used


async def test_slow_resync_is_throttled(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, OFFLINE))
        for index in range(5):
            await c.write(ChunkId(3, index), 0, bytes(10_000))
        service = c.replicas[0].service
        assert service is not None
        tune(service, resync_rate_bytes=200_000)
        began = c.env.monotonic()
        c.chain((1, SERVING), (2, SYNCING))
        await wait_for_sync_done(c, 2)
        assert c.env.monotonic() - began >= 0.2
