"""Registered memory by the whole client, from storage daemons of the same host."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fs3.client.file import FileClient
from fs3.client.paths import Paths
from fs3.memory import Memory
from fs3.transport.local import LocalClient
from fs3.transport.local_memory import LocalLoan
from storage.disk_linux import LinuxFile
from tests import transports
from tests.unit.client.live import Live

MIB = 1024 * 1024
BLOCK = 64 * 1024


@asynccontextmanager
async def live(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Live, FileClient, Paths]]:
    monkeypatch.setattr(transports, "LISTEN", "local://registered")
    with trio.fail_after(60):
        async with Live(path, storages=1, replicas=1).running() as cluster, cluster.client() as client:
            paths = Paths(client)
            yield cluster, client, paths


def metric(cluster: Live, name: str) -> int:
    return int(cluster.env.metrics.snapshot().get(name, 0))


async def known(paths: Paths, memory: memoryview) -> None:
    """What the daemons must know of the memory first comes with the first reads."""
    for _ in range(3):
        await paths.read_batch([("/file", 0, MIB)], memory[:MIB], strict=True)


async def test_batches_land_in_registered_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks, parts of them, many places, out of order; and what is written out of it."""
    data = os.urandom(4 * MIB)
    async with live(tmp_path, monkeypatch) as (cluster, client, paths):
        with Memory(8 * MIB) as memory:
            view = memory.view
            async with paths.register(memory):
                view[: len(data)] = data
                await paths.write_file("/file", view[: len(data)])
                await known(paths, view)
                before = metric(cluster, "storage.lent_reads")
                monkeypatch.delattr(LocalLoan, "fill")  # by which others' bytes would be copied there
                chance = random.Random(3)
                for _ in range(20):
                    view[:] = bytes(len(view))
                    offsets = [chance.randrange(60) * BLOCK + chance.choice((0, 0, 1, 5000)) for _ in range(16)]
                    sizes = [chance.choice((BLOCK, BLOCK, 40_000, 20_000, 2 * BLOCK)) for _ in offsets]
                    starts = [3 * BLOCK * place for place in chance.sample(range(32), 16)]
                    into = [view[start : start + size] for start, size in zip(starts, sizes, strict=True)]
                    items = [("/file", at, size) for at, size in zip(offsets, sizes, strict=True)]
                    assert await paths.read_batch(items, into) == sizes
                    for at, size, place in zip(offsets, sizes, into, strict=True):
                        assert place == data[at : at + size]
                assert metric(cluster, "storage.lent_reads") - before >= 20
                assert metric(cluster, "storage.shared_writes") > 0
        assert not [link for link in _local(client) if link.lent]


def _local(client: FileClient) -> list[LocalClient]:
    links = client.storage._rpc.links.values()  # type: ignore[attr-defined]
    return [link.connection for link in links if isinstance(link.connection, LocalClient)]


async def test_holes_and_the_ends_of_files_are_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live(tmp_path, monkeypatch) as (_, _, paths):
        with Memory(2 * MIB) as memory:
            view = memory.view
            async with paths.register(memory), paths.open("/file", "w+") as file:
                await file.write_at(0, b"a" * BLOCK)
                await file.write_at(3 * BLOCK, b"b" * (BLOCK + 100))
                await file.write_at(20 * BLOCK, b"c")
                await known(paths, view)
                for _ in range(2):
                    view[:] = b"x" * len(view)
                    items = [(file, number * BLOCK, BLOCK) for number in range(6)]
                    assert await paths.read_batch(items, view[: 6 * BLOCK]) == [BLOCK] * 6
                    expected = b"a" * BLOCK + bytes(2 * BLOCK) + b"b" * (BLOCK + 100) + bytes(2 * BLOCK - 100)
                    assert view[: 6 * BLOCK] == expected and view[6 * BLOCK :] == b"x" * (2 * MIB - 6 * BLOCK)
                    assert await file.read_into(19 * BLOCK, view[: 2 * BLOCK]) == BLOCK + 1
                    assert view[: BLOCK + 1] == bytes(BLOCK) + b"c"


