"""What the tests' daemons within one process talk over: memory, or a real transport where FS3_TEST_LISTEN names a scheme and
a host, such as rdma://192.168.77.1 or tcp://127.0.0.1."""

from __future__ import annotations

import os
from itertools import count

from fs3.transport.base import Transport
from fs3.transport.memory import MemoryTransport
from fs3.transport.registry import Transports

LISTEN = os.environ.get("FS3_TEST_LISTEN", "")

_ports = count(20_000 + os.getpid() % 8_000)  # others of this host may count, too


def transport() -> Transport:
    return Transports(short_circuit=False) if LISTEN else MemoryTransport()


def address(name: str) -> str:
    """A fresh one for a daemon of this name."""
    return f"{LISTEN}:{next(_ports)}" if LISTEN else f"mem://{name}:1"
