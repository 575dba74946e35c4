"""`fs3 up` and `fs3 down`: a whole cluster on this machine, as processes on loopback."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ..client.mgmtd import MgmtdClient
from ..daemon import version
from ..errors import Code, ConfigError, FS3Error
from .access import answers, visiting
from .folder import ClusterConfig, DataFolder, check_ports
from .formatting import formatted, make_table, registered
from .mounts import FILE_SYSTEM_TYPE, check_mount_point, is_stale, mount_at, prepare_mount_point, unmount
from .supervisor import Supervised, Supervisor, check_config, process_alive

READY_TIMEOUT_S = 180.0
"""How long one step of the start may take."""

LEASE_MS = 6_000
"""Of a cluster made by `fs3 up`: short, so that a daemon that hangs is noticed soon, but such that mgmtd has time to be
started again before anybody gives up, which is after half of it. A daemon that dies is noticed at once, by its return."""

_POLL_S = 0.1
_STOP_GRACE_S = {"mount": 15.0, "meta": 10.0, "storage": 15.0, "mgmtd": 10.0}
_DOWN_GRACE_S = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `fs3 up` was asked for. chosen: settings given on the command line, by the keys of ClusterConfig."""

    folder: DataFolder
    mount: Path | None
    chosen: Mapping[str, Any]


def preflight(plan: Plan) -> None:
    """Find out what would go wrong, before anything is touched. Raises FS3Error."""
    folder = plan.folder
    if folder.exists():
        cluster = folder.cluster()
        for key, value in plan.chosen.items():
            present = getattr(cluster, key)
            if present != value:
                raise ConfigError(
                    f"{folder.path}: this cluster was made with {key} = {present}, which cannot be changed to {value} here;"
                    " leave the flag out, or choose another --data"
                )
    else:
        new_cluster(plan.chosen)
    folder.check_writable()
    pid = folder.running_pid()
    if pid is not None:
        raise FS3Error(Code.BUSY, f"{folder.path}: `fs3 up` runs here already (pid {pid}); stop it by `fs3 down`")
    if plan.mount is not None:
        if plan.mount == folder.path or folder.path in plan.mount.parents or plan.mount in folder.path.parents:
            raise ConfigError(f"{plan.mount}: the mount point and the data folder must not contain each other")
        check_mount_point(plan.mount)


