"""The records of a target: every key and value in its record store. Pure.

    c + chunk id (16)               the chunk: flags u8, then each version that is there: committed, fallback, pending
    m                               the boot of the host in which the target was last opened
    p + chunk id (16) + id u64      a patch: slot (shift u8, number u32), offset u32, length u32, bytes (none: zeros)
    t + client u64 + channel u64    the channel's last request: sequence u64, version u64, length u32, checksum u32, chunk id

A version: number u64, chain version u32, length u32, flags u8, shift u8, slot u32, tag 3 * u64, then, where it has patches,
the id of the last one u64, then u32 checksums, one for each block of the length. Integers are little-endian in values and
big-endian in keys. A chunk record takes up memory for each chunk there is: what is not needed is not in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fs3.api.storage import ChunkMeta, UpdateResult
from fs3.checksum import BLOCK_SIZE, crc32c
from fs3.ids import ChunkId, RequestTag

from .replica import ChunkVersion

CHUNK = b"c"
BOOT = b"m"
PATCH = b"p"
CHANNEL = b"t"

NO_CHUNK = ChunkId(0, 0)

_VERSION = struct.Struct("<QIIBBIQQQ")
_PLACE = struct.Struct("<BBI")  # a part of _VERSION
_PLACE_AT = 1 + 16
_LAST_PATCH = struct.Struct("<Q")
_CHUNK_KEY = struct.Struct(">xQQ")
_PATCH_KEY = struct.Struct(">QQQ")
_PATCH = struct.Struct("<BIII")
_CHANNEL_KEY = struct.Struct(">QQ")
_CHANNEL = struct.Struct("<QQIIQQ")

_COMMITTED = 1
_FALLBACK = 2
_PENDING = 4
_REMOVED = 1
_PLACED = 2
_PATCHED = 4
_STABLE = 8
_DAMAGED = 16


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes to be laid over the slot's content in [offset, end). No data: zeros."""

    id: int
    offset: int
    end: int
    data: bytes


class Slot:
    """A place in the data files of size class 2**shift bytes.

    pins: reads under way. freed: to be released after them. damaged: it does not hold what it should.
    patches: stored, and not in place yet; ascending ids. A reader takes the tuple before it reads what lies below.
    applied: (patch, count of writes that has it): in place, and stored until that is durable.
    patch_bytes: of `patches`. stable: durable records may speak of it. guard: what lies before stays, except for patches.
    """

    __slots__ = ("applied", "damaged", "freed", "guard", "number", "patch_bytes", "patches", "pins", "shift", "stable")

    def __init__(self, shift: int, number: int) -> None:
        self.shift = shift
        self.number = number
        self.pins = 0
        self.freed = False
        self.damaged = False
        self.stable = False
        self.guard = 0
        self.patch_bytes = 0
        self.patches: tuple[Patch, ...] = ()
        self.applied: tuple[tuple[Patch, int], ...] = ()

    @property
    def size(self) -> int:
        return 1 << self.shift

    def last_stored(self) -> int:
        """The id of the last one of stored_patches(), whose ids grow; 0 for none."""
        if self.patches:
            return self.patches[-1].id
        return self.applied[-1][0].id if self.applied else 0

    def stored_patches(self) -> Iterator[Patch]:
        for patch, _ in self.applied:
            yield patch
        yield from self.patches


@dataclass(slots=True)
class StoredVersion(ChunkVersion):
    """A version and where it is. slot: None where it has no bytes. last_patch: of those that belong to it; 0: none.

    stable: what lies in the slot is durable. writes: the count of writes to data files that it needs to be durable.
    """

    slot: Slot | None = None
    last_patch: int = 0
    stable: bool = True
    writes: int = 0

    def lost(self) -> bool:
        """Whether it has bytes that are nowhere."""
        return self.slot is None and self.length > 0


@dataclass(slots=True, eq=False)
class Record:
    """A chunk. fallback: where the committed version is not stable, the last one that is, if any.

    syncing: the version that the sync under way makes stable. seq: of the log, when this was last written.
    """

    committed: StoredVersion | None = None
    pending: StoredVersion | None = None
    fallback: StoredVersion | None = None
    syncing: StoredVersion | None = None
    seq: int = 0

    @property
    def damaged(self) -> bool:
        committed = self.committed
        if committed is None:
            return False
        return committed.slot.damaged if committed.slot is not None else committed.length > 0

    def versions(self) -> list[StoredVersion]:
        """All that must stay readable."""
        return [v for v in (self.committed, self.pending, self.fallback, self.syncing) if v is not None]

    def slots(self) -> list[Slot]:
        found: list[Slot] = []
        for version in (self.committed, self.pending, self.fallback, self.syncing):
            if version is not None and version.slot is not None and version.slot not in found:
                found.append(version.slot)
        return found


def encode_record(
    committed: StoredVersion | None, pending: StoredVersion | None, fallback: StoredVersion | None = None
) -> bytes:
    if committed is not None and pending is None and fallback is None:
        return b"\x01" + _encode_version(committed)
    flags = 0
    parts = [b""]
    for bit, version in ((_COMMITTED, committed), (_FALLBACK, fallback), (_PENDING, pending)):
        if version is not None:
            flags |= bit
            parts.append(_encode_version(version))
    assert flags & ~_FALLBACK
    parts[0] = bytes((flags,))
    return b"".join(parts)


