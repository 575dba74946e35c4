"""Makes a simulation fail when the code under it touches the real world: clocks, chance, threads, sockets, files."""

from __future__ import annotations

import builtins
import os
import random
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

PACKAGES = ("fs3", "mgmtd", "meta", "storage", "fuse", "tests")
_WORLD: tuple[tuple[Any, str], ...] = (
    (time, "time"),
    (time, "time_ns"),
    (time, "monotonic"),
    (time, "perf_counter"),
    (time, "sleep"),
    (os, "urandom"),
    (os, "open"),
    (os, "pread"),
    (os, "preadv"),
    (os, "pwritev"),
    (secrets, "randbits"),
    (secrets, "token_bytes"),
    (random, "random"),
    (random, "randrange"),
    (random, "choice"),
    (socket, "socket"),
    (socket, "gethostname"),
    (threading.Thread, "start"),
    (builtins, "open"),
    (trio.to_thread, "run_sync"),
)


class RealWorldError(Exception):
    """Simulated code reached for something that no seed controls."""


def _refusing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        module = sys._getframe(1).f_globals.get("__name__", "")
        if module.partition(".")[0] in PACKAGES:
            raise RealWorldError(f"{module} calls {name} inside a simulation")
        return real(*arguments, **named)

    return call


@contextmanager
def guarded() -> Iterator[None]:
    """While this lasts, calls of the real world out of the project's own code raise RealWorldError."""
    saved = [(owner, name, getattr(owner, name)) for owner, name in _WORLD]
    for owner, name, real in saved:
        setattr(owner, name, _refusing(f"{getattr(owner, '__name__', owner)}.{name}", real))
    try:
        yield
    finally:
        for owner, name, real in saved:
            setattr(owner, name, real)
