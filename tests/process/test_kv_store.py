"""The block store on a real cluster, by each way to it: several writers share one folder, and a kill -9 tears nothing."""

from __future__ import annotations

import json
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
from fs3.memory import Memory
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


def test_memory_that_the_way_knows(shared_cluster: harness.Cluster) -> None:
    """Blocks go from and to memory that rings lent, or that is registered with the client, among other memory."""
    size, count = 300_001, 6
    keys = [str(number) for number in range(count)]
    for way in ("rings", "client"):
        with door(way, shared_cluster, f"known-{way}") as mine, ExitStack() as stack:
            store = BlockStore(mine, segment_bytes=MIB)
            if isinstance(mine, RingDoor):
                memory = mine.lend(size * (count + 1))
            else:
                memory = stack.enter_context(Memory(size * (count + 1))).view
                store.register(memory)
            parts = [memory[number * size : (number + 1) * size] for number in range(count)]
            for number, part in enumerate(parts):
                part[:] = block(number, size)
            assert store.put(keys, parts) == [True] * count
            memory[:] = bytes(len(memory))
            into = [*parts[:4], bytearray(size), memory[-size:]]
            assert store.get(keys, into) == [size] * count
            assert [bytes(part) for part in into] == [block(number, size) for number in range(count)]
            assert not any(memory[4 * size : 6 * size])
            store.clear()
            store.close()
            del parts, into, memory


def test_a_trace_is_replayed_in_all_ways(shared_cluster: harness.Cluster, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    requests = [[turn, turn + 1, *range(100, 108)] for turn in range(12)]
    trace.write_text("\n".join([json.dumps({"hash_ids": request}) for request in requests]))
    for layout in ("slots", "files"):
        done = harness.fs3(
            "bench", str(shared_cluster.mount), "kvcache", "--trace", str(trace), "--kv-size", "64KiB", "--capacity", "1MiB",
            "--local", str(tmp_path), "--threads", "2", "--layout", layout, "--json",
            "--cold", "advise",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["blocks_held"], found["distinct_blocks"]) == (16, 21) and 0.5 < found["hit_rate"] < 0.9
        assert {row["way"] for row in found["rows"]} == {"mount", "rings", "local"}
        assert all(row["gb_s"] > 0 for row in found["rows"]) and set(found["ratios"]) == {"rings/mount", "rings/local"}


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
