"""One file operation, done below two roots: what it returns, or which errno, is compared.

Paths are relative to the roots, file descriptors are numbers of slots. Results are made comparable: no inode numbers, no
times but those that were set, and only what POSIX settles (the size of a directory, say, is not).

Operations are done as one of several users, by the thread's file system ids: only what a file system asks for changes. They
start from the root as the working directory, since other users could not reach it from above.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import time
import zlib
from collections.abc import Callable
from pathlib import Path

Result = object
"""Any value that can be compared and printed."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
MAPPED_MAX = 4 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)

_SAME_ERRNO = {errno.EEXIST: errno.ENOTEMPTY}
"""POSIX lets rename and rmdir say either for a folder that is not empty."""


def pattern(seed: int, length: int) -> bytes:
    """Bytes that differ between seeds and places."""
    period = bytes((seed * 31 + i * 7 + i // 251) % 256 for i in range(4099))
    return (period * (length // len(period) + 1))[:length]


class Side:
    """One of the two roots, and the files that are open below it. user: as whom operations are done (uid, gid)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fds: dict[int, int] = {}
        self.user = (0, 0)

    def attempt(self, operation: Callable[[Side], Result]) -> Result:
        """The operation's result, or ("errno", name)."""
        before = os.getcwd()
        os.chdir(self.root)
        uid, gid = self.user
        try:
            if uid:
                _LIBC.setfsgid(gid)
                _LIBC.setfsuid(uid)
            return operation(self)
        except OSError as exc:
            return ("errno", errno.errorcode.get(exc.errno or 0, str(exc.errno)))
        finally:
            if uid:
                _LIBC.setfsuid(0)
                _LIBC.setfsgid(0)
            os.chdir(before)

    def path(self, name: str) -> str:
        return name or "."

    def close_all(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


def described(found: os.stat_result, *, mtime: bool = False) -> Result:
    """The attributes on which all file systems must agree."""
    parts: list[object] = [stat.filemode(found.st_mode), found.st_uid, found.st_gid]
    if stat.S_ISDIR(found.st_mode):
        parts.append("removed" if found.st_nlink == 0 else "there")
    else:
        parts += [found.st_size, found.st_nlink, found.st_rdev]
    if mtime:
        parts.append(found.st_mtime_ns)
    return tuple(parts)


def digest(data: bytes) -> Result:
    return (len(data), zlib.crc32(data), data[:8])


def open_file(slot: int, name: str, flags: int, mode: int) -> Callable[[Side], Result]:
    def operation(side: Side) -> Result:
        side.fds[slot] = os.open(side.path(name), flags, mode)
        return described(os.fstat(side.fds[slot]))

    return operation


def close(slot: int) -> Callable[[Side], Result]:
    return lambda side: os.close(side.fds.pop(slot))


def read(slot: int, length: int) -> Callable[[Side], Result]:
    return lambda side: digest(os.read(side.fds[slot], length))


def pread(slot: int, offset: int, length: int) -> Callable[[Side], Result]:
    return lambda side: digest(os.pread(side.fds[slot], length, offset))


def write(slot: int, data: bytes) -> Callable[[Side], Result]:
    return lambda side: (os.write(side.fds[slot], data), os.lseek(side.fds[slot], 0, os.SEEK_CUR))


def pwrite(slot: int, offset: int, data: bytes) -> Callable[[Side], Result]:
    return lambda side: os.pwrite(side.fds[slot], data, offset)


def seek(slot: int, offset: int, whence: int) -> Callable[[Side], Result]:
    return lambda side: os.lseek(side.fds[slot], offset, whence)


def ftruncate(slot: int, length: int) -> Callable[[Side], Result]:
    return lambda side: os.ftruncate(side.fds[slot], length)


def fsync(slot: int) -> Callable[[Side], Result]:
    return lambda side: os.fsync(side.fds[slot])


def fstat(slot: int) -> Callable[[Side], Result]:
    return lambda side: described(os.fstat(side.fds[slot]))


def fchmod(slot: int, mode: int) -> Callable[[Side], Result]:
    return lambda side: os.fchmod(side.fds[slot], mode)


def truncate(name: str, length: int) -> Callable[[Side], Result]:
    return lambda side: os.truncate(side.path(name), length)


def mkdir(name: str, mode: int) -> Callable[[Side], Result]:
    return lambda side: os.mkdir(side.path(name), mode)


def rmdir(name: str) -> Callable[[Side], Result]:
    def operation(side: Side) -> Result:
        try:
            return os.rmdir(side.path(name))
        except OSError as exc:
            raise OSError(_SAME_ERRNO.get(exc.errno or 0, exc.errno), "") from exc

    return operation


def unlink(name: str) -> Callable[[Side], Result]:
    return lambda side: os.unlink(side.path(name))


def link(source: str, target: str) -> Callable[[Side], Result]:
    return lambda side: os.link(side.path(source), side.path(target), follow_symlinks=False)


def symlink(target: str, name: str) -> Callable[[Side], Result]:
    return lambda side: os.symlink(target, side.path(name))


def readlink(name: str) -> Callable[[Side], Result]:
    return lambda side: os.readlink(side.path(name))


def rename(source: str, target: str, flags: int = 0) -> Callable[[Side], Result]:
    def operation(side: Side) -> Result:
        paths = [os.fsencode(side.path(name)) for name in (source, target)]
        if _LIBC.renameat2(-100, paths[0], -100, paths[1], flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number if flags else _SAME_ERRNO.get(number, number), "")
        return None

    return operation


def chmod(name: str, mode: int) -> Callable[[Side], Result]:
    return lambda side: os.chmod(side.path(name), mode)


def chown(name: str, uid: int, gid: int) -> Callable[[Side], Result]:
    return lambda side: os.chown(side.path(name), uid, gid, follow_symlinks=False)


def set_times(name: str, atime_ns: int, mtime_ns: int) -> Callable[[Side], Result]:
    def operation(side: Side) -> Result:
        os.utime(side.path(name), ns=(atime_ns, mtime_ns), follow_symlinks=False)
        return described(os.lstat(side.path(name)), mtime=True)

    return operation


def stat_path(name: str) -> Callable[[Side], Result]:
    return lambda side: described(os.stat(side.path(name)))


def lstat_path(name: str) -> Callable[[Side], Result]:
    return lambda side: described(os.lstat(side.path(name)))


def list_dir(name: str) -> Callable[[Side], Result]:
    def operation(side: Side) -> Result:
        with os.scandir(side.path(name)) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)

    return operation


def same_inode(first: str, second: str) -> Callable[[Side], Result]:
    return lambda side: os.lstat(side.path(first)).st_ino == os.lstat(side.path(second)).st_ino


def make_special(name: str, kind: int, mode: int, device: int) -> Callable[[Side], Result]:
    return lambda side: os.mknod(side.path(name), kind | mode, device)


def read_map(slot: int) -> Callable[[Side], Result]:
    def operation(side: Side) -> Result:
        with mmap.mmap(side.fds[slot], 0, prot=mmap.PROT_READ) as mapped:
            return digest(mapped[:MAPPED_MAX])

    return operation


def write_map(slot: int, offset: int, data: bytes) -> Callable[[Side], Result]:
    """Into a shared mapping, as far as the file reaches."""

    def operation(side: Side) -> Result:
        with mmap.mmap(side.fds[slot], 0) as mapped:
            at = offset % len(mapped)
            length = min(len(data), len(mapped) - at)
            mapped[at : at + length] = data[:length]
            mapped.flush()
            return digest(mapped[:MAPPED_MAX])

    return operation


def set_attribute(name: str, attribute: str, value: bytes, flags: int) -> Callable[[Side], Result]:
    return lambda side: os.setxattr(side.path(name), attribute, value, flags)


def get_attribute(name: str, attribute: str) -> Callable[[Side], Result]:
    return lambda side: os.getxattr(side.path(name), attribute)


def list_attributes(name: str) -> Callable[[Side], Result]:
    return lambda side: sorted(os.listxattr(side.path(name)))


def remove_attribute(name: str, attribute: str) -> Callable[[Side], Result]:
    return lambda side: os.removexattr(side.path(name), attribute)


def fchown(slot: int, uid: int, gid: int) -> Callable[[Side], Result]:
    return lambda side: os.fchown(side.fds[slot], uid, gid)


def access(name: str, mode: int) -> Callable[[Side], Result]:
    return lambda side: os.access(side.path(name), mode, effective_ids=True)


UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def set_times_specially(name: str, atime: int, mtime: int) -> Callable[[Side], Result]:
    """atime, mtime: UTIME_NOW, UTIME_OMIT or nanoseconds of the second 77."""

    def operation(side: Side) -> Result:
        path = side.path(name)
        before = os.lstat(path)
        times = (_Timespec * 2)((77, atime), (77, mtime))
        if _LIBC.utimensat(-100, os.fsencode(path), times, 0x100) != 0:
            raise OSError(ctypes.get_errno(), "")
        after = os.lstat(path)
        if atime == UTIME_OMIT:  # a file that was read a moment ago may get its access time now
            return _became(mtime, before.st_mtime_ns, after.st_mtime_ns)
        pairs = ((atime, before.st_atime_ns, after.st_atime_ns), (mtime, before.st_mtime_ns, after.st_mtime_ns))
        return [_became(asked, old_ns, new_ns) for asked, old_ns, new_ns in pairs]

    return operation


def _became(asked: int, old_ns: int, new_ns: int) -> Result:
    if asked == UTIME_OMIT:
        return new_ns == old_ns
    if asked == UTIME_NOW:
        return abs(new_ns - time.time_ns()) < 60_000_000_000
    return new_ns


def lock(slot: int, operation: int) -> Callable[[Side], Result]:
    return lambda side: fcntl.flock(side.fds[slot], operation | fcntl.LOCK_NB)


def copy_range(source: int, target: int, length: int, source_offset: int, target_offset: int) -> Callable[[Side], Result]:
    return lambda side: os.copy_file_range(side.fds[source], side.fds[target], length, source_offset, target_offset)


def allocate(slot: int, offset: int, length: int) -> Callable[[Side], Result]:
    return lambda side: os.posix_fallocate(side.fds[slot], offset, length)


def write_parts(slot: int, offset: int, parts: list[bytes]) -> Callable[[Side], Result]:
    return lambda side: os.pwritev(side.fds[slot], parts, offset)


def read_parts(slot: int, offset: int, lengths: list[int]) -> Callable[[Side], Result]:
    def operation(side: Side) -> Result:
        parts = [bytearray(length) for length in lengths]
        return os.preadv(side.fds[slot], parts, offset), [digest(bytes(part)) for part in parts]

    return operation


def name_limit(name: str) -> Callable[[Side], Result]:
    return lambda side: os.statvfs(side.path(name)).f_namemax


def tree(side: Side) -> dict[str, Result]:
    """All that is below the root: attributes, contents and targets by relative path."""
    found: dict[str, Result] = {}
    for folder, folders, files in os.walk(side.root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            seen = path.lstat()
            entry = [described(seen)]
            if stat.S_ISLNK(seen.st_mode):
                entry.append(os.readlink(path))
            elif stat.S_ISREG(seen.st_mode):
                entry.append(_contents(path))
            if not stat.S_ISLNK(seen.st_mode):
                entry.append({name: os.getxattr(path, name) for name in sorted(os.listxattr(path))})
            found[str(path.relative_to(side.root))] = tuple(entry)
    return found


def _contents(path: Path) -> Result:
    """Read as root or, where the mode forbids it to others, not at all."""
    try:
        return digest(path.read_bytes())
    except PermissionError:
        return "may not be read"
