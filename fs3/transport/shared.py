"""Memory that two processes of one host share, for bulk data.

Its owner, the client, makes it, hands out slots of it and decides when one may be used again. The other side gets the file
descriptor; it trusts nothing in it: the size is sealed, and every offset is checked against it.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from ..errors import ProtocolError
from .slots import Slots

POOL_SIZE = 32 * 1024 * 1024
"""Of one connection. Only what was used takes memory, and what was used last is used again first."""
PEER_SIZE_MAX = 256 * 1024 * 1024
SLOT_SIZE_MIN = 64 * 1024
SLOT_SIZE_MAX = 16 * 1024 * 1024


def sealed_file(name: str, size: int) -> int:
    """The descriptor of a new memfd, of zeros, that nobody can make smaller or larger. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sealed_memory(name: str, size: int, populate: int = 0) -> tuple[int, mmap.mmap]:
    """A memfd that nobody can make smaller or larger, and a mapping of it. populate: mmap.MAP_POPULATE to have all of its
    pages at once. Raises OSError."""
    fd = sealed_file(name, size)
    try:
        return fd, mmap.mmap(fd, size, mmap.MAP_SHARED | populate)
    except BaseException:
        os.close(fd)
        raise


class SharedPool:
    """Sealed shared memory, cut into slots of powers of two."""

    def __init__(self, size: int) -> None:
        """Raises OSError where the system has none to give."""
        self.size = size
        self.fd, mapping = sealed_memory("fs3-bulk", size)
        self._view = memoryview(mapping)
        self._slots = Slots(size, SLOT_SIZE_MIN, SLOT_SIZE_MAX)

    def close_fd(self) -> None:
        """The other side has its own; the memory stays."""
        os.close(self.fd)
        self.fd = -1

    def take(self, size: int) -> int | None:
        """The offset of a slot of `size` bytes, which hold anything; None where there is none left."""
        return self._slots.take(size) if self.size else None

    def give_back(self, offset: int, size: int) -> None:
        """A slot that neither side will touch any more. size: as it was taken."""
        self._slots.give_back(offset, size)

    def view(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]

    def close(self) -> None:
        """Hand nothing out any more. The memory goes with the last view of it."""
        self._view = memoryview(b"")
        self.size = 0


class PeerMemory:
    """The other side's memory. Raises ProtocolError where it is not what it must be, OSError."""

    def __init__(self, fd: int) -> None:
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise ProtocolError("what was offered as shared memory is none") from None
        if not seals & fcntl.F_SEAL_SHRINK:  # else to touch what was cut off would kill us
            raise ProtocolError("shared memory was offered that can shrink")
        self.size = os.fstat(fd).st_size
        if not 0 < self.size <= PEER_SIZE_MAX:
            raise ProtocolError(f"shared memory of {self.size} bytes was offered")
        self._view = memoryview(mmap.mmap(fd, self.size))

    def view(self, offset: int, size: int) -> memoryview:
        """Raises ProtocolError unless all of it lies inside."""
        if offset > self.size or size > self.size - offset:
            raise ProtocolError(f"{size} bytes at {offset} of shared memory of {self.size}")
        return self._view[offset : offset + size]
