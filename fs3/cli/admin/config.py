"""`fs3 admin config`: the settings of all daemons of a kind, which are kept in mgmtd, in versions."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
import trio
from click.shell_completion import CompletionItem

from ...api.admin import (
    CONFIG_HISTORY,
    CONFIG_USE,
    GET_CONFIG,
    SET_CONFIG,
    ConfigHistoryRequest,
    ConfigUse,
    ConfigVersion,
    GetConfigRequest,
    SetConfigRequest,
    Setting,
)
from ...api.common import Empty
from ...api.mgmtd import LIST_CLIENTS
from ...config import nearest, show
from ...daemon import EXIT_ERROR
from ...errors import ConfigError
from ...settings import KINDS, Kind, kind_of
from ..access import setter
from .common import Admin, Cluster, command, plain, rows_table

POLL_S = 0.2

Row = dict[str, Any]


class _KindType(click.ParamType[str]):
    """A kind of daemon; others are refused by the command itself, in the words of all other errors."""

    name = "kind"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(kind) for kind in KINDS if kind.startswith(incomplete)]


def _complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Hot keys of the kind that was typed before."""
    kind = KINDS.get(ctx.params.get("kind") or "")
    hot = kind.options() if kind is not None else {}
    ending = "=" if param.name == "settings" else ""
    return [CompletionItem(key + ending, help=entry.help) for key, entry in hot.items() if key.startswith(incomplete)]


@click.group("config")
def config() -> None:
    """Settings of all daemons of a kind: mgmtd, meta, storage, client (mounts).

    They are changed while the daemons run. A daemon's own flags and file win over them.
    """


commands = (config,)

kind_argument = click.argument("kind", type=_KindType())
comment_option = click.option("--comment", default="", metavar="TEXT", help="Why; kept in the history.")
base_option = click.option(
    "--base",
    type=click.IntRange(min=0),
    metavar="VERSION",
    help="Refuse it if somebody has set something after this version.",
)
wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until all daemons of the kind use it.",
)


@command(config, "get")
@kind_argument
@click.argument("key", required=False, shell_complete=_complete_key)
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="An older version instead of the latest.")
def config_get(go: Admin, kind: str, key: str | None, version: int | None) -> None:
    """Show what is set for all daemons of KIND, or print the value of KEY: what is set, else its default."""
    chosen = kind_of(kind)
    if key is not None:
        _known_key(chosen, key)
    found = go.visit(lambda cluster: cluster.call(GET_CONFIG, GetConfigRequest(kind, version or 0)))
    if key is None:
        go.show(version_row(found), lambda: plain("\n".join([headline(found), *settings_lines(found)])))
    else:
        value = values(found).get(key, default_of(chosen, key))
        go.show({"kind": kind, "version": found.version, "key": key, "value": value}, lambda: plain(value))


@command(config, "set")
@kind_argument
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...", shell_complete=_complete_key)
@comment_option
@base_option
@wait_option
def config_set(go: Admin, kind: str, settings: tuple[str, ...], comment: str, base: int | None, wait: float) -> None:
    """Set keys for all daemons of KIND, which take them while they run. All of them, or none if one is refused.

    Exit code: 0 when all living daemons of the kind use it, else 1.
    """
    kind_of(kind)
    pairs = tuple([_setting(text) for text in settings])
    change(go, SetConfigRequest(kind, pairs, (), -1 if base is None else base, setter(), comment), wait)


@command(config, "unset")
@kind_argument
@click.argument("keys", nargs=-1, required=True, metavar="KEY...", shell_complete=_complete_key)
@comment_option
@base_option
@wait_option
def config_unset(go: Admin, kind: str, keys: tuple[str, ...], comment: str, base: int | None, wait: float) -> None:
    """Have keys of all daemons of KIND as if they had never been set. Exit code: as of set."""
    kind_of(kind)
    change(go, SetConfigRequest(kind, (), keys, -1 if base is None else base, setter(), comment), wait)


@command(config, "diff")
@kind_argument
@click.argument("old", type=click.IntRange(min=0), required=False, metavar="[V1")
@click.argument("new", type=click.IntRange(min=1), required=False, metavar="[V2]]")
def config_diff(go: Admin, kind: str, old: int | None, new: int | None) -> None:
    """Show how versions differ: V1 from V2, or from the latest; without any, the defaults (version 0) from the latest."""
    chosen = kind_of(kind)

    async def gather(cluster: Cluster) -> tuple[ConfigVersion, ConfigVersion]:
        before = ConfigVersion(kind, 0, ())
        if old:
            before = await cluster.call(GET_CONFIG, GetConfigRequest(kind, old))
        return before, await cluster.call(GET_CONFIG, GetConfigRequest(kind, new or 0))

    before, after = go.visit(gather)
    rows = diff_rows(chosen, before, after)
    title = f"{kind}: {f'version {before.version}' if before.version else 'defaults'} -> version {after.version}"
    found = {"kind": kind, "old": before.version, "new": after.version, "changes": rows}
    go.show(found, lambda: [title, rows_table(rows, "key old new") if rows else "no difference"])


