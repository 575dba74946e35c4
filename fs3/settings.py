"""The settings that live in mgmtd, per kind of daemon, and what each key of a daemon's configuration is: hot or cold. Pure.

Hot: it can be changed while the daemon runs. Such keys are fields of the classes below, which the daemons' own
configurations inherit, so that each is defined once. Cold: all others, with the reason, and where to set them instead.

What a daemon uses for a hot key: what its own flags or file say, else what mgmtd says, else the default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .config import Option, given, nearest, option, options, parse, show
from .errors import ConfigError
from .ids import NodeKind
from .log import LEVELS

_MIB = 1024 * 1024

OVERRIDDEN = "its own file or flags say"
"""How the complaint begins of a daemon that keeps to values of its own."""


@dataclass(frozen=True, kw_only=True)
class RdmaKeys:
    """Of every daemon and mount, for addresses rdma://. None of them is hot."""

    rdma_devices: tuple[str, ...] = option(
        (), help="RDMA devices to use in turn, as NAME or NAME:PORT; by default that of the address, else all that are up"
    )
    rdma_gid: int = option(
        -1, help="index of the GID to use; -1: that of the connection's address, else RoCE v2 before others", at_least=-1
    )
    rdma_pool: int = option(
        256 * _MIB, help="memory registered with each RDMA device, at most, for what passes through", unit="bytes",
        at_least=_MIB,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MgmtdSettings:
    """Of fs3-mgmtd."""

    client_lease_ms: int = option(
        30_000,
        help="how long a client counts as alive after a heartbeat; its open files are closed then",
        unit="ms",
        at_least=200,
        at_most=3_600_000,
    )
    forget_client_ms: int = option(
        600_000, help="how long a client that is gone stays listed", unit="ms", at_least=1_000, at_most=86_400_000
    )
    log_level: str = option("info", help="what to log", choices=LEVELS)


@dataclass(frozen=True, kw_only=True)
class MetaSettings:
    """Of fs3-meta."""

    session_grace_ms: int = option(
        10_000, help="how long a client is dead before its open files are closed", unit="ms", at_least=0, at_most=3_600_000
    )
    unknown_grace_ms: int = option(
        600_000,
        help="the same for a client that mgmtd does not know at all",
        unit="ms",
        at_least=1_000,
        at_most=86_400_000,
    )
    gc_gather_ms: int = option(
        50, help="files removed so close to each other are collected together", unit="ms", at_least=1, at_most=60_000
    )
    gc_sweep_ms: int = option(
        5_000, help="how often to look for what dead daemons and clients left", unit="ms", at_least=100, at_most=3_600_000
    )
    gc_files_at_once: int = option(
        16, help="removed files whose chunks are removed at the same time", at_least=1, at_most=1_000
    )
    log_level: str = option("info", help="what to log", choices=LEVELS)


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Of fs3-storage."""

    reserve_bytes: int = option(256 * _MIB, help="space kept free on each disk", unit="bytes", at_least=0)
    resync_rate_bytes: int = option(
        128 * _MIB,
        help="bytes a second, at most, that a target sends to one that came back; 0: no limit",
        unit="bytes",
        at_least=0,
    )
    scrub_period_ms: int = option(
        168 * 3_600_000,
        help="how long the scrubber takes to verify all chunks; 0: it does not run",
        unit="ms",
        at_least=0,
    )
    scrub_rate_bytes: int = option(
        32 * _MIB, help="bytes a second, at most, that it reads of each target; 0: no limit", unit="bytes", at_least=0
    )
    full_retry_ms: int = option(
        20_000,
        help="how long a target that was too full to be filled stays out before it tries again",
        unit="ms",
        at_least=100,
        at_most=86_400_000,
    )
    read_failures_max: int = option(
        50, help="reads that a disk may fail within an hour before it is given up", at_least=1, at_most=1_000_000
    )
    log_level: str = option("info", help="what to log", choices=LEVELS)


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Of mounts, and of programs that use the Python API (those of them that it has a use for: the time-outs of calls)."""

    entry_timeout: int = option(
        1000, unit="ms", at_least=0, help="how long names found stay valid: other mounts' renames show after that"
    )
    attr_timeout: int = option(
        1000, unit="ms", at_least=0, help="how long attributes stay valid: other mounts' changes show after that"
    )
    read_ahead: int = option(
        8 * _MIB, unit="bytes", at_least=0, help="how far to read ahead of sequential readers; 0 = not at all"
    )
    read_cache: int = option(128 * _MIB, unit="bytes", at_least=0, help="memory for what was read ahead, of the whole mount")
    kernel_read_ahead: int = option(
        4 * _MIB, unit="bytes", at_least=0, help="the kernel's own read-ahead on this mount (set when root)"
    )
    write_buffer: int = option(
        32 * _MIB, unit="bytes", at_least=1, help="with write_behind: how much may wait in memory, of all files"
    )
    io_timeout: int = option(
        30_000,
        unit="ms",
        at_least=1_000,
        at_most=3_600_000,
        help="how long a read or write is tried before the program gets an error",
    )
    sync_timeout: int = option(
        120_000,
        unit="ms",
        at_least=1_000,
        at_most=3_600_000,
        help="how long an fsync is tried before the program gets an error",
    )
    meta_timeout: int = option(
        30_000,
        unit="ms",
        at_least=1_000,
        at_most=3_600_000,
        help="how long a call on names and attributes is tried before the program gets an error",
    )
    log_level: str = option("info", help="how much to log", choices=LEVELS)


Settings = MgmtdSettings | MetaSettings | StorageSettings | ClientSettings
S = TypeVar("S", MgmtdSettings, MetaSettings, StorageSettings, ClientSettings)

_WHO = "it says which daemon this is"
_BOUND = "the daemon listens there from its start on"
_TOLD = "the daemon says so when it registers"
_RDMA = dict.fromkeys(
    ("rdma_devices", "rdma_gid", "rdma_pool"), "devices are opened, and memory registered, with the first connection"
)
_BEFORE = "a daemon needs it to find this configuration"
_STORE = "the store is opened at the start"
_RINGS = "what programs have already counts by it"
_AT_MOUNT = "it is agreed with the kernel at the time of mounting"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of daemon. hot: the class of its settings. cold: its other keys, each with the reason.
    where: what to do to change one of those."""

    name: str
    program: str
    hot: type[Any]
    cold: Mapping[str, str]
    where: str

    def options(self) -> dict[str, Option]:
        """The hot keys."""
        return options(self.hot)


def _kind(name: str, program: str, hot: type[Any], cold: Mapping[str, str], where: str = "") -> Kind:
    place = where or f"set it in the file of each {program} (--config), and restart that"
    return Kind(name, program, hot, cold, place)


KINDS = {
    "mgmtd": _kind(
        "mgmtd",
        "fs3-mgmtd",
        MgmtdSettings,
        {
            "node_id": _WHO,
            "listen": _BOUND,
            "advertise": _TOLD,
            "host": _TOLD,
            "data": _STORE,
            "store": _STORE,
            "metrics": _BOUND,
            **_RDMA,
            "lease_ms": "it also times how mgmtd daemons take over from each other, on which all of them must agree",
        },
    ),
    "meta": _kind(
        "meta",
        "fs3-meta",
        MetaSettings,
        {
            "node_id": _WHO,
            "listen": _BOUND,
            "advertise": _TOLD,
            "host": _TOLD,
            "mgmtd": _BEFORE,
            "data": _STORE,
            "store": _STORE,
            "metrics": _BOUND,
            "short_circuit": _BOUND,
            **_RDMA,
            "root_uid": "it is read once, when the root directory is made; afterwards use chown",
            "root_gid": "it is read once, when the root directory is made; afterwards use chgrp",
        },
    ),
    "storage": _kind(
        "storage",
        "fs3-storage",
        StorageSettings,
        {
            "node_id": _WHO,
            "mgmtd": _BEFORE,
            "data": "disks are opened at the start",
            "listen": _BOUND,
            "advertise": _TOLD,
            "host": _TOLD,
            "metrics": _BOUND,
            "tags": _TOLD,
            "targets_per_disk": "targets are made when the daemon starts",
            "short_circuit": _BOUND,
            **_RDMA,
            "direct_io": "data files are opened with it, or without",
        },
    ),
    "client": _kind(
        "client",
        "fs3-mount",
        ClientSettings,
        {
            "mount": _AT_MOUNT,
            "mgmtd": _BEFORE,
            "read_only": _AT_MOUNT,
            "allow_other": _AT_MOUNT,
            "atime": "it is part of how this mount was made",
            "xattrs": "the kernel asks once, and keeps to the answer until it is mounted anew",
            "write_behind": "it decides what a crash may lose, which is for who mounts to decide",
            "writeback": "it is part of how this mount was made",
            "strict": "files that are open would go on as they were opened",
            "short_circuit": "it is asked for when a connection is made",
            **_RDMA,
            "rings": _RINGS,
            "ring_files": _RINGS,
            "ring_memory": _RINGS,
            "state": "it is read before the mount registers",
            "metrics": _BOUND,
            "host": _TOLD,
        },
        "set it in the file or by a flag of each fs3-mount, and mount anew",
    ),
}

_NAMES = {
    NodeKind.MGMTD: "mgmtd",
    NodeKind.META: "meta",
    NodeKind.STORAGE: "storage",
    NodeKind.CLIENT: "client",
}


def name_of(kind: int) -> str:
    """What a NodeKind is called here."""
    return _NAMES[NodeKind(kind)]


def kind_of(name: str) -> Kind:
    """Raises ConfigError."""
    kind = KINDS.get(name)
    if kind is None:
        raise ConfigError(f"no kind of daemon is called '{name}'{nearest(name, list(KINDS))}")
    return kind


def hot_option(kind: Kind, key: str) -> Option:
    """A key that can be set in mgmtd. Raises ConfigError with the reason where it cannot, or with what was meant."""
    hot = kind.options()
    found = hot.get(key)
    if found is not None:
        return found
    if key in kind.cold:
        raise ConfigError(f"{kind.name}: '{key}' cannot be changed while running: {kind.cold[key]}; {kind.where}")
    raise ConfigError(f"{kind.name}: unknown key '{key}'{nearest(key, [*hot, *kind.cold])}")


def checked(kind: Kind, key: str, text: str) -> str:
    """The value as it is always written. Raises ConfigError."""
    entry = hot_option(kind, key)
    return show(entry, parse(entry, text, kind.name))


def merged(kind: Kind, own: Any, central: Mapping[str, str]) -> tuple[Any, list[str]]:
    """The hot settings to use: own ones where they were given, else the central ones, else defaults. With the complaints:
    own ones that override others, and central ones that cannot be used. own: the daemon's configuration, or only settings.
    """
    hot = kind.options()
    mine = given(own)
    values = {key: getattr(own, key) for key in hot}
    overridden: list[str] = []
    problems: list[str] = []
    for key, text in central.items():
        try:
            value = parse(hot_option(kind, key), text, "mgmtd")
        except ConfigError as error:
            problems.append(error.message)
            continue
        if key not in mine:
            values[key] = value
        elif value != values[key]:
            overridden.append(f"{key}={show(hot[key], values[key])}")
    if overridden:
        problems.insert(0, f"{OVERRIDDEN} {', '.join(overridden)}")
    return kind.hot(**values), problems


def differences(old: Any, new: Any) -> Sequence[str]:
    """The keys in which two settings of one class differ."""
    return [field.name for field in dataclasses.fields(new) if getattr(old, field.name) != getattr(new, field.name)]


def in_words(settings: Any, keys: Sequence[str]) -> str:
    """Some of the keys with their values, as one writes them."""
    known = options(type(settings))
    return ", ".join([f"{key}={show(known[key], getattr(settings, key))}" for key in keys])