def _encode_version(version: StoredVersion) -> bytes:
    slot = version.slot
    tag = version.tag
    flags = (_REMOVED if version.removed else 0) | (_STABLE if version.stable else 0)
    shift = number = 0
    if slot is not None:
        flags |= _PLACED | (_DAMAGED if slot.damaged else 0)
        shift, number = slot.shift, slot.number
    patched = b""
    if version.last_patch:
        flags |= _PATCHED
        patched = _LAST_PATCH.pack(version.last_patch)
    head = _VERSION.pack(
        version.number,
        version.chain_version,
        version.length,
        flags,
        shift,
        number,
        tag.client,
        tag.channel,
        tag.sequence,
    )
    return head + patched + version.checksums


def decode_record(value: bytes) -> Record:
    """The inverse of encode_record; versions that share a slot share its Slot object. Patches are not filled in.

    Raises ValueError on what is no record.
    """
    flags = value[0]
    at = 1
    record = Record()
    slots: list[Slot] = []
    try:
        if flags & _COMMITTED:
            record.committed, at = _decode_version(value, at, slots)
        if flags & _FALLBACK:
            record.fallback, at = _decode_version(value, at, slots)
        if flags & _PENDING:
            record.pending, at = _decode_version(value, at, slots)
    except struct.error:
        at = -1
    if at != len(value) or not flags & (_COMMITTED | _PENDING):
        raise ValueError("a chunk record of another shape")
    return record


def _decode_version(value: bytes, at: int, slots: list[Slot]) -> tuple[StoredVersion, int]:
    number, chain_version, length, flags, shift, slot_number, client, channel, sequence = _VERSION.unpack_from(value, at)
    at += _VERSION.size
    last_patch = 0
    if flags & _PATCHED:
        (last_patch,) = _LAST_PATCH.unpack_from(value, at)
        at += _LAST_PATCH.size
    end = at + 4 * -(-length // BLOCK_SIZE)
    stable = bool(flags & _STABLE)
    slot = None
    if flags & _PLACED:
        for known in slots:
            if known.shift == shift and known.number == slot_number:
                slot = known
                break
        else:
            slot = Slot(shift, slot_number)
            slots.append(slot)
        slot.damaged = slot.damaged or bool(flags & _DAMAGED)
        if stable:
            slot.stable = True
            slot.guard = max(slot.guard, length)
    tag = RequestTag(client, channel, sequence)
    removed = bool(flags & _REMOVED)
    version = StoredVersion(number, chain_version, length, value[at:end], tag, removed, slot, last_patch, stable)
    return version, end


def placed_slot(value: bytes) -> tuple[int, int] | None:
    """(shift, number) of a record with one plain version; quick, for opening. None where it is not so simple."""
    if value[0] == _COMMITTED:
        flags, shift, number = _PLACE.unpack_from(value, _PLACE_AT)
        if flags == _PLACED | _STABLE:
            return shift, number
    return None


def committed_length(value: bytes) -> int | None:
    """The length of a record's committed version, None where there is none."""
    if not value[0] & _COMMITTED:
        return None
    length: int = _VERSION.unpack_from(value, 1)[2]
    return length


def record_meta(chunk: ChunkId, value: bytes) -> ChunkMeta:
    """What a resync compares."""
    record = decode_record(value)
    committed = record.committed
    pending = record.pending.number if record.pending is not None else 0
    if committed is None:
        return ChunkMeta(chunk, 0, 0, pending, 0, 0)
    checksum = crc32c(committed.checksums)
    return ChunkMeta(chunk, committed.number, committed.chain_version, pending, committed.length, checksum, record.damaged)


def chunk_key(chunk: ChunkId) -> bytes:
    return CHUNK + chunk.pack()


def unpack_chunk_key(key: bytes) -> tuple[int, int]:
    """(inode, index)."""
    found: tuple[int, int] = _CHUNK_KEY.unpack(key)
    return found


def patch_key(chunk: ChunkId, patch: int) -> bytes:
    return PATCH + _PATCH_KEY.pack(chunk.inode, chunk.index, patch)


def encode_patch(slot: Slot, patch: Patch) -> bytes:
    return _PATCH.pack(slot.shift, slot.number, patch.offset, patch.end - patch.offset) + patch.data


def decode_patch(key: bytes, value: bytes) -> tuple[ChunkId, tuple[int, int], Patch]:
    """The chunk, the slot's (shift, number), and the patch. Raises ValueError."""
    try:
        inode, index, number = _PATCH_KEY.unpack_from(key, 1)
        shift, slot, offset, length = _PATCH.unpack_from(value)
    except struct.error:
        raise ValueError("a patch record of another shape") from None
    data = value[_PATCH.size :]
    if data and len(data) != length:
        raise ValueError("a patch record of another length")
    return ChunkId(inode, index), (shift, slot), Patch(number, offset, offset + length, data)


def channel_key(client: int, channel: int) -> bytes:
    return CHANNEL + _CHANNEL_KEY.pack(client, channel)


def encode_channel(sequence: int, result: UpdateResult, chunk: ChunkId = NO_CHUNK) -> bytes:
    """chunk: of the update whose result it is."""
    return _CHANNEL.pack(sequence, result.version, result.chunk_length, result.checksum, chunk.inode, chunk.index)


def decode_channel(key: bytes, value: bytes) -> tuple[RequestTag, UpdateResult, ChunkId]:
    """Raises ValueError."""
    try:
        client, channel = _CHANNEL_KEY.unpack_from(key, 1)
        sequence, version, length, checksum, inode, index = _CHANNEL.unpack(value)
    except struct.error:
        raise ValueError("a channel record of another shape") from None
    return RequestTag(client, channel, sequence), UpdateResult(0, version, length, checksum), ChunkId(inode, index)