@command(config, "history")
@kind_argument
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="The newest so many.")
def config_history(go: Admin, kind: str, limit: int) -> None:
    """Show who set what for daemons of KIND, when and why; the newest first."""
    chosen = kind_of(kind)
    reply = go.visit(lambda cluster: cluster.call(CONFIG_HISTORY, ConfigHistoryRequest(kind, limit + 1)))
    rows = history_rows(chosen, reply.versions)[:limit]
    go.show(rows, lambda: rows_table(rows, "version set by changes comment") if rows else f"{kind}: nothing was ever set")


@command(config, "show")
@kind_argument
def config_show(go: Admin, kind: str) -> None:
    """Show all keys of KIND: value, default, where the value comes from; and why others cannot be set here."""
    chosen = kind_of(kind)
    found = go.visit(lambda cluster: cluster.call(GET_CONFIG, GetConfigRequest(kind)))
    hot = hot_rows(chosen, found)
    cold: list[Row] = [{"key": key, "reason": reason} for key, reason in chosen.cold.items()]
    go.show(
        {"kind": kind, "version": found.version, "hot": hot, "cold": cold, "where": chosen.where},
        lambda: [
            plain(headline(found)),
            rows_table(hot, "key value default source help"),
            f"\nCannot be changed while running; {chosen.where}:",
            rows_table(cold, "key reason"),
        ],
    )


@command(config, "use")
@click.argument("kind", required=False, type=_KindType())
def config_use(go: Admin, kind: str | None) -> None:
    """Show which daemons use which version, and which settings they override or cannot use.

    Exit code: 1 when one does not use the latest version of its kind.
    """
    kinds = [kind_of(kind).name] if kind else list(KINDS)

    async def gather(cluster: Cluster) -> list[Row]:
        uses = await cluster.call(CONFIG_USE, Empty())
        latest = {name: (await cluster.call(GET_CONFIG, GetConfigRequest(name))).version for name in kinds}
        return use_rows(await hosts(cluster), uses.uses, latest)

    rows = go.visit(gather)
    go.show(rows, lambda: rows_table(rows, "node kind host version latest problem"))
    if any(behind(row) for row in rows):
        sys.exit(EXIT_ERROR)


def change(go: Admin, request: SetConfigRequest, wait_s: float) -> None:
    """Set, wait for the daemons, tell what came of it."""

    async def act(cluster: Cluster) -> tuple[ConfigVersion, ConfigVersion, list[Row]]:
        before = await cluster.call(GET_CONFIG, GetConfigRequest(request.kind))
        after = await cluster.call(SET_CONFIG, request)
        return before, after, await taken(cluster, after, wait_s)

    before, after, uses = go.visit(act)
    changes = diff_rows(kind_of(request.kind), before, after)
    late = [row for row in uses if behind(row)]
    done = {**version_row(after), "changes": changes, "daemons": uses, "all_use_it": not late}
    go.show(done, lambda: plain("\n".join([*change_lines(after, changes), *use_lines(request.kind, uses)])))
    if late:
        sys.exit(EXIT_ERROR)


async def taken(cluster: Cluster, version: ConfigVersion, wait_s: float) -> list[Row]:
    """Wait until all living daemons of its kind use this version, or one after it; what they use in the end."""
    deadline = cluster.env.monotonic() + wait_s
    while True:
        uses = [use for use in (await cluster.call(CONFIG_USE, Empty())).uses if use.kind == version.kind]
        if all(use.version >= version.version for use in uses) or cluster.env.monotonic() >= deadline:
            return use_rows(await hosts(cluster), uses, {version.kind: version.version})
        await trio.sleep(POLL_S)


def values(version: ConfigVersion) -> dict[str, str]:
    return {setting.key: setting.value for setting in version.settings}


def default_of(kind: Kind, key: str) -> str:
    """The default of a hot key, as one writes it; of one that this release does not know, nothing."""
    entry = kind.options().get(key)
    return show(entry, entry.default) if entry is not None else ""


def version_row(version: ConfigVersion) -> Row:
    return {
        "kind": version.kind,
        "version": version.version,
        "set_ms": version.set_ms,
        "by": version.by,
        "comment": version.comment,
        "settings": values(version),
    }


