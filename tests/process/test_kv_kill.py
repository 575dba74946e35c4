"""kill -9 of a process that commits to the embedded store loses nothing that was acknowledged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from fs3.kv.embedded import EmbeddedEngine

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5
ACKNOWLEDGED_MIN = 2000


async def commit_for_ever(path: Path, first: int) -> None:
    """The child: transaction n sets two keys and a counter, and then n is printed."""
    engine = EmbeddedEngine.open(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        number = first
        while True:
            txn = engine.transaction()
            txn.set(b"a/%08d" % number, b"%d" % number)
            txn.set(b"b/%08d" % number, bytes(number % 3000))
            txn.clear(b"c/%08d" % (number - 1))
            txn.set(b"c/%08d" % number, b"")
            txn.atomic_add(b"count", 1)
            await txn.commit()
            os.write(sys.stdout.fileno(), b"%d\n" % number)
            number += 1
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()  # let the flusher in


async def check(path: Path, acknowledged: int) -> int:
    """All up to `acknowledged` is there, and each transaction is whole. Returns how many there are."""
    engine = EmbeddedEngine.open(path)
    txn = engine.transaction()
    a = await txn.get_range(b"a/", b"a0")
    b = await txn.get_range(b"b/", b"b0")
    c = await txn.get_range(b"c/", b"c0")
    count = int.from_bytes(await txn.get(b"count") or b"", "little")
    await engine.aclose()
    assert count >= acknowledged
    assert a == [(b"a/%08d" % number, b"%d" % number) for number in range(1, count + 1)]
    assert b == [(b"b/%08d" % number, bytes(number % 3000)) for number in range(1, count + 1)]
    assert c == [(b"c/%08d" % count, b"")]
    return count


@pytest.mark.process
def test_acknowledged_commits_survive(tmp_path: Path) -> None:
    count = 0
    for _ in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.process.test_kv_kill", str(tmp_path / "kv"), str(count + 1)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        acknowledged = count
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged >= count + ACKNOWLEDGED_MIN:
                break
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=30)
        lines = rest.split(b"\n")[:-1]  # the last may be cut off
        acknowledged = int(lines[-1]) if lines else acknowledged
        assert child.returncode == -signal.SIGKILL and acknowledged >= count + ACKNOWLEDGED_MIN
        count = trio.run(check, tmp_path / "kv", acknowledged)


if __name__ == "__main__":
    trio.run(commit_for_ever, Path(sys.argv[1]), int(sys.argv[2]))
