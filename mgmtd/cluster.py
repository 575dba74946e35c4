"""The state of the cluster and what each event makes of it. Pure.

An event (a request, the passing of time) is turned into a `Change` without touching anything; the service commits what
of it must last, and then applies it. So memory never runs ahead of the store, and a change that could not be committed has
not happened. Public states, versions, incarnations and who is alive last; leases, local states and fill levels do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fs3.api.mgmtd import (
    ClientInfo,
    ClusterConfigReply,
    FormatReply,
    FormatRequest,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
    UnregisterRequest,
)
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.layout import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, valid_chunk_size
from fs3.routing import Chain, LocalState, Node, RoutingInfo, Table, Target

from .chains import new_chain, next_chain
from .placement import place

FIRST_CLIENT = 1_000_001
"""Clients get ids from here on; the ids of daemons, which their configuration says, are below."""
CLIENT_IDS_SKIPPED = 1_000
"""At each start, since the last registrations before a power loss may be forgotten, and no id may be given twice."""
FIRST_TABLE = 1
FILL_CHANGE_PUBLISHED = 0.05
"""A fill level that changed by this part of the capacity is worth a new routing version."""

T = TypeVar("T")

_KINDS = {kind.value: kind for kind in NodeKind}


@dataclass(frozen=True, slots=True)
class Head:
    """What changes with (nearly) each commit. revision: of the whole stored state. next_client: id for the next client."""

    revision: int
    routing_version: int
    cluster: str
    next_client: int


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


@dataclass(frozen=True, slots=True)
class Timing:
    """lease_ms: of daemons. client_lease_ms: of clients. forget_client_ms: how long a dead client stays listed."""

    lease_ms: int = 10_000
    client_lease_ms: int = 30_000
    forget_client_ms: int = 600_000

    def lease_of(self, node: int) -> int:
        return self.client_lease_ms if node >= FIRST_CLIENT else self.lease_ms


@dataclass(frozen=True, slots=True)
class Change:
    """What one event makes of the cluster: new values by id, None for what is removed.

    head: None when nothing has to be stored. stored_targets: those of `targets` that have to be. ended: node -> the
    incarnation that is over.
    """

    head: Head | None
    config: ClusterConfigReply | None
    chains: Mapping[int, Chain]
    tables: Mapping[int, Table]
    targets: Mapping[int, Target]
    stored_targets: frozenset[int]
    nodes: Mapping[int, Node | None]
    clients: Mapping[int, ClientRecord | None]
    locals: Mapping[int, LocalState]
    leases: Mapping[int, float | None]
    forget: Mapping[int, float | None]
    ended: Mapping[int, int]


class Cluster:
    """The primary's view of the cluster. `now`: monotonic seconds."""

    def __init__(self, saved: Saved, timing: Timing, now: float) -> None:
        """Every node that was alive gets a whole lease from now on: it could not reach us while we were away."""
        self._timing = timing
        self._head = saved.head
        self._config = saved.config
        self._chains = dict(saved.chains)
        self._tables = dict(saved.tables)
        self._targets = dict(saved.targets)
        self._published = dict(saved.targets)  # as in the last routing version that told of them
        self._nodes = dict(saved.nodes)
        self._clients = dict(saved.clients)
        self._node_targets: dict[int, set[int]] = {}
        self._locals: dict[int, LocalState] = {}  # absent: not known yet
        self._leases: dict[int, float] = {}  # node or client -> when it ends; those alive, but for mgmtd
        self._forget: dict[int, float] = {}  # dead client -> when it is dropped from the list
        self._ended: dict[int, int] = {}
        self._routing: RoutingInfo | None = None  # built when asked for
        # Invariant: a chain's targets exist and have target.chain == chain.id; a node's lease runs iff it is alive.
        for target in self._targets.values():
            self._node_targets.setdefault(target.node, set()).add(target.id)
            owner = self._nodes.get(target.node)
            if owner is None or not owner.alive:
                self._locals[target.id] = LocalState.OFFLINE
        for node in self._nodes.values():
            if node.alive and node.kind != NodeKind.MGMTD:
                self._leases[node.id] = now + timing.lease_ms / 1000
        for client in self._clients.values():
            if client.alive:
                self._leases[client.id] = now + timing.client_lease_ms / 1000
            else:
                self._forget[client.id] = now + timing.forget_client_ms / 1000

    @property
    def head(self) -> Head:
        return self._head

    @property
    def version(self) -> int:
        """Of the routing info."""
        return self._head.routing_version

    @property
    def routing(self) -> RoutingInfo:
        """The routing info. Local states and fill levels in it are the latest, and change without a new version."""
        if self._routing is None:
            self._routing = RoutingInfo(
                self._head.routing_version,
                self._head.cluster,
                dict(self._chains),
                dict(self._tables),
                dict(self._targets),
                dict(self._nodes),
            )
        return self._routing

    def config(self) -> ClusterConfigReply:
        """What was chosen at format; version 0 before."""
        return self._config or ClusterConfigReply(0, self._head.cluster, 0, 0, 0, 0)

    def client_list(self) -> tuple[ClientInfo, ...]:
        return tuple([ClientInfo(c.id, c.host, c.alive, c.ended) for c in self._clients.values()])

    def take_office(self, me: Node) -> Change:
        """We are primary now: we stand in the routing info instead of whoever was it."""
        draft = _Draft(self)
        for node in self._nodes.values():
            if node.kind == NodeKind.MGMTD and node.id != me.id:
                draft.nodes[node.id] = None
        owner = self._nodes.get(me.id)
        if owner is not None and owner.kind != NodeKind.MGMTD:
            raise FS3Error(Code.CONFIG, f"node id {me.id} is that of a {_name(owner.kind)} daemon: give mgmtd another one")
        draft.nodes[me.id] = me
        draft.next_client += CLIENT_IDS_SKIPPED
        return draft.done()

    def register(self, request: RegisterRequest, now: float) -> tuple[Change, RegisterReply]:
        """A node begins an incarnation; the one before it is dead from now on.

        Raises CONFIG where the id or a target is somebody else's, STALE_INCARNATION where this incarnation is over,
        UNKNOWN_NODE for a client id that was not given here.
        """
        kind = _KINDS.get(request.kind)
        if kind is None or kind is NodeKind.MGMTD:
            raise FS3Error(Code.CONFIG, f"no node of kind {request.kind} can register")
        draft = _Draft(self)
        if kind is NodeKind.CLIENT:
            node = self._register_client(draft, request, now)
        else:
            node = request.node
            self._register_daemon(draft, request, kind)
        lease_ms = self._timing.lease_of(node)
        draft.leases[node] = now + lease_ms / 1000
        change = draft.done()
        version = change.head.routing_version if change.head is not None else self.version
        return change, RegisterReply(node, self._head.cluster, lease_ms, version)

    def heartbeat(self, request: HeartbeatRequest, now: float) -> tuple[Change, HeartbeatReply]:
        """A node renews its lease. Raises UNKNOWN_NODE, STALE_INCARNATION, CONFIG (a target is served elsewhere)."""
        holder = self._clients.get(request.node) or self._nodes.get(request.node)
        if holder is None:
            raise FS3Error(Code.UNKNOWN_NODE, f"node {request.node} is not registered")
        if holder.incarnation != request.incarnation or not holder.alive:
            raise _stale(request.node, request.incarnation)
        draft = _Draft(self)
        lease_ms = self._timing.lease_of(request.node)
        draft.leases[request.node] = now + lease_ms / 1000
        if isinstance(holder, Node) and holder.kind == NodeKind.STORAGE:
            draft.report(holder.id, request.targets)
        change = draft.done()
        version = change.head.routing_version if change.head is not None else self.version
        config_version = self._config.version if self._config is not None else 0
        return change, HeartbeatReply(lease_ms, version, config_version)

    def unregister(self, request: UnregisterRequest, now: float) -> Change:
        """A node has stopped. An incarnation that is not (or no longer) alive changes nothing."""
        draft = _Draft(self)
        holder = self._clients.get(request.node) or self._nodes.get(request.node)
        if holder is not None and holder.incarnation == request.incarnation and request.node in self._leases:
            self._bury(draft, [request.node], now, ended=True)
        return draft.done()

    def tick(self, now: float) -> Change:
        """Time has passed: leases that ran out end, and clients dead for long are forgotten."""
        draft = _Draft(self)
        self._bury(draft, [node for node, until in self._leases.items() if until <= now], now)
        for client, until in self._forget.items():
            if until <= now:
                draft.clients[client] = None
                draft.forget[client] = None
        return draft.done()

    def format(self, request: FormatRequest) -> tuple[Change, FormatReply]:
        """Make the first chain table. stripe: 0, or more than there are chains, means all of them.

        Raises ALREADY_FORMATTED, BAD_PLACEMENT, CONFIG (a chunk size or stripe that cannot be).
        """
        if self._config is not None:
            raise FS3Error(Code.ALREADY_FORMATTED, f"cluster {self._head.cluster} is formatted already")
        if not valid_chunk_size(request.chunk_size):
            limits = f"a power of two from {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX}"
            raise FS3Error(Code.CONFIG, f"chunk size {request.chunk_size}: expected {limits} bytes")
        if request.stripe < 0:
            raise FS3Error(Code.CONFIG, f"stripe {request.stripe}: expected at least 0")
        usable = [
            t
            for t in self._targets.values()
            if t.chain == 0 and self._locals.get(t.id, LocalState.OFFLINE) != LocalState.OFFLINE
        ]
        draft = _Draft(self)
        for number, members in enumerate(place(usable, request.replicas), start=1):
            draft.chains[number] = new_chain(number, members)
            for target in members:
                draft.put(replace(self._targets[target], chain=number), stored=True)
        draft.tables[FIRST_TABLE] = Table(FIRST_TABLE, 1, tuple(draft.chains), request.replicas)
        stripe = min(request.stripe or len(draft.chains), len(draft.chains))
        draft.config = ClusterConfigReply(1, self._head.cluster, FIRST_TABLE, request.replicas, request.chunk_size, stripe)
        return draft.done(), FormatReply(FIRST_TABLE, len(draft.chains))

    def apply(self, change: Change) -> None:
        """Take in a change that was made of the present state, and was committed if it had to be."""
        if change.head is not None:
            assert change.head.revision == self._head.revision + 1, (change.head, self._head)
            self._head = change.head
        self._config = change.config or self._config
        self._chains.update(change.chains)
        self._tables.update(change.tables)
        for target in change.targets.values():
            before = self._targets.get(target.id)
            if before is not None:
                self._node_targets[before.node].discard(target.id)
            self._node_targets.setdefault(target.node, set()).add(target.id)
            self._targets[target.id] = target
        self._published.update({target: change.targets[target] for target in change.stored_targets})
        self._locals.update(change.locals)
        self._ended.update(change.ended)
        _merge(self._nodes, change.nodes)
        _merge(self._clients, change.clients)
        _merge(self._leases, change.leases)
        _merge(self._forget, change.forget)
        if change.head is not None or change.targets:
            self._routing = None

    def _register_client(self, draft: _Draft, request: RegisterRequest, now: float) -> int:
        node = request.node
        if node == 0:
            node = draft.next_client
            draft.next_client += 1
        known = self._clients.get(node)
        if known is None and request.node != 0:
            raise FS3Error(Code.UNKNOWN_NODE, f"client {node} is not known: register with id 0 for a fresh one")
        if known is not None and known.incarnation == request.incarnation and not known.alive:
            raise _stale(node, request.incarnation)
        gone = self._clients.get(request.predecessor)
        if gone is not None and gone.id != node and gone.incarnation == request.predecessor_incarnation:
            self._bury(draft, [gone.id], now, ended=True)
        draft.clients[node] = ClientRecord(node, request.host, request.incarnation, True)
        draft.forget[node] = None
        return node

    def _register_daemon(self, draft: _Draft, request: RegisterRequest, kind: NodeKind) -> None:
        node = request.node
        if not 0 < node < FIRST_CLIENT:
            raise FS3Error(Code.CONFIG, f"node id {node}: expected 1 to {FIRST_CLIENT - 1}")
        known = self._nodes.get(node)
        if known is not None and known.kind != kind:
            raise FS3Error(Code.CONFIG, f"node id {node} is that of a {_name(known.kind)} daemon at {known.address}")
        again = known is not None and known.incarnation == request.incarnation
        if self._ended.get(node) == request.incarnation or (known is not None and again and not known.alive):
            raise _stale(node, request.incarnation)
        fresh = Node(node, kind, request.address, request.host, True, request.incarnation, request.tags)
        if fresh != known:
            draft.nodes[node] = fresh
        if not again:
            if known is not None:
                draft.ended[node] = known.incarnation
            draft.lose_targets([node])  # before they return: a chain must not miss that its target was away
        if kind is NodeKind.STORAGE:
            # A fresh process cannot know that it is up to date with its chain.
            draft.report(node, [r if again else replace(r, chain_version=0) for r in request.targets])

    def _bury(self, draft: _Draft, nodes: list[int], now: float, *, ended: bool = False) -> None:
        """These nodes are dead: all at once, so that a chain sees one change. ended: their processes are surely gone."""
        for node in nodes:
            draft.leases[node] = None
            client = self._clients.get(node)
            if client is not None:
                draft.clients[node] = replace(client, alive=False, ended=ended)
                draft.forget[node] = now + self._timing.forget_client_ms / 1000
            else:
                draft.nodes[node] = replace(self._nodes[node], alive=False)
        draft.lose_targets(nodes)


