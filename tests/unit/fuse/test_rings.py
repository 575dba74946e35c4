"""Rings of a mount without a kernel, against a whole cluster in this process: what is served when, what is bounded, and what
becomes of what is under way."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from fs3 import usrbio
from fs3.api.meta import Access
from fs3.cli.mounts import FILE_SYSTEM_TYPE, Mount
from fs3.client.file import ROOT_CALLER as ROOT
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fs3.metrics import Operation
from fs3.rings import Completion
from fs3.usrbio import Ior, Iov, Priority
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from fuse.processes import Descriptor
from fuse.ring_queue import BATCHES_OF_RING_MAX
from fuse.rings import RingLimits, Rings, Room
from tests.process.harness import REPOSITORY, run
from tests.unit.client.live import CHUNK_SIZE, Live

T = TypeVar("T")
LIMITS = RingLimits(rings=8, files=8, memory_bytes=32 << 20, others=False)
DEVICES = itertools.count(1)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, storages=1, replicas=1).running() as cluster:
        yield cluster


class Mounted:
    """A mount, and this process as a program that uses its rings. descriptors: of files that it has "open"."""

    def __init__(self, fs: FileSystem, rings: Rings, place: str) -> None:
        self.fs = fs
        self.rings = rings
        self.place = place
        self.descriptors: dict[int, Descriptor] = {}
        self.inodes: list[int] = []  # all that was asked of storage, in order
        rings.find_file = lambda pid, fd, device: self.descriptors[fd]

    async def file(self, name: bytes, data: bytes, flags: int = os.O_RDWR) -> int:
        """A descriptor of a new file, registered, whose kernel handle stays open."""
        opened, attr = await self.fs.create(ROOT, ROOT_INODE, name, 0o644, os.O_RDWR | os.O_CREAT)
        if data:
            await self.fs.write(opened.handle, 0, data)
        fd = 1000 + len(self.descriptors)
        self.descriptors[fd] = Descriptor(attr.inode, flags, 0)
        await self.register(fd, flags)
        return fd

    async def register(self, fd: int, flags: int) -> None:
        at = usrbio._process.door_of(self.place)
        reply, _ = await call(lambda: at.ask({"do": "open", "fd": fd, "inode": self.descriptors[fd].inode}))
        usrbio._process.files[fd] = usrbio._File(at, reply["id"], flags)


async def call(function: Callable[[], T]) -> T:
    """In a thread, as the daemon is in this one."""
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 (another thread may bring it about)
            await trio.sleep(0.001)


@asynccontextmanager
async def mounted(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: RingLimits = LIMITS, write_behind: int = 0
) -> AsyncIterator[Mounted]:
    device = f"unit-{os.getpid()}:{next(DEVICES)}"
    found = Mount(tmp_path, FILE_SYSTEM_TYPE, "fs3", device, os.geteuid())
    monkeypatch.setattr(usrbio, "_mount_of", lambda real: found)
    async with live.client() as client, trio.open_nursery() as nursery:
        fs = FileSystem(client, nursery, FsOptions(0, 0, write_behind))
        rings = Rings(client, fs, device, limits)
        await nursery.start(rings.serve)
        await call(lambda: usrbio._process.door_of(str(tmp_path)))
        made = Mounted(fs, rings, str(tmp_path))
        try:
            yield made
        finally:
            for fd in made.descriptors:
                usrbio._process.files.pop(fd, None)
            usrbio._process._doors.pop(device).drop()
            await until(lambda: not (rings.files.used or rings.memory.used or rings.rings.used))
            assert rings.queue.under_way == 0
            nursery.cancel_scope.cancel()


def results(done: list[Completion]) -> list[int]:
    return [each.result for each in done]


async def test_what_is_read_and_written(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK_SIZE)
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", data)
        iov = await call(lambda: Iov.create(made.place, 1 << 20))
        reads = await call(lambda: Ior(made.place, 4))
        writes = await call(lambda: Ior(made.place, 4, for_read=False))
        for number in range(3):
            reads.prepare(iov, number * CHUNK_SIZE, CHUNK_SIZE, fd, number * CHUNK_SIZE + 7, number)
        assert reads.submit() == 3
        done = await call(lambda: reads.wait(min_results=3))
        assert [(each.result, each.userdata, each.index) for each in done] == [
            (CHUNK_SIZE, 0, 0), (CHUNK_SIZE, 1, 1), (CHUNK_SIZE - 7, 2, 2),
        ]  # fmt: skip
        assert iov.view[: 3 * CHUNK_SIZE - 7] == data[7:]
        told: list[Operation] = []
        made.rings.env.metrics.listeners.append(told.append)
        iov.view[:9] = b"over here"
        writes.prepare(iov, 0, 9, fd, CHUNK_SIZE - 4)
        writes.prepare(iov, 5, 4, fd, 5 * CHUNK_SIZE)
        writes.submit()
        assert results(await call(lambda: writes.wait(min_results=2))) == [9, 4]
        (batch,) = [each for each in told if each.name.startswith("rings.")]
        assert (batch.name, batch.caller, batch.detail) == (
            "rings.write", f"{os.getpid()}:{os.geteuid()}", "operations=2 bytes=13",
        )  # fmt: skip
        inode = made.descriptors[fd].inode
        state = made.fs._client.opened(inode)
        assert state is not None and state.length == 5 * CHUNK_SIZE + 4
        file = await made.fs._client.open(ROOT, inode, Access.READ)
        assert bytes(await made.fs._client.read(file, CHUNK_SIZE - 4, 9)) == b"over here"
        await made.fs._client.close(file)
        reads.prepare(iov, 0, CHUNK_SIZE, fd, 4 * CHUNK_SIZE)
        reads.submit()
        assert results(await call(lambda: reads.wait(min_results=1))) == [CHUNK_SIZE]
        assert not any(iov.view[:CHUNK_SIZE])  # a hole
        await call(reads.close)


async def test_memory_that_is_not_received_into_gets_the_same(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = os.urandom(5 << 20)
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", data)
        memory = os.memfd_create("program", os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, 6 << 20)
        iov = await call(lambda: Iov.wrap(made.place, memory, 6 << 20))
        (program,) = _programs(made.rings)
        (region,) = program.memories.values()
        assert region.direct
        ring = await call(lambda: Ior(made.place, 4))
        for view in (region.view, None):
            region.direct = False
            region.view = view
            if view is None:
                region._fd = os.dup(memory)  # as where it may shrink
            iov.view[:] = bytes(6 << 20)
            ring.prepare(iov, 0, 100, fd, 17)
            ring.prepare(iov, 100, (5 << 20) + 100, fd, 0)
            ring.submit()
            assert results(await call(lambda: ring.wait(min_results=2))) == [100, 5 << 20]
            assert iov.view[:100] == data[17:117]
            assert iov.view[100 : 100 + (5 << 20)] == data
        os.ftruncate(memory, 0)  # nobody touches its mapping any more
        writes = await call(lambda: Ior(made.place, 1, for_read=False))
        writes.prepare(iov, 0, 100, fd, 0)
        writes.submit()
        assert results(await call(lambda: writes.wait(min_results=1))) == [-errno.EFAULT]
        os.close(memory)


async def test_what_is_written_with_dsync_is_on_disk(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        iov = await call(lambda: Iov.create(made.place, 4096))
        writes = await call(lambda: Ior(made.place, 4, for_read=False))
        synced = live.env.metrics.counters
        for name, flags, more in ((b"plain", os.O_RDWR, 0), (b"synced", os.O_RDWR | os.O_DSYNC, 1)):
            fd = await made.file(name, b"", flags)
            before = synced["storage.syncs"]
            writes.prepare(iov, 0, 4096, fd, 0)
            writes.submit()
            assert results(await call(lambda: writes.wait(min_results=1))) == [4096]
            assert synced["storage.syncs"] - before == more


def _programs(rings: Rings) -> list[Any]:
    import gc

    from fuse.rings import Program

    return [each for each in gc.get_objects() if type(each) is Program and each._all is rings]


async def test_how_many_are_served_at_once(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x" * 100)
        iov = await call(lambda: Iov.create(made.place, 100))
        batches: list[int] = []
        read = made.fs.ring_read

        async def watched(files: Any, reads: Any) -> list[int]:
            batches.append(len(reads))
            return await read(files, reads)

        monkeypatch.setattr(made.fs, "ring_read", watched)
        for depth, timeout_s, counts, expected in (
            (0, None, (3, 2), [3, 2]),
            (2, None, (1, 1, 2, 1), [2, 2]),  # one is left
            (-2, None, (5,), [2, 2, 1]),
            (-4, 0.05, (4, 1), [4, 1]),
            (-4, 3600 - 1, (1, 1, 1, 1, 2), [4]),  # two are left
        ):
            ring = await call(lambda: Ior(made.place, 8, io_depth=depth, timeout_s=timeout_s))  # noqa: B023 (awaited here)
            batches.clear()
            for count in counts:
                for _ in range(count):
                    ring.prepare(iov, 0, 10, fd, 0)
                ring.submit()
                if depth == 0:
                    assert len(await call(lambda: ring.wait(min_results=count))) == count  # noqa: B023
            if depth != 0:
                done = await call(lambda: ring.wait(min_results=sum(expected), timeout_s=20))  # noqa: B023
                assert len(done) == sum(expected)
            assert sorted(batches) == sorted(expected), depth  # those that are begun at once may be so in any order
            await call(ring.close)


async def test_priorities_and_users_in_turn(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x" * 100)
        iov = await call(lambda: Iov.create(made.place, 100))
        monkeypatch.setattr("fuse.ring_queue.BATCHES_MAX", 1)
        order: list[int] = []
        gate = trio.Event()
        read = made.fs.ring_read

        async def watched(files: Any, reads: Any) -> list[int]:
            order.append(reads[0][1])
            await gate.wait()
            return await read(files, reads)

        monkeypatch.setattr(made.fs, "ring_read", watched)
        rings = {}
        for place, priority in ((9, Priority.NORMAL), (1, Priority.LOW), (2, Priority.NORMAL), (3, Priority.HIGH)):
            ring = rings[place] = await call(lambda: Ior(made.place, 1, priority=priority))  # noqa: B023
            ring.prepare(iov, 0, 10, fd, place)
            ring.submit()
            await until(lambda: bool(order))  # the first is under way, and the others wait for it
        await until(lambda: sum(len(each) for each in made.rings.queue._users.get(os.getuid(), ())) == 3)
        gate.set()
        for ring in rings.values():
            await call(lambda: ring.wait(min_results=1))  # noqa: B023
        assert order == [9, 3, 2, 1]


async def test_a_ring_has_not_all_for_itself_and_ends_what_is_under_way(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x" * 100)
        iov = await call(lambda: Iov.create(made.place, 100))
        ended: list[str] = []
        state = {"running": 0}

        async def stuck(files: Any, reads: Any) -> list[int]:
            state["running"] += 1
            try:
                await trio.Event().wait()
            finally:
                ended.append("read")
            return []

        monkeypatch.setattr(made.fs, "ring_read", stuck)
        ring = await call(lambda: Ior(made.place, 32, io_depth=1))
        for _ in range(20):
            ring.prepare(iov, 0, 10, fd, 0)
        ring.submit()
        await until(lambda: state["running"] == BATCHES_OF_RING_MAX)
        assert ring.wait(min_results=1, timeout_s=0) == []
        assert ring.abandon() == 20
        assert (ring.outstanding, ring.wait(timeout_s=0)) == (0, [])
        for _ in range(12):
            ring.prepare(iov, 0, 10, fd, 0)
        with pytest.raises(BlockingIOError):
            ring.prepare(iov, 0, 10, fd, 0)
        await call(ring.close)
        assert len(ended) == BATCHES_OF_RING_MAX
        with pytest.raises(OSError) as caught:
            ring.submit()
        assert caught.value.errno == errno.EBADF


async def test_what_a_full_queue_leaves_over_is_served(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fuse.ring_queue.BATCHES_MAX", 1)
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x" * 10)
        iov = await call(lambda: Iov.create(made.place, 10))
        first = await call(lambda: Ior(made.place, 1))
        second = await call(lambda: Ior(made.place, 4, io_depth=-2, timeout_s=0.2))
        go, real = trio.Event(), made.fs.ring_read

        async def slow(files: Any, reads: Any) -> list[int]:
            await go.wait()
            return await real(files, reads)

        monkeypatch.setattr(made.fs, "ring_read", slow)
        first.prepare(iov, 0, 10, fd, 0)
        first.submit()
        await until(lambda: made.rings.queue.under_way == 1)
        for _ in range(3):
            second.prepare(iov, 0, 10, fd, 0)
            second.submit()
        ring = next(ring for program in _programs(made.rings) for ring in program._rings.values() if ring.entries == 4)
        await until(lambda: ring._ring.waiting == 3)
        go.set()
        assert len(await call(lambda: second.wait(min_results=3, timeout_s=20))) == 3


async def test_what_users_write_loses_its_set_id_bits(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x" * 10)
        inode = made.descriptors[fd].inode
        iov, ring = await call(lambda: (Iov.create(made.place, 10), Ior(made.place, 1, for_read=False)))
        (entry,) = [each for program in _programs(made.rings) for each in program.files.values()]
        for uid, mode, expected in ((0, 0o6755, 0o6755), (1000, 0o6755, 0o755), (1000, 0o2745, 0o2745)):
            entry.uid = uid
            await made.fs.setattr(ROOT, inode, mode=mode)
            ring.prepare(iov, 0, 10, fd, 0)
            ring.submit()
            assert results(await call(lambda: ring.wait(min_results=1))) == [10]
            assert (await made.fs.getattr(inode)).mode & 0o7777 == expected


async def test_a_write_that_is_given_up_may_have_happened(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x" * 10)
        iov, ring = await call(lambda: (Iov.create(made.place, 10), Ior(made.place, 1, for_read=False)))
        dropped: list[tuple[int, int]] = []
        monkeypatch.setattr(made.fs._read_ahead, "wrote", lambda state, offset, length: dropped.append((offset, length)))
        begun = trio.Event()

        async def never(*what: Any) -> int:
            begun.set()
            return await trio.sleep_forever()

        monkeypatch.setattr(made.fs._client, "write", never)
        ring.prepare(iov, 0, 10, fd, 0)
        ring.submit()
        await begun.wait()
        await call(ring.close)
        assert dropped == [(0, 10)]


async def test_files_that_cannot_be_settled_are_not_kept(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fuse.rings.CLOSE_S", 0.05)
    async with mounted(live, monkeypatch, tmp_path) as made:
        for name in (b"a", b"b", b"c"):
            await made.file(name, b"x")
        real = made.fs.close_for_rings

        async def stuck(entry: Any) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await real(entry)

        monkeypatch.setattr(made.fs, "close_for_rings", stuck)
        usrbio._process._doors[made.rings.device].drop()
        await until(lambda: made.rings.files.used == 0)


async def test_who_only_looks_hears_of_a_daemon_that_is_gone(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        ring = await call(lambda: Ior(made.place, 1))
        assert ring._socket is not None and not ring._socket.get_inheritable()
        assert ring.wait() == []
        for program in _programs(made.rings):
            for served in program._rings.values():
                served.scope.cancel()
        await until(lambda: not made.rings.rings.used)
        with pytest.raises(OSError) as caught:
            ring.wait()
        assert caught.value.errno == errno.ENODEV


async def test_a_program_that_goes_without_having_looked(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x" * 10)
        iov = await call(lambda: Iov.create(made.place, 10))
        for _ in range(4):
            ring = await call(lambda: Ior(made.place, 1024, io_depth=1))
            (served,) = [each for program in _programs(made.rings) for each in program._rings.values()]
            served._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            for _ in range(64):
                ring.prepare(iov, 0, 10, fd, 0)
            ring.submit()
            await until(lambda served=served: served._owed > 0 and not made.rings.queue.under_way)  # type: ignore[misc]
            assert ring._socket is not None
            ring._socket.close()
            ring._socket = None
            await until(lambda: not made.rings.rings.used)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_late_completions_are_not_those_of_others(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", bytes(range(100)))
        iov = await call(lambda: Iov.create(made.place, 100))
        ring = await call(lambda: Ior(made.place, 8))
        gate = trio.Event()
        read = made.fs.ring_read

        async def slow(files: Any, reads: Any) -> list[int]:
            if reads[0][1] == 50:
                await gate.wait()
            return await read(files, reads)

        monkeypatch.setattr(made.fs, "ring_read", slow)
        ring.prepare(iov, 0, 10, fd, 50, "slow")
        ring.submit()
        assert await call(lambda: ring.wait(min_results=1, timeout_s=0.02)) == []
        ring.prepare(iov, 20, 7, fd, 0, "next")
        ring.submit()
        assert await call(lambda: ring.wait(min_results=1, timeout_s=0.02)) == []  # in their order
        gate.set()
        done = await call(lambda: ring.wait(min_results=2))
        assert [(each.userdata, each.result) for each in done] == [("slow", 10), ("next", 7)]
        gate = trio.Event()
        ring.prepare(iov, 0, 10, fd, 50, "given up")
        ring.submit()
        ring.abandon()
        ring.prepare(iov, 20, 7, fd, 0, "wanted")
        ring.submit()
        gate.set()
        (only,) = await call(lambda: ring.wait(min_results=1))
        assert (only.userdata, only.result) == ("wanted", 7)
        assert ring.settle(0)


async def test_what_is_buffered_goes_first_and_its_errors_are_told(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with mounted(live, monkeypatch, tmp_path, write_behind=1 << 20) as made:
        fd = await made.file(b"f", b"buffered")
        iov = await call(lambda: Iov.create(made.place, 100))
        reads = await call(lambda: Ior(made.place, 4))
        writes = await call(lambda: Ior(made.place, 4, for_read=False))
        reads.prepare(iov, 0, 100, fd, 0)
        reads.submit()
        assert results(await call(lambda: reads.wait(min_results=1))) == [8]
        assert bytes(iov.view[:8]) == b"buffered"
        (entry,) = made.fs._files.values()
        await made.fs.write(1, 8, b" more")

        async def fail(*arguments: Any) -> int:
            raise FS3Error(Code.NO_SPACE, "full")

        with monkeypatch.context() as patch:
            patch.setattr(made.fs._client, "write", fail)
            writes.prepare(iov, 0, 4, fd, 0)
            writes.submit()
            assert results(await call(lambda: writes.wait(min_results=1))) == [-errno.ENOSPC]
        assert not entry.writes.pending if entry.writes is not None else False
        writes.prepare(iov, 0, 4, fd, 0)
        writes.submit()
        assert results(await call(lambda: writes.wait(min_results=1))) == [4]


async def test_a_mount_whose_kernel_keeps_writes_has_no_rings(live: Live, tmp_path: Path) -> None:
    async with live.client() as client, trio.open_nursery() as nursery:
        fs = FileSystem(client, nursery, FsOptions(0, 0, 0, writeback=True))
        _, attr = await fs.create(ROOT, ROOT_INODE, b"f", 0o600, os.O_RDWR | os.O_CREAT)
        with pytest.raises(FS3Error) as caught:
            await fs.open_for_rings(attr.inode, os.O_RDONLY, 100, 0)
        assert caught.value.code is Code.NOT_SUPPORTED


async def test_bounds(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        fd = await made.file(b"f", b"x")
        place = made.place
        held = [await call(lambda: Iov.create(place, 15 << 20))]
        held_rings = [await call(lambda: Ior(place, 1)) for _ in range(4)]
        assert made.rings.memory.used > 15 << 20  # rings take memory too
        tries: list[Callable[[], Any]] = [lambda: Iov.create(place, 15 << 20), lambda: Ior(place, 1)]
        for attempt in tries:
            with pytest.raises(OSError) as caught:
                await call(attempt)
            assert caught.value.errno == errno.EAGAIN
        for _ in range(3):
            await made.register(fd, os.O_RDWR)
        with pytest.raises(OSError) as caught:
            await made.register(fd, os.O_RDWR)
        assert caught.value.errno == errno.EAGAIN
        await call(held_rings.pop().close)
        await call(held.pop().close)
        held.append(await call(lambda: Iov.create(place, 15 << 20)))
        held_rings.append(await call(lambda: Ior(place, 1)))


async def test_only_what_is_open_here_and_so(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with mounted(live, monkeypatch, tmp_path) as made:
        opened, attr = await made.fs.create(ROOT, ROOT_INODE, b"f", 0o600, os.O_WRONLY | os.O_CREAT)
        await made.fs.release(opened.handle)
        made.descriptors[1] = Descriptor(attr.inode, os.O_RDONLY, 0)
        made.descriptors[2] = Descriptor(attr.inode, os.O_RDWR, 0)
        for fd in (1, 2):
            with pytest.raises(OSError) as caught:
                await made.register(fd, os.O_RDONLY)  # a kernel that says so does not know this file
            assert caught.value.errno == errno.EBADF
        handle = (await made.fs.open(ROOT, attr.inode, os.O_RDONLY)).handle
        await made.register(1, os.O_RDONLY)
        with pytest.raises(OSError) as caught:
            await made.register(2, os.O_RDWR)
        assert caught.value.errno == errno.EBADF
        await made.fs.release(handle)
        assert made.fs._client.opened(attr.inode) is not None
        iov, ring = await call(lambda: (Iov.create(made.place, 10), Ior(made.place, 1)))
        ring.prepare(iov, 0, 10, 1, 0)
        ring.submit()
        assert results(await call(lambda: ring.wait(min_results=1))) == [0]


async def test_descriptors_that_are_sent_are_not_taken(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setsockopt(socket.SOL_SOCKET, 83, 0)
    except OSError:
        pytest.skip("it takes Linux 6.16 (SO_PASSRIGHTS)")
    async with mounted(live, monkeypatch, tmp_path) as made:
        ring = await call(lambda: Ior(made.place, 1))
        assert ring._socket is not None
        for sock in (ring._socket, ring._door._socket):
            with pytest.raises(PermissionError):
                socket.send_fds(sock, [b"1234"], [0])


async def test_mappings_are_counted(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fuse.rings.MAPPINGS_MAX", 6)
    async with mounted(live, monkeypatch, tmp_path) as made:
        held = await call(lambda: [Iov.create(made.place, 1) for _ in range(3)])
        with pytest.raises(OSError) as caught:
            await call(lambda: Iov.create(made.place, 1))
        assert caught.value.errno == errno.EAGAIN
        await call(held.pop().close)
        await call(lambda: held.append(Iov.create(made.place, 1)))


def test_a_user_may_not_have_all() -> None:
    room = Room("rings", 8)
    for _ in range(4):
        room.take(1000, 0, 1, False)
    with pytest.raises(OSError):
        room.take(1000, 0, 1, False)
    with pytest.raises(OSError):
        room.take(1001, 4, 1, True)
    for _ in range(4):
        room.take(0, 0, 1, True)
    with pytest.raises(OSError):
        room.take(0, 0, 1, True)
    room.give_back(1000, 4)
    assert room.used == 4
    room.take(1000, 0, 4, False)


def test_programs_need_neither_an_event_loop_nor_fuse() -> None:
    words = "import sys, fs3.usrbio; print(sorted({'trio', 'pyfuse3', 'msgpack', 'click'} & set(sys.modules)))"
    assert run(sys.executable, "-c", words, cwd=REPOSITORY) == "[]\n"
