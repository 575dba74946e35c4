"""The processes of `fs3 bench`, and what they bring back."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ...errors import Code, FS3Error
from .worker import Job

START_S = 0.1
"""From the order to the beginning of a job, so that all begin at once."""
END_S = 5.0
"""A worker that does not end when told, as one that waits for a file system that hangs, is left alone after this."""
_PIECE = 65536


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all workers did together. seconds: from the first beginning to the last end. buckets: as fs3.metrics has them."""

    seconds: float
    units: int
    bytes: int
    total_ns: int
    buckets: dict[int, int]


class Crew:
    """Workers, each a process of its own. Ctrl-C does not reach them: who asked them ends them."""

    def __init__(self, count: int) -> None:
        line = [sys.executable, "-m", "fs3.cli.bench.worker"]
        self._workers: list[subprocess.Popen[bytes]] = []
        self._rest: list[bytearray] = [bytearray() for _ in range(count)]
        self._selector = selectors.DefaultSelector()
        for number in range(count):
            worker = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            self._workers.append(worker)
            assert worker.stdout is not None
            self._selector.register(worker.stdout, selectors.EVENT_READ, number)

    def __enter__(self) -> Crew:
        try:
            self._gather("ready", lambda number, row: None)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def run(self, jobs: Sequence[Job], progress: Callable[[int], None]) -> Outcome:
        """Have each worker do its job. progress: told how many units all have done. Raises FS3Error(IO, CHECKSUM)."""
        start_at = time.monotonic() + START_S
        for worker, job in zip(self._workers, jobs, strict=True):
            assert worker.stdin is not None
            try:
                worker.stdin.write(json.dumps(dataclasses.asdict(job) | {"start_at": start_at}).encode() + b"\n")
                worker.stdin.flush()
            except BrokenPipeError:
                raise FS3Error(Code.IO, "a worker process has ended") from None
        done = [0] * len(jobs)

        def told(number: int, row: dict[str, Any]) -> None:
            done[number] = row["done"]
            progress(sum(done))

        return merged(self._gather("result", told))

    def _gather(self, key: str, told: Callable[[int, dict[str, Any]], None]) -> list[Any]:
        """Of each worker the row with this key."""
        found: dict[int, Any] = {}
        while len(found) < len(self._workers):
            for event, _ in self._selector.select():
                number: int = event.data
                more = os.read(event.fd, _PIECE)
                if not more:
                    raise FS3Error(Code.IO, f"worker process {number} has ended")
                *lines, rest = (self._rest[number] + more).split(b"\n")
                self._rest[number] = rest
                for line in lines:
                    row = json.loads(line)
                    if "error" in row:
                        raise FS3Error(Code.CHECKSUM if row.get("wrong") else Code.IO, row["error"])
                    if key in row:
                        found[number] = row[key]
                    else:
                        told(number, row)
        return [found[number] for number in sorted(found)]

    def end(self) -> None:
        """End them, whatever they do."""
        for worker in self._workers:
            worker.kill()
        end = time.monotonic() + END_S
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, end - time.monotonic()))
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        self._selector.close()


def merged(results: Sequence[dict[str, Any]]) -> Outcome:
    """Join what the workers told."""
    buckets: dict[int, int] = {}
    for result in results:
        for bucket, count in result["buckets"].items():
            buckets[int(bucket)] = buckets.get(int(bucket), 0) + count
    return Outcome(
        max(max([result["ended"] for result in results]) - min([result["began"] for result in results]), 1e-9),
        sum([result["units"] for result in results]),
        sum([result["bytes"] for result in results]),
        sum([result["total_ns"] for result in results]),
        buckets,
    )
