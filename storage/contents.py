"""The contents of versions: reads and verifies them, and writes the next one by the cheapest way that a crash cannot harm.

- fresh: to a free slot (first writes, whole chunks, and whatever no other way fits; the rest is copied);
- append: bytes behind the length go in place, where nothing that may be needed again lies;
- patch: the bytes of a small overwrite, or the range of a hole, are stored with the record, and laid over what is read until
  they are in place (durability.py);
- cut: a truncation changes the record alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from fs3.api.storage import Update, UpdateKind
from fs3.checksum import BLOCK_SIZE, block_checksums, crc32c
from fs3.errors import Code, FS3Error

from . import blocks
from .data_files import SHIFT_MAX, DataFiles, Piece, size_class
from .page_sums import PageSums, place_of
from .records import Patch, Record, Slot, StoredVersion
from .space import SpaceBudget

PATCH_SIZE_MAX = 64 * 1024
PATCHES_MAX = 256
EMPTY = memoryview(b"")


class Damaged(Exception):
    """A version does not match its checksums. block: one that does not, -1 if unknown."""

    def __init__(self, version: StoredVersion, block: int = -1) -> None:
        super().__init__()
        self.version = version
        self.block = block


def heals(update: Update, base: StoredVersion) -> bool:
    """Whether nothing of a damaged content is left after an update."""
    if update.kind in (UpdateKind.REPLACE, UpdateKind.REMOVE, UpdateKind.LOST):
        return True
    if update.kind is UpdateKind.WRITE:
        return update.offset == 0 and update.length >= base.length
    return update.kind is UpdateKind.TRUNCATE and update.length == 0


def overlay(view: memoryview, start: int, patches: Sequence[Patch], last: int) -> None:
    """Lay the patches up to id `last` over the bytes that begin at `start` of a slot."""
    stop = start + len(view)
    for patch in patches:
        if patch.id > last:
            return
        low, high = patch.offset, patch.end
        if low < stop and high > start:
            low, high = max(low, start), min(high, stop)
            if patch.data:
                view[low - start : high - start] = memoryview(patch.data)[low - patch.offset : high - patch.offset]
            else:
                view[low - start : high - start] = bytes(high - low)


def matches(view: memoryview, version: StoredVersion) -> bool:
    """Whether all of a version's content is right."""
    return blocks.pack(block_checksums(view)) == version.checksums


