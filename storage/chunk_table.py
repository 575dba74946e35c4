"""The chunks of a target in memory, and the log of their records.

All chunks are there as encoded records; those that are in use are decoded besides. The log counts its writes: power loss
keeps all up to a count, and a sync says which count is safe. Whatever a record that may come back needs, stays:

- a slot is used again only once the record that no longer speaks of it is durable. Slots that never became stable need not
  wait: a version found there after power loss is verified, and has a fallback;
- patches are deleted with the record that no longer needs them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId

from .data_files import DataFiles
from .disk import Records
from .index import ChunkIndex
from .records import Patch, Record, Slot, StoredVersion, chunk_key, decode_record, encode_patch, encode_record, patch_key

RECORDS_KEPT = 8192
_PATCH_OVERHEAD = 200

Pair = tuple[bytes, bytes]


class Log:
    """The record store. seq: how many writes; durable: how many of them survive power loss."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.seq = 0
        self.durable = 0
        self.syncing = 0  # how many syncs are under way
        self._failed: FS3Error | None = None

    def write(self, puts: Sequence[Pair], deletes: Sequence[bytes] = ()) -> None:
        self.records.write(puts, deletes)
        self.seq += 1

    async def sync(self) -> None:
        """After a failure nobody knows what is durable: all later ones fail too."""
        if self._failed is not None:
            raise self._failed
        reached = self.seq
        if self.durable >= reached:
            return
        self.syncing += 1
        try:
            await self.records.sync()
        except FS3Error as error:
            self._failed = FS3Error(Code.DISK_FAILED, error.message)
            raise self._failed from None
        finally:
            self.syncing -= 1
        self.durable = max(self.durable, reached)

    def abandon(self) -> Records:
        """From now on all fails but the syncs that are under way. Returns what is to be closed when they have ended."""
        records, self.records = self.records, _Gone()
        return records


class _Gone(Records):
    """The records of a target that is no longer here."""

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        raise AssertionError("loaded when it was opened")

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        raise FS3Error(Code.NOT_SERVING, "this target is no longer here")

    async def sync(self) -> None:
        raise FS3Error(Code.NOT_SERVING, "this target is no longer here")

    def close(self) -> None:
        """Nothing is open."""


