"""Batches of reads and writes through rings shared with the mount's daemon, called as 3FS's `hf3fs_fuse.io` is.

    shm = multiprocessing.shared_memory.SharedMemory(size=1 << 20, create=True)
    iov = make_iovec(shm, "/mnt/fs3")               # shm may be unlinked right after
    ring = make_ioring("/mnt/fs3", 64)
    register_fd(fd)
    ring.prepare(iov[:4096], True, fd, 0, userdata=anything)
    done = ring.submit().wait(min_results=1)        # [iov[:4096]], whose .result is 4096, or less at the end of the file

Errors are OSErrors: EINVAL (a read on a ring for writing or the other way round, nothing to do, a range outside of the
memory), EBADF (the descriptor is not registered), EACCES (it is not open for that), EAGAIN (the ring is full).
"""

from __future__ import annotations

import errno
import multiprocessing.shared_memory
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from fs3 import usrbio

__all__ = [
    "IorPriority",
    "deregister_fd",
    "extract_mount_point",
    "force_fsync",
    "hardlink",
    "ioring",
    "iovec",
    "make_ioring",
    "make_iovec",
    "multiprocessing",
    "punch_hole",
    "read_file",
    "register_fd",
]

_BYTE = np.dtype(np.uint8)


class IorPriority:
    """Whose operations the daemon begins first."""

    HIGH = -1
    NORMAL = 0
    LOW = 1


def extract_mount_point(path: str) -> str | None:
    """Where the fs3 file system is mounted that a path lies in; None where it lies in none."""
    try:
        return usrbio.mount_point_of(path)
    except ValueError:
        return None


def register_fd(fd: int, flags: int = 0) -> None:
    """Let rings use the open file behind a descriptor until it is deregistered, which is to happen before it is closed: else
    the number goes on standing for that file. flags: of no meaning. Raises OSError: EBADF where it is no file of an fs3
    mount, EINVAL where it is registered already."""
    usrbio.register_fd(fd)


def deregister_fd(fd: int) -> None:
    """The opposite. Does nothing for what is not registered, or was with a daemon that is gone; fd may be closed already."""
    try:
        usrbio.deregister_fd(fd)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def force_fsync(fd: int) -> int:
    """Bring what was written onto stable storage, and the file's length up to date for everybody. Returns 0."""
    os.fsync(fd)
    return 0


def hardlink(target: str, link_name: str) -> None:
    """Another name for a file. Raises OSError as link(2) does."""
    os.link(os.path.realpath(target), link_name)


def punch_hole(file: str | int, start: Sequence[int], end: Sequence[int], flags: int = 0) -> None:
    """Make ranges of a file zeros that take no space; its length stays. file: a path, or a descriptor open for writing.
    start, end: of each range in bytes, the end not included. flags: of no meaning."""
    if len(start) != len(end):
        raise OSError(errno.EINVAL, f"start and end: expected as many of each, got {len(start)} and {len(end)}")
    fd = os.open(file, os.O_RDWR) if isinstance(file, str) else file
    try:
        usrbio.punch_holes(fd, list(zip(start, end, strict=True)))
    finally:
        if fd != file:
            os.close(fd)


class iovec_slice(np.ndarray[Any, np.dtype[np.uint8]]):
    """A part of an iovec, as bytes in the shared memory. result: of the operation for which it was used, in bytes, or a
    negative errno. userdata: what was given with it."""

    _owner: iovec
    _busy: bool
    base_off: int
    """Where it begins in the iovec."""
    result: int
    userdata: Any

    def __getitem__(self, part: Any) -> iovec_slice:
        start, stop = _range(part, self.size)
        return self._owner._cut(self.base_off + start, stop - start)

    # One thing, not a row of numbers: engines keep them in dicts and test them for truth.
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<iovec_slice [{self.base_off}:{self.base_off + self.size}], result {self.result}>"


