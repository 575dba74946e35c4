"""A real cluster for tests: `fs3 up` in a process of its own on a folder of the disk, with a mount, and ways to hurt it.

Needs root or fusermount3, and /dev/fuse; `why_not()` says what is missing. Nothing survives the `with`: daemons are stopped,
the mount is taken away (by force, if it must be) and, unless the test failed, the folder is removed.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fs3.cli.folder import ClusterConfig, DataFolder
from fs3.cli.supervisor import command
from fs3.cli.up import LEASE_MS
from fuse import guard
from tests.transports import LISTEN

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("programs")

SOAK = bool(os.environ.get("FS3_SOAK"))
"""Whether tests may take long."""

PATIENCE = float(os.environ.get("FS3_TEST_PATIENCE", "1"))
"""By how much everything may take longer: in a machine that is emulated it does."""
COMMAND_TIMEOUT_S = 60.0 * PATIENCE
SERVING_TIMEOUT_S = 60.0 * PATIENCE

EXPECTED_ERRORS = ("is started again",)
"""Parts of ERROR lines in daemons' logs that do not fail a test."""


def why_not() -> str | None:
    """Why no mount can be made here; None where it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse that this user may open"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "not root, and no fusermount3"
    return None


def fs3(
    *arguments: str,
    timeout_s: float = COMMAND_TIMEOUT_S,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs the command line tool to its end; the caller looks at the exit code. environment: added to ours."""
    line = [*prefix, sys.executable, "-m", "fs3.cli.main", *arguments]
    env = {**os.environ, **(environment or {})}
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=REPOSITORY, env=env)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Polls; AssertionError past the time-out."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


class Cluster:
    """One data folder and what runs on it."""

    def __init__(
        self,
        home: Path,
        *,
        storages: int = 3,
        replicas: int = 3,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        lease_ms: int = LEASE_MS,
        prepare: Callable[[Path], None] = lambda data: None,
    ) -> None:
        """settings: lines added to the daemons' configurations, by the names of the daemons. environment: what the daemons
        get besides ours. prepare(data): called once the data folder is made, before anything starts."""
        self.home = home
        self.data = home / "data"
        self.mount = home / "mnt"
        self._shape = ClusterConfig(storages, replicas, listen=LISTEN or "tcp://127.0.0.1")
        self._settings = settings or {}
        self._environment = environment
        self._lease_ms = lease_ms
        self._prepare = prepare
        self._own: dict[str, subprocess.Popen[bytes]] = {}
        self.expected_errors: list[str] = list(EXPECTED_ERRORS)

    def up(self) -> None:
        if not self.data.exists():
            DataFolder(self.data).create(self._shape, self._lease_ms)
            for name, lines in self._settings.items():
                with (self.data / "config" / f"{name}.toml").open("a") as config:
                    config.write(lines + "\n")
            if LISTEN:
                self._go_the_long_way()
            self._prepare(self.data)
        arguments = ("--data", str(self.data), "--mount", str(self.mount), "--detach")
        done = fs3("up", *arguments, environment=self._environment)
        assert done.returncode == 0, f"fs3 up: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}"
        wait_until(lambda: os.path.ismount(self.mount), "the mount", SERVING_TIMEOUT_S)

    def _go_the_long_way(self) -> None:
        """Use the transport that is to be tested, not the short cuts within one host."""
        for name in ("meta", "mount", *[f"storage-{number + 1}" for number in range(self._shape.storages)]):
            with (self.data / "config" / f"{name}.toml").open("a") as config:
                config.write("short_circuit = false\n")

    def down(self) -> None:
        done = fs3("down", "--data", str(self.data))
        assert done.returncode == 0, f"fs3 down: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}"
        assert not os.path.ismount(self.mount), "fs3 down left the mount"
        for process in self._own.values():
            process.terminate()
        for process in self._own.values():
            process.wait(COMMAND_TIMEOUT_S)

    def status(self) -> dict[str, Any] | None:
        """What `fs3 status --json` prints; None while no mgmtd answers."""
        done = fs3("status", "--data", str(self.data), "--json")
        if not done.stdout:
            assert done.returncode != 0 and done.stderr, "fs3 status says nothing"
            return None
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def pids(self) -> dict[str, int]:
        """Of the daemons that live now by their names (mgmtd, meta, storage-1, ..., mount), and of the supervisor ("up")."""
        found: dict[str, int] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if not alive(int(entry.name)):
                continue
            for word in words:
                if word.startswith(f"{self.data}/config/") and word.endswith(".toml"):
                    found[Path(word).stem] = int(entry.name)
        lock = self.data / "run" / "up.lock"
        if lock.exists() and (text := lock.read_text().strip()).isdecimal() and alive(int(text)):
            found["up"] = int(text)
        return found

    def mgmtd(self) -> tuple[str, ...]:
        """The addresses of mgmtd."""
        return DataFolder(self.data).mgmtd()

    def kill(self, name: str) -> int:
        """kill -9 of one daemon; returns the pid that died. The supervisor starts it again."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), f"{name} (pid {pid}) to die", 10)
        return pid

    def keep_down(self, name: str) -> None:
        """kill -9 of one daemon, which is not started again until bring_back()."""
        config = self.data / "config" / f"{name}.toml"
        config.rename(config.with_suffix(".away"))
        self.kill(name)
        if name in self._own:
            self._own.pop(name).wait()
            return
        # The supervisor tries once, finds no configuration, and leaves it.
        self.expected_errors.append(f"{name} (pid ")
        log = self.data / "log" / "up.log"
        given_up = re.compile(rf"{name} .*is not started again")
        wait_until(lambda: given_up.search(log.read_text()) is not None, f"{name} to be given up", 30)

    def bring_back(self, name: str) -> None:
        """Starts a daemon that was kept down; this process looks after it now."""
        config = self.data / "config" / f"{name}.toml"
        config.with_suffix(".away").rename(config)
        (daemon,) = [daemon for daemon in DataFolder(self.data).daemons() if daemon.name == name]
        env = {**os.environ, **(self._environment or {})}
        with daemon.log.open("ab") as log:
            self._own[name] = subprocess.Popen(
                command(daemon.kind, ["--config", str(config)]), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
            )

    def kill_all(self) -> None:
        """kill -9 of everything at once, supervisor and mount included."""
        pids = self.pids()
        # The supervisor first, or it would start again what it sees dying.
        for name in sorted(pids, key=lambda name: name != "up"):
            try:
                os.kill(pids[name], signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_until(lambda: not any(map(alive, pids.values())), "the killed daemons to die", 10)

    def wait_restarted(self, name: str, old_pid: int, timeout_s: float = SERVING_TIMEOUT_S) -> None:
        wait_until(lambda: self.pids().get(name, old_pid) != old_pid, f"{name} to be started again", timeout_s)

    def wait_serving(self, timeout_s: float = SERVING_TIMEOUT_S) -> float:
        """Until every target of every chain serves; returns how many seconds that took."""
        start = time.monotonic()
        while True:
            status = self.status()
            if status is not None and status["serving"]:
                return time.monotonic() - start
            states = [] if status is None else [(target["id"], target["state"]) for target in status["targets"]]
            assert time.monotonic() - start < timeout_s, f"after {timeout_s:.0f} s not all serve: {states}\n{self.logs()}"
            time.sleep(0.2)

    def force_away(self) -> None:
        """Ends all of it without asking, and takes the mount away."""
        for _ in range(3):
            for pid in self.pids().values():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.2)
        if (device := guard.device_of(str(self.mount))) != "":
            guard.abort(str(self.mount), device)  # even where a daemon's thread hangs in the kernel
            tool = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
            subprocess.run([*tool, str(self.mount)], capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)

    def log_files(self) -> list[Path]:
        return sorted(self.data.glob("log/*.log"))

    def logs(self, lines: int = 40) -> str:
        """The end of every daemon's log."""
        parts = []
        for path in self.log_files():
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"--- {path.name}\n" + "\n".join(tail))
        return "\n".join(parts)

    def bad_lines(self) -> list[str]:
        """Lines in the logs that no healthy run has: ERROR, CRITICAL, tracebacks, warnings of Python."""
        marks = (" ERROR ", " CRITICAL ", "Traceback (most recent call last)", " py.warnings: ")
        found = []
        for path in self.log_files():
            bad = [line for line in path.read_text(errors="replace").splitlines() if any(mark in line for mark in marks)]
            found += [f"{path.name}: {line}" for line in bad if not any(part in line for part in self.expected_errors)]
        return found


