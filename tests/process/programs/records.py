"""Records that prove themselves whole: what the test programs write, and what a check finds in its place.

A record is a header (magic, place, generation, CRC32 of all the rest) and noise derived from the same numbers, so that a
record of another place, of another generation, or with any byte wrong is told from the right one.
"""

from __future__ import annotations

import random
import struct
import zlib

_HEADER = struct.Struct("<8sIIQI")
_MAGIC = b"fs3recrd"
HEADER_BYTES = _HEADER.size

_NOISE = random.Random(1).randbytes((1 << 20) + 65_536)


def make(file: int, slot: int, generation: int, size: int) -> bytes:
    """The one record of this size for this slot of this file and this generation."""
    start = (file * 7919 + slot * 104_729 + generation * 31) % 65_536
    payload = memoryview(_NOISE)[start : start + size - HEADER_BYTES]
    crc = zlib.crc32(payload, zlib.crc32(struct.pack("<IIQ", file, slot, generation)))
    return _HEADER.pack(_MAGIC, file, slot, generation, crc) + payload


def generation_of(data: bytes, file: int, slot: int) -> int | None:
    """The generation of the record at this place; 0 where only zeros are; None where it is torn or belongs elsewhere."""
    if not any(data):
        return 0
    magic, _, _, generation, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC or data != make(file, slot, generation, len(data)):
        return None
    return int(generation)
