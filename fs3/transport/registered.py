"""Memory that users registered, so that bulk data goes straight to and from it where a transport can do that.

Registering changes nothing of what a call does, but perhaps what it costs. Where a transport cannot use the memory as it is
(TCP; memory that no other process can map; no more memory may be pinned), bulk data goes as if it were not registered.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import TracebackType
from typing import Any

import trio

from ..errors import Code, FS3Error

LOOK_AGAIN_S = 0.02


class Registration:
    """Registered memory. fd, offset: the file of shared memory whose bytes these are, and from where on; -1 for none.

    Close it before the memory is used for something else than reads and writes through this client.
    """

    def __init__(self, memory: memoryview, fd: int = -1) -> None:
        """fd: as of Transport.register. Raises ValueError on memory of no use."""
        if memory.readonly or not memory.c_contiguous or memory.format != "B" or memory.ndim != 1 or not len(memory):
            raise ValueError("only writable, contiguous memory of single bytes can be registered")
        self.memory = memory
        self.begin = address_of(memory)
        self.end = self.begin + len(memory)
        self.fd, self.offset = file_of(self.begin, self.end, fd)
        self.holders: dict[Hashable, Callable[[], None]] = {}
        """What is to be done once nothing is under way: by those who made something of it for themselves."""
        self.held: list[tuple[int, int, Callable[[], bool]]] = []
        """Addresses which a process that stands still may yet write to, and what says that it cannot any more."""
        self._books: list[Registered] = []
        self._users = 0
        self._idle = trio.Event()
        self._closed = False

    def enter(self, book: Registered) -> None:
        self._books.append(book)

    def begin_call(self) -> None:
        self._users += 1

    def end_call(self) -> None:
        self._users -= 1
        if not self._users:
            self._idle.set()

    def holds(self, begin: int, end: int) -> bool:
        """Whether somebody may yet write to a part of these addresses though nobody waits for that."""
        if self.held:
            self.held = [entry for entry in self.held if not entry[2]()]
        return any(low < end and begin < high for low, high, _ in self.held)

    async def close(self) -> None:
        """Register it no more. Returns when no request that is under way, or was given up, touches the memory; calls that
        begin meanwhile use it as memory that is not registered. May be called again. Should it be cancelled, something may
        yet write there."""
        for book in self._books:
            book.remove(self)
        self._books.clear()
        while self._users:
            self._idle = trio.Event()
            await self._idle.wait()
        while self.holds(self.begin, self.end):  # noqa: ASYNC110 (rare, and there is nobody who could tell)
            await trio.sleep(LOOK_AGAIN_S)
        self.release()

    def release(self) -> None:
        """As close, where nothing can be under way, since all connections have ended."""
        holders, self.holders = self.holders, {}
        for let_go in holders.values():
            let_go()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def __aenter__(self) -> Registration:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


Piece = tuple[Registration, int, int]
"""Registered memory, from this address to that one."""


class Use:
    """Registered memory that a call under way touches: the room for its reply's bulk data, and its own. whole: that is all
    of its buffers."""

    __slots__ = ("_registrations", "bulk", "room", "whole")

    def __init__(self, room: list[Piece], bulk: list[Piece], whole: bool) -> None:
        """Raises OVERLOADED."""
        for entry, low, high in room:
            if entry.held and entry.holds(low, high):
                raise FS3Error(Code.OVERLOADED, "a process of this host that stands still may yet write to this memory")
        self.room = room
        self.bulk = bulk
        self.whole = whole
        self._registrations = {piece[0] for piece in (*room, *bulk)}
        for registration in self._registrations:
            registration.begin_call()

    def end(self) -> None:
        for registration in self._registrations:
            registration.end_call()


class Registered:
    """What is registered with a transport, by its addresses."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._entries: list[Registration] = []  # in the same order
        self._longest = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, registration: Registration) -> None:
        at = bisect_right(self._begins, registration.begin)
        self._begins.insert(at, registration.begin)
        self._entries.insert(at, registration)
        self._longest = max([len(entry.memory) for entry in self._entries])
        registration.enter(self)

    def remove(self, registration: Registration) -> None:
        at = self._entries.index(registration)
        del self._begins[at], self._entries[at]
        self._longest = max([len(entry.memory) for entry in self._entries], default=0)

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._entries)

    def _entry(self, begin: int, end: int) -> Registration | None:
        at = bisect_right(self._begins, begin) - 1
        while at >= 0:
            entry = self._entries[at]
            if end <= entry.end:
                return entry
            if begin - entry.begin >= self._longest:
                break
            at -= 1  # they may overlap
        return None

    def _locate(self, views: Sequence[Any]) -> tuple[list[Piece], bool]:
        """Where these buffers are, those behind each other in one piece; and whether all are registered."""
        pieces: list[Piece] = []
        whole = True
        last: Registration | None = None
        low = high = 0  # of the last piece
        for view in views:
            length = len(view)
            if not length:
                continue
            if type(view) is not memoryview or view.readonly:
                whole = False
                continue
            begin = _address(_from_buffer(view))
            if last is not None and begin == high and begin + length <= last.end:
                high += length
                pieces[-1] = last, low, high
                continue
            low, high = begin, begin + length
            if last is None or low < last.begin or high > last.end:
                last = self._entry(low, high)
            if last is not None:
                pieces.append((last, low, high))
            else:
                whole = False
        return pieces, whole

    def use(self, into: memoryview | Sequence[memoryview] | None, payload: Sequence[Any]) -> Use | None:
        """What a call will touch, until its `end`; None for nothing. Raises OVERLOADED where some of it is not to be had."""
        if not self._entries:
            return None
        room, all_room = self._locate((into,) if isinstance(into, memoryview) else into) if into is not None else ([], True)
        bulk, all_bulk = self._locate(payload) if payload else ([], True)
        return Use(room, bulk, all_room and all_bulk) if room or bulk else None


_address = ctypes.addressof
_from_buffer = ctypes.c_char.from_buffer


def address_of(view: memoryview) -> int:
    """Of writable memory that is not empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def file_of(begin: int, end: int, fd: int = -1) -> tuple[int, int]:
    """A descriptor of our own of the file of shared memory (memfd, POSIX or System V) that is mapped at these addresses, and
    the offset in it; -1 where there is none, or none that others can map. fd: one that must be that.

    Raises ValueError where it is not.
    """
    found = _mapped(begin, end)
    if fd >= 0 and (found is None or found[:2] != _identity(fd)):
        raise ValueError("the memory is no shared mapping of this descriptor's file")
    if found is None:
        return -1, 0
    candidates = [fd]
    if fd < 0:
        candidates = [int(name) for name in os.listdir("/proc/self/fd") if _identity(int(name)) == found[:2]]
    for candidate in candidates:
        if _is_shared_memory(candidate):
            return os.dup(candidate), found[2]
    return -1, 0


def _mapped(begin: int, end: int) -> tuple[int, int, int] | None:
    """Device, inode and offset of the file that is mapped there, all of it and as shared memory."""
    found: tuple[int, int, int] | None = None
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            fields = line.split(None, 5)
            low, high = [int(part, 16) for part in fields[0].split("-")]
            if high <= begin:
                continue
            major, minor = [int(part, 16) for part in fields[3].split(":")]
            entry = os.makedev(major, minor), int(fields[4]), int(fields[2], 16) + begin - low
            if (low > begin and found is None) or fields[1][3] != "s" or found not in (None, entry):
                return None
            found = entry
            if high >= end:
                return entry
    return None


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_shared_memory(fd: int) -> bool:
    """Whether it is of the kind that has seals, and open for reading and writing."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    except OSError:
        return False
