"""What FUSE costs without us: `python -m tests.bench.floor [--files 4000]`.

Runs rows of `tests.bench.meta` on a file system in memory that does nothing but answer, by pyfuse3 and fuse/loop.py. No
mount of ours can be faster. As root.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from fs3.cli.mounts import unmount
from fs3.direct import DirectWaits
from fuse import handshake
from fuse.loop import RequestLoopTrio, Turn

LOAD = Path(__file__).with_name("meta_load.py")
ROWS = {"create": 5, "stat": 1, "shuffled": 1, "open": 3, "create4k": 7, "rename": 3, "unlink": 2}
"""With the requests that the kernel sends for each operation."""
_COLD = ("stat", "shuffled")
_NOW_NS = 1_700_000_000_000_000_000


class Nothing(pyfuse3.Operations):
    """Names and their kinds, and nothing else."""

    enable_acl = False

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[tuple[int, bytes], int] = {}
        self._modes = {pyfuse3.ROOT_INODE: stat.S_IFDIR | 0o755}

    def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = 1.0
        entry.st_mode = self._modes[inode]
        entry.st_nlink = 1
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = _NOW_NS
        return entry

    def _make(self, parent: int, name: bytes, mode: int) -> int:
        inode = self._names[parent, name] = len(self._modes) + 1
        self._modes[inode] = mode
        return inode

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        inode = self._names.get((parent_inode, name))
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(inode)

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode = self._make(parent_inode, name, stat.S_IFREG | 0o644)
        return pyfuse3.FileInfo(fh=inode), self._entry(inode)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(self._make(parent_inode, name, stat.S_IFDIR | 0o755))

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        del self._names[parent_inode, name]

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        self._names[parent_inode_new, name_new] = self._names.pop((parent_inode_old, name_old))

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        raise pyfuse3.FUSEError(errno.ENODATA)


def measure(mountpoint: Path, files: int) -> None:
    """Run the rows in a process of their own; prints rates and this process's CPU time."""
    folder = mountpoint / "d"
    subprocess.run(["mkdir", folder], check=True)
    for row, requests in ROWS.items():
        if row in _COLD:
            Path("/proc/sys/vm/drop_caches").write_text("2\n")
            time.sleep(1.1)
        before = time.process_time()
        line = [sys.executable, "-I", "-S", str(LOAD), row, str(folder), str(files), "1"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        seconds, count = map(float, done.stdout.split())
        each_us = (time.process_time() - before) * 1e6 / count
        print(f"{row:9} {count / seconds:8.0f} /s  CPU us {each_us:6.1f}, {each_us / requests:5.1f} a request", flush=True)


async def serve(mountpoint: Path, files: int) -> None:
    before = handshake.devices()
    pyfuse3.init(Nothing(), str(mountpoint), {"fsname=floor", "default_permissions"})
    (descriptor,) = handshake.devices() - before
    turn = Turn()
    vars(pyfuse3)["trio"] = RequestLoopTrio(turn, None, DirectWaits.here(descriptor))
    trio.lowlevel.add_instrument(turn)

    async def run() -> None:
        try:
            await trio.to_thread.run_sync(measure, mountpoint, files)
        finally:
            await trio.to_thread.run_sync(unmount, mountpoint)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await pyfuse3.main(min_tasks=16, max_tasks=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4000, help="for each row")
    files = parser.parse_args().files
    print(f"load {os.getloadavg()[0]:.1f}, {files} files", flush=True)
    with tempfile.TemporaryDirectory(prefix="fs3-floor-") as mountpoint:
        try:
            trio.run(serve, Path(mountpoint), files)
        finally:
            pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
