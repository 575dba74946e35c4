"""Central settings in a client of a whole cluster. What daemons make of them: tests/unit/mgmtd/test_config_service.py."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from fs3.api.admin import SET_CONFIG, SetConfigRequest, Setting
from fs3.client.file import ROOT_CALLER as ROOT
from fs3.client.mgmtd import MgmtdClient
from fs3.ids import ROOT_INODE
from fs3.rpc.client import RpcClient
from fs3.settings import ClientSettings
from fuse.cache import BLOCK_SIZE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.unit.client.live import Live


async def test_a_client_and_its_mount_take_what_is_set(tmp_path: Path) -> None:
    taken: list[ClientSettings] = []

    async def take(settings: ClientSettings) -> None:
        taken.append(settings)

    async with Live(tmp_path, storages=1, replicas=1).running() as live, trio.open_nursery() as nursery:
        mgmtd = MgmtdClient(live.env, RpcClient(live.env, nursery), [live.mgmtd])
        settings = (Setting("io_timeout", "5s"), Setting("meta_timeout", "7s"), Setting("read_ahead", "1MiB"))
        await mgmtd.call(SET_CONFIG, SetConfigRequest("client", settings))
        async with live.client() as client:
            client.on_settings = take
            with trio.fail_after(5):
                while not taken:  # noqa: ASYNC110 (nothing tells of it)
                    await trio.sleep(0.01)
            assert taken == [client.settings]
            assert client.settings == ClientSettings(io_timeout=5_000, meta_timeout=7_000, read_ahead=1 << 20)
            assert client._meta.call_s == 7
        nursery.cancel_scope.cancel()


async def test_a_mount_reads_on_with_other_caches(tmp_path: Path) -> None:
    data = os.urandom(8 * BLOCK_SIZE)
    cluster = Live(tmp_path, storages=1, replicas=1)
    async with cluster.running() as live, live.client() as client, trio.open_nursery() as nursery:
        fs = FileSystem(client, nursery, FsOptions(4 * BLOCK_SIZE, 8 * BLOCK_SIZE, 0))
        opened, _ = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        await fs.write(opened.handle, 0, data)
        read = b""
        for number, options in enumerate((None, FsOptions(0, 0, 0), None, FsOptions(BLOCK_SIZE, 4 * BLOCK_SIZE, 0), None)):
            if options is not None:
                fs.use_options(options)
                assert fs._read_ahead._cache.used <= options.read_cache
            while len(read) < (number + 1) * len(data) // 5:
                read += await fs.read(opened.handle, len(read), 65_521)
        assert read == data[: len(read)] and 0 < fs._read_ahead._cache.used <= 4 * BLOCK_SIZE
        await fs.release(opened.handle)
        nursery.cancel_scope.cancel()
