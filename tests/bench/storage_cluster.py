"""A cluster of processes on loopback for the storage benchmarks: all daemons, and a process that loads them.

The programs come from any checkout, so that two of them can be measured side by side; the load is always the one that
stands beside this file.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
_START_S = 60.0
MIB = 1024 * 1024
FIRST_NODE = 101
"""Id of the first storage daemon; the others follow."""


@dataclass(frozen=True)
class Slice:
    """What one row did in one slice of time. client_s, server_s: CPU seconds of the load and of all storage daemons."""

    count: int
    bytes: int
    seconds: float
    client_s: float
    server_s: float
    latencies_ms: tuple[float, float]
    """Median and 99th percentile of single operations."""


class Cluster:
    """One cluster in a folder of its own. Leaving the context ends its processes and removes the folder."""

    def __init__(
        self, checkout: Path, folder: Path, replicas: int, targets: int, options: Sequence[str] = (), lease_ms: int = 10_000
    ) -> None:
        self.folder = folder
        self.replicas = replicas
        self.storage: dict[int, subprocess.Popen[bytes]] = {}
        self._checkout = checkout
        self._targets = targets
        self._options = options
        self._lease_ms = lease_ms
        self._others: list[subprocess.Popen[bytes]] = []
        self._loads: list[Load] = []
        self.address = f"tcp://127.0.0.1:{_free_port()}"

    def __enter__(self) -> Cluster:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            flags = [f"--listen={self.address}", f"--data={self.folder}/mgmtd", f"--lease-ms={self._lease_ms}"]
            self._others.append(self._start("mgmtd", *flags))
            self._others.append(
                self._start("meta", "--listen=tcp://127.0.0.1:0", f"--mgmtd={self.address}", f"--data={self.folder}/meta")
            )
            for node in range(FIRST_NODE, FIRST_NODE + self.replicas):
                self.start_storage(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_storage(self, node: int) -> None:
        flags = [f"--node-id={node}", f"--mgmtd={self.address}", f"--data={self.folder}/storage{node}"]
        flags += [f"--targets-per-disk={self._targets}", *self._options]
        self.storage[node] = self._start("storage", *flags)

    def wipe_storage(self, node: int) -> None:
        """Kill a storage daemon and remove its data."""
        process = self.storage.pop(node)
        process.kill()
        process.wait()
        shutil.rmtree(self.folder / f"storage{node}")

    def load(self, mib: int) -> Load:
        """A process that loads this cluster, with a file of so many MiB to work on."""
        pids = [str(process.pid) for process in self.storage.values()]
        command = [sys.executable, str(HERE / "storage_load.py"), self.address, str(self.replicas), str(mib), *pids]
        load = Load(command, self._environment(), self.folder / f"load{len(self._loads)}.log")
        self._loads.append(load)
        return load

    def _start(self, daemon: str, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"{daemon}.daemon", *flags]
        with (self.folder / f"{daemon}-{len(self.storage)}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self._checkout, env=self._environment())

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self._checkout)}

    def __exit__(self, *_: object) -> None:
        for load in self._loads:
            load.close()
        processes = [*self.storage.values(), *self._others]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Load:
    """A running storage_load.py."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        self._receive()

    def run(self, row: str, seconds: float) -> Slice:
        """Run a row for so long."""
        found = self._ask(f"{row} {seconds}")
        return Slice(**{**found, "latencies_ms": tuple(found["latencies_ms"])})

    def states(self) -> dict[int, list[str]]:
        """The public states of each node's targets."""
        return {int(node): states for node, states in self._ask("states 0")["nodes"].items()}

    def fill(self) -> None:
        """Write the whole file."""
        self._ask("fill 0")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the load ended:\n{self._log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, holds: Callable[[], bool], limit_s: float = _START_S) -> float:
    """Poll until holds() is true; returns how many seconds that took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > limit_s:
            raise SystemExit(f"{what}: not within {limit_s:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - began
