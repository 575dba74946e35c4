"""What the kernel says of another process: who it is, what a descriptor of it stands for, how large a file it may make.

None of this asks a file system, least of all our own: a daemon that waits for its own mount waits for ever.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

O_PATH = os.O_PATH
_UNLIMITED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """flags: those of open(2). mount: the id of the mount that it was opened by."""

    inode: int
    flags: int
    mount: int

    @property
    def readable(self) -> bool:
        return not self.flags & O_PATH and self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        return not self.flags & O_PATH and self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)


def check_process(pid: int, uid: int) -> None:
    """Make sure that a process which said who it is when it came is still that user's, and nobody else's secrets are in it:
    it may have become another program, with other rights and the same number. Raises OSError EPERM."""
    try:
        # Of all that is there, the folder itself shows root's ownership not even where secrets are in the process: after a
        # program that is set-user-ID or set-group-ID was begun in it, or while it is no other program since it was root.
        owner = os.stat(f"/proc/{pid}/fd").st_uid if pid else -1
    except FileNotFoundError:
        owner = -1
    if owner < 0:
        raise OSError(errno.EPERM, "the mount's daemon cannot see this process: it is in another PID namespace")
    if owner != uid:
        message = "this process has changed its user, and its like may not be looked into: start a program after that"
        raise OSError(errno.EPERM, message)


def descriptor_of(pid: int | str, fd: int) -> Descriptor:
    """Raises OSError: EBADF where there is none, EPERM where we may not ask."""
    found = {}
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            # The kernel's own words come first. What follows depends on the kind of file, and may be a program's choice.
            for line in file.read(4096).splitlines()[:4]:
                key, _, value = line.partition(":")
                found[key] = value.strip()
    except FileNotFoundError:
        raise OSError(errno.EBADF, f"descriptor {fd} is not open") from None
    except PermissionError:
        raise OSError(errno.EPERM, "the mount's daemon may not look into processes of other users: run it as root") from None
    if "ino" not in found:
        raise OSError(errno.EOPNOTSUPP, "this kernel does not tell what descriptors stand for: it takes Linux 5.14")
    return Descriptor(int(found["ino"]), int(found["flags"], 8), int(found["mnt_id"]))


def mount_of(pid: int | str, number: int) -> tuple[str, str]:
    """Device (`major:minor`) and type of a mount that a process sees, by its id; empty for none."""
    wanted = str(number)
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            first, _, rest = line.partition(" ")
            if first == wanted:
                return rest.split(" ", 2)[1], line.partition(" - ")[2].partition(" ")[0]
    return "", ""


def file_of_mount(pid: int, fd: int, device: str) -> Descriptor:
    """What a descriptor of a process stands for, which must be of the mount with this device.

    Raises OSError: EBADF where it is not.
    """
    found = descriptor_of(pid, fd)
    same_mount = mount_of(pid, found.mount)[0] == device
    # Asked again: should the process have put another file there meanwhile, that mount may have been another's.
    if not same_mount or descriptor_of(pid, fd) != found or found.flags & O_PATH:
        raise OSError(errno.EBADF, f"descriptor {fd} is not that of an open file of this mount")
    return found


def file_size_limit(pid: int) -> int:
    """RLIMIT_FSIZE of a process, in bytes. Raises OSError."""
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        for line in file:
            if line.startswith("Max file size"):
                word = line[len("Max file size") :].split()[0]
                return _UNLIMITED if word == "unlimited" else int(word)
    return _UNLIMITED
