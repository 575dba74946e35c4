"""The chunk engine: records in an ordered store, contents in sparse files of size classes.

The content of a chunk lies in a slot of a size class (a power of two from 64 KiB to 64 MiB) in that class's data file. What
is committed is never overwritten where a crash could tell, so every write takes one of these ways:

- fresh: the content goes to a free slot (first writes, whole chunks, and whatever no other way fits; the rest is copied);
- append: bytes behind the committed length go in place. After a crash nobody reads what lies behind the length;
- patch: a small overwrite is stored, with its bytes, in the record store, and applied in place right after its commit.
  When the engine is opened the last patch of each chunk is applied again;
- cut: a truncation changes the record alone.

Data is written before the record that speaks of it. Records are loaded at the start and kept in memory; which slots are
free follows from them. A slot is free again when no record and no read under way needs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import trio

from fs3.api.storage import ChunkMeta, Update, UpdateKind, UpdateResult
from fs3.checksum import BLOCK_SIZE, Buffer, crc32c, piece_checksums
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag

from . import blocks
from .allocator import SlotAllocator, runs
from .chunk_reads import ChunkReads, SizeClass
from .disk import Disk
from .index import ChunkIndex
from .records import (
    CHANNEL,
    CHUNK,
    PATCH,
    Patch,
    Record,
    Slot,
    StoredVersion,
    channel_key,
    chunk_key,
    decode_channel,
    decode_patch,
    decode_record,
    encode_channel,
    encode_patch,
    encode_record,
    patch_key,
)
from .space import SpaceBudget

logger = logging.getLogger("fs3.storage.engine")

SHIFT_MIN = 16
SHIFT_MAX = 26
PATCH_SIZE_MAX = 64 * 1024
_EMPTY = memoryview(b"")
_PUNCH_BYTES_KEPT = 64 * 1024 * 1024
_PUNCH_SLOTS_PER_TURN = 256


def size_class(length: int) -> int:
    """The shift of the smallest slot that holds `length` bytes."""
    return max(SHIFT_MIN, (length - 1).bit_length()) if length > 0 else SHIFT_MIN


class ChunkEngine(ChunkReads):
    """The chunks of one target, in the folder `folder` of a disk. Opened by the constructor."""

    def __init__(self, disk: Disk, folder: str, space: SpaceBudget) -> None:
        super().__init__()
        self._disk = disk
        self._folder = folder
        self._space = space
        self._records = disk.open_records(f"{folder}/records")
        self._classes: dict[int, SizeClass] = {}
        self._index = ChunkIndex()
        self._pending: set[ChunkId] = set()
        self._bad: set[ChunkId] = set()
        self._channels: list[tuple[RequestTag, UpdateResult]] = []
        self._changes = 0  # counts what sync() has to make durable
        self._synced = 0
        self._sync_lock = trio.Lock()
        self._load()

    # Opening

    def _load(self) -> None:
        used: dict[int, set[int]] = {}
        patches: list[tuple[ChunkId, bytes]] = []
        for key, value in self._records.load():
            kind = key[:1]
            if kind == CHUNK:
                chunk = ChunkId.unpack(key[1:])
                record = decode_record(value)
                self._index.insert(chunk, record)
                for version in (record.committed, record.pending):
                    if version is not None and version.slot is not None:
                        used.setdefault(version.slot.shift, set()).add(version.slot.number)
                if record.pending is not None:
                    self._pending.add(chunk)
                if record.committed is not None and record.committed.lost():
                    self._found_damaged(chunk)
            elif kind == PATCH:
                patches.append((ChunkId.unpack(key[1:]), value))
            elif kind == CHANNEL:
                self._channels.append(decode_channel(key, value))
        for name in self._disk.files(self._folder):
            if name.startswith("data-"):
                used.setdefault(int(name[5:]), set())
        for shift, numbers in used.items():
            self._class(shift).slots = SlotAllocator(numbers)
        for chunk, value in patches:
            self._load_patch(chunk, value)

    def _load_patch(self, chunk: ChunkId, value: bytes) -> None:
        number, patch = decode_patch(value)
        record = self._index.find(chunk)
        committed = record.committed if record is not None else None
        pending = record.pending if record is not None else None
        if pending is not None and pending.patched and pending.number == number:
            pending.patch = patch
        elif committed is not None and committed.patched and committed.number == number:
            self._apply(committed, patch)
        else:
            self._records.write((), (patch_key(chunk),))
            return
        assert record is not None
        record.patch_stored = True

    def _class(self, shift: int) -> SizeClass:
        found = self._classes.get(shift)
        if found is None:
            assert SHIFT_MIN <= shift <= SHIFT_MAX
            file = self._disk.open_file(f"{self._folder}/data-{shift}")
            found = self._classes[shift] = SizeClass(shift, file)
        return found

    def close(self) -> None:
        for entry in self._classes.values():
            entry.file.close()
        self._records.close()

    # The index

    def get(self, chunk: ChunkId) -> Record | None:
        return self._index.find(chunk)

    def pending(self) -> list[ChunkId]:
        return sorted(self._pending)

    def chunks_of(self, inode: int, first_index: int) -> list[tuple[ChunkId, int]]:
        return self._index.chunks_of(inode, first_index)

    def dump(self, after: ChunkId | None, until: ChunkId | None, limit: int) -> tuple[list[ChunkMeta], bool]:
        return self._index.dump(after, until, limit)

    def used_bytes(self) -> int:
        return sum(entry.slots.in_use << shift for shift, entry in self._classes.items())

    # Slots

    def _allocate(self, shift: int, length: int) -> Slot:
        entry = self._class(shift)
        number, fresh = entry.slots.allocate()
        if fresh:
            try:
                self._space.take(length)
            except FS3Error:
                entry.slots.release(number)
                raise
        return Slot(shift, number)

    def _unpin(self, slot: Slot) -> None:
        slot.pins -= 1
        if slot.freed and slot.pins == 0:
            self._class(slot.shift).slots.release(slot.number)

    def _free(self, slot: Slot) -> None:
        assert not slot.freed
        slot.freed = True
        if slot.pins == 0:
            self._class(slot.shift).slots.release(slot.number)

    async def tidy(self) -> None:
        for shift, entry in list(self._classes.items()):
            await self._punch(entry, _PUNCH_BYTES_KEPT >> shift, _PUNCH_SLOTS_PER_TURN)

    async def _punch(self, entry: SizeClass, keep: int, limit: int) -> None:
        numbers = entry.slots.take_for_punch(keep, limit)
        if not numbers:
            return
        try:
            for first, count in runs(sorted(numbers)):
                await entry.file.punch(first << entry.shift, count << entry.shift)
        finally:
            entry.slots.punched(numbers)

    # Writing

    async def put(
        self, update: Update, version: int, chain_version: int, data: memoryview, *, commit: bool, remember: bool
    ) -> StoredVersion:
        try:
            fresh = await self._build(update, version, chain_version, data)
        except FS3Error as error:
            if error.code is not Code.NO_SPACE:
                raise
            for entry in self._classes.values():  # what free slots hold may suffice
                await self._punch(entry, 0, 1 << 30)
            fresh = await self._build(update, version, chain_version, data)
        try:
            self._install(update.chunk, fresh, commit, remember)
        except BaseException:
            record = self._index.find(update.chunk)
            base = record.committed if record is not None else None
            if fresh.slot is not None and (base is None or base.slot is not fresh.slot):
                self._free(fresh.slot)
            raise
        return fresh

    async def _build(self, update: Update, version: int, chain_version: int, data: memoryview) -> StoredVersion:
        """Write the content of the version that the update makes of the committed one."""
        record = self._index.find(update.chunk)
        base = record.committed if record is not None else None
        made = StoredVersion(version, chain_version, 0, b"", update.tag)
        kind = update.kind
        if record is not None and record.damaged and base is not None and not _heals(update, base):
            raise self._damaged(update.chunk, -1)
        if kind is UpdateKind.REMOVE:
            made.removed = True
        elif kind is UpdateKind.REPLACE:
            await self._write_fresh(made, size_class(len(data)), [data], blocks.pack(update.checksums))
        elif kind is UpdateKind.LOST:
            made.length, made.checksums = update.length, blocks.pack(update.checksums)
        elif kind is UpdateKind.PUNCH:
            await self._zero(made, base, update)
        elif kind is UpdateKind.TRUNCATE:
            await self._truncate(made, base, update)
        else:
            await self._write(made, base, update, data)
        return made

    async def _write(self, made: StoredVersion, base: StoredVersion | None, update: Update, data: memoryview) -> None:
        offset, end = update.offset, update.offset + len(data)
        if base is None or base.slot is None or (offset == 0 and end >= base.length):
            if offset == 0:
                await self._write_fresh(made, size_class(end), [data], blocks.pack(update.checksums))
                return
            # Nothing but zeros before what is written.
            packed = blocks.overwritten(
                blocks.extended(b"", 0, offset), offset, data, update.checksums, blocks.zeros_head(offset)
            )
            await self._write_fresh(made, size_class(end), [*blocks.zeros(offset), data], packed)
        elif offset >= base.length:
            await self._append(made, base, update, data)
        elif end <= base.length and len(data) <= min(PATCH_SIZE_MAX, base.length // 4):
            made.slot, made.length = base.slot, base.length
            made.checksums = await self._merge(base, base.slot, update, data)
            made.patch, made.patched = Patch(offset, bytes(data)), True
        else:
            packed = await self._merge(base, base.slot, update, data)
            await self._copy(made, base, max(size_class(end), base.slot.shift), offset, [data], end, packed)

    async def _append(self, made: StoredVersion, base: StoredVersion, update: Update, data: memoryview) -> None:
        slot = base.slot
        assert slot is not None
        offset, end = update.offset, update.offset + len(data)
        packed = blocks.extended(base.checksums, base.length, offset)
        if len(data):
            head = blocks.at(packed, offset // BLOCK_SIZE) if offset % BLOCK_SIZE else 0
            packed = blocks.overwritten(packed, offset, data, update.checksums, head)
        parts = [*blocks.zeros(offset - base.length), data] if offset > base.length else [data]
        if self._may_append(update.chunk, base, end):
            self._space.take(end - base.length)
            entry = self._class(slot.shift)
            await entry.file.write(slot.offset + base.length, parts)
            entry.dirty = True
            made.slot, made.length, made.checksums = slot, end, packed
            return
        # It outgrows its slot: more appends are likely to come, so take room for a whole chunk at once.
        shift = max(size_class(end), min(size_class(update.chunk_size), SHIFT_MAX))
        await self._copy(made, base, shift, base.length, parts, end, packed)

    def _may_append(self, chunk: ChunkId, base: StoredVersion, end: int) -> bool:
        """Whether bytes behind the committed length may be written in place: there is room, and nobody reads or needs
        what is there. A pending version that was appended in place is needed until the record of its successor is written.
        """
        slot = base.slot
        assert slot is not None
        record = self._index.find(chunk)
        pending = record.pending if record is not None else None
        needed = pending is not None and pending.slot is slot and pending.length > base.length
        return end <= slot.size and not slot.pins and not needed

    async def _truncate(self, made: StoredVersion, base: StoredVersion | None, update: Update) -> None:
        length = update.length
        if length == 0:
            return
        if base is None or base.slot is None:
            await self._write_fresh(made, size_class(length), list(blocks.zeros(length)), blocks.extended(b"", 0, length))
            return
        slot = base.slot
        if length > base.length:
            packed = blocks.extended(base.checksums, base.length, length)
            parts = list(blocks.zeros(length - base.length))
            if self._may_append(update.chunk, base, length):
                self._space.take(length - base.length)
                entry = self._class(slot.shift)
                await entry.file.write(slot.offset + base.length, parts)
                entry.dirty = True
                made.slot, made.length, made.checksums = slot, length, packed
            else:
                await self._copy(made, base, size_class(length), base.length, parts, length, packed)
            return
        start = length - length % BLOCK_SIZE
        last = await self._read_blocks(base, slot, start // BLOCK_SIZE, 1) if length > start else _EMPTY
        packed = blocks.cut(base.checksums, length, last[: length - start])
        shift = size_class(length)
        if shift + 2 <= slot.shift:
            await self._copy(made, base, shift, length, [], base.length, packed)
        else:
            made.slot, made.length, made.checksums = slot, length, packed

    async def _zero(self, made: StoredVersion, base: StoredVersion | None, update: Update) -> None:
        """Punching, as an overwrite with zeros: its space is not given back."""
        zeros = memoryview(bytes(max(0, min(update.length, (base.length if base is not None else 0) - update.offset))))
        if base is not None and len(zeros):
            await self._write(
                made, base, replace(update, length=len(zeros), checksums=piece_checksums(zeros, update.offset)), zeros
            )
        elif base is not None:
            made.slot, made.length, made.checksums = base.slot, base.length, base.checksums

    async def _merge(self, base: StoredVersion, slot: Slot, update: Update, data: memoryview) -> bytes:
        """The checksums after an overwrite that begins inside the content; verifies the blocks that it splits."""
        offset, end = update.offset, update.offset + len(data)
        first, within = divmod(offset, BLOCK_SIZE)
        last = (end - 1) // BLOCK_SIZE
        head = 0
        block = _EMPTY
        if within:
            block = await self._read_blocks(base, slot, first, 1)
            head = crc32c(block[:within])
        tail = _EMPTY
        if end % BLOCK_SIZE and end < base.length:
            if last != first or not within:
                block = await self._read_blocks(base, slot, last, 1)
            tail = block[end - last * BLOCK_SIZE :]
        return blocks.overwritten(base.checksums, offset, data, update.checksums, head, tail)

    async def _copy(
        self,
        made: StoredVersion,
        base: StoredVersion,
        shift: int,
        head: int,
        parts: Sequence[Buffer],
        tail_at: int,
        packed: bytes,
    ) -> None:
        """A fresh slot with the base's first `head` bytes, then `parts`, then the base's bytes from tail_at on."""
        assert base.slot is not None
        old = memoryview(bytearray(base.length if tail_at < base.length else head))
        await self._read_slot(base.slot, 0, old)
        everything = [old[:head], *parts]
        if tail_at < base.length:
            everything.append(old[tail_at:])
        await self._write_fresh(made, shift, everything, packed)

    async def _write_fresh(self, made: StoredVersion, shift: int, parts: Sequence[Buffer], packed: bytes) -> None:
        length = sum([len(part) for part in parts])
        made.length, made.checksums = length, packed
        if length == 0:
            return
        slot = self._allocate(shift, length)
        entry = self._class(shift)
        try:
            await entry.file.write(slot.offset, parts)
        except BaseException:
            self._free(slot)
            raise
        entry.dirty = True
        made.slot = slot

    def _install(self, chunk: ChunkId, fresh: StoredVersion, commit: bool, remember: bool) -> None:
        """Write the record of a version whose content is in place, then let go of what it supersedes."""
        record = self._index.find(chunk) or Record()
        committed = fresh if commit else record.committed
        pending = None if commit else fresh
        key = chunk_key(chunk)
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[bytes] = []
        if commit and fresh.removed:
            deletes.append(key)
            committed = None
        else:
            puts.append((key, encode_record(committed, pending)))
        patch_stored = record.patch_stored
        if fresh.patch is not None:
            if record.pending is not fresh:
                puts.append((patch_key(chunk), encode_patch(fresh.number, fresh.patch)))
            patch_stored = True
        elif patch_stored and commit:
            deletes.append(patch_key(chunk))
            patch_stored = False
        if commit and remember:
            puts.append(_channel_record(fresh))
        self._records.write(puts, deletes)
        self._changes += 1
        self._settle(chunk, record, committed, pending, patch_stored)
        if commit and fresh.patch is not None:
            self._apply(fresh, fresh.patch)

    def commit(self, chunk: ChunkId, chain_version: int, *, remember: bool) -> StoredVersion:
        record = self._index.find(chunk)
        assert record is not None and record.pending is not None, "commit of a chunk without a pending version"
        fresh = record.pending
        former_chain_version, fresh.chain_version = fresh.chain_version, chain_version
        try:
            self._install(chunk, fresh, True, remember)
        except BaseException:
            fresh.chain_version = former_chain_version
            raise
        return fresh

    def drop_pending(self, chunk: ChunkId) -> None:
        record = self._index.find(chunk)
        if record is None or record.pending is None:
            return
        # A patch that is stored belonged to the pending version, or is applied already.
        deletes = [patch_key(chunk)] if record.patch_stored else []
        if record.committed is None:
            self._records.write((), [chunk_key(chunk), *deletes])
        else:
            self._records.write([(chunk_key(chunk), encode_record(record.committed, None))], deletes)
        self._changes += 1
        self._settle(chunk, record, record.committed, None, False)

    def _settle(
        self,
        chunk: ChunkId,
        record: Record,
        committed: StoredVersion | None,
        pending: StoredVersion | None,
        patch_stored: bool,
    ) -> None:
        """Bring memory in line with what was written, and free the slots that are not needed any more."""
        kept = [version.slot for version in (committed, pending) if version is not None and version.slot is not None]
        for former in {id(v.slot): v.slot for v in (record.committed, record.pending) if v is not None and v.slot}.values():
            if former not in kept:
                self._free(former)
        if record.committed is None and record.pending is None:
            if committed is None and pending is None:
                return
            self._index.insert(chunk, record)
        if committed is not record.committed:
            before = record.committed.slot if record.committed is not None else None
            same = record.damaged and committed is not None and before is not None and committed.slot is before
            record.damaged = same or (committed is not None and committed.lost())
            (self._bad.add if record.damaged else self._bad.discard)(chunk)
        record.committed, record.pending, record.patch_stored = committed, pending, patch_stored
        if pending is not None:
            self._pending.add(chunk)
        else:
            self._pending.discard(chunk)
            if committed is None:
                self._index.delete(chunk)

    def _apply(self, version: StoredVersion, patch: Patch) -> None:
        """Bring a committed patch to its place. No await: nobody sees the record without the bytes."""
        slot = version.slot
        assert slot is not None
        entry = self._class(slot.shift)
        slot.edits += 1
        entry.dirty = True
        entry.file.write_at_once(slot.offset + patch.offset, patch.data)
        version.patch = None

    # Durability

    async def sync(self, chunks: Sequence[ChunkId] | None = None) -> None:
        wanted = self._changes
        async with self._sync_lock:
            if self._synced >= wanted:
                return  # one that began after our call did it for us
            reached = self._changes
            dirty = [entry for entry in self._classes.values() if entry.dirty]
            for entry in dirty:
                entry.dirty = False
            try:
                if len(dirty) == 1:
                    await dirty[0].file.sync()
                elif dirty:
                    async with trio.open_nursery() as nursery:
                        for entry in dirty:
                            nursery.start_soon(entry.file.sync)
                await self._records.sync()
            except BaseException:
                for entry in dirty:
                    entry.dirty = True
                raise
            self._synced = max(self._synced, reached)

    # Channels

    def channels(self) -> list[tuple[RequestTag, UpdateResult]]:
        loaded, self._channels = self._channels, []
        return loaded

    def remember(self, tag: RequestTag, result: UpdateResult) -> None:
        self._records.write([(channel_key(tag.client, tag.channel), encode_channel(tag.sequence, result))])
        self._changes += 1

    def forget(self, channels: Iterable[tuple[int, int]]) -> None:
        keys = [channel_key(client, channel) for client, channel in channels]
        if keys:
            self._records.write((), keys)


def _heals(update: Update, base: StoredVersion) -> bool:
    """Whether nothing of a damaged content is left after an update."""
    if update.kind in (UpdateKind.REPLACE, UpdateKind.REMOVE, UpdateKind.LOST):
        return True
    if update.kind is UpdateKind.WRITE:
        return update.offset == 0 and update.length >= base.length
    return update.kind is UpdateKind.TRUNCATE and update.length == 0


def _channel_record(version: StoredVersion) -> tuple[bytes, bytes]:
    tag = version.tag
    return channel_key(tag.client, tag.channel), encode_channel(tag.sequence, version.result())
