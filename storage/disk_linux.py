"""The disk port on Linux: plain files and RocksDB.

What runs where. Bytes that are in the page cache are read on the event loop (`preadv` with RWF_NOWAIT says whether they
are; tmpfs does not know that flag, but has all in memory), the rest in a thread. Writes go to the page cache on the event
loop too, as long as that takes microseconds: a thread would cost more than the copy. The kernel makes writers wait when the
disk cannot follow; once a write took STALL_MS, writes go to threads for a while. Syncs and hole punching always do.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio
from rocksdict import AccessType, Options, Rdict, WriteBatch

from fs3.checksum import Buffer, crc32c
from fs3.errors import Code, ConfigError, FS3Error

from .disk import Disk, DiskFile, Records, Space

INLINE_BYTES_MAX = 1024 * 1024
CACHED_BYTES_MAX = 4 * 1024 * 1024
"""Of one read out of the page cache: a thread would cost more than that keeps others waiting."""
STALL_MS = 20.0
THREADS_AFTER_STALL_MS = 500.0
_IOV_MAX = 1024
_MEMTABLE_SIZE = 16 * 1024 * 1024
_DISK_IS_GONE = (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EUCLEAN)
_FOLDERS_DEEP = 2
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
SECTOR = 4096
"""What direct I/O is counted in; no disk has larger ones."""
_PIECE = 1024 * 1024
_TMPFS_MAGIC = 0x01021994
_STATFS_SIZE = 256  # more than any version of the struct, which starts with the file system's type

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_MARK = struct.Struct("<QI")  # a number and its CRC32C

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_char_p]


def disk_error(error: OSError, what: str) -> FS3Error:
    """What an operating system's error means for a chunk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FS3Error(Code.NO_SPACE, f"{what}: {error.strerror}")
    return FS3Error(Code.DISK_FAILED, f"{what}: {error.strerror or error}")


