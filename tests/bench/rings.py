"""Batches of reads by user-space rings, against the mount and a plain local directory: `python -m tests.bench.rings`.

One storage daemon, one mount, one file that is in page cache; each way reads the same ranges, every one of the file once, in
an order of chance, in batches of 64. Prints for each the rate, and the CPU time of program, mount and storage daemon for one
range: medians of rounds, the ways in turn. Rates of a busy machine say little; CPU time and ratios do.

    rings xN            one ring, N batches under way
    client xN           no FUSE: fs3.client.many in this process, into registered memory, N batches under way
    mount, direct xN    pread of the mount by N threads, opened with O_DIRECT
    mount, cached       the same by one thread, through the kernel's cache, which is emptied before
    local directory     pread of a plain file by one thread
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import trio

from fs3.client import sync
from fs3.client.many import read_many
from fs3.client.mgmtd import MgmtdClient
from fs3.client.paths import AsyncFile
from fs3.env import Env
from fs3.memory import Memory
from fs3.rpc.client import RpcClient
from fs3.transport.registry import Transports
from fs3.usrbio import Ior, Iov, deregister_fd, register_fd
from tests.bench.storage_cluster import CHECKOUT, MIB, Cluster, wait_until
from tests.bench.storage_load import cpu_seconds, format_cluster

COUNT = 64
KIB = 1024
SIZES = {"4k": 4 * KIB, "64k": 64 * KIB, "1m": MIB}
TARGETS = {"4k": (100_000, "reads/s"), "64k": (2.5, "GB/s"), "1m": (2.5, "GB/s")}
LOCAL = "local directory"
THREADS = 8
WARM_UP_S = 0.3


@dataclass(frozen=True)
class Figures:
    """Of one way at one size. program, mount, storage: microseconds of CPU for each range."""

    transport: str
    size: str
    way: str
    reads_per_s: float
    gb_per_s: float
    program: float
    mount: float
    storage: float
    best_per_s: float = 0.0
    """The rate of the best round: what the machine gives when others let it."""


Batches = Iterator[list[int]]
Way = Callable[[Callable[[], Batches], int, float], int]
"""Reads batches of offsets of ranges of a size, which the function gives in an order of chance, until a time of
perf_counter; how many ranges that were."""


class Bench:
    """One cluster and mount in a folder. transport: tcp, or local for shared memory."""

    def __init__(self, folder: Path, transport: str, file_mib: int) -> None:
        self.transport = transport
        self.file_mib = file_mib
        self.mount = folder / "mount"
        self._folder = folder
        self._flag = "--short-circuit" if transport == "local" else "--no-short-circuit"
        self.pids: dict[str, int] = {}
        self.address = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        with Cluster(CHECKOUT, self._folder / "data", 1, 4, [self._flag]) as cluster:
            self.address = cluster.address
            trio.run(_format, cluster.address)
            self.mount.mkdir()
            command = ["-m", "fuse.daemon", "--mgmtd", cluster.address, "--mount", str(self.mount), self._flag]
            with (self._folder / "mount.log").open("wb") as log:
                process = subprocess.Popen([sys.executable, *command], cwd=CHECKOUT, stdout=log, stderr=log)
            try:
                wait_until("the mount", lambda: os.path.ismount(self.mount))
                (storage,) = cluster.storage.values()
                self.pids = {"program": os.getpid(), "mount": process.pid, "storage": storage.pid}
                self._fill()
                yield
            finally:
                process.terminate()
                process.wait(30)

    def _fill(self) -> None:
        """The same bytes in the cluster and in a plain file beside it, both in page cache."""
        data = random.Random(1).randbytes(MIB)
        for path in (self.mount / "file", self._folder / "file"):
            with path.open("wb", buffering=0) as file:
                for number in range(self.file_mib):
                    file.write(number.to_bytes(8, "little") + data[8:])
                os.fsync(file.fileno())
        self.expected = data

    # Ways to read

    def ways(self, stack: ExitStack) -> dict[str, Way]:
        fd = os.open(self.mount / "file", os.O_RDONLY)
        direct = os.open(self.mount / "file", os.O_RDONLY | os.O_DIRECT)
        local = os.open(self._folder / "file", os.O_RDONLY)
        for each in (fd, direct, local):
            stack.callback(os.close, each)
        register_fd(fd)
        stack.callback(deregister_fd, fd)
        self._memory = Iov.create(str(self.mount), 2 * COUNT * MIB)
        self._memory.view[:] = bytes(2 * COUNT * MIB)  # memory that was never touched costs as much as its bytes do
        self._ring = {depth: Ior(str(self.mount), depth * COUNT) for depth in (1, 2)}
        stack.callback(self._close)
        self.check(fd)
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        private = memoryview(mmap.mmap(-1, COUNT * MIB))
        private[:] = bytes(COUNT * MIB)

        def pread(file: int, batches: Batches, size: int, end: float, cold: bool = False) -> int:
            views = [private[number * size : (number + 1) * size] for number in range(COUNT)]
            done = 0
            while time.perf_counter() < end:
                if cold and not done * size % (self.file_mib * MIB):
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                for offset, view in zip(next(batches), views, strict=True):
                    os.preadv(file, [view], offset)
                done += COUNT
            return done

        def threads(batches: Callable[[], Batches], size: int, end: float) -> int:
            return sum(pool.map(lambda mine: pread(direct, mine, size, end), [batches() for _ in range(THREADS)]))

        fs = stack.enter_context(sync.connect([self.address], transport=self._transport()))
        file = stack.enter_context(fs.open("/file"))
        memory = stack.enter_context(Memory(2 * COUNT * MIB))
        memory.view[:] = bytes(2 * COUNT * MIB)
        stack.enter_context(fs.register(memory))

        def client(depth: int, batches: Callable[[], Batches], size: int, end: float) -> int:
            return fs.call(_client, file.opened(), memory.view, depth, batches(), size, end)

        return {
            "rings x1": lambda batches, size, end: self._rings(fd, 1, batches(), size, end),
            "rings x2": lambda batches, size, end: self._rings(fd, 2, batches(), size, end),
            "client x1": partial(client, 1),
            "client x2": partial(client, 2),
            "mount, direct x1": lambda batches, size, end: pread(direct, batches(), size, end),
            f"mount, direct x{THREADS}": threads,
            "mount, cached": lambda batches, size, end: pread(fd, batches(), size, end, cold=True),
            LOCAL: lambda batches, size, end: pread(local, batches(), size, end),
        }

    def _close(self) -> None:
        for ring in self._ring.values():
            ring.close()
        self._memory.close()

    def _transport(self) -> Transports:
        return Transports(short_circuit=self.transport == "local")

    def _rings(self, fd: int, depth: int, batches: Batches, size: int, end: float) -> int:
        iov, ring = self._memory, self._ring[depth]
        done = 0

        def submit(first: int) -> None:
            for number, offset in enumerate(next(batches), first):
                ring.prepare(iov, number * size, size, fd, offset, number)
            ring.submit()

        for batch in range(depth):
            submit(batch * COUNT)
        for turn in itertools.count():
            found = ring.wait(COUNT, COUNT)
            assert [each.result for each in found] == [size] * COUNT, found
            done += COUNT
            if time.perf_counter() >= end:
                break
            submit(turn % depth * COUNT)
        for _ in range(depth - 1):
            done += len(ring.wait(COUNT, COUNT))
        return done

    def check(self, fd: int) -> None:
        """Whether what rings read is what was written."""
        iov, ring = self._memory, self._ring[1]
        for number in range(COUNT):
            ring.prepare(iov, number * MIB, MIB, fd, number * MIB)
        ring.submit()
        assert [done.result for done in ring.wait(COUNT, COUNT)] == [MIB] * COUNT
        for number in range(COUNT):
            wanted = number.to_bytes(8, "little") + self.expected[8:]
            assert iov.view[number * MIB : (number + 1) * MIB] == wanted, f"MiB {number} is wrong"

    def measure(self, way: Way, name: str, size_name: str, seconds: float) -> Figures:
        size = SIZES[size_name]
        way(partial(self._batches, size), size, time.perf_counter() + WARM_UP_S)
        before = {process: cpu_seconds([pid]) for process, pid in self.pids.items()}
        started = time.perf_counter()
        count = way(partial(self._batches, size), size, started + seconds)
        took = time.perf_counter() - started
        used = {process: (cpu_seconds([pid]) - before[process]) / count * 1e6 for process, pid in self.pids.items()}
        return Figures(self.transport, size_name, name, count / took, count * size / took / 1e9, **used)

    def _batches(self, size: int) -> Batches:
        offsets = list(range(0, self.file_mib * MIB, size))
        while True:
            random.shuffle(offsets)
            for first in range(0, len(offsets), COUNT):
                yield offsets[first : first + COUNT]


async def _client(file: AsyncFile, memory: memoryview, depth: int, batches: Batches, size: int, end: float) -> int:
    done = 0

    async def work(view: memoryview) -> None:
        nonlocal done
        views = [view[number * size : (number + 1) * size] for number in range(COUNT)]
        while time.perf_counter() < end:
            items = [(file.handle, offset, into) for offset, into in zip(next(batches), views, strict=True)]
            assert await read_many(file._client, items) == [size] * COUNT
            done += COUNT

    async with trio.open_nursery() as nursery:
        for number in range(depth):
            nursery.start_soon(work, memory[number * COUNT * size : (number + 1) * COUNT * size])
    return done


async def _format(address: str) -> None:
    env = Env(Transports())
    async with trio.open_nursery() as nursery:
        rpc = RpcClient(env, nursery)
        mgmtd = MgmtdClient(env, rpc, [address])
        await nursery.start(mgmtd.run)
        await format_cluster(mgmtd, 1)
        nursery.cancel_scope.cancel()


def run(transport: str, options: argparse.Namespace) -> list[Figures]:
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        bench = Bench(Path(name), transport, options.mib)
        stack.enter_context(bench.running())
        ways = bench.ways(stack)
        found: dict[tuple[str, str], list[Figures]] = {}
        for _ in range(options.rounds):
            for size in options.sizes:
                for way, read in ways.items():
                    if not options.ways or any(wanted in way for wanted in options.ways):
                        found.setdefault((size, way), []).append(bench.measure(read, way, size, options.seconds))
        return [median(rounds) for rounds in found.values()]


def median(rounds: list[Figures]) -> Figures:
    numbers = {
        name: statistics.median([getattr(each, name) for each in rounds])
        for name in ("reads_per_s", "gb_per_s", "program", "mount", "storage")
    }
    return replace(rounds[0], **numbers, best_per_s=max([each.reads_per_s for each in rounds]))


def show(found: list[Figures]) -> None:
    head = f"{'':5} {'size':>4} {'way':<17} {'reads/s':>9} {'GB/s':>6} {'best':>8}"
    print(f"{head}  us: {'program':>7} {'mount':>7} {'storage':>7}  of local")
    local = {(each.transport, each.size): each.reads_per_s for each in found if each.way == LOCAL}
    for each in found:
        whole = local.get((each.transport, each.size), 0.0)
        share = f"{each.reads_per_s / whole:8.0%}" if whole else ""
        line = f"{each.transport:5} {each.size:>4} {each.way:<17} {each.reads_per_s:9.0f} {each.gb_per_s:6.2f}"
        line += f" {each.best_per_s:8.0f}"
        print(f"{line}      {each.program:7.1f} {each.mount:7.1f} {each.storage:7.1f}  {share}{verdict(each)}")


def verdict(each: Figures) -> str:
    """How a row of rings stands to its target."""
    if not each.way.startswith("rings"):
        return ""
    target, unit = TARGETS[each.size]
    reached = (each.reads_per_s if unit == "reads/s" else each.gb_per_s) >= target
    return f"  wanted {target:,} {unit}: {'reached' if reached else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=("tcp", "local", "both"), default="both", help="local: by shared memory")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ways", nargs="*", default=[], help="only those whose names have one of these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--mib", type=int, default=256, help="how large the file is")
    parser.add_argument("--folder", default=None, help="where; a temporary folder by default")
    parser.add_argument("--json", default="", help="a file for the figures")
    options = parser.parse_args()
    found: list[Figures] = []
    for transport in ("tcp", "local") if options.transport == "both" else (options.transport,):
        found += run(transport, options)
    show(found)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(each) for each in found], indent=1))


if __name__ == "__main__":
    main()
