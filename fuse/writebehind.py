"""Write-behind: writes of one file gather in a buffer and leave as whole chunks, several on their way at once.

What is relaxed against write-through: a write(2) that returned may still be only in this daemon's memory, so that a crash
of the daemon, or of its machine, loses it. fsync, close, truncating the file, reading it and its attributes wait until all
is sent. An error that a buffered write met is raised by the next write, fsync or close, once; until then reads raise it too,
so that what was lost is not missing without a word. Nothing else raises or forgets it: a mere look at the file, as by ls,
must not take it from the writer.
"""

from __future__ import annotations

from dataclasses import replace

import trio

from fs3.api.meta import Attr
from fs3.client.file import FileClient, FileHandle
from fs3.errors import FS3Error

PIECES_IN_FLIGHT_MAX = 4


class WriteBehind:
    """The buffer of one inode. limit: bytes that may wait or be on their way."""

    def __init__(self, client: FileClient, nursery: trio.Nursery, chunk_size: int, limit: int) -> None:
        self._client = client
        self._nursery = nursery
        self._chunk_size = chunk_size
        self._limit = limit
        self._file: FileHandle | None = None  # through which the buffered bytes were written; open as long as they wait
        self._buffer = bytearray()
        self._start = 0  # file offset of the buffer's first byte
        self._flying = 0  # bytes on their way
        self._ranges: set[tuple[int, int]] = set()  # [start, end) on their way
        self._landed = trio.Event()
        self._error: FS3Error | None = None
        self.users = 0

    @property
    def pending(self) -> bool:
        """Whether something was not sent yet."""
        return bool(self._buffer) or self._flying > 0

    @property
    def end(self) -> int:
        """The end of what is buffered or on its way."""
        end = self._start + len(self._buffer) if self._buffer else 0
        return max([end, *[stop for _, stop in self._ranges]])

    def view(self, attr: Attr) -> Attr:
        """`attr` with the length that it has for this mount's programs."""
        return replace(attr, length=self.end) if self.end > attr.length else attr

    async def write(self, file: FileHandle, offset: int, data: bytes) -> None:
        """Take in a write; waits while the buffers are full. Raises the error of an earlier one.

        One write at a time, as the kernel has it for each file.
        """
        self._raise()
        while self._buffer and offset != self._start + len(self._buffer):
            await self._send(len(self._buffer))
        if any(start < offset + len(data) and offset < stop for start, stop in self._ranges):
            await self._wait_all()  # two writes of one range must not overtake each other
        while self._flying + len(self._buffer) + len(data) > self._limit and self._flying:
            await self._landed.wait()
        self._raise()
        self._file = file
        size = self._chunk_size
        if not self._buffer:
            self._start = offset
            if len(data) == size and offset % size == 0:
                await self._fly_soon(offset, data)
                return
        self._buffer += data
        while len(self._buffer) >= size - self._start % size:
            await self._send(size - self._start % size)

    async def drain(self) -> None:
        """Returns once all is sent. Raises the error of any write since the last one raised: for those who must be told."""
        await self.settle()
        self._raise()

    async def settle(self) -> None:
        """Returns once all is sent, or failed. An error stays for who drains."""
        while self._buffer:
            await self._send(len(self._buffer))
        await self._wait_all()

    async def before_read(self) -> None:
        """As settle. Raises the error of a lost write, and keeps it."""
        if self.pending:
            await self.settle()
        if self._error is not None:
            raise FS3Error(self._error.code, self._error.message)

    async def _send(self, length: int) -> None:
        """Put the first `length` bytes of the buffer on their way, or what is left of them then."""
        while len(self._ranges) >= PIECES_IN_FLIGHT_MAX:
            await self._landed.wait()
        data: bytes | bytearray
        if length >= len(self._buffer):
            data, self._buffer = self._buffer, bytearray()
        else:
            data, self._buffer = self._buffer[:length], self._buffer[length:]
        if data:
            start = self._start
            self._start += len(data)
            self._launch(start, data)

    async def _fly_soon(self, start: int, data: bytes) -> None:
        while len(self._ranges) >= PIECES_IN_FLIGHT_MAX:
            await self._landed.wait()
        self._launch(start, data)

    def _launch(self, start: int, data: bytes | bytearray) -> None:
        assert self._file is not None
        self._ranges.add((start, start + len(data)))
        self._flying += len(data)
        self._nursery.start_soon(self._fly, self._file, start, data)

    async def _fly(self, file: FileHandle, start: int, data: bytes | bytearray) -> None:
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # where all ends, the file is closed by now
            await self._client.write(file, start, data)
        except FS3Error as error:
            if self._error is None:
                self._error = error
        finally:
            self._flying -= len(data)
            self._ranges.discard((start, start + len(data)))
            self._landed.set()
            self._landed = trio.Event()

    async def _wait_all(self) -> None:
        while self._flying:
            await self._landed.wait()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise FS3Error(error.code, error.message)