def headline(version: ConfigVersion) -> str:
    if not version.version:
        return f"{version.kind}: nothing was ever set"
    why = f": {version.comment}" if version.comment else ""
    return f"{version.kind} version {version.version}, set {when(version.set_ms)} by {version.by or 'unknown'}{why}"


def settings_lines(version: ConfigVersion) -> list[str]:
    lines = [f"  {key} = {value}" for key, value in values(version).items()]
    return lines or (["  nothing is set: all have their defaults"] if version.version else [])


def when(wall_ms: int) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_ms / 1000))


def diff_rows(kind: Kind, old: ConfigVersion, new: ConfigVersion) -> list[Row]:
    """What differs, as effective values: where a version sets nothing, the default."""
    before, after = values(old), values(new)
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    return [{"key": key, "old": _effective(kind, before, key), "new": _effective(kind, after, key)} for key in changed]


def _effective(kind: Kind, settings: dict[str, str], key: str) -> str:
    return settings[key] if key in settings else f"{default_of(kind, key)} (default)"


def history_rows(kind: Kind, versions: Sequence[ConfigVersion]) -> list[Row]:
    """Each with what it changed of the one before. versions: newest first."""
    rows = []
    for index, version in enumerate(versions):
        before = versions[index + 1] if index + 1 < len(versions) else ConfigVersion(kind.name, 0, ())
        known = before.version == version.version - 1
        changes = [f"{row['key']}: {row['old']} -> {row['new']}" for row in diff_rows(kind, before, version)]
        rows.append(
            {
                "version": version.version,
                "set": when(version.set_ms),
                "set_ms": version.set_ms,
                "by": version.by,
                "changes": "; ".join(changes) if known else "",
                "comment": version.comment,
                "settings": values(version),
            }
        )
    return rows


def hot_rows(kind: Kind, version: ConfigVersion) -> list[Row]:
    settings = values(version)
    return [
        {
            "key": key,
            "value": settings.get(key, show(entry, entry.default)),
            "default": show(entry, entry.default),
            "source": "set" if key in settings else "default",
            "help": entry.help,
        }
        for key, entry in kind.options().items()
    ]


def use_rows(names: Mapping[int, str], uses: Sequence[ConfigUse], latest: Mapping[str, int]) -> list[Row]:
    """Of the kinds in `latest`. version: None of a daemon that has not said yet. names: hosts by node."""
    kinds = list(KINDS)
    return [
        {
            "node": use.node,
            "kind": use.kind,
            "host": names.get(use.node, ""),
            "version": use.version if use.version >= 0 else None,
            "latest": latest[use.kind],
            "problem": use.problem,
        }
        for use in sorted(uses, key=lambda use: (kinds.index(use.kind), use.node))
        if use.kind in latest
    ]


def behind(row: Row) -> bool:
    """Whether a daemon does not use the latest version."""
    return row["version"] is None or bool(row["version"] < row["latest"])


async def hosts(cluster: Cluster) -> dict[int, str]:
    """Of all nodes, clients too."""
    clients = (await cluster.call(LIST_CLIENTS, Empty())).clients
    return {node.id: node.host for node in cluster.routing.nodes.values()} | {each.client: each.host for each in clients}


def change_lines(after: ConfigVersion, changes: Sequence[Row]) -> list[str]:
    if not changes:
        return [f"{after.kind}: nothing to change, version {after.version} says so already"]
    return [f"{after.kind} version {after.version}:", *[f"  {r['key']}: {r['old']} -> {r['new']}" for r in changes]]


def use_lines(kind: str, uses: Sequence[Row]) -> list[str]:
    """Who has taken it, who has not, and who overrides something."""
    if not uses:
        return [f"No {kind} daemon is alive; they take it when they start."]
    late = [row for row in uses if behind(row)]
    lines = [f"{len(uses) - len(late)} of {len(uses)} living {kind} daemons use it."]
    lines.extend([f"  node {row['node']} {row['host']}: {row['problem']}" for row in uses if row["problem"]])
    if late:
        lines.append(f"Not yet: node {', '.join([str(row['node']) for row in late])}; see `fs3 admin config use {kind}`")
    return lines


def _setting(text: str) -> Setting:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"{text!r}: expected KEY=VALUE, such as log_level=debug")
    return Setting(key.strip(), value.strip())


def _known_key(kind: Kind, key: str) -> None:
    hot = kind.options()
    if key in kind.cold:
        raise ConfigError(f"{kind.name}: '{key}' is not kept in mgmtd: {kind.cold[key]}; {kind.where}")
    if key not in hot:
        raise ConfigError(f"{kind.name}: unknown key '{key}'{nearest(key, [*hot, *kind.cold])}")