async def test_what_waits_for_the_disk_lands_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(2 * MIB)
    chance = random.Random(5)
    really = LinuxFile._read_cached
    monkeypatch.setattr(
        LinuxFile, "_read_cached", lambda self, at, into: really(self, at, into) if chance.random() < 0.5 else 0
    )
    async with live(tmp_path, monkeypatch) as (cluster, _, paths):
        await paths.write_file("/file", data)
        with Memory(2 * MIB) as memory:
            async with paths.register(memory):
                await known(paths, memory.view)
                before = metric(cluster, "storage.lent_reads")
                for _ in range(10):
                    memory.view[:] = bytes(2 * MIB)
                    items = [("/file", at, BLOCK) for at in range(0, 2 * MIB, BLOCK)]
                    await paths.read_batch(items, memory.view, strict=True)
                    assert memory.view == data
                assert metric(cluster, "storage.lent_reads") > before


@pytest.mark.parametrize("sealed", [True, False])
async def test_reads_that_are_given_up_write_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    """At any point, with a disk that is slow at times; a daemon ends meanwhile, and comes back."""
    chance = random.Random(7)
    data = os.urandom(4 * MIB)
    async with live(tmp_path, monkeypatch) as (cluster, client, paths):
        await paths.write_file("/file", data)
        fd = os.memfd_create("test") if not sealed else -1
        if fd >= 0:
            os.ftruncate(fd, 4 * MIB)
        view = Memory(4 * MIB).view if sealed else memoryview(mmap.mmap(fd, 4 * MIB))
        registration = paths.register(view)
        await known(paths, view)
        really = LinuxFile._read_cached
        monkeypatch.setattr(
            LinuxFile, "_read_cached", lambda self, at, into: really(self, at, into) if chance.random() < 0.8 else 0
        )
        at_once = LinuxFile.read

        async def read(self: LinuxFile, offset: int, into: memoryview) -> None:
            await at_once(self, offset, into)
            await trio.sleep(0.004)  # longer than a caller who gives up waits

        monkeypatch.setattr(LinuxFile, "read", read)
        items = [("/file", at, BLOCK) for at in range(0, 4 * MIB, BLOCK)]
        finished = 0
        for number in range(24):
            view[:] = bytes(len(view))
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, chance.choice((0, 1, 2, 5, 10, 20, 40, 80, 1000)), scope)
                    await paths.read_batch(items, view, strict=True)
                    assert view == data
                    finished += 1
                    nursery.cancel_scope.cancel()
            view[:] = b"\xaa" * len(view)
            for connection in _local(client):
                while connection.lent and not connection._closed:  # until the daemon is done with all
                    await trio.lowlevel.checkpoint()
            assert view == b"\xaa" * len(view), "written to after its call"
            if number == 12:
                await cluster.stop_storage(1)
                await cluster.start_storage(1)
        assert finished >= 2
        await registration.close()
        if fd >= 0:
            os.close(fd)


async def _cancel_after(turns: int, scope: trio.CancelScope) -> None:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_memory_that_takes_nothing_is_filled_by_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a tmpfs is full: what the daemon cannot put there it sends."""
    data = os.urandom(MIB)

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with live(tmp_path, monkeypatch) as (cluster, _, paths):
        await paths.write_file("/file", data)
        fd = os.memfd_create("test")
        os.ftruncate(fd, MIB)
        view = memoryview(mmap.mmap(fd, MIB))
        async with paths.register(view, fd):
            await known(paths, view)
            monkeypatch.setattr(os, "pwrite", full)
            items = [("/file", 10, MIB - 10), ("/file", 0, 10)]
            before = metric(cluster, "storage.lent_reads")
            for _ in range(2):
                view[:] = bytes(MIB)
                assert await paths.read_batch(items, view) == [MIB - 10, 10]
                assert view == data[10:] + data[:10]
            assert metric(cluster, "storage.lent_reads") == before
            await paths.read_batch([("/file", 0, MIB)], view, strict=True)
            assert view == data and metric(cluster, "storage.lent_reads") > before, "whole blocks need no such call"
        os.close(fd)