class iovec:
    """Memory for rings, made by `make_iovec`. A slice of it, in bytes, says where an operation reads to or writes from."""

    def __init__(self, memory: usrbio.Iov) -> None:
        self._memory = memory
        self._view = memory.view

    def __getitem__(self, part: Any) -> iovec_slice:
        start, stop = _range(part, self._memory.size_bytes)
        return self._cut(start, stop - start)

    def _cut(self, start: int, size: int) -> iovec_slice:
        made = np.ndarray.__new__(iovec_slice, (size,), _BYTE, self._view, start if size else 0)
        made._owner, made.base_off, made._busy, made.result, made.userdata = self, start, False, 0, None
        return made


def _range(part: Any, size: int) -> tuple[int, int]:
    if not isinstance(part, slice):
        raise TypeError(f"expected a slice of bytes, as iov[a:b], got {type(part).__name__}")
    start, stop, step = part.indices(size)
    if step != 1:
        raise ValueError(f"a slice of an iovec is without gaps: expected a step of 1, got {step}")
    return start, max(start, stop)


def make_iovec(
    shm: multiprocessing.shared_memory.SharedMemory, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1
) -> iovec:
    """Let the daemon of a mount use shared memory, which may be closed and unlinked right after. block_size, numa: where 3FS
    places it; fs3 needs no blocks, and leaves it where it is.

    Raises OSError: ENODEV where no fs3 file system is mounted there, or it has no rings.
    """
    descriptor = getattr(shm, "_fd", -1)
    opened = os.open(f"/dev/shm/{shm.name.lstrip('/')}", os.O_RDWR | os.O_CLOEXEC) if descriptor < 0 else -1
    try:
        return iovec(usrbio.Iov.wrap(hf3fs_mount_point, max(descriptor, opened), shm.size))
    finally:
        if opened >= 0:
            os.close(opened)


class ioring:
    """A ring of operations, made by `make_ioring`.

    **After a time-out.** Where a wait ended with fewer than its min_results, another may still fetch the rest. But who
    prepares an operation in memory of one that was waited for in vain has given up on all that is under way: none of it is
    returned any more, and the call waits until the daemon has done with the memory (EAGAIN where that takes too long).
    So what an earlier batch left behind is never taken for a result of the next, nor do its bytes appear there.
    """

    def __init__(self, ring: usrbio.Ior) -> None:
        self._ring = ring
        self._under_way: set[iovec_slice] = set()
        self._late: set[iovec_slice] = set()  # of those under way: what was waited for in vain
        self._patience_s = 0.0
        self._given_up = False

    @property
    def entries(self) -> int:
        return self._ring.entries

    def prepare(self, iov: iovec | iovec_slice, read: bool, fd: int, off: int, userdata: Any = None) -> ioring:
        """Put an operation on the ring: for as many bytes of the file from `off` on as iov has. read: as the ring has it."""
        if isinstance(iov, iovec):
            iov = iov[:]
        ring = self._ring
        if read != ring.for_read:
            kinds = ("writing", "reading")
            raise OSError(errno.EINVAL, f"this ring is for {kinds[ring.for_read]}, not for {kinds[bool(read)]}")
        if self._late or self._given_up:
            self._make_room(iov)
        if iov._busy:
            iov = iov[:]  # each operation has a result of its own
        # Before it is on the ring: whoever else submits and waits may have its result at once.
        iov._busy, iov.result, iov.userdata = True, 0, userdata
        self._under_way.add(iov)
        try:
            ring.prepare(iov._owner._memory, iov.base_off, iov.size, fd, off, iov)
        except BaseException:
            self._under_way.discard(iov)
            iov._busy = False
            raise
        return self

    def submit(self) -> ioring:
        """Hand what was prepared to the daemon. Raises OSError: ENODEV where it is gone."""
        self._ring.submit()
        return self

    def wait(
        self, max_results: int = 0, min_results: int = 0, timeout: timedelta | float | None = None
    ) -> list[iovec_slice]:
        """The slices of operations that have ended, in the order in which they were prepared: at least min_results, unless
        the time-out (a timedelta, or seconds) passes before; at most max_results or min_results, whichever is more, or 1.

        Raises OSError: ENODEV where the mount is gone, and with it what was under way.
        """
        timeout_s = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        found = []
        for done in self._ring.wait(max(max_results, min_results, 1), min_results, timeout_s):
            part: iovec_slice = done.userdata
            part.result, part._busy = done.result, False
            self._under_way.discard(part)
            self._late.discard(part)
            found.append(part)
        if timeout_s is not None and len(found) < min_results:
            self._patience_s = timeout_s
            self._late = self._under_way.copy()
        return found

    def _make_room(self, wanted: iovec_slice) -> None:
        """Before an operation is prepared in this memory."""
        first, last, owner = wanted.base_off, wanted.base_off + wanted.size, wanted._owner
        late = self._late.copy()  # another thread that waits may have one of them now
        if any(each._owner is owner and each.base_off < last and first < each.base_off + each.size for each in late):
            self._ring.abandon()
            self._under_way.clear()
            self._late = set()
            self._given_up = True
        if self._given_up:
            if not self._ring.settle(self._patience_s):
                raise OSError(errno.EAGAIN, "operations that were given up after a time-out have not ended yet")
            self._given_up = False


