"""The limits that every engine enforces alike, and what an atomic add does. Pure."""

from __future__ import annotations

from ..errors import Code, FS3Error
from .base import KEY_SIZE_MAX, TRANSACTION_SIZE_MAX, VALUE_SIZE_MAX

KEY_END = b"\xff"
"""Keys are below this; a range may end here. What lies beyond belongs to FoundationDB itself."""

_U64 = 8
_U64_MASK = (1 << 64) - 1


def check_key(key: bytes) -> None:
    """Refuse to write a key that is too long. Raises KEY_TOO_LARGE."""
    assert key < KEY_END, key
    if len(key) > KEY_SIZE_MAX:
        raise FS3Error(Code.KEY_TOO_LARGE, f"a key of {len(key)} bytes; the most is {KEY_SIZE_MAX}")


def check_value(value: bytes) -> None:
    """Refuse to write a value that is too long. Raises VALUE_TOO_LARGE."""
    if len(value) > VALUE_SIZE_MAX:
        raise FS3Error(Code.VALUE_TOO_LARGE, f"a value of {len(value)} bytes; the most is {VALUE_SIZE_MAX}")


def check_size(size: int) -> None:
    """Refuse to commit a transaction of `size` bytes. Raises TRANSACTION_TOO_LARGE."""
    if size > TRANSACTION_SIZE_MAX:
        raise FS3Error(Code.TRANSACTION_TOO_LARGE, f"a transaction of {size} bytes; the most is {TRANSACTION_SIZE_MAX}")


def add_to_counter(value: bytes | None, delta: int) -> bytes:
    """The counter after an atomic add: 8 little-endian bytes, modulo 2**64.

    A shorter or absent value is extended with zeros, a longer one is cut to 8 bytes, as FoundationDB does.
    """
    present = int.from_bytes(value[:_U64], "little") if value else 0
    return ((present + delta) & _U64_MASK).to_bytes(_U64, "little")
