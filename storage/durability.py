"""What makes a target's changes durable, and what can only be done after that.

A sync is: sync the files that hold what the chunks are now, say in their records that it is stable, sync the records.
Callers that come while one runs share the next. A full sync, now and then, keeps bounded what waits for one: patches are put
in place only when their records are durable, and slots with durable content are used again only when the records of what
replaced it are.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId

from .chunk_table import ChunkTable
from .contents import Contents
from .data_files import DataFile, DataFiles
from .records import Patch, Record, Slot

PATCH_BYTES_MAX = 32 * 1024 * 1024
DEFERRED_BYTES_MAX = 256 * 1024 * 1024
UNSYNCED_BYTES_MAX = 1024 * 1024 * 1024
_FREE_BYTES_KEPT = 64 * 1024 * 1024
_PUNCH_SLOTS_PER_TURN = 256
_RECORDS_AT_ONCE = 256
_PATCHES_AT_ONCE = 16
_PAGE = 4096


class _Round:
    """What a sync that has not begun is asked for."""

    __slots__ = ("chunks", "done", "everything")

    def __init__(self) -> None:
        self.chunks: set[ChunkId] = set()
        self.everything = False
        self.done = False


class Durability:
    """Syncs of one target. One runs at a time."""

    def __init__(self, table: ChunkTable, files: DataFiles, contents: Contents) -> None:
        self._table = table
        self._files = files
        self._contents = contents
        self._lock = trio.Lock()
        self._tidying = False
        self._next = _Round()

    async def sync(self, chunks: Sequence[ChunkId] | None = None) -> None:
        """Make durable what these chunks are now; None: all there is."""
        if chunks is None:
            if self._is_clean():
                return
        elif all(self._table.is_durable(chunk) for chunk in chunks):
            return
        mine = self._next
        if chunks is None:
            mine.everything = True
        else:
            mine.chunks.update(chunks)
        async with self._lock:
            if mine.done:
                return
            if mine is self._next:
                self._next = _Round()
            await self._run(mine)
            mine.done = True

    def _is_clean(self) -> bool:
        table = self._table
        applied = any(slot.applied for record in table.patched.values() for slot in record.slots())
        return table.log.durable >= table.log.seq and not table.unstable and not applied and not self._files.dirty()

    async def _run(self, round: _Round) -> None:
        table = self._table
        wanted = list(table.unstable) if round.everything else [c for c in round.chunks if c in table.unstable]
        items: list[tuple[ChunkId, Record]] = []
        files: dict[DataFile, None] = {}
        if round.everything:
            files.update(dict.fromkeys(self._files.dirty()))
            self._contents.written_bytes = 0
        try:
            for chunk in wanted:
                record = table.unstable[chunk]
                items.append((chunk, record))
                version = table.begin_sync(record)
                assert version.slot is not None
                file = self._files.file(version.slot)
                if file.synced < version.writes:
                    files[file] = None
            await self._files.sync(files)
            for at in range(0, len(items), _RECORDS_AT_ONCE):
                if at:
                    await trio.lowlevel.checkpoint()
                table.promote(items[at : at + _RECORDS_AT_ONCE])
            if round.everything:
                table.forget_applied()
            await table.log.sync()
        finally:
            table.end_sync(items)
        table.free_deferred()

    def over_limit(self) -> bool:
        """Whether so much waits for a full sync that it should not grow further."""
        table = self._table
        return (
            table.patch_bytes > PATCH_BYTES_MAX
            or table.deferred_bytes > DEFERRED_BYTES_MAX
            or self._contents.written_bytes > UNSYNCED_BYTES_MAX
        )

    async def relieve(self) -> None:
        """Sync fully, unless another task is at it and not much too late."""
        table = self._table
        late = table.patch_bytes > 2 * PATCH_BYTES_MAX or table.deferred_bytes > 2 * DEFERRED_BYTES_MAX
        if self._tidying and not late:
            return
        self._tidying = True
        try:
            await self.sync()
            async with self._lock:
                if self._table.patch_bytes > PATCH_BYTES_MAX // 2:
                    await self._apply_patches()
        finally:
            self._tidying = False

    async def tidy(self) -> None:
        """Sync fully, put patches in place, and give the space of what was removed back, in part."""
        await self.sync()
        async with self._lock:
            await self._apply_patches()
            await self._files.give_back(_FREE_BYTES_KEPT, _PUNCH_SLOTS_PER_TURN)

    async def free_slots(self) -> None:
        """The disk is full: free the slots that wait for a sync."""
        try:
            await self.sync()
        except FS3Error as error:
            if error.code is not Code.NO_SPACE:
                raise

    async def free_space(self) -> None:
        """The disk is full: give back all space that is not needed."""
        async with self._lock:
            await self._files.give_back(0, 1 << 30)

    async def _apply_patches(self) -> None:
        """Put in place the patches whose records are durable, where no version needs what they cover."""
        table = self._table
        count = 0
        for record in list(table.patched.values()):
            if record.seq > table.log.durable:
                continue
            for slot in record.slots():
                if slot.pins or not slot.patches:
                    continue
                last = min([version.last_patch for version in record.versions() if version.slot is slot])
                for patch in slot.patches:
                    if patch.id > last or slot not in record.slots():
                        break
                    await self._apply(record, slot, patch)
                    count += 1
                    if count % _PATCHES_AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()

    async def _apply(self, record: Record, slot: Slot, patch: Patch) -> None:
        length = patch.end - patch.offset
        slot.pins += 1  # nobody writes behind the content meanwhile, nor uses the slot for something else
        try:
            if patch.data and (patch.offset % _PAGE or patch.end % _PAGE):
                # Writing parts of pages that are not in memory would wait for the disk.
                start = patch.offset - patch.offset % _PAGE
                await self._files.read(slot, start, memoryview(bytearray(patch.end - start)))
            writes = await self._files.write(slot, patch.offset, [patch.data or length])
        finally:
            self._files.unpin(slot)
        if slot in record.slots():
            self._table.in_place(slot, patch, writes)
