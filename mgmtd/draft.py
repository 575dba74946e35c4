"""A change in the making. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fs3.api.mgmtd import ClusterConfigReply, TargetReport
from fs3.errors import Code, FS3Error
from fs3.routing import Chain, LocalState, Node, Table, Target

from .chains import next_chain
from .configs import Changes
from .state import Change, ClientRecord, Head, State, Use

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
        if routing_changed or self.clients or self.configs or self.next_client != old.next_client or times_changed:
            head = Head(
                old.revision + 1,
                old.routing_version + routing_changed,
                old.cluster,
                self.next_client,
                self.lease_ms,
                self.client_lease_ms,
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
            owner = self.base.nodes.get(known.node)
            if owner is not None and owner.alive:
                message = f"target {known.id} is served by node {known.node} at {owner.address}, node {node} cannot have it"
                raise FS3Error(Code.CONFIG, message)
        local = report.local
        chain = self.chain(known.chain)
        if local is LocalState.UPTODATE and report.chain_version != (chain.version if chain is not None else 0):
            local = LocalState.ONLINE  # it speaks of a state of the chain that is over
        target = replace(known, node=node, disk=report.disk, local=local, capacity=report.capacity, used=report.used)
        self.locals[target.id] = local
        if target != known:
            self.put(target, stored=_worth_a_version(self.base.published.get(target.id, known), target))

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
        if after is not chain:
            self.chains[chain_id] = after

    def target(self, target: int) -> Target | None:
        return self.targets[target] if target in self.targets else self.base.targets.get(target)

    def chain(self, chain: int) -> Chain | None:
        return self.chains[chain] if chain in self.chains else self.base.chains.get(chain)

    def local(self, target: int) -> LocalState | None:
        """None: not known yet."""
        return self.locals[target] if target in self.locals else self.base.locals.get(target)


def _worth_a_version(published: Target, target: Target) -> bool:
    """Whether everybody should hear of this, rather than who asks anyway."""
    if (published.node, published.disk) != (target.node, target.disk):
        return True
    if (published.local is LocalState.OFFLINE) != (target.local is LocalState.OFFLINE):
        return True
    limit = FILL_CHANGE_PUBLISHED * target.capacity
    return abs(target.used - published.used) > limit or abs(target.capacity - published.capacity) > limit