def make_ioring(
    hf3fs_mount_point: str,
    entries: int,
    for_read: bool = True,
    io_depth: int = 0,
    priority: int | None = None,
    timeout: int | None = None,
    numa: int = -1,
    flags: int = 0,
) -> ioring:
    """A ring for so many operations at a time, either reads or writes.

    io_depth: 0: the daemon begins what it finds as soon as it can; n > 0: exactly n at once, as soon as there are n;
    n < 0: at most -n at once, for which it waits up to `timeout` ms. numa: fs3 leaves the ring's memory where it is.

    Raises OSError: EINVAL for values that cannot be, flags included (3FS's 2, a hole is an error, is not to be had: holes
    read as zeros), ENODEV where no fs3 file system is mounted there, or it has no rings.
    """
    if flags:
        raise OSError(errno.EINVAL, f"flags: expected 0, got {flags}; a hole cannot be made an error, it reads as zeros")
    if timeout is not None and timeout < 0:
        raise OSError(errno.EINVAL, f"timeout: expected 0 or more ms, got {timeout}")
    urgency = usrbio.Priority(min(1, max(-1, priority or 0)))
    timeout_s = None if timeout is None else timeout / 1000
    return ioring(usrbio.Ior(hf3fs_mount_point, entries, for_read, io_depth, urgency, timeout_s))


def read_file(
    fn: str,
    hf3fs_mount_point: str | None = None,
    block_size: int = 1 << 30,
    off: int = 0,
    priority: int | None = None,
    cb: Callable[[memoryview, int], int | bool | None] | None = None,
) -> bytes | None:
    """The bytes of a file from `off` on.

    cb: called instead with each block of at most block_size bytes, which is good until it returns, and with its place in the
    file. It says where to go on by a whole number, or by something else that is true that it has enough.
    """
    fd = os.open(fn, os.O_RDONLY)
    try:
        register_fd(fd)
        try:
            mount_point = usrbio.mount_point_of(fn) if hf3fs_mount_point is None else hf3fs_mount_point
            size = max(1, min(block_size, os.fstat(fd).st_size - off))
            memory = usrbio.Iov.create(mount_point, size)
            ring = make_ioring(mount_point, 1, priority=priority)
            try:
                return _blocks(ring, iovec(memory), fd, off, cb)
            finally:
                ring._ring.close()
                memory.close()
        finally:
            deregister_fd(fd)
    finally:
        os.close(fd)


def _blocks(
    ring: ioring, iov: iovec, fd: int, off: int, cb: Callable[[memoryview, int], int | bool | None] | None
) -> bytes | None:
    found = []
    whole = iov[:]
    while True:
        ring.prepare(whole, True, fd, off)
        (done,) = ring.submit().wait(min_results=1)
        if done.result < 0:
            raise OSError(-done.result, os.strerror(-done.result))
        if not done.result:
            break
        block = iov._view[: done.result]
        said = None if cb is None else cb(block, off)
        if cb is None:
            found.append(bytes(block))
        elif type(said) is int:
            off = said
            continue
        elif said:
            break
        if done.result < whole.size:
            break
        off += done.result
    return None if cb is not None else found[0] if len(found) == 1 else b"".join(found)
