"""Runs daemons as processes: starts them, restarts what dies, stops them in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ..daemon import DIE_WITH_PARENT, EXIT_CONFIG, EXIT_OK
from ..errors import Code, FS3Error
from .folder import Daemon

_BACKOFF_FIRST_S = 0.3
_BACKOFF_LAST_S = 10.0
_STEADY_S = 30.0
"""After running for so long a daemon's next death counts as its first."""

_MODULES = {
    "mgmtd": ("fs3-mgmtd", "fs3.mgmtd.daemon"),
    "meta": ("fs3-meta", "fs3.meta.daemon"),
    "storage": ("fs3-storage", "fs3.storage.daemon"),
    "mount": ("fs3-mount", "fs3.fuse.daemon"),
}

Say = Callable[[str], None]


def command(kind: str, arguments: Sequence[str]) -> list[str]:
    """How to start a daemon of this kind with this very Python."""
    script, module = _MODULES[kind]
    path = Path(sys.executable).parent / script
    start = [sys.executable, str(path)] if path.exists() else [sys.executable, "-m", module]
    return [*start, *arguments]


def spawn(daemon: Daemon, arguments: Sequence[str] = (), *, follow_parent: bool) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own, so that the terminal's Ctrl-C does not reach it; its log is appended to.

    follow_parent: it stops when the thread that called this ends.
    """
    environment: Mapping[str, str] = os.environ
    if follow_parent:
        environment = {**os.environ, DIE_WITH_PARENT: str(os.getpid())}
    daemon.log.parent.mkdir(parents=True, exist_ok=True)
    with open(daemon.log, "ab") as log:
        return subprocess.Popen(
            command(daemon.kind, ["--config", str(daemon.config), *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def check_config(daemon: Daemon) -> subprocess.Popen[bytes]:
    """Start a daemon only to read its configuration; on standard error it says what is wrong with it."""
    where = ["--mount", "/"] if daemon.kind == "mount" else []  # which a flag will say
    line = command(daemon.kind, ["--config", str(daemon.config), *where, "--print-config"])
    return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def last_words(log: Path) -> str:
    """The last line of a log; what a daemon said before it ended."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "its log cannot be read"
    return lines[-1] if lines else "its log is empty"


async def wait_exit(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process to end; its return code."""
    while True:
        code = process.poll()
        if code is not None:
            return code
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)


def describe_exit(code: int) -> str:
    """A return code in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@dataclass(slots=True)
class Supervised:
    """A daemon and its present process. may_end: others than we may stop it for good (a mount, by unmounting it)."""

    daemon: Daemon
    arguments: tuple[str, ...] = ()
    before_start: Callable[[], None] | None = None
    may_end: bool = False
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started_at: float = 0.0
    failed: FS3Error | None = None
    stopping: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0


class Supervisor:
    """Keeps a set of daemons running. `changed` is called whenever a pid changed."""

    def __init__(self, nursery: trio.Nursery, say: Say, changed: Callable[[], None]) -> None:
        self._nursery = nursery
        self._say = say
        self._changed = changed
        self.entries: list[Supervised] = []
        self.settled = False
        """Until then a daemon that dies is an error of the start; afterwards it is started again."""

    def start(
        self,
        daemon: Daemon,
        arguments: Sequence[str] = (),
        *,
        before_start: Callable[[], None] | None = None,
        may_end: bool = False,
    ) -> Supervised:
        """Start a daemon and look after it."""
        entry = Supervised(daemon, tuple(arguments), before_start, may_end)
        self.entries.append(entry)
        self._start_process(entry)
        self._nursery.start_soon(self._look_after, entry)
        return entry

    def check(self) -> None:
        """Raises FS3Error when a daemon died during the start."""
        for entry in self.entries:
            if entry.failed is not None:
                raise entry.failed

    async def stop(self, entries: Sequence[Supervised], grace_s: float) -> None:
        """SIGTERM to all of these at once; SIGKILL to those that are left after the grace."""
        for entry in entries:
            entry.stopping.set()
            if entry.process is not None and entry.process.poll() is None:
                entry.process.terminate()
        with trio.move_on_after(grace_s):
            for entry in entries:
                await entry.gone.wait()
        for entry in entries:
            if not entry.gone.is_set() and entry.process is not None:
                self._say(f"{entry.daemon.name} (pid {entry.pid}) did not stop within {grace_s:.0f} s: killed")
                entry.process.kill()
                await entry.gone.wait()

    def _start_process(self, entry: Supervised) -> None:
        if entry.before_start is not None:
            entry.before_start()
        entry.process = spawn(entry.daemon, entry.arguments, follow_parent=True)
        entry.started_at = trio.current_time()
        self._changed()

    async def _look_after(self, entry: Supervised) -> None:
        delay_s = _BACKOFF_FIRST_S
        try:
            while await self._ended(entry) and entry.failed is None:
                if trio.current_time() - entry.started_at > _STEADY_S:
                    delay_s = _BACKOFF_FIRST_S
                with trio.move_on_after(delay_s):
                    await entry.stopping.wait()
                if entry.stopping.is_set():
                    return
                delay_s = min(2 * delay_s, _BACKOFF_LAST_S)
                entry.restarts += 1
                try:
                    self._start_process(entry)
                except FS3Error as error:
                    self._say(f"{entry.daemon.name} cannot be started again: {error.message}")
        finally:
            entry.gone.set()

    async def _ended(self, entry: Supervised) -> bool:
        """Wait for the process to end and say why it did; False when it was told to."""
        assert entry.process is not None
        code = await wait_exit(entry.process)
        if entry.stopping.is_set():
            return False
        words = f"{entry.daemon.name} (pid {entry.pid}) {describe_exit(code)}"
        if self.settled and code == EXIT_OK and entry.may_end:
            self._say(f"{words}, as somebody wished; it is not started again")
            return False
        if self.settled and code != EXIT_CONFIG:
            self._say(f"{words}, is started again (log: {entry.daemon.log})")
            return True
        entry.failed = FS3Error(Code.IO, f"{words}: {last_words(entry.daemon.log)} (log: {entry.daemon.log})")
        if self.settled:
            self._say(f"{entry.failed.message}; it is not started again")
        return True


def process_alive(pid: int) -> bool:
    """Whether a process of that id exists and is no zombie."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False
