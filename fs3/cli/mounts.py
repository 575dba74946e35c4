"""FUSE mounts as the kernel lists them, and how to end one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import Code, ConfigError, FS3Error

FILE_SYSTEM_TYPE = "fuse.fs3"
FUSE_DEVICE = Path("/dev/fuse")

_MOUNT_TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the kernel's table. source: what the file system calls itself. device: `major:minor`. user: who
    mounted it, as far as a FUSE file system tells."""

    path: Path
    type: str
    source: str
    device: str = ""
    user: int = 0


def mounts() -> list[Mount]:
    """All mounts that this process sees, oldest first."""
    return parse_mount_table(_MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape"))


def parse_mount_table(text: str) -> list[Mount]:
    """The mounts of a mountinfo table (proc(5))."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        (device, _, path), (kind, source, options) = left.split(" ")[2:5], right.split(" ")[:3]
        user = next((word[8:] for word in options.split(",") if word.startswith("user_id=")), "0")
        found.append(Mount(Path(_unescape(path)), kind, _unescape(source), device, int(user)))
    return found


def mount_at(path: Path) -> Mount | None:
    """The mount whose root is exactly `path`; the topmost where several lie above each other."""
    real = Path(os.path.abspath(path))
    return next((mount for mount in reversed(mounts()) if mount.path == real), None)


def is_stale(path: Path) -> bool:
    """Whether the daemon of the FUSE mount at `path` is gone."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def check_mount_point(path: Path) -> None:
    """Make sure that fs3 can be mounted at `path`, which may not exist yet. Changes nothing. Raises ConfigError."""
    if not FUSE_DEVICE.exists():
        raise ConfigError(
            f"{FUSE_DEVICE} is missing: load the kernel's fuse module (modprobe fuse), or in a container pass"
            f" --device {FUSE_DEVICE} --cap-add SYS_ADMIN, or use --no-mount"
        )
    try:
        with open(FUSE_DEVICE, "r+b", buffering=0) as device:
            usable = stat.S_ISCHR(os.fstat(device.fileno()).st_mode)
    except OSError as error:
        raise ConfigError(f"{FUSE_DEVICE}: cannot be opened: {error.strerror}; repair that or use --no-mount") from None
    if not usable:
        raise ConfigError(f"{FUSE_DEVICE}: expected a device; repair that or use --no-mount")
    if os.geteuid() != 0 and fusermount() is None:
        raise ConfigError("fusermount3 is missing: install the package fuse3, or use --no-mount")
    mounted = mount_at(path)
    if mounted is not None:
        if mounted.type == FILE_SYSTEM_TYPE and is_stale(path):
            return
        raise ConfigError(f"{path}: in use: {mounted.type} is mounted there")
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a folder to mount on")
    try:
        held = next(iter(sorted(os.listdir(path))), None)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if held is not None:
        raise ConfigError(f"{path}: expected an empty folder to mount on, it holds '{held}'")


def prepare_mount_point(path: Path) -> None:
    """Make the folder; detach what a killed daemon left there."""
    mounted = mount_at(path)
    if mounted is not None and mounted.type == FILE_SYSTEM_TYPE and is_stale(path):
        unmount(path, lazy=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from None


def unmount(path: Path, *, lazy: bool = False) -> None:
    """End the mount at `path`. lazy: take it out of the tree now, even while files are open. Raises FS3Error."""
    tool = fusermount()
    command = [tool, "-u", *(["-z"] if lazy else [])] if tool else ["umount", *(["-l"] if lazy else [])]
    done = subprocess.run([*command, "--", str(path)], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0 and mount_at(path) is not None:
        reason = done.stderr.strip().splitlines()
        code = Code.BUSY if "busy" in done.stderr.lower() else Code.IO
        raise FS3Error(code, f"{path}: cannot be unmounted: {reason[-1] if reason else 'no reason given'}")


def fusermount() -> str | None:
    """Where the helper is with which users other than root mount and unmount."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
