"""Messages of the management service. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .. import routing
from ..errors import Code, FS3Error
from ..routing import LocalState, RoutingInfo
from .common import Empty, Method


@dataclass(frozen=True, slots=True)
class TargetReport:
    """A target as its daemon sees it. capacity and used in bytes. chain, chain_version: of its chain, as the daemon knows
    it, so that mgmtd never takes `local` to speak of a state of the chain that the daemon had not seen yet (chain 0: not
    said). obeyed: routing.Target.since, once what was asked for then is done: it serves no more, or it is empty."""

    target: int
    disk: int
    local: LocalState
    capacity: int
    used: int
    chain_version: int = 0
    chain: int = 0
    obeyed: int = 0


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """A daemon or client begins an incarnation. node: 0 asks for a fresh id (clients). kind: ids.NodeKind.

    A new incarnation of a node ends the lease of the one before: its targets are offline from then on.
    predecessor, predecessor_incarnation: of a client, the registration of a process that is known to be gone, such as a
    crashed mount daemon that this one replaces; 0 for none.
    """

    node: int
    kind: int
    address: str
    host: str
    incarnation: int
    tags: tuple[str, ...] = ()
    targets: tuple[TargetReport, ...] = ()
    predecessor: int = 0
    predecessor_incarnation: int = 0


@dataclass(frozen=True, slots=True)
class RegisterReply:
    """lease_ms: how long the node counts as alive after a heartbeat. cluster: the cluster's id. config_version: see
    HeartbeatReply."""

    node: int
    cluster: str
    lease_ms: int
    routing_version: int
    config_version: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """Renews the lease. Refused with STALE_INCARNATION once the lease was lost: the daemon must exit or register anew.

    config_version: of the central configuration that the node uses, 0: none. config_problem: what of it it does not use.
    """

    node: int
    incarnation: int
    targets: tuple[TargetReport, ...] = ()
    metrics: str = ""
    config_version: int = 0
    config_problem: str = ""


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """config_version: the latest of the central configuration of this kind of node (admin.GET_CONFIG), 0: nothing is set."""

    lease_ms: int
    routing_version: int
    config_version: int = 0


@dataclass(frozen=True, slots=True)
class UnregisterRequest:
    """A clean stop: the lease ends now."""

    node: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class GetRoutingRequest:
    """Ask for routing newer than `known_version`, waiting at most wait_ms for it (long-poll; 0 = answer at once).

    deltas: the answer may be a RoutingDelta upon known_version. urgent: the asker takes part in chains, and is told of news
    before others are. known_version 0 is answered with the latest local states and fill levels.
    """

    known_version: int
    wait_ms: int = 0
    deltas: bool = False
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class RoutingMessage:
    """RoutingInfo on the wire."""

    version: int
    cluster: str
    chains: tuple[routing.Chain, ...]
    tables: tuple[routing.Table, ...]
    targets: tuple[routing.Target, ...]
    nodes: tuple[routing.Node, ...]

    @staticmethod
    def of(info: RoutingInfo) -> RoutingMessage:
        return RoutingMessage(
            info.version,
            info.cluster,
            tuple(info.chains.values()),
            tuple(info.tables.values()),
            tuple(info.targets.values()),
            tuple(info.nodes.values()),
        )

    def to_info(self) -> RoutingInfo:
        return RoutingInfo(
            self.version,
            self.cluster,
            {c.id: c for c in self.chains},
            {t.id: t for t in self.tables},
            {t.id: t for t in self.targets},
            {n.id: n for n in self.nodes},
        )


@dataclass(frozen=True, slots=True)
class RoutingDelta:
    """What makes the routing info of `version` out of that of `base`: all that is new or other, and the ids of what is gone.

    Local states and fill levels, which change without a new version, are only told of targets that are listed here.
    """

    base: int
    version: int
    cluster: str
    chains: tuple[routing.Chain, ...] = ()
    tables: tuple[routing.Table, ...] = ()
    targets: tuple[routing.Target, ...] = ()
    nodes: tuple[routing.Node, ...] = ()
    gone_chains: tuple[int, ...] = ()
    gone_tables: tuple[int, ...] = ()
    gone_targets: tuple[int, ...] = ()
    gone_nodes: tuple[int, ...] = ()

    def apply(self, info: RoutingInfo) -> RoutingInfo:
        """The routing info of `version`. info: that of `base`, of the same cluster."""
        assert (info.version, info.cluster) == (self.base, self.cluster), (info.version, info.cluster, self)
        return RoutingInfo(
            self.version,
            self.cluster,
            _changed(info.chains, self.chains, self.gone_chains),
            _changed(info.tables, self.tables, self.gone_tables),
            _changed(info.targets, self.targets, self.gone_targets),
            _changed(info.nodes, self.nodes, self.gone_nodes),
        )


class _HasId(Protocol):
    @property
    def id(self) -> int: ...


_Entry = TypeVar("_Entry", bound=_HasId)


def _changed(known: Mapping[int, _Entry], fresh: tuple[_Entry, ...], gone: tuple[int, ...]) -> Mapping[int, _Entry]:
    """A changed copy, or the same mapping where nothing changes."""
    if not fresh and not gone:
        return known
    entries = dict(known)
    for number in gone:
        entries.pop(number, None)
    for entry in fresh:
        entries[entry.id] = entry
    return entries


@dataclass(frozen=True, slots=True)
class GetRoutingReply:
    """One of the two, or none where nothing newer came in time."""

    routing: RoutingMessage | None
    delta: RoutingDelta | None = None


@dataclass(frozen=True, slots=True)
class FormatRequest:
    """Make the first chain table out of the registered targets: chains of `replicas` targets on different nodes.

    chunk_size: bytes. stripe: over how many chains a file is spread; 0, or more than there are, means all of them.
    Refused with ALREADY_FORMATTED when a table exists, BAD_PLACEMENT when the targets do not suffice, CONFIG.
    """

    replicas: int
    chunk_size: int
    stripe: int


@dataclass(frozen=True, slots=True)
class FormatReply:
    table: int
    chains: int


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """A registered client. client: its node id, as used in file sessions and request tags. ended: its process is known to
    be gone, by its own word or its successor's; one that is merely not alive was not heard of in time."""

    client: int
    host: str
    alive: bool
    ended: bool = False


