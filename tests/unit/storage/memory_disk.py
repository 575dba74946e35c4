"""A disk in memory that can lose its process, or its power, at any step.

A crash of the process keeps what was written; the write under way may be torn. Power loss keeps of the pages written since
the last sync any subset, and of the records any prefix that has those of the last sync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from fs3.checksum import Buffer
from fs3.errors import ConfigError
from storage.disk import Disk, DiskFile, Records, Space

PAGE = 4096


class Crash(BaseException):
    """The process is gone. Not an Exception, so that nobody handles it."""


class Store:
    """The records. log: what was written since `durable`."""

    def __init__(self) -> None:
        self.view: dict[bytes, bytes] = {}
        self.durable: dict[bytes, bytes] = {}
        self.log: list[tuple[list[tuple[bytes, bytes]], list[bytes]]] = []

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None:
        change(self.view, puts, deletes)
        self.log.append((list(puts), list(deletes)))

    def keep(self, count: int) -> None:
        """Make the first `count` writes of the log durable."""
        for puts, deletes in self.log[:count]:
            change(self.durable, puts, deletes)
        del self.log[:count]


def change(into: dict[bytes, bytes], puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]) -> None:
    into.update(puts)
    for key in deletes:
        into.pop(key, None)


class MemoryDisk(Disk):
    """crash_after: how many more steps (writes, syncs) succeed before Crash is raised; None for no end. torn: how much of
    the write that crashes is done, from 0 to 1 (record writes are whole or not at all)."""

    def __init__(self) -> None:
        self.name = "memory"
        self.data: dict[str, bytearray] = {}
        self.durable: dict[str, bytearray] = {}
        self.unsynced: dict[str, set[int]] = {}  # pages
        self.stores: dict[str, Store] = {}
        self.small: dict[str, bytes] = {}
        self.crash_after: int | None = None
        self.torn = 0.0
        self.free = 1 << 39
        self.meanwhile: dict[int, Callable[[], None]] = {}  # what happens before the n-th step from now
        self.boots = 1
        self._open = True

    def reopen(self) -> MemoryDisk:
        """Open the disk (again), after close() or a crash."""
        self._open = True
        self.crash_after = None
        self.meanwhile.clear()
        return self

    def lose_power(self, chance: Random) -> None:
        self.boots += 1
        kept = chance.choice((0.0, 0.3, 0.7, 0.9, 1.0))
        for name, pages in self.unsynced.items():
            view = self.data[name]
            for page in sorted(pages):
                if chance.random() < kept:
                    put(self.durable[name], page * PAGE, view[page * PAGE : (page + 1) * PAGE])
            pages.clear()
        self.data = {name: bytearray(content) for name, content in self.durable.items()}
        for store in self.stores.values():
            store.keep(chance.choice((0, len(store.log), chance.randint(0, len(store.log)))))
            store.log.clear()
            store.view = dict(store.durable)

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

    def give_way(self) -> None:
        """What a call that may take long begins with: others go on."""
        calls, self.meanwhile = self.meanwhile, {}
        crash_after, self.crash_after = self.crash_after, None
        if 0 in calls:
            calls[0]()
        self.crash_after = crash_after
        self.meanwhile = {number - 1: call for number, call in calls.items() if number}

    def space(self) -> Space:
        return Space(1 << 40, self.free)

    def read_small(self, name: str) -> bytes | None:
        return self.small.get(name)

    def write_small(self, name: str, data: bytes) -> None:
        self.small[name] = data

    def files(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        names = [*self.data, *self.small, *self.stores]
        return sorted({name[len(prefix) :].partition("/")[0] for name in names if name.startswith(prefix)})

    def open_file(self, name: str) -> DiskFile:
        if name not in self.data:
            self.data[name], self.durable[name], self.unsynced[name] = bytearray(), bytearray(), set()
        return _File(self, name)

    async def remove_file(self, name: str) -> None:
        self.data.pop(name, None)
        self.durable.pop(name, None)
        self.unsynced.pop(name, None)

    def boot_id(self) -> str:
        return f"boot{self.boots}"

    def open_records(self, name: str) -> Records:
        return _Records(self, self.stores.setdefault(name, Store()))

    def has_records(self, name: str) -> bool:
        return name in self.stores

    def remove(self, folder: str) -> None:
        found: tuple[dict[str, Any], ...] = (self.data, self.durable, self.unsynced, self.small, self.stores)
        for each in found:
            for name in [name for name in each if name.startswith(f"{folder}/")]:
                del each[name]

    def close(self) -> None:
        self._open = False


def put(into: bytearray, offset: int, data: Buffer) -> None:
    if len(into) < offset:
        into.extend(bytes(offset - len(into)))
    into[offset : offset + len(data)] = data


class _File(DiskFile):
    def __init__(self, disk: MemoryDisk, name: str) -> None:
        self._disk = disk
        self._name = name

    async def read(self, offset: int, into: memoryview) -> None:
        self.read_blocking(offset, into)

    def read_blocking(self, offset: int, into: memoryview) -> None:
        found = self._disk.data[self._name][offset : offset + len(into)]
        into[:] = found + bytes(len(into) - len(found))

    def read_now(self, offset: int, into: memoryview) -> bool:
        found = self._disk.data[self._name][offset : offset + len(into)]
        into[: len(found)] = found
        return len(found) == len(into)

    async def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        self._disk.give_way()
        data = b"".join(parts)
        self._disk.step(lambda share: self._write(offset, data[: int(len(data) * share)]))

    def _write(self, offset: int, data: bytes) -> None:
        if data:
            put(self._disk.data[self._name], offset, data)
            self._disk.unsynced[self._name].update(range(offset // PAGE, -(-(offset + len(data)) // PAGE)))

    async def punch(self, offset: int, length: int) -> None:
        self._disk.step(lambda share: self._write(offset, bytes(int(length * share))))

    async def zero(self, offset: int, length: int) -> None:
        await self.punch(offset, length)

    async def sync(self) -> None:
        pages = sorted(self._disk.unsynced[self._name])
        self._disk.give_way()
        unsynced = self._disk.unsynced[self._name]

        def keep(share: float) -> None:
            for page in pages[: int(len(pages) * share)]:
                view = self._disk.data[self._name]
                put(self._disk.durable[self._name], page * PAGE, view[page * PAGE : (page + 1) * PAGE])
                unsynced.discard(page)

        self._disk.step(keep)

    def close(self) -> None:
        pass


class _Records(Records):
    def __init__(self, disk: MemoryDisk, store: Store) -> None:
        self._disk = disk
        self._store = store

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        self._store.keep(len(self._store.log))
        return iter(sorted(self._store.view.items()))

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        self._disk.step(lambda share: self._store.write(puts, deletes) if share == 1.0 else None)

    async def sync(self) -> None:
        count = len(self._store.log)
        self._disk.give_way()
        self._disk.step(lambda share: self._store.keep(int(count * share)))

    def close(self) -> None:
        pass
