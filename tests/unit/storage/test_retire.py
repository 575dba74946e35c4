"""Targets that left their chains are emptied; no other ever is, and a crash at any moment leaves nothing half done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.routing import Chain, ChainTarget, LocalState, PublicState, RoutingInfo, Target
from fs3.rpc.client import RpcClient
from fs3.testing.mgmtd import StaticMgmtd
from fs3.transport.memory import MemoryTransport
from storage.disk import Disk
from storage.disk_linux import LinuxDisk, LinuxFile
from storage.disks import Homes
from storage.retire import empty_retired, retired_since
from storage.service import StorageService
from storage.update import roll_forward
from tests.unit.storage.memory_disk import Crash, MemoryDisk
from tests.unit.storage.support import SERVING, SYNCING, cluster, until, write_update

C1 = ChunkId(5, 0)
ONE, TWO = 10001, 10002


def info(*, retired: bool = True, chain: int = 0, since: int = 7, version: int = 9, name: str = "test") -> RoutingInfo:
    target = Target(ONE, 1, 0, chain, LocalState.ONLINE, 1000, 0, retired, False, since)
    other = Target(TWO, 1, 0, 0, LocalState.ONLINE, 1000, 0)
    return RoutingInfo(version, name, {}, {}, {ONE: target, TWO: other})


def with_chain(routing: RoutingInfo, state: PublicState) -> RoutingInfo:
    chain = Chain(3, 1, (ChainTarget(ONE, state),))
    return RoutingInfo(routing.version, routing.cluster, {3: chain}, {}, routing.targets)


def test_only_a_retired_target_that_is_in_no_chain_is_to_be_emptied() -> None:
    assert retired_since(info(), ONE) == 7
    for routing in (info(retired=False), info(chain=3), with_chain(info(), PublicState.OFFLINE), RoutingInfo(1, "test")):
        assert retired_since(routing, ONE) == 0
    assert retired_since(info(), TWO) == 0


class Daemon:
    """A storage daemon's targets on one disk, with what a registration told."""

    def __init__(self, nursery: trio.Nursery, disk: Callable[[], Disk], routing: RoutingInfo) -> None:
        self.homes = Homes()
        self.homes.open(("a",), lambda _: disk(), 1, 2, 0, 0.0)
        for target in self.homes.targets:
            self.homes.homes[0].settle(target.id)
            target.empty = False
        self.homes.homes[0].join("test")
        self.mgmtd = StaticMgmtd(routing)
        env = Env(MemoryTransport())
        self.service = StorageService(env, RpcClient(env, nursery), self.mgmtd, self.homes.targets)
        self.nursery = nursery

    async def run(self, cluster: str = "test", version: int = 1) -> None:
        await self.nursery.start(self.service.run, lambda: None)
        self.nursery.start_soon(empty_retired, self.service, self.homes, cluster, version)

    async def fill(self) -> None:
        for target in self.homes.targets:
            await target.engine.put(write_update(C1, 0, b"data"), 1, 1, memoryview(b"data"), commit=True, remember=True)
            await target.engine.sync()

    def used(self) -> list[int]:
        return [target.engine.used_bytes() for target in self.homes.targets]

    def obeyed(self) -> list[int]:
        return [report.obeyed for report in self.service.reports()]


