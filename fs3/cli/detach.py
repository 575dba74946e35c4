"""Leaving a process in the background once it has come up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

_READY = b"1"


def detached(child: Callable[[Callable[[], None]], int], log: Path) -> int:
    """Run child(done) in a session of its own; return an exit code once it called done() or ended.

    Until done() it writes where this process writes, afterwards to `log`. Call this before any thread or event loop runs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    verdict, verdict_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(verdict)
        _become_background(child, log, verdict_end)
    os.close(verdict_end)
    with os.fdopen(verdict, "rb", buffering=0) as stream:
        if stream.read(1) == _READY:
            return 0
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) or 1


def _become_background(child: Callable[[Callable[[], None]], int], log: Path, verdict: int) -> None:
    """In the forked process; never returns."""

    def done() -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        os.write(verdict, _READY)
        os.close(verdict)

    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = child(done)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
