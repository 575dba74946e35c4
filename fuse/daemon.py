"""fs3-mount: mounts a cluster's file system until it is told to stop, or somebody unmounts it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from fs3 import control, daemon
from fs3.cli.mounts import check_mount_point, is_stale, prepare_mount_point, unmount
from fs3.client.connect import connect
from fs3.client.file import FileClient
from fs3.config import option
from fs3.env import Env
from fs3.errors import ConfigError, FS3Error
from fs3.settings import ClientSettings, RdmaKeys
from fs3.watching import figures

from . import guard, ops
from .callers import Callers, groups_of_process
from .fs import FileSystem
from .identity import IdentityFile
from .mount_state import FsOptions
from .rings import RingLimits, Rings

logger = logging.getLogger("fs3.fuse.daemon")

DIRTY_SHARE = 40
"""With writeback: percent of the pages that this host lets be dirty that files of the mount may take up before writers wait.
The kernel gives FUSE 1 %."""
UNMOUNT_S = 8.0
"""How long a stop waits for the kernel to write back and let go, before files that are open lose their mount."""


@dataclass(frozen=True, kw_only=True)
class MountConfig(ClientSettings, RdmaKeys):
    """Configuration of fs3-mount."""

    mount: str = option(help="the folder to mount on")
    mgmtd: tuple[str, ...] = option(help="addresses of the mgmtd daemons")
    read_only: bool = option(False, help="refuse all changes")
    allow_other: bool = option(
        True, help="let other users in (as a user other than root, only with user_allow_other in /etc/fuse.conf)"
    )
    xattrs: bool = option(
        True, help="extended attributes and POSIX ACLs; cost one more request for each file that is written"
    )
    atime: str = option(
        "relatime",
        help="whether reading a file sets its access time: when that is not after its other times or a day old, or never",
        choices=("relatime", "noatime"),
    )
    write_behind: bool = option(
        False,
        help="gather writes in memory and send them in the background: faster, but a crash of this daemon loses"
        " what was written and not yet synced or closed",
    )
    writeback: bool = option(
        False,
        help="let the kernel keep what was written and send it later: much faster for small writes; a crash of this daemon"
        " or of the host loses what was not yet synced or closed, and no other mount may change the same files meanwhile",
    )
    strict: bool = option(
        False,
        help="show what other mounts did at once and always: names, attributes and content are asked of the cluster each"
        " time, each write tells length and time; slower, and files cannot be mapped shared",
    )
    short_circuit: bool = option(
        True, help="reach daemons of this host by shared memory and Unix sockets in place of TCP, where they offer it"
    )
    rings: int = option(1024, at_least=0, help="how many user-space rings programs may have; 0 = none")
    ring_files: int = option(65_536, at_least=2, help="how many files programs may have registered for rings")
    ring_memory: int = option(
        256 << 30, unit="bytes", at_least=65_536, help="how much memory programs may share with this daemon for rings"
    )
    state: str = option(
        "", help="a file that tells the next mount after a crash which one it replaces: files are then settled at once"
    )
    metrics: str = option("", help="HOST:PORT where Prometheus may fetch /metrics; none by default")
    host: str = option("", help="this machine's name, to prefer replicas on it; default: the host name")


async def run(config: MountConfig, env: Env, started: Callable[[str], None]) -> None:
    """Mount and serve. Cancelled, it unmounts cleanly: what programs wrote is sent and settled first."""
    if config.writeback and (config.strict or config.write_behind):
        raise ConfigError(
            "writeback excludes strict, which keeps nothing, and write_behind, which does the same in the mount"
        )
    mountpoint = await trio.to_thread.run_sync(_prepare, config.mount)
    identity = IdentityFile(Path(config.state)) if config.state else None
    stop = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            # Serving goes on while the mount ends, so cancellation reaches it as an event.
            nursery.start_soon(_serve, config, env, mountpoint, identity, started, stop, nursery.cancel_scope)
            try:
                await trio.sleep_forever()
            finally:
                stop.set()
    finally:
        if identity is not None:
            identity.close()


def _prepare(mount: str) -> str:
    """Check the mount point, and detach what a killed daemon of ours left there. Returns its absolute path."""
    mountpoint = Path(os.path.abspath(mount))
    check_mount_point(mountpoint)
    if not is_stale(mountpoint) and not mountpoint.exists():
        raise ConfigError(f"{mountpoint}: no such folder to mount on")
    prepare_mount_point(mountpoint)
    return str(mountpoint)


async def _serve(
    config: MountConfig,
    env: Env,
    mountpoint: str,
    identity: IdentityFile | None,
    started: Callable[[str], None],
    stop: trio.Event,
    ended: trio.CancelScope,
) -> None:
    with trio.CancelScope(shield=True) as scope:
        async with trio.open_nursery() as nursery:
            waiting = trio.CancelScope()

            async def give_up() -> None:
                with waiting:
                    await stop.wait()
                    scope.cancel()

            nursery.start_soon(give_up)
            host = config.host or socket.gethostname()
            async with connect(env, config.mgmtd, host, identity, config) as client, trio.open_nursery() as tasks:
                waiting.cancel()
                fs = FileSystem(client, tasks, _fs_options(config, client.settings))
                fs.use_kernel(ops.store, ops.forget_attributes, ops.forget_pages)
                callers = Callers(env.monotonic, groups_of_process)
                settings = client.settings
                handlers = ops.Operations(fs, callers, *_timeouts_s(config, settings), config.xattrs)
                handlers.enable_writeback_cache = config.writeback

                async def apply(settings: ClientSettings) -> None:
                    handlers.entry_timeout_s, handlers.attr_timeout_s = _timeouts_s(config, settings)
                    fs.use_options(_fs_options(config, settings))
                    await trio.to_thread.run_sync(_raise_read_ahead, mountpoint, settings.kernel_read_ahead)

                def about() -> dict[str, Any]:
                    own = {"mount": mountpoint, "cluster": client.cluster, "pid": os.getpid(), "mgmtd": config.mgmtd}
                    return {**own, **figures(env)}

                client.on_settings = apply
                ops.mount(handlers, mountpoint, _options(config, f"fs3:{client.cluster}"), env)
                guarding = guard.start(mountpoint)
                try:
                    device = guard.device_of(mountpoint)
                    tasks.start_soon(control.serve, env, device, about)
                    async with trio.open_nursery() as ringing:  # it speaks with the kernel, and so ends first
                        if config.rings:
                            await ringing.start(Rings(client, fs, device, _ring_limits(config)).serve)
                        await _answer(handlers, client, mountpoint, fs, started, stop)
                        ringing.cancel_scope.cancel()
                finally:
                    ops.detach()
                    guarding.kill()
                    guarding.wait()
                tasks.cancel_scope.cancel()
    ended.cancel()


def _ring_limits(config: MountConfig) -> RingLimits:
    others = config.allow_other and (os.geteuid() == 0 or _user_allow_other())
    return RingLimits(config.rings, config.ring_files, config.ring_memory, others)


def _timeouts_s(config: MountConfig, settings: ClientSettings) -> tuple[float, float]:
    """For names, for attributes."""
    return (0.0, 0.0) if config.strict else (settings.entry_timeout / 1000, settings.attr_timeout / 1000)


def _fs_options(config: MountConfig, settings: ClientSettings) -> FsOptions:
    limit = settings.write_buffer if config.write_behind else 0
    atime = config.atime == "relatime" and not config.read_only
    return FsOptions(settings.read_ahead, settings.read_cache, limit, atime, config.strict, config.writeback)


async def _answer(
    handlers: ops.Operations,
    client: FileClient,
    mountpoint: str,
    fs: FileSystem,
    started: Callable[[str], None],
    stop: trio.Event,
) -> None:
    """Answer the kernel until the mount has ended, by others or by `stop`."""
    async with trio.open_nursery() as nursery:

        async def end_when_told() -> None:
            await stop.wait()
            await _end(mountpoint, fs)
            nursery.cancel_scope.cancel()

        async def tell_when_ready() -> None:
            await trio.to_thread.run_sync(_in_child, _STAT, mountpoint, abandon_on_cancel=True)  # the kernel asks us
            await trio.to_thread.run_sync(_raise_read_ahead, mountpoint, client.settings.kernel_read_ahead)
            if handlers.enable_writeback_cache:
                await trio.to_thread.run_sync(_raise_dirty_share, mountpoint)
            started(mountpoint)

        nursery.start_soon(end_when_told)
        nursery.start_soon(tell_when_ready)
        await ops.answer(handlers)
        if not stop.is_set():
            logger.info("%s was unmounted", mountpoint)
        nursery.cancel_scope.cancel()


async def _end(mountpoint: str, fs: FileSystem) -> None:
    """Unmount as a user would, which writes back all there is. Where files are open, settle them and leave the rest."""
    with trio.move_on_after(UNMOUNT_S):
        try:
            await trio.to_thread.run_sync(unmount, Path(mountpoint), abandon_on_cancel=True)
            return
        except FS3Error as error:
            logger.warning("%s; detaching it with files open", error)
        # Have the kernel write back the pages of shared mappings.
        await trio.to_thread.run_sync(_in_child, _SYNC, mountpoint, abandon_on_cancel=True)
    try:
        with trio.move_on_after(UNMOUNT_S):
            await fs.close_all()
    except FS3Error as error:
        logger.error("%s: not all that was written could be settled: %s", mountpoint, error)


_STAT = "import os, sys; os.stat(sys.argv[1])"
_SYNC = "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY))"


def _in_child(words: str, mountpoint: str) -> None:
    """Do something on our own mount in another process. A thread of ours that waits for our own answer could not be killed,
    and would keep the kernel's device open: after a kill -9 in that moment all who use the mount would hang for ever."""
    line = [sys.executable, "-I", "-S", "-c", words, mountpoint]
    subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _options(config: MountConfig, source: str) -> set[str]:
    """Mount options. source: what the mount table shows as the device. default_permissions: the kernel checks rights too,
    which it alone can for names that it has cached.
    """
    options = {f"fsname={source}", "subtype=fs3", "default_permissions"}
    if config.read_only:
        options.add("ro")
    if config.allow_other:
        if os.geteuid() == 0 or _user_allow_other():
            options.add("allow_other")
        else:
            logger.warning("other users cannot use this mount: /etc/fuse.conf has no user_allow_other")
    return options


def _user_allow_other() -> bool:
    try:
        text = Path("/etc/fuse.conf").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in text.splitlines())


def _raise_read_ahead(mountpoint: str, size: int) -> None:
    """Let the kernel read ahead farther than FUSE's usual 128 KiB, where this user may set it. The first reply to the kernel
    resets it, so this comes after that."""
    device = guard.device_of(mountpoint)
    path = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    try:
        path.write_text(str(size // 1024), encoding="ascii")
    except OSError as error:
        logger.info("%s: the kernel's read-ahead stays as it is: %s", path, error.strerror)


def _raise_dirty_share(mountpoint: str) -> None:
    folder = Path(f"/sys/class/bdi/{guard.device_of(mountpoint)}")
    try:
        (folder / "max_ratio").write_text(str(DIRTY_SHARE), encoding="ascii")
        (folder / "strict_limit").write_text("0", encoding="ascii")
    except OSError as error:
        logger.info("%s: the kernel keeps less of what is written: %s", folder, error.strerror)


def main() -> None:
    """Entry point of fs3-mount."""
    daemon.main("fs3-mount", MountConfig, run, "Mount an fs3 file system.")


if __name__ == "__main__":
    main()