@contextmanager
def cluster(home: Path | None = None, **shape: Any) -> Iterator[Cluster]:
    """A running cluster; afterwards it is stopped cleanly and its logs must be clean of errors."""
    home = Path(tempfile.mkdtemp(prefix="fs3-test-", dir=home))
    made = Cluster(home, **shape)
    start = time.monotonic()
    try:
        made.up()
        print(f"fs3 up took {time.monotonic() - start:.1f} s")
        yield made
        made.down()
        assert not made.bad_lines(), "the daemons' logs hold errors:\n" + "\n".join(made.bad_lines()[:20])
    except BaseException:
        print(f"the cluster was in {home}\n{made.logs()}")
        raise
    finally:
        made.force_away()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def watchdog(made: Cluster, limit_s: float) -> Iterator[None]:
    """Kills the cluster when the block takes too long, so that a call that hangs in the mount ends with an error."""
    timer = threading.Timer(limit_s, made.force_away)
    timer.daemon = True
    start = time.monotonic()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        took_s = time.monotonic() - start
    assert took_s < limit_s, f"took more than {limit_s:.0f} s, the cluster was killed"


def run(*command: str | Path, cwd: Path | None = None, timeout_s: float = 300, env: dict[str, str] | None = None) -> str:
    """Runs a program that must succeed, and returns its standard output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def needs_program(name: str) -> str:
    """The program's path; the test is skipped where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no program {name!r} here")
    return found


def own_mounts(script: str) -> list[str]:
    """The beginning of a command that runs in a mount namespace of its own, after `script` changed the mounts there."""
    tool = needs_program("unshare")
    if subprocess.run([tool, "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace can be made here: not root, or in a chroot that is no mount point")
    return [tool, "--mount", "sh", "-c", f'{script} && exec "$@"', "sh"]


def needs_module(name: str) -> ModuleType:
    """The imported module; the test is skipped where it is missing, and fails where it is broken."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name.partition(".")[0]:
            raise
        pytest.skip(f"no module {name!r} here")
