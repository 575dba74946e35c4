"""Many files: `python -m tests.bench.many [--files 1000000] [--directories 1|10000] [--sized]`.

Starts a cluster of its own by `fs3 up`, fills it over RPC with many requests in flight (a mount asks one by one), and
measures: the rate of filling, latency of lookups, the time and memory that a listing through the mount takes, how long
`rmtree` takes to return, how fast what is left goes, and what a lookup waits meanwhile. Memory is resident set size. With
--sized files have a length, so that the collector asks for the chunks of each (there are none): how fast is that, and does
it slow down behind what it has removed?
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import trio

from fs3.api.common import Empty
from fs3.api.meta import (
    CLOSE,
    CREATE,
    LOOKUP,
    MKNOD,
    RMTREE,
    STATFS,
    Access,
    Caller,
    CloseRequest,
    CreateRequest,
    FileKind,
    LookupRequest,
    MknodRequest,
    RmtreeRequest,
)
from fs3.api.meta_admin import GC_STATUS, LIST_TREES, ListTreesRequest
from fs3.cli.admin.common import Cluster, cluster
from fs3.cli.admin.files import Files
from fs3.cli.options import addresses
from fs3.client.meta import MetaClient
from fs3.ids import ROOT_INODE
from tests.bench.systems import BenchError, fs3_command

CALLER = Caller(0, 0, (0,))
LOOKUPS = 2000
LISTING = """
import os, sys, time
began, count, left = time.monotonic(), 0, [sys.argv[1]]
while left:
    with os.scandir(left.pop()) as entries:
        for entry in entries:
            count += 1
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
print(time.monotonic() - began, count)
"""

SAMPLE = """
import os, sys, time
names = [sys.argv[1] + "/sample-%d" % number for number in range(1000)]
def create(name):
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
for act in (create, os.stat, os.unlink):
    began = time.monotonic()
    for name in names:
        act(name)
    print(act.__name__, "%.2f ms" % ((time.monotonic() - began) * 1000 / len(names)), end="  ")
"""


class Memory:
    """Resident memory of one of the cluster's processes."""

    def __init__(self, mark: str) -> None:
        self._pid = _processes(mark)[0]

    def mib(self, key: str = "VmRSS") -> float:
        """key: VmHWM for the most that it was."""
        text = Path(f"/proc/{self._pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:")) / 1024


