"""The index of one segment of a block store: a header and fixed records, appended. Pure.

    header   64 bytes: magic, version, length of the data file
    record   64 bytes: digest of the key, offset, length, CRC32C of the block, CRC32C of what stands before it; state

The state is the only byte that is ever overwritten, and no checksum covers it. A record is taken as far as its checksum is
right; what follows one whose checksum is wrong has not been written yet, or never will be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

from ..checksum import crc32c

RECORD_SIZE = 64
DIGEST_SIZE = 16
LIVE, DEAD = 0, 1

_MAGIC = b"fs3kvidx"
_VERSION = 1
_HEADER = struct.Struct("<8sIQ44x")
_COVERED = struct.Struct("<16sQQI")
_RECORD = struct.Struct("<16sQQIIB23x")
STATE_AT = _COVERED.size + 4
"""Where in a record its state is."""

assert _HEADER.size == _RECORD.size == RECORD_SIZE


class Record(NamedTuple):
    """A block as its segment's index has it. offset, length: bytes in the data file. at: of the record in the index."""

    digest: bytes
    offset: int
    length: int
    crc: int
    at: int


def digest(key: str | bytes) -> bytes:
    """What stands for a key: 128 bits, by which a block is found and told from all others."""
    return blake2b(key.encode() if isinstance(key, str) else key, digest_size=DIGEST_SIZE).digest()


def header(size: int) -> bytes:
    """size: bytes of the data file when it is made."""
    return _HEADER.pack(_MAGIC, _VERSION, size)


def is_header(data: bytes | memoryview) -> bool:
    """Whether this version can read the index that begins so."""
    if len(data) < RECORD_SIZE:
        return False
    magic, version, _ = _HEADER.unpack_from(data)
    return bool(magic == _MAGIC and version == _VERSION)


def pack(digest: bytes, offset: int, length: int, crc: int) -> bytes:
    covered = _COVERED.pack(digest, offset, length, crc)
    return _RECORD.pack(digest, offset, length, crc, crc32c(covered), LIVE)


def unpack(data: bytes | memoryview, at: int) -> Iterator[Record | None]:
    """The records of a part of an index whose first byte is at `at`; None for one that was deleted. Ends at the first that
    is not whole."""
    for start in range(0, len(data) - RECORD_SIZE + 1, RECORD_SIZE):
        digest, offset, length, crc, own, state = _RECORD.unpack_from(data, start)
        if crc32c(_COVERED.pack(digest, offset, length, crc)) != own:
            return
        yield Record(digest, offset, length, crc, at + start) if state == LIVE else None
