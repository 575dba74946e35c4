"""The records of a target: every key and value in its record store. Pure.

    c + chunk id (16)               the chunk: flags u8, then each version that is there: committed, pending
    p + chunk id (16)               a patch: version u64, offset u32, bytes; see ChunkEngine
    t + client u64 + channel u64    the channel's last request: sequence u64, version u64, length u32, checksum u32

A version: number u64, chain version u64, length u32, flags u8, shift u8, slot u64, tag 3 * u64, then u32 checksums, one for
each block of the length. Integers are little-endian in values and big-endian in keys.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fs3.api.storage import UpdateResult
from fs3.checksum import BLOCK_SIZE
from fs3.ids import ChunkId, RequestTag

from .replica import ChunkVersion

CHUNK = b"c"
PATCH = b"p"
CHANNEL = b"t"

_VERSION = struct.Struct("<QQIBBQQQQ")
_PATCH = struct.Struct("<QI")
_CHANNEL_KEY = struct.Struct(">QQ")
_CHANNEL = struct.Struct("<QQII")

_COMMITTED = 1
_PENDING = 2
_REMOVED = 1
_PATCHED = 2
_PLACED = 4


class Slot:
    """A place in the data file of size class 2**shift bytes.

    pins: reads under way. freed: to be released after them. edits: counts changes of what a read under way may see.
    """

    __slots__ = ("edits", "freed", "number", "pins", "shift")

    def __init__(self, shift: int, number: int) -> None:
        self.shift = shift
        self.number = number
        self.pins = 0
        self.freed = False
        self.edits = 0

    @property
    def offset(self) -> int:
        return self.number << self.shift

    @property
    def size(self) -> int:
        return 1 << self.shift


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes to be written over the slot's content when their version is committed."""

    offset: int
    data: bytes


@dataclass(slots=True)
class StoredVersion(ChunkVersion):
    """A version and where it is. slot: None where it has no bytes. patch: not in the slot yet. patched: came by a patch."""

    slot: Slot | None = None
    patch: Patch | None = None
    patched: bool = False

    def lost(self) -> bool:
        """Whether it has bytes that are nowhere."""
        return self.slot is None and self.length > 0


@dataclass(slots=True)
class Record:
    """A chunk. patch_stored: there is a patch record, needed or not. damaged: see Engine."""

    committed: StoredVersion | None = None
    pending: StoredVersion | None = None
    patch_stored: bool = False
    damaged: bool = False


def encode_record(committed: StoredVersion | None, pending: StoredVersion | None) -> bytes:
    if pending is None:
        assert committed is not None
        return b"\x01" + _encode_version(committed)
    if committed is None:
        return b"\x02" + _encode_version(pending)
    return b"\x03" + _encode_version(committed) + _encode_version(pending)


def _encode_version(version: StoredVersion) -> bytes:
    slot = version.slot
    flags = (_REMOVED if version.removed else 0) | (_PATCHED if version.patched else 0) | (_PLACED if slot else 0)
    tag = version.tag
    head = _VERSION.pack(
        version.number,
        version.chain_version,
        version.length,
        flags,
        slot.shift if slot is not None else 0,
        slot.number if slot is not None else 0,
        tag.client,
        tag.channel,
        tag.sequence,
    )
    return head + version.checksums


def decode_record(value: bytes) -> Record:
    """The inverse of encode_record; versions that share a slot share its Slot object. Patches are not filled in."""
    flags = value[0]
    at = 1
    record = Record()
    if flags & _COMMITTED:
        record.committed, at = _decode_version(value, at, None)
    if flags & _PENDING:
        record.pending, at = _decode_version(value, at, record.committed.slot if record.committed else None)
    assert at == len(value), "a chunk record of another shape"
    return record


def _decode_version(value: bytes, at: int, shared: Slot | None) -> tuple[StoredVersion, int]:
    number, chain_version, length, flags, shift, slot_number, client, channel, sequence = _VERSION.unpack_from(value, at)
    at += _VERSION.size
    end = at + 4 * -(-length // BLOCK_SIZE)
    slot = None
    if flags & _PLACED:
        same = shared is not None and shared.shift == shift and shared.number == slot_number
        slot = shared if same else Slot(shift, slot_number)
    version = StoredVersion(
        number,
        chain_version,
        length,
        value[at:end],
        RequestTag(client, channel, sequence),
        bool(flags & _REMOVED),
        slot,
        None,
        bool(flags & _PATCHED),
    )
    return version, end


def chunk_key(chunk: ChunkId) -> bytes:
    return CHUNK + chunk.pack()


def patch_key(chunk: ChunkId) -> bytes:
    return PATCH + chunk.pack()


def encode_patch(version: int, patch: Patch) -> bytes:
    return _PATCH.pack(version, patch.offset) + patch.data


def decode_patch(value: bytes) -> tuple[int, Patch]:
    version, offset = _PATCH.unpack_from(value)
    return version, Patch(offset, value[_PATCH.size :])


def channel_key(client: int, channel: int) -> bytes:
    return CHANNEL + _CHANNEL_KEY.pack(client, channel)


def encode_channel(sequence: int, result: UpdateResult) -> bytes:
    return _CHANNEL.pack(sequence, result.version, result.chunk_length, result.checksum)


def decode_channel(key: bytes, value: bytes) -> tuple[RequestTag, UpdateResult]:
    client, channel = _CHANNEL_KEY.unpack_from(key, 1)
    sequence, version, length, checksum = _CHANNEL.unpack(value)
    return RequestTag(client, channel, sequence), UpdateResult(0, version, length, checksum)