class ChunkTable:
    """unstable: chunks whose committed version is not; patched: with stored patches. removed_seq: of the last removal."""

    def __init__(self, log: Log, files: DataFiles) -> None:
        self.log = log
        self.files = files
        self.index = ChunkIndex()
        self.pending: set[ChunkId] = set()
        self.damaged: set[ChunkId] = set()
        self.unstable: dict[ChunkId, Record] = {}
        self.patched: dict[ChunkId, Record] = {}
        self.patch_bytes = 0
        self.deferred_bytes = 0
        self.removed_seq = 0
        self._deferred: deque[tuple[int, Slot]] = deque()
        self._records: OrderedDict[tuple[int, int], Record] = OrderedDict()

    def find(self, chunk: ChunkId) -> Record | None:
        record = self._records.get((chunk.inode, chunk.index))
        if record is not None:
            return record
        value = self.index.find(chunk)
        if value is None:
            return None
        record = decode_record(value)
        self.keep(chunk, record)
        return record

    def known(self, inode: int, index: int) -> Record | None:
        """As find, of those that are decoded already."""
        return self._records.get((inode, index))

    def keep(self, chunk: ChunkId, record: Record) -> None:
        """Remember a decoded record, and forget some that nobody uses."""
        records = self._records
        records[chunk.inode, chunk.index] = record
        if len(records) > RECORDS_KEPT:
            for _ in range(2):
                key, oldest = next(iter(records.items()))
                if oldest is record or self._busy(oldest):
                    records.move_to_end(key)
                else:
                    del records[key]

    def _busy(self, record: Record) -> bool:
        """Whether there is more to it than its encoded form."""
        if record.seq > self.log.durable or record.pending is not None or record.syncing is not None:
            return True
        committed = record.committed
        if committed is None or not committed.stable:
            return True
        slot = committed.slot
        return slot is not None and bool(slot.pins or slot.patches or slot.applied)

    def is_durable(self, chunk: ChunkId) -> bool:
        """Whether the committed version, or the removal, survives power loss."""
        record = self._records.get((chunk.inode, chunk.index))
        if record is not None:
            committed = record.committed
            return record.seq <= self.log.durable and (committed is None or committed.stable)
        return self.removed_seq <= self.log.durable or self.index.find(chunk) is not None

    # Changes

    def change(
        self,
        chunk: ChunkId,
        record: Record,
        committed: StoredVersion | None,
        pending: StoredVersion | None,
        fallback: StoredVersion | None,
        *,
        patch: Patch | None = None,
        puts: Sequence[Pair] = (),
        deletes: Sequence[bytes] = (),
    ) -> None:
        """Write a chunk's record, with more puts if given; then bring memory in line. patch: of the newest version."""
        versions = [v for v in (committed, pending, fallback, record.syncing) if v is not None]
        before = record.slots()
        dropped = 0  # the patch of a pending version that comes to nothing
        former = record.pending
        if former is not None and former is not committed and former is not pending:
            base = record.committed
            dropped = former.last_patch if base is None or base.last_patch != former.last_patch else 0
        all_puts, all_deletes = list(puts), list(deletes)
        for slot in before:
            if slot.patches or slot.applied:
                all_deletes += self._outdated(chunk, slot, versions, dropped)
        value = None
        if committed is None and pending is None:
            all_deletes.append(chunk_key(chunk))
        else:
            value = encode_record(committed, pending, fallback)
            all_puts.append((chunk_key(chunk), value))
        patched = pending if pending is not None else committed
        if patch is not None:
            assert patched is not None and patched.slot is not None
            all_puts.append((patch_key(chunk, patch.id), encode_patch(patched.slot, patch)))
        self.log.write(all_puts, all_deletes)
        record.seq = self.log.seq
        record.committed, record.pending, record.fallback = committed, pending, fallback
        self._trim(before, versions, dropped)
        if patch is not None and patched is not None and patched.slot is not None:
            slot = patched.slot
            slot.patches = (*slot.patches, patch)
            slot.patch_bytes += len(patch.data)
            self.patch_bytes += len(patch.data) + _PATCH_OVERHEAD
            self.patched[chunk] = record
        self._index(chunk, record, value)

    def _index(self, chunk: ChunkId, record: Record, value: bytes | None) -> None:
        """Put a record where it is found."""
        committed = record.committed
        if value is None:
            if self.index.find(chunk) is not None:
                self.index.delete(chunk)
            self._records.pop((chunk.inode, chunk.index), None)
            self.removed_seq = record.seq
        else:
            self.index.put(chunk, value)
            if self._records.get((chunk.inode, chunk.index)) is not record:
                self.keep(chunk, record)
        if record.pending is not None:
            self.pending.add(chunk)
        elif self.pending:
            self.pending.discard(chunk)
        if committed is not None and not committed.stable:
            self.unstable[chunk] = record
        else:
            self.unstable.pop(chunk, None)
        if record.damaged:
            self.damaged.add(chunk)
        elif self.damaged:
            self.damaged.discard(chunk)

    @staticmethod
    def _outdated(chunk: ChunkId, slot: Slot, versions: Iterable[StoredVersion], dropped: int = 0) -> list[bytes]:
        """The keys of a slot's patches that no version needs."""
        top = max([version.last_patch for version in versions if version.slot is slot], default=-1)
        if not dropped and slot.last_stored() <= top:
            return []
        return [patch_key(chunk, patch.id) for patch in slot.stored_patches() if patch.id > top or patch.id == dropped]

    def _trim(self, slots: Iterable[Slot], versions: Iterable[StoredVersion], dropped: int = 0) -> None:
        """Forget the patches that no version needs, and free the slots that none is in."""
        for slot in slots:
            tops = [version.last_patch for version in versions if version.slot is slot]
            top = max(tops, default=-1)
            if slot.patches and (slot.patches[-1].id > top or dropped):
                kept = tuple([patch for patch in slot.patches if patch.id <= top and patch.id != dropped])
                for patch in slot.patches:
                    if patch not in kept:
                        self._uncount(slot, patch)
                slot.patches = kept
            if not tops:
                slot.applied = ()
                self._drop(slot)

    def _uncount(self, slot: Slot, patch: Patch) -> None:
        slot.patch_bytes -= len(patch.data)
        self.patch_bytes -= len(patch.data) + _PATCH_OVERHEAD

    def _drop(self, slot: Slot) -> None:
        if slot.stable:
            self._deferred.append((self.log.seq, slot))
            self.deferred_bytes += slot.size
        else:
            self.files.free(slot)

    def free_deferred(self) -> None:
        """Free the slots that no durable record speaks of."""
        while self._deferred and self._deferred[0][0] <= self.log.durable:
            slot = self._deferred.popleft()[1]
            self.deferred_bytes -= slot.size
            self.files.free(slot)

    def add_loaded_patch(self, chunk: ChunkId, record: Record, slot: Slot, patch: Patch) -> None:
        slot.patches = (*slot.patches, patch)
        slot.patch_bytes += len(patch.data)
        self.patch_bytes += len(patch.data) + _PATCH_OVERHEAD
        self.patched[chunk] = record

    def add_loaded(self, chunk: ChunkId, record: Record, value: bytes) -> None:
        self._index(chunk, record, value)

    def mark_damaged(self, chunk: ChunkId, slot: Slot, damaged: bool) -> None:
        """Remember, over restarts too, whether a slot holds what it should."""
        record = self.find(chunk)
        if record is None or slot.damaged is damaged or slot not in record.slots():
            return
        slot.damaged = damaged
        self.change(chunk, record, record.committed, record.pending, record.fallback)

    # Syncs

    @staticmethod
    def begin_sync(record: Record) -> StoredVersion:
        """Keep what an unstable chunk is now until end_sync()."""
        version = record.committed
        assert version is not None and version.slot is not None and record.syncing is None
        record.syncing = version
        version.slot.guard = max(version.slot.guard, version.length)
        return version

    def promote(self, items: Sequence[tuple[ChunkId, Record]]) -> None:
        """Say in the records that the versions being synced are stable: what they need in the files is durable."""
        puts: list[Pair] = []
        deletes: list[bytes] = []
        done: list[tuple[ChunkId, Record, StoredVersion | None, bytes]] = []
        flipped: list[StoredVersion] = []
        for chunk, record in items:
            synced, committed = record.syncing, record.committed
            if committed is None or synced is None or committed.stable:
                continue  # removed since then, or nothing to say
            for version in (synced, committed, record.pending):
                if version is not None and version.slot is synced.slot and version.writes <= synced.writes:
                    flipped += [] if version.stable else [version]
                    version.stable = True
            moved_on = committed.slot is not synced.slot or committed.writes > synced.writes
            fallback = synced if moved_on else None
            value = encode_record(committed, record.pending, fallback)
            puts.append((chunk_key(chunk), value))
            former = record.fallback.slot if record.fallback is not None else None
            if former is not None and (former.patches or former.applied):
                kept = [v for v in (committed, record.pending, fallback, synced) if v is not None]
                deletes += self._outdated(chunk, former, kept)
            done.append((chunk, record, fallback, value))
        if not puts:
            return
        try:
            self.log.write(puts, deletes)
        except BaseException:
            for version in flipped:
                version.stable = False
            raise
        for chunk, record, fallback, value in done:
            assert record.syncing is not None and record.syncing.slot is not None
            record.syncing.slot.stable = True
            before = record.slots()
            record.fallback = fallback
            record.seq = self.log.seq
            self._trim(before, record.versions())
            self._index(chunk, record, value)

    def end_sync(self, items: Iterable[tuple[ChunkId, Record]]) -> None:
        """Let go of what was kept for a sync."""
        deletes: list[bytes] = []
        dropped: list[tuple[Record, list[Slot]]] = []
        for chunk, record in items:
            before = record.slots()
            record.syncing = None
            versions = record.versions()
            for slot in before:
                if slot.patches or slot.applied:
                    deletes += self._outdated(chunk, slot, versions)
            dropped.append((record, before))
        if deletes:
            self.log.write((), deletes)
        for record, before in dropped:
            self._trim(before, record.versions())

    # Patches that are in place

    def in_place(self, slot: Slot, patch: Patch, writes: int) -> None:
        """A patch was applied; it is stored until that is durable."""
        self._uncount(slot, patch)
        slot.patches = tuple([other for other in slot.patches if other.id != patch.id])
        slot.applied = (*slot.applied, (Patch(patch.id, patch.offset, patch.end, b""), writes))

    def forget_applied(self) -> None:
        """Delete the patches that are in place durably: the oldest of each slot, for later ones may lie over them."""
        deletes: list[bytes] = []
        gone: list[tuple[Slot, int]] = []
        emptied: list[ChunkId] = []
        for chunk, record in self.patched.items():
            left = False
            for slot in record.slots():
                count = 0
                for patch, writes in slot.applied:
                    if not self.files.is_synced(slot, writes):
                        break
                    deletes.append(patch_key(chunk, patch.id))
                    count += 1
                if count:
                    gone.append((slot, count))
                left = left or bool(slot.patches) or count < len(slot.applied)
            if not left:
                emptied.append(chunk)
        if deletes:
            self.log.write((), deletes)
        for chunk in emptied:
            del self.patched[chunk]
        for slot, count in gone:
            slot.applied = slot.applied[count:]
