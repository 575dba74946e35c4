"""The frame of every daemon's process: flags, configuration, logging, signals, exit codes.

Exit codes: 0 after SIGTERM or SIGINT, 1 after an error, 2 where it cannot work as it is set up (a configuration that is
wrong, an address that is taken, data of a newer format): starting it again would not help.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import trio

from . import config as configuration
from . import log, prometheus
from .api.common import STATUS, Empty, StatusReply
from .env import Env, SystemEnv
from .errors import Code, ConfigError, FS3Error
from .rpc.server import Call, RpcServer
from .settings import RdmaKeys

C = TypeVar("C")

logger = logging.getLogger("fs3.daemon")

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_CONFIG = 2

STOP_GRACE_S = 20
"""From the first signal to the end of the process, come what may."""

DIE_WITH_PARENT = "FS3_DIE_WITH_PARENT"
"""Environment variable: set to the parent's pid, the daemon gets SIGTERM when that process is gone."""

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BUFFER_MAX = 32 * 1024 * 1024
_KEPT_MEMORY_MAX = 64 * 1024 * 1024
_GC_THRESHOLD = 10_000
"""Objects made, less those freed, between two runs of the collector for young ones. Those that a request makes go with its
reply, and nearly none of them is part of a cycle."""


def tell_status(server: RpcServer, env: Env, name: str, node: int) -> None:
    """Answer the method `status`: who this daemon is, its version, how long it runs, its metrics."""
    started_at = env.monotonic()
    own_version = version()

    async def status(request: Empty, call: Call) -> StatusReply:
        uptime_ms = int((env.monotonic() - started_at) * 1000)
        return StatusReply(name, node, own_version, uptime_ms, json.dumps(env.metrics.snapshot()))

    server.handle(STATUS, status)


def version() -> str:
    """The installed version of fs3; "unknown" where it runs from a bare tree."""
    try:
        return importlib.metadata.version("fs3")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def main(
    name: str,
    config_class: type[C],
    run: Callable[[C, Env, Callable[[str], None]], Awaitable[None]],
    description: str,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run a daemon until a signal stops it; ends the process.

    run(config, env, started): calls started(text) once it is ready, text saying where (its address); it is cancelled by
    SIGTERM and SIGINT. An FS3Error from it becomes one line on standard error.
    """
    arguments = vars(_parser(name, config_class, description).parse_args(argv))
    path = arguments.pop("config_file")
    print_config = arguments.pop("print_config")
    overrides = {key: _text(value) for key, value in arguments.items() if value is not None}
    try:
        config = configuration.load(config_class, Path(path) if path is not None else None, overrides)
    except ConfigError as error:
        _say(name, error.message)
        sys.exit(EXIT_CONFIG)
    if print_config:
        sys.stdout.write(configuration.dump(config))
        sys.exit(EXIT_OK)
    log.setup(name, getattr(config, "log_level", "info"))
    _follow_parent()
    _allow_many_files()
    _keep_memory()
    sys.exit(_run(name, config, run))


def _keep_memory() -> None:
    """Have the allocator keep large buffers that were freed: the kernel maps and clears fresh ones page by page, which costs
    more than to fill them. For as much as that, a process may look larger than what it uses."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BUFFER_MAX)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_MEMORY_MAX)


def _allow_many_files() -> None:
    """Connections and data files may be many more than the 1024 that a process has by default."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(name: str, config: C, run: Callable[[C, Env, Callable[[str], None]], Awaitable[None]]) -> int:
    try:
        trio.run(_until_signal, name, config, run)
    except BaseException as error:
        leaves = list(_leaves(error))
        if not all(isinstance(leaf, FS3Error) for leaf in leaves):
            logger.critical("%s: stopped by a bug", name, exc_info=error)
            return EXIT_ERROR
        errors = [leaf for leaf in leaves if isinstance(leaf, FS3Error)]
        for line in dict.fromkeys(leaf.message if leaf.code is Code.CONFIG else str(leaf) for leaf in errors):
            _say(name, line)
        return EXIT_CONFIG if any(leaf.code in (Code.CONFIG, Code.FORMAT_VERSION) for leaf in errors) else EXIT_ERROR
    return EXIT_OK


async def _until_signal(name: str, config: C, run: Callable[[C, Env, Callable[[str], None]], Awaitable[None]]) -> None:
    from .transport.registry import Transports

    def started(where: str) -> None:
        # What was loaded stays: the collector need not walk over millions of records again and again, holding up all calls.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        logger.info("%s ready: %s (version %s, pid %d)", name, where, version(), os.getpid())
        _notify_systemd("READY=1")

    async def stop_at_signal(scope: trio.CancelScope) -> None:
        async for number in signals:
            logger.info("%s stops: %s", name, signal.Signals(number).name)
            _notify_systemd("STOPPING=1")
            # Nothing hangs for ever: whatever does not end by then is ended by the kernel.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(STOP_GRACE_S)
            scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_at_signal, nursery.cancel_scope)
            rdma = config if isinstance(config, RdmaKeys) else RdmaKeys()
            transports = Transports(
                short_circuit=getattr(config, "short_circuit", True),
                rdma_devices=rdma.rdma_devices,
                rdma_gid=rdma.rdma_gid,
                rdma_pool=rdma.rdma_pool,
            )
            env = SystemEnv(transports)
            if address := getattr(config, "metrics", ""):
                await nursery.start(prometheus.serve, env, address)
            await run(config, env, started)
            nursery.cancel_scope.cancel()
    logger.info("%s stopped", name)


def _parser(name: str, config_class: type[Any], description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        name,
        description=description,
        epilog="Each flag overrides the key of the same name in the configuration file.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{name} {version()}")
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="TOML file with the configuration")
    parser.add_argument("--print-config", action="store_true", help="print the configuration in force as TOML and exit")
    for key, entry in configuration.options(config_class).items():
        default = "required" if entry.required else f"default: {configuration.show(entry, entry.default) or 'none'}"
        text = f"{entry.help} ({default})".replace("%", "%%")
        if entry.type is bool:
            parser.add_argument(configuration.flag(key), dest=key, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(configuration.flag(key), dest=key, metavar=_metavar(entry), help=text)
    return parser


def _metavar(entry: configuration.Option) -> str:
    if entry.choices:
        return "{" + ",".join(entry.choices) + "}"
    names = {int: "N", float: "X", str: "TEXT"}
    return {"bytes": "SIZE", "ms": "DURATION"}.get(entry.unit) or names.get(entry.type, "A,B,...")


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _say(name: str, line: str) -> None:
    sys.stderr.write(f"{name}: {line}\n")
    sys.stderr.flush()


def _follow_parent() -> None:
    parent = os.environ.get(DIE_WITH_PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before we asked to be told
        sys.exit(EXIT_OK)


def _notify_systemd(state: str) -> None:
    """Tell a service manager that asked for it (sd_notify(3)); others are not disturbed."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            logger.warning("cannot notify %s: %s", address, error.strerror)
