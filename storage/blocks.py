"""Block checksums of a chunk as its content changes, without reading what does not change. Pure.

The checksums of a content are the CRC32C of its blocks of BLOCK_SIZE bytes (the last one may be shorter), packed as
little-endian u32. CRCs continue: the checksum of a longer block comes from that of its beginning and the bytes that follow.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from fs3.checksum import BLOCK_SIZE, Buffer, crc32c

ZEROS = bytes(BLOCK_SIZE)
_ZERO_PIECE = bytes(1024 * 1024)


@lru_cache(maxsize=2048)
def _format(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


def pack(checksums: tuple[int, ...]) -> bytes:
    return _format(len(checksums)).pack(*checksums)


def unpack(packed: bytes) -> tuple[int, ...]:
    values: tuple[int, ...] = _format(len(packed) >> 2).unpack(packed)
    return values


def at(packed: bytes, block: int) -> int:
    """The checksum of one block."""
    return int.from_bytes(packed[4 * block : 4 * block + 4], "little")


@lru_cache(maxsize=16)
def _of_zeros(length: int) -> int:
    return crc32c(ZEROS[:length])


def overwritten(
    packed: bytes, offset: int, data: memoryview, pieces: tuple[int, ...], head: int, tail: Buffer = b""
) -> bytes:
    """The checksums after `data` was written at `offset`, inside the content or right at its end.

    pieces: of data, cut at the block borders. head: the checksum of the bytes between the start of the first block and
    offset (unused where offset starts a block). tail: the old bytes behind the data, up to the end of its last block.
    """
    first, within = divmod(offset, BLOCK_SIZE)
    values = list(pieces)
    if within:
        values[0] = crc32c(data[: BLOCK_SIZE - within], head)
    if len(tail):
        values[-1] = crc32c(tail, values[-1])
    fresh = _format(len(values)).pack(*values)
    return packed[: 4 * first] + fresh + packed[4 * (first + len(values)) :]


def zeroed(packed: bytes, offset: int, end: int, head: int, tail: Buffer = b"") -> bytes:
    """The checksums after [offset, end), inside the content, became zeros. head, tail: as for overwritten()."""
    first, last = offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
    values = []
    for block in range(first, last + 1):
        start = max(offset, block * BLOCK_SIZE)
        count = min(end, (block + 1) * BLOCK_SIZE) - start
        values.append(crc32c(ZEROS[:count], head) if start % BLOCK_SIZE else _of_zeros(count))
    if len(tail):
        values[-1] = crc32c(tail, values[-1])
    return packed[: 4 * first] + _format(len(values)).pack(*values) + packed[4 * (last + 1) :]


def extended(packed: bytes, length: int, new_length: int) -> bytes:
    """The checksums after zeros were put behind the content, up to new_length."""
    if new_length <= length:
        assert new_length == length
        return packed
    values = []
    within = length % BLOCK_SIZE
    if within:
        fill = min(BLOCK_SIZE - within, new_length - length)
        values.append(crc32c(ZEROS[:fill], at(packed, length // BLOCK_SIZE)))
        length += fill
        packed = packed[:-4]
    whole, rest = divmod(new_length - length, BLOCK_SIZE)
    values.extend([_of_zeros(BLOCK_SIZE)] * whole)
    if rest:
        values.append(_of_zeros(rest))
    return packed + _format(len(values)).pack(*values)


def cut(packed: bytes, new_length: int, last: Buffer) -> bytes:
    """The checksums after the content was cut. last: the bytes of the last block that stay, where it became partial."""
    whole, rest = divmod(new_length, BLOCK_SIZE)
    assert len(last) == rest
    kept = packed[: 4 * whole]
    return kept + crc32c(last).to_bytes(4, "little") if rest else kept


def zeros(length: int) -> list[Buffer]:
    """Buffers of `length` zero bytes in all."""
    whole, rest = divmod(length, len(_ZERO_PIECE))
    parts: list[Buffer] = [_ZERO_PIECE] * whole
    if rest:
        parts.append(memoryview(_ZERO_PIECE)[:rest])
    return parts


def zeros_head(offset: int) -> int:
    """The checksum of the zeros that stand before `offset` in its block."""
    return at(extended(b"", 0, offset), offset // BLOCK_SIZE) if offset % BLOCK_SIZE else 0
