"""The directory of an embedded store: its lock, its format version and RocksDB inside.

LOCK      locked while a process has the store open; holds its pid
FORMAT    the format version, written once RocksDB was made
rocksdb/  RocksDB's own
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict

from ..errors import Code, FS3Error

FORMAT_VERSION = 1
_FORMAT_LINE = "fs3 embedded key-value store, format "
_CACHE_BYTES = 64 << 20
_MEMTABLE_BYTES = 32 << 20
_WAL_BYTES_MAX = 256 << 20
_LOG_FILES_MAX = 4
_BLOOM_BITS_PER_KEY = 10


class StoreDirectory:
    """An open store directory: `db` is its RocksDB."""

    def __init__(self, path: Path, lock_fd: int, db: Any) -> None:
        self.path = path
        self.db = db
        self._lock_fd: int | None = lock_fd

    @classmethod
    def open(cls, path: Path) -> StoreDirectory:
        """Open, or make. Raises FORMAT_VERSION before anything is touched, BUSY, IO."""
        made = _check_format(path / "FORMAT")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock_fd = _lock(path)
        except OSError as error:
            raise FS3Error(Code.IO, f"cannot use the store directory {path}: {error.strerror}") from error
        try:
            db = Rdict(str(path / "rocksdb"), _options(create=not made))
            if not made:
                _write_format(path)
        except OSError as error:
            os.close(lock_fd)
            raise FS3Error(Code.IO, f"cannot make the store {path}: {error.strerror}") from error
        except Exception as error:  # rocksdict raises nothing more special
            os.close(lock_fd)
            raise FS3Error(Code.IO, f"cannot open the store {path}, which may be damaged: {error}") from error
        return cls(path, lock_fd, db)

    def close(self) -> None:
        """Write everything out and unlock. May run twice; blocks. Raises IO."""
        if self._lock_fd is None:
            return
        try:
            self.db.close()
        except Exception as error:
            raise FS3Error(Code.IO, f"cannot write out the store {self.path}: {error}") from error
        finally:
            self.db = None
            os.close(self._lock_fd)
            self._lock_fd = None


def _check_format(path: Path) -> bool:
    """Whether the store was made already."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise FS3Error(Code.IO, f"cannot read {path}: {error}") from error
    version = text.strip().removeprefix(_FORMAT_LINE)
    if not version.isascii() or not version.isdigit():
        raise FS3Error(Code.FORMAT_VERSION, f"{path} is not that of an embedded key-value store")
    if int(version) > FORMAT_VERSION:
        raise FS3Error(
            Code.FORMAT_VERSION, f"{path} says format {version}; this version of fs3 knows {FORMAT_VERSION} at most"
        )
    return True


def _write_format(path: Path) -> None:
    new = path / "FORMAT.new"
    with new.open("w") as file:
        file.write(f"{_FORMAT_LINE}{FORMAT_VERSION}\n")
        file.flush()
        os.fsync(file.fileno())
    new.rename(path / "FORMAT")
    for directory in (path, path.parent):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _lock(path: Path) -> int:
    fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise FS3Error(
            Code.BUSY, f"the store {path} is already open in process {owner or 'unknown'}", retryable=False
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def _options(create: bool) -> Options:
    """Small values, point reads, a log that reaches the page cache with every commit (manual_wal_flush stays off)."""
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_write_buffer_size(_MEMTABLE_BYTES)
    options.set_max_write_buffer_number(4)
    options.set_max_total_wal_size(_WAL_BYTES_MAX)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(_LOG_FILES_MAX)
    options.set_compression_type(DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_block_cache(Cache(_CACHE_BYTES))
    table.set_bloom_filter(_BLOOM_BITS_PER_KEY, False)
    options.set_block_based_table_factory(table)
    # Queues are cleared from the front: without this their tombstones would slow each scan until a compaction by chance.
    options.add_compact_on_deletion_collector_factory(1024, 512, 0.5)
    return options
