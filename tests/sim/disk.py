"""A disk in memory that keeps what a real one would, and fails as real ones do.

Process crashes lose nothing that was written. Loss of power keeps of the pages that were written since the last sync any
subset, and of the records any prefix of what was written. Besides, it can err as a whole or at single pages, flip bits, put
writes elsewhere or nowhere, fill up, be slow, and not answer at all.

A `Platter` is what is on the disk, whatever happens to processes; a `SimDisk` is one process's use of it (the port).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import trio

from fs3.checksum import Buffer
from fs3.errors import Code, ConfigError, FS3Error
from storage.disk import Disk, DiskFile, Records, Space

PAGE = 4096
CACHED = 0.7
"""How likely bytes are to be in the page cache, where they can be had at once."""
WRITE_BACK = 0.02
"""How likely a write is to make the system write back some of what is not durable yet."""


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
    """One data file. view: what readers see, the page cache included. durable: what power loss leaves.

    dirty: the pages that may differ between both, in the order of their first write. taken: one byte for each page, 1 where
    it takes up space. bad: pages that cannot be read until they are written again.
    """

    __slots__ = ("bad", "dirty", "durable", "taken", "view")

    def __init__(self) -> None:
        self.view = bytearray()
        self.durable = bytearray()
        self.dirty: dict[int, None] = {}
        self.taken = bytearray()
        self.bad: set[int] = set()

    def growth(self, offset: int, length: int) -> int:
        """How many pages more would be taken up by a write there."""
        first, end = _pages(offset, length)
        return end - first - self.taken.count(1, first, end)

    def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        view, at = self.view, offset
        if len(view) < offset:
            view.extend(bytes(offset - len(view)))
        for part in parts:
            end = at + len(part)
            view[at:end] = part
            at = end
        self._touch(offset, at - offset, 1)

    def punch(self, offset: int, length: int) -> None:
        self.view[offset : offset + length] = bytes(length)
        self._touch(offset, length, 0)

    def _touch(self, offset: int, length: int, taken: int) -> None:
        first, end = _pages(offset, length)
        self.dirty.update(dict.fromkeys(range(first, end)))
        if len(self.taken) < end:
            self.taken.extend(bytes(end - len(self.taken)))
        if not taken:  # only what is covered whole is given back
            first, end = -(-offset // PAGE), (offset + length) // PAGE
        if end > first:
            self.taken[first:end] = bytes([taken]) * (end - first)
        if self.bad:
            self.bad.difference_update(range(-(-offset // PAGE), (offset + length) // PAGE))

    def write_back(self, pages: Sequence[int]) -> None:
        """Make these pages durable, as they are now."""
        view, durable, dirty = self.view, self.durable, self.dirty
        i = 0
        while i < len(pages):
            first = end = pages[i]
            while i < len(pages) and pages[i] == end:  # neighbours at once
                dirty.pop(end, None)
                end += 1
                i += 1
            start = first * PAGE
            if len(durable) < start:
                durable.extend(bytes(start - len(durable)))
            with memoryview(view) as whole:
                durable[start : end * PAGE] = whole[start : end * PAGE]

    def lose_power(self, chance: random.Random, kept: float) -> None:
        """Each page that is not durable got to the disk, or not."""
        self.write_back([page for page in self.dirty if chance.random() < kept])
        self.dirty.clear()
        self.view = bytearray(self.durable)
        pages = -(-len(self.view) // PAGE)
        self.taken = self.taken[:pages].ljust(pages, b"\1")

    def pages_taken(self) -> list[int]:
        return [page for page, taken in enumerate(self.taken) if taken and page * PAGE < len(self.view)]

    def flip_bit(self, page: int, chance: random.Random) -> int:
        """Change one bit of a page at rest; returns where."""
        self.write_back([page])
        at = chance.randrange(page * PAGE, min(len(self.view), (page + 1) * PAGE))
        self.view[at] ^= 1 << chance.randrange(8)
        self.durable[at] = self.view[at]
        return at


def _pages(offset: int, length: int) -> tuple[int, int]:
    return offset // PAGE, -(-(offset + length) // PAGE)


class _Log:
    """A store of records: a log of batches, of which power loss keeps a part from the beginning."""

    __slots__ = ("broken", "durable", "synced", "unsynced", "view")

    def __init__(self) -> None:
        self.synced = 0  # batches that are durable
        self.view: dict[bytes, bytes] = {}
        self.durable: dict[bytes, bytes] = {}
        self.unsynced: list[tuple[list[tuple[bytes, bytes]], list[bytes]]] = []
        self.broken = False  # it cannot be opened

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


def _change(into: dict[bytes, bytes], puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None:
    into.update(puts)
    for key in deletes:
        into.pop(key, None)


@dataclass(eq=False)
class Platter:
    """What is on one disk, and what is wrong with it. capacity in bytes. fsync_lies: syncs do nothing (a canary).

    errors: share of reads, writes and syncs that fail. slips: share of writes to data files that end up elsewhere, or
    nowhere. stuck: while it is set, nothing that waits for the disk goes on, and nobody can cancel it.
    """

    chance: random.Random
    name: str = "sim"
    capacity: int = 1 << 40
    wear: Wear = field(default_factory=Wear)
    errors: float = 0.0
    slips: float = 0.0
    fsync_lies: ClassVar[bool] = False
    files: dict[str, _Store] = field(default_factory=dict)
    logs: dict[str, _Log] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    user: SimDisk | None = None
    full: bool = False
    boots: int = 1
    stuck: trio.Event | None = None

    def open(self) -> SimDisk:
        if self.user is not None and not self.user.closed:
            raise ConfigError(f"data folder {self.name} is in use by another storage daemon")
        self.user = SimDisk(self)
        return self.user

    def used(self) -> int:
        return PAGE * sum(store.taken.count(1) for store in self.files.values())

    def lose_power(self) -> None:
        """Unplugged before, see SimDisk.unplug."""
        assert self.user is None or self.user.closed
        self.boots += 1
        chance = self.chance
        for store in self.files.values():
            store.lose_power(chance, chance.choice((0.0, 0.5, 0.9, 1.0)))
        for log in self.logs.values():
            log.lose_power(chance, chance.choice((0.0, 0.5, 1.0, 1.0)))

    def flip_bit(self, chance: random.Random | None = None) -> str:
        """Change one bit of what is stored in a data file; returns where, "" where nothing is stored."""
        chance = chance or self.chance
        found = self._pick(chance)
        return f"{self.name}/{found[0]} at {self.files[found[0]].flip_bit(found[1], chance)}" if found else ""

    def spoil(self, chance: random.Random, pages: int) -> str:
        """Make some neighbouring pages of a data file unreadable; returns which, "" where nothing is stored."""
        found = self._pick(chance)
        if found is None:
            return ""
        name, page = found
        self.files[name].write_back([page])
        self.files[name].bad.update(range(page, page + pages))
        return f"{self.name}/{name} page {page} and {pages - 1} more"

    def repair(self) -> None:
        """Every page can be read again."""
        for store in self.files.values():
            store.bad.clear()

    def _pick(self, chance: random.Random) -> tuple[str, int] | None:
        pages = [(name, page) for name in sorted(self.files) for page in self.files[name].pages_taken()]
        return chance.choice(pages) if pages else None

    def stick(self) -> None:
        if self.stuck is None:
            self.stuck = trio.Event()

    def unstick(self) -> None:
        if self.stuck is not None:
            self.stuck.set()
            self.stuck = None


class SimDisk(Disk):
    """The port. unplug() makes it dead for a process that is about to be ended: nothing that this one does counts."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.name = platter.name
        self.closed = False
        self._unplugged = trio.Event()

    def unplug(self) -> None:
        self.closed = True
        self._unplugged.set()

    def boot_id(self) -> str:
        return f"boot{self.platter.boots}"

    async def step(self, time_s: float, what: str, error: Code = Code.DISK_FAILED) -> None:
        """What each read, write and sync begins with."""
        platter = self.platter
        wear, chance = platter.wear, platter.chance
        if self.closed:
            await trio.sleep_forever()  # until its process is cancelled
        draw = chance.random()
        if draw < wear.spike:
            await trio.sleep(chance.random() * wear.spike_s)
        elif draw < wear.spike + wear.waits or time_s >= wear.sync_s:
            await trio.sleep(chance.expovariate(1 / time_s))
        while platter.stuck is not None and not self._unplugged.is_set():
            await self._wait(platter.stuck)
        if self._unplugged.is_set():
            await trio.sleep_forever()
        if platter.errors and chance.random() < platter.errors:
            raise FS3Error(error, f"{what}: Input/output error (injected)")

    async def _wait(self, stuck: trio.Event) -> None:
        """As a thread waits in the kernel: no cancellation reaches it."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for event in (stuck, self._unplugged):
                    nursery.start_soon(self._first, event, nursery.cancel_scope)

    async def _first(self, event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    def check_room(self, pages: int, what: str) -> None:
        platter = self.platter
        if pages > 0 and (platter.full or platter.used() + pages * PAGE > platter.capacity):
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

    async def remove_file(self, name: str) -> None:
        if not self.closed:
            self.platter.files.pop(name, None)

    def open_records(self, name: str) -> Records:
        return _Records(self, name)

    def has_records(self, name: str) -> bool:
        return name in self.platter.logs

    def remove(self, folder: str) -> None:
        platter = self.platter
        stores: tuple[dict[str, Any], ...] = (platter.files, platter.small, platter.logs)
        for found in stores:
            for name in [name for name in found if name.startswith(f"{folder}/")]:
                del found[name]

    def close(self) -> None:
        self.closed = True
        self._unplugged.set()


def _failed(what: str) -> FS3Error:
    return FS3Error(Code.DISK_FAILED, f"{what}: Input/output error (injected)")


class _File(DiskFile):
    def __init__(self, disk: SimDisk, name: str) -> None:
        self._disk = disk
        self._path = f"{disk.name}/{name}"
        self._store = disk.platter.files.setdefault(name, _Store())

    async def read(self, offset: int, into: memoryview) -> None:
        await self._disk.step(self._disk.platter.wear.read_s, f"read {self._path}", Code.READ_FAILED)
        store, length = self._store, len(into)
        if store.bad and not store.bad.isdisjoint(range(*_pages(offset, length))):
            raise FS3Error(Code.READ_FAILED, f"read {self._path} at {offset}: Input/output error (injected)")
        with memoryview(store.view) as view:
            found = view[offset : offset + length]
            into[: len(found)] = found
            if len(found) < length:
                into[len(found) :] = bytes(length - len(found))
            found.release()

    def read_now(self, offset: int, into: memoryview) -> bool:
        disk, store = self._disk, self._store
        platter = disk.platter
        if disk.closed or platter.stuck is not None or platter.errors or platter.chance.random() >= CACHED:
            return False
        if store.bad and not store.bad.isdisjoint(range(*_pages(offset, len(into)))):
            return False
        found = bytes(store.view[offset : offset + len(into)])
        into[:] = found.ljust(len(into), b"\0")
        return True

    def read_blocking(self, offset: int, into: memoryview) -> None:
        store, length = self._store, len(into)
        if store.bad and not store.bad.isdisjoint(range(*_pages(offset, length))):
            raise FS3Error(Code.READ_FAILED, f"read {self._path} at {offset}: Input/output error (injected)")
        found = bytes(store.view[offset : offset + length])
        into[:] = found.ljust(length, b"\0")

    async def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        disk, store = self._disk, self._store
        length = sum([len(part) for part in parts])
        what = f"write {self._path}"
        disk.check_room(store.growth(offset, length), what)
        try:
            await disk.step(disk.platter.wear.write_s, what)
        except BaseException:
            if not disk.closed and length:
                store.write(offset, [b"".join(parts)[: disk.platter.chance.randrange(length)]])
            raise
        platter = disk.platter
        chance = platter.chance
        if platter.slips and chance.random() < platter.slips:
            if chance.random() < 0.5 and offset >= PAGE:
                store.write(chance.randrange(offset // PAGE) * PAGE, parts)
            return
        store.write(offset, parts)
        if store.dirty and chance.random() < WRITE_BACK:
            share = chance.choice((0.2, 1.0, 1.0))
            store.write_back([page for page in list(store.dirty) if share == 1 or chance.random() < share])

    async def punch(self, offset: int, length: int) -> None:
        await self._disk.step(self._disk.platter.wear.write_s, f"punch {self._path}")
        length = max(0, min(length, len(self._store.view) - offset))
        if length:
            self._store.punch(offset, length)

    async def zero(self, offset: int, length: int) -> None:
        await self._disk.step(self._disk.platter.wear.write_s, f"zero {self._path}")
        missing = offset + length - len(self._store.view)
        if missing > 0:
            self._store.view.extend(bytes(missing))
        self._store.punch(offset, length)

    async def sync(self) -> None:
        store = self._store
        pages = list(store.dirty)
        await self._disk.step(self._disk.platter.wear.sync_s, f"fdatasync {self._path}")
        if not self._disk.platter.fsync_lies:
            store.write_back([page for page in pages if page in store.dirty])

    def close(self) -> None:
        pass


class _Records(Records):
    def __init__(self, disk: SimDisk, name: str) -> None:
        self._disk = disk
        self._path = f"{disk.name}/{name}"
        self._log = disk.platter.logs.setdefault(name, _Log())

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        if self._log.broken:
            raise FS3Error(Code.RECORDS_DAMAGED, f"{self._path}: block checksum mismatch (injected)")
        if not self._disk.platter.fsync_lies:
            self._log.sync(self._log.written())
        return iter(sorted(self._log.view.items()))

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        if self._disk.closed:
            return
        if self._disk.platter.full:
            raise FS3Error(Code.NO_SPACE, f"write {self._path}: No space left on device")
        if self._disk.platter.errors and self._disk.platter.chance.random() < self._disk.platter.errors:
            raise _failed(f"write {self._path}")
        self._log.write([(bytes(key), bytes(value)) for key, value in puts], list(deletes))

    async def sync(self) -> None:
        written = self._log.written()
        await self._disk.step(self._disk.platter.wear.sync_s, f"fdatasync {self._path}")
        if not self._disk.platter.fsync_lies:
            self._log.sync(written)

    def close(self) -> None:
        pass