class _Draft:
    """A change in the making, over a cluster that it only reads (its private parts too, hence in one module)."""

    def __init__(self, base: Cluster) -> None:
        self._base = base
        self.next_client = base.head.next_client
        self.config: ClusterConfigReply | None = None
        self.chains: dict[int, Chain] = {}
        self.tables: dict[int, Table] = {}
        self.targets: dict[int, Target] = {}
        self.stored_targets: set[int] = set()
        self.nodes: dict[int, Node | None] = {}
        self.clients: dict[int, ClientRecord | None] = {}
        self.locals: dict[int, LocalState] = {}
        self.leases: dict[int, float | None] = {}
        self.forget: dict[int, float | None] = {}
        self.ended: dict[int, int] = {}

    def done(self) -> Change:
        base = self._base
        routing_changed = bool(self.chains or self.tables or self.stored_targets or self.nodes or self.config)
        head = None
        if routing_changed or self.clients or self.next_client != base.head.next_client:
            head = Head(
                base.head.revision + 1,
                base.head.routing_version + routing_changed,
                base.head.cluster,
                self.next_client,
            )
        return Change(
            head,
            self.config,
            self.chains,
            self.tables,
            self.targets,
            frozenset(self.stored_targets),
            self.nodes,
            self.clients,
            self.locals,
            self.leases,
            self.forget,
            self.ended,
        )

    def put(self, target: Target, *, stored: bool) -> None:
        self.targets[target.id] = target
        if stored:
            self.stored_targets.add(target.id)

    def report(self, node: int, reports: Iterable[TargetReport]) -> None:
        """What a storage node says of its targets, which are all that it has. Raises CONFIG."""
        reported = set()
        for report in reports:
            reported.add(report.target)
            self._take(node, report)
        missing = self._base._node_targets.get(node, set()) - reported
        for target in missing:
            self._set_offline(target)
        self._settle(reported | missing)

    def lose_targets(self, nodes: Iterable[int]) -> None:
        """Nothing of these nodes can be reached."""
        lost = [target for node in nodes for target in self._base._node_targets.get(node, ())]
        for target in lost:
            self._set_offline(target)
        self._settle(lost)

    def _take(self, node: int, report: TargetReport) -> None:
        known = self._target(report.target)
        if known is None:
            self.put(Target(report.target, node, report.disk, 0, report.local, report.capacity, report.used), stored=True)
            self.locals[report.target] = report.local
            return
        if known.node != node:
            owner = self._base._nodes.get(known.node)
            if owner is not None and owner.alive:
                message = f"target {known.id} is served by node {known.node} at {owner.address}, node {node} cannot have it"
                raise FS3Error(Code.CONFIG, message)
        local = report.local
        if local is LocalState.UPTODATE and report.chain_version != self._chain_version(known.chain):
            local = LocalState.ONLINE  # it speaks of a state of the chain that is over
        target = replace(known, node=node, disk=report.disk, local=local, capacity=report.capacity, used=report.used)
        self.locals[target.id] = local
        if target != known:
            self.put(target, stored=_worth_a_version(self._base._published.get(target.id, known), target))

    def _set_offline(self, target_id: int) -> None:
        target = self._target(target_id)
        assert target is not None
        self.locals[target_id] = LocalState.OFFLINE
        if target.local is not LocalState.OFFLINE:
            self.put(replace(target, local=LocalState.OFFLINE), stored=True)

    def _settle(self, targets: Iterable[int]) -> None:
        """Bring the chains of these targets in line with what is known of their targets."""
        chains = set()
        for target_id in targets:
            target = self._target(target_id)
            if target is not None and target.chain:
                chains.add(target.chain)
        for chain_id in sorted(chains):
            chain = self.chains.get(chain_id) or self._base._chains[chain_id]
            known = {}
            for entry in chain.targets:
                local = self.locals.get(entry.target) or self._base._locals.get(entry.target)
                if local is not None:
                    known[entry.target] = local
            after = next_chain(chain, known)
            if after is not chain:
                self.chains[chain_id] = after

    def _target(self, target: int) -> Target | None:
        return self.targets.get(target) or self._base._targets.get(target)

    def _chain_version(self, chain_id: int) -> int:
        chain = self.chains.get(chain_id) or self._base._chains.get(chain_id)
        return chain.version if chain is not None else 0


def _merge(into: dict[int, T], changes: Mapping[int, T | None]) -> None:
    for key, value in changes.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value


def _worth_a_version(published: Target, target: Target) -> bool:
    """Whether everybody should hear of this, rather than who asks anyway."""
    if (published.node, published.disk) != (target.node, target.disk):
        return True
    if (published.local is LocalState.OFFLINE) != (target.local is LocalState.OFFLINE):
        return True
    limit = FILL_CHANGE_PUBLISHED * target.capacity
    return abs(target.used - published.used) > limit or abs(target.capacity - published.capacity) > limit


def _name(kind: int) -> str:
    return _KINDS[kind].name.lower()


def _stale(node: int, incarnation: int) -> FS3Error:
    return FS3Error(Code.STALE_INCARNATION, f"incarnation {incarnation:x} of node {node} is over")
