"""The chunk engine: records in an ordered store, contents in sparse files of size classes.

The content of a chunk lies in a slot of a size class (a power of two from 64 KiB to 64 MiB) in that class's data files. Data
is written before the record that speaks of it, so a crash of the process leaves each chunk as it was before a call, or as it
is after it. Power loss leaves each chunk with a content at least as new as at its last sync: a version whose data is not
durable has the last one that was beside it in its record, and what that one needs stays (chunk_table.py, durability.py).

Records are loaded at the start and kept in memory; which slots are free follows from them. A slot is free again when no
record, none that power loss may bring back, and no read under way needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import trio

from fs3.api.storage import ChunkMeta, Update, UpdateResult
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag

from .chunk_reads import ChunkReads
from .chunk_table import ChunkTable, Log, Pair
from .contents import Contents, Damaged
from .data_files import DataFiles, size_class
from .disk import Disk
from .durability import Durability
from .opening import Opening
from .records import (
    Patch,
    Record,
    StoredVersion,
    channel_key,
    committed_length,
    encode_channel,
    record_meta,
)
from .space import SpaceBudget

__all__ = ["ChunkEngine", "size_class"]

_LOOK_AGAIN_S = 0.01


class ChunkEngine(ChunkReads):
    """The chunks of one target, in the folder `folder` of a disk. Opened by the constructor.

    Which raises DISK_FAILED, RECORDS_DAMAGED where it cannot be.
    """

    def __init__(self, disk: Disk, folder: str, space: SpaceBudget) -> None:
        name = f"{disk.name}/{folder}"
        self._log = Log(disk.open_records(f"{folder}/records"))
        files = DataFiles(disk, folder)
        table = ChunkTable(self._log, files)
        contents = Contents(files, space)
        super().__init__(name, table, files, contents)
        self._durability = Durability(table, files, contents)
        try:
            self._channels = Opening(disk, name, table, files, contents).run()
        except BaseException:
            self.close()
            raise

    async def abandon(self) -> None:
        self._files.abandon()
        ended = self._log.abandon()
        while self._files.busy() or self._log.syncing:  # noqa: ASYNC110 (rare, and nothing that is frequent should tell)
            await trio.sleep(_LOOK_AGAIN_S)
        self._files.close()
        ended.close()

    def close(self) -> None:
        self._files.close()
        self._log.records.close()

    # The index

    def get(self, chunk: ChunkId) -> Record | None:
        return self._table.find(chunk)

    def pending(self) -> list[ChunkId]:
        return sorted(self._table.pending)

    def chunks_of(self, inode: int, first_index: int) -> list[tuple[ChunkId, int]]:
        found: list[tuple[ChunkId, int]] = []
        for chunk, value in self._table.index.items(inode, first_index):
            if chunk.inode != inode:
                break
            length = committed_length(value)
            if length is not None:
                found.append((chunk, length))
        return found

    def dump(self, after: ChunkId | None, until: ChunkId | None, limit: int) -> tuple[list[ChunkMeta], bool]:
        metas: list[ChunkMeta] = []
        start = after if after is not None else ChunkId(0, 0)
        for chunk, value in self._table.index.items(start.inode, start.index):
            if chunk == after:
                continue
            if until is not None and chunk > until:
                break
            if len(metas) == limit:
                return metas, True
            metas.append(record_meta(chunk, value))
        return metas, False

    def used_bytes(self) -> int:
        return self._files.used_bytes() - self._table.deferred_bytes

    # Writing

    async def put(
        self, update: Update, version: int, chain_version: int, data: memoryview, *, commit: bool, remember: bool
    ) -> StoredVersion:
        if self._durability.over_limit():
            await self._durability.relieve()
        fresh, patch = await self._build(update, version, chain_version, data)
        record = self._table.find(update.chunk) or Record()
        base = record.committed
        try:
            if commit:
                self._commit(update.chunk, record, fresh, patch, remember)
            else:
                self._table.change(update.chunk, record, base, fresh, record.fallback, patch=patch)
        except BaseException:
            if fresh.slot is not None and (base is None or base.slot is not fresh.slot):
                self._files.free(fresh.slot)
            raise
        return fresh

    async def _build(
        self, update: Update, version: int, chain_version: int, data: memoryview
    ) -> tuple[StoredVersion, Patch | None]:
        """Write the content of the version that the update makes of the committed one."""
        for make_room in (self._durability.free_slots, self._durability.free_space, None):
            made = StoredVersion(version, chain_version, 0, b"", update.tag)
            try:
                return made, await self._contents.build(self._table.find(update.chunk), update, made, data)
            except Damaged as damage:
                raise self._damaged(update.chunk, damage.block) from None
            except FS3Error as error:
                if error.code is not Code.NO_SPACE or make_room is None:
                    raise
            await make_room()
        raise AssertionError

    def _commit(self, chunk: ChunkId, record: Record, fresh: StoredVersion, patch: Patch | None, remember: bool) -> None:
        """Write the record that makes a version the committed one."""
        puts: list[Pair] = []
        if remember:
            tag = fresh.tag
            puts.append((channel_key(tag.client, tag.channel), encode_channel(tag.sequence, fresh.result(), chunk)))
        if fresh.removed:
            self._table.change(chunk, record, None, None, None, puts=puts)
            return
        before = record.committed
        fallback = None
        if not fresh.stable and before is not None:
            fallback = before if before.stable else record.fallback
        self._table.change(chunk, record, fresh, None, fallback, patch=patch, puts=puts)

    def commit(self, chunk: ChunkId, chain_version: int, *, remember: bool) -> StoredVersion:
        record = self._table.find(chunk)
        assert record is not None and record.pending is not None, "commit of a chunk without a pending version"
        fresh = record.pending
        former_chain_version, fresh.chain_version = fresh.chain_version, chain_version
        try:
            self._commit(chunk, record, fresh, None, remember)
        except BaseException:
            fresh.chain_version = former_chain_version
            raise
        return fresh

    def drop_pending(self, chunk: ChunkId) -> None:
        record = self._table.find(chunk)
        if record is not None and record.pending is not None:
            self._table.change(chunk, record, record.committed, None, record.fallback)

    # Durability

    async def sync(self, chunks: Sequence[ChunkId] | None = None) -> None:
        await self._durability.sync(chunks)

    async def tidy(self) -> None:
        await self._durability.tidy()

    # Channels

    def channels(self) -> list[tuple[RequestTag, UpdateResult]]:
        loaded, self._channels = self._channels, []
        return loaded

    def remember(self, tag: RequestTag, result: UpdateResult) -> None:
        self._log.write([(channel_key(tag.client, tag.channel), encode_channel(tag.sequence, result))])

    def forget(self, channels: Iterable[tuple[int, int]]) -> None:
        keys = [channel_key(client, channel) for client, channel in channels]
        if keys:
            self._log.write((), keys)
