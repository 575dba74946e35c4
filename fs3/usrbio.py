"""User-space rings: many reads or writes of an fs3 mount's files at once, past the kernel, in memory shared with its daemon.

    iov = Iov.create("/mnt/fs3", 64 << 20)          # memory for the bytes
    ring = Ior("/mnt/fs3", entries=64)              # for reading
    register_fd(fd)                                 # a file of the mount, open in this process
    for i in range(64):
        ring.prepare(iov, i << 20, 1 << 20, fd, i << 20, userdata=i)
    ring.submit()
    for done in ring.wait(min_results=64):          # in the order in which they were prepared
        done.result                                 # bytes read, short only at the end of the file; or a negative errno

An operation is to its file what one by a descriptor opened with O_DIRECT is. All calls may be made from any thread; they
raise OSError. Nothing here outlives a fork: the child has to make its own. docs/usrbio.md has the whole of it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import select
import socket
import stat
import struct
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from .cli.mounts import FILE_SYSTEM_TYPE, Mount, mounts
from .rings import COUNT, VERSION, Completion, ProgramRing, RingError, check_ring, ring_bytes

__all__ = ["Completion", "Ior", "Iov", "Priority", "deregister_fd", "mount_point_of", "punch_holes", "register_fd"]

ANSWER_S = 60.0
"""In which the daemon answers at its door, and takes a message off a ring."""
ANSWER_BYTES = 4096
PUNCH_BYTES = 1 << 30
"""Of a file that are made a hole in that time."""
_INT64_MAX = 2**63 - 1
_CREDENTIALS = struct.Struct("3i")


class Priority(IntEnum):
    """Whose operations the daemon begins first."""

    HIGH = -1
    NORMAL = 0
    LOW = 1


def door(device: str) -> str:
    """The address at which the daemon of a mount takes in rings. device: the mount's `major:minor`."""
    return f"\0fs3-rings-{device}"


def mount_point_of(path: str) -> str:
    """Where the fs3 file system is mounted that a path lies in; the path need not exist. Raises ValueError."""
    real = os.path.realpath(path)
    found = _mount_of(real)
    if found is None or found.type != FILE_SYSTEM_TYPE:
        raise ValueError(f"{path}: not on an fs3 mount")
    return str(found.path)


def register_fd(fd: int) -> None:
    """Let rings use the file behind a descriptor, with its rights, until `deregister_fd`, even where it is closed before.

    Raises OSError: EBADF where it is none of an fs3 mount, EINVAL where it is registered already or no regular file, EAGAIN
    where the daemon has no room for more.
    """
    known = _process.files.get(fd)
    if known is not None and known.door.alive():
        raise OSError(errno.EINVAL, f"descriptor {fd} is registered already")
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"descriptor {fd} is that of no regular file")
    at = _process.door_of_device(f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}")
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    reply, _ = at.ask({"do": "open", "fd": fd, "inode": found.st_ino})
    _process.files[fd] = _File(at, reply["id"], flags)


def deregister_fd(fd: int) -> None:
    """The opposite; operations under way are not disturbed. Does nothing for what is not registered."""
    known = _process.files.pop(fd, None)
    if known is not None:
        known.door.give_back({"do": "shut", "file": known.id})


def punch_holes(fd: int, ranges: Sequence[tuple[int, int]]) -> None:
    """Make ranges [first, end) of a file zeros that take no space; its length stays. Raises OSError: EBADF where the
    descriptor is none of an fs3 mount, EACCES where it is not open for writing, EINVAL for a range that cannot be."""
    for first, end in ranges:
        if not 0 <= first <= end <= _INT64_MAX:
            raise OSError(errno.EINVAL, f"a range from {first} to {end}")
    known = _process.files.get(fd)
    registered = known is not None and not known.door.dead
    if not registered:
        register_fd(fd)
    try:
        file = _process.files[fd]
        if not file.writable:
            _refuse(file, fd)
        for first, end in ranges:
            for at in range(first, end, PUNCH_BYTES):
                length = min(PUNCH_BYTES, end - at)
                file.door.ask({"do": "punch", "file": file.id, "offset": at, "length": length})
    finally:
        if not registered:
            deregister_fd(fd)