@dataclass(frozen=True, slots=True)
class ListClientsReply:
    clients: tuple[ClientInfo, ...]


@dataclass(frozen=True, slots=True)
class ClusterConfigReply:
    """What was chosen at format; version 0 = not formatted yet."""

    version: int
    cluster: str
    table: int
    replicas: int
    chunk_size: int
    stripe: int


_PRIMARY_IS = "primary is "


def not_primary(address: str) -> FS3Error:
    """The refusal of an mgmtd that is not primary. address: of the primary; "" where it is not known."""
    return FS3Error(Code.NOT_PRIMARY, _PRIMARY_IS + address if address else "no primary known yet")


def primary_of(error: FS3Error) -> str:
    """The primary's address in a NOT_PRIMARY error; "" where it names none."""
    named = error.code is Code.NOT_PRIMARY and error.message.startswith(_PRIMARY_IS)
    return error.message.removeprefix(_PRIMARY_IS) if named else ""


REGISTER = Method(100, "mgmtd.register", RegisterRequest, RegisterReply)
HEARTBEAT = Method(101, "mgmtd.heartbeat", HeartbeatRequest, HeartbeatReply)
UNREGISTER = Method(102, "mgmtd.unregister", UnregisterRequest, Empty)
GET_ROUTING = Method(103, "mgmtd.get_routing", GetRoutingRequest, GetRoutingReply)
FORMAT = Method(104, "mgmtd.format", FormatRequest, FormatReply)
LIST_CLIENTS = Method(105, "mgmtd.list_clients", Empty, ListClientsReply)
CLUSTER_CONFIG = Method(106, "mgmtd.cluster_config", Empty, ClusterConfigReply)
