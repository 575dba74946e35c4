"""Memory that programs share with a mount's daemon, for rings and what they read and write.

The daemon takes no descriptor from a program: should it be one of our own mount, even to close it would be to wait for
ourselves. Memory is made here and handed out, or it is the program's own and opened by way of /proc, once it is known to be
memory. Nothing is mapped that may become shorter under our hands, since to touch what is gone would kill the daemon: only
what is sealed, or what belongs to those who could as well kill us. Anything else is read and written by calls, which fail.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from contextlib import suppress

import trio

from fs3.client.file import FileClient
from fs3.transport.registered import Registration

from .processes import descriptor_of, mount_of

RELEASE_S = 30.0
"""How long a process that stands still is waited for, which may yet write to registered memory."""


class RingMemory:
    """An Iov. view: all of it where it is mapped. direct: data may be received there, and verified. users: batches under
    way; the last that ends releases it once it is `closing`."""

    __slots__ = ("_fd", "_registration", "closing", "direct", "released", "size", "users", "view")

    def __init__(self, fd: int, size: int, mapped: bool, direct: bool) -> None:
        """Takes the descriptor over, also where this raises OSError."""
        self.size = size
        self.users = 0
        self.closing = False
        self.released = trio.Event()
        self.direct = direct and mapped
        self.view: memoryview | None = None
        self._registration: Registration | None = None
        self._fd = fd
        if mapped:
            try:
                self.view = memoryview(mmap.mmap(fd, size))
            except (OSError, ValueError) as error:
                os.close(fd)
                raise OSError(
                    getattr(error, "errno", None) or errno.ENOMEM, f"the memory cannot be mapped: {error}"
                ) from None

    def settle(self, client: FileClient) -> None:
        """Let those who send data know of it, and keep no descriptor where there is a mapping."""
        if self.view is None:
            return
        if self.direct:
            with suppress(ValueError):  # it is used as it is then
                self._registration = client.register(self.view, self._fd)
        os.close(self._fd)
        self._fd = -1

    def put(self, offset: int, data: memoryview) -> None:
        """Raises OSError where the memory is not there any more."""
        if self.view is not None:
            self.view[offset : offset + len(data)] = data
        elif os.pwrite(self._fd, data, offset) < len(data):
            raise OSError(errno.EFAULT, "the memory is gone")

    def take(self, offset: int, into: memoryview) -> None:
        """As `put`, the other way."""
        if self.view is not None:
            into[:] = self.view[offset : offset + len(into)]
        elif os.preadv(self._fd, [into], offset) < len(into):
            raise OSError(errno.EFAULT, "the memory is gone")

    async def release(self) -> None:
        """Once nobody uses it. Whoever might yet write there does so to the program's memory, not to ours."""
        if self._registration is not None:
            with trio.move_on_after(RELEASE_S, shield=True):
                await self._registration.close()
            self._registration = None
        self.view = None  # unmapped with the last view of it
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.released.set()


def open_memory(pid: int, number: int, size: int, trusted: bool, internal: int) -> RingMemory:
    """The memory behind a descriptor of a program: a memfd, or POSIX shared memory. trusted: it is one of those who could as
    well kill us. internal: the id of the mount that the kernel has memfds on.

    Raises OSError: EBADF, EINVAL where it is nothing of the kind, EACCES where the program may not write to it.
    """
    found = descriptor_of(pid, number)
    pinned = os.open(f"/proc/{pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)  # asks no file system, and stays what it is
    try:
        here = descriptor_of("self", pinned)
        if (here.inode, here.mount) != (found.inode, found.mount) or not (found.readable and found.writable):
            raise OSError(errno.EACCES, f"descriptor {number} is not open for reading and writing")
        if here.mount != internal and mount_of(pid, here.mount)[1] != "tmpfs":
            raise OSError(
                errno.EINVAL, f"descriptor {number} is neither a memfd nor POSIX shared memory (in ordinary pages)"
            )
        about = os.fstat(pinned)
        if not stat.S_ISREG(about.st_mode) or about.st_size < size:
            raise OSError(errno.EINVAL, f"the memory has {about.st_size} bytes, not {size}")
        fd = os.open(f"/proc/self/fd/{pinned}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(pinned)
    try:
        sealed = bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
        missing = about.st_blocks * 512 < size and not sealed  # to touch a page that cannot be had would kill us, too
    except OSError:
        os.close(fd)
        raise OSError(errno.EINVAL, f"descriptor {number} is not shared memory") from None
    return RingMemory(fd, size, sealed or (trusted and not missing), trusted)


def internal_mount() -> int:
    """The id of the mount that the kernel has memfds on."""
    fd = os.memfd_create("fs3-mount", os.MFD_CLOEXEC)
    try:
        return descriptor_of("self", fd).mount
    finally:
        os.close(fd)