class Contents:
    """Reads and writes what versions hold. Changes no record."""

    def __init__(self, files: DataFiles, space: SpaceBudget) -> None:
        self._files = files
        self._space = space
        self.pages = PageSums()
        self.next_patch = 1
        self.written_bytes = 0

    # Reading

    async def read(self, version: StoredVersion, start: int, into: memoryview, *, medium: bool = False) -> None:
        """A range of a version. medium: past the page cache. Nothing is verified."""
        slot = version.slot
        assert slot is not None
        patches = slot.patches  # as they are before the read: what is put in place meanwhile is among them
        await self._files.read(slot, start, into, medium=medium)
        if patches:
            overlay(into, start, patches, version.last_patch)

    async def read_whole(self, version: StoredVersion, *, medium: bool = False) -> memoryview:
        """All of a version. Raises Damaged."""
        if version.lost():
            raise Damaged(version)
        if version.slot is None:
            return EMPTY
        view = memoryview(bytearray(version.length))
        await self.read(version, 0, view, medium=medium)
        if not matches(view, version):
            raise Damaged(version)
        return view

    def is_whole(self, version: StoredVersion) -> bool:
        """Whether a version's content is right; waits for the disk."""
        if version.slot is None:
            return True
        view = memoryview(bytearray(version.length))
        try:
            self._files.read_blocking(version.slot, 0, view)
        except FS3Error as error:
            if error.code is not Code.READ_FAILED:
                raise
            return False
        overlay(view, 0, version.slot.patches, version.last_patch)
        return matches(view, version)

    async def _read_block(self, version: StoredVersion, block: int) -> memoryview:
        """One block, verified. Raises Damaged."""
        start = block * BLOCK_SIZE
        view = memoryview(bytearray(min(BLOCK_SIZE, version.length - start)))
        await self.read(version, start, view)
        if crc32c(view) != blocks.at(version.checksums, block):
            raise Damaged(version, block)
        if len(view) == BLOCK_SIZE and version.slot is not None:
            place = place_of(version.slot.shift, version.slot.number, block)
            self.pages.learn(place, blocks.at(version.checksums, block), view)
        return view

    def read_now(self, version: StoredVersion, start: int, into: memoryview) -> bool:
        """As read(), if that needs no waiting; False where it would."""
        slot = version.slot
        assert slot is not None
        if not self._files.read_now(slot, start, into):
            return False
        if slot.patches:
            overlay(into, start, slot.patches, version.last_patch)
        return True

    async def prefetch(self, version: StoredVersion) -> bool:
        """Read a version's bytes into the page cache; whether there is one."""
        assert version.slot is not None
        return await self._files.prefetch(version.slot, version.length)

    # Writing

    async def build(self, record: Record | None, update: Update, made: StoredVersion, data: memoryview) -> Patch | None:
        """Write the content of the version that an update makes of the committed one, into `made`; returns its patch.

        Raises NO_SPACE, DISK_FAILED, Damaged.
        """
        base = record.committed if record is not None else None
        kind = update.kind
        if record is not None and record.damaged and base is not None and not heals(update, base):
            raise Damaged(base)
        if kind is UpdateKind.REMOVE:
            made.removed = True
        elif kind is UpdateKind.REPLACE:
            await self._write_fresh(made, size_class(len(data)), [data], blocks.pack(update.checksums))
        elif kind is UpdateKind.LOST:
            made.length, made.checksums = update.length, blocks.pack(update.checksums)
        elif kind is UpdateKind.TRUNCATE:
            await self._truncate(made, record, base, update)
        elif kind is UpdateKind.PUNCH:
            return await self._punch(made, base, update)
        else:
            return await self._write(made, record, base, update, data)
        return None

    async def _write(
        self, made: StoredVersion, record: Record | None, base: StoredVersion | None, update: Update, data: memoryview
    ) -> Patch | None:
        offset, end = update.offset, update.offset + len(data)
        if base is None or base.slot is None or (offset == 0 and end >= base.length):
            if offset == 0:
                await self._write_fresh(made, size_class(end), [data], blocks.pack(update.checksums))
                return None
            # Nothing but zeros before what is written.
            packed = blocks.overwritten(
                blocks.extended(b"", 0, offset), offset, data, update.checksums, blocks.zeros_head(offset)
            )
            await self._write_fresh(made, size_class(end), [offset, data], packed)
            return None
        slot = base.slot
        if offset >= base.length:
            packed = blocks.extended(base.checksums, base.length, offset)
            if len(data):
                head = blocks.at(packed, offset // BLOCK_SIZE) if offset % BLOCK_SIZE else 0
                packed = blocks.overwritten(packed, offset, data, update.checksums, head)
            await self._append(made, record, base, slot, [offset - base.length, data], end, packed, update.chunk_size)
            return None
        packed = self._overwrite_known(base, slot, offset, data)
        if not packed:
            head, tail = await self._edges(base, offset, end)
            # That may have taught what the block's pages are; then let them go on being known.
            packed = self._overwrite_known(base, slot, offset, data) or blocks.overwritten(
                base.checksums, offset, data, update.checksums, head, tail
            )
        if end <= base.length and len(data) <= min(PATCH_SIZE_MAX, base.length // 4) and self._may_patch(base, len(data)):
            return self._patch(made, base, offset, end, bytes(data), packed)
        await self._copy(made, base, max(size_class(end), slot.shift), offset, [data], end, packed)
        return None

    def _overwrite_known(self, base: StoredVersion, slot: Slot, offset: int, data: memoryview) -> bytes:
        """The checksums after an overwrite inside of one block whose pages are known, without reading it; else nothing."""
        block, start = divmod(offset, BLOCK_SIZE)
        if start + len(data) > BLOCK_SIZE or (block + 1) * BLOCK_SIZE > base.length:
            return b""
        known = blocks.at(base.checksums, block)
        value = self.pages.overwrite(place_of(slot.shift, slot.number, block), known, start, data)
        if value is None:
            return b""
        return base.checksums[: 4 * block] + value.to_bytes(4, "little") + base.checksums[4 * block + 4 :]

    def _may_patch(self, base: StoredVersion, length: int) -> bool:
        """Not without end: what is not in place yet is kept in memory, and each read looks through it."""
        slot = base.slot
        assert slot is not None
        return len(slot.patches) < PATCHES_MAX and slot.patch_bytes + length <= max(base.length // 2, PATCH_SIZE_MAX)

    def _patch(self, made: StoredVersion, base: StoredVersion, offset: int, end: int, data: bytes, packed: bytes) -> Patch:
        made.slot, made.length, made.checksums = base.slot, base.length, packed
        made.stable, made.writes = base.stable, base.writes
        made.last_patch = self.next_patch
        self.next_patch += 1
        return Patch(made.last_patch, offset, end, data)

    async def _punch(self, made: StoredVersion, base: StoredVersion | None, update: Update) -> Patch | None:
        """A hole is a patch of zeros, whatever its size."""
        if base is None or base.slot is None:
            return None
        offset, end = update.offset, min(update.offset + update.length, base.length)
        if end <= offset:
            self._keep(made, base, base.length, base.checksums)
            return None
        head, tail = await self._edges(base, offset, end)
        return self._patch(made, base, offset, end, b"", blocks.zeroed(base.checksums, offset, end, head, tail))

    async def _append(
        self,
        made: StoredVersion,
        record: Record | None,
        base: StoredVersion,
        slot: Slot,
        pieces: list[Piece],
        end: int,
        packed: bytes,
        chunk_size: int,
    ) -> None:
        """Put pieces behind the content."""
        if self._may_append(record, base, slot, end):
            self._space.take(_space_of(pieces))
            made.writes = await self._files.write(slot, base.length, pieces)
            self.written_bytes += end - base.length
            made.slot, made.length, made.checksums, made.last_patch = slot, end, packed, base.last_patch
            made.stable = False
            return
        # It outgrows its slot: more appends are likely to come, so take room for a whole chunk at once.
        shift = slot.shift if end <= slot.size else max(size_class(end), min(size_class(chunk_size), SHIFT_MAX))
        await self._copy(made, base, shift, base.length, pieces, end, packed)

    @staticmethod
    def _may_append(record: Record | None, base: StoredVersion, slot: Slot, end: int) -> bool:
        """Whether bytes behind the committed length may be written in place: there is room, and nobody reads or needs
        what is there. A pending version that was appended in place is needed until the record of its successor is written.
        """
        if end > slot.size or slot.pins or base.length < slot.guard:
            return False
        pending = record.pending if record is not None else None
        if pending is not None and pending.slot is slot and pending.length > base.length:
            return False
        # A patch there would be laid over what is written now.
        return not any(patch.end > base.length for patch in slot.stored_patches())

    async def _truncate(
        self, made: StoredVersion, record: Record | None, base: StoredVersion | None, update: Update
    ) -> None:
        length = update.length
        if length == 0:
            return
        if base is None or base.slot is None:
            await self._write_fresh(made, size_class(length), [length], blocks.extended(b"", 0, length))
            return
        slot = base.slot
        if length > base.length:
            packed = blocks.extended(base.checksums, base.length, length)
            await self._append(made, record, base, slot, [length - base.length], length, packed, length)
            return
        start = length - length % BLOCK_SIZE
        last = await self._read_block(base, start // BLOCK_SIZE) if length > start else EMPTY
        packed = blocks.cut(base.checksums, length, last[: length - start])
        shift = size_class(length)
        if shift + 2 <= slot.shift:
            await self._copy(made, base, shift, length, [], base.length, packed)
        else:
            self._keep(made, base, length, packed)

    @staticmethod
    def _keep(made: StoredVersion, base: StoredVersion, length: int, packed: bytes) -> None:
        """The beginning of what the base holds."""
        made.slot, made.length, made.checksums, made.last_patch = base.slot, length, packed, base.last_patch
        made.stable, made.writes = base.stable, base.writes

    async def _edges(self, base: StoredVersion, offset: int, end: int) -> tuple[int, memoryview]:
        """Of an overwrite that begins inside the content: the checksum of what stays before it in its first block, and the
        bytes that stay behind it in its last one. Verifies these blocks."""
        first, within = divmod(offset, BLOCK_SIZE)
        last = (end - 1) // BLOCK_SIZE
        head = 0
        tail = block = EMPTY
        if within:
            block = await self._read_block(base, first)
            head = crc32c(block[:within])
        if end % BLOCK_SIZE and end < base.length:
            if last != first or not within:
                block = await self._read_block(base, last)
            tail = block[end - last * BLOCK_SIZE :]
        return head, tail

    async def _copy(
        self,
        made: StoredVersion,
        base: StoredVersion,
        shift: int,
        head: int,
        pieces: Sequence[Piece],
        tail_at: int,
        packed: bytes,
    ) -> None:
        """A fresh slot with the base's first `head` bytes, then `pieces`, then the base's bytes from tail_at on.

        What is copied is not verified, and keeps its checksums: damage stays what it is.
        """
        old = memoryview(bytearray(base.length if tail_at < base.length else head))
        await self.read(base, 0, old)
        everything = [*_with_holes(old[:head]), *pieces]
        if tail_at < base.length:
            everything += _with_holes(old[tail_at:])
        await self._write_fresh(made, shift, everything, packed)

    async def _write_fresh(self, made: StoredVersion, shift: int, pieces: Sequence[Piece], packed: bytes) -> None:
        length = sum([piece if isinstance(piece, int) else len(piece) for piece in pieces])
        made.length, made.checksums = length, packed
        if length == 0:
            return
        slots = self._files.slots(shift)
        number, fresh = slots.allocate()
        if fresh:
            try:
                self._space.take(_space_of(pieces))
            except FS3Error:
                slots.release(number, hole=True)
                raise
        slot = Slot(shift, number)
        try:
            made.writes = await self._files.write(slot, 0, pieces)
        except BaseException:
            self._files.free(slot)
            raise
        self.written_bytes += length
        made.slot, made.stable = slot, False


def _space_of(pieces: Sequence[Piece]) -> int:
    """What they take up on the disk, at least."""
    return sum([len(piece) for piece in pieces if not isinstance(piece, int)])


def _with_holes(data: memoryview) -> list[Piece]:
    """Bytes cut into pieces, of which large ranges of zeros take no space."""
    if len(data) < 2 * BLOCK_SIZE:
        return [data] if len(data) else []
    pieces: list[Piece] = []
    start = 0
    for at in range(0, len(data), BLOCK_SIZE):
        block = data[at : at + BLOCK_SIZE]
        if block[0] == 0 and block[-1] == 0 and block == blocks.ZEROS[: len(block)]:
            if at > start:
                pieces.append(data[start:at])
            last = pieces[-1] if pieces else None
            if isinstance(last, int):
                pieces[-1] = last + len(block)
            else:
                pieces.append(len(block))
            start = at + len(block)
    if start < len(data):
        pieces.append(data[start:])
    return pieces
