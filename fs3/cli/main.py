"""The `fs3` command: starts, stops, shows and mounts clusters."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import trio

from ..daemon import EXIT_CONFIG, EXIT_ERROR, EXIT_OK, version
from ..errors import Code, FS3Error
from . import access, formatting, lock, mounting, profile, ranges, rmtree, stats, warmup
from . import recovery as recoveries
from . import status as status_report
from . import up as cluster
from .admin import admin
from .bench.command import bench
from .completion import completion
from .detach import detached
from .folder import DataFolder
from .options import addresses, console, data_option, folder, mgmtd_option, say, size
from .supervisor import Supervised


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="fs3", message="%(prog)s %(version)s")
def cli() -> None:
    """fs3, a distributed POSIX file system for AI clusters.

    `fs3 up` runs a whole cluster on this machine. The daemons of a real cluster are fs3-mgmtd, fs3-meta, fs3-storage and
    fs3-mount; see docs/operations.md.
    """


@cli.command()
@data_option
@click.option(
    "--mount",
    type=folder,
    metavar="DIR",
    default="./mnt",
    show_default=True,
    help="Where to mount it; made if it does not exist.",
)
@click.option("--storages", type=int, default=3, show_default=True, help="How many storage daemons.")
@click.option("--replicas", type=int, default=3, show_default=True, help="On how many storage daemons each chunk is kept.")
@click.option(
    "--chunk-size",
    type=size,
    metavar="SIZE",
    default="1MiB",
    show_default=True,
    help="Of new files: a power of two, 64KiB to 64MiB.",
)
@click.option(
    "--listen",
    metavar="SCHEME://HOST",
    default="tcp://127.0.0.1",
    show_default=True,
    help="Where the daemons listen: tcp:// or rdma://, and an address of this machine.",
)
@click.option("--no-mount", is_flag=True, help="Run the daemons only.")
@click.option(
    "--foreground/--detach",
    default=True,
    show_default="foreground",
    help="Stay until Ctrl-C, or return once all works (stop it by `fs3 down`).",
)
@click.pass_context
def up(
    ctx: click.Context,
    data: Path,
    mount: Path,
    storages: int,
    replicas: int,
    chunk_size: int,
    listen: str,
    no_mount: bool,
    foreground: bool,
) -> None:
    """Run a cluster on this machine and mount it.

    The first start makes the data folder: configuration in DATA/config/*.toml, one folder per daemon, logs in DATA/log.
    Later starts find it all again; --storages, --replicas, --chunk-size and --listen are fixed by the first. A daemon that
    dies is started again. Ctrl-C stops everything, the mount first.
    """
    values = {"storages": storages, "replicas": replicas, "chunk_size": chunk_size, "listen": listen}
    given = {key: value for key, value in values.items() if _given(ctx, key)}
    plan = cluster.Plan(DataFolder(data), None if no_mount else mount, given)
    if foreground:
        cluster.run(plan, say, lambda entries: welcome(plan, entries, "Ctrl-C stops it all."))
        return
    cluster.preflight(plan)

    def child(done: Callable[[], None]) -> int:
        def ready(entries: list[Supervised]) -> None:
            welcome(plan, entries, f"fs3 down --data {data}   stops it all.")
            done()

        return guarded(lambda: cluster.run(plan, say, ready))

    sys.exit(detached(child, plan.folder.log / "up.log"))


def _given(ctx: click.Context, key: str) -> bool:
    return ctx.get_parameter_source(key) is not click.core.ParameterSource.DEFAULT


def welcome(plan: cluster.Plan, entries: list[Supervised], stop: str) -> None:
    """What runs where, and what to try next."""
    out = console()
    table = status_report.plain_table("daemon", "pid", "address", "log")
    for entry in entries:
        where = entry.daemon.address or str(plan.mount)
        table.add_row(entry.daemon.name, str(entry.pid), where, str(entry.daemon.log))
    out.print(table)
    out.print(f"\nThe cluster runs on {plan.folder.path}; its configuration is in {plan.folder.config}.")
    out.print("Try next:")
    if plan.mount is not None:
        out.print(f"  cp -a /usr/lib/python3 {plan.mount}/ && diff -r /usr/lib/python3 {plan.mount}/python3")
    out.print(f"  fs3 status --data {plan.folder.path}")
    out.print(f"  kill -9 a storage daemon from above and keep working\n{stop}")


@cli.command()
@data_option
def down(data: Path) -> None:
    """Stop the cluster that `fs3 up` runs on this data, in the foreground of another terminal or detached."""
    cluster.down(DataFolder(data), say)


@cli.command()
@data_option
@mgmtd_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(data: Path, mgmtd: str | None, as_json: bool) -> None:
    """Show nodes, chains, targets, capacity and mounts.

    Exit code: 0 when every target of every chain serves, 1 when one does not or when no management daemon answers.
    """
    found = trio.run(status_report.gather, addresses(data, mgmtd))
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        status_report.render(found, console())
    sys.exit(EXIT_OK if found["serving"] else EXIT_ERROR)


@cli.command()
@data_option
@mgmtd_option
@click.option("--resync-rate", metavar="SIZE", help="A second, at most, sent to each target that came back; 0: no limit.")
@click.option("--scrub-rate", metavar="SIZE", help="A second, at most, that the scrubber reads of each target; 0: no limit.")
def recovery(data: Path, mgmtd: str | None, resync_rate: str | None, scrub_rate: str | None) -> None:
    """Show how far recoveries are, and how fast they and the scrubbers may go.

    The rates are settings of all storage daemons: `fs3 admin config` shows and unsets them.
    """
    given = {"resync_rate_bytes": resync_rate, "scrub_rate_bytes": scrub_rate}
    rates = {key: value for key, value in given.items() if value is not None}
    for line in trio.run(recoveries.visit, addresses(data, mgmtd), rates):
        click.echo(line)


@cli.command("format")
@click.option("--mgmtd", required=True, metavar="ADDR[,ADDR...]", help="Management daemons, such as tcp://10.0.0.1:7000.")
@click.option("--storages", type=int, default=1, show_default=True, help="Wait until so many storage daemons are there.")
@click.option("--replicas", type=int, required=True, help="On how many nodes each chunk is kept.")
@click.option("--chunk-size", type=size, metavar="SIZE", default="1MiB", show_default=True, help="Of new files.")
@click.option(
    "--stripe", type=int, default=formatting.STRIPE_ALL, help="Over how many chains a file is spread (default: all)."
)
@click.option("--if-needed", is_flag=True, help="Do nothing where the cluster is formatted already.")
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
def format_command(
    mgmtd: str, storages: int, replicas: int, chunk_size: int, stripe: int, if_needed: bool, timeout: float
) -> None:
    """Make the chain table of a new cluster out of the storage daemons that have registered."""
    found = addresses(Path(), mgmtd)
    click.echo(trio.run(formatting.format_cluster, found, storages, replicas, chunk_size, stripe, if_needed, timeout))


@cli.command()
@click.argument("address", nargs=-1, required=True)
def ping(address: tuple[str, ...]) -> None:
    """Ask daemons whether they answer. Exit code: 0 when all do, 1 when one does not."""
    silent = trio.run(access.silent, addresses(Path(), ",".join(address)))
    if silent:
        raise FS3Error(Code.CONNECT_FAILED, f"no answer from {', '.join(silent)}")


@cli.command()
@click.argument("mount_point", type=folder)
@data_option
@mgmtd_option
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C or `fs3 umount`.")
@click.option("--log", type=folder, metavar="FILE", help="Where a background mount logs (default: ~/.local/state/fs3).")
@click.option("--write-behind", is_flag=True, help="Gather small writes in memory: faster, see docs/operations.md.")
@click.option("--writeback", is_flag=True, help="Let the kernel keep writes for a while: see docs/posix.md first.")
@click.option("--strict", is_flag=True, help="Show others' changes at once and always: slower, see docs/operations.md.")
@click.option("--metrics", metavar="HOST:PORT", help="Where Prometheus may fetch /metrics.")
def mount(
    mount_point: Path,
    data: Path,
    mgmtd: str | None,
    foreground: bool,
    log: Path | None,
    metrics: str | None,
    **flags: bool,
) -> None:
    """Mount a running cluster at MOUNT_POINT, which is made if it does not exist."""
    found = addresses(data, mgmtd)
    extra = [f"--{name.replace('_', '-')}" for name, given in flags.items() if given]
    extra += ["--metrics", metrics] if metrics is not None else []
    if os.geteuid() != 0:
        extra.append("--no-allow-other")  # which needs user_allow_other in /etc/fuse.conf
    if foreground:
        mounting.mount_here(mount_point, found, extra)
    log = log or mounting.default_log(mount_point)
    mounting.mount(mount_point, found, extra, log)
    click.echo(f"mounted at {mount_point} (log: {log}); `fs3 umount {mount_point}` ends it")


@cli.command()
@click.argument("mount_point", type=folder)
@click.option("--lazy", is_flag=True, help="Detach it now, even while files on it are open.")
def umount(mount_point: Path, lazy: bool) -> None:
    """Unmount fs3 from MOUNT_POINT."""
    mounting.umount(mount_point, lazy=lazy)


cli.add_command(rmtree.rmtree)
cli.add_command(lock.lock)
for _command in ranges.commands:
    cli.add_command(_command)
cli.add_command(bench)
cli.add_command(stats.stats)
cli.add_command(profile.profile)
cli.add_command(warmup.warmup)
cli.add_command(admin)
cli.add_command(completion)


def guarded(act: Callable[[], Any]) -> int:
    """Run a command; an error becomes one line and an exit code."""
    try:
        act()
    except FS3Error as error:
        return _failed(error)
    except BaseExceptionGroup as group:
        wanted, rest = group.split(FS3Error)
        if wanted is None or rest is not None:
            raise
        return _failed(_first(wanted))
    return EXIT_OK


def _first(error: BaseException) -> FS3Error:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FS3Error)
    return error


def _failed(error: FS3Error) -> int:
    click.echo(f"fs3: {error.message or error.code.name}", err=True)
    return EXIT_CONFIG if error.code in (Code.CONFIG, Code.FORMAT_VERSION) else EXIT_ERROR


def main() -> NoReturn:
    """The entry point."""
    sys.exit(guarded(cli))


if __name__ == "__main__":
    main()
