"""The data folder of a cluster that `fs3 up` runs on one machine.

FORMAT              version of this layout
config/cluster.toml what was chosen when the cluster was made
config/NAME.toml    one per daemon, made once; then yours to edit
NAME/               a daemon's data
log/NAME.log        a daemon's log
run/up.lock         held by the running supervisor
run/up.json         who runs: pids, addresses, the mount
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import load, option, read_toml, to_toml
from ..errors import Code, ConfigError, FS3Error
from ..layout import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, valid_chunk_size

FORMAT_VERSION = 1

# Below the range from which Linux gives ports to outgoing connections, so that nobody takes a port between two runs.
_PORT_MIN, _PORT_MAX = 20_000, 30_000

MGMTD_NODE = 1
META_NODE = 11
STORAGE_NODE_FIRST = 101


@dataclass(frozen=True)
class ClusterConfig:
    """config/cluster.toml."""

    storages: int = option(3, help="how many storage daemons", at_least=1, at_most=64)
    replicas: int = option(3, help="on how many of them each chunk is kept", at_least=1, at_most=16)
    chunk_size: int = option(1 << 20, help="of new files", unit="bytes", at_least=CHUNK_SIZE_MIN, at_most=CHUNK_SIZE_MAX)

    listen: str = option("tcp://127.0.0.1", help="scheme and host of the daemons' addresses, such as rdma://10.0.0.1")

    def __post_init__(self) -> None:
        scheme, _, host = self.listen.partition("://")
        if scheme not in ("tcp", "rdma") or not host or "/" in host:
            raise ValueError(f"key 'listen': expected tcp://HOST or rdma://HOST, found {self.listen!r} (--listen)")
        if self.replicas > self.storages:
            raise ValueError(
                f"{self.replicas} replicas need at least {self.replicas} storage daemons, there are {self.storages}"
                " (--replicas, --storages)"
            )
        if not valid_chunk_size(self.chunk_size):
            raise ValueError(f"key 'chunk_size': expected a power of two, found {self.chunk_size}")

    @property
    def host(self) -> str:
        """Of `listen`, without the brackets of an IPv6 address."""
        return self.listen.partition("://")[2].strip("[]")


@dataclass(frozen=True, slots=True)
class Daemon:
    """One process of the cluster. address: empty for the mount."""

    name: str
    kind: str
    config: Path
    log: Path
    address: str


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Paths and contents of one data folder; `path` is absolute."""

    path: Path

    @property
    def format_file(self) -> Path:
        return self.path / "FORMAT"

    @property
    def config(self) -> Path:
        return self.path / "config"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def state_file(self) -> Path:
        return self.path / "run" / "up.json"

    def exists(self) -> bool:
        """Whether a cluster lives here. Raises FS3Error where something else does, or a newer version's cluster."""
        try:
            text = self.format_file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return self._must_be_free()
        except OSError as error:
            raise ConfigError(f"{self.format_file}: cannot be read: {error.strerror}") from None
        if not text.isdecimal():
            raise ConfigError(f"{self.format_file}: expected a format version, found {text[:40]!r}")
        if int(text) > FORMAT_VERSION:
            raise FS3Error(
                Code.FORMAT_VERSION,
                f"{self.path}: data of format {text}, this program knows up to {FORMAT_VERSION}; use a newer fs3",
            )
        return True

    def _must_be_free(self) -> bool:
        try:
            strangers = sorted(set(os.listdir(self.path)) - {"config", "log", "run"})
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be used as the data folder: {error.strerror}") from None
        if strangers:
            raise ConfigError(f"{self.path}: expected fs3 data or an empty folder, it holds '{strangers[0]}'")
        return False

    def cluster(self) -> ClusterConfig:
        """What was chosen when the cluster was made."""
        return load(ClusterConfig, self.config / "cluster.toml", {})

    def create(self, cluster: ClusterConfig, lease_ms: int) -> None:
        """Make the folder and all configuration. The FORMAT file comes last: without it nothing was made."""
        try:
            for folder in (self.path, self.config, self.log, self.path / "run"):
                folder.mkdir(parents=True, exist_ok=True)
            settings = daemon_settings(self.path, cluster, lease_ms, free_ports(2 + cluster.storages, cluster.host))
            settings["cluster"] = dataclasses.asdict(cluster)
            for name, values in settings.items():
                text = f"# {name}: made by `fs3 up`. Edit it as you like and start again.\n" + to_toml(values)
                (self.config / f"{name}.toml").write_text(text, encoding="utf-8")
            self.format_file.write_text(f"{FORMAT_VERSION}\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{error.filename or self.path}: cannot be written: {error.strerror}") from None

    def check_writable(self) -> None:
        """Raises ConfigError where this user cannot write here."""
        present = self.path
        while not present.exists():
            present = present.parent
        if not present.is_dir():
            raise ConfigError(f"{present}: expected a folder")
        if not os.access(present, os.W_OK | os.X_OK):
            raise ConfigError(f"{present}: may not be written by this user")

    def daemons(self) -> list[Daemon]:
        """All daemons but the mount, in the order in which they start."""
        found = []
        for path in sorted(self.config.glob("*.toml")):
            kind, _, number = path.stem.partition("-")
            if path.stem in ("mgmtd", "meta") or (kind == "storage" and number.isdecimal()):
                address = read_toml(path).get("listen")
                if not isinstance(address, str):
                    raise ConfigError(f"{path}: key 'listen': expected an address such as tcp://127.0.0.1:20000")
                found.append(Daemon(path.stem, kind, path, self.log / f"{path.stem}.log", address))
        order = {"mgmtd": 0, "storage": 1, "meta": 2}
        return sorted(found, key=lambda daemon: (order[daemon.kind], len(daemon.name), daemon.name))

    def mount_daemon(self) -> Daemon:
        return Daemon("mount", "mount", self.config / "mount.toml", self.log / "mount.log", "")

    def mgmtd(self) -> tuple[str, ...]:
        """The addresses of the management daemons."""
        return tuple(daemon.address for daemon in self.daemons() if daemon.kind == "mgmtd")

    def state(self) -> dict[str, Any] | None:
        """What the supervisor last wrote of itself; None where none ran, or where it stopped cleanly."""
        try:
            read = json.loads(self.state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return read if isinstance(read, dict) else None

    def write_state(self, state: dict[str, Any]) -> None:
        fresh = self.state_file.with_suffix(".new")
        fresh.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.state_file)

    def running_pid(self) -> int | None:
        """The supervisor that holds this folder; None where nobody does."""
        try:
            with open(self.path / "run" / "up.lock", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = file.read().strip()
                    return int(text) if text.isdecimal() else 0
        except OSError:
            return None
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder as its only supervisor. Raises FS3Error(BUSY)."""
        path = self.path / "run" / "up.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 closed by the `with` below, errors told apart here
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                pid = file.read().strip() or "unknown"
                text = f"{self.path}: `fs3 up` runs here already (pid {pid}); stop it by `fs3 down`"
                raise FS3Error(Code.BUSY, text) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
            file.truncate(0)


def daemon_settings(data: Path, cluster: ClusterConfig, lease_ms: int, ports: list[int]) -> dict[str, dict[str, Any]]:
    """The configuration of each daemon by its name."""
    addresses = [f"{cluster.listen}:{port}" for port in ports]
    mgmtd = [addresses[0]]
    settings: dict[str, dict[str, Any]] = {
        "mgmtd": {"node_id": MGMTD_NODE, "listen": addresses[0], "data": str(data / "mgmtd"), "lease_ms": lease_ms},
        "meta": {
            "node_id": META_NODE,
            "listen": addresses[1],
            "data": str(data / "meta"),
            "mgmtd": mgmtd,
            "root_uid": os.geteuid(),
            "root_gid": os.getegid(),
        },
        # Users other than root may share a mount only where /etc/fuse.conf allows it.
        "mount": {"mgmtd": mgmtd, "allow_other": os.geteuid() == 0, "state": str(data / "run" / "mount.state")},
    }
    for number in range(cluster.storages):
        name = f"storage-{number + 1}"
        settings[name] = {
            "node_id": STORAGE_NODE_FIRST + number,
            "listen": addresses[2 + number],
            "data": [str(data / name)],
            "mgmtd": mgmtd,
        }
    return settings


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """TCP ports that nobody uses there now."""
    found: list[int] = []
    start = random.randrange(_PORT_MIN, _PORT_MAX)
    for step in range(_PORT_MAX - _PORT_MIN):
        port = _PORT_MIN + (start + step - _PORT_MIN) % (_PORT_MAX - _PORT_MIN)
        if port_free(host, port):
            found.append(port)
            if len(found) == count:
                return found
    raise FS3Error(Code.IO, f"no {count} free ports between {_PORT_MIN} and {_PORT_MAX} on {host}")


def port_free(host: str, port: int) -> bool:
    """Whether one can listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def check_ports(daemons: list[Daemon]) -> None:
    """Raises ConfigError where another program listens on a daemon's address."""
    for daemon in daemons:
        scheme, _, rest = daemon.address.partition("://")
        host, _, port = rest.rpartition(":")
        if scheme not in ("tcp", "rdma") or not port.isdecimal():
            raise ConfigError(f"{daemon.config}: key 'listen': expected an address such as tcp://127.0.0.1:20000")
        if not port_free(host.strip("[]"), int(port)):
            raise ConfigError(f"{daemon.config}: key 'listen': port {port} on {host} is taken by another program")
