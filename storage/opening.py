"""Opening a target: its records are loaded, and after a stop of the host what may have been lost is looked at.

Where the host ran on, the page cache has all that was written, and nothing is verified. After power loss the records are as
they were at some instant not before the last sync; of a version that is not stable any part may be missing. Such a version
is read: if it is not whole, the chunk is what it was when it was last durable, and results of what is lost are forgotten, so
that a retry is done again.
"""

from __future__ import annotations

import logging

from fs3.api.storage import UpdateResult
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId, RequestTag

from .chunk_table import ChunkTable
from .contents import Contents
from .data_files import DataFiles
from .disk import Disk
from .records import (
    BOOT,
    CHANNEL,
    CHUNK,
    PATCH,
    Record,
    StoredVersion,
    channel_key,
    decode_channel,
    decode_patch,
    decode_record,
    placed_slot,
    unpack_chunk_key,
)

logger = logging.getLogger("fs3.storage.engine")

_DELETES_AT_ONCE = 1000


class Opening:
    """What is found when a target is opened."""

    def __init__(self, disk: Disk, name: str, table: ChunkTable, files: DataFiles, contents: Contents) -> None:
        self._disk = disk
        self._name = name
        self._table = table
        self._files = files
        self._contents = contents
        self._used: dict[int, list[int]] = {}
        self._orphans: list[bytes] = []
        self._channels: list[tuple[RequestTag, UpdateResult, ChunkId]] = []
        self._boot = b""

    def run(self) -> list[tuple[RequestTag, UpdateResult]]:
        """Load everything; returns the channels' last results. Raises DISK_FAILED, RECORDS_DAMAGED."""
        log = self._table.log
        try:
            self._load()
            self._files.load(self._used)
        except (ValueError, AssertionError) as error:
            raise FS3Error(Code.RECORDS_DAMAGED, f"{self._name}: {error}") from None
        self._used.clear()
        for at in range(0, len(self._orphans), _DELETES_AT_ONCE):
            log.write((), self._orphans[at : at + _DELETES_AT_ONCE])
        boot = self._disk.boot_id().encode()
        if boot != self._boot:
            if self._boot:
                self._look_at_unstable()
            log.records.write([(BOOT, boot)])  # not counted: nobody needs it to be durable
        return [(tag, result) for tag, result, _ in self._channels]

    def _load(self) -> None:
        """Sort millions of chunks in, of which few are special."""
        append, used, first = self._table.index.append, self._used, CHUNK[0]
        for key, value in self._table.log.records.load():
            if key[0] != first:
                self._take(key, value)
                continue
            inode, index = unpack_chunk_key(key)
            append(inode, index, value)
            place = placed_slot(value)
            if place is None:
                self._take(key, value)
            elif place[0] in used:
                used[place[0]].append(place[1])
            else:
                used[place[0]] = [place[1]]

    def _take(self, key: bytes, value: bytes) -> None:
        kind = key[:1]
        if kind == CHUNK:
            record = decode_record(value)
            self._table.add_loaded(ChunkId.unpack(key[1:]), record, value)
            for version in record.versions():  # whose patches may be in place, and their records deleted
                self._contents.next_patch = max(self._contents.next_patch, version.last_patch + 1)
            for slot in record.slots():
                self._use(slot.shift, slot.number)
        elif kind == PATCH:
            self._take_patch(key, value)
        elif kind == CHANNEL:
            self._channels.append(decode_channel(key, value))
        elif kind == BOOT:
            self._boot = value
        else:
            raise ValueError(f"a record of an unknown kind {kind!r}")

    def _use(self, shift: int, number: int) -> None:
        numbers = self._used.get(shift)
        if numbers is None:
            numbers = self._used[shift] = []
        numbers.append(number)

    def _take_patch(self, key: bytes, value: bytes) -> None:
        chunk, place, patch = decode_patch(key, value)
        record = self._table.find(chunk)
        self._contents.next_patch = max(self._contents.next_patch, patch.id + 1)
        if record is not None:
            for slot in record.slots():
                if (slot.shift, slot.number) == place:
                    self._table.add_loaded_patch(chunk, record, slot, patch)
                    return
        self._orphans.append(key)

    def _look_at_unstable(self) -> None:
        """After a stop of the host. What can be read now was read from the disk: it is durable."""
        back = 0
        chunks = {*self._table.unstable, *self._table.pending}
        for chunk in sorted(chunks):
            record = self._table.find(chunk)
            assert record is not None
            committed, pending = record.committed, record.pending
            if committed is not None and not self._is_whole(committed):
                self._fall_back(chunk, record)
                back += 1
            else:
                if pending is not None and not self._is_whole(pending):
                    pending = None
                self._table.change(chunk, record, committed, pending, None)
        if chunks:
            logger.info("%s: the host stopped; %d chunks are as they were at their last sync", self._name, back)

    def _is_whole(self, version: StoredVersion) -> bool:
        """Whether a version got to the disk; it is stable then."""
        if version.stable:
            return True
        if not self._contents.is_whole(version):
            return False
        version.stable = True
        if version.slot is not None:
            version.slot.stable = True
            version.slot.guard = max(version.slot.guard, version.length)
        return True

    def _fall_back(self, chunk: ChunkId, record: Record) -> None:
        """What was committed last did not get to the disk."""
        fallback = record.fallback
        number = fallback.number if fallback is not None else 0
        lost = [entry for entry in self._channels if entry[2] == chunk and entry[1].version > number]
        self._channels = [entry for entry in self._channels if entry not in lost]
        keys = [channel_key(tag.client, tag.channel) for tag, _, _ in lost]
        if fallback is not None and fallback.slot is not None and not self._contents.is_whole(fallback):
            fallback.slot.damaged = True  # the disk lost what it had said to have
        self._table.change(chunk, record, fallback, None, None, deletes=keys)
