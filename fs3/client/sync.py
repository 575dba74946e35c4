"""The Python API for programs that do not run trio: calls that block, over a client in a thread of its own.

    with fs3.client.sync.connect(["tcp://127.0.0.1:7000"]) as fs:
        with fs.open("/dir/file", "w") as file:
            file.write(b"bytes")

Any number of threads may use one FileSystem; their calls run at the same time. In a process that was forked from the one
that connected, it connects again by itself, and files that were open for reading are opened again. A pickled FileSystem
becomes the one that `shared` gives.
"""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import trio

from ..api.meta import Attr, Caller, RenameFlags
from ..env import Env
from ..errors import Code, FS3Error
from ..transport.base import Transport
from ..transport.registered import Registration
from ..transport.registry import Transports
from .batch import Result
from .connect import connect as connect_async
from .locks import Lock
from .paths import AsyncFile, Paths

T = TypeVar("T")

FOLDERS_S = 1.0
"""For how long the folders of a path are trusted to be where they were found; see fs3.client.paths."""
CONNECT_S = 30.0
"""How long a shared client waits for mgmtd to answer."""
EXIT_S = 5.0
"""How long the end of a program waits for its shared clients to say goodbye to the cluster."""


class _Loop:
    """A thread of this process that runs trio with a client in it, until stopped."""

    def __init__(self, addresses: Sequence[str], transport: Transport, caller: Caller | None) -> None:
        self.pid = os.getpid()
        self._addresses = addresses
        self._transport = transport
        self._caller = caller
        self._starting = threading.Lock()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self.paths: Paths | None = None
        self._thread = threading.Thread(target=self._run, name="fs3-client", daemon=True)

    def start(self, timeout_s: float | None) -> None:
        """Connect, unless that is done; raises what connecting met."""
        with self._starting:
            if not self._ready.is_set():
                self._thread.start()
                if not self._ready.wait(timeout_s):
                    self.give_up()
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Nobody answers."""
        assert self._token is not None
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join()
        where = ", ".join(self._addresses)
        self._error = self._error or FS3Error(Code.DEADLINE_EXCEEDED, f"no management daemon answers at {where}")

    def stop(self, timeout_s: float | None = None) -> None:
        if self._token is not None:
            try:
                trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
            except trio.RunFinishedError:
                pass  # it ended by itself, with the error raised below
            self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error

    def runs_here(self) -> bool:
        return threading.current_thread() is self._thread

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        try:
            return trio.from_thread.run(function, *arguments, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            why = f"has ended: {self._error}" if self._error is not None else "is closed"
            raise FS3Error(Code.SHUTTING_DOWN, f"this client {why}") from None

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with connect_async(Env(self._transport), self._addresses, socket.gethostname()) as client:
                self.paths = Paths(client, self._caller, folders_s=FOLDERS_S)
                self._ready.set()
                await self._stop.wait()


class File(io.RawIOBase):
    """An open file with a position, as io.RawIOBase has it. Wrap it with io.BufferedReader for small reads."""

    def __init__(self, fs: FileSystem, file: AsyncFile, mode: str) -> None:
        super().__init__()
        self._fs = fs
        self._pid = os.getpid()
        self._file = file
        self._mode = mode
        self._position = 0

    def _call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run function(file, *arguments)."""
        file = self.opened()
        return self._fs.call(function, file, *arguments)

    def opened(self) -> AsyncFile:
        """The file as open in this process."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._pid != os.getpid():
            if self.writable():
                raise FS3Error(Code.BAD_HANDLE, "opened for writing before a fork; open it in the process that writes it")
            self._file = self._fs.call(self._fs.paths.open_inode, self._file.inode)
            self._pid = os.getpid()
        return self._file

    def readable(self) -> bool:
        return self._mode[0] == "r" or "+" in self._mode

    def writable(self) -> bool:
        return self._mode[0] != "r" or "+" in self._mode

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as into:
            count = self._call(AsyncFile.read_into, self._position, into)
        self._position += count
        return count

    def readall(self) -> bytes:
        data = self.pread(max(0, self.stat().length - self._position), self._position)
        self._position += len(data)
        return data

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            count = self._call(AsyncFile.write_at, self._position, view)
        self._position = self.stat().length if self._mode[0] == "a" else self._position + count
        return count

    def pread(self, length: int, offset: int) -> bytes:
        """Read at an offset, leaving the position alone."""
        return bytes(self._call(AsyncFile.read_at, offset, length))

    def pwrite(self, data: Any, offset: int) -> int:
        """Write at an offset, leaving the position alone."""
        return self._call(AsyncFile.write_at, offset, data)

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
        self._call(AsyncFile.truncate, length)
        return length

    def sync(self) -> None:
        """fsync."""
        self._call(AsyncFile.sync)

    def data_ranges(self, offset: int = 0, length: int | None = None) -> list[tuple[int, int]]:
        return self._call(AsyncFile.data_ranges, offset, length)

    def punch(self, offset: int, length: int) -> None:
        self._call(AsyncFile.punch, offset, length)

    def zero_range(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        self._call(partial(AsyncFile.zero_range, keep_size=keep_size), offset, length)

    def allocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        self._call(partial(AsyncFile.allocate, keep_size=keep_size), offset, length)

    def copy_to(self, offset: int, target: File, target_offset: int, length: int) -> int:
        return self._call(AsyncFile.copy_to, offset, target.opened(), target_offset, length)

    def stat(self) -> Attr:
        return self._call(AsyncFile.stat)

    def close(self) -> None:
        if not self.closed:
            try:
                if self._pid == os.getpid():  # else it is the other process's to close
                    self._close()
            finally:
                super().close()

    def _close(self) -> None:
        if self._fs.runs_here():  # the garbage collector does not care in which thread it works
            trio.lowlevel.spawn_system_task(self._file.close)
            return
        try:
            self._call(AsyncFile.close)
        except FS3Error as error:
            if error.code is not Code.SHUTTING_DOWN or self.writable():
                raise  # else the client ended before its files, and nothing is lost


class Registered:
    """Memory that is registered with a FileSystem, in this process; see `FileSystem.register`."""

    def __init__(self, fs: FileSystem, registration: Registration) -> None:
        self._fs = fs
        self._pid = os.getpid()
        self._registration = registration

    def close(self) -> None:
        """Returns when nothing touches the memory any more for calls that were given up, or of other threads. May be called
        again, and in a forked process, where it does nothing."""
        if self._pid != os.getpid():
            return
        try:
            self._fs.call(self._registration.close)
        except FS3Error as error:
            if error.code is not Code.SHUTTING_DOWN:
                raise
            self._registration.release()

    def __enter__(self) -> Registered:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FileSystem:
    """Calls by path; see fs3.client.paths.Paths, whose methods these are, blocking."""

    def __init__(
        self,
        addresses: Sequence[str],
        transport: Transport | None = None,
        caller: Caller | None = None,
        *,
        timeout_s: float | None = None,
        ends_with_process: bool = False,
    ) -> None:
        """Connects at the first call, in each process. timeout_s: how long that may take. The others: as of `connect`."""
        self.addresses = tuple(addresses)
        self._transport = transport
        self._caller = caller
        self._timeout_s = timeout_s
        self._ends_with_process = ends_with_process
        self._loops: dict[int, _Loop] = {}  # by process; those of parents stay: their tasks must not be cleaned up here
        self._closed = False

    def start(self) -> _Loop:
        """Connect, unless this process has. Raises DEADLINE_EXCEEDED where nobody answers in time."""
        if self._closed:
            raise FS3Error(Code.SHUTTING_DOWN, "this client is closed")
        pid = os.getpid()
        loop = self._loops.get(pid)
        if loop is None:
            fresh = _Loop(self.addresses, self._transport if self._transport is not None else Transports(), self._caller)
            loop = self._loops.setdefault(pid, fresh)
            if loop is fresh and self._ends_with_process:
                Finalize(None, fresh.stop, (EXIT_S,), exitpriority=0)
        if loop.paths is None:
            try:
                loop.start(self._timeout_s)
            except BaseException:
                if self._loops.get(pid) is loop:
                    del self._loops[pid]  # the next call tries again
                raise
        return loop

    @property
    def closed(self) -> bool:
        return self._closed

    def runs_here(self) -> bool:
        """Whether this is the thread in which the client runs, where no call may wait for it."""
        loop = self._loops.get(os.getpid())
        return loop is not None and loop.runs_here()

    def close(self, timeout_s: float | None = None) -> None:
        """End it; close all files before. What a forked process does here does not touch the other's."""
        self._closed = True
        loop = self._loops.get(os.getpid())
        if loop is not None:
            loop.stop(timeout_s)

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run function(*arguments) where the client runs."""
        return self.start().call(function, *arguments)

    @property
    def paths(self) -> Paths:
        """For functions that run by `call`."""
        paths = self.start().paths
        assert paths is not None
        return paths

    def __reduce__(self) -> tuple[Any, ...]:
        assert self._transport is None, "only clients of the usual transports can be pickled"
        return shared, (self.addresses, self._caller)

    def open(self, path: str, mode: str = "r", permissions: int = 0o666) -> File:
        file = self.call(self.paths.open_file, path, mode, permissions)
        return File(self, file, mode.replace("b", ""))

    def stat(self, path: str, *, follow: bool = True) -> Attr:
        paths = self.paths
        return self.call(lambda: paths.stat(path, follow=follow))

    def exists(self, path: str) -> bool:
        return self.call(self.paths.exists, path)

    def listdir(self, path: str = "/") -> list[str]:
        return self.call(self.paths.listdir, path)

    def scan(self, path: str = "/") -> list[tuple[bytes, Attr]]:
        return self.call(self.paths.scan, path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self.call(self.paths.mkdir, path, mode)

    def makedirs(self, path: str, mode: int = 0o777) -> None:
        self.call(self.paths.makedirs, path, mode)

    def unlink(self, path: str) -> None:
        self.call(self.paths.unlink, path)

    def rmdir(self, path: str) -> None:
        self.call(self.paths.rmdir, path)

    def rmtree(self, path: str) -> None:
        self.call(self.paths.rmtree, path)

    def rename(self, path: str, new_path: str, flags: RenameFlags = RenameFlags.NONE) -> None:
        self.call(self.paths.rename, path, new_path, flags)

    def symlink(self, target: str, path: str) -> None:
        self.call(self.paths.symlink, target, path)

    def readlink(self, path: str) -> str:
        return self.call(self.paths.readlink, path)

    def link(self, path: str, new_path: str) -> None:
        self.call(self.paths.link, path, new_path)

    def chmod(self, path: str, mode: int) -> None:
        self.call(self.paths.chmod, path, mode)

    def utime(self, path: str, atime_ns: int | None = None, mtime_ns: int | None = None) -> None:
        self.call(self.paths.utime, path, atime_ns, mtime_ns)

    def sync_folder(self, path: str) -> None:
        self.call(self.paths.sync_folder, path)

    def truncate(self, path: str, length: int) -> None:
        self.call(self.paths.truncate, path, length)

    def copy_file(self, path: str, new_path: str) -> int:
        return self.call(self.paths.copy_file, path, new_path)

    @contextmanager
    def lock(
        self,
        path: str,
        *,
        shared: bool = False,
        offset: int = 0,
        length: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Lock]:
        """A lock that excludes all clients of the cluster which lock it too; see fs3.client.paths. Its is_held() may be
        called here, and nothing else of it."""
        manager = self.paths.lock(path, shared=shared, offset=offset, length=length, timeout_s=timeout_s)
        lock = self.call(manager.__aenter__)
        try:
            yield lock
        finally:
            self.call(manager.__aexit__, None, None, None)

    def read_file(self, path: str) -> bytes:
        return self.call(self.paths.read_file, path)

    def write_file(self, path: str, data: Any) -> None:
        self.call(self.paths.write_file, path, data)

    def register(self, buffer: Any, fd: int = -1) -> Registered:
        """As fs3.client.paths.Paths.register. A process that is forked has to register for itself."""
        paths = self.paths

        async def register() -> Registration:
            return paths.register(buffer, fd)

        return Registered(self, self.call(register))

    def read_batch(self, items: Sequence[tuple[str | File, int, int]], into: Any, *, strict: bool = False) -> list[Result]:
        paths = self.paths
        opened = [(source if isinstance(source, str) else source.opened(), at, length) for source, at, length in items]
        return self.call(lambda: paths.read_batch(opened, into, strict=strict))

    def fetch_batch(
        self, items: Sequence[tuple[str | File, int, int | None]], *, strict: bool = False
    ) -> list[memoryview | FS3Error]:
        paths = self.paths
        opened = [(source if isinstance(source, str) else source.opened(), at, length) for source, at, length in items]
        return self.call(lambda: paths.fetch_batch(opened, strict=strict))

    def write_batch(self, items: Sequence[tuple[str | File, int, Any]], *, strict: bool = False) -> list[Result]:
        paths = self.paths
        opened = [(source if isinstance(source, str) else source.opened(), at, data) for source, at, data in items]
        return self.call(lambda: paths.write_batch(opened, strict=strict))


@contextmanager
def connect(
    addresses: Sequence[str], *, transport: Transport | None = None, caller: Caller | None = None
) -> Iterator[FileSystem]:
    """A client of the cluster whose mgmtd daemons are at `addresses`. caller: whose rights count, those of this process
    by default. Close all files before leaving."""
    fs = FileSystem(addresses, transport, caller)
    try:
        fs.start()
        yield fs
    finally:
        fs.close()


_shared: dict[tuple[tuple[str, ...], Caller | None], FileSystem] = {}


def shared(addresses: Sequence[str], caller: Caller | None = None) -> FileSystem:
    """The client of that cluster that all of this process shares: it connects at its first call, and ends with it."""
    key = tuple(addresses), caller
    found = _shared.get(key)
    if found is not None and found.closed:
        _shared.pop(key, None)
        found = None
    if found is None:
        found = _shared.setdefault(key, FileSystem(addresses, None, caller, timeout_s=CONNECT_S, ends_with_process=True))
    return found
