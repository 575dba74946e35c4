"""`fs3 lock PATH COMMAND...`: runs a program while a lock is held that all clients of the cluster respect, like flock(1)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import click
import trio

from ..api.meta import Attr
from ..api.meta_locks import LOCK_END
from ..client.locks import Lock
from ..client.paths import own_caller
from ..daemon import EXIT_ERROR
from ..errors import Code, ConfigError, FS3Error
from .clients import Visitor, about, visitor
from .options import addresses, data_option, mgmtd_option, size

EXIT_LOST = 75
"""EX_TEMPFAIL: the lock was lost, and the program was ended."""
PERMISSIONS = 0o644
LOOK_S = 0.5
KILL_AFTER_S = 5.0
_PR_SET_PDEATHSIG = 1


@click.command("lock", context_settings={"allow_interspersed_args": False})
@click.argument("path", metavar="PATH")
@click.argument("command", metavar="COMMAND...", nargs=-1, required=True)
@click.option("-s", "--shared", is_flag=True, help="A shared lock: others may have shared ones too.")
@click.option("-n", "--nonblock", is_flag=True, help="Do not wait where somebody else has it.")
@click.option("-w", "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer than that.")
@click.option(
    "-E",
    "--conflict-exit-code",
    type=click.IntRange(0, 255),
    default=EXIT_ERROR,
    show_default=True,
    metavar="NUMBER",
    help="Exit code where somebody else has it.",
)
@click.option("--offset", type=size, default="0", metavar="SIZE", help="Lock a range of bytes that begins here.")
@click.option("--length", type=size, metavar="SIZE", help="How long that range is (default: to the end, for ever).")
@data_option
@mgmtd_option
def lock(
    path: str,
    command: tuple[str, ...],
    shared: bool,
    nonblock: bool,
    timeout: float | None,
    conflict_exit_code: int,
    offset: int,
    length: int | None,
    data: Path,
    mgmtd: str | None,
) -> None:
    """Run COMMAND while PATH is locked against everybody who locks it so, on all hosts; like flock(1).

    PATH is a file or directory of the cluster (/a/b), or below a mount of it here; a file that is missing is made. The exit
    code is that of COMMAND. If this client is cut off from the cluster for so long that others may get the lock, COMMAND is
    ended by SIGTERM, and the exit code is 75.
    """
    end = LOCK_END if not length else min(offset + length, LOCK_END)
    timeout_s = 0.0 if nonblock else timeout
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("no command to run")

    async def work() -> int:
        async with visitor(addresses(data, mgmtd)) as found:
            attr = await _locked_file(found, path)
            locks = found.client.locks
            try:
                held = await locks.acquire(
                    own_caller(), attr.inode, shared=shared, start=offset, end=end, timeout_s=timeout_s
                )
            except FS3Error as error:
                if error.code is Code.BUSY:
                    click.echo(f"fs3: {path}: {error.message}", err=True)
                    return conflict_exit_code
                raise about(path, error) from None
            try:
                return await _run(words, held)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + KILL_AFTER_S):
                    await held.release()

    sys.exit(trio.run(work))


async def _locked_file(found: Visitor, path: str) -> Attr:
    try:
        return await found.stat(path)
    except FS3Error as error:
        if error.code is not Code.NOT_FOUND:
            raise
    try:
        async with found.paths.open(found.path(path), "a", PERMISSIONS) as file:
            return await file.stat()
    except FS3Error as error:
        raise about(path, error) from None


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Without us nobody would keep the lock: so the program gets SIGTERM when we die. Raises CONFIG."""
    libc = ctypes.CDLL(None)

    def follow_us() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    try:
        return subprocess.Popen(command, preexec_fn=follow_us)
    except OSError as error:
        raise ConfigError(f"{command[0]}: cannot be run: {error.strerror}") from None


async def _run(command: Sequence[str], held: Lock) -> int:
    """Run a program to its end, or to that of the lock; returns the exit code."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        process = _started(command)
        ended = os.pidfd_open(process.pid)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_forward, signals, process)
                nursery.start_soon(_watch, held, process)
                await trio.lowlevel.wait_readable(ended)
                nursery.cancel_scope.cancel()
        finally:
            os.close(ended)
            if process.poll() is None:
                process.kill()
                process.wait()
    if not held.is_held():
        return EXIT_LOST
    code = process.returncode
    return code if code >= 0 else 128 - code


async def _forward(signals: AsyncIterator[int], process: subprocess.Popen[bytes]) -> None:
    async for number in signals:
        if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal tells the program itself
            process.send_signal(number)


async def _watch(held: Lock, process: subprocess.Popen[bytes]) -> None:
    """End a program whose lock is lost."""
    while held.is_held():  # noqa: ASYNC110 (the clock tells)
        await trio.sleep(LOOK_S)
    click.echo("fs3: the lock is lost, this host is cut off from the cluster; ending the command", err=True)
    process.terminate()
    await trio.sleep(KILL_AFTER_S)
    process.kill()
