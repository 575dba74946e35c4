"""The messages of storage.read_packed: many ranges of chunks, each in a few bytes. Pure.

A message of objects costs both sides microseconds for each range; columns of numbers are packed and unpacked all at once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import ProtocolError
from .common import Method
from .storage import READ_RANGES_MAX

_RANGE_SIZE = 2 + 8 + 8 + 4 + 4

Columns = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int], Sequence[int]]
"""Of each range: the number of its place, inode, index of the chunk in it, offset, length."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where ranges are read. chain_version: as the client knows it."""

    chain: int
    chain_version: int
    target: int


@dataclass(frozen=True, slots=True)
class PackedReadRequest:
    """As storage.ReadRequest. ranges: as pack_ranges makes them. The payload of the reply holds the ranges' bytes one behind
    the other, each as long as the reply says."""

    places: tuple[Place, ...]
    ranges: bytes


@dataclass(frozen=True, slots=True)
class RangeFailure:
    """position: of the range in the request. code: an errors.Code."""

    position: int
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class PackedReadReply:
    """checksums: of the pieces of what was read (see api.storage), u32 each, in order. lengths: how many bytes each range
    really has, u32 each: short at the chunk's end, 0 where it is absent or where reading failed; empty where all have what
    was asked for. failures: the ranges that could not be read."""

    checksums: bytes
    lengths: bytes = b""
    failures: tuple[RangeFailure, ...] = ()


READ_PACKED = Method(310, "storage.read_packed", PackedReadRequest, PackedReadReply)


@lru_cache(maxsize=1024)
def _format(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}H{count}Q{count}Q{count}I{count}I")


@lru_cache(maxsize=4096)
def _numbers(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


def pack_ranges(columns: Columns) -> bytes:
    """The columns one behind the other, little-endian: u16, u64, u64, u32, u32."""
    places, inodes, indexes, offsets, lengths = columns
    return _format(len(places)).pack(*places, *inodes, *indexes, *offsets, *lengths)


def unpack_ranges(packed: bytes) -> Columns:
    """Raises ProtocolError."""
    count, rest = divmod(len(packed), _RANGE_SIZE)
    if rest or count > READ_RANGES_MAX:
        raise ProtocolError(f"ranges of {len(packed)} bytes")
    found = _format(count).unpack(packed)
    return (
        found[:count],
        found[count : 2 * count],
        found[2 * count : 3 * count],
        found[3 * count : 4 * count],
        found[4 * count :],
    )


def pack_numbers(values: Sequence[int]) -> bytes:
    """u32 each, little-endian."""
    return _numbers(len(values)).pack(*values)


def unpack_numbers(packed: bytes) -> tuple[int, ...]:
    """Raises ProtocolError."""
    if len(packed) % 4:
        raise ProtocolError(f"numbers of {len(packed)} bytes")
    return _numbers(len(packed) >> 2).unpack(packed)
