"""Segments of a block store (see kv_store): pairs of a data file and the index of what is in it."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..doors import Door, Entry, Handle

logger = logging.getLogger("fs3.integrations.kv_store")

DATA, INDEX = "data", "index"
ALIGNMENT = 4096
"""Blocks begin at multiples of this in a data file."""
OPEN_MAX = 512
"""Data files that are kept open to be read."""
ORPHAN_NS = 3600 * 10**9
"""An index that has had no data file for so long never gets one."""


@dataclass(slots=True, eq=False)
class Segment:
    """As this process knows it. seen: bytes of its index that are known, of `size` when it was last looked at. handle: of
    the data file, while it is open; users: who reads from it now. touched: when it was last said to be in use."""

    name: str
    seen: int = 0
    size: int = -1
    digests: list[bytes] = field(default_factory=list)
    handle: Handle = None
    users: int = 0
    touched: float = float("-inf")
    gone: bool = False

    @property
    def data(self) -> str:
        return f"{DATA}/{self.name}"

    @property
    def index(self) -> str:
        return f"{INDEX}/{self.name}"


@dataclass(slots=True, eq=False)
class Writer:
    """A segment that this process fills. end: of what is given out in the data file. pending: writes under way. full: nobody
    gets more of it, and the last write closes it."""

    segment: Segment
    data: Handle
    index: Handle
    size: int
    end: int = 0
    pending: int = 0
    full: bool = False


class Readers:
    """The data files that are open to be read, those least recently used closed first."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._lock = threading.Lock()
        self._open: dict[Segment, None] = {}  # in order of use

    def acquire(self, segment: Segment) -> Handle:
        """Raises OSError; FileNotFoundError where the segment was removed."""
        with self._lock:
            if segment.handle is None:
                segment.handle = self._door.open(segment.data)
            self._open.pop(segment, None)
            self._open[segment] = None
            segment.users += 1
            handle = segment.handle
            while len(self._open) > OPEN_MAX:
                oldest = next(iter(self._open))
                del self._open[oldest]
                self._close(oldest)
            return handle

    def release(self, segment: Segment) -> None:
        with self._lock:
            segment.users -= 1
            if segment not in self._open:
                self._close(segment)

    def drop(self, segment: Segment) -> None:
        """The segment was removed."""
        segment.gone = True
        self.reopen(segment)

    def reopen(self, segment: Segment) -> None:
        """What is open is of no use any more."""
        with self._lock:
            self._open.pop(segment, None)
            self._close(segment)

    def _close(self, segment: Segment) -> None:
        if segment.handle is not None and segment.users == 0:
            handle, segment.handle = segment.handle, None
            with suppress(OSError):  # of a mount that is gone
                self._door.close(handle)

    def end(self) -> None:
        with self._lock:
            for segment in self._open:
                self._close(segment)
            self._open.clear()


def fresh_name(now_ns: int) -> str:
    """Names sort by age."""
    return f"{now_ns:016x}-{os.urandom(4).hex()}"


def remove(door: Door, name: str) -> None:
    """The index first: what is found there has its data."""
    door.remove(f"{INDEX}/{name}")
    door.remove(f"{DATA}/{name}")


def make_room(door: Door, capacity: int, mine: set[str]) -> list[str]:
    """Remove the segments that were not used for longest, until the data files have no more bytes than `capacity`; never one
    of `mine`. Safe with any number of others that do the same: files that grow are made before this looks. Returns names."""
    data = door.entries(DATA)
    index = door.entries(INDEX)  # after data: whoever makes a segment makes its index first
    removed = [name for name in data if name not in index and name not in mine]
    newest = max([entry.mtime_ns for entry in data.values()], default=0)
    lost = [name for name, entry in index.items() if name not in data and entry.mtime_ns < newest - ORPHAN_NS]
    total = sum([entry.size for name, entry in data.items() if name in index or name in mine])
    for name in sorted(data.keys() & index.keys() - mine, key=lambda name: (data[name].mtime_ns, name)):
        if total <= capacity:
            break
        total -= data[name].size
        removed.append(name)
    for name in removed + lost:
        remove(door, name)
    if removed:
        logger.debug("%s: removed %d segments", door.place, len(removed))
    return removed


def sizes(entries: dict[str, Entry]) -> int:
    """Bytes of all files."""
    return sum([entry.size for entry in entries.values()])


def view_of(buffer: Any) -> memoryview:
    """The bytes of a buffer."""
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


@functools.cache
def _array_type(size: int) -> Any:
    """Made anew each time it would never be freed."""
    return ctypes.c_ubyte * size


def memory_at(pointer: int, size: int) -> memoryview:
    """Memory of this process; whoever uses it keeps its owner alive."""
    return memoryview(_array_type(size).from_address(pointer)).cast("B")
