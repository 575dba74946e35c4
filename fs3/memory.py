"""Shared memory of one's own that can be registered: for what is read from fs3 again and again.

    with fs3.memory.Memory(64 << 20) as memory, fs.register(memory):
        batch = numpy.frombuffer(memory.view, dtype=numpy.uint32)
        fs.read_batch(items, batch)

A storage daemon of the same host puts bytes straight into it: no other memory of this process can be written to by others.
"""

from __future__ import annotations

import mmap
import os
from types import TracebackType

from .transport.shared import sealed_memory


class Memory:
    """size: in bytes. view: all of it, zeros at first. fd: of its file, a memfd that keeps its size, which others may map; a
    child process that is forked shares it."""

    def __init__(self, size: int, name: str = "fs3-memory") -> None:
        """Makes all pages at once, which takes a while for many GiB. Raises OSError where there are none to be had."""
        if size <= 0:
            raise ValueError(f"memory of {size} bytes")
        self.size = size
        # All pages now, in this process's account: else a daemon that reads into them would have to get and answer for them.
        self.fd, mapping = sealed_memory(name, size, mmap.MAP_POPULATE)
        self.view = memoryview(mapping)

    def close(self) -> None:
        """The memory goes with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.view = memoryview(b"")

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
