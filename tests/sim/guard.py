"""Makes a simulation fail when the code under it touches the real world: clocks, chance, threads, sockets, files."""

from __future__ import annotations

import builtins
import io
import os
import random
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

PACKAGES = ("fs3", "mgmtd", "meta", "storage", "fuse", "tests")
_NAMES: tuple[tuple[Any, str], ...] = (
    (
        time,
        "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time process_time_ns thread_time"
        " clock_gettime clock_gettime_ns localtime gmtime ctime sleep",
    ),
    (
        os,
        "urandom getrandom open openpty read pread preadv readv write pwrite pwritev writev sendfile splice copy_file_range"
        " fsync fdatasync truncate ftruncate posix_fallocate stat lstat fstat statvfs fstatvfs listdir scandir walk access"
        " mkdir makedirs mknod mkfifo rename replace remove unlink rmdir link symlink readlink chmod chown utime"
        " getxattr setxattr getpid getloadavg cpu_count pipe pipe2 fork posix_spawn system popen kill times memfd_create",
    ),
    (
        random,
        "seed random uniform randint randrange randbytes getrandbits choice choices sample shuffle expovariate gauss"
        " normalvariate betavariate triangular SystemRandom",
    ),
    (secrets, "randbits randbelow choice token_bytes token_hex token_urlsafe"),
    (uuid, "uuid1 uuid4"),
    (socket, "socket socketpair create_connection create_server getaddrinfo gethostname getfqdn gethostbyname"),
    (select, "select poll epoll"),
    (signal, "signal alarm setitimer"),
    (subprocess, "Popen run call check_call check_output"),
    (threading.Thread, "start"),
    (threading.Event, "wait"),
    (tempfile, "mkstemp mkdtemp TemporaryFile NamedTemporaryFile TemporaryDirectory"),
    (builtins, "open input"),
    (io, "open"),
    (trio.to_thread, "run_sync"),
    (trio, "open_file open_tcp_stream open_tcp_listeners serve_tcp open_unix_socket run_process open_signal_receiver"),
    (trio.socket, "socket socketpair getaddrinfo"),
)
_WORLD = tuple((owner, name) for owner, names in _NAMES for name in names.split() if hasattr(owner, name))
"""Clocks, chance without a seed, files, sockets, threads, processes."""


class RealWorldError(Exception):
    """Simulated code reached for something that no seed controls."""


def _refusing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        module = sys._getframe(1).f_globals.get("__name__", "")
        if module.partition(".")[0] in PACKAGES:
            raise RealWorldError(f"{module} calls {name} inside a simulation")
        return real(*arguments, **named)

    return call


class _SeededRandom(random.Random):
    """As random.Random, which takes a seed from the system where it is given none."""

    def __new__(cls, *seed: Any) -> _SeededRandom:
        module = sys._getframe(1).f_globals.get("__name__", "")
        if (not seed or seed[0] is None) and module.partition(".")[0] in PACKAGES:
            raise RealWorldError(f"{module} calls random.Random without a seed inside a simulation")
        return super().__new__(cls, *seed)


@contextmanager
def guarded() -> Iterator[None]:
    """While this lasts, calls of the real world out of the project's own code raise RealWorldError."""
    saved = [(owner, name, getattr(owner, name)) for owner, name in _WORLD]
    for owner, name, real in saved:
        setattr(owner, name, _refusing(f"{getattr(owner, '__name__', owner)}.{name}", real))
    saved.append((random, "Random", random.Random))
    random.Random = _SeededRandom  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        for owner, name, real in saved:
            setattr(owner, name, real)
