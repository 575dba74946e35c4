"""`fs3 mount` and `fs3 umount`: a mount of a cluster that runs already."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import Code, ConfigError, FS3Error
from .mounts import FILE_SYSTEM_TYPE, check_mount_point, is_stale, mount_at, prepare_mount_point, unmount
from .supervisor import command, describe_exit, last_words

_TIMEOUT_S = 30.0
_POLL_S = 0.05


def mount_here(path: Path, mgmtd: Sequence[str], extra: Sequence[str]) -> NoReturn:
    """Become fs3-mount. Raises FS3Error."""
    line = _prepare(path, mgmtd, extra)
    sys.stdout.flush()
    os.execv(line[0], line)


def mount(path: Path, mgmtd: Sequence[str], extra: Sequence[str], log: Path) -> None:
    """Start fs3-mount in the background; return once the mount works. Raises FS3Error."""
    line = _prepare(path, mgmtd, extra)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    end = time.monotonic() + _TIMEOUT_S
    while mount_at(path) is None or is_stale(path):
        code = process.poll()
        if code is None and time.monotonic() < end:
            time.sleep(_POLL_S)
            continue
        process.terminate()
        what = describe_exit(code) if code is not None else f"was not ready within {_TIMEOUT_S:.0f} s"
        raise FS3Error(Code.IO, f"fs3-mount {what}: {last_words(log)} (log: {log})")


def default_log(path: Path) -> Path:
    """Where a background mount logs when nothing else was said."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "fs3" / f"mount{str(path).replace('/', '-')}.log"


def _prepare(path: Path, mgmtd: Sequence[str], extra: Sequence[str]) -> list[str]:
    check_mount_point(path)
    prepare_mount_point(path)
    return command("mount", ["--mgmtd", ",".join(mgmtd), "--mount", str(path), *extra])


def umount(path: Path, *, lazy: bool) -> None:
    """End the mount; returns once the kernel has let go of it. Raises FS3Error."""
    mounted = mount_at(path)
    if mounted is None or mounted.type != FILE_SYSTEM_TYPE:
        raise ConfigError(f"{path}: no fs3 file system is mounted there")
    unmount(path, lazy=lazy or is_stale(path))
