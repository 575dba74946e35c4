"""What goes wrong at a successor must stay there."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from fs3.api.storage import SYNC, SyncRequest
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from tests.unit.storage.support import CHAIN, OFFLINE, SERVING, SYNCING, cluster, until

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
