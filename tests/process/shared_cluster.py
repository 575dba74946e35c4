"""A real cluster with several mgmtd and meta daemons, over one store that they share (shared_store.py).

Each daemon is a process that the tests start, stop, kill and freeze one by one; nobody starts again what dies. Nothing
survives the `with`; the logs must be clean of errors afterwards, and no daemon may have ended by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from fs3.api.common import Empty
from fs3.api.mgmtd import CLUSTER_CONFIG
from fs3.cli.access import visiting
from fs3.cli.folder import free_ports
from fs3.cli.mounts import unmount
from fs3.cli.supervisor import command
from fs3.config import to_toml
from fs3.errors import FS3Error
from tests.process.harness import REPOSITORY, fs3, wait_until

READY = " ready: "
START_TIMEOUT_S = 60.0
BAD = (" ERROR ", " CRITICAL ", "Traceback (most recent call last)", " py.warnings: ")


class SharedCluster:
    """Daemons by their names: store, mgmtd-1..., storage-1..., meta-1..., mount."""

    def __init__(
        self,
        home: Path,
        *,
        mgmtds: int = 3,
        metas: int = 2,
        storages: int = 2,
        replicas: int = 2,
        lease_ms: int = 4_000,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """settings: keys of configurations by the kinds of daemons, besides those that the cluster needs."""
        self.home = home
        self.lease_ms = lease_ms
        self.replicas = replicas
        self.mount = home / "mnt"
        self.expected_errors: list[str] = []
        self._socket = home / "store.socket"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        ports = iter(free_ports(mgmtds + metas + storages))
        own = settings or {}
        self.addresses = {f"mgmtd-{n}": f"tcp://127.0.0.1:{next(ports)}" for n in range(1, mgmtds + 1)}
        self._configs: dict[str, dict[str, Any]] = {}
        for number, (name, address) in enumerate(self.addresses.items(), 1):
            self._configs[name] = {"node_id": number, "listen": address, "lease_ms": lease_ms, **own.get("mgmtd", {})}
        common = {"mgmtd": list(self.addresses.values())}
        for number in range(1, storages + 1):
            listen, data = f"tcp://127.0.0.1:{next(ports)}", [str(home / f"storage-{number}")]
            config = {"node_id": 100 + number, "listen": listen, "data": data, "targets_per_disk": 2, **common}
            self._configs[f"storage-{number}"] = {**config, **own.get("storage", {})}
        for number in range(1, metas + 1):
            listen = f"tcp://127.0.0.1:{next(ports)}"
            config = {"node_id": 10 + number, "listen": listen, "root_uid": os.geteuid(), "root_gid": os.getegid(), **common}
            self._configs[f"meta-{number}"] = {**config, **own.get("meta", {})}
        mount = {"mount": str(self.mount), "allow_other": os.geteuid() == 0, **common}
        self._configs["mount"] = {**mount, **own.get("mount", {})}

    @property
    def mgmtd(self) -> tuple[str, ...]:
        """The addresses of all mgmtd daemons."""
        return tuple(self.addresses.values())

    def names(self, kind: str) -> list[str]:
        return [name for name in self._configs if name.partition("-")[0] == kind]

    def up(self, *, mount: bool = False) -> None:
        """Start and format it; ready when it works."""
        words = [sys.executable, "-m", "tests.process.programs.store_server", str(self.home / "kv"), str(self._socket)]
        self._spawn("store", words)
        wait_until(self._socket.exists, "the store", START_TIMEOUT_S)
        first = [*self.names("mgmtd"), *self.names("storage")]
        self.start(*first)
        storages = len(self.names("storage"))
        done = fs3("format", "--mgmtd", ",".join(self.mgmtd), "--storages", str(storages), "--replicas", str(self.replicas))
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.logs()}"
        self.start(*self.names("meta"))
        if mount:
            self.mount.mkdir()
            self.start("mount")

    def start(self, *names: str) -> None:
        """Start daemons; returns when all of them say that they are ready."""
        seen = {name: self.log(name).count(READY) for name in names}
        for name in names:
            kind = name.partition("-")[0]
            config = self.home / f"{name}.toml"
            config.write_text(to_toml(self._configs[name]), encoding="utf-8")
            arguments = ["--config", str(config)]
            if kind in ("mgmtd", "meta"):
                words = [sys.executable, "-m", "tests.process.programs.shared_daemon", kind, str(self._socket), *arguments]
            else:
                words = command(kind, arguments)
            self._spawn(name, words)
        for name in names:
            wait_until(lambda name=name: self._ready(name, seen[name]), f"{name} to be ready", START_TIMEOUT_S)

    def _ready(self, name: str, seen: int) -> bool:
        assert self._running[name].poll() is None, f"{name} has ended\n{self.log(name)[-3000:]}"
        return self.log(name).count(READY) > seen

    def _spawn(self, name: str, words: list[str]) -> None:
        assert name not in self._running, f"{name} runs already"
        with open(self.home / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """kill -9."""
        self._end(name, signal.SIGKILL)

    def stop(self, name: str) -> None:
        """SIGTERM, and wait for its end."""
        self._end(name, signal.SIGTERM)

    def _end(self, name: str, number: signal.Signals) -> None:
        process = self._running.pop(name)
        process.send_signal(number)
        process.wait(START_TIMEOUT_S)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self._running[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self._running[name].send_signal(signal.SIGCONT)

    def primary(self) -> str | None:
        """The name of the mgmtd that says it is primary; None where none does now."""
        found = trio.run(self._primaries)
        assert len(found) <= 1, f"several are primary: {found}"
        return found[0] if found else None

    async def _primaries(self) -> list[str]:
        found: list[str] = []

        async def ask(name: str, address: str) -> None:
            try:
                await rpc.call(address, CLUSTER_CONFIG, Empty(), deadline=env.monotonic() + 0.5)
            except FS3Error:
                return
            found.append(name)

        async with visiting() as (env, rpc), trio.open_nursery() as nursery:
            for name, address in self.addresses.items():
                nursery.start_soon(ask, name, address)
        return found

    def wait_primary(self, timeout_s: float = START_TIMEOUT_S) -> str:
        end = time.monotonic() + timeout_s
        while (name := self.primary()) is None:
            assert time.monotonic() < end, f"nobody is primary\n{self.logs()}"
        return name

    def ended(self) -> list[str]:
        """Daemons that have ended by themselves."""
        return [name for name, process in self._running.items() if process.poll() is not None]

    def down(self) -> None:
        """Stop all that runs, in order; none may have ended before."""
        assert not self.ended(), f"ended by themselves: {self.ended()}\n{self.logs()}"
        for kind in ("mount", "meta", "storage", "mgmtd", "store"):
            names = [name for name in self._running if name.partition("-")[0] == kind]
            for name in names:
                self._running[name].send_signal(signal.SIGTERM)
            for name in names:
                code = self._running.pop(name).wait(START_TIMEOUT_S)
                assert code == 0, f"{name}: exit {code}\n{self.log(name)[-3000:]}"

    def force_away(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
        if os.path.ismount(self.mount):
            unmount(self.mount, lazy=True)

    def log(self, name: str) -> str:
        path = self.home / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def logs(self, lines: int = 30) -> str:
        """The end of every daemon's log."""
        return "\n".join(
            [f"--- {path.stem}\n" + "\n".join(self.log(path.stem).splitlines()[-lines:]) for path in self.home.glob("*.log")]
        )

    def bad_lines(self) -> list[str]:
        """Lines that no healthy run has."""
        lines = [f"{path.stem}: {line}" for path in self.home.glob("*.log") for line in self.log(path.stem).splitlines()]
        bad = [line for line in lines if any(mark in line for mark in BAD)]
        return [line for line in bad if not any(part in line for part in self.expected_errors)]


@contextmanager
def shared_cluster(*, mount: bool = False, **shape: Any) -> Iterator[SharedCluster]:
    """A running cluster of this shape (SharedCluster's arguments)."""
    with tempfile.TemporaryDirectory(prefix="fs3-shared-", ignore_cleanup_errors=True) as home:
        made = SharedCluster(Path(home), **shape)
        try:
            made.up(mount=mount)
            yield made
            made.down()
            assert not made.bad_lines(), "the logs hold errors:\n" + "\n".join(made.bad_lines()[:20])
        except BaseException:
            print(made.logs())
            raise
        finally:
            made.force_away()
