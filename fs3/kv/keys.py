"""Ordered keys: pack a tuple of int and bytes so that byte order is tuple order. Pure.

An int (0 <= n < 2**64) is packed as 8 big-endian bytes; bytes may stand only last and are packed as they are. A key
begins with a 4-byte ASCII tag that names its kind.
"""

from __future__ import annotations

_U64 = 8


def key(tag: bytes, *parts: int | bytes) -> bytes:
    """The key of a tag and its parts."""
    assert len(tag) == 4, tag
    pieces = [tag]
    for position, part in enumerate(parts):
        if isinstance(part, int):
            pieces.append(part.to_bytes(_U64, "big"))
        else:
            assert position == len(parts) - 1, "bytes may stand only last in a key"
            pieces.append(part)
    return b"".join(pieces)


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """[begin, end) of all keys that start with `prefix`."""
    return prefix, after_prefix(prefix)


def after_prefix(prefix: bytes) -> bytes:
    """The first key after all those that start with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    assert stripped, "no key follows this prefix"
    return stripped[:-1] + bytes([stripped[-1] + 1])


def unpack_int(data: bytes, offset: int) -> int:
    """The int packed at an offset of a key."""
    return int.from_bytes(data[offset : offset + _U64], "big")
