"""The state of the cluster and what each event makes of it. Pure.

An event (a request, the passing of time) is turned into a `Change` without touching anything; the service commits what
of it must last, and then applies it. So memory never runs ahead of the store, and a change that could not be committed has
not happened. Public states, versions, incarnations and who is alive last; leases, local states and fill levels do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fs3.api.admin import ConfigUse, ConfigVersion, MoveStatus, SetConfigRequest
from fs3.api.mgmtd import (
    ClientInfo,
    ClusterConfigReply,
    FormatReply,
    FormatRequest,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    UnregisterRequest,
)
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.layout import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, valid_chunk_size
from fs3.placement.place import place
from fs3.routing import LocalState, Node, RoutingInfo, Table, Target
from fs3.settings import name_of

from .chains import new_chain
from .draft import Draft
from .moves import Mover
from .operations import MoveRecord, Plan
from .registration import together
from .renewal import fresh_levels
from .state import FIRST_CLIENT, Change, ClientRecord, Head, Saved, State

CLIENT_IDS_SKIPPED = 1_000
"""At each start, since the last registrations before a power loss may be forgotten, and no id may be given twice."""
FIRST_TABLE = 1

_KINDS = {kind.value: kind for kind in NodeKind}


@dataclass(frozen=True, slots=True)
class Timing:
    """lease_ms: of daemons. client_lease_ms: of clients. forget_client_ms: how long a dead client stays listed."""

    lease_ms: int = 10_000
    client_lease_ms: int = 30_000
    forget_client_ms: int = 600_000

    def lease_of(self, node: int) -> int:
        return self.client_lease_ms if node >= FIRST_CLIENT else self.lease_ms


class Cluster:
    """The primary's view of the cluster. `now`: monotonic seconds."""

    def __init__(self, saved: Saved, timing: Timing, now: float) -> None:
        """Every node that was alive gets a whole lease from now on, as long as any that it may hold: it could not reach us
        while we were away."""
        self.timing = timing
        self.state = State(saved)
        self._mover = Mover()
        head = saved.head
        for node in self.state.nodes.values():
            if node.alive and node.kind != NodeKind.MGMTD:
                self.state.leases[node.id] = now + max(timing.lease_ms, head.lease_ms) / 1000
        for client in self.state.clients.values():
            if client.alive:
                self.state.leases[client.id] = now + max(timing.client_lease_ms, head.client_lease_ms) / 1000
            else:
                self.state.forget[client.id] = now + timing.forget_client_ms / 1000

    @property
    def head(self) -> Head:
        return self.state.head

    @property
    def version(self) -> int:
        """Of the routing info."""
        return self.state.head.routing_version

    @property
    def routing(self) -> RoutingInfo:
        """The routing info. Local states and fill levels in it are the latest, and change without a new version."""
        return self.state.routing

    def config(self) -> ClusterConfigReply:
        """What was chosen at format; version 0 before."""
        return self.state.config or ClusterConfigReply(0, self.state.head.cluster, 0, 0, 0, 0)

    def client_list(self) -> tuple[ClientInfo, ...]:
        return tuple([ClientInfo(c.id, c.host, c.alive, c.ended) for c in self.state.clients.values()])

    def take_office(self, me: Node) -> Change:
        """We are primary now: we stand in the routing info instead of whoever was it."""
        draft = Draft(self.state)
        for node in self.state.nodes.values():
            if node.kind == NodeKind.MGMTD and node.id != me.id:
                draft.nodes[node.id] = None
        owner = self.state.nodes.get(me.id)
        if owner is not None and owner.kind != NodeKind.MGMTD:
            raise FS3Error(Code.CONFIG, f"node id {me.id} is that of a {_name(owner.kind)} daemon: give mgmtd another one")
        draft.nodes[me.id] = me
        draft.next_client += CLIENT_IDS_SKIPPED
        self._cover(draft, self.timing)
        return draft.done()

    def register(self, request: RegisterRequest, now: float) -> tuple[Change, RegisterReply]:
        """A node begins an incarnation; the one before it is dead from now on.

        Raises CONFIG where the id or a target is somebody else's, STALE_INCARNATION where this incarnation is over,
        UNKNOWN_NODE for a client id that was not given here.
        """
        change, (reply,) = self.register_all([request], now)
        return change, reply

    def register_all(self, requests: Sequence[RegisterRequest], now: float) -> tuple[Change, list[RegisterReply]]:
        """Several nodes do, in one change: as many of the first ones as can together. Raises what the first one meets."""
        draft = Draft(self.state)
        entered: list[tuple[int, int, NodeKind]] = []
        for request in requests[: together(self.state, requests)]:
            try:
                entered.append(self._enter(draft, request, now))
            except FS3Error:
                if not entered:
                    raise
                return self.register_all(requests[: len(entered)], now)
        change = self._go_on(draft, now)
        version = change.head.routing_version if change.head is not None else self.version
        cluster, latest_of = self.state.head.cluster, self.state.configs.latest_of
        return change, [RegisterReply(node, cluster, ms, version, latest_of(kind)) for node, ms, kind in entered]

    def _enter(self, draft: Draft, request: RegisterRequest, now: float) -> tuple[int, int, NodeKind]:
        """One registration; returns node, lease in ms, kind. What it raises leaves the draft of no use."""
        kind = _KINDS.get(request.kind)
        if kind is None or kind is NodeKind.MGMTD:
            raise FS3Error(Code.CONFIG, f"no node of kind {request.kind} can register")
        if kind is NodeKind.CLIENT:
            node = self._register_client(draft, request, now)
        else:
            node = request.node
            self._register_daemon(draft, request, kind)
        return node, self._renew(draft, node, now), kind

    def renew(self, request: HeartbeatRequest, now: float) -> HeartbeatReply | None:
        """Take in a heartbeat that changes nothing but the lease and fill levels, as nearly all do; None where it may do
        more. It may come between the making of a change and its application, if that leaves the node's lease alone."""
        state = self.state
        holder: ClientRecord | Node | None = state.clients.get(request.node)
        kind = NodeKind.CLIENT
        if holder is None:
            holder = state.nodes.get(request.node)
            if holder is None:
                return None
            kind = _KINDS[holder.kind]
        if holder.incarnation != request.incarnation or not holder.alive:
            return None
        if state.uses.get(request.node) != (request.config_version, request.config_problem):
            return None
        if kind is NodeKind.STORAGE:
            fresh = fresh_levels(state, request.node, request.targets)
            if fresh is None:
                return None
            state.refill(fresh)
        lease_ms = self.timing.lease_of(request.node)
        state.leases[request.node] = max(now + lease_ms / 1000, state.leases[request.node])
        return HeartbeatReply(lease_ms, self.version, state.configs.latest_of(kind))

    def heartbeat(self, request: HeartbeatRequest, now: float) -> tuple[Change, HeartbeatReply]:
        """A node renews its lease. Raises UNKNOWN_NODE, STALE_INCARNATION, CONFIG (a target is served elsewhere)."""
        holder = self.state.clients.get(request.node) or self.state.nodes.get(request.node)
        if holder is None:
            raise FS3Error(Code.UNKNOWN_NODE, f"node {request.node} is not registered")
        if holder.incarnation != request.incarnation or not holder.alive:
            raise _stale(request.node, request.incarnation)
        draft = Draft(self.state)
        lease_ms = self._renew(draft, request.node, now)
        use = (request.config_version, request.config_problem)
        if self.state.uses.get(request.node) != use:
            draft.uses[request.node] = use
        kind = _KINDS[holder.kind] if isinstance(holder, Node) else NodeKind.CLIENT
        if isinstance(holder, Node) and kind is NodeKind.STORAGE:
            draft.report(holder.id, request.targets)
        change = self._go_on(draft, now)
        version = change.head.routing_version if change.head is not None else self.version
        return change, HeartbeatReply(lease_ms, version, self.state.configs.latest_of(kind))

    def unregister(self, request: UnregisterRequest, now: float) -> Change:
        """A node has stopped. An incarnation that is not (or no longer) alive changes nothing."""
        draft = Draft(self.state)
        holder = self.state.clients.get(request.node) or self.state.nodes.get(request.node)
        if holder is not None and holder.incarnation == request.incarnation and request.node in self.state.leases:
            self._bury(draft, [request.node], now, ended=True)
        return self._go_on(draft, now)

    def tick(self, now: float, wall_ms: int = 0) -> Change:
        """Time has passed: leases that ran out end, clients dead for long are forgotten, operations go on. wall_ms: wall
        clock, without which no operation ends."""
        draft = Draft(self.state)
        self._bury(draft, [node for node, until in self.state.leases.items() if until <= now], now)
        for client, until in self.state.forget.items():
            if until <= now:
                draft.clients[client] = None
                draft.forget[client] = None
        self._settle_leases(draft, now)
        self._mover.step(draft, now, wall_ms)
        return draft.done()

    def explain(self, plan: Plan, moves: Iterable[MoveRecord], now: float) -> list[MoveStatus]:
        """Moves of an operation, with what they wait for."""
        return self._mover.explain(self.state, plan, moves, now)

    def set_config(
        self, request: SetConfigRequest, now_ms: int, timing_of: Callable[[ConfigVersion], Timing]
    ) -> tuple[Change, ConfigVersion]:
        """Change the central configuration. now_ms: wall clock. timing_of: what our timing is with settings of mgmtd; the
        caller puts it in force once this is committed. Raises CONFIG, CONFIG_CHANGED."""
        draft = Draft(self.state)
        version, draft.configs = self.state.configs.set(request, now_ms)
        if draft.configs and version.kind == name_of(NodeKind.MGMTD):
            self._cover(draft, timing_of(version))
        return draft.done(), version

    def config_uses(self) -> tuple[ConfigUse, ...]:
        """What each living node said of its configuration; without mgmtd, which sends no heartbeats."""
        found = []
        for number in self.state.leases:
            node = self.state.nodes.get(number)
            kind = node.kind if node is not None else NodeKind.CLIENT
            found.append(ConfigUse(number, name_of(kind), *self.state.uses.get(number, (-1, ""))))
        return tuple(found)

    def free_targets(self) -> list[Target]:
        """Those that chains can be made of."""
        return [t for t in self.state.targets.values() if self._is_usable(t)]

    def format(self, request: FormatRequest, chains: Sequence[tuple[int, ...]] | None = None) -> tuple[Change, FormatReply]:
        """Make the first chain table. stripe: 0, or more than there are chains, means all of them. chains: as they were
        placed a moment ago.

        Raises ALREADY_FORMATTED, BAD_PLACEMENT, CONFIG (a chunk size or stripe that cannot be), CONFLICT (targets came
        or went since chains were placed).
        """
        if self.state.config is not None:
            raise FS3Error(Code.ALREADY_FORMATTED, f"cluster {self.state.head.cluster} is formatted already")
        if not valid_chunk_size(request.chunk_size):
            limits = f"a power of two from {CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX}"
            raise FS3Error(Code.CONFIG, f"chunk size {request.chunk_size}: expected {limits} bytes")
        if request.stripe < 0:
            raise FS3Error(Code.CONFIG, f"stripe {request.stripe}: expected at least 0")
        usable = self.free_targets()
        for each in usable:
            if each.used:
                message = f"target {each.id} holds {each.used} bytes of a former cluster: empty it first"
                raise FS3Error(Code.BAD_PLACEMENT, f"{message} (`fs3 admin target empty`)")
        if chains is None:
            chains = place(usable, request.replicas, self.state.nodes)
        elif not {target for members in chains for target in members} <= {target.id for target in usable}:
            raise FS3Error(Code.CONFLICT, "targets went away while the chain table was made")
        draft = Draft(self.state)
        for number, members in enumerate(chains, start=1):
            draft.chains[number] = new_chain(number, members)
            for target in members:
                draft.put(replace(self.state.targets[target], chain=number), stored=True)
        draft.tables[FIRST_TABLE] = Table(FIRST_TABLE, 1, tuple(draft.chains), request.replicas)
        stripe = min(request.stripe or len(draft.chains), len(draft.chains))
        draft.config = ClusterConfigReply(
            1, self.state.head.cluster, FIRST_TABLE, request.replicas, request.chunk_size, stripe
        )
        return draft.done(), FormatReply(FIRST_TABLE, len(draft.chains))

    def _is_usable(self, target: Target) -> bool:
        node = self.state.nodes.get(target.node)
        if target.chain or target.retired or node is None or node.drained:
            return False
        return self.state.locals.get(target.id, LocalState.OFFLINE) is not LocalState.OFFLINE

    def _go_on(self, draft: Draft, now: float) -> Change:
        """What is heard of a chain may be what a move waits for."""
        if draft.chains:
            self._mover.step(draft, now)
        return draft.done()

    def apply(self, change: Change) -> None:
        """Take in a change that was made of the present state, and was committed if it had to be."""
        self.state.apply(change)

    def _register_client(self, draft: Draft, request: RegisterRequest, now: float) -> int:
        node = request.node
        if node == 0:
            node = draft.next_client
            draft.next_client += 1
        known = self.state.clients.get(node)
        if known is None and request.node != 0:
            raise FS3Error(Code.UNKNOWN_NODE, f"client {node} is not known: register with id 0 for a fresh one")
        if known is not None and known.incarnation == request.incarnation and not known.alive:
            raise _stale(node, request.incarnation)
        gone = self.state.clients.get(request.predecessor)
        if gone is not None and gone.id != node and gone.incarnation == request.predecessor_incarnation:
            self._bury(draft, [gone.id], now, ended=True)
        draft.clients[node] = ClientRecord(node, request.host, request.incarnation, True)
        draft.forget[node] = None
        return node

    def _register_daemon(self, draft: Draft, request: RegisterRequest, kind: NodeKind) -> None:
        node = request.node
        if not 0 < node < FIRST_CLIENT:
            raise FS3Error(Code.CONFIG, f"node id {node}: expected 1 to {FIRST_CLIENT - 1}")
        known = self.state.nodes.get(node)
        if known is not None and known.kind != kind:
            raise FS3Error(Code.CONFIG, f"node id {node} is that of a {_name(known.kind)} daemon at {known.address}")
        again = known is not None and known.incarnation == request.incarnation
        if self.state.ended.get(node) == request.incarnation or (known is not None and again and not known.alive):
            raise _stale(node, request.incarnation)
        fresh = Node(node, kind, request.address, request.host, True, request.incarnation, request.tags)
        if known is not None:
            fresh = replace(fresh, drained=known.drained)
        if fresh != known:
            draft.nodes[node] = fresh
        if not again:
            if known is not None:
                draft.ended[node] = known.incarnation
            draft.lose_targets([node])  # before they return: a chain must not miss that its target was away
        if kind is NodeKind.STORAGE:
            # A fresh process cannot know that it is up to date with its chain.
            draft.report(node, [r if again else replace(r, chain_version=0) for r in request.targets])

    def _renew(self, draft: Draft, node: int, now: float) -> int:
        """Grant a lease; returns for how many ms. One that was granted for longer goes on: the node may not hear of this."""
        lease_ms = self.timing.lease_of(node)
        draft.leases[node] = max(now + lease_ms / 1000, self.state.leases.get(node, 0.0))
        return lease_ms

    def _cover(self, draft: Draft, timing: Timing) -> None:
        """Have it stored that leases may be granted for such times, before the first of them is."""
        draft.lease_ms = max(draft.lease_ms, timing.lease_ms)
        draft.client_lease_ms = max(draft.client_lease_ms, timing.client_lease_ms)

    def _settle_leases(self, draft: Draft, now: float) -> None:
        """Once no lease of a longer time is left, our successor need not wait for one."""
        head, timing = self.state.head, self.timing
        if (head.lease_ms, head.client_lease_ms) == (timing.lease_ms, timing.client_lease_ms):
            return
        leases = self.state.leases.items()
        if all(until <= now + timing.lease_ms / 1000 for node, until in leases if node < FIRST_CLIENT):
            draft.lease_ms = timing.lease_ms
        if all(until <= now + timing.client_lease_ms / 1000 for node, until in leases if node >= FIRST_CLIENT):
            draft.client_lease_ms = timing.client_lease_ms

    def _bury(self, draft: Draft, nodes: list[int], now: float, *, ended: bool = False) -> None:
        """These nodes are dead: all at once, so that a chain sees one change. ended: their processes are surely gone."""
        for node in nodes:
            draft.leases[node] = None
            draft.uses[node] = None
            client = self.state.clients.get(node)
            if client is not None:
                draft.clients[node] = replace(client, alive=False, ended=ended)
                draft.forget[node] = now + self.timing.forget_client_ms / 1000
            else:
                draft.nodes[node] = replace(self.state.nodes[node], alive=False)
        draft.lose_targets(nodes)


def _name(kind: int) -> str:
    return _KINDS[kind].name.lower()


def _stale(node: int, incarnation: int) -> FS3Error:
    return FS3Error(Code.STALE_INCARNATION, f"incarnation {incarnation:x} of node {node} is over")
