"""`fs3 admin fsck`: runs `fs3-meta fsck` on this machine, which reads a running cluster through its daemons."""

from __future__ import annotations

import subprocess
import sys

import click

from ..options import size
from ..supervisor import command as daemon_command
from .common import Admin, command


@click.group()
def _top() -> None:
    """Holds the command until it joins `fs3 admin`."""


@command(_top, "fsck")
@click.option("--repair", is_flag=True, help="Repair what can be repaired safely.")
@click.option("--names-only", is_flag=True, help="Check the namespace, and no chunks.")
@click.option("--holes", is_flag=True, help="Also name files of which chunks are absent: sparse, or lost.")
@click.option("--memory", type=size, metavar="SIZE", help="About how much to use; bigger namespaces are checked in parts.")
def fsck(go: Admin, repair: bool, names_only: bool, holes: bool, memory: int | None) -> None:
    """Check a running cluster, in use or not: names, chunks without files, replicas that differ.

    Exit code: 0 nothing is wrong; 1 all that was wrong is repaired; 4 something is wrong, or left so; 8 added where not all
    could be checked; 2 where it could not begin.
    """
    flags = ["--mgmtd", ",".join(go.mgmtd)]
    flags += ["--repair"] if repair else []
    flags += ["--names-only"] if names_only else []
    flags += ["--holes"] if holes else []
    flags += ["--memory", str(memory)] if memory is not None else []
    flags += ["--json"] if go.as_json else []
    sys.stdout.flush()
    sys.exit(subprocess.run(daemon_command("meta", ["fsck", *flags]), check=False).returncode)


commands = tuple(_top.commands.values())