def _processes(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if mark in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    if not found:
        raise BenchError(f"no process with {mark} in its command line")
    return found


def say(row: str, text: str) -> None:
    print(f"{row:34} {text}", flush=True)


def directory_name(number: int) -> bytes:
    return b"d%05d" % number


def file_name(number: int) -> bytes:
    return b"file-%09d" % number


class Bench:
    def __init__(self, meta: MetaClient, memory: Memory, options: argparse.Namespace) -> None:
        self._meta = meta
        self._memory = memory
        self._files = options.files
        self._directories = options.directories
        self._at_once = options.at_once
        self._sized = options.sized
        self._inodes: list[int] = []  # of the directories with files
        self._top = 0

    async def _make(self, parent: int, name: bytes, kind: FileKind) -> int:
        mode = 0o755 if kind is FileKind.DIRECTORY else 0o644
        made = await self._meta.change(MKNOD, lambda tag: MknodRequest(tag, CALLER, parent, name, kind, mode))
        return made.attr.inode

    async def _make_file(self, parent: int, name: bytes) -> None:
        if not self._sized:
            await self._make(parent, name, FileKind.FILE)
            return
        client = 1 << 40  # that mgmtd does not know
        made = await self._meta.change(
            CREATE, lambda tag: CreateRequest(tag, CALLER, client, parent, name, 0o644, Access.WRITE, True, False, 1)
        )
        number = made.attr.inode
        await self._meta.change(CLOSE, lambda tag: CloseRequest(tag, client, number, 1, 1, 0, True))

    async def _each(self, count: int, act: Callable[[int], object]) -> float:
        """act(0) to act(count - 1), so many at once; returns the seconds that it took."""
        began = time.monotonic()
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                await act(number)  # type: ignore[misc]

        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(worker)
        return time.monotonic() - began

    async def fill(self) -> None:
        say("meta, empty", f"{self._memory.mib():.0f} MiB")
        self._top = await self._make(ROOT_INODE, b"top", FileKind.DIRECTORY)
        self._inodes = [self._top]
        if self._directories > 1:
            self._inodes = [0] * self._directories

            async def directory(number: int) -> None:
                self._inodes[number] = await self._make(self._top, directory_name(number), FileKind.DIRECTORY)

            seconds = await self._each(self._directories, directory)
            say("make directories", f"{self._directories / seconds:.0f} /s")

        async def file(number: int) -> None:
            await self._make_file(self._inodes[number % len(self._inodes)], file_name(number))
            if number % (self._files // 4) == self._files // 4 - 1:
                say(f"meta at {number + 1} files", f"{self._memory.mib():.0f} MiB")

        seconds = await self._each(self._files, file)
        say("make files", f"{self._files / seconds:.0f} /s ({seconds:.0f} s)")
        say("inodes", str((await self._meta.call(STATFS, Empty())).files))

    async def _look_up(self, parent: int, name: bytes) -> float:
        """Milliseconds."""
        began = time.monotonic()
        await self._meta.call(LOOKUP, LookupRequest(CALLER, parent, name))
        return 1000 * (time.monotonic() - began)

    async def look_up(self) -> None:
        chance = Random(1)
        took = []
        for _ in range(LOOKUPS):
            number = chance.randrange(self._files)
            took.append(await self._look_up(self._inodes[number % len(self._inodes)], file_name(number)))
        say("look up, one by one", latency(took))

    async def remove(self) -> None:
        aside = await self._make(ROOT_INODE, b"aside", FileKind.DIRECTORY)
        await self._make(aside, b"file", FileKind.FILE)
        names = self._files + (self._directories if self._directories > 1 else 0)
        began = time.monotonic()
        reply = await self._meta.change(RMTREE, lambda tag: RmtreeRequest(tag, CALLER, ROOT_INODE, b"top"))
        say("rmtree returns after", f"{1000 * (time.monotonic() - began):.1f} ms")
        took = []
        queued = 0
        while True:
            found = (await self._meta.call(LIST_TREES, ListTreesRequest(reply.tree - 1, 1))).trees
            if not found:
                break
            queued = max(queued, found[0].directories)
            for _ in range(20):
                took.append(await self._look_up(aside, b"file"))
                await trio.sleep(0.02)
        seconds = time.monotonic() - began
        say(
            "names are removed in the background", f"{names / seconds:.0f} /s ({seconds:.0f} s), {queued} directories queued"
        )
        say("look up meanwhile", latency(took))
        await self._collect(began, aside)
        files = (await self._meta.call(STATFS, Empty())).files
        if files != 3:
            raise BenchError(f"{files} inodes are left")
        say("meta at the end", f"{self._memory.mib():.0f} MiB, at most {self._memory.mib('VmHWM'):.0f} MiB")

    async def _collect(self, began: float, aside: int) -> None:
        """Wait until all that was removed is collected."""
        took = []
        while True:
            status = await self._meta.call(GC_STATUS, Empty())
            if not status.files:
                break
            for _ in range(20):
                took.append(await self._look_up(aside, b"file"))
                await trio.sleep(0.02)
        if not took:
            return
        seconds = time.monotonic() - began
        say("files are collected", f"{self._files / seconds:.0f} /s ({seconds:.0f} s)")
        say("look up meanwhile", latency(took))
        status_took = []
        for _ in range(10):
            start = time.monotonic()
            await self._meta.call(GC_STATUS, Empty())
            status_took.append(1000 * (time.monotonic() - start))
        say("a look at the empty queue", latency(status_took))


def latency(took: list[float]) -> str:
    ordered = sorted(took)
    return f"median {statistics.median(ordered):.2f} ms, 99th percentile {ordered[len(ordered) * 99 // 100]:.2f} ms"


def listing(mount: Path, memory: Memory, expected: int) -> None:
    say("mount, before the listing", f"{memory.mib():.0f} MiB")
    line = [sys.executable, "-I", "-S", "-c", LISTING, str(mount / "top")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    seconds, count = map(float, done.stdout.split())
    if count != expected:
        raise BenchError(f"a listing shows {count:.0f} of {expected} entries")
    say("list all through the mount", f"{count / seconds:.0f} entries/s ({seconds:.1f} s)")
    say("mount, after it", f"{memory.mib():.0f} MiB, at most {memory.mib('VmHWM'):.0f} MiB")


def sample(directory: Path) -> None:
    """Names made, looked at and removed through the mount where there are many others."""
    line = [sys.executable, "-I", "-S", "-c", SAMPLE, str(directory)]
    say("one by one through the mount", subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip())


def run(home: Path, options: argparse.Namespace) -> None:
    data, mount = home / "data", home / "mnt"
    up = [*fs3_command(), "up", "--data", str(data), "--mount", str(mount), "--storages", "1", "--replicas", "1", "--detach"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(up, check=True, env=environment, stdout=subprocess.DEVNULL)
    try:
        of_meta, of_mount = Memory(f"{data}/config/meta"), Memory(f"{data}/config/mount")
        total = options.files + (options.directories if options.directories > 1 else 0)

        async def visit(made: Cluster) -> None:
            bench = Bench(Files(made).meta, of_meta, options)
            await bench.fill()
            await bench.look_up()
            await trio.to_thread.run_sync(sample, mount / "top")
            await trio.to_thread.run_sync(listing, mount, of_mount, total)
            say("meta, after it", f"{of_meta.mib():.0f} MiB")
            await bench.remove()

        async def main() -> None:
            async with cluster(addresses(data, None)) as made:
                await visit(made)

        trio.run(main)
        store = sum(path.stat().st_size for path in (data / "meta").rglob("*") if path.is_file())
        say("meta's store at the end", f"{store / (1 << 20):.0f} MiB on disk")
    finally:
        subprocess.run([*fs3_command(), "down", "--data", str(data)], check=False, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--directories", type=int, default=1, help="over which the files are spread")
    parser.add_argument("--at-once", type=int, default=64, help="requests in flight while it is filled")
    parser.add_argument("--sized", action="store_true", help="files of one byte, whose chunks have to be collected")
    parser.add_argument("--scratch", type=Path, help="where the cluster's folder goes (default: that of temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fs3-many-", dir=options.scratch) as home:
        run(Path(home), options)


if __name__ == "__main__":
    main()
