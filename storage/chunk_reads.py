"""What the chunk engine reads, verifies, and knows to be damaged."""

from __future__ import annotations

from abc import abstractmethod

from fs3.checksum import BLOCK_SIZE, block_checksums, crc32c
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId

from . import blocks
from .allocator import SlotAllocator
from .disk import Disk, DiskFile
from .engine import Engine, ReadData
from .index import ChunkIndex
from .records import Slot, StoredVersion

_EMPTY = memoryview(b"")


class SizeClass:
    """The data file of one slot size."""

    def __init__(self, shift: int, file: DiskFile) -> None:
        self.shift = shift
        self.file = file
        self.slots = SlotAllocator()
        self.dirty = False


class ChunkReads(Engine):
    """The reading half of ChunkEngine."""

    _disk: Disk
    _folder: str
    _index: ChunkIndex
    _bad: set[ChunkId]

    @abstractmethod
    def _class(self, shift: int) -> SizeClass: ...

    @abstractmethod
    def _unpin(self, slot: Slot) -> None: ...

    async def read(self, chunk: ChunkId, offset: int, length: int) -> ReadData:
        while True:
            record = self._index.find(chunk)
            version = record.committed if record is not None else None
            if version is None:
                return ReadData(_EMPTY, (), 0, 0)
            assert record is not None
            if record.damaged:
                raise self._damaged(chunk, -1)
            edits = version.slot.edits if version.slot is not None else 0
            found = await self._read_version(chunk, version, offset, length)
            if version.slot is None or version.slot.edits == edits:
                return found
            # A patch was applied under a read that had to wait for the disk.

    async def _read_version(self, chunk: ChunkId, version: StoredVersion, offset: int, length: int) -> ReadData:
        end = min(offset + length, version.length)
        if end <= offset or version.slot is None:
            return ReadData(_EMPTY, (), version.length, version.number)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        start, stop = first * BLOCK_SIZE, min((last + 1) * BLOCK_SIZE, version.length)
        checksums = blocks.unpack(version.checksums[4 * first : 4 * last + 4])
        view = memoryview(bytearray(stop - start))
        await self._read_slot(version.slot, start, view)
        data = view[offset - start : end - start]
        if start != offset or stop != end:
            checksums = self._recut(chunk, view, data, checksums, offset - start, stop - end)
        return ReadData(data, checksums, version.length, version.number)

    def _recut(
        self, chunk: ChunkId, view: memoryview, data: memoryview, checksums: tuple[int, ...], before: int, behind: int
    ) -> tuple[int, ...]:
        """The checksums of `data`, whose first or last block is sent in part only, and is verified here therefore."""
        values = list(checksums)
        count = len(values)
        split = {0} if before else set()
        if behind:
            split.add(count - 1)
        for block in split:
            if crc32c(view[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]) != values[block]:
                raise self._damaged(chunk, block)
        if count == 1:
            return (crc32c(data),)
        if before:
            values[0] = crc32c(data[: BLOCK_SIZE - before])
        if behind:
            values[-1] = crc32c(data[len(data) - (len(view) - behind - (count - 1) * BLOCK_SIZE) :])
        return tuple(values)

    async def read_whole(self, chunk: ChunkId, *, pending: bool) -> memoryview:
        record = self._index.find(chunk)
        assert record is not None
        version = record.pending if pending else record.committed
        assert version is not None
        if (record.damaged and not pending) or version.lost():
            raise self._damaged(chunk, -1)
        if version.slot is None:
            return _EMPTY
        view = memoryview(bytearray(version.length))
        await self._read_slot(version.slot, 0, view)
        if version.patch is not None:
            patch = version.patch
            view[patch.offset : patch.offset + len(patch.data)] = patch.data
        if blocks.pack(block_checksums(view)) != version.checksums:
            raise self._damaged(chunk, -1)
        return view

    async def verify(self, chunk: ChunkId) -> bool:
        while True:
            record = self._index.find(chunk)
            version = record.committed if record is not None else None
            if record is None or version is None:
                return True
            if version.slot is None:
                return not version.lost()
            edits = version.slot.edits
            view = memoryview(bytearray(version.length))
            try:
                await self._read_slot(version.slot, 0, view)
                good = blocks.pack(block_checksums(view)) == version.checksums
            except FS3Error as error:
                if error.code is not Code.READ_FAILED:
                    raise
                good = False
            if record.committed is version and version.slot.edits == edits:
                break
        if good:
            record.damaged = False
            self._bad.discard(chunk)
        else:
            self._found_damaged(chunk)
        return good

    def damaged(self) -> list[ChunkId]:
        return sorted(self._bad)

    def _found_damaged(self, chunk: ChunkId) -> None:
        record = self._index.find(chunk)
        assert record is not None
        record.damaged = True
        self._bad.add(chunk)

    async def _read_blocks(self, version: StoredVersion, slot: Slot, first: int, count: int) -> memoryview:
        """Blocks of a version, verified."""
        start = first * BLOCK_SIZE
        view = memoryview(bytearray(min(count * BLOCK_SIZE, version.length - start)))
        await self._read_slot(slot, start, view)
        for block in range(count):
            if crc32c(view[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]) != blocks.at(version.checksums, first + block):
                raise FS3Error(Code.CHECKSUM, f"{self._folder}: block {first + block} of a chunk is damaged")
        return view

    async def _read_slot(self, slot: Slot, offset: int, into: memoryview) -> None:
        slot.pins += 1
        try:
            await self._class(slot.shift).file.read(slot.offset + offset, into)
        finally:
            self._unpin(slot)

    def _damaged(self, chunk: ChunkId, block: int) -> FS3Error:
        return FS3Error(
            Code.CHECKSUM, f"{self._disk.name}/{self._folder}: chunk {chunk.inode:x}.{chunk.index} block {block} is damaged"
        )
