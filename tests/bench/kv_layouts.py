"""What a block of a KV cache costs by how it is laid out: `python -m tests.bench.kv_layouts MOUNT DATA`.

MOUNT is the mount of a cluster of this machine that `fs3 up --data DATA` runs. Blocks are put and read in no order, in
batches, through rings and through the mount (whose pages are dropped from the kernel), in few large files and in a file for
each. Prints for each block the time, and the CPU time of all processes of the cluster and of this one together: on a busy
machine the latter says more.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fs3.cli.bench.replay import FewFiles, Layout, ManyFiles, Part
from fs3.doors import PlainDoor
from fs3.ring_door import RingDoor
from tests.bench.storage_load import cpu_seconds

SHAPES = ((64 << 10, 1024, 64), (2 << 20, 256, 32))
"""Bytes of a block, blocks, blocks of a batch."""


def processes(data: Path) -> list[int]:
    """Of the cluster, and this one."""
    found = [os.getpid()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_text().split("\0")
                if any(word.startswith(f"{data}/config/") for word in words):
                    found.append(int(entry.name))
    return found


def measure(mount: Path, way: str, kind: str, shape: tuple[int, int, int], pids: list[int]) -> None:
    size, count, batch = shape
    place = mount / f".layouts-{os.getpid()}"
    door = RingDoor(str(place)) if way == "rings" else PlainDoor(str(place))
    door.make(["blocks"])
    memory = door.lend(batch * size) if isinstance(door, RingDoor) else memoryview(bytearray(batch * size))
    memory[:] = random.Random(1).randbytes(batch * size)
    layout: Layout = (ManyFiles if kind == "a file each" else FewFiles)(door, size, "blocks", cold=way == "mount")

    def timed(what: str, act: Callable[[list[Part]], list[int]], order: list[int]) -> None:
        cpu, began = cpu_seconds(pids), time.perf_counter()
        for first in range(0, count, batch):
            parts = [(n, n, memory[at * size : (at + 1) * size]) for at, n in enumerate(order[first : first + batch])]
            assert act(parts) == [size] * len(parts)
            layout.forget(parts)
        took, cpu = time.perf_counter() - began, cpu_seconds(pids) - cpu
        print(f"{way:6}{kind:12}{size >> 10:6} KiB  {what}{took * 1e6 / count:9,.0f} µs, CPU {cpu * 1e6 / count:8,.0f} µs")

    try:
        order = list(range(count))
        timed("put", layout.write, order)
        for seed in (1, 2):
            timed("get", layout.read, random.Random(seed).sample(order, count))
    finally:
        layout.close()
        door.end()
        shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mount", type=Path)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    pids = processes(options.data.resolve())
    for shape in SHAPES:
        for way in ("rings", "mount"):
            for kind in ("few files", "a file each"):
                measure(options.mount, way, kind, shape, pids)


if __name__ == "__main__":
    main()
