"""Disks and targets that cannot be opened stay out, and come back empty only where their chain does not count on them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from fs3.api.storage import Update
from fs3.env import Env
from fs3.errors import Code, ConfigError, FS3Error
from fs3.ids import ChunkId
from fs3.routing import Chain, ChainTarget, LocalState, PublicState, RoutingInfo
from fs3.rpc.client import RpcClient
from fs3.testing.mgmtd import StaticMgmtd
from fs3.transport.memory import MemoryTransport
from storage.disk import Disk
from storage.disk_linux import LinuxDisk, LinuxFile
from storage.disks import Home, Homes
from storage.local import LocalTarget, StorageNode
from storage.rebuild import Verdict, reopen, settle_empty, verdict
from tests.unit.storage.memory_disk import MemoryDisk
from tests.unit.storage.support import LASTSRV, OFFLINE, SERVING, SYNCING, WAITING, cluster, tune, until, write_update

C1 = ChunkId(5, 0)


def routing(*states: PublicState, version: int = 1) -> RoutingInfo:
    """One chain of the targets 10101, 10102..., in these states."""
    entries = tuple([ChainTarget(10101 + number, state) for number, state in enumerate(states)])
    return RoutingInfo(version, "test", {7: Chain(7, version, entries)})


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (RoutingInfo(1, "test"), Verdict.RETURN),
        (routing(OFFLINE, SERVING), Verdict.RETURN),
        (routing(WAITING, SYNCING, SERVING), Verdict.RETURN),
        (routing(LASTSRV, OFFLINE), Verdict.LAST),
        (routing(LASTSRV, WAITING), Verdict.LAST),
        (routing(OFFLINE, LASTSRV), Verdict.WAIT),
        (routing(SERVING, SERVING), Verdict.WAIT),  # older than our registration
        (routing(SERVING), Verdict.WAIT),
    ],
)
def test_verdict(info: RoutingInfo, expected: Verdict) -> None:
    assert verdict(info, 10101) is expected


def open_homes(folders: dict[str, Callable[[], Disk]], targets: int = 2) -> Homes:
    homes = Homes()
    homes.open(tuple(folders), lambda name: folders[name](), 1, targets, 0, 0.0)
    return homes


def broken() -> Disk:
    raise FS3Error(Code.DISK_FAILED, "no such device")


def refused() -> Disk:
    raise ConfigError("that is somebody else's")


@pytest.mark.expects_error_log
def test_a_disk_that_cannot_be_opened_stays_out() -> None:
    homes = open_homes({"a": MemoryDisk, "b": broken, "c": MemoryDisk})
    assert [target.id for target in homes.targets] == [10001, 10002, 10201, 10202]
    assert sorted(homes.homes) == [0, 2] and homes.space(2).free
    homes.close()
    with pytest.raises(FS3Error, match="no such device"):
        open_homes({"a": broken, "b": broken})
    with pytest.raises(ConfigError):
        open_homes({"a": MemoryDisk, "b": refused})


def test_targets_of_a_fresh_disk_are_empty_until_they_are_settled() -> None:
    disk = MemoryDisk()
    for _ in range(2):
        homes = open_homes({"a": disk.reopen})
        assert [(target.empty, target.local_state()) for target in homes.targets] == [(True, LocalState.OFFLINE)] * 2
        homes.close()
    homes = open_homes({"a": disk.reopen})
    homes.settle_new(RoutingInfo(1, "test", {7: Chain(7, 1, (ChainTarget(10002, SERVING),))}))
    assert [target.empty for target in homes.targets] == [False, True]
    homes.close()
    homes = open_homes({"a": disk.reopen})
    assert [target.empty for target in homes.targets] == [False, True]
    assert json.loads(disk.small["FORMAT"].partition(b"\n")[2])["empty"] == [10002]
    homes.close()


def test_a_format_file_without_empty_targets_is_read() -> None:
    disk = MemoryDisk()
    disk.small["FORMAT"] = b'fs3-storage 2\n{"node": 1, "targets": [5]}\n'
    assert (Home(disk, 0, 1, 1, 0).ids, Home(disk, 0, 1, 1, 0).empty) == ([5], set())


def make_node(nursery: trio.Nursery, info: RoutingInfo) -> tuple[StorageNode, StaticMgmtd]:
    env = Env(MemoryTransport())
    mgmtd = StaticMgmtd(info)
    return StorageNode(env, RpcClient(env, nursery), mgmtd, []), mgmtd


def damage_records(path: Path) -> None:
    """As if sectors of the record store were overwritten."""
    for file in [*path.glob("*.log"), *path.glob("MANIFEST*"), *path.glob("*.sst")]:
        content = file.read_bytes()
        file.write_bytes(b"\xa5" * len(content))


@pytest.mark.parametrize("how", [damage_records, shutil.rmtree])
async def test_a_target_with_damaged_records_is_made_anew_where_another_serves(
    tmp_path: Path, how: Callable[[Path], None]
) -> None:
    homes = open_homes({"a": lambda: LinuxDisk(str(tmp_path))}, targets=2)
    for target in homes.targets:
        await target.engine.put(update(), 1, 1, memoryview(b"data"), commit=True, remember=False)
        homes.homes[0].settle(target.id)
    await homes.targets[0].engine.sync()
    homes.close()
    how(tmp_path / "target-10001" / "records")
    homes = open_homes({"a": lambda: LinuxDisk(str(tmp_path))})
    assert [target.id for target in homes.targets] == [10002]
    closed = homes.closed[0]
    assert (closed.id, closed.damaged) == (10001, True)
    async with trio.open_nursery() as nursery:
        made: list[LocalTarget | None] = []
        node, mgmtd = make_node(nursery, chain_of(10001, OFFLINE, LASTSRV, version=1))

        async def run() -> None:
            made.append(await reopen(node, closed))

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        assert not made and (tmp_path / "target-10001").exists()
        mgmtd.routing = chain_of(10001, OFFLINE, SERVING, version=2)
        await until(lambda: bool(made))
        target = made[0]
        assert target is not None and target.engine.get(C1) is None and not target.empty
        target.engine.close()
        nursery.cancel_scope.cancel()
    assert homes.targets[0].engine.get(C1) is not None
    homes.close()


def update() -> Update:
    return write_update(C1, 0, b"data")


def chain_of(target: int, own: PublicState, other: PublicState, version: int) -> RoutingInfo:
    return RoutingInfo(version, "test", {7: Chain(7, version, (ChainTarget(5, other), ChainTarget(target, own)))})


@pytest.mark.expects_error_log
async def test_the_last_copy_stays_offline_though_its_disk_is_new(caplog: pytest.LogCaptureFixture) -> None:
    homes = open_homes({"a": MemoryDisk}, targets=1)
    target = homes.targets[0]
    async with trio.open_nursery() as nursery:
        node, mgmtd = make_node(nursery, chain_of(10001, LASTSRV, OFFLINE, version=1))
        with caplog.at_level(logging.ERROR):
            nursery.start_soon(settle_empty, node, target, homes.homes[0])
            await trio.testing.wait_all_tasks_blocked()
        assert target.empty and "last copy" in caplog.text
        mgmtd.routing = chain_of(10001, OFFLINE, SERVING, version=2)
        await until(lambda: not target.empty)
        assert target.local_state() is LocalState.ONLINE
        nursery.cancel_scope.cancel()
    homes.close()


@pytest.mark.expects_error_log
async def test_a_disk_that_fails_takes_all_its_targets_along() -> None:
    homes = open_homes({"a": MemoryDisk, "b": MemoryDisk})
    async with trio.open_nursery() as nursery:
        node, _ = make_node(nursery, routing())
        node.targets = {target.id: target for target in homes.targets}
        node.disk_failed(homes.targets[1], FS3Error(Code.DISK_FAILED, "it smokes"))
        assert [target.failed for target in homes.targets] == ["it smokes", "it smokes", "", ""]
        nursery.cancel_scope.cancel()
    homes.close()


class BadSectors:
    """Makes reads of one disk's files fail below an offset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
        self.below = 0
        read, read_now = LinuxFile.read, LinuxFile.read_now

        def check(file: LinuxFile, offset: int) -> None:
            if folder in str(file._path) and offset < self.below:
                raise file._unread(OSError(5, "Input/output error"))

        async def bad_read(file: LinuxFile, offset: int, into: memoryview) -> None:
            check(file, offset)
            await read(file, offset, into)

        def bad_read_now(file: LinuxFile, offset: int, into: memoryview) -> bool:
            check(file, offset)
            return read_now(file, offset, into)

        monkeypatch.setattr(LinuxFile, "read", bad_read)
        monkeypatch.setattr(LinuxFile, "read_medium", bad_read)
        monkeypatch.setattr(LinuxFile, "read_now", bad_read_now)


@pytest.mark.expects_error_log
async def test_reads_that_fail_are_damage_until_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, 2) as c:
        assert c.replicas[1].service is not None
        tune(c.replicas[1].service, read_failures_max=10)
        for index in range(10):
            await c.write(ChunkId(5, index), 0, b"x" * 100)
        target = c.replicas[1].target
        assert target is not None
        sectors = BadSectors(monkeypatch, "disk2")
        sectors.below = 65536
        with pytest.raises(FS3Error) as caught:
            await c.read(C1, 0, 10, target=2)
        assert caught.value.code is Code.READ_FAILED and not target.failed
        await until(lambda: not target.suspects and not target.locks.held())
        assert await c.read(C1, 0, 10, target=2) == b"x" * 10  # repaired, elsewhere on the disk
        sectors.below = 1 << 40
        for index in range(1, 10):
            with pytest.raises(FS3Error):
                await c.read(ChunkId(5, index), 0, 10, target=2)
        await until(lambda: "reads failed within" in target.failed)
