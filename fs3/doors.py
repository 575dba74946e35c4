"""Ways to the files of one folder, for those who keep many blocks in few files: plain calls, rings of a mount, or the client
without any mount. All block, may be used by any number of threads, and raise OSError.

A name is relative to the folder. A handle is what create() or open() returned, and of no use to another door.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

from .client.sync import File, FileSystem, Registered
from .errors import Code, FS3Error

Handle = Any
Piece = tuple[Handle, int, Any]
"""(handle, offset, buffer): a range to read into a writable buffer, or to write from one."""
Done = Callable[[int, int], None]
"""Told, of a piece by its number, how many bytes it got: fewer than asked for at the end of the file only, or -errno."""


class Entry(NamedTuple):
    """A file of a folder. size: bytes."""

    size: int
    mtime_ns: int


class Door(Protocol):
    """What all of them can do."""

    place: str

    def make(self, folders: Sequence[str]) -> None:
        """Make the folder, and these in it, unless they are there."""

    def entries(self, folder: str) -> dict[str, Entry]:
        """The files of one of its folders by their names in it. Empty where it is not there."""

    def create(self, name: str, size: int) -> Handle:
        """Make a file of so many bytes to read and write, most of it a hole. Raises FileExistsError."""

    def open(self, name: str, *, write: bool = False) -> Handle:
        """Raises FileNotFoundError."""

    def close(self, handle: Handle) -> None: ...

    def truncate(self, handle: Handle, size: int) -> None: ...

    def read(self, pieces: Sequence[Piece], done: Done) -> None:
        """Fill the buffers; `done` is called once for each piece, in any order, in this thread."""

    def write(self, pieces: Sequence[Piece]) -> list[int]:
        """Bytes written of each piece: all of them, or -errno."""

    def register(self, buffer: Any) -> None:
        """Memory that pieces will lie in, until end(): where the way can make use of that, nothing is copied."""

    def remove(self, name: str) -> None:
        """No error where it is not there."""

    def touch(self, name: str) -> None:
        """Make now the time of its last change. No error where it is not there."""

    def end(self) -> None:
        """Give back what it holds, after all handles are closed."""


class PlainDoor:
    """Files by the kernel's calls, of any file system."""

    def __init__(self, place: str) -> None:
        self.place = os.path.abspath(place)
        self._root = os.path.realpath(place)
        while not os.path.ismount(self._root):
            self._root = os.path.dirname(self._root)

    def _path(self, name: str) -> str:
        return os.path.join(self.place, name)

    def make(self, folders: Sequence[str]) -> None:
        if not os.path.ismount(self._root):  # else what is below the mount would be filled
            raise OSError(errno.ENODEV, f"{self._root}: what was mounted here is not there")
        for folder in folders:
            os.makedirs(self._path(folder), exist_ok=True)

    def entries(self, folder: str) -> dict[str, Entry]:
        found = {}
        with suppress(FileNotFoundError), os.scandir(self._path(folder)) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it has just been removed
                    stat = entry.stat(follow_symlinks=False)
                    found[entry.name] = Entry(stat.st_size, stat.st_mtime_ns)
        return found

    def create(self, name: str, size: int) -> Handle:
        handle = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(handle, size)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def open(self, name: str, *, write: bool = False) -> Handle:
        return os.open(self._path(name), (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, handle: Handle) -> None:
        os.close(handle)

    def truncate(self, handle: Handle, size: int) -> None:
        os.ftruncate(handle, size)

    def read(self, pieces: Sequence[Piece], done: Done) -> None:
        for number, (handle, offset, into) in enumerate(pieces):
            done(number, _read(handle, offset, into))

    def write(self, pieces: Sequence[Piece]) -> list[int]:
        return [_write(handle, offset, data) for handle, offset, data in pieces]

    def register(self, buffer: Any) -> None:
        pass

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def touch(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.utime(self._path(name))

    def end(self) -> None:
        pass


def _read(handle: int, offset: int, into: Any) -> int:
    """preadv(2) until the buffer is full or the file ends."""
    count = 0
    try:
        with memoryview(into) as view:
            while count < len(view):
                more = os.preadv(handle, [view[count:]], offset + count)
                if not more:
                    break
                count += more
    except OSError as error:
        return -(error.errno or errno.EIO)
    return count


def _write(handle: int, offset: int, data: Any) -> int:
    count = 0
    try:
        with memoryview(data) as view:
            while count < len(view):
                count += os.pwrite(handle, view[count:], offset + count)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return count


class ClientDoor:
    """The cluster itself, by a client in this process: no mount is needed on this machine."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.place = "/" + path.strip("/")
        self._fs = fs
        self._registered: list[Registered] = []

    def _path(self, name: str) -> str:
        return f"{self.place}/{name}"

    def make(self, folders: Sequence[str]) -> None:
        with _os_errors():
            for folder in folders:
                self._fs.makedirs(self._path(folder))

    def entries(self, folder: str) -> dict[str, Entry]:
        try:
            found = self._fs.scan(self._path(folder))
        except FS3Error as error:
            if error.code is Code.NOT_FOUND:
                return {}
            raise OSError(error.errno, error.message) from error
        return {os.fsdecode(name): Entry(attr.length, attr.mtime_ns) for name, attr in found}

    def create(self, name: str, size: int) -> Handle:
        with _os_errors():
            file = self._fs.open(self._path(name), "x+", 0o644)
            try:
                file.truncate(size)
            except BaseException:
                file.close()
                raise
            return file

    def open(self, name: str, *, write: bool = False) -> Handle:
        with _os_errors():
            return self._fs.open(self._path(name), "r+" if write else "r")

    def close(self, handle: Handle) -> None:
        with _os_errors():
            handle.close()

    def truncate(self, handle: Handle, size: int) -> None:
        with _os_errors():
            handle.truncate(size)

    def read(self, pieces: Sequence[Piece], done: Done) -> None:
        files: list[tuple[str | File, int, int]] = [(file, offset, len(into)) for file, offset, into in pieces]
        with _os_errors():
            found = self._fs.read_batch(files, [into for _, _, into in pieces])
        for number, result in enumerate(found):
            done(number, -(result.errno or errno.EIO) if isinstance(result, FS3Error) else result)

    def write(self, pieces: Sequence[Piece]) -> list[int]:
        with _os_errors():
            found = self._fs.write_batch(pieces)
        return [-(result.errno or errno.EIO) if isinstance(result, FS3Error) else result for result in found]

    def register(self, buffer: Any) -> None:
        self._registered.append(self._fs.register(buffer))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _os_errors():
            self._fs.unlink(self._path(name))

    def touch(self, name: str) -> None:
        with suppress(FileNotFoundError), _os_errors():
            self._fs.utime(self._path(name))

    def end(self) -> None:
        with _os_errors():
            while self._registered:
                self._registered.pop().close()  # but not the client, which may be others' too


@contextmanager
def _os_errors() -> Iterator[None]:
    """What the client raises, as the kernel would."""
    try:
        yield
    except FS3Error as error:
        raise OSError(error.errno, error.message) from error
