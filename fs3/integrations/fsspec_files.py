"""Open files as fsspec wants them."""

from __future__ import annotations

import io
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fsspec.spec import AbstractBufferedFile

from ..api.meta import RenameFlags
from ..client.sync import File, FileSystem
from ..errors import Code, FS3Error

T = TypeVar("T")


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Raises the OSError that a local file system would: FileNotFoundError and so on."""
    try:
        yield
    except FS3Error as error:
        raise os_error(error, path) from error


def os_error(error: FS3Error, path: str) -> OSError:
    """As the system words it; what only fs3 knows stands behind that."""
    words = os.strerror(error.errno)
    return OSError(error.errno, words if error.code in _PLAIN else f"{words}: {error}", path)


_PLAIN = (Code.NOT_FOUND, Code.EXISTS, Code.NOT_DIRECTORY, Code.IS_DIRECTORY, Code.NOT_EMPTY, Code.PERMISSION_DENIED)


class RawFile(File):
    """A file whose errors are OSErrors."""

    def __init__(self, fs: FileSystem, path: str, mode: str, permissions: int = 0o666) -> None:
        with os_errors(path):
            super().__init__(fs, fs.call(fs.paths.open_file, path, mode, permissions), mode.replace("b", ""))
        self.path = path

    def _call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        with os_errors(self.path):
            return super()._call(function, *arguments)


class ReadFile(io.BufferedReader):
    """Open for reading. `raw` is the file without a buffer, `size` its length when it was opened."""

    raw: RawFile

    def __init__(self, fs: Any, raw: RawFile, block_size: int) -> None:
        super().__init__(raw, block_size)
        self.fs = fs
        self.path = raw.path
        self.blocksize = block_size
        self.size = raw.opened().length
        self.details = {"name": self.path, "size": self.size, "type": "file"}

    @property
    def full_name(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))


class CachedFile(AbstractBufferedFile):
    """Open for reading, through one of fsspec's caches."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        with os_errors(self.path):
            (found,) = self.fs.client.fetch_batch([(self.path, start, max(0, min(end, self.size) - start))], strict=True)
        return bytes(found)


class WriteFile(io.BufferedWriter):
    """Open for writing. Within a transaction it is another file that takes the name of this one at the end of that."""

    def __init__(
        self, fs: Any, raw: RawFile, path: str, block_size: int, autocommit: bool, *, exclusive: bool = False
    ) -> None:
        super().__init__(raw, block_size)
        self.fs = fs
        self.path = path
        self.blocksize = block_size
        self.autocommit = autocommit
        self._temporary = raw.path
        self._flags = RenameFlags.NOREPLACE if exclusive else RenameFlags.NONE

    def commit(self) -> None:
        """Show what was written, all at once."""
        assert not self.autocommit, "it was committed when it was closed"
        if not self.closed:
            self.close()
        with os_errors(self.path):
            self.fs.client.rename(self._temporary, self.path, self._flags)

    def discard(self) -> None:
        """Forget what was written."""
        assert not self.autocommit, "it was committed when it was closed"
        if not self.closed:
            self.close()
        with os_errors(self._temporary):
            self.fs.client.unlink(self._temporary)

    @property
    def full_name(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))
