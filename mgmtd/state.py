"""The state of the cluster, in memory and as it is stored, and what an event changes of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from fs3.api.admin import ConfigVersion
from fs3.api.mgmtd import ClusterConfigReply
from fs3.routing import Chain, LocalState, Node, RoutingInfo, Table, Target

from .configs import Changes, Configs
from .operations import MoveChanges, MoveRecord, OperationChanges, OperationRecord, Operations

T = TypeVar("T")

Use = tuple[int, str]
"""Version of the central configuration in use, and the problem with it, as in heartbeats."""

FIRST_CLIENT = 1_000_001
"""Clients get ids from here on; the ids of daemons, which their configuration says, are below."""


@dataclass(frozen=True, slots=True)
class Head:
    """What changes with (nearly) each commit. revision: of the whole stored state. next_client: id for the next client.

    lease_ms, client_lease_ms: no daemon, no client holds a lease that ends later than so long from now. A primary that
    grants shorter ones, by its configuration, must wait for those that its predecessor granted.
    """

    revision: int
    routing_version: int
    cluster: str
    next_client: int
    lease_ms: int = 0
    client_lease_ms: int = 0
    next_chain: int = 0
    next_table: int = 0
    next_operation: int = 0
    """Numbers are never given twice, also not when what had them is gone. 0: none was given but by the present entries."""


class IdKind(IntEnum):
    """What mgmtd numbers."""

    CHAIN = 1
    TABLE = 2
    OPERATION = 3


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A registered client. One that is not alive is kept for a while, so that its sessions can be pruned. ended: see
    ClientInfo."""

    id: int
    host: str
    incarnation: int
    alive: bool
    ended: bool = False


@dataclass(slots=True)
class Saved:
    """All that is stored."""

    head: Head
    config: ClusterConfigReply | None = None
    chains: dict[int, Chain] = field(default_factory=dict)
    tables: dict[int, Table] = field(default_factory=dict)
    targets: dict[int, Target] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    clients: dict[int, ClientRecord] = field(default_factory=dict)
    configs: list[ConfigVersion] = field(default_factory=list)
    operations: list[OperationRecord] = field(default_factory=list)
    moves: list[MoveRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Change:
    """What one event makes of the cluster: new values by id, None for what is removed.

    head: None when nothing has to be stored. stored_targets: those of `targets` that have to be. ended: node -> the
    incarnation that is over.
    """

    head: Head | None
    config: ClusterConfigReply | None
    chains: Mapping[int, Chain | None]
    tables: Mapping[int, Table | None]
    targets: Mapping[int, Target | None]
    stored_targets: frozenset[int]
    nodes: Mapping[int, Node | None]
    clients: Mapping[int, ClientRecord | None]
    locals: Mapping[int, LocalState | None]
    leases: Mapping[int, float | None]
    forget: Mapping[int, float | None]
    ended: Mapping[int, int]
    configs: Changes
    uses: Mapping[int, Use | None]
    operations: OperationChanges = field(default_factory=dict)
    moves: MoveChanges = field(default_factory=dict)


class State:
    """What the primary knows. Changed by apply(), and Cluster.renew(), alone."""

    def __init__(self, saved: Saved) -> None:
        self.head = saved.head
        self.config = saved.config
        self.chains = dict(saved.chains)
        self.tables = dict(saved.tables)
        self.targets = dict(saved.targets)
        self.published = dict(saved.targets)  # as in the last routing version that told of them
        self.nodes = dict(saved.nodes)
        self.clients = dict(saved.clients)
        self.node_targets: dict[int, set[int]] = {}
        self.locals: dict[int, LocalState] = {}  # absent: not known yet
        self.leases: dict[int, float] = {}  # node or client -> when it ends; those alive, but for mgmtd
        self.forget: dict[int, float] = {}  # dead client -> when it is dropped from the list
        self.ended: dict[int, int] = {}  # node -> the incarnation that is over
        self.configs = Configs(saved.configs)
        self.uses: dict[int, Use] = {}  # node -> what it said of its configuration
        self.operations = Operations(saved.operations, saved.moves)
        self._routing: RoutingInfo | None = None  # built when asked for
        # Invariant: a chain's targets exist and have target.chain == chain.id; a node's lease runs iff it is alive.
        for target in self.targets.values():
            self.node_targets.setdefault(target.node, set()).add(target.id)
            owner = self.nodes.get(target.node)
            if owner is None or not owner.alive:
                self.locals[target.id] = LocalState.OFFLINE

    def next_id(self, kind: IdKind) -> int:
        """A number that nothing of this kind ever had."""
        if kind is IdKind.CHAIN:
            return max(self.head.next_chain, max(self.chains, default=0) + 1)
        if kind is IdKind.TABLE:
            return max(self.head.next_table, max(self.tables, default=0) + 1)
        return max(self.head.next_operation, max(self.operations.plans, default=0) + 1)

    @property
    def routing(self) -> RoutingInfo:
        """The routing info. Local states and fill levels in it are the latest, and change without a new version."""
        if self._routing is None:
            self._routing = RoutingInfo(
                self.head.routing_version,
                self.head.cluster,
                dict(self.chains),
                dict(self.tables),
                dict(self.targets),
                dict(self.nodes),
            )
        return self._routing

    def refill(self, targets: Sequence[Target]) -> None:
        """Take in fill levels, which nobody need hear of."""
        if targets:
            self.targets.update({target.id: target for target in targets})
            self._routing = None

    def apply(self, change: Change) -> None:
        """Take in a change that was made of the present state, and was committed if it had to be."""
        if change.head is not None:
            assert change.head.revision == self.head.revision + 1, (change.head, self.head)
            self.head = change.head
        self.config = change.config or self.config
        for number, target in change.targets.items():
            before = self.targets.get(number)
            if before is not None:
                self.node_targets[before.node].discard(number)
            if target is not None:
                self.node_targets.setdefault(target.node, set()).add(number)
        _merge(self.chains, change.chains)
        _merge(self.tables, change.tables)
        _merge(self.targets, change.targets)
        _merge(self.published, {target: change.targets[target] for target in change.stored_targets})
        _merge(self.locals, change.locals)
        self.ended.update(change.ended)
        _merge(self.nodes, change.nodes)
        _merge(self.clients, change.clients)
        _merge(self.leases, change.leases)
        _merge(self.forget, change.forget)
        _merge(self.uses, change.uses)
        self.configs.apply(change.configs)
        if change.operations or change.moves:
            self.operations.apply(change.operations, change.moves)
        if change.head is not None or change.targets:
            self._routing = None


def _merge(into: dict[int, T], changes: Mapping[int, T | None]) -> None:
    for key, value in changes.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value
