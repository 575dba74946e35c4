"""A mount whose daemon waits for itself: `stuck_mount.py FOLDER [--guard]`, killed -9 from outside.

One file, "file", whose pages are never read: a read of it hangs, and then a thread hands that page to the kernel, which
waits for the read. It prints "stuck" and the reader's pid when that is so.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time

import pyfuse3
import trio

from fuse import guard

FILE = 2


class Stuck(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        made = pyfuse3.EntryAttributes()
        made.st_ino = inode
        made.st_mode = stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
        made.st_size = 4096
        made.st_nlink = 1
        return made

    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def open(self, inode: int, flags: int, ctx: object = None) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=1)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        self.asked.set()
        await trio.sleep_forever()
        raise AssertionError


def get_stuck(folder: str, asked: threading.Event) -> None:
    reader = subprocess.Popen(["cat", os.path.join(folder, "file")], stderr=subprocess.DEVNULL)
    asked.wait()
    thread = threading.Thread(target=store, daemon=True)
    thread.start()
    while not waits_in_kernel(thread):
        time.sleep(0.01)
    print("stuck", reader.pid, flush=True)


def store() -> None:
    """Never returns."""
    pyfuse3.notify_store(FILE, 0, b"x" * 4096)


def waits_in_kernel(thread: threading.Thread) -> bool:
    with open(f"/proc/self/task/{thread.native_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "D"


async def main(folder: str, guarded: bool) -> None:
    operations = Stuck()
    pyfuse3.init(operations, folder, {"fsname=stuck", "subtype=fs3"})
    if guarded:
        guard.start(folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        nursery.start_soon(trio.to_thread.run_sync, get_stuck, folder, operations.asked)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], "--guard" in sys.argv)
