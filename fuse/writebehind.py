"""Write-behind: writes of one file gather in a buffer and leave as whole chunks, several on their way at once.

What is relaxed against write-through: a write(2) that returned may still be only in this daemon's memory, so that a crash
of the daemon, or of its machine, loses it. fsync, close, truncating the file, reading it and its attributes wait until all
is sent. An error that a buffered write met is raised by the next write, fsync or close of each descriptor, once; until one
was told, reads raise it too, so that what was lost is not missing without a word. Nothing else raises or forgets it: a mere
look at the file, as by ls, must not take it from the writer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import trio

from fs3.api.meta import Attr
from fs3.client.file import FileClient, FileHandle
from fs3.errors import FS3Error

PIECES_IN_FLIGHT_MAX = 8
"""Of one file."""


@dataclass(slots=True)
class Told:
    """What one descriptor was told. number: of the last error, 0 for none."""

    number: int = 0


class WriteBuffers:
    """What the buffers of a mount share. limit: bytes that may wait or be on their way, of all files."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.errors = 0  # numbers given to errors
        self._used = 0
        self._flying = 0  # pieces on their way
        self._waiting: dict[WriteBehind, None] = {}  # those with bytes that were not sent, the longest waiting first
        self._landed = trio.Event()

    async def take(self, size: int) -> None:
        """Returns once there is room for so many bytes, or nothing else takes any."""
        while self._used and self._used + size > self.limit:
            if self._flying:
                await self._landed.wait()
            else:
                next(iter(self._waiting)).send_all()
        self._used += size

    def waits(self, buffer: WriteBehind) -> None:
        self._waiting[buffer] = None

    def waits_no_more(self, buffer: WriteBehind) -> None:
        self._waiting.pop(buffer, None)

    def launched(self) -> None:
        self._flying += 1

    def landed(self, size: int) -> None:
        self._flying -= 1
        self._used -= size
        landed, self._landed = self._landed, trio.Event()
        landed.set()


class WriteBehind:
    """The buffer of one inode."""

    def __init__(self, client: FileClient, nursery: trio.Nursery, chunk_size: int, shared: WriteBuffers) -> None:
        self._client = client
        self._nursery = nursery
        self._chunk_size = chunk_size
        self._shared = shared
        self._file: FileHandle | None = None  # through which the buffered bytes were written; open as long as they wait
        self._buffer = bytearray()
        self._start = 0  # file offset of the buffer's first byte
        self._ranges: set[tuple[int, int]] = set()  # [start, end) on their way
        self._landed = trio.Event()
        self._error: FS3Error | None = None
        self._error_number = 0
        self._error_told = True  # to anybody
        self.users = 0

    @property
    def pending(self) -> bool:
        """Whether something was not sent yet."""
        return bool(self._buffer or self._ranges)

    @property
    def end(self) -> int:
        """The end of what is buffered or on its way."""
        end = self._start + len(self._buffer) if self._buffer else 0
        return max([end, *[stop for _, stop in self._ranges]])

    def view(self, attr: Attr) -> Attr:
        """`attr` with the length that it has for this mount's programs."""
        return replace(attr, length=self.end) if self.end > attr.length else attr

    def opened(self) -> Told:
        """What a new descriptor need not be told: errors before it that somebody was told."""
        return Told(self._error_number if self._error_told else 0)

    async def write(self, file: FileHandle, told: Told, offset: int, data: bytes) -> None:
        """Take in a write; waits while the buffers are full. Raises the error of an earlier one.

        One write at a time, as the kernel has it for each file.
        """
        self._raise(told)
        while self._buffer and offset != self._start + len(self._buffer):
            await self._send(len(self._buffer))
        if any(start < offset + len(data) and offset < stop for start, stop in self._ranges):
            await self._wait_all()  # two writes of one range must not overtake each other
        await self._shared.take(len(data))
        self._file = file
        size = self._chunk_size
        if not self._buffer:
            self._start = offset
            if len(data) == size and offset % size == 0:
                self._launch(offset, data)
                await self._room()
                return
        self._buffer += data
        self._shared.waits(self)
        while len(self._buffer) >= size - self._start % size:
            await self._send(size - self._start % size)

    async def drain(self, told: Told) -> None:
        """Returns once all is sent. Raises the error of any write since what this descriptor was told."""
        await self.settle()
        self._raise(told)

    async def settle(self) -> None:
        """Returns once all is sent, or failed. An error stays for who drains."""
        self.send_all()
        await self._wait_all()

    async def before_read(self) -> None:
        """As settle. Raises the error of a lost write, and keeps it."""
        if self.pending:
            await self.settle()
        if self._error is not None and not self._error_told:
            raise FS3Error(self._error.code, self._error.message)

    def send_all(self) -> None:
        """Put what waits on its way, however much there is already."""
        self._take_off(len(self._buffer))

    async def _send(self, length: int) -> None:
        """Put the first `length` bytes of the buffer on their way, or what is left of them then."""
        await self._room()
        self._take_off(length)

    def _take_off(self, length: int) -> None:
        data: bytes | bytearray
        if length >= len(self._buffer):
            data, self._buffer = self._buffer, bytearray()
            self._shared.waits_no_more(self)
        else:
            data, self._buffer = self._buffer[:length], self._buffer[length:]
        if data:
            start = self._start
            self._start += len(data)
            self._launch(start, data)

    async def _room(self) -> None:
        while len(self._ranges) >= PIECES_IN_FLIGHT_MAX:
            await self._landed.wait()

    def _launch(self, start: int, data: bytes | bytearray) -> None:
        assert self._file is not None
        self._ranges.add((start, start + len(data)))
        self._shared.launched()
        self._nursery.start_soon(self._fly, self._file, start, data)

    async def _fly(self, file: FileHandle, start: int, data: bytes | bytearray) -> None:
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # where all ends, the file is closed by now
            await self._client.write(file, start, data)
        except FS3Error as error:
            self._shared.errors += 1
            self._error_number = self._shared.errors
            if self._error_told:
                self._error, self._error_told = error, False
        finally:
            self._ranges.discard((start, start + len(data)))
            self._shared.landed(len(data))
            landed, self._landed = self._landed, trio.Event()
            landed.set()

    async def _wait_all(self) -> None:
        while self._ranges:
            await self._landed.wait()

    def _raise(self, told: Told) -> None:
        error = self._error
        if error is not None and told.number != self._error_number:
            told.number = self._error_number
            self._error_told = True
            raise FS3Error(error.code, error.message)
