"""`fs3 admin`: what operators see of a cluster, and do to it. One module for each group of commands.

A module offers `commands`: the groups and commands that it adds to `fs3 admin`; add it to _MODULES here.
"""

from __future__ import annotations

from pathlib import Path

import click

from . import changes, config, contents, doctor, fsck, giveup, lists, operations, paths, placement, plans, sessions, shows
from .common import location


@click.group("admin")
@location
def admin(data: Path | None, mgmtd: str | None) -> None:
    """Look after a cluster: what it consists of, how it is, and changes of it.

    Each command takes --json, and --data or --mgmtd to find the cluster (or FS3_DATA, FS3_MGMTD in the environment).
    """


_MODULES = (lists, shows, plans, operations, changes, giveup, doctor, paths, contents, sessions, fsck, config, placement)

for _module in _MODULES:
    for _command in _module.commands:
        admin.add_command(_command)
