"""The files of one folder of a mount, whose bytes go through its rings (fs3.usrbio); see fs3.doors."""

from __future__ import annotations

import ctypes
import errno
import queue
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from .doors import Done, Handle, Piece, PlainDoor
from .usrbio import Ior, Iov, deregister_fd, mount_point_of, register_fd

LANES = 2
"""Batches that are under way at once; a further one waits."""
LANE_BYTES = 64 * 1024 * 1024
SLOT_BYTES_MAX = 4 * 1024 * 1024
"""Larger pieces are cut."""
ENTRIES = 256
ALIGNMENT = 4096
WAIT_S = 120.0
"""A ring that says nothing for so long is given up."""


class RingDoor(PlainDoor):
    """Bytes pass through shared memory of the door's own and are copied once, but for those in memory that `lend` gave."""

    def __init__(self, place: str, *, lanes: int = LANES, lane_bytes: int = LANE_BYTES) -> None:
        """Raises ValueError where the place is on no fs3 mount, OSError where its daemon has no rings."""
        super().__init__(place)
        self._mount = mount_point_of(self.place)
        self._lane_bytes = lane_bytes
        self._lent: list[tuple[int, Iov]] = []
        self._lanes: queue.LifoQueue[_Lane | None] = queue.LifoQueue()
        for _ in range(lanes - 1):
            self._lanes.put(None)
        self._lanes.put(_Lane(self._mount, self._lane_bytes))  # one now, to meet what is wrong

    def lend(self, size_bytes: int) -> memoryview:
        """Memory that operations use without a copy, until end(). Raises OSError."""
        iov = Iov.create(self._mount, size_bytes)
        self._lent.append((_address(iov.view), iov))
        return iov.view

    def create(self, name: str, size: int) -> Handle:
        return self._registered(super().create(name, size))

    def open(self, name: str, *, write: bool = False) -> Handle:
        return self._registered(super().open(name, write=write))

    def _registered(self, handle: int) -> int:
        try:
            register_fd(handle)
        except BaseException:
            super().close(handle)
            raise
        return handle

    def close(self, handle: Handle) -> None:
        try:
            deregister_fd(handle)
        finally:
            super().close(handle)

    def read(self, pieces: Sequence[Piece], done: Done) -> None:
        self._transfer(True, pieces, done)

    def write(self, pieces: Sequence[Piece]) -> list[int]:
        results = [0] * len(pieces)
        self._transfer(False, pieces, results.__setitem__)
        return [-errno.EIO if 0 <= got < len(data) else got for got, (_, _, data) in zip(results, pieces, strict=True)]

    def _transfer(self, reading: bool, pieces: Sequence[Piece], done: Done) -> None:
        if not pieces:
            return
        lane = self._lanes.get()
        whole = False
        try:
            lane = lane or _Lane(self._mount, self._lane_bytes)
            whole = _Batch(lane, reading, pieces, done, self._lent).run()
        finally:
            if lane is not None and not whole:  # some of it may still be under way
                lane.close()
            self._lanes.put(lane if whole else None)

    def end(self) -> None:
        while not self._lanes.empty():
            lane = self._lanes.get()
            if lane is not None:
                lane.close()
        for _, iov in self._lent:
            with suppress(OSError):  # the daemon is gone, and what it had with it
                iov.close()
        self._lent.clear()


class _Lane:
    """What one batch needs."""

    def __init__(self, mount: str, size_bytes: int) -> None:
        self.iov = Iov.create(mount, size_bytes)
        self.rings = Ior(mount, ENTRIES, for_read=False), Ior(mount, ENTRIES, for_read=True)

    def close(self) -> None:
        for each in (*self.rings, self.iov):
            with suppress(OSError):  # the daemon is gone, and what it had with it
                each.close()


class _Batch:
    """One call on its way: pieces are cut into parts, of which as many are under way as there are slots for."""

    def __init__(
        self, lane: _Lane, reading: bool, pieces: Sequence[Piece], done: Done, lent: Sequence[tuple[int, Iov]]
    ) -> None:
        self._ring = lane.rings[reading]
        self._iov = lane.iov
        self._reading = reading
        self._done = done
        self._lent = lent
        self._pieces = pieces
        self._views = [_bytes_of(data) for _, _, data in pieces]
        longest = max([len(view) for view in self._views])
        self._slot = max(ALIGNMENT, min(SLOT_BYTES_MAX, -(-longest // ALIGNMENT) * ALIGNMENT))
        count = min(lane.iov.size_bytes // self._slot, ENTRIES)
        self._free = [slot * self._slot for slot in range(count)][::-1]
        self._left = [-(-len(view) // self._slot) for view in self._views]  # parts that have not ended, of each piece
        self._counts = [0] * len(pieces)
        self._errors = [0] * len(pieces)

    def run(self) -> bool:
        """False where the ring is of no use any more, which those that had not ended are told."""
        for number, view in enumerate(self._views):
            if not view:
                self._done(number, 0)
        parts = self._parts()
        part = next(parts, None)
        flying = 0
        try:
            while part is not None or flying:
                fresh = 0
                while part is not None and self._free and flying + fresh < ENTRIES:
                    fresh += self._prepare(part)
                    part = next(parts, None)
                if fresh:
                    self._ring.submit()
                    flying += fresh
                if flying:
                    ended = self._ring.wait(min_results=max(1, flying // 4), timeout_s=WAIT_S)
                    if not ended:
                        raise OSError(errno.ETIMEDOUT, "the mount's daemon does not answer")
                    flying -= len(ended)
                    for each in ended:
                        self._ended(each.userdata, each.result)
        except OSError as error:
            for number, left in enumerate(self._left):
                if left:
                    self._done(number, -(error.errno or errno.EIO))
            return False
        return True

    def _parts(self) -> Iterator[tuple[int, int, memoryview]]:
        """Number of the piece, where in it, bytes."""
        for number, view in enumerate(self._views):
            for at in range(0, len(view), self._slot):
                yield number, at, view[at : at + self._slot]

    def _prepare(self, part: tuple[int, int, memoryview]) -> int:
        """How many operations that made: none where it cannot be."""
        number, at, view = part
        handle, offset, _ = self._pieces[number]
        iov, place, slot = self._iov, self._free[-1], self._free[-1]
        for base, lent in self._lent:
            inside = _address(view) - base
            if 0 <= inside < lent.size_bytes:
                iov, place, slot = lent, inside, -1
                break
        if slot >= 0 and not self._reading:
            self._iov.view[slot : slot + len(view)] = view
        try:
            self._ring.prepare(iov, place, len(view), handle, offset + at, (number, slot, view))
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EACCES):
                raise
            self._finish(number, -error.errno)
            return 0
        if slot >= 0:
            self._free.pop()
        return 1

    def _ended(self, part: tuple[int, int, memoryview], result: int) -> None:
        number, slot, view = part
        if slot >= 0:
            if self._reading and result > 0:
                view[:result] = self._iov.view[slot : slot + result]
            self._free.append(slot)
        self._finish(number, result)

    def _finish(self, number: int, result: int) -> None:
        if result < 0:
            self._errors[number] = self._errors[number] or result
        else:
            self._counts[number] += result
        self._left[number] -= 1
        if not self._left[number]:
            self._done(number, self._errors[number] or self._counts[number])


def _bytes_of(data: Any) -> memoryview:
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _address(view: memoryview) -> int:
    """Where in this process's memory it begins; 0 for what cannot be written, which nobody lent."""
    if view.readonly or not view:
        return 0
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