def new_cluster(chosen: Mapping[str, Any]) -> ClusterConfig:
    """The configuration of a cluster that is to be made. Raises ConfigError."""
    defaults = ClusterConfig()
    storages = chosen.get("storages", defaults.storages)
    if storages < 1:
        raise ConfigError("--storages: expected at least 1")
    replicas = chosen.get("replicas", defaults.replicas)
    if replicas < 1:
        raise ConfigError("--replicas: expected at least 1")
    try:
        return ClusterConfig(
            storages, replicas, chosen.get("chunk_size", defaults.chunk_size), chosen.get("listen", defaults.listen)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def run(plan: Plan, say: Say, ready: Callable[[list[Supervised]], None]) -> None:
    """Bring the cluster up, look after it until a signal comes, stop it. ready(entries) is called once it all works."""
    preflight(plan)
    with plan.folder.locked():
        if not plan.folder.exists():
            plan.folder.create(new_cluster(plan.chosen), LEASE_MS)
        check_configs(plan.folder)
        check_ports(plan.folder.daemons())
        trio.run(_session, plan, say, ready)


def check_configs(folder: DataFolder) -> None:
    """Let every daemon read its configuration before any of them is started. Raises ConfigError."""
    daemons = [*folder.daemons(), folder.mount_daemon()]
    digest = hashlib.sha256(version().encode() + b"".join(daemon.config.read_bytes() for daemon in daemons)).hexdigest()
    passed = folder.path / "run" / "checked"
    if passed.exists() and passed.read_text(encoding="utf-8") == digest:
        return
    for daemon, process in [(daemon, check_config(daemon)) for daemon in daemons]:
        try:
            words = process.communicate(timeout=READY_TIMEOUT_S)[1].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            process.kill()
            raise ConfigError(f"{daemon.name} did not read {daemon.config} within {READY_TIMEOUT_S:.0f} s") from None
        if process.returncode:
            raise ConfigError(words.splitlines()[-1] if words else f"{daemon.config}: {daemon.name} cannot read it")
    passed.write_text(digest, encoding="utf-8")


async def _session(plan: Plan, say: Say, ready: Callable[[list[Supervised]], None]) -> None:
    session = _Session(plan, say)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as watchers:
            supervisor = session.supervisor = Supervisor(watchers, say, session.write_state)
            try:
                async with trio.open_nursery() as body:
                    body.start_soon(_stop_at_signal, signals, body.cancel_scope)
                    await session.bring_up()
                    supervisor.settled = True
                    ready(supervisor.entries)
                    await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await session.stop_all()
                watchers.cancel_scope.cancel()


async def _stop_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
        return


class _Session:
    """One run of `fs3 up`."""

    supervisor: Supervisor

    def __init__(self, plan: Plan, say: Say) -> None:
        self._plan = plan
        self._say = say
        self._started_at = time.time()

    async def bring_up(self) -> None:
        """Start everything in order; each step waits until the one before works."""
        folder = self._plan.folder
        daemons = folder.daemons()
        async with visiting() as (env, rpc):
            for daemon in daemons:
                if daemon.kind == "mgmtd":
                    self.supervisor.start(daemon)
            for daemon in daemons:
                if daemon.kind == "mgmtd":
                    await self._until(f"{daemon.name} answers", partial(answers, env, rpc, daemon.address))
            for daemon in daemons:
                if daemon.kind != "mgmtd":
                    self.supervisor.start(daemon)
            mgmtd = MgmtdClient(env, rpc, folder.mgmtd())
            await self._format(mgmtd, sum(daemon.kind == "storage" for daemon in daemons))
            await self._until("every chain serves", lambda: self._chains_serve(mgmtd))
            for daemon in daemons:
                if daemon.kind == "meta":
                    await self._until(f"{daemon.name} answers", partial(answers, env, rpc, daemon.address))
        if self._plan.mount is not None:
            await self._mount(self._plan.mount)

    async def _format(self, mgmtd: MgmtdClient, storages: int) -> None:
        if await formatted(mgmtd):
            return
        await self._until("all storage daemons have registered", partial(registered, mgmtd, storages))
        cluster = self._plan.folder.cluster()
        await make_table(mgmtd, cluster.replicas, cluster.chunk_size)

    async def _chains_serve(self, mgmtd: MgmtdClient) -> bool:
        routing = await mgmtd.refresh(mgmtd.routing.version, timeout_ms=200)
        return bool(routing.chains) and all(chain.head() is not None for chain in routing.chains.values())

    async def _mount(self, path: Path) -> None:
        self.supervisor.start(
            self._plan.folder.mount_daemon(),
            ["--mount", str(path)],
            before_start=lambda: prepare_mount_point(path),
            may_end=True,
        )

        async def mounted() -> bool:
            return mount_at(path) is not None and not await trio.to_thread.run_sync(is_stale, path)

        await self._until(f"fs3 is mounted at {path}", mounted)

    async def _until(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        with trio.move_on_after(READY_TIMEOUT_S):
            while True:
                self.supervisor.check()
                if await holds():
                    return
                await trio.sleep(_POLL_S)
        raise FS3Error(
            Code.DEADLINE_EXCEEDED, f"waited {READY_TIMEOUT_S:.0f} s in vain until {what}; see {self._plan.folder.log}"
        )

    async def stop_all(self) -> None:
        """Stop the mount first, then what it stands on."""
        for kind, grace_s in _STOP_GRACE_S.items():
            await self.supervisor.stop([e for e in self.supervisor.entries if e.daemon.kind == kind], grace_s)
            if kind == "mount" and self._plan.mount is not None:
                await trio.to_thread.run_sync(_unmount_all, self._plan.mount)
        self._plan.folder.state_file.unlink(missing_ok=True)

    def write_state(self) -> None:
        """Tell others who runs."""
        daemons = [
            {
                "name": entry.daemon.name,
                "kind": entry.daemon.kind,
                "pid": entry.pid,
                "address": entry.daemon.address,
                "log": str(entry.daemon.log),
                "restarts": entry.restarts,
            }
            for entry in self.supervisor.entries
        ]
        mount = str(self._plan.mount) if self._plan.mount is not None else ""
        state = {"pid": os.getpid(), "started_at": self._started_at, "mount": mount, "daemons": daemons}
        self._plan.folder.write_state(state)


def _unmount_all(path: Path) -> None:
    """Take fs3 away from the mount point while the cluster still answers, whoever mounted it there."""
    for lazy in (False, True):
        mounted = mount_at(path)
        if mounted is None or mounted.type != FILE_SYSTEM_TYPE:
            return
        with suppress(FS3Error):
            unmount(path, lazy=lazy)


def _clear_mount(path: Path) -> None:
    if mount_at(path) is not None and is_stale(path):
        with suppress(FS3Error):
            unmount(path, lazy=True)


def down(folder: DataFolder, say: Say) -> None:
    """Stop the cluster that runs on this data; what does not stop is killed, a stale mount is detached."""
    if not folder.exists():
        raise ConfigError(f"{folder.path}: no fs3 data here")
    state = folder.state() or {}
    pid = folder.running_pid()
    if pid is None and not state:
        say(f"nothing runs on {folder.path}")
        return
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not _gone(lambda: folder.running_pid() is None, _DOWN_GRACE_S):
            say(f"`fs3 up` (pid {pid}) did not stop within {_DOWN_GRACE_S:.0f} s: killed")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    leftovers = [entry for entry in state.get("daemons", []) if _is_ours(entry["pid"], folder)]
    for entry in leftovers:
        with suppress(ProcessLookupError):
            os.kill(entry["pid"], signal.SIGTERM)
    if not _gone(lambda: not any(_is_ours(entry["pid"], folder) for entry in leftovers), 20.0):
        for entry in leftovers:
            if _is_ours(entry["pid"], folder):
                say(f"{entry['name']} (pid {entry['pid']}) did not stop: killed")
                with suppress(ProcessLookupError):
                    os.kill(entry["pid"], signal.SIGKILL)
    if state.get("mount"):
        _clear_mount(Path(state["mount"]))
    folder.state_file.unlink(missing_ok=True)
    say(f"stopped: {folder.path}")


def _gone(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True


def _is_ours(pid: int, folder: DataFolder) -> bool:
    """Whether this pid, noted earlier, is still the daemon that it was (a pid may have been given anew)."""
    if not process_alive(pid):
        return False
    try:
        return str(folder.config).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
