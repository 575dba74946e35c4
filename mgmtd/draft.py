"""A change in the making. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fs3.api.mgmtd import ClusterConfigReply, TargetReport
from fs3.errors import Code, FS3Error
from fs3.routing import Chain, LocalState, Node, PublicState, Table, Target

from .chains import add_target, drop_target, next_chain
from .configs import Changes
from .operations import MoveRecord, OperationRecord
from .state import Change, ClientRecord, Head, IdKind, State, Use

FILL_CHANGE_PUBLISHED = 0.05
"""A fill level that changed by this part of the capacity is worth a new routing version."""


class Draft:
    """A change in the making, over a state that it only reads."""

    def __init__(self, base: State) -> None:
        self.base = base
        self.next_client = base.head.next_client
        self.config: ClusterConfigReply | None = None
        self.chains: dict[int, Chain | None] = {}
        self.tables: dict[int, Table | None] = {}
        self.targets: dict[int, Target | None] = {}
        self.stored_targets: set[int] = set()
        self.nodes: dict[int, Node | None] = {}
        self.clients: dict[int, ClientRecord | None] = {}
        self.locals: dict[int, LocalState | None] = {}
        self.leases: dict[int, float | None] = {}
        self.forget: dict[int, float | None] = {}
        self.ended: dict[int, int] = {}
        self.operations: dict[int, OperationRecord | None] = {}
        self.moves: dict[tuple[int, int], MoveRecord | None] = {}  # of an operation in order, where they are new
        self.ids: dict[IdKind, int] = {}  # the next of each kind, where some were taken
        self.configs: Changes = {}
        self.uses: dict[int, Use | None] = {}
        self.lease_ms = base.head.lease_ms
        self.client_lease_ms = base.head.client_lease_ms

    def done(self) -> Change:
        base = self.base
        routing_changed = bool(self.chains or self.tables or self.stored_targets or self.nodes or self.config)
        old = base.head
        times_changed = self.lease_ms != old.lease_ms or self.client_lease_ms != old.client_lease_ms
        head = None
        operations_changed = bool(self.operations or self.moves)
        counted = operations_changed or self.next_client != old.next_client
        if routing_changed or counted or self.clients or self.configs or times_changed:
            head = Head(
                old.revision + 1,
                old.routing_version + routing_changed,
                old.cluster,
                self.next_client,
                self.lease_ms,
                self.client_lease_ms,
                self.ids.get(IdKind.CHAIN, old.next_chain),
                self.ids.get(IdKind.TABLE, old.next_table),
                self.ids.get(IdKind.OPERATION, old.next_operation),
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
            self.configs,
            self.uses,
            self.operations,
            self.moves,
        )

    def put(self, target: Target, *, stored: bool) -> None:
        self.targets[target.id] = target
        if stored:
            self.stored_targets.add(target.id)

    def take_id(self, kind: IdKind) -> int:
        """A number that was never given before."""
        number = self.ids[kind] if kind in self.ids else self.base.next_id(kind)
        self.ids[kind] = number + 1
        return number

    # Targets that come and go

    def put_into(self, chain_id: int, target_id: int) -> None:
        """An empty target that is in no chain comes in at the end. Raises BAD_PLAN."""
        chain, target = self.chain(chain_id), self.target(target_id)
        assert chain is not None and target is not None and not target.chain and not target.retired, (chain, target)
        self.chains[chain_id] = add_target(chain, target_id)
        self.put(replace(target, chain=chain_id, leaving=False), stored=True)
        self.settle_chain(chain_id)

    def take_out(self, chain_id: int, target_id: int) -> None:
        """A target that does not serve leaves, to be emptied. Raises BAD_PLAN."""
        chain = self.chain(chain_id)
        assert chain is not None, chain_id
        self.chains[chain_id] = drop_target(chain, target_id)
        self.retire(target_id)
        self.settle_chain(chain_id)

    def retire(self, target_id: int) -> None:
        """It is in no chain from now on, and to be emptied."""
        target = self.target(target_id)
        assert target is not None, target_id
        self.put(replace(target, chain=0, leaving=False, retired=True, since=self._version()), stored=True)

    def remove(self, target_id: int) -> None:
        """A target that is in no chain leaves the list."""
        self.targets[target_id] = None
        self.stored_targets.add(target_id)
        self.locals[target_id] = None

    def stop(self, target_id: int) -> None:
        """Ask a target to cease serving; once it says so it is offline, and may return to be filled anew."""
        target = self.target(target_id)
        assert target is not None, target_id
        if not target.leaving:
            self.put(replace(target, leaving=True, since=self._version()), stored=True)

    def stay(self, target_id: int) -> None:
        """It need not cease to serve any more."""
        target = self.target(target_id)
        if target is not None and target.leaving:
            self.put(replace(target, leaving=False), stored=True)

    def _version(self) -> int:
        """The routing version that this change makes."""
        return self.base.head.routing_version + 1

    # What is heard of targets

    def report(self, node: int, reports: Iterable[TargetReport]) -> None:
        """What a storage node says of its targets, which are all that it has. Raises CONFIG."""
        reported = set()
        for report in reports:
            reported.add(report.target)
            self._take(node, report)
        missing = self.base.node_targets.get(node, set()) - reported
        for target in missing:
            self._set_offline(target)
        self.settle(reported | missing)

    def lose_targets(self, nodes: Iterable[int]) -> None:
        """Nothing of these nodes can be reached."""
        lost = [target for node in nodes for target in self.base.node_targets.get(node, ())]
        for target in lost:
            self._set_offline(target)
        self.settle(lost)

    def _take(self, node: int, report: TargetReport) -> None:
        known = self.target(report.target)
        if known is None:
            self.put(Target(report.target, node, report.disk, 0, report.local, report.capacity, report.used), stored=True)
            self.locals[report.target] = report.local
            return
        if known.node != node:
            owner = self.nodes.get(known.node) or self.base.nodes.get(known.node)
            if owner is not None and owner.alive:
                message = f"target {known.id} is served by node {known.node} at {owner.address}, node {node} cannot have it"
                raise FS3Error(Code.CONFIG, message)
        local = report.local
        chain = self.chain(known.chain)
        if report.chain not in (0, known.chain) and local is LocalState.UPTODATE:
            local = LocalState.ONLINE
        if local is LocalState.UPTODATE and report.chain_version != (chain.version if chain is not None else 0):
            local = LocalState.ONLINE  # it speaks of a state of the chain that is over
        obeyed = report.obeyed != 0 and report.obeyed == known.since
        if known.leaving and obeyed and chain is not None and self._served_by_others(chain, known.id):
            local = LocalState.OFFLINE
        target = replace(
            known,
            node=node,
            disk=report.disk,
            local=local,
            capacity=report.capacity,
            used=report.used,
            retired=known.retired and not obeyed,
        )
        self.locals[target.id] = local
        if target != known:
            self.put(target, stored=worth_a_version(self.base.published.get(target.id, known), target))

    def _set_offline(self, target_id: int) -> None:
        target = self.target(target_id)
        assert target is not None
        self.locals[target_id] = LocalState.OFFLINE
        if target.local is not LocalState.OFFLINE:
            self.put(replace(target, local=LocalState.OFFLINE), stored=True)

    def settle(self, targets: Iterable[int]) -> None:
        """Bring the chains of these targets in line with what is known of their targets."""
        chains = set()
        for target_id in targets:
            target = self.target(target_id)
            if target is not None and target.chain:
                chains.add(target.chain)
        for chain_id in sorted(chains):
            self.settle_chain(chain_id)

    def settle_chain(self, chain_id: int) -> None:
        chain = self.chain(chain_id)
        assert chain is not None, chain_id
        known = {}
        for entry in chain.targets:
            local = self.local(entry.target)
            if local is not None:
                known[entry.target] = local
        after = next_chain(chain, known)
        if after is chain:
            return
        self.chains[chain_id] = after
        serving = after.serving()
        for entry in after.targets:
            if entry.state is not PublicState.SERVING or len(serving) == 1:
                self.stay(entry.target)  # it has left, or nobody else is left

    def _served_by_others(self, chain: Chain, target: int) -> bool:
        return any(t != target and self.local(t) is not LocalState.OFFLINE for t in chain.serving())

    def target(self, target: int) -> Target | None:
        return self.targets[target] if target in self.targets else self.base.targets.get(target)

    def chain(self, chain: int) -> Chain | None:
        return self.chains[chain] if chain in self.chains else self.base.chains.get(chain)

    def node(self, node: int) -> Node | None:
        return self.nodes[node] if node in self.nodes else self.base.nodes.get(node)

    def local(self, target: int) -> LocalState | None:
        """None: not known yet."""
        return self.locals[target] if target in self.locals else self.base.locals.get(target)


def worth_a_version(published: Target, target: Target) -> bool:
    """Whether everybody should hear of this, rather than who asks anyway."""
    if (published.node, published.disk, published.retired) != (target.node, target.disk, target.retired):
        return True
    if (published.local is LocalState.OFFLINE) != (target.local is LocalState.OFFLINE):
        return True
    limit = FILL_CHANGE_PUBLISHED * target.capacity
    return abs(target.used - published.used) > limit or abs(target.capacity - published.capacity) > limit
