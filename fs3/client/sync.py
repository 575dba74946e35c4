"""The Python API for programs that do not run trio: calls that block, over a client in a thread of its own.

    with fs3.client.sync.connect(["tcp://127.0.0.1:7000"]) as fs:
        with fs.open("/dir/file", "w") as file:
            file.write(b"bytes")

Any number of threads may use one FileSystem; their calls run at the same time.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

from ..api.meta import Attr, Caller
from ..checksum import Buffer
from ..env import Env
from ..errors import Code, FS3Error
from ..transport.base import Transport
from ..transport.registry import Transports
from .connect import connect as connect_async
from .paths import AsyncFile, Paths

T = TypeVar("T")


class _Loop:
    """A thread that runs trio with a client in it, until stopped."""

    def __init__(self, addresses: Sequence[str], transport: Transport, caller: Caller | None) -> None:
        self._addresses = addresses
        self._transport = transport
        self._caller = caller
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()
        self.paths: Paths | None = None
        self._thread = threading.Thread(target=self._run, name="fs3-client", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        assert self._token is not None
        try:
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        except trio.RunFinishedError:
            pass  # it ended by itself, with the error raised below
        self._thread.join()
        if self._error is not None:
            raise self._error

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        try:
            return trio.from_thread.run(function, *arguments, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise FS3Error(Code.SHUTTING_DOWN, "this client is closed") from None

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with connect_async(Env(self._transport), self._addresses, socket.gethostname()) as client:
            self.paths = Paths(client, self._caller)
            self._ready.set()
            await self._stop.wait()


class File(io.RawIOBase):
    """An open file with a position, as io.RawIOBase has it. Wrap it with io.BufferedReader for small reads."""

    def __init__(self, loop: _Loop, file: AsyncFile, mode: str) -> None:
        super().__init__()
        self._loop = loop
        self._file = file
        self._mode = mode
        self._position = 0

    def readable(self) -> bool:
        return self._mode[0] == "r" or "+" in self._mode

    def writable(self) -> bool:
        return self._mode[0] != "r" or "+" in self._mode

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as into:
            count = self._loop.call(self._file.read_into, self._position, into)
        self._position += count
        return count

    def readall(self) -> bytes:
        data = self.pread(max(0, self.stat().length - self._position), self._position)
        self._position += len(data)
        return data

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            count = self._loop.call(self._file.write_at, self._position, view)
        self._position = self.stat().length if self._mode[0] == "a" else self._position + count
        return count

    def pread(self, length: int, offset: int) -> bytes:
        """Read at an offset, leaving the position alone."""
        return bytes(self._loop.call(self._file.read_at, offset, length))

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Write at an offset, leaving the position alone."""
        return self._loop.call(self._file.write_at, offset, data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        position = offset + (self.stat().length if base is None else base)
        if position < 0:
            raise ValueError(f"negative position {position}")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        length = self._position if size is None else size
        self._loop.call(self._file.truncate, length)
        return length

    def sync(self) -> None:
        """fsync."""
        self._loop.call(self._file.sync)

    def stat(self) -> Attr:
        return self._loop.call(self._file.stat)

    def close(self) -> None:
        if not self.closed:
            try:
                self._loop.call(self._file.close)
            finally:
                super().close()


class FileSystem:
    """Calls by path; see fs3.client.paths.Paths, whose methods these are, blocking."""

    def __init__(self, loop: _Loop) -> None:
        assert loop.paths is not None
        self._loop = loop
        self._paths = loop.paths

    def open(self, path: str, mode: str = "r", permissions: int = 0o666) -> File:
        file = self._loop.call(self._paths.open_file, path, mode, permissions)
        return File(self._loop, file, mode.replace("b", ""))

    def stat(self, path: str) -> Attr:
        return self._loop.call(self._paths.stat, path)

    def exists(self, path: str) -> bool:
        return self._loop.call(self._paths.exists, path)

    def listdir(self, path: str = "/") -> list[str]:
        return self._loop.call(self._paths.listdir, path)

    def scan(self, path: str = "/") -> list[tuple[bytes, Attr]]:
        return self._loop.call(self._paths.scan, path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._loop.call(self._paths.mkdir, path, mode)

    def makedirs(self, path: str, mode: int = 0o777) -> None:
        self._loop.call(self._paths.makedirs, path, mode)

    def unlink(self, path: str) -> None:
        self._loop.call(self._paths.unlink, path)

    def rmdir(self, path: str) -> None:
        self._loop.call(self._paths.rmdir, path)

    def rename(self, path: str, new_path: str) -> None:
        self._loop.call(self._paths.rename, path, new_path)

    def symlink(self, target: str, path: str) -> None:
        self._loop.call(self._paths.symlink, target, path)

    def readlink(self, path: str) -> str:
        return self._loop.call(self._paths.readlink, path)

    def link(self, path: str, new_path: str) -> None:
        self._loop.call(self._paths.link, path, new_path)

    def chmod(self, path: str, mode: int) -> None:
        self._loop.call(self._paths.chmod, path, mode)

    def truncate(self, path: str, length: int) -> None:
        self._loop.call(self._paths.truncate, path, length)

    def read_file(self, path: str) -> bytes:
        return self._loop.call(self._paths.read_file, path)

    def write_file(self, path: str, data: Buffer) -> None:
        self._loop.call(self._paths.write_file, path, data)


@contextmanager
def connect(
    addresses: Sequence[str], *, transport: Transport | None = None, caller: Caller | None = None
) -> Iterator[FileSystem]:
    """A client of the cluster whose mgmtd daemons are at `addresses`. caller: whose rights count, those of this process
    by default. Close all files before leaving."""
    loop = _Loop(addresses, transport if transport is not None else Transports(), caller)
    loop.start()
    try:
        yield FileSystem(loop)
    finally:
        loop.stop()
