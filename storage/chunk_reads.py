"""What the chunk engine reads, verifies, and knows to be damaged."""

from __future__ import annotations

from fs3.checksum import BLOCK_SIZE, crc32c
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId

from . import blocks
from .chunk_table import ChunkTable
from .contents import Contents, Damaged
from .data_files import DataFiles
from .engine import Engine, ReadData
from .page_sums import PAGE_SIZE, cover, match, place_of
from .records import Slot, StoredVersion

_EMPTY = memoryview(b"")


class ChunkReads(Engine):
    """The reading half of ChunkEngine. name: of the target, for people."""

    def __init__(self, name: str, table: ChunkTable, files: DataFiles, contents: Contents) -> None:
        self._name = name
        self._table = table
        self._files = files
        self._contents = contents
        self._pages = contents.pages
        self._scratch = memoryview(bytearray(BLOCK_SIZE))  # for what is read without waiting

    async def read_into(self, chunk: ChunkId, offset: int, into: memoryview) -> ReadData:
        found = self.read_now(chunk, offset, into)
        if found is not None:
            return found
        record = self._table.find(chunk)
        version = record.committed if record is not None else None
        assert version is not None, "what has no bytes needs no waiting"
        return await self._read_version(chunk, version, offset, into)

    def read_now(self, chunk: ChunkId, offset: int, into: memoryview) -> ReadData | None:
        record = self._table.find(chunk)
        version = record.committed if record is not None else None
        if version is None:
            return ReadData(_EMPTY, (), 0, 0)
        assert record is not None
        if record.damaged:
            raise self._damaged(chunk, -1)
        end = min(offset + len(into), version.length)
        slot = version.slot
        if end <= offset or slot is None:
            return ReadData(_EMPTY, (), version.length, version.number)
        data = into[: end - offset]
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        if offset % BLOCK_SIZE or (end % BLOCK_SIZE and end != version.length):
            checksums = self._read_cut(chunk, version, slot, offset, data)
            return ReadData(data, checksums, version.length, version.number) if checksums else None
        if not self._contents.read_now(version, offset, data):
            return None
        checksums = blocks.unpack(version.checksums[4 * first : 4 * last + 4])
        return ReadData(data, checksums, version.length, version.number)

    def read_quickly(self, inode: int, index: int, offset: int, into: memoryview) -> bytes | None:
        record = self._table.known(inode, index)
        if record is None or record.pending is not None:
            return None
        version = record.committed
        slot = version.slot if version is not None else None
        if version is None or slot is None or slot.damaged or slot.patches:
            return None
        length = len(into)
        end = offset + length
        if end > version.length or not length:
            return None
        block, start = divmod(offset, BLOCK_SIZE)
        if not start and (not end % BLOCK_SIZE or end == version.length):
            if self._files.read_now(slot, offset, into):
                return version.checksums[4 * block : 4 * -(-end // BLOCK_SIZE)]
        elif length == PAGE_SIZE and not offset % PAGE_SIZE:
            expected = int.from_bytes(version.checksums[4 * block : 4 * block + 4], "little")
            found = self._pages.page(place_of(slot.shift, slot.number, block), expected, start // PAGE_SIZE)
            if found is not None and self._files.read_now(slot, offset, into):
                return found
        return None

    def _read_cut(
        self, chunk: ChunkId, version: StoredVersion, slot: Slot, offset: int, data: memoryview
    ) -> tuple[int, ...]:
        """Read a range whose first or last block is wanted in part only; its checksums, none where it would have to wait."""
        end = offset + len(data)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        if first == last:
            value = self._read_part(chunk, version, slot, offset, data)
            return () if value is None else (value,)
        values = list(blocks.unpack(version.checksums[4 * first : 4 * last + 4]))
        start, stop = 0, len(data)  # of the whole blocks in between
        if offset % BLOCK_SIZE:
            start = BLOCK_SIZE - offset % BLOCK_SIZE
            value = self._read_part(chunk, version, slot, offset, data[:start])
            if value is None:
                return ()
            values[0] = value
        if end % BLOCK_SIZE and end != version.length:
            stop = last * BLOCK_SIZE - offset
            value = self._read_part(chunk, version, slot, last * BLOCK_SIZE, data[stop:])
            if value is None:
                return ()
            values[-1] = value
        if start < stop and not self._contents.read_now(version, offset + start, data[start:stop]):
            return ()
        return tuple(values)

    def _read_part(self, chunk: ChunkId, version: StoredVersion, slot: Slot, offset: int, data: memoryview) -> int | None:
        """Read a part of one block; its checksum, None where it would have to wait."""
        block, start = divmod(offset, BLOCK_SIZE)
        stop = start + len(data)
        expected = blocks.at(version.checksums, block)
        at = block * BLOCK_SIZE
        place = place_of(slot.shift, slot.number, block)
        end = min(BLOCK_SIZE, version.length - at)
        sums = self._pages.find(place, expected)
        if sums is not None:
            low, high = cover(start, stop, end)
            if low == start and high == stop:
                if not self._contents.read_now(version, at + start, data):
                    return None
                if len(data) <= PAGE_SIZE:
                    return sums[start // PAGE_SIZE]  # verified by who reads it
                pages = data
            else:
                pages = self._scratch[: high - low]
                if not self._contents.read_now(version, at + low, pages):
                    return None
                data[:] = pages[start - low : stop - low]
            if match(sums, low, pages):
                return crc32c(data)
        whole = self._scratch[:end]
        if not self._contents.read_now(version, at, whole):
            return None
        if crc32c(whole) != expected:
            raise self._damaged(chunk, block)
        self._pages.learn(place, expected, whole)
        data[:] = whole[start:stop]
        return crc32c(data)

    async def _read_version(self, chunk: ChunkId, version: StoredVersion, offset: int, into: memoryview) -> ReadData:
        """Wait for the disk."""
        end = min(offset + len(into), version.length)
        first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        start, stop = first * BLOCK_SIZE, min((last + 1) * BLOCK_SIZE, version.length)
        checksums = blocks.unpack(version.checksums[4 * first : 4 * last + 4])
        data = into[: end - offset]
        if start == offset and stop == end:
            await self._contents.read(version, start, data)
        else:
            view = memoryview(bytearray(stop - start))
            await self._contents.read(version, start, view)
            data[:] = view[offset - start : end - start]
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

    async def prefetch(self, chunk: ChunkId) -> tuple[int, bool]:
        record = self._table.find(chunk)
        version = record.committed if record is not None else None
        if record is None or version is None or version.slot is None or record.damaged or not version.length:
            return 0, True
        length = version.length
        cached = await self._contents.prefetch(version)
        return (length if cached else 0), cached

    async def read_whole(self, chunk: ChunkId, *, pending: bool) -> memoryview:
        record = self._table.find(chunk)
        assert record is not None
        version = record.pending if pending else record.committed
        assert version is not None
        if record.damaged and not pending:
            raise self._damaged(chunk, -1)
        try:
            return await self._contents.read_whole(version)
        except Damaged:
            raise self._damaged(chunk, -1) from None

    async def verify(self, chunk: ChunkId) -> bool:
        while True:
            record = self._table.find(chunk)
            version = record.committed if record is not None else None
            if record is None or version is None:
                return True
            try:
                await self._contents.read_whole(version, medium=True)
                good = True
            except Damaged:
                good = False
            except FS3Error as error:
                if error.code is not Code.READ_FAILED:
                    raise
                good = False
            if record.committed is version:
                break
        if version.slot is not None:
            self._table.mark_damaged(chunk, version.slot, not good)
        return good

    def damaged(self) -> list[ChunkId]:
        return sorted(self._table.damaged)

    def _damaged(self, chunk: ChunkId, block: int) -> FS3Error:
        return FS3Error(Code.CHECKSUM, f"{self._name}: chunk {chunk.inode:x}.{chunk.index} block {block} is damaged")