def sync_folder(path: Path) -> None:
    """Make durable which names are in a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class LinuxFile(DiskFile):
    """A data file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._created = not path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._threads_until = 0.0
        self._now_flags = 0 if _in_memory(self._fd) else os.RWF_NOWAIT  # for preadv; -1 where nothing can be had at once

    async def read(self, offset: int, into: memoryview) -> None:
        done = self._read_cached(offset, into)
        if done == len(into):
            return
        try:
            await trio.to_thread.run_sync(self._read_rest, offset + done, into[done:])
        except OSError as error:
            raise self._unread(error) from None

    def read_now(self, offset: int, into: memoryview) -> bool:
        return self._read_cached(offset, into) == len(into)

    def _read_cached(self, offset: int, into: memoryview) -> int:
        """How many bytes could be read without waiting."""
        if len(into) > CACHED_BYTES_MAX or self._now_flags < 0:
            return 0
        try:
            return os.preadv(self._fd, [into], offset, self._now_flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._now_flags = -1
                return 0
            if error.errno == errno.EFAULT:  # memory of another process, who took it away: no fault of the disk
                return 0
            raise self._unread(error) from None

    def _unread(self, error: OSError) -> FS3Error:
        return FS3Error(Code.READ_FAILED, f"read {self._path}: {error.strerror or error}")

    def _read_rest(self, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, [into[done:]], offset + done)
            if count == 0:
                into[done:] = bytes(len(into) - done)
                return
            done += count

    async def read_medium(self, offset: int, into: memoryview) -> None:
        def run() -> None:
            os.posix_fadvise(self._fd, offset, len(into), os.POSIX_FADV_DONTNEED)
            self._read_rest(offset, into)

        try:
            await trio.to_thread.run_sync(run)
        except OSError as error:
            raise self._unread(error) from None

    async def prefetch(self, offset: int, length: int) -> bool:
        def run() -> None:
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)  # all at once, and the next line waits
            scratch = memoryview(bytearray(min(length, _PIECE)))
            for start in range(offset, offset + length, _PIECE):
                self._read_rest(start, scratch[: offset + length - start])

        try:
            await trio.to_thread.run_sync(run)
        except OSError as error:
            raise self._unread(error) from None
        return True

    def read_blocking(self, offset: int, into: memoryview) -> None:
        try:
            self._read_rest(offset, into)
        except OSError as error:
            raise self._unread(error) from None

    async def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        length = 0
        for part in parts:
            length += len(part)
        try:
            started = time.perf_counter()
            if length > INLINE_BYTES_MAX or started < self._threads_until:
                await trio.to_thread.run_sync(self._write_all, offset, parts, length)
            else:
                self._write_all(offset, parts, length)
                ended = time.perf_counter()
                if (ended - started) * 1000 > STALL_MS:
                    self._threads_until = ended + THREADS_AFTER_STALL_MS / 1000
        except OSError as error:
            raise disk_error(error, f"write {self._path}") from None

    def _write_all(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        if len(parts) <= _IOV_MAX and os.pwritev(self._fd, parts, offset) == length:
            return
        for part in parts:
            self._write_one(offset, part)
            offset += len(part)

    def _write_one(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, offset)
            offset += count
            view = view[count:]

    async def punch(self, offset: int, length: int) -> None:
        try:
            await trio.to_thread.run_sync(self._punch, offset, length)
        except OSError as error:
            raise disk_error(error, f"punch {self._path}") from None

    def _punch(self, offset: int, length: int) -> bool:
        """Whether the file system can do that."""
        if _libc.fallocate(self._fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) != 0:
            code = ctypes.get_errno()
            if code != errno.EOPNOTSUPP:
                raise OSError(code, os.strerror(code))
            return False
        return True

    async def zero(self, offset: int, length: int) -> None:
        try:
            await trio.to_thread.run_sync(self._zero, offset, length)
        except OSError as error:
            raise disk_error(error, f"zero {self._path}") from None

    def _zero(self, offset: int, length: int) -> None:
        if not self._punch(offset, length):
            zeros = bytes(min(length, INLINE_BYTES_MAX))
            for at in range(0, length, len(zeros)):
                self._write_one(offset + at, memoryview(zeros)[: length - at])

    async def sync(self) -> None:
        try:
            await trio.to_thread.run_sync(self._sync)
        except OSError as error:
            raise disk_error(error, f"sync {self._path}") from None

    def _sync(self) -> None:
        os.fdatasync(self._fd)
        if self._created:  # its name, and those of the folders that were made for it
            for folder in list(self._path.parents)[:_FOLDERS_DEEP]:
                sync_folder(folder)
            self._created = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DirectFile(LinuxFile):
    """A data file whose bytes pass by the page cache, where they lie on whole sectors: for disks that are faster than a copy
    in memory is worth, and for hosts whose memory others need. All of it runs in threads.

    What is no whole number of sectors is written through the page cache; the kernel keeps both views of a file the same.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._buffers: list[memoryview] = []  # of PIECE bytes, free, and aligned as the kernel wants them
        try:
            self._direct = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            super().close()
            if error.errno != errno.EINVAL:
                raise
            raise ConfigError(f"{path}: this file system has no direct I/O (direct_io)") from None

    async def read(self, offset: int, into: memoryview) -> None:
        try:
            await trio.to_thread.run_sync(self._read_direct, offset, into)
        except OSError as error:
            raise self._unread(error) from None

    def read_now(self, offset: int, into: memoryview) -> bool:
        return False

    async def read_medium(self, offset: int, into: memoryview) -> None:
        await self.read(offset, into)

    async def prefetch(self, offset: int, length: int) -> bool:
        return False

    def _read_direct(self, offset: int, into: memoryview) -> None:
        done = self._read_straight(offset, into)
        if done == len(into):
            return
        buffer = self._take()
        while done < len(into):
            skip = (offset + done) % SECTOR
            start = offset + done - skip
            wanted = min(_PIECE, -(-(skip + len(into) - done) // SECTOR) * SECTOR)
            count = min(os.preadv(self._direct, [buffer[:wanted]], start) - skip, len(into) - done)
            if count <= 0:  # the file ends here
                into[done:] = bytes(len(into) - done)
                break
            into[done : done + count] = buffer[skip : skip + count]
            done += count
        self._buffers.append(buffer)

    def _read_straight(self, offset: int, into: memoryview) -> int:
        """Read whole sectors to where they belong, if the disk can write there; how many bytes are there then."""
        done = 0
        whole = len(into) - len(into) % SECTOR
        if offset % SECTOR or not _is_aligned(into):
            return 0
        while done < whole:
            count = os.preadv(self._direct, [into[done:whole]], offset + done)
            done += count - count % SECTOR
            if not count or count % SECTOR:  # the file ends here
                break
        return done

    async def write(self, offset: int, parts: Sequence[Buffer]) -> None:
        length = sum([len(part) for part in parts])
        if offset % SECTOR or length % SECTOR:
            await super().write(offset, parts)
            return
        try:
            await trio.to_thread.run_sync(self._write_direct, offset, parts)
        except OSError as error:
            raise disk_error(error, f"write {self._path}") from None

    def _write_direct(self, offset: int, parts: Sequence[Buffer]) -> None:
        buffer = self._take()
        filled = 0
        for part in parts:
            view = memoryview(part)
            if not filled and _is_aligned(view):
                whole = len(view) - len(view) % SECTOR
                self._write_piece(offset, view[:whole])
                offset, view = offset + whole, view[whole:]
            while len(view):
                count = min(len(view), _PIECE - filled)
                buffer[filled : filled + count] = view[:count]
                view = view[count:]
                filled += count
                if filled == _PIECE:
                    self._write_piece(offset, buffer)
                    offset, filled = offset + filled, 0
        self._write_piece(offset, buffer[:filled])
        self._buffers.append(buffer)

    def _write_piece(self, offset: int, piece: memoryview) -> None:
        while len(piece):
            count = os.pwrite(self._direct, piece, offset)
            if count % SECTOR:  # as on a full disk, whose error the next call meets
                count -= count % SECTOR
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset += count
            piece = piece[count:]

    def _take(self) -> memoryview:
        try:
            return self._buffers.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, _PIECE))

    def close(self) -> None:
        super().close()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def _is_aligned(view: memoryview) -> bool:
    """Whether direct I/O takes this memory as it is, such as what clients of this host share. Not what is read-only: of that
    Python does not tell where it is."""
    if view.readonly or not len(view):
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % SECTOR == 0


def _in_memory(fd: int) -> bool:
    """Whether a file's bytes are never anywhere but in memory (or in swap)."""
    status = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.fstatfs(fd, status) != 0:
        return False
    return ctypes.c_long.from_buffer(status).value == _TMPFS_MAGIC


class _Mark:
    """A number in a small file, which is never later than the truth: it is written after what it speaks of is durable, and
    not synced itself."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found = os.pread(self._fd, _MARK.size, 0)
        self.value = 0
        if len(found) == _MARK.size and crc32c(found[:8]) == _MARK.unpack(found)[1]:
            self.value = _MARK.unpack(found)[0]

    def note(self, value: int) -> None:
        if value > self.value:
            self.value = value
            packed = value.to_bytes(8, "little")
            with suppress(OSError):  # an older number is as right
                os.pwrite(self._fd, packed + crc32c(packed).to_bytes(4, "little"), 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RocksRecords(Records):
    """Records in a RocksDB whose log is written through to the page cache at each write.

    After a power loss the end of the log may be torn, so RocksDB opens with what stands before the first damaged place, and
    says nothing. Hence the file SYNCED, which says how far the log was durable: where less than that is left, the records
    are damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(_MEMTABLE_SIZE)
        options.set_max_write_buffer_number(3)
        options.set_keep_log_file_num(2)
        options.set_max_total_wal_size(4 * _MEMTABLE_SIZE)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db: Rdict = Rdict(str(path), options, access_type=AccessType.read_write())
        except Exception as error:  # rocksdict raises plain exceptions with RocksDB's words
            raise self._unusable(error) from None
        try:
            self._mark = _Mark(path / "SYNCED")
        except OSError as error:
            self._db.close()
            raise disk_error(error, f"open {path}/SYNCED") from None
        left, synced = self._db.latest_sequence_number(), self._mark.value
        if left < synced:
            self.close()
            raise FS3Error(Code.RECORDS_DAMAGED, f"{path}: Corruption: {synced} changes were durable, {left} are left")

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from self._db.items()
            self._sync()
        except Exception as error:
            raise self._unusable(error) from None

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        try:
            if len(puts) == 1 and not deletes:
                self._db.put(puts[0][0], puts[0][1])
                return
            batch = WriteBatch(raw_mode=True)
            for key, value in puts:
                batch.put(key, value)
            for key in deletes:
                batch.delete(key)
            self._db.write(batch)
        except Exception as error:
            raise self._failed(error) from None

    async def sync(self) -> None:
        try:
            await trio.to_thread.run_sync(self._sync)
        except Exception as error:
            raise self._failed(error) from None

    def _sync(self) -> None:
        reached = self._db.latest_sequence_number()
        self._db.flush_wal(True)
        self._mark.note(reached)

    def close(self) -> None:
        with suppress(Exception):  # closed already
            self._db.close()
        self._mark.close()

    def _unusable(self, error: Exception) -> FS3Error:
        """Why it cannot be opened: what RocksDB says of files that are not as they should be is one of two things."""
        words = str(error)
        damaged = "orruption" in words or ("No such file" in words and "IO error" in words) or "nvalid argument" in words
        return FS3Error(Code.RECORDS_DAMAGED if damaged else Code.DISK_FAILED, f"{self._path}: {error}")

    def _failed(self, error: Exception) -> FS3Error:
        code = Code.NO_SPACE if "No space left" in str(error) else Code.DISK_FAILED
        return FS3Error(code, f"{self._path}: {error}")


class LinuxDisk(Disk):
    """A folder. Locked while open: a second process gets a ConfigError. direct: data files pass by the page cache."""

    def __init__(self, path: str, direct: bool = False) -> None:
        self._root = Path(path)
        self._direct = direct
        self.name = path
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._root / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in _DISK_IS_GONE:
                raise disk_error(error, f"data folder {path}") from None
            raise ConfigError(f"data folder {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"data folder {path} is in use by another storage daemon") from None

    def space(self) -> Space:
        try:
            status = os.statvfs(self._root)
        except OSError as error:
            raise disk_error(error, f"statvfs {self._root}") from None
        return Space(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def read_small(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(error, f"read {self._root / name}") from None

    def write_small(self, name: str, data: bytes) -> None:
        path = self._root / name
        fresh = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise disk_error(error, f"write {path}") from None

    def files(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self._root / folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise disk_error(error, f"list {self._root / folder}") from None

    def open_file(self, name: str) -> DiskFile:
        path = self._root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return DirectFile(path) if self._direct else LinuxFile(path)
        except OSError as error:
            raise disk_error(error, f"open {path}") from None

    async def remove_file(self, name: str) -> None:
        try:
            await trio.to_thread.run_sync(partial((self._root / name).unlink, missing_ok=True))
        except OSError as error:
            raise disk_error(error, f"remove {self._root / name}") from None

    def boot_id(self) -> str:
        try:
            return _BOOT_ID.read_text().strip()
        except OSError as error:
            raise disk_error(error, f"read {_BOOT_ID}") from None

    def open_records(self, name: str) -> Records:
        path = self._root / name
        records = RocksRecords(path)
        try:
            for folder in list(path.parents)[:_FOLDERS_DEEP]:
                sync_folder(folder)
        except OSError as error:
            records.close()
            raise disk_error(error, f"sync {path.parent}") from None
        return records

    def has_records(self, name: str) -> bool:
        return (self._root / name / "CURRENT").exists()

    def remove(self, folder: str) -> None:
        try:
            shutil.rmtree(self._root / folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(error, f"remove {self._root / folder}") from None

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
