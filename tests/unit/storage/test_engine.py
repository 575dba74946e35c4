"""The chunk engine by example; tests/model/test_storage_engine.py tries everything against a dict."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio

from fs3.api.storage import Update, UpdateKind, UpdateResult
from fs3.checksum import BLOCK_SIZE, piece_checksums
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag
from storage.chunk_engine import ChunkEngine, size_class
from storage.disk import Space
from storage.disk_linux import LinuxDisk
from storage.records import PATCH
from storage.space import SpaceBudget
from tests.unit.storage.memory_disk import Crash, MemoryDisk
from tests.unit.storage.support import MIB, open_engine, other_update, write_update

C1 = ChunkId(1, 0)
TAG = RequestTag(3, 4, 5)


async def write(
    engine: ChunkEngine, offset: int, data: bytes, *, chunk: ChunkId = C1, commit: bool = True, tag: RequestTag = TAG
) -> None:
    state = engine.get(chunk)
    number = state.committed.number + 1 if state is not None and state.committed is not None else 1
    update = write_update(chunk, offset, data, tag=tag)
    await engine.put(update, number, 1, memoryview(data), commit=commit, remember=commit)


async def content(engine: ChunkEngine, chunk: ChunkId = C1) -> bytes:
    found = await engine.read(chunk, 0, 64 * MIB)
    assert found.checksums == piece_checksums(found.data, 0)
    return bytes(found.data)


@pytest.mark.parametrize(
    ("length", "shift"), [(0, 16), (1, 16), (65536, 16), (65537, 17), (MIB, 20), (MIB + 1, 21), (64 * MIB, 26)]
)
def test_size_class(length: int, shift: int) -> None:
    assert size_class(length) == shift


def flip(disk: MemoryDisk) -> None:
    """Damage all that is stored."""
    for data in disk.data.values():
        data[:] = bytes([byte ^ 1 for byte in data])


async def damaged_engine() -> tuple[ChunkEngine, MemoryDisk]:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 100_000)
    assert await engine.verify(C1) and engine.damaged() == []
    flip(disk)
    return engine, disk


async def refused(code: Code, engine: ChunkEngine, update: Update, data: bytes = b"") -> None:
    with pytest.raises(FS3Error) as caught:
        await engine.put(update, 9, 1, memoryview(data), commit=True, remember=False)
    assert caught.value.code is code


async def test_a_damaged_chunk_is_known_and_refused(tmp_path: Path) -> None:
    engine, _ = await damaged_engine()
    assert not await engine.verify(C1)
    assert engine.damaged() == [C1] and engine.dump(None, None, 9)[0][0].damaged
    for call in (engine.read(C1, 0, 10), engine.read_whole(C1, pending=False)):
        with pytest.raises(FS3Error) as caught:
            await call
        assert caught.value.code is Code.CHECKSUM
    await refused(Code.CHECKSUM, engine, write_update(C1, 50_000, b"x"), b"x")
    await refused(Code.CHECKSUM, engine, write_update(C1, 100_000, b"x"), b"x")
    await refused(Code.CHECKSUM, engine, other_update(C1, UpdateKind.TRUNCATE, 65536))
    await refused(Code.CHECKSUM, engine, other_update(C1, UpdateKind.PUNCH, 65536))
    engine.close()


@pytest.mark.parametrize(
    ("update", "data", "after"),
    [
        (write_update(C1, 0, b"b" * 100_000, kind=UpdateKind.REPLACE), b"b" * 100_000, b"b" * 100_000),
        (write_update(C1, 0, b"b" * 100_001), b"b" * 100_001, b"b" * 100_001),
        (other_update(C1, UpdateKind.TRUNCATE, 0), b"", b""),
        (other_update(C1, UpdateKind.REMOVE), b"", b""),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_replaces_all_of_a_chunk_heals_it(update: Update, data: bytes, after: bytes, at_once: bool) -> None:
    engine, _ = await damaged_engine()
    assert not await engine.verify(C1)
    await engine.put(update, 2, 1, memoryview(data), commit=at_once, remember=False)
    if not at_once:
        assert engine.damaged() == [C1]
        engine.commit(C1, 1, remember=False)
    assert engine.damaged() == [] and await engine.verify(C1)
    assert await content(engine) == after
    engine.close()


async def test_what_is_lost_stays_lost_over_a_restart() -> None:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 100)
    lost = replace(write_update(C1, 0, b"b" * 100_000), kind=UpdateKind.LOST)
    await engine.put(lost, 7, 3, memoryview(b""), commit=True, remember=False)
    for _ in range(2):
        meta = engine.dump(None, None, 9)[0][0]
        assert (meta.version, meta.chain_version, meta.length, meta.damaged) == (7, 3, 100_000, True)
        assert engine.damaged() == [C1] and not await engine.verify(C1)
        with pytest.raises(FS3Error, match="CHECKSUM"):
            await engine.read(C1, 0, 10)
        engine.close()
        engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"c" * 100_000)
    assert engine.damaged() == [] and await content(engine) == b"c" * 100_000
    engine.close()


async def test_punching_makes_zeros_and_keeps_the_length() -> None:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    expected = bytearray(Random(4).randbytes(300_000))
    await write(engine, 0, bytes(expected))
    for number, (offset, length) in enumerate([(0, 10), (70_000, 150_000), (299_990, 100), (400_000, 5)], start=2):
        update = replace(other_update(C1, UpdateKind.PUNCH, length), offset=offset)
        await engine.put(update, number, 1, memoryview(b""), commit=True, remember=False)
        expected[offset : offset + length] = bytes(len(expected[offset : offset + length]))
        assert await content(engine) == bytes(expected) and await engine.verify(C1)
    engine.close()


async def test_each_way_of_writing(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    expected = bytearray()
    random = Random(1)
    # fresh, append in place, append that outgrows, patch, copy, gap, whole, behind a gap at a block border
    steps = [
        (0, 1000),
        (1000, 500),
        (1500, 300_000),
        (100, 50),
        (200_000, 90_000),
        (400_000, 10),
        (0, 500_000),
        (524_288, 9),
    ]
    for offset, size in steps:
        data = random.randbytes(size)
        await write(engine, offset, data)
        if offset > len(expected):
            expected.extend(bytes(offset - len(expected)))
        expected[offset : offset + size] = data
        assert await content(engine) == expected, (offset, size)
    engine.close()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    assert await content(engine) == expected
    assert engine.used_bytes() == MIB
    engine.close()
    disk.close()


async def test_ranges_carry_checksums_of_their_pieces(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    data = Random(2).randbytes(3 * BLOCK_SIZE + 100)
    await write(engine, 0, data)
    for offset in (0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, 3 * BLOCK_SIZE, len(data) - 1):
        for length in (1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 4 * BLOCK_SIZE):
            found = await engine.read(C1, offset, length)
            assert found.data == data[offset : offset + length]
            assert found.checksums == piece_checksums(found.data, offset), (offset, length)
            assert (found.chunk_length, found.version) == (len(data), 1)
    assert (await engine.read(C1, len(data), 10)).chunk_length == len(data)
    assert (await engine.read(ChunkId(1, 1), 0, 10)).version == 0
    engine.close()
    disk.close()


async def test_pending_is_apart_until_committed(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    await write(engine, 0, b"a" * 100_000)
    for offset, size in ((10, 100), (0, 200_000), (100_000, 5), (50_000, 50_000)):
        await write(engine, offset, b"b" * size, commit=False)
        assert engine.pending() == [C1]
        assert await content(engine) == b"a" * 100_000
        whole = bytes(await engine.read_whole(C1, pending=True))
        assert whole[offset : offset + size] == b"b" * size
        assert len(whole) == max(100_000, offset + size)
        engine.drop_pending(C1)
        assert await content(engine) == b"a" * 100_000
        assert engine.pending() == []
    await write(engine, 10, b"c" * 10, commit=False)
    engine.commit(C1, 9, remember=True)
    assert (await content(engine))[:21] == b"a" * 10 + b"c" * 10 + b"a"
    state = engine.get(C1)
    assert state is not None and state.committed is not None and state.committed.chain_version == 9
    engine.close()
    disk.close()


async def test_reopened_without_close(tmp_path: Path) -> None:
    """As after kill -9: a copy of the folder, taken while the engine is open, is a disk that lost its process."""
    engine, disk = open_engine(tmp_path / "a")
    await write(engine, 0, b"a" * 200_000)
    await write(engine, 5, b"p" * 10, commit=False)
    await write(engine, 0, b"z" * 5, chunk=ChunkId(2, 0), commit=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other, other_disk = open_engine(tmp_path / "b")
    assert other.pending() == [C1, ChunkId(2, 0)]
    assert await content(other) == b"a" * 200_000
    other.commit(C1, 1, remember=False)
    other.commit(ChunkId(2, 0), 1, remember=False)
    assert (await content(other))[:20] == b"a" * 5 + b"p" * 10 + b"a" * 5
    assert await content(other, ChunkId(2, 0)) == b"z" * 5
    for opened in (engine, disk, other, other_disk):
        opened.close()


async def test_patches_are_read_before_they_are_in_place(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    await write(engine, 0, b"a" * 200_000)
    await write(engine, 70_000, b"patched")
    for offset, size in ((70_003, 2), (65_536, 65_536), (0, 200_000)):
        found = await engine.read(C1, offset, size)
        assert found.data == (b"a" * 70_000 + b"patched" + b"a" * 129_993)[offset : offset + size]
        assert found.checksums == piece_checksums(found.data, offset)
    engine.close()
    file = tmp_path / "target-1/data-18-0"
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    assert (await content(engine))[69_999:70_008] == b"apatcheda"
    assert file.read_bytes()[69_999:70_008] == b"a" * 9
    await engine.tidy()
    assert file.read_bytes()[69_999:70_008] == b"apatcheda"
    assert keys(engine, PATCH) == 1  # until that is durable
    await engine.tidy()
    assert keys(engine, PATCH) == 0
    assert (await content(engine))[69_999:70_008] == b"apatcheda"
    engine.close()
    disk.close()


def keys(engine: ChunkEngine, kind: bytes) -> int:
    return sum(key[:1] == kind for key, _ in engine._log.records.load())


async def test_many_patches_become_a_copy() -> None:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    expected = bytearray(b"a" * 200_000)
    await write(engine, 0, bytes(expected))
    most = 0
    for number in range(60):
        expected[3000 * number : 3000 * number + 4096] = bytes([number]) * 4096
        await write(engine, 3000 * number, bytes([number]) * 4096)
        most = max(most, keys(engine, PATCH))
    assert await content(engine) == bytes(expected)
    assert 10 <= most <= 200_000 // 2 // 4096 + 1
    assert engine.used_bytes() == 256 * 1024
    engine.close()


async def test_an_empty_group_goes_with_its_file(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    for index in range(16):
        await write(engine, 0, b"x", chunk=ChunkId(1, index))
        update = other_update(ChunkId(1, index), UpdateKind.TRUNCATE, 20 * MIB + index, chunk_size=32 * MIB)
        await engine.put(update, 2, 1, memoryview(b""), commit=True, remember=False)
    files = {path.name for path in (tmp_path / "target-1").iterdir()}
    assert {"data-25-0", "data-25-1"} <= files
    for index in range(16):
        update = other_update(ChunkId(1, index), UpdateKind.REMOVE)
        await engine.put(update, 3, 1, memoryview(b""), commit=True, remember=False)
    await engine.tidy()
    files = {path.name for path in (tmp_path / "target-1").iterdir()}
    assert "data-25-1" not in files and "data-25-0" in files  # a part of the free slots stays ready
    assert engine.used_bytes() == 0
    await write(engine, 0, b"y" * (20 * MIB))
    assert (await engine.read(C1, 10, 3)).data == b"yyy"
    engine.close()
    disk.close()


async def test_zeros_take_no_space(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    await write(engine, 0, b"a" * 10)
    await write(engine, 900_000, b"b" * 10)
    assert await content(engine) == b"a" * 10 + bytes(899_990) + b"b" * 10
    assert (tmp_path / "target-1/data-20-0").stat().st_blocks * 512 < 200_000
    await write(engine, 0, b"c" * MIB)
    update = replace(other_update(C1, UpdateKind.PUNCH, 800_000), offset=100_000)
    await engine.put(update, 4, 1, memoryview(b""), commit=True, remember=False)
    expected = b"c" * 100_000 + bytes(800_000) + b"c" * (MIB - 900_000)
    assert await content(engine) == expected
    before = (tmp_path / "target-1/data-20-0").stat().st_blocks * 512
    await engine.tidy()
    assert await content(engine) == expected
    assert before - (tmp_path / "target-1/data-20-0").stat().st_blocks * 512 > 700_000
    engine.close()
    disk.close()


async def test_damage_is_not_served_and_not_blessed(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    await write(engine, 0, b"a" * 200_000)
    with (tmp_path / "target-1/data-18-0").open("r+b") as file:
        file.seek(70_000)
        file.write(b"!")
    for reading in (engine.read(C1, 65_537, 10), engine.read_whole(C1, pending=False)):
        with pytest.raises(FS3Error) as caught:
            await reading
        assert caught.value.code is Code.CHECKSUM
    with pytest.raises(FS3Error) as caught:
        await write(engine, 65_600, b"b" * 10)
    assert caught.value.code is Code.CHECKSUM
    found = await engine.read(C1, 65_536, 65_536)
    assert found.checksums != piece_checksums(found.data, 65_536)  # whole blocks are verified by who reads them
    assert (await engine.read(C1, 10, 10)).data == b"a" * 10
    engine.close()
    disk.close()


async def test_truncate(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    expected = Random(3).randbytes(700_000)
    await write(engine, 0, expected)
    for number, length in enumerate((600_000, 650_000, 131_072, 131_073, 10, MIB, 0, 0, 70_000), 2):
        update = other_update(C1, UpdateKind.TRUNCATE, length)
        await engine.put(update, number, 1, memoryview(b""), commit=True, remember=False)
        expected = expected[:length] + bytes(max(0, length - len(expected)))
        assert await content(engine) == expected, length
    assert engine.used_bytes() == 128 * 1024
    engine.close()
    disk.close()


async def test_removed_chunks_free_their_slots(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    for index in range(10):
        await write(engine, 0, bytes([index]) * 100_000, chunk=ChunkId(1, index))
    assert engine.used_bytes() == 10 * 128 * 1024
    for index in range(10):
        update = other_update(ChunkId(1, index), UpdateKind.REMOVE)
        await engine.put(update, 2, 1, memoryview(b""), commit=True, remember=False)
    assert engine.used_bytes() == 0
    assert engine.get(C1) is None
    assert engine.chunks_of(1, 0) == []
    for index in range(10):
        await write(engine, 0, b"again", chunk=ChunkId(1, index))
    assert os.stat(tmp_path / "target-1/data-17-0").st_size == 9 * 128 * 1024 + 100_000
    assert await content(engine, ChunkId(1, 3)) == b"again"
    engine.close()
    disk.close()


async def test_a_slot_that_is_being_read_is_not_used_again(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    await write(engine, 0, b"a" * MIB)
    state = engine.get(C1)
    assert state is not None and state.committed is not None and state.committed.slot is not None
    slot = state.committed.slot
    slot.pins += 1
    await write(engine, 0, b"b" * MIB)
    await write(engine, 0, b"c" * MIB)
    assert not {0} & {s.committed.slot.number for s in [engine.get(C1)] if s and s.committed and s.committed.slot}
    assert slot.freed
    engine._files.unpin(slot)
    await write(engine, 0, b"d" * MIB)
    state = engine.get(C1)
    assert state is not None and state.committed is not None and state.committed.slot is not None
    assert state.committed.slot.number == 0
    engine.close()
    disk.close()


class FullDisk(LinuxDisk):
    free = 1 << 40

    def space(self) -> Space:
        return Space(1 << 41, self.free)


async def test_full_disk(tmp_path: Path) -> None:
    disk = FullDisk(str(tmp_path))
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 1000))
    disk.free = 300_000 + 1000
    await write(engine, 0, b"a" * 300_000)
    disk.free = 1000
    with pytest.raises(FS3Error) as caught:
        await write(engine, 0, b"b" * 100_000, chunk=ChunkId(1, 1))
    assert caught.value.code is Code.NO_SPACE
    assert engine.get(ChunkId(1, 1)) is None
    assert await content(engine) == b"a" * 300_000
    update = other_update(C1, UpdateKind.REMOVE)
    await engine.put(update, 2, 1, memoryview(b""), commit=True, remember=False)
    await write(engine, 0, b"b" * 300_000, chunk=ChunkId(1, 1))  # the slot that was freed has its space
    engine.close()
    disk.close()


async def test_dump_and_lists(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    chunks = [ChunkId(inode, index) for inode in (2, 1, 300) for index in (1, 0, 7)]
    for chunk in chunks:
        await write(engine, 0, b"x" * (chunk.index + 1), chunk=chunk)
    await write(engine, 0, b"y", chunk=ChunkId(2, 9), commit=False)
    expected = sorted([*chunks, ChunkId(2, 9)])
    metas, more = engine.dump(None, None, 100)
    assert [m.chunk for m in metas] == expected and not more
    seen = []
    after = None
    more = True
    while more:
        page, more = engine.dump(after, None, 4)
        assert len(page) == 4 or not more
        seen.extend(page)
        after = page[-1].chunk
    assert seen == metas
    page, more = engine.dump(ChunkId(1, 0), ChunkId(2, 1), 100)
    assert [m.chunk for m in page] == expected[1:5] and not more
    pending = metas[expected.index(ChunkId(2, 9))]
    assert (pending.version, pending.pending) == (0, 1)
    assert engine.chunks_of(2, 1) == [(ChunkId(2, 1), 2), (ChunkId(2, 7), 8)]
    engine.close()
    disk.close()


async def test_channels_are_stored_with_commits(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    await write(engine, 0, b"abc", tag=RequestTag(1, 1, 7))
    await write(engine, 0, b"abcd", tag=RequestTag(1, 2, 8), commit=False)
    engine.remember(RequestTag(1, 3, 9), UpdateResult(0, 4, 0, 0))
    engine.close()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    found = engine.channels()
    assert [(tag, result.version) for tag, result in found] == [(RequestTag(1, 1, 7), 1), (RequestTag(1, 3, 9), 4)]
    assert found[0][1].chunk_length == 3
    engine.commit(C1, 1, remember=True)
    engine.forget([(1, 1)])
    engine.close()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    assert [tag for tag, _ in engine.channels()] == [RequestTag(1, 2, 8), RequestTag(1, 3, 9)]
    engine.close()
    disk.close()


async def test_sync_is_shared(tmp_path: Path) -> None:
    syncs = 0

    class CountingDisk(LinuxDisk):
        def open_records(self, name: str):  # type: ignore[no-untyped-def]
            records = super().open_records(name)
            sync = records.sync

            async def counted() -> None:
                nonlocal syncs
                syncs += 1
                await sync()

            records.sync = counted  # type: ignore[method-assign]
            return records

    disk = CountingDisk(str(tmp_path))
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await engine.sync()
    assert syncs == 0  # nothing changed
    await write(engine, 0, b"abc")
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(engine.sync)
    assert syncs == 1
    await write(engine, 0, b"abcd")
    await engine.sync()
    assert syncs == 2
    engine.close()
    disk.close()


async def test_tidy_gives_space_back(tmp_path: Path) -> None:
    engine, disk = open_engine(tmp_path)
    for index in range(80):
        await write(engine, 0, b"x" * MIB, chunk=ChunkId(1, index))
    for index in range(80):
        update = other_update(ChunkId(1, index), UpdateKind.REMOVE)
        await engine.put(update, 2, 1, memoryview(b""), commit=True, remember=False)
    await engine.sync()
    before = os.stat(tmp_path / "target-1/data-20-0").st_blocks
    await engine.tidy()
    after = os.stat(tmp_path / "target-1/data-20-0").st_blocks
    if after == before:
        pytest.skip("this file system cannot punch holes")
    assert abs((before - after) * 512 - 16 * MIB) <= 65536  # 64 MiB of free slots stay ready; the file system counts its own
    await write(engine, 0, b"y" * MIB)
    assert await content(engine) == b"y" * MIB
    engine.close()
    disk.close()


async def test_a_pending_append_is_kept_until_its_record_is_replaced() -> None:
    disk = MemoryDisk()
    engine = ChunkEngine(disk, "target-1", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 100)
    await write(engine, 100, b"b" * 100, commit=False)
    disk.crash_after, disk.torn = 0, 0.5
    with pytest.raises(Crash):
        await write(engine, 100, b"c" * 200, commit=False)
    engine = ChunkEngine(disk.reopen(), "target-1", SpaceBudget(disk, 0))
    assert await engine.read_whole(C1, pending=True) == b"a" * 100 + b"b" * 100
    engine.commit(C1, 1, remember=False)
    assert await content(engine) == b"a" * 100 + b"b" * 100
