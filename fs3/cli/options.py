"""What all commands share: their common options, and how they print."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from ..config import parse_size
from ..errors import ConfigError
from .folder import DataFolder

_WIDTH_OF_PIPES = 10_000
"""Nothing is cut or folded for a program that reads."""


def size(text: str) -> int:
    """A number of bytes such as 64KiB."""
    try:
        return parse_size(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected a size such as 1MiB or 65536") from None


def folder(text: str) -> Path:
    """A path, made absolute without following links."""
    return Path(os.path.abspath(text))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        nobody_reads()


def console() -> Console:
    """Where output goes: with colours on a terminal, wide and without colours in a pipe."""
    return _Console(width=None if sys.stdout.isatty() else _WIDTH_OF_PIPES, highlight=False, soft_wrap=False)


def say(line: str) -> None:
    """One line of progress, with the time of day."""
    try:
        click.echo(f"{time.strftime('%H:%M:%S')} {line}")
    except BrokenPipeError:
        nobody_reads()


def nobody_reads() -> None:
    """The reader of our output is gone, as in `fs3 up | head`: a cluster that runs must not stop because of that."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


data_option = click.option(
    "--data",
    type=folder,
    metavar="DIR",
    default="./data",
    show_default=True,
    envvar="FS3_DATA",
    help="The cluster's data folder.",
)
mgmtd_option = click.option(
    "--mgmtd",
    metavar="ADDR[,ADDR...]",
    envvar="FS3_MGMTD",
    help="Management daemons, such as tcp://10.0.0.1:7000, instead of --data.",
)


def addresses(data: Path, mgmtd: str | None) -> tuple[str, ...]:
    """The management daemons' addresses, as given or as the data folder says."""
    if mgmtd is not None:
        found = tuple(part.strip() for part in mgmtd.split(",") if part.strip())
        if not found or not all("://" in address for address in found):
            raise ConfigError(f"--mgmtd: expected addresses such as tcp://127.0.0.1:7000, found {mgmtd!r}")
        return found
    cluster_folder = DataFolder(data)
    if not cluster_folder.exists():
        raise ConfigError(f"{data}: no fs3 data here; give --data or --mgmtd")
    return cluster_folder.mgmtd()
