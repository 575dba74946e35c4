"""What a replay of a trace does: reads the blocks that are held, writes those that are not, and evicts those that were not
used for longest. It knows the places of all blocks by itself, so that the same is done on every file system."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from ...checksum import crc32c
from ...doors import Door, Handle, Piece
from ...errors import Code, FS3Error
from ...metrics import Histogram
from .trace import Request
from .worker import PAGE, Pattern

FILE_BYTES = 256 * 1024 * 1024
"""Of a file that holds many blocks."""
BATCH_BYTES = 64 * 1024 * 1024
"""Blocks of a request that are read or written by one call."""
STAMP = 8
PATTERNS = 2039

Part = tuple[int, int, memoryview]
"""(block, slot, its bytes)"""


class Layout(Protocol):
    """Where blocks lie. Those that are `cold` do not leave their pages with the kernel."""

    def read(self, parts: Sequence[Part]) -> list[int]: ...
    def write(self, parts: Sequence[Part]) -> list[int]: ...
    def forget(self, parts: Sequence[Part]) -> None: ...
    def remove(self, block: int) -> None: ...
    def close(self) -> None: ...


class FewFiles:
    """Slots in large files, which stay open; a slot is used again."""

    def __init__(self, door: Door, size: int, folder: str, *, cold: bool) -> None:
        self._door = door
        self._size = size
        self._folder = folder
        self._cold = cold
        self._each = max(1, FILE_BYTES // size)
        self._lock = threading.Lock()
        self._files: dict[int, Handle] = {}

    def _pieces(self, parts: Sequence[Part]) -> list[Piece]:
        found: list[Piece] = []
        for _, slot, view in parts:
            number, at = divmod(slot, self._each)
            handle = self._files.get(number)
            if handle is None:
                with self._lock:
                    handle = self._files.get(number)
                    if handle is None:
                        made = self._door.create(f"{self._folder}/{number}", self._each * self._size)
                        handle = self._files[number] = made
            found.append((handle, at * self._size, view))
        return found

    def read(self, parts: Sequence[Part]) -> list[int]:
        counts = [0] * len(parts)
        self._door.read(self._pieces(parts), counts.__setitem__)
        return counts

    def write(self, parts: Sequence[Part]) -> list[int]:
        return self._door.write(self._pieces(parts))

    def forget(self, parts: Sequence[Part]) -> None:
        for handle, offset, view in self._pieces(parts) if self._cold else ():
            os.posix_fadvise(handle, offset, len(view), os.POSIX_FADV_DONTNEED)

    def remove(self, block: int) -> None:
        pass

    def close(self) -> None:
        for handle in self._files.values():
            with suppress(OSError):
                self._door.close(handle)


class ManyFiles:
    """A file for each block, opened each time, in 16 folders."""

    def __init__(self, door: Door, size: int, folder: str, *, cold: bool) -> None:
        self._door = door
        self._size = size
        self._folder = folder
        self._cold = cold
        door.make([f"{folder}/{number:x}" for number in range(16)])

    def _name(self, block: int) -> str:
        return f"{self._folder}/{block & 15:x}/{block}"

    def read(self, parts: Sequence[Part]) -> list[int]:
        pieces: list[Piece] = []
        counts = [0] * len(parts)
        try:
            for block, _, view in parts:
                pieces.append((self._door.open(self._name(block)), 0, view))
            self._door.read(pieces, counts.__setitem__)
        finally:
            self._close(pieces)
        return counts

    def write(self, parts: Sequence[Part]) -> list[int]:
        pieces: list[Piece] = []
        try:
            for block, _, view in parts:
                pieces.append((self._door.create(self._name(block), 0), 0, view))
            return self._door.write(pieces)
        finally:
            self._close(pieces)

    def _close(self, pieces: Sequence[Piece]) -> None:
        for handle, _, _ in pieces:
            if self._cold:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            self._door.close(handle)

    def forget(self, parts: Sequence[Part]) -> None:
        pass  # done at close

    def remove(self, block: int) -> None:
        self._door.remove(self._name(block))

    def close(self) -> None:
        pass


class Content:
    """The bytes of each block: a pattern that follows from its number, and the number."""

    def __init__(self, seed: int, size: int) -> None:
        self._pattern = Pattern(seed, size)
        self._size = size
        self._sums: dict[int, int] = {}

    def fill(self, block: int, into: memoryview) -> None:
        into[:] = self._pattern.at(block % PATTERNS, 0, self._size)
        into[:STAMP] = block.to_bytes(STAMP, "little")

    def is_right(self, block: int, found: memoryview) -> bool:
        number = block % PATTERNS
        wanted = self._sums.get(number)
        if wanted is None:
            wanted = self._sums[number] = crc32c(self._pattern.at(number, STAMP, self._size - STAMP))
        return found[:STAMP] == block.to_bytes(STAMP, "little") and crc32c(found[STAMP:]) == wanted


class Held:
    """Which blocks are held, and where. Its methods are atomic."""

    def __init__(self, capacity: int) -> None:
        self._lock = threading.Lock()
        self._written = threading.Condition(self._lock)
        self._free = list(range(capacity))[::-1]
        self._slots: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._users: dict[int, int] = {}  # of blocks that are being read
        self._coming: set[int] = set()
        self.evicted = 0

    def take(self, request: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """(block, slot) of those to be read, which stay until `leave`; and those to be written, which are nobody else's
        until `put` or `drop`. Waits for blocks that another thread is writing."""
        hits, misses = [], []
        with self._lock:
            while not self._coming.isdisjoint(request):
                self._written.wait()
            for block in request:
                slot = self._slots.get(block)
                if slot is not None:
                    self._slots.move_to_end(block)
                    self._users[block] = self._users.get(block, 0) + 1
                    hits.append((block, slot))
                else:
                    self._coming.add(block)
                    misses.append(block)
        return hits, misses

    def leave(self, blocks: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            for block, _ in blocks:
                self._users[block] -= 1
                if not self._users[block]:
                    del self._users[block]

    def room(self) -> tuple[int, int | None] | None:
        """A slot, and the block that had to go for it. None where all are in use."""
        with self._lock:
            if self._free:
                return self._free.pop(), None
            for block in self._slots:
                if block not in self._users:
                    self.evicted += 1
                    return self._slots.pop(block), block
        return None

    def put(self, block: int, slot: int) -> None:
        with self._lock:
            self._slots[block] = slot
            self._coming.discard(block)
            self._written.notify_all()

    def drop(self, blocks: Sequence[int]) -> None:
        """They will not be written, or are already."""
        with self._lock:
            self._coming.difference_update(blocks)
            self._written.notify_all()


@dataclass(slots=True)
class Tally:
    """Of one kind of work. seconds: of all threads together, without the making and checking of contents."""

    times: Histogram = field(default_factory=Histogram)
    blocks: int = 0
    bytes: int = 0
    ns: int = 0

    def add(self, ns: int, blocks: int, size: int) -> None:
        """What one request took for its blocks."""
        self.times.observe(ns)
        self.blocks += blocks
        self.bytes += blocks * size
        self.ns += ns


@dataclass(slots=True)
class Found:
    """What one pass over the trace did."""

    read: Tally = field(default_factory=Tally)
    written: Tally = field(default_factory=Tally)
    requests: int = 0
    references: int = 0
    evicted: int = 0
    seconds: float = 0.0


class Replay:
    """One trace on one file system."""

    def __init__(
        self,
        layout: Layout,
        requests: Sequence[Request],
        size: int,
        capacity: int,
        *,
        threads: int,
        seconds: float | None,
        lend: Callable[[int], memoryview] | None,
    ) -> None:
        """size: of a block. capacity: blocks. lend: gives memory that suits the file system; None: any will do."""
        self._layout = layout
        self._requests = requests
        self._size = size
        self._held = Held(capacity)
        self._threads = threads
        self._seconds = seconds
        self._content = Content(1, size)
        self._batch = max(1, BATCH_BYTES // size)
        make = lend if lend is not None else _anonymous
        self._buffers = [make(self._batch * size) for _ in range(threads)]
        for buffer in self._buffers:
            buffer[:] = bytes(len(buffer))  # pages that nobody has touched take as long as their bytes
        self._lock = threading.Lock()
        self._next = 0
        self._end = 0.0
        self._failed: list[BaseException] = []

    def run(self, *, write: bool, tell: Callable[[int], None]) -> Found:
        """One pass; write: misses are written, else left alone. tell: how many requests are done. Raises CHECKSUM where what
        was read is not what was written, IO."""
        found = Found()
        self._next = 0
        self._end = time.monotonic() + self._seconds if self._seconds is not None else float("inf")
        before = self._held.evicted
        started = time.monotonic()
        workers = [
            threading.Thread(target=self._work, args=(number, write, found, tell), daemon=True)
            for number in range(self._threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        found.seconds = time.monotonic() - started
        found.evicted = self._held.evicted - before
        if self._failed:
            raise self._failed[0]
        return found

    def _work(self, number: int, write: bool, found: Found, tell: Callable[[int], None]) -> None:
        try:
            while not self._failed:
                with self._lock:
                    if self._next == len(self._requests) or time.monotonic() > self._end:
                        return
                    request = self._requests[self._next]
                    self._next += 1
                self._one(request, self._buffers[number], write, found)
                tell(self._next)
        except OSError as error:
            self._failed.append(FS3Error(Code.IO, f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")))
        except BaseException as error:
            self._failed.append(error)

    def _one(self, request: Request, buffer: memoryview, write: bool, found: Found) -> None:
        hits, misses = self._held.take(request)
        read_ns = written_ns = written = 0
        try:
            for first in range(0, len(hits), self._batch):
                read_ns += self._read(hits[first : first + self._batch], buffer)
            self._held.leave(hits)
            for first in range(0, len(misses), self._batch):
                took, count = self._write(misses[first : first + self._batch], buffer, write)
                written_ns += took
                written += count
        finally:
            self._held.drop(misses)
        with self._lock:
            found.requests += 1
            found.references += len(request)
            if hits:
                found.read.add(read_ns, len(hits), self._size)
            if written:
                found.written.add(written_ns, written, self._size)

    def _parts(self, blocks: Sequence[tuple[int, int]], buffer: memoryview) -> list[Part]:
        size = self._size
        return [(block, slot, buffer[at * size : (at + 1) * size]) for at, (block, slot) in enumerate(blocks)]

    def _read(self, blocks: Sequence[tuple[int, int]], buffer: memoryview) -> int:
        """Nanoseconds."""
        parts = self._parts(blocks, buffer)
        for _, _, view in parts:
            view[:STAMP] = b"\0" * STAMP  # what was here before does not pass for it
        begin = time.perf_counter_ns()
        counts = self._layout.read(parts)
        took = time.perf_counter_ns() - begin
        for (block, _, view), count in zip(parts, counts, strict=True):
            self._check(block, count)
            if not self._content.is_right(block, view):
                raise FS3Error(Code.CHECKSUM, f"block {block}: what was read is not what was written")
        self._layout.forget(parts)
        return took

    def _check(self, block: int, count: int) -> None:
        if count != self._size:
            why = os.strerror(-count) if count < 0 else f"{count} bytes of {self._size}"
            raise FS3Error(Code.IO, f"block {block}: {why}")

    def _write(self, blocks: Sequence[int], buffer: memoryview, write: bool) -> tuple[int, int]:
        """Nanoseconds, evicting included, and how many were written: not those for which no block could go."""
        evicted: list[int] = []
        places: list[tuple[int, int]] = []
        for block in blocks:
            room = self._held.room() if write else None
            if room is None:
                continue
            places.append((block, room[0]))
            if room[1] is not None:
                evicted.append(room[1])
        parts = self._parts(places, buffer)
        for block, _, view in parts:
            self._content.fill(block, view)
        begin = time.perf_counter_ns()
        for block in evicted:
            self._layout.remove(block)
        counts = self._layout.write(parts) if parts else []
        took = time.perf_counter_ns() - begin
        for (block, slot, _), count in zip(parts, counts, strict=True):
            self._check(block, count)
            self._held.put(block, slot)
        self._layout.forget(parts)
        return took, len(parts)


def _anonymous(size: int) -> memoryview:
    """Memory of whole pages, there from the beginning."""
    return memoryview(
        mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    )
