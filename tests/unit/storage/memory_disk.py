"""A disk in memory that can lose its process at any step: what was written stays, the write under way may be torn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fs3.checksum import Buffer
from fs3.errors import ConfigError
from storage.disk import Disk, DiskFile, Records, Space


class Crash(BaseException):
    """The process is gone. Not an Exception, so that nobody handles it."""


class MemoryDisk(Disk):
    """crash_after: how many more writes succeed before Crash is raised; None for no end. torn: how much of the write that
    crashes is done, from 0 to 1 (record writes are whole or not at all)."""

    def __init__(self) -> None:
        self.name = "memory"
        self.data: dict[str, bytearray] = {}
        self.stores: dict[str, dict[bytes, bytes]] = {}
        self.small: dict[str, bytes] = {}
        self.crash_after: int | None = None
        self.torn = 0.0
        self._open = True

    def reopen(self) -> MemoryDisk:
        """Open the disk (again), after close() or a crash."""
        self._open = True
        self.crash_after = None
        return self

    def exclusive(self) -> MemoryDisk:
        """Open it as a process does, which another one may have done before."""
        if self._open:
            raise ConfigError("in use")
        return self.reopen()

    def step(self, write: Callable[[float], None]) -> None:
        if self.crash_after is not None:
            if self.crash_after == 0:
                write(self.torn)
                raise Crash
            self.crash_after -= 1
        write(1.0)

    def space(self) -> Space:
        return Space(1 << 40, 1 << 39)

    def read_small(self, name: str) -> bytes | None:
        return self.small.get(name)

    def write_small(self, name: str, data: bytes) -> None:
        self.small[name] = data

    def files(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        names = [*self.data, *self.small, *self.stores]
        return sorted({name[len(prefix) :].partition("/")[0] for name in names if name.startswith(prefix)})

    def open_file(self, name: str) -> DiskFile:
        return _File(self, self.data.setdefault(name, bytearray()))

    def open_records(self, name: str) -> Records:
        return _Records(self, self.stores.setdefault(name, {}))

    def has_records(self, name: str) -> bool:
        return name in self.stores

    def remove(self, folder: str) -> None:
        found: tuple[dict[str, Any], ...] = (self.data, self.small, self.stores)
        for each in found:
            for name in [name for name in each if name.startswith(f"{folder}/")]:
                del each[name]

    def close(self) -> None:
        self._open = False


class _File(DiskFile):
    def __init__(self, disk: MemoryDisk, data: bytearray) -> None:
        self._disk = disk
        self._data = data

    async def read(self, offset: int, into: memoryview) -> None:
        found = self._data[offset : offset + len(into)]
        into[:] = found + bytes(len(into) - len(found))

    def read_now(self, offset: int, into: memoryview) -> bool:
        found = self._data[offset : offset + len(into)]
        into[: len(found)] = found
        return len(found) == len(into)

    async def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        self.write_at_once(offset, b"".join(parts))

    def write_at_once(self, offset: int, data: Buffer) -> None:
        def write(share: float) -> None:
            piece = bytes(data)[: int(len(data) * share)]
            if piece:
                if len(self._data) < offset:
                    self._data.extend(bytes(offset - len(self._data)))
                self._data[offset : offset + len(piece)] = piece

        self._disk.step(write)

    async def punch(self, offset: int, length: int) -> None:
        length = max(0, min(length, len(self._data) - offset))
        self._data[offset : offset + length] = bytes(length)

    async def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Records(Records):
    def __init__(self, disk: MemoryDisk, data: dict[bytes, bytes]) -> None:
        self._disk = disk
        self._data = data

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(self._data.items()))

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        def write(share: float) -> None:
            if share == 1.0:
                self._data.update(puts)
                for key in deletes:
                    self._data.pop(key, None)

        self._disk.step(write)

    async def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
