"""The data files of a target: one for each group of slots of a size class, so that a sync touches little that it is not for.

A file is opened when it is needed, and closed when many others are; one with changes that are not durable stays open, so
that an error of its writes reaches the sync. `writes` counts the writes to all files of a target: what was written at count
w is durable once its file's `synced` is not below w.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import trio

from fs3.checksum import Buffer
from fs3.errors import Code, FS3Error

from . import blocks
from .allocator import SlotAllocator, runs
from .disk import Disk, DiskFile
from .records import Slot

SHIFT_MIN = 16
SHIFT_MAX = 26
GROUP_SHIFT = 28
OPEN_FILES_MAX = 512
SYNCS_AT_ONCE = 8
_HOLE_MIN = 64 * 1024

Piece = Buffer | int
"""Bytes, or so many zeros."""


def size_class(length: int) -> int:
    """The shift of the smallest slot that holds `length` bytes."""
    return max(SHIFT_MIN, (length - 1).bit_length()) if length > 0 else SHIFT_MIN


class DataFile:
    """One group's file. users: operations under way. last_write, synced: see the module."""

    __slots__ = ("file", "last_write", "name", "synced", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self.file: DiskFile | None = None
        self.users = 0
        self.last_write = 0
        self.synced = -1


class DataFiles:
    """Slots, and what is in them."""

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self._open_file = disk.open_file
        self._folder = folder
        self._files: dict[tuple[int, int], DataFile] = {}
        self._open: dict[DataFile, None] = {}  # the longest open first
        self._classes: dict[int, SlotAllocator] = {}
        self.writes = 0
        self.failed: FS3Error | None = None

    def load(self, used: dict[int, list[int]]) -> None:
        """Take over what is on the disk. used: the slots of each size class. Raises ValueError when one is used twice."""
        groups: dict[int, list[int]] = {shift: [] for shift in used}
        for name in self._disk.files(self._folder):
            place = parse_name(name)
            if place is not None:
                groups.setdefault(place[0], []).append(place[1])
        for shift, found in groups.items():
            self._classes[shift] = SlotAllocator(GROUP_SHIFT - shift, used.get(shift, ()), found)

    def abandon(self) -> None:
        """No file is opened any more: what would need that fails with NOT_SERVING."""
        self._open_file = _refuse
        while self._close_idle():
            pass

    def busy(self) -> bool:
        """Whether anything is under way."""
        return any(entry.users for entry in self._open)

    def close(self) -> None:
        for entry in self._open:
            if entry.file is not None:
                entry.file.close()
                entry.file = None
        self._open.clear()

    # Slots

    def slots(self, shift: int) -> SlotAllocator:
        found = self._classes.get(shift)
        if found is None:
            assert SHIFT_MIN <= shift <= SHIFT_MAX
            found = self._classes[shift] = SlotAllocator(GROUP_SHIFT - shift)
        return found

    def used_bytes(self) -> int:
        return sum([entry.in_use << shift for shift, entry in self._classes.items()])

    def unpin(self, slot: Slot) -> None:
        slot.pins -= 1
        if slot.freed and slot.pins == 0:
            self.slots(slot.shift).release(slot.number)

    def free(self, slot: Slot) -> None:
        """Give a slot back; at once, or when nobody reads from it any more."""
        assert not slot.freed
        slot.freed = True
        if slot.pins == 0:
            self.slots(slot.shift).release(slot.number)

    # Files

    def file(self, slot: Slot) -> DataFile:
        key = (slot.shift, slot.number >> GROUP_SHIFT - slot.shift)
        found = self._files.get(key)
        if found is None:
            found = self._files[key] = DataFile(f"{self._folder}/{file_name(*key)}")
        return found

    def _use(self, entry: DataFile) -> DiskFile:
        file = entry.file
        if file is None:
            if len(self._open) >= OPEN_FILES_MAX:
                self._close_idle()
            file = entry.file = self._open_file(entry.name)
            self._open[entry] = None
        entry.users += 1
        return file

    def _close_idle(self) -> bool:
        """Close one that is not in use, and durable; whether there was one."""
        for entry in self._open:
            if not entry.users and max(0, entry.synced) >= entry.last_write and entry.file is not None:
                entry.file.close()
                entry.file = None
                del self._open[entry]
                return True
        return False

    def read_blocking(self, slot: Slot, offset: int, into: memoryview) -> None:
        """While the target is opened: waits for the disk."""
        entry = self.file(slot)
        file = self._use(entry)
        entry.users -= 1
        file.read_blocking(_start(slot) + offset, into)

    def read_now(self, slot: Slot, offset: int, into: memoryview) -> bool:
        """If that needs no waiting; False where it would."""
        shift, number = slot.shift, slot.number
        entry = self._files.get((shift, number >> GROUP_SHIFT - shift))
        file = entry.file if entry is not None else None
        if file is None:
            entry = self.file(slot)
            file = self._use(entry)
            entry.users -= 1
        return file.read_now(((number & (1 << GROUP_SHIFT - shift) - 1) << shift) + offset, into)

    async def read(self, slot: Slot, offset: int, into: memoryview, *, medium: bool = False) -> None:
        """medium: past the page cache. The slot is pinned meanwhile."""
        entry = self.file(slot)
        file = self._use(entry)
        slot.pins += 1
        try:
            start = _start(slot) + offset
            if medium:
                await file.read_medium(start, into)
            else:
                await file.read(start, into)
        finally:
            entry.users -= 1
            self.unpin(slot)

    async def prefetch(self, slot: Slot, length: int) -> bool:
        """Read the start of a slot into the page cache, if there is one. The slot is pinned meanwhile."""
        entry = self.file(slot)
        file = self._use(entry)
        slot.pins += 1
        try:
            return await file.prefetch(_start(slot), length)
        finally:
            entry.users -= 1
            self.unpin(slot)

    async def write(self, slot: Slot, offset: int, pieces: Sequence[Piece]) -> int:
        """Write pieces one behind the other; returns the count of writes that has them."""
        entry = self.file(slot)
        file = self._use(entry)
        start = _start(slot) + offset
        try:
            for piece in pieces:
                if isinstance(piece, int):
                    await self._write_mixed(file, start, pieces)
                    break
            else:
                await file.write(start, pieces)  # type: ignore[arg-type]
        finally:
            entry.users -= 1
            self.writes += 1
            entry.last_write = self.writes
        return self.writes

    async def _write_mixed(self, file: DiskFile, at: int, pieces: Sequence[Piece]) -> None:
        """Pieces with zeros among them, which take no space where they are many."""
        together: list[Buffer] = []
        length = 0
        for piece in pieces:
            if not isinstance(piece, int):
                together.append(piece)
                length += len(piece)
            elif piece < _HOLE_MIN:
                together += blocks.zeros(piece)
                length += piece
            else:
                if together:
                    await file.write(at, together)
                await file.zero(at + length, piece)
                at += length + piece
                together, length = [], 0
        if together:
            await file.write(at, together)

    def is_synced(self, slot: Slot, writes: int) -> bool:
        return self.file(slot).synced >= writes

    def dirty(self) -> list[DataFile]:
        return [entry for entry in self._files.values() if entry.last_write > max(0, entry.synced)]

    async def sync(self, files: Iterable[DataFile]) -> None:
        """Make durable what was written to them. After a failure nobody knows what is: all later ones fail too."""
        if self.failed is not None:
            raise self.failed
        todo = list(files)
        if len(todo) == 1:
            await self._sync_one(todo[0])
        elif todo:
            workers = min(SYNCS_AT_ONCE, len(todo))
            async with trio.open_nursery() as nursery:
                for _ in range(workers):
                    nursery.start_soon(self._sync_some, todo)
            if self.failed is not None:
                raise self.failed

    async def _sync_some(self, todo: list[DataFile]) -> None:
        while todo and self.failed is None:
            try:
                await self._sync_one(todo.pop())
            except FS3Error:
                return  # remembered

    async def _sync_one(self, entry: DataFile) -> None:
        file = self._use(entry)
        reached = self.writes
        try:
            await file.sync()
        except FS3Error as error:
            self.failed = FS3Error(Code.DISK_FAILED, error.message)
            raise self.failed from None
        finally:
            entry.users -= 1
        entry.synced = max(entry.synced, reached)

    # Giving space back

    async def give_back(self, bytes_kept: int, slots_max: int) -> None:
        """Remove files that hold nothing, and punch out free slots, but for so many bytes of each size class.

        One at a time, and not while files are synced.
        """
        for shift, entry in list(self._classes.items()):
            keep = bytes_kept >> shift
            groups = entry.take_empty(keep)
            for group in groups:
                await self._remove(shift, group)
            entry.removed(groups)
            numbers = entry.take_for_punch(keep, slots_max)
            try:
                for first, count in runs(sorted(numbers)):
                    await self._punch(shift, first, count)
            finally:
                entry.punched(numbers)

    async def _remove(self, shift: int, group: int) -> None:
        entry = self._files.pop((shift, group), None)
        if entry is not None and entry.file is not None:
            entry.file.close()
            self._open.pop(entry, None)
        await self._disk.remove_file(f"{self._folder}/{file_name(shift, group)}")

    async def _punch(self, shift: int, first: int, count: int) -> None:
        """Slots in a row, which may belong to several groups."""
        bits = GROUP_SHIFT - shift
        end = first + count
        while first < end:
            stop = min(end, (first >> bits) + 1 << bits)
            entry = self.file(Slot(shift, first))
            file = self._use(entry)
            try:
                await file.punch((first & (1 << bits) - 1) << shift, (stop - first) << shift)
            finally:
                entry.users -= 1
            first = stop


def _refuse(name: str) -> DiskFile:
    raise FS3Error(Code.NOT_SERVING, f"{name}: its target is no longer here")


def _start(slot: Slot) -> int:
    """Where it begins in its file."""
    return (slot.number & (1 << GROUP_SHIFT - slot.shift) - 1) << slot.shift


def file_name(shift: int, group: int) -> str:
    return f"data-{shift}-{group}"


def parse_name(name: str) -> tuple[int, int] | None:
    """(shift, group) of a data file's name; None for another name."""
    head, _, rest = name.partition("-")
    shift, _, group = rest.partition("-")
    if head != "data" or not shift.isdigit() or not group.isdigit():
        return None
    return int(shift), int(group)
