"""Ends the mount of a daemon that was killed but cannot die; a program of its own, started by the daemon.

A thread that hands bytes to the kernel waits there, not to be interrupted, while the kernel reads the same page from this
very daemon. Killed in that moment, the daemon never answers, so the thread waits for ever; it keeps the device open, so the
kernel does not notice, and everybody who uses the mount hangs. The guard is told by the kernel when the daemon's main thread
is gone. If the rest does not follow soon, it aborts the connection: waiting calls fail, and the thread ends too.

It imports nothing but the standard library, since it runs without site-packages.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

GRACE_S = 2.0
"""In which a killed process ends by itself."""
_POLL_S = 0.05
LOOK_S = 60.0
"""How often to look, should the kernel's word be missed."""

_PR_SET_PDEATHSIG = 1
_MNT_FORCE = 1
_UMOUNT_NOFOLLOW = 8


def start(mountpoint: str) -> subprocess.Popen[bytes]:
    """Guard this process's mount at an absolute path, which must be there already. Call it on the main thread: it is that
    thread's end that counts. The guard ends with this process."""
    line = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), mountpoint, device_of(mountpoint)]
    return subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def device_of(mountpoint: str) -> str:
    """The topmost mount there as "major:minor"; "" for none. From the kernel's table: a stat would ask the daemon."""
    found = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            if _unescaped(fields[4]) == mountpoint:
                found = fields[2]
    return found


def abort(mountpoint: str, device: str) -> None:
    """End the connection behind a mount, as far as we may: everybody who waits for it gets an error."""
    with suppress(OSError):
        fd = os.open(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/abort", os.O_WRONLY)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        return
    # That tree is mounted on /sys, or not. Root can also unmount by force, which does the same first.
    if device_of(mountpoint) == device:
        ctypes.CDLL(None).umount2(os.fsencode(mountpoint), _MNT_FORCE | _UMOUNT_NOFOLLOW)


def main(pid: int, mountpoint: str, device: str) -> None:
    # Whoever stops the daemon may signal its guard as well, which is needed until the daemon has ended.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)  # stays that process's, should the id be used again
    except FileNotFoundError:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)
    while not ended(process):  # it may have ended before the kernel knew whom to tell
        signal.sigtimedwait({signal.SIGUSR1}, LOOK_S)
    for _ in range(round(GRACE_S / _POLL_S)):
        if not threads(process):
            return
        select.select([], [], [], _POLL_S)
    abort(mountpoint, device)


def ended(process: int) -> bool:
    """Whether a process's main thread has ended. process: its folder in /proc, open."""
    try:
        fd = os.open("stat", os.O_RDONLY, dir_fd=process)
    except OSError:
        return True
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True
    finally:
        os.close(fd)


def threads(process: int) -> int:
    """How many threads are left of a process besides a main thread that has ended; 0 once it is gone."""
    try:
        task = os.open("task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=process)
    except OSError:
        return 0
    try:
        return len(os.listdir(task)) - 1
    except OSError:
        return 0
    finally:
        os.close(task)


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
