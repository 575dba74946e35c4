"""The block store on a real cluster, by each way to it: several writers share one folder, and a kill -9 tears nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fs3.client.sync import FileSystem, connect
from fs3.doors import ClientDoor, Door, PlainDoor
from fs3.integrations.kv_store import BlockStore
from fs3.ring_door import RingDoor
from tests.process import harness

pytestmark = pytest.mark.process

MIB = 1024 * 1024
WAYS = ("mount", "rings", "client")

WRITER = """
import sys
from fs3.integrations.kv_options import open_store
store = open_store({"place": sys.argv[1], "segment": "4MiB"})
number = 0
while True:
    keys = [str(number + each) for each in range(4)]
    assert all(store.put(keys, [key.encode() * (300_000 // len(key)) for key in keys]))
    number += 4
    print(number, flush=True)
"""


@contextmanager
def door(way: str, cluster: harness.Cluster, name: str) -> Iterator[Door]:
    with ExitStack() as stack:
        if way == "client":
            fs: FileSystem = stack.enter_context(connect(cluster.mgmtd()))
            yield ClientDoor(fs, f"/kv/{name}")
        else:
            yield (RingDoor if way == "rings" else PlainDoor)(str(cluster.mount / "kv" / name))


def read(store: BlockStore, keys: list[str], size: int) -> list[bytes | None]:
    into = [bytearray(size) for _ in keys]
    return [None if got is None else bytes(view[:got]) for got, view in zip(store.get(keys, into), into, strict=True)]


def wait_for(store: BlockStore, keys: list[str]) -> None:
    """Until it is known how long the index is that another client wrote: a second, while it is open there."""
    deadline = time.monotonic() + 10
    while store.leading(keys) < len(keys) and time.monotonic() < deadline:
        time.sleep(0.05)


def block(number: int, size: int) -> bytes:
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


@pytest.mark.parametrize("way", WAYS)
def test_blocks_come_back_to_all(shared_cluster: harness.Cluster, way: str) -> None:
    """What one way wrote the others read; old blocks go when the folder is full."""
    sizes = [1, 4096, 700_001, 3 * MIB, 0]
    keys = [str(size) for size in sizes]
    blocks = [block(size, size) for size in sizes]
    with door(way, shared_cluster, way) as mine:
        store = BlockStore(mine, capacity_bytes=16 * MIB, segment_bytes=2 * MIB, refresh_s=0.0)
        assert store.put(keys, blocks) == [True] * 5
        assert read(store, [*keys, "missing"], 3 * MIB) == [*blocks, None]
        for other in WAYS:
            with door(other, shared_cluster, way) as theirs:
                reader = BlockStore(theirs, refresh_s=0.0)
                wait_for(reader, keys)
                assert read(reader, keys, 3 * MIB) == blocks
                reader.close()
        assert store.delete(keys[:2]) == [True, True]
        assert read(store, keys[:3], 3 * MIB) == [None, None, blocks[2]]
        for turn in range(12):
            more = [f"{turn}-{each}" for each in range(4)]
            assert store.put(more, [block(turn * 4 + each, MIB // 2) for each in range(4)]) == [True] * 4
        assert store.usage()[0] <= 16 * MIB
        assert read(store, [*keys[:3], "11-3"], 3 * MIB) == [None, None, None, block(47, MIB // 2)]
        store.clear()
        assert store.usage() == (0, 0)
        store.close()


def test_a_writer_that_is_killed_leaves_whole_blocks(shared_cluster: harness.Cluster) -> None:
    place = shared_cluster.mount / "kv" / "killed"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True, cwd=harness.REPOSITORY
    )
    try:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(4)][-1]
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        told = max([told, *[int(line) for line in writer.communicate()[0].split()]])
    with door("rings", shared_cluster, "killed") as mine:
        store = BlockStore(mine, refresh_s=0.0)
        wait_for(store, [str(number) for number in range(told)])
        for number in range(told + 8):
            key = str(number)
            whole = key.encode() * (300_000 // len(key))
            assert read(store, [key], 300_000)[0] in ((whole,) if number < told else (whole, None))
        assert store.put(["after"], [b"it"]) == [True]
        store.clear()
        store.close()


def test_what_rings_are_not_there_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not on an fs3 mount"):
        RingDoor(str(tmp_path))
