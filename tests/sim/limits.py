"""Bounds of the product that a simulation lowers: what they bound happens more often, and runs need less memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from storage import durability

_MIB = 1024 * 1024
_STORAGE = {"PATCH_BYTES_MAX": _MIB // 4, "DEFERRED_BYTES_MAX": 2 * _MIB, "UNSYNCED_BYTES_MAX": 4 * _MIB}


@contextmanager
def small_limits() -> Iterator[None]:
    """While this lasts, a target syncs itself after a few MiB. A slot that waits for a sync takes up space meanwhile, of
    which a simulated disk keeps two copies in memory, and there are many targets."""
    before = {name: getattr(durability, name) for name in _STORAGE}
    try:
        for name, value in _STORAGE.items():
            setattr(durability, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(durability, name, value)
