"""Leaving a process in the background once it has come up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

_READY = b"1"


def detached(child: Callable[[Callable[[], None]], int], log: Path) -> int:
    """Run child(done) in a session of its own; return an exit code once it called done() or ended.

    Until done() what it prints comes out here, afterwards it goes to `log`. Call this before any thread or event loop runs.
    """
    output, output_end = os.pipe()
    verdict, verdict_end = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(output)
        os.close(verdict)
        _become_background(child, log, output_end, verdict_end)
    os.close(output_end)
    os.close(verdict_end)
    with os.fdopen(output, "rb", buffering=0) as stream:
        while data := stream.read(8192):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    with os.fdopen(verdict, "rb", buffering=0) as stream:
        if stream.read(1) == _READY:
            return 0
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) or 1


def _become_background(child: Callable[[Callable[[], None]], int], log: Path, output: int, verdict: int) -> None:
    """In the forked process; never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)

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

        code = child(done)
        sys.stdout.flush()
    finally:
        os._exit(code)
