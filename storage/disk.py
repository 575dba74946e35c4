"""The disk port: what the engine needs of one disk. The Linux adapter is disk_linux; a simulator brings its own.

Everything lives in one folder. Errors of the disk are raised as FS3Error: NO_SPACE where it is full, READ_FAILED where some
bytes of a data file cannot be read, DISK_FAILED where it does not do what it should. "Survives a crash" means: of this
process. "Durable" means: power loss too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fs3.checksum import Buffer


@dataclass(frozen=True, slots=True)
class Space:
    """Of the file system, in bytes. free: for us, without what only root may use."""

    total: int
    free: int


class DiskFile(ABC):
    """A sparse file of data. What was never written reads as zeros, also beyond its end. A write survives a crash once
    it returned. The adapter decides what runs at once and what in a thread."""

    @abstractmethod
    async def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`."""

    def read_now(self, offset: int, into: memoryview) -> bool:
        """Fill `into` if that needs no waiting for the disk. False: it would, and `into` holds anything."""
        return False

    async def read_medium(self, offset: int, into: memoryview) -> None:
        """Fill `into` from the disk itself, past what is in memory, where that can be."""
        await self.read(offset, into)

    async def prefetch(self, offset: int, length: int) -> bool:
        """Read a range into the page cache; whether there is one."""
        return False

    @abstractmethod
    def read_blocking(self, offset: int, into: memoryview) -> None:
        """Fill `into`; all tasks wait."""

    @abstractmethod
    async def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        """Write the parts one behind the other. Fails or is cancelled: any part of the range may have changed.

        When cancelled, nothing is being written any more.
        """

    @abstractmethod
    async def punch(self, offset: int, length: int) -> None:
        """Give the range's space back, where the file system can; it reads as zeros then, or as before."""

    @abstractmethod
    async def zero(self, offset: int, length: int) -> None:
        """Make the range zeros, in as little space as can be. Else as write()."""

    @abstractmethod
    async def sync(self) -> None:
        """Make durable what was written before the call."""

    @abstractmethod
    def close(self) -> None: ...


class Records(ABC):
    """A small ordered store of records. A write survives a crash, whole, once it returned."""

    @abstractmethod
    def load(self) -> Iterator[tuple[bytes, bytes]]:
        """All records in the order of their keys. Once all were taken, all are durable. Raises RECORDS_DAMAGED."""

    @abstractmethod
    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        """Change some records, all or none, in microseconds and without giving way to other tasks."""

    @abstractmethod
    async def sync(self) -> None:
        """Make durable what was written before the call."""

    @abstractmethod
    def close(self) -> None: ...


class Disk(ABC):
    """One folder on one disk, which belongs to one process while it is open. Names are relative, `/` makes subfolders."""

    name: str
    """Where it is, for people."""

    @abstractmethod
    def space(self) -> Space: ...

    @abstractmethod
    def read_small(self, name: str) -> bytes | None:
        """The content of a small file, None where there is none."""

    @abstractmethod
    def write_small(self, name: str, data: bytes) -> None:
        """Replace a small file, all or nothing, durably."""

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder; empty where it does not exist."""

    @abstractmethod
    def open_file(self, name: str) -> DiskFile:
        """Open a data file, creating it and its folder."""

    @abstractmethod
    async def remove_file(self, name: str) -> None:
        """Remove a data file, which nobody has open; power loss may bring it back."""

    @abstractmethod
    def boot_id(self) -> str:
        """Another one after each start of the host: what was not synced may have been lost at it."""

    @abstractmethod
    def open_records(self, name: str) -> Records:
        """Open a store of records, creating it. Raises RECORDS_DAMAGED, also when they are loaded."""

    @abstractmethod
    def has_records(self, name: str) -> bool:
        """Whether there is a store of records; open_records() would make one anew where it was lost."""

    @abstractmethod
    def remove(self, folder: str) -> None:
        """Remove a folder with all that is in it, of which nothing is open; there may be none."""

    @abstractmethod
    def close(self) -> None:
        """Give the folder up. Files and stores were closed before."""
