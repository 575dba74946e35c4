"""MooseFS and GlusterFS with three copies on this machine, from the distribution's packages, below one folder.

Debian: apt-get install moosefs-master moosefs-chunkserver moosefs-client glusterfs-server glusterfs-client
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from systems import START_TIMEOUT_S, BenchError, run, wait_until

COPIES = 3


def needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise BenchError(f"no {program} found (Debian: apt-get install {package})")
    return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class MooseFs:
    """One master, three chunk servers, goal 3, and its own defaults for the rest."""

    def __init__(self) -> None:
        self.name = "moosefs"
        self._home: Path | None = None
        self._mount: Path | None = None
        self._daemons: list[list[str]] = []

    def start(self, home: Path) -> Path:
        master = needed("mfsmaster", "moosefs-master")
        server = needed("mfschunkserver", "moosefs-chunkserver")
        mount = needed("mfsmount", "moosefs-client")
        self._home = home
        to_client, to_server, to_logger, *serving = free_ports(3 + COPIES)
        config = self._master(home, to_client, to_server, to_logger)
        self._begin([master, "-c", str(config)])
        for index, port in enumerate(serving):
            self._begin([server, "-c", str(self._chunkserver(home, index, port, to_server))])
        self._mount = home / "mnt"
        self._mount.mkdir()
        run([mount, "-H", address(), "-P", str(to_client), str(self._mount)])
        wait_until(lambda: os.path.ismount(str(self._mount)), "the mount of MooseFS", START_TIMEOUT_S)
        wait_until(lambda: shutil.disk_usage(str(self._mount)).total > 0, "the chunk servers of MooseFS", START_TIMEOUT_S)
        run(["mfssetgoal", "-r", str(COPIES), str(self._mount)])
        return self._mount

    def _begin(self, command: list[str]) -> None:
        self._daemons.append(command)
        run([*command, "start"])

    @staticmethod
    def _master(home: Path, to_client: int, to_server: int, to_logger: int) -> Path:
        data = home / "master"
        data.mkdir()
        shutil.copy("/var/lib/mfs/metadata.mfs.empty", data / "metadata.mfs")
        (home / "exports.cfg").write_text("* / rw,alldirs,admin,maproot=0\n* . rw\n")
        (home / "topology.cfg").write_text("")
        config = home / "master.cfg"
        config.write_text(
            f"WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {data}\nEXPORTS_FILENAME = {home}/exports.cfg\n"
            f"TOPOLOGY_FILENAME = {home}/topology.cfg\nMATOCL_LISTEN_PORT = {to_client}\n"
            f"MATOCS_LISTEN_PORT = {to_server}\nMATOML_LISTEN_PORT = {to_logger}\n"
        )
        return config

    @staticmethod
    def _chunkserver(home: Path, index: int, port: int, to_master: int) -> Path:
        data, disk = home / f"server{index}", home / f"disk{index}"
        data.mkdir()
        disk.mkdir()
        (home / f"hdd{index}.cfg").write_text(f"{disk}\n")
        config = home / f"server{index}.cfg"
        config.write_text(
            f"WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {data}\nHDD_CONF_FILENAME = {home}/hdd{index}.cfg\n"
            f"MASTER_HOST = {address()}\nMASTER_PORT = {to_master}\nCSSERV_LISTEN_PORT = {port}\n"
            "HDD_LEAVE_SPACE_DEFAULT = 1GiB\n"
        )
        return config

    def stop(self) -> None:
        if self._mount is not None and os.path.ismount(self._mount):
            run(["umount", str(self._mount)])
        self._mount = None
        for command in reversed(self._daemons):
            run([*command, "stop"])
        self._daemons.clear()

    def marks(self) -> tuple[str, ...]:
        return () if self._home is None else (str(self._home),)


class GlusterFs:
    """One glusterd, a replicated volume of three bricks, and its own defaults for the rest."""

    def __init__(self) -> None:
        self.name = "glusterfs"
        self._home: Path | None = None
        self._mount: Path | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self, home: Path) -> Path:
        daemon = needed("glusterd", "glusterfs-server")
        self._home = home
        (home / "state").mkdir()
        (home / "glusterd.vol").write_text(
            f"volume management\n    type mgmt/glusterd\n    option working-directory {home}/state\n"
            f"    option run-directory {home}/run\n    option transport-type socket\n"
            f"    option glusterd-sockfile {home}/gd.sock\nend-volume\n"
        )
        (home / "run").mkdir()
        options = ["-N", "-f", f"{home}/glusterd.vol", "-l", f"{home}/glusterd.log", "-p", f"{home}/glusterd.pid"]
        self._daemon = subprocess.Popen([daemon, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until((home / "gd.sock").exists, "glusterd to listen", START_TIMEOUT_S)
        host = address()
        bricks = [f"{host}:{home}/brick{index}" for index in range(COPIES)]
        self._gluster("volume", "create", "bench", "replica", str(COPIES), *bricks, "force")
        self._gluster("volume", "start", "bench")
        self._mount = home / "mnt"
        self._mount.mkdir()
        client = needed("glusterfs", "glusterfs-client")
        where = [f"--volfile-server={host}", "--volfile-id=bench", f"--log-file={home}/client.log"]
        run([client, *where, str(self._mount)])
        wait_until(lambda: os.path.ismount(str(self._mount)), "the mount of GlusterFS", START_TIMEOUT_S)
        return self._mount

    def _gluster(self, *words: str) -> None:
        assert self._home is not None
        run(["gluster", "--mode=script", f"--glusterd-sock={self._home}/gd.sock", *words])

    def stop(self) -> None:
        if self._mount is not None and os.path.ismount(self._mount):
            run(["umount", str(self._mount)])
        self._mount = None
        if self._daemon is not None:
            try:
                self._gluster("volume", "stop", "bench", "force")
            finally:
                self._daemon.terminate()
                self._daemon.wait(START_TIMEOUT_S)
                self._daemon = None

    def marks(self) -> tuple[str, ...]:
        return () if self._home is None else (str(self._home),)


def address() -> str:
    """An address of this host other than a loopback one, which both want."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        found: str = probe.getsockname()[0]
    return found
