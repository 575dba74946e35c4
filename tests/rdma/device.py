"""The guest's device rxe0 (Soft-RoCE) and the interface below it: its counters, and ways to hurt it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

NAME = "rxe0"
INTERFACE = "dummy0"
PACKET_SIZE = 4096
"""Bytes of payload in a full packet, at the guest's MTU."""
_COUNTERS = Path(f"/sys/class/infiniband/{NAME}/ports/1/hw_counters")


def counters() -> dict[str, int]:
    """The kernel's own count of what the device did since it was made."""
    return {path.name: int(path.read_text()) for path in _COUNTERS.iterdir()}


def since(before: dict[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in counters().items()}


def needs_guest() -> None:
    """Skips where the device is not the guest's, which may be hurt."""
    if not Path(f"/sys/class/infiniband/{NAME}/device").exists() and not _COUNTERS.exists():
        pytest.skip(f"no device {NAME}: not in the guest")


def link(*, up: bool) -> None:
    subprocess.run(["ip", "link", "set", INTERFACE, "up" if up else "down"], check=True)


def remove() -> None:
    """As if there were no card. The kernel would wait for those who have it open: skips if this process does."""
    if any("uverbs" in os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()):
        pytest.skip("the device is open in this process already: this has to come first")
    subprocess.run(["rdma", "link", "delete", NAME], check=True)


def add() -> None:
    subprocess.run(["rdma", "link", "add", NAME, "type", "rxe", "netdev", INTERFACE], check=True)
