"""What goes wrong at a successor must stay there."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from fs3.api.storage import SYNC, SyncRequest
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from tests.unit.storage.support import CHAIN, OFFLINE, SERVING, SYNCING, cluster, until, write_update

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
