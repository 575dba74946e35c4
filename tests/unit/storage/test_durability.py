"""What syncs make durable, and what is there after the loss of power."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from fs3.api.storage import UpdateKind
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag
from storage.chunk_engine import ChunkEngine
from storage.disk_linux import LinuxDisk
from storage.records import PATCH
from storage.space import SpaceBudget
from tests.unit.storage.memory_disk import Crash, MemoryDisk
from tests.unit.storage.support import MIB, other_update
from tests.unit.storage.test_engine import C1, content, flip, write


async def test_a_synced_content_is_there_after_power_loss() -> None:
    """Written over in all ways, none of which got to the disk."""
    ways = [(0, 200_000), (50, 50), (200_000, 1000), (100_000, 100_000)]
    for offset, size in ways:
        disk = MemoryDisk()
        engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
        await write(engine, 0, b"a" * 200_000)
        await engine.sync([C1])
        await write(engine, offset, b"b" * size)
        for index in range(3):  # slots are used again
            await write(engine, 0, b"c" * 200_000, chunk=ChunkId(2, index))
        disk.lose_power(NothingKept())
        engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
        patched = b"a" * 50 + b"b" * 50 + b"a" * 199_900  # the records have all of it
        assert await content(engine) == (patched if size == 50 else b"a" * 200_000), (offset, size)
        assert engine.used_bytes() == 256 * 1024
        engine.close()


class NothingKept(Random):
    """Of what was not synced the records are there, and no page."""

    def choice(self, options):  # type: ignore[no-untyped-def]
        return 0.0 if options[0] == 0.0 and isinstance(options[0], float) else options[1]


class NoRecordsKept(Random):
    """All pages got to the disk, and no record that was not synced."""

    def choice(self, options):  # type: ignore[no-untyped-def]
        return 1.0 if isinstance(options[0], float) else 0

    def random(self) -> float:
        return 0.5


@pytest.mark.parametrize("way", ["rewrite", "cut and append", "patch", "remove"])
async def test_what_the_records_do_not_know_changed_nothing(way: str) -> None:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 200_000)
    await engine.sync([C1])
    if way == "rewrite":
        await write(engine, 0, b"b" * 200_000)
    elif way == "cut and append":
        update = other_update(C1, UpdateKind.TRUNCATE, 150_000)
        await engine.put(update, 2, 1, memoryview(b""), commit=True, remember=False)
        await write(engine, 150_000, b"b" * 10_000)
    elif way == "patch":
        await write(engine, 5000, b"patched")
    else:
        update = other_update(C1, UpdateKind.REMOVE)
        await engine.put(update, 2, 1, memoryview(b""), commit=True, remember=False)
    for index in range(3):  # slots are used again
        await write(engine, 0, b"c" * 200_000, chunk=ChunkId(2, index))
    disk.lose_power(NoRecordsKept())
    engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
    assert await content(engine) == b"a" * 200_000
    engine.close()


@pytest.mark.parametrize("kept", [NothingKept, NoRecordsKept])
async def test_power_loss_while_a_patch_gets_into_place(kept: type[Random]) -> None:
    """At any step: not before its record is durable, and the record stays until that is durable in place."""
    old, new = b"a" * 200_000, b"a" * 5000 + b"patched" + b"a" * 194_993
    for step in range(40):
        disk = MemoryDisk()
        engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
        await write(engine, 0, old)
        await engine.tidy()
        await write(engine, 5000, b"patched")
        disk.crash_after = step
        ended = False
        try:
            for _ in range(3):
                await engine.tidy()
            ended = True
        except Crash:
            pass
        disk.crash_after = None
        disk.lose_power(kept())
        engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
        found = await content(engine)
        assert await engine.verify(C1)
        assert found == new or (found == old and not ended), step
        engine.close()
        if ended:
            assert step > 3
            return
    raise AssertionError("three turns end somewhere")


async def test_ids_of_patches_that_are_in_place_are_not_used_again() -> None:
    """A pending patch with the id of one that the committed version has would be taken for a part of it."""
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 200_000)
    await write(engine, 5000, b"patched")
    for _ in range(3):
        await engine.tidy()
    assert not [key for key in disk.stores["target-1/records"].view if key[:1] == PATCH], "it is in place"
    engine.close()
    engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
    await write(engine, 70_000, b"pending", commit=False)
    assert bytes(await engine.read_whole(C1, pending=False)) == b"a" * 5000 + b"patched" + b"a" * 194_993
    engine.close()


async def test_results_of_what_power_loss_undid_are_forgotten() -> None:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 200_000, tag=RequestTag(1, 1, 1))
    await engine.sync()
    for sequence in (1, 2):
        await write(engine, 0, bytes([sequence]) * 200_000, tag=RequestTag(1, 1 + sequence, sequence))
    disk.lose_power(NothingKept())
    engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
    assert await content(engine) == b"a" * 200_000
    assert [tag for tag, _ in engine.channels()] == [RequestTag(1, 1, 1)]
    engine.close()


async def test_what_the_disk_had_said_to_have_is_damaged_when_lost() -> None:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 200_000)
    await engine.sync()
    await write(engine, 0, b"b" * 200_000)
    for data in disk.durable.values():
        data[:] = bytes(len(data))
    disk.lose_power(NothingKept())
    for _ in range(2):
        engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
        assert engine.damaged() == [C1]
        assert engine.dump(None, None, 1)[0][0].damaged
        engine.close()


async def test_a_process_crash_falls_back_to_nothing() -> None:
    """The host ran on: what cannot be read was damaged, and is not taken for lost."""
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 200_000)
    await engine.sync()
    await write(engine, 0, b"b" * 200_000)
    flip(disk)
    engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
    assert not await engine.verify(C1)
    assert engine.dump(None, None, 1)[0][0].version == 2
    engine.close()


async def test_a_sync_that_failed_never_succeeds_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system forgets pages that it could not write: that a later fsync succeeds says nothing of them."""
    disk = LinuxDisk(str(tmp_path / "disk"))
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 200_000)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", broken)
        with pytest.raises(FS3Error, match="broken") as found:
            await engine.sync([C1])
        assert found.value.code is Code.DISK_FAILED
    with pytest.raises(FS3Error, match="broken"):
        await engine.sync([C1])
    engine.close()
    disk.close()


async def test_a_sync_touches_only_what_it_is_for() -> None:
    synced: list[str] = []

    class NotingDisk(MemoryDisk):
        def open_file(self, name: str):  # type: ignore[no-untyped-def]
            file = super().open_file(name)
            sync = file.sync

            async def noted() -> None:
                synced.append(name)
                await sync()

            file.sync = noted  # type: ignore[method-assign]
            return file

    disk = NotingDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    large, small = ChunkId(1, 0), ChunkId(1, 1)
    await write(engine, 0, b"a" * MIB, chunk=large)
    await write(engine, 0, b"a", chunk=small)
    await engine.sync([small])
    assert synced == ["target-1/data-16-0"]
    await engine.sync([small])
    await write(engine, 0, b"b" * 10, chunk=small)
    synced.clear()
    await engine.sync([large])
    assert synced == ["target-1/data-20-0"]
    await write(engine, 5000, b"patched", chunk=large)
    synced.clear()
    await engine.sync([large])  # the records have it all
    assert synced == []
    await engine.sync()
    assert synced == ["target-1/data-16-0"]
    engine.close()
