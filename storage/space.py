"""Keeps a reserve of a disk free, without asking the file system at each write."""

from __future__ import annotations

from fs3.errors import Code, FS3Error

from .disk import Disk

_GRANT = 64 * 1024 * 1024


class SpaceBudget:
    """What the targets of one disk may still write. Others may fill the disk too, so a grant is small."""

    def __init__(self, disk: Disk, reserve_bytes: int) -> None:
        self._disk = disk
        self._reserve_bytes = reserve_bytes
        self._granted = 0

    def keep_free(self, reserve_bytes: int) -> None:
        """From now on."""
        self._reserve_bytes, self._granted = reserve_bytes, 0

    def take(self, length: int) -> None:
        """Claim bytes about to be written to fresh space. Raises NO_SPACE."""
        if length > self._granted:
            free = self._disk.space().free - self._reserve_bytes
            if length > free:
                self._granted = 0
                raise FS3Error(
                    Code.NO_SPACE, f"{self._disk.name} is full (its last {self._reserve_bytes} bytes are kept free)"
                )
            self._granted = min(free, max(length, _GRANT))
        self._granted -= length
