"""Buffers for received payloads, used again once nobody refers to them: fresh memory costs more than the bytes' transfer,
since the kernel must map and clear it page by page."""

from __future__ import annotations

import sys

POOLED_SIZE_MIN = 32 * 1024
POOLED_SIZE_MAX = 4 * 1024 * 1024


def _references_when_free() -> int:
    """What getrefcount says of a buffer that only its shelf, and the loop over it, refer to; depends on the interpreter."""
    shelf = [bytearray()]
    for buffer in shelf:
        return sys.getrefcount(buffer)
    raise AssertionError


_REFERENCES_WHEN_FREE = _references_when_free()


class BufferPool:
    """Keeps at most `kept_max` bytes. A buffer is in use as long as any memoryview of it lives; nobody hands it back."""

    def __init__(self, kept_max: int = 32 * 1024 * 1024) -> None:
        self._kept_max = kept_max
        self._kept = 0
        self._shelves: dict[int, list[bytearray]] = {}  # by size, a power of two

    def take(self, size: int) -> memoryview:
        """A buffer of `size` bytes, which hold anything."""
        if not POOLED_SIZE_MIN <= size <= POOLED_SIZE_MAX:
            return memoryview(bytearray(size))
        rounded = 1 << (size - 1).bit_length()
        shelf = self._shelves.setdefault(rounded, [])
        for buffer in shelf:
            if sys.getrefcount(buffer) == _REFERENCES_WHEN_FREE:
                return memoryview(buffer)[:size]
        if self._kept + rounded > self._kept_max:
            self._drop_free()
        fresh = bytearray(rounded)
        if self._kept + rounded <= self._kept_max:
            shelf.append(fresh)
            self._kept += rounded
        return memoryview(fresh)[:size]

    def _drop_free(self) -> None:
        """Make room for other sizes."""
        for rounded, shelf in self._shelves.items():
            busy = []
            for buffer in shelf:
                if sys.getrefcount(buffer) > _REFERENCES_WHEN_FREE:
                    busy.append(buffer)
                else:
                    self._kept -= rounded
            shelf[:] = busy
