"""kill -9 of a process that works on a chunk engine: what it had completed is there, whole, and nothing is torn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from fs3.ids import ChunkId
from storage.chunk_engine import ChunkEngine
from storage.disk_linux import LinuxDisk
from storage.space import SpaceBudget
from tests.process.programs.storage_engine_load import CHUNKS, operations

pytestmark = pytest.mark.process

ROUNDS = 5
ROOT = Path(__file__).parents[2]
PROGRAM = "tests.process.programs.storage_engine_load"


def work_until_killed(folder: Path, seed: int, seconds: float) -> int:
    """How many operations the killed process had completed, for certain."""
    command = [sys.executable, "-m", PROGRAM, str(folder), str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        os.set_blocking(process.stdout.fileno(), False)
        end = time.monotonic() + seconds
        said = b""
        while time.monotonic() < end:
            said += process.stdout.read() or b""
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        said += process.stdout.read() or b""
    assert process.returncode == -signal.SIGKILL
    lines = said.split(b"\n")[:-1]
    return int(lines[-1]) if lines else 0


async def contents(folder: Path) -> dict[ChunkId, bytes]:
    """Everything committed; read_whole() verifies it."""
    disk = LinuxDisk(str(folder))
    engine = ChunkEngine(disk, "target", SpaceBudget(disk, 0))
    found = {chunk: bytes(await engine.read_whole(chunk, pending=False)) for chunk in CHUNKS if holds(engine, chunk)}
    engine.close()
    disk.close()
    return found


def holds(engine: ChunkEngine, chunk: ChunkId) -> bool:
    state = engine.get(chunk)
    return state is not None and state.committed is not None


async def test_completed_operations_survive(tmp_path: Path) -> None:
    random = Random()
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    before: dict[ChunkId, bytes] = {}
    total = 0
    for number in range(ROUNDS):
        completed = work_until_killed(tmp_path, seed + number, random.uniform(0.1, 0.6))
        expected = dict(before)
        steps = list(islice(operations(seed + number), completed + 1))
        for step in steps[:completed]:
            content = step.apply(expected.get(step.chunk))
            if content is None:
                expected.pop(step.chunk, None)
            else:
                expected[step.chunk] = content
        after = dict(expected)  # the one under way may have been completed without saying so
        content = steps[-1].apply(after.pop(steps[-1].chunk, None))
        if content is not None:
            after[steps[-1].chunk] = content
        before = await contents(tmp_path)
        assert before in (expected, after), f"after {completed} operations of seed {seed + number}"
        total += completed
    assert total > 100