class Iov:
    """Memory that the daemon reads into and writes from. view: all of it."""

    def __init__(self, at: _Door, number: int, memory: mmap.mmap, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._door = at
        self._id = number
        self._view: memoryview | None = memoryview(memory)[:size_bytes]

    @classmethod
    def create(cls, mount_point: str, size_bytes: int) -> Iov:
        """New memory, zeroed. Raises OSError: EINVAL for a size that cannot be, EAGAIN where the daemon has no room."""
        if size_bytes <= 0:
            raise OSError(errno.EINVAL, f"size_bytes: expected more than 0, got {size_bytes}")
        at = _process.door_of(mount_point)
        reply, fds = at.ask({"do": "memory", "size": size_bytes}, 1)
        try:
            return cls(at, reply["id"], mmap.mmap(fds[0], size_bytes), size_bytes)
        except BaseException:
            at.forget(reply["id"])
            raise
        finally:
            os.close(fds[0])

    @classmethod
    def wrap(cls, mount_point: str, fd: int, size_bytes: int) -> Iov:
        """Memory that there is already: a memfd or POSIX shared memory, open for reading and writing. The descriptor may be
        closed, and the name removed, as soon as this returns. Raises OSError: EINVAL where it is not such memory, or smaller
        than size_bytes."""
        if size_bytes <= 0 or os.fstat(fd).st_size < size_bytes:
            raise OSError(errno.EINVAL, f"size_bytes: expected 1 to {os.fstat(fd).st_size}, got {size_bytes}")
        at = _process.door_of(mount_point)
        memory = mmap.mmap(fd, size_bytes)
        # A page that cannot be had would kill who touches it first; here it is an error.
        os.posix_fallocate(fd, 0, size_bytes)
        reply, _ = at.ask({"do": "wrap", "fd": fd, "size": size_bytes})
        return cls(at, reply["id"], memory, size_bytes)

    @property
    def view(self) -> memoryview:
        if self._view is None:
            raise ValueError("the Iov is closed")
        return self._view

    def close(self) -> None:
        """Operations that are still under way may touch the memory until they end; no new ones can be submitted with it."""
        if self._view is not None:
            self._view = None
            self._door.give_back({"do": "release", "memory": self._id})

    def __del__(self) -> None:
        if getattr(self, "_view", None) is not None:
            self._door.forget(self._id)


class Ior:
    """A ring of operations on files of one mount, either reads or writes.

    entries: so many can be under way, or not waited for yet. io_depth: 0: the daemon begins what it finds as soon as it
    can; n > 0: exactly n at once, as soon as there are n; n < 0: at most -n at once, for which it waits up to timeout_s.
    """

    def __init__(
        self,
        mount_point: str,
        entries: int,
        for_read: bool = True,
        io_depth: int = 0,
        priority: Priority = Priority.NORMAL,
        timeout_s: float | None = None,
    ) -> None:
        self._socket: socket.socket | None = None
        self.entries, self.for_read, self.io_depth, self.priority = entries, for_read, io_depth, Priority(priority)
        wrong = check_ring(entries, io_depth, timeout_s or 0.0)
        if wrong:
            raise OSError(errno.EINVAL, wrong)
        self._door = _process.door_of(mount_point)
        wish = {
            "entries": entries,
            "read": for_read,
            "depth": io_depth,
            "priority": int(priority),
            "timeout_s": timeout_s or 0,
        }
        reply, fds = self._door.ask({"do": "ring", **wish}, 2)
        self._id = reply["id"]
        self._socket = socket.socket(fileno=fds[1])
        try:
            self._ring = ProgramRing(memoryview(mmap.mmap(fds[0], ring_bytes(entries))), entries)
        finally:
            os.close(fds[0])
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._gone = ""
        self._lock = threading.Lock()  # of the ring's state
        self._turn = threading.Lock()  # of those who wait
        _process.rings.add(self)

    def prepare(self, iov: Iov, iov_offset: int, length: int, fd: int, file_offset: int, userdata: Any = None) -> int:
        """Put an operation on the ring; its index, which its completion will have. The daemon hears of it by `submit`.

        Raises OSError: EBADF for a descriptor that is not registered (or of another mount), EACCES for one that is not open
        for this, EINVAL for a range outside of the Iov, EAGAIN where the ring is full.
        """
        file = _process.files.get(fd)
        if file is None or file.door is not self._door:
            raise OSError(errno.EBADF, f"descriptor {fd} is not registered with this mount")
        if not (file.readable if self.for_read else file.writable):
            _refuse(file, fd)
        if length <= 0 or iov_offset < 0 or iov_offset + length > iov.size_bytes or iov._view is None:
            raise OSError(errno.EINVAL, f"{length} bytes at {iov_offset} are not inside of the Iov of {iov.size_bytes}")
        if not 0 <= file_offset <= _INT64_MAX - length or iov._door is not self._door:
            raise OSError(errno.EINVAL, f"file offset {file_offset}, or an Iov of another mount")
        with self._lock:
            if self._socket is None:
                raise OSError(errno.EBADF, "the ring is closed")
            return self._ring.prepare(iov._id, iov_offset, length, file.id, file_offset, userdata)

    def submit(self) -> int:
        """Hand what was prepared to the daemon; returns how many that were. Raises OSError: ENODEV where it is gone."""
        with self._lock:
            sock = self._open()
            count = self._ring.submit()
            if count:
                self._tell(sock, count)
        return count

    def _tell(self, sock: socket.socket, count: int) -> None:
        message = COUNT.pack(count)
        while True:
            try:
                sock.send(message)
                return
            except BlockingIOError:
                if not _ready(sock, select.POLLOUT, ANSWER_S):
                    self._gone = "the mount's daemon has not looked at the ring for a minute"
            except OSError:
                self._gone = "the mount's daemon is gone"
            if self._gone:
                raise OSError(errno.ENODEV, self._gone)

    def wait(self, max_results: int = 0, min_results: int = 0, timeout_s: float | None = None) -> list[Completion]:
        """Operations that have ended, in the order in which they were prepared: at least min_results, unless timeout_s
        passes before; at most max_results, where that is not 0. Each is returned once, however late.

        Raises OSError: ENODEV where the mount is gone, and what was under way with it.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        limit = max(max_results, min_results) if max_results else self.entries
        if not self._turn.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s)):
            return []
        try:
            while True:
                with self._lock:
                    self._gather()
                    ready = self._ring.ready()
                    if ready >= min_results and (ready or not self._gone):  # else who only looks would look for ever
                        return self._ring.take(limit)
                    self._open()
                left_ms = None if deadline is None else (deadline - time.monotonic()) * 1000
                if left_ms is not None and left_ms <= 0:
                    with self._lock:
                        return self._ring.take(limit)
                self._poll.poll(left_ms)
        finally:
            self._turn.release()

    def abandon(self) -> int:
        """No `wait` is to return what was prepared until now; returns how many that were. Operations that the daemon has may
        still use their part of the Iov, and keep their place on the ring until they end. `close` waits for that."""
        with self._lock:
            self._gather()
            return self._ring.abandon()

    def settle(self, timeout_s: float) -> bool:
        """Wait until all that was abandoned has ended; False where timeout_s passes before. Raises OSError like `wait`."""
        deadline = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=max(0.0, timeout_s)):
            return False
        try:
            while True:
                with self._lock:
                    self._gather()
                    if not self._ring.lingering:
                        return True
                    self._open()
                left_ms = (deadline - time.monotonic()) * 1000
                if left_ms <= 0:
                    return False
                self._poll.poll(left_ms)
        finally:
            self._turn.release()

    @property
    def outstanding(self) -> int:
        """Operations that were prepared, and that no `wait` has returned."""
        return self._ring.outstanding

    def _gather(self) -> None:
        """Take in what the daemon has told."""
        sock = self._socket
        if sock is None:
            raise OSError(errno.EBADF, "the ring is closed")
        try:
            while not self._gone:
                message = sock.recv(COUNT.size)
                if message:
                    self._ring.completed(*COUNT.unpack(message))
                else:
                    self._gone = "the mount's daemon is gone"
        except BlockingIOError:
            return
        except (RingError, OSError) as error:
            self._gone = str(error)

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise OSError(errno.EBADF, "the ring is closed")
        if self._gone:
            raise OSError(errno.ENODEV, self._gone)
        return self._socket

    def close(self) -> None:
        """Ends what is under way. When it returns the daemon touches no Iov for this ring any more. Nobody may wait for the
        ring meanwhile."""
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            try:
                self._door.give_back({"do": "close", "ring": self._id})
            finally:
                sock.close()

    def __del__(self) -> None:
        if self._socket is not None:
            self._socket.close()  # which tells the daemon

    def _forked(self) -> None:
        """This is a child, whose parent has the ring."""
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._gone = "the ring was made before a fork, by the parent"
        if self._socket is not None:
            self._socket.close()


def _refuse(file: _File, fd: int) -> None:
    if file.append:
        raise OSError(errno.EINVAL, f"descriptor {fd} was opened with O_APPEND, which says itself where it writes")
    raise OSError(errno.EACCES, f"descriptor {fd} is not open for this")


class _File:
    """A registered descriptor."""

    __slots__ = ("append", "door", "id", "readable", "writable")

    def __init__(self, at: _Door, number: int, flags: int) -> None:
        self.door = at
        self.id = number
        mode = flags & os.O_ACCMODE
        self.append = mode != os.O_RDONLY and bool(flags & os.O_APPEND)
        self.readable = mode != os.O_WRONLY
        self.writable = mode != os.O_RDONLY and not self.append


class _Door:
    """The connection of this process with the daemon of one mount. When it ends, the daemon forgets all that it has of this
    process."""

    def __init__(self, mount: Mount) -> None:
        """Raises OSError: ENODEV where nobody opens."""
        self.device = mount.device
        self.dead = False
        self._garbage: deque[int] = deque()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.connect(door(mount.device))
            _, uid, _ = _CREDENTIALS.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, mount.user, os.geteuid()):
                raise OSError(errno.EPERM, "its door is held by somebody else")
            self.ask({"do": "hello", "version": VERSION})
        except OSError as error:
            self._end()
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise OSError(error.errno, f"{mount.path}: {error.strerror}") from None
            hint = "its daemon is gone, has rings = 0, or is in another network namespace"
            raise OSError(errno.ENODEV, f"{mount.path}: no rings: {hint}") from None

    def alive(self) -> bool:
        """Whether the daemon has not closed it."""
        with self._lock:
            if not self.dead and _ready(self._socket, select.POLLIN, 0):
                self._end()  # it says nothing unasked, so this is the end
        return not self.dead

    def ask(self, request: dict[str, Any], fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        """Its answer, and so many descriptors. Raises OSError: as the daemon has it, or ENODEV where that is gone."""
        with self._lock:
            if self.dead:
                raise OSError(errno.ENODEV, "the mount's daemon is gone")
            try:
                self._tell_garbage()
                self._socket.send(json.dumps(request).encode())
                data, found, _, _ = socket.recv_fds(self._socket, ANSWER_BYTES, max(fds, 1))
            except OSError as error:
                self._end()
                raise OSError(errno.ENODEV, f"the mount's daemon does not answer: {error}") from None
            if not data:
                self._end()
                raise OSError(errno.ENODEV, "the mount's daemon is gone")
        for fd in found:
            os.set_inheritable(fd, False)  # else a program that this one starts would keep a ring that was closed
        reply: dict[str, Any] = json.loads(data)
        if "errno" in reply or len(found) != fds:
            for fd in found:
                os.close(fd)
            raise OSError(reply.get("errno", errno.EPROTO), reply.get("error", "descriptors are missing"))
        return reply, list(found)

    def give_back(self, request: dict[str, Any]) -> None:
        """Ask for an end; a daemon that is gone has nothing any more."""
        try:
            self.ask(request)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def _end(self) -> None:
        self.dead = True
        self._socket.close()

    def forget(self, memory: int) -> None:
        """An Iov that nobody closed is of no use any more."""
        self._garbage.append(memory)
        # The collector may run in the midst of a question: the daemon is told with the next one then.
        if not self.dead and not sys.is_finalizing() and self._lock.acquire(blocking=False):
            try:
                self._tell_garbage()
            except OSError:
                self._end()
            finally:
                self._lock.release()

    def _tell_garbage(self) -> None:
        """There is no answer to that."""
        while self._garbage:
            memories = [self._garbage.popleft() for _ in range(min(64, len(self._garbage)))]
            self._socket.send(json.dumps({"do": "forget", "memories": memories}).encode())

    def drop(self) -> None:
        """This is a child, whose parent has the connection."""
        self._lock = threading.Lock()
        self._end()


class _Process:
    """What this process has of all mounts."""

    def __init__(self) -> None:
        self.files: dict[int, _File] = {}
        self.rings: weakref.WeakSet[Ior] = weakref.WeakSet()
        self._doors: dict[str, _Door] = {}
        self._lock = threading.Lock()

    def door_of(self, mount_point: str) -> _Door:
        """Raises OSError: ENODEV where no fs3 file system is mounted there, or its daemon opens no door."""
        real = os.path.realpath(mount_point)
        found = _mount_of(real)
        if found is None or found.type != FILE_SYSTEM_TYPE or str(found.path) != real:
            raise OSError(errno.ENODEV, f"{mount_point}: no fs3 file system is mounted there")
        return self._door(found.device, found)

    def door_of_device(self, device: str) -> _Door:
        return self._door(device, None)

    def _door(self, device: str, mount: Mount | None) -> _Door:
        with self._lock:
            known = self._doors.get(device)
            if known is not None and known.alive():
                return known
            if mount is None:
                mount = next((each for each in mounts() if each.device == device and each.type == FILE_SYSTEM_TYPE), None)
            if mount is None:
                raise OSError(errno.EBADF, "not the descriptor of a file on an fs3 mount")
            made = self._doors[device] = _Door(mount)
            return made

    def forked(self) -> None:
        """This is a child: what is here is the parent's."""
        self._lock = threading.Lock()
        for ring in list(self.rings):
            ring._forked()
        for each in self._doors.values():
            each.drop()
        self.files.clear()
        self._doors.clear()


def _ready(sock: socket.socket, event: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(timeout_s * 1000))


def _mount_of(real: str) -> Mount | None:
    """The mount that a path without symbolic links lies in."""
    found: Mount | None = None
    for mount in mounts():
        at = str(mount.path)
        inside = real == at or at == "/" or real.startswith(at + "/")
        if inside and (found is None or len(at) >= len(str(found.path))):
            found = mount
    return found


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)