async def test_a_retired_target_is_emptied_and_says_so(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        daemon = Daemon(nursery, lambda: LinuxDisk(str(tmp_path)), info(retired=False, version=8))
        await daemon.fill()
        before = daemon.homes.targets[0]
        await daemon.run()
        await trio.testing.wait_all_tasks_blocked()
        assert all(daemon.used()) and daemon.obeyed() == [0, 0]
        daemon.mgmtd.routing = info()
        await until(lambda: sorted(daemon.obeyed()) == [0, 7])
        assert [bool(used) for used in daemon.used()] == [False, True]
        fresh = daemon.service.node.targets[ONE]
        assert fresh is not before and not fresh.engine.channels() and len(fresh.channels) == 0
        assert daemon.service.node.targets[TWO].engine.get(C1) is not None
        assert [path.name for path in (tmp_path / f"target-{ONE}").iterdir()] == ["records"]
        # A later retirement is another one.
        await daemon.service.node.targets[ONE].engine.put(
            write_update(C1, 0, b"data"), 1, 1, memoryview(b"data"), commit=True, remember=False
        )
        daemon.mgmtd.routing = info(version=10)
        await trio.testing.wait_all_tasks_blocked()
        assert all(daemon.used())
        daemon.mgmtd.routing = info(version=11, since=11)
        await until(lambda: sorted(daemon.obeyed()) == [0, 11])
        nursery.cancel_scope.cancel()
    daemon.homes.close()


@pytest.mark.parametrize(
    ("cluster_id", "version", "routing"),
    [("other", 1, info()), ("other", 1, info(name="other")), ("test", 10, info()), ("test", 1, info(name="other"))],
)
async def test_nothing_is_emptied_at_the_word_of_another_cluster_or_time(
    cluster_id: str, version: int, routing: RoutingInfo, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        disk = MemoryDisk()
        daemon = Daemon(nursery, disk.reopen, routing)
        await daemon.fill()
        await daemon.run(cluster_id, version)
        await trio.sleep(10)
        assert all(daemon.used()) and daemon.obeyed() == [0, 0]
        nursery.cancel_scope.cancel()
    daemon.homes.close()


async def test_nothing_is_emptied_without_a_lease(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        daemon = Daemon(nursery, MemoryDisk().reopen, info())
        await daemon.fill()
        holds = False
        daemon.service.node.may_serve = lambda: holds
        await daemon.run()
        await trio.sleep(10)
        assert all(daemon.used())
        holds = True
        await trio.sleep(2)
        assert not all(daemon.used())
        nursery.cancel_scope.cancel()
    daemon.homes.close()


class Stepwise(MemoryDisk):
    """Dies before the n-th change of what is on it by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left = math.inf

    def tell(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def write_small(self, name: str, data: bytes) -> None:
        self.tell()
        super().write_small(name, data)

    async def remove_file(self, name: str) -> None:
        self.tell()
        await super().remove_file(name)

    def remove(self, folder: str) -> None:
        self.tell()
        super().remove(folder)


async def test_a_crash_at_any_moment_leaves_it_whole_or_empty() -> None:
    outcomes = []
    for step in range(6):
        disk = Stepwise()
        with pytest.raises(BaseExceptionGroup) if step < 4 else trio.CancelScope():
            async with trio.open_nursery() as nursery:
                daemon = Daemon(nursery, disk.reopen, info())
                await daemon.fill()
                disk.left = step
                await daemon.run()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        disk.left = math.inf
        homes = Homes()
        homes.open(("a",), lambda _: disk.reopen(), 1, 2, 0, 0.0)  # noqa: B023
        assert not homes.closed
        one, two = homes.targets
        assert two.engine.get(C1) is not None
        outcomes.append("whole" if one.engine.get(C1) is not None else "to settle" if one.empty else "empty")
        assert bool(one.engine.used_bytes()) == (outcomes[-1] == "whole")
        homes.close()
    assert outcomes == ["whole", *["to settle"] * 3, "empty", "empty"]


async def test_what_is_under_way_ends_before_its_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        daemon = Daemon(nursery, lambda: LinuxDisk(str(tmp_path)), info(retired=False, version=8))
        await daemon.fill()
        await daemon.run()
        engine = daemon.service.node.targets[ONE].engine
        go_on = trio.Event()
        read = LinuxFile.read

        async def slow_read(file: LinuxFile, offset: int, into: memoryview) -> None:
            await go_on.wait()
            await read(file, offset, into)

        monkeypatch.setattr(LinuxFile, "read", slow_read)
        monkeypatch.setattr(LinuxFile, "read_now", lambda *_: False)
        found: list[bytes] = []

        async def reader() -> None:
            found.append(bytes((await engine.read(C1, 0, 4)).data))

        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        daemon.mgmtd.routing = info()
        await trio.sleep(0.05)
        assert ONE not in daemon.service.node.targets and (tmp_path / f"target-{ONE}").exists()
        with pytest.raises(FS3Error) as caught:
            await engine.put(write_update(C1, 0, b"late"), 2, 1, memoryview(b"late"), commit=True, remember=False)
        assert caught.value.code is Code.NOT_SERVING
        go_on.set()
        await until(lambda: sorted(daemon.obeyed()) == [0, 7])
        assert found == [b"data"]
        assert not any(target.failed for target in daemon.service.node.targets.values())
        nursery.cancel_scope.cancel()
    daemon.homes.close()


async def test_a_target_that_is_to_leave_serves_nothing_and_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, SERVING))
        await c.write(C1, 0, b"one")
        service = c.replicas[1].service
        assert service is not None
        routing = c.mgmtd.routing
        leaving = replace(routing.targets[2], leaving=True, since=routing.version + 1)
        c.mgmtd.routing = replace(routing, version=routing.version + 1, targets={**routing.targets, 2: leaving})
        await until(lambda: service.reports()[0].obeyed == routing.version + 1)
        with pytest.raises(FS3Error, match="is leaving chain"):
            await c.read(C1, 0, 3, target=2)
        assert await c.read(C1, 0, 3, target=1) == b"one"
        c.mgmtd.routing = replace(routing, version=routing.version + 2)
        await until(lambda: service.reports()[0].obeyed == 0)
        assert await c.read(C1, 0, 3, target=2) == b"one"


async def test_a_target_leaves_once_all_that_is_under_way_has_ended(tmp_path: Path) -> None:
    """Else an update that it began as the head goes on when it is back, at the end of the chain: past all before it."""
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, SERVING))
        await c.write(C1, 0, b"one")
        service, target = c.replicas[0].service, c.replicas[0].target
        assert service is not None and target is not None
        await target.locks.acquire(C1)  # as an update that its disk is slow with
        routing = c.mgmtd.routing
        leaving = replace(routing.targets[1], leaving=True, since=routing.version + 1)
        c.mgmtd.routing = replace(routing, version=routing.version + 1, targets={**routing.targets, 1: leaving})
        await until(lambda: target.stopped != 0)
        await trio.sleep(0.01)
        assert service.reports()[0].obeyed == 0
        with pytest.raises(FS3Error, match="is leaving"):
            await roll_forward(service.node, target, C1, 0, math.inf)
        target.locks.release(C1)
        await until(lambda: service.reports()[0].obeyed == routing.version + 1)


async def test_one_that_is_filled_anew_forgets_which_requests_it_knew(tmp_path: Path) -> None:
    """They may be of a time that was given up, and their results then say of chunks what is not so."""
    async with cluster(tmp_path, 2) as c:
        c.chain((1, SERVING), (2, SERVING))
        await c.write(C1, 0, b"one")
        target = c.replicas[1].target
        assert target is not None and len(target.channels) == 1
        c.chain((1, SERVING), (2, SERVING))
        assert len(target.channels) == 1
        c.chain((1, SERVING), (2, PublicState.OFFLINE))
        await until(lambda: target.role is not None and target.role.state is PublicState.OFFLINE)
        forgotten: list[int] = []
        finish = target.channels.drop_idle
        target.channels.drop_idle = lambda before: forgotten.append(1) or finish(before)  # type: ignore[method-assign]
        c.chain((1, SERVING), (2, SYNCING))
        await until(lambda: bool(forgotten) and len(target.channels) == 1)  # as its predecessor told it


async def test_what_was_given_up_is_replaced_by_what_its_chain_has_now(tmp_path: Path) -> None:
    """mgmtd's chains.give_up: the target that served last returns, with versions that are higher than those of the chain."""
    async with cluster(tmp_path, 2) as c:
        one, gone, fresh = C1, ChunkId(5, 1), ChunkId(5, 2)
        c.chain((1, SERVING), (2, SERVING))
        await c.write(one, 0, b"both have it")
        c.chain((1, SERVING), (2, PublicState.OFFLINE))
        for number in range(5):
            await c.write(one, 0, b"lost %d" % number)
        await c.write(gone, 0, b"lost")
        c.chain((2, SERVING), (1, PublicState.OFFLINE))
        assert await c.read(one, 0, 20, target=2) == b"both have it"
        await c.write(one, 0, b"kept")
        await c.write(fresh, 0, b"new")
        c.chain((2, SERVING), (1, SYNCING))
        await c.write(one, 2, b"pt again")
        target = c.replicas[0].target
        assert target is not None
        await until(lambda: target.role is not None and target.synced_version == target.role.chain_version)
        for chunk in (one, gone, fresh):
            assert c.replicas[0].content(chunk) == c.replicas[1].content(chunk)
        assert c.replicas[0].content(gone) is None
        c.chain((2, SERVING), (1, SERVING))
        assert await c.read(one, 0, 20, target=1) == b"kept againit" == await c.read(one, 0, 20, target=2)
