"""A disk in memory that keeps what a real one would: process crashes lose nothing that was written, power loss loses or
tears what was not synced, by sectors; and it can err, flip bits, fill up and be slow.

A `Platter` is what is on the disk, whatever happens to processes; a `SimDisk` is one process's use of it (the port).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import trio

from fs3.checksum import Buffer
from fs3.errors import Code, ConfigError, FS3Error
from storage.disk import Disk, DiskFile, Records, Space

SECTOR = 4096


@dataclass(slots=True)
class Wear:
    """How a disk behaves. Times in seconds; shares from 0 to 1 of operations."""

    read_s: float = 0.00002
    write_s: float = 0.00003
    sync_s: float = 0.0005
    spike: float = 0.005
    spike_s: float = 0.03
    waits: float = 0.3
    """How many reads and writes give way to other tasks; the others end at once, as from the page cache."""


class _Store:
    """One data file: what readers see, what is durable, and the writes in between, in their order."""

    __slots__ = ("durable", "synced", "unsynced", "view")

    def __init__(self) -> None:
        self.synced = 0  # writes that are durable
        self.view = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        _put(self.view, offset, data)
        self.unsynced.append((offset, data))

    def written(self) -> int:
        return self.synced + len(self.unsynced)

    def sync(self, written: int) -> None:
        """Make durable what `written` counted."""
        count = max(0, written - self.synced)
        for offset, data in self.unsynced[:count]:
            _put(self.durable, offset, data)
        del self.unsynced[:count]
        self.synced += count

    def lose_power(self, chance: random.Random, kept: float) -> None:
        """Each unsynced sector got to the disk or not, in any order."""
        for offset, data in self.unsynced:
            at = 0
            while at < len(data):
                end = min(len(data), (offset + at) // SECTOR * SECTOR + SECTOR - offset)
                if chance.random() < kept:
                    _put(self.durable, offset + at, data[at:end])
                at = end
        self.unsynced.clear()
        self.view = bytearray(self.durable)


class _Log:
    """A store of records: a log of batches, of which power loss keeps a part from the beginning."""

    __slots__ = ("durable", "synced", "unsynced", "view")

    def __init__(self) -> None:
        self.synced = 0  # batches that are durable
        self.view: dict[bytes, bytes] = {}
        self.durable: dict[bytes, bytes] = {}
        self.unsynced: list[tuple[list[tuple[bytes, bytes]], list[bytes]]] = []

    def write(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> None:
        _change(self.view, puts, deletes)
        self.unsynced.append((puts, deletes))

    def written(self) -> int:
        return self.synced + len(self.unsynced)

    def sync(self, written: int) -> None:
        """Make durable what `written` counted."""
        count = max(0, written - self.synced)
        for puts, deletes in self.unsynced[:count]:
            _change(self.durable, puts, deletes)
        del self.unsynced[:count]
        self.synced += count

    def lose_power(self, chance: random.Random, kept: float) -> None:
        count = len(self.unsynced) if kept == 1 else int(chance.random() * kept * (len(self.unsynced) + 1))
        self.sync(self.synced + count)
        self.unsynced.clear()
        self.view = dict(self.durable)


def _put(into: bytearray, offset: int, data: bytes) -> None:
    if len(into) < offset:
        into.extend(bytes(offset - len(into)))
    into[offset : offset + len(data)] = data


def _change(into: dict[bytes, bytes], puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None:
    into.update(puts)
    for key in deletes:
        into.pop(key, None)


@dataclass(eq=False)
class Platter:
    """What is on one disk, and what is wrong with it. capacity in bytes. fsync_lies: syncs do nothing (a canary)."""

    chance: random.Random
    name: str = "sim"
    capacity: int = 1 << 40
    wear: Wear = field(default_factory=Wear)
    errors: float = 0.0
    """Share of reads, writes and syncs that fail."""
    fsync_lies: ClassVar[bool] = False
    files: dict[str, _Store] = field(default_factory=dict)
    logs: dict[str, _Log] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    user: SimDisk | None = None
    full: bool = False

    def open(self) -> SimDisk:
        if self.user is not None and not self.user.closed:
            raise ConfigError(f"data folder {self.name} is in use by another storage daemon")
        self.user = SimDisk(self)
        return self.user

    def used(self) -> int:
        return sum(len(store.view) for store in self.files.values())

    def lose_power(self) -> None:
        """Unplugged before, see SimDisk.unplug."""
        assert self.user is None or self.user.closed
        chance = self.chance
        for store in self.files.values():
            store.lose_power(chance, chance.choice((0.0, 0.5, 0.9, 1.0)))
        for log in self.logs.values():
            log.lose_power(chance, chance.choice((0.0, 0.5, 1.0, 1.0)))

    def flip_bit(self) -> str:
        """Change one bit of what is stored in a data file; returns where, "" where nothing is stored."""
        names = sorted(name for name, store in self.files.items() if store.view)
        if not names:
            return ""
        name = self.chance.choice(names)
        store = self.files[name]
        at = self.chance.randrange(len(store.view))
        store.view[at] ^= 1 << self.chance.randrange(8)
        if at < len(store.durable):
            store.durable[at] = store.view[at]
        return f"{self.name}/{name} at {at}"


class SimDisk(Disk):
    """The port. unplug() makes it dead for a process that is about to be ended: nothing that this one does counts."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.name = platter.name
        self.closed = False

    def unplug(self) -> None:
        self.closed = True

    async def step(self, time_s: float, what: str) -> None:
        """What each read, write and sync begins with."""
        platter, wear = self.platter, self.platter.wear
        chance = platter.chance
        if self.closed:
            await trio.sleep_forever()  # until its process is cancelled
        if chance.random() < wear.spike:
            await trio.sleep(chance.random() * wear.spike_s)
        elif chance.random() < wear.waits or time_s >= wear.sync_s:
            await trio.sleep(chance.expovariate(1 / time_s))
        if self.closed:
            await trio.sleep_forever()
        if platter.errors and chance.random() < platter.errors:
            raise FS3Error(Code.DISK_FAILED, f"{what}: Input/output error (injected)")

    def check_room(self, growth: int, what: str) -> None:
        if growth > 0 and (self.platter.full or self.platter.used() + growth > self.platter.capacity):
            raise FS3Error(Code.NO_SPACE, f"{what}: No space left on device")

    def space(self) -> Space:
        platter = self.platter
        return Space(platter.capacity, 0 if platter.full else max(0, platter.capacity - platter.used()))

    def read_small(self, name: str) -> bytes | None:
        return self.platter.small.get(name)

    def write_small(self, name: str, data: bytes) -> None:
        if not self.closed:
            self.platter.small[name] = data

    def files(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        names = [*self.platter.files, *self.platter.small, *self.platter.logs]
        return sorted({name[len(prefix) :].partition("/")[0] for name in names if name.startswith(prefix)})

    def open_file(self, name: str) -> DiskFile:
        return _File(self, name)

    def open_records(self, name: str) -> Records:
        return _Records(self, name)

    def close(self) -> None:
        self.closed = True


class _File(DiskFile):
    def __init__(self, disk: SimDisk, name: str) -> None:
        self._disk = disk
        self._path = f"{disk.name}/{name}"
        self._store = disk.platter.files.setdefault(name, _Store())

    async def read(self, offset: int, into: memoryview) -> None:
        await self._disk.step(self._disk.platter.wear.read_s, f"read {self._path}")
        found = self._store.view[offset : offset + len(into)]
        into[: len(found)] = found
        if len(found) < len(into):
            into[len(found) :] = bytes(len(into) - len(found))

    async def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        disk = self._disk
        disk.check_room(offset + len(data) - len(self._store.view), f"write {self._path}")
        try:
            await disk.step(disk.platter.wear.write_s, f"write {self._path}")
        except BaseException:
            if not disk.closed and data:
                self._store.write(offset, data[: disk.platter.chance.randrange(len(data))])
            raise
        self._store.write(offset, data)

    def write_at_once(self, offset: int, data: Buffer) -> None:
        if self._disk.closed:
            return
        self._disk.check_room(offset + len(data) - len(self._store.view), f"write {self._path}")
        if self._disk.platter.errors and self._disk.platter.chance.random() < self._disk.platter.errors:
            raise FS3Error(Code.DISK_FAILED, f"write {self._path}: Input/output error (injected)")
        self._store.write(offset, bytes(data))

    async def punch(self, offset: int, length: int) -> None:
        await self._disk.step(self._disk.platter.wear.write_s, f"punch {self._path}")
        length = max(0, min(length, len(self._store.view) - offset))
        if length:
            self._store.write(offset, bytes(length))

    async def sync(self) -> None:
        written = self._store.written()
        await self._disk.step(self._disk.platter.wear.sync_s, f"fdatasync {self._path}")
        if not self._disk.platter.fsync_lies:
            self._store.sync(written)

    def close(self) -> None:
        pass


class _Records(Records):
    def __init__(self, disk: SimDisk, name: str) -> None:
        self._disk = disk
        self._path = f"{disk.name}/{name}"
        self._log = disk.platter.logs.setdefault(name, _Log())

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(self._log.view.items()))

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        if self._disk.closed:
            return
        if self._disk.platter.full:
            raise FS3Error(Code.NO_SPACE, f"write {self._path}: No space left on device")
        if self._disk.platter.errors and self._disk.platter.chance.random() < self._disk.platter.errors:
            raise FS3Error(Code.DISK_FAILED, f"write {self._path}: Input/output error (injected)")
        self._log.write([(bytes(key), bytes(value)) for key, value in puts], list(deletes))

    async def sync(self) -> None:
        written = self._log.written()
        await self._disk.step(self._disk.platter.wear.sync_s, f"fdatasync {self._path}")
        if not self._disk.platter.fsync_lies:
            self._log.sync(written)

    def close(self) -> None:
        pass
