"""A chain under mgmtd's cluster while its nodes die, return, fail and fill: nothing acknowledged is ever not served.

The model keeps what each target holds. A write reaches every target that the present chain says it reaches, and is
acknowledged only if all of them are there; so is what a reader may rely on.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fs3.api.mgmtd import FormatRequest, HeartbeatRequest, RegisterRequest, TargetReport, UnregisterRequest
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import Chain, LocalState, PublicState
from mgmtd.cluster import Cluster, Timing
from mgmtd.state import FIRST_CLIENT, Change, Head, Saved

NODES = (1, 2, 3)
NODE = st.sampled_from(NODES)
TIMING = Timing(lease_ms=1000)


class ChainMachine(RuleBasedStateMachine):
    """Target t is on node t. A process that is down, or that must not serve any more, answers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.saved = Saved(Head(1, 1, "model", FIRST_CLIENT))
        self.cluster = Cluster(self.saved, TIMING, self.now)
        self.incarnations = dict.fromkeys(NODES, 0)
        self.running = dict.fromkeys(NODES, False)  # registered, and its lease known to run
        self.answered = dict.fromkeys(NODES, 0.0)
        self.failed = dict.fromkeys(NODES, False)  # its disk
        self.synced_at = dict.fromkeys(NODES, 0)  # chain version at which a full sync was done
        self.held: dict[int, set[int]] = {node: set() for node in NODES}
        self.under_way: list[HeartbeatRequest] = []
        self.acknowledged: set[int] = set()
        self.writes = 0
        self.last_version = 0
        for node in NODES:
            self.start(node)
        self.do(self.cluster.format(FormatRequest(3, 1 << 20, 1))[0])

    @property
    def chain(self) -> Chain:
        return self.cluster.routing.chains[1]

    def do(self, change: Change) -> None:
        self.cluster.apply(change)
        if change.head is not None:
            saved = self.saved
            saved.head, saved.config = change.head, change.config or saved.config
            saved.chains.update(change.chains)
            saved.tables.update(change.tables)
            saved.targets.update({t: change.targets[t] for t in change.stored_targets})
            saved.nodes.update({n: node for n, node in change.nodes.items() if node is not None})

    def report(self, node: int) -> TargetReport:
        version = self.chain.version if self.cluster.routing.chains else 0
        state = self.chain.state_of(node) if self.cluster.routing.chains else None
        local = LocalState.ONLINE
        if state is PublicState.SERVING or (state is PublicState.SYNCING and self.synced_at[node] == version):
            local = LocalState.UPTODATE
        if self.failed[node]:
            local = LocalState.OFFLINE
        return TargetReport(node, 0, local, 1000, 0, version)

    @rule(node=NODE)
    def start(self, node: int) -> None:
        self.incarnations[node] += 1
        self.synced_at[node] = 0
        report = self.report(node)
        if report.local is LocalState.UPTODATE:
            report = TargetReport(node, 0, LocalState.ONLINE, 1000, 0, report.chain_version)
        request = RegisterRequest(node, NodeKind.STORAGE, "mem://x", "h", self.incarnations[node], (), (report,))
        self.do(self.cluster.register(request, self.now)[0])
        self.running[node], self.answered[node] = True, self.now

    @rule(node=NODE)
    def kill(self, node: int) -> None:
        self.running[node] = False

    @rule(node=NODE)
    def stop(self, node: int) -> None:
        if self.running[node]:
            self.running[node] = False
            self.do(self.cluster.unregister(UnregisterRequest(node, self.incarnations[node]), self.now))

    @rule(node=NODE)
    def beat(self, node: int) -> None:
        if not self.running[node]:
            return
        try:
            change, _ = self.cluster.heartbeat(
                HeartbeatRequest(node, self.incarnations[node], (self.report(node),)), self.now
            )
        except FS3Error as error:
            assert error.code is Code.STALE_INCARNATION
            self.running[node] = False
            return
        self.do(change)
        self.answered[node] = self.now

    @rule(node=NODE)
    def beat_slowly(self, node: int) -> None:
        """A heartbeat leaves, to arrive whenever it will."""
        if self.running[node]:
            self.under_way.append(HeartbeatRequest(node, self.incarnations[node], (self.report(node),)))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        request = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        try:
            self.do(self.cluster.heartbeat(request, self.now)[0])
        except FS3Error as error:
            assert error.code is Code.STALE_INCARNATION

    @rule(node=NODE)
    def absence(self, node: int) -> None:
        """A clean stop, work meanwhile, and a return."""
        self.stop(node)
        self.write()
        self.start(node)

    @rule(node=NODE, failed=st.booleans())
    def disk(self, node: int, failed: bool) -> None:
        self.failed[node] = failed

    @rule(ms=st.integers(50, 700))
    def time_passes(self, ms: int) -> None:
        self.now += ms / 1000
        for node in NODES:
            if self.now >= self.answered[node] + 0.5:
                self.running[node] = False
        self.do(self.cluster.tick(self.now))

    @rule()
    def restart_mgmtd(self) -> None:
        self.cluster = Cluster(self.saved, TIMING, self.now)

    @rule()
    def write(self) -> None:
        """A write by somebody who knows the present chain, as all that take part in it must."""
        reached = self.chain.writable()
        if self.chain.head() is None:
            return
        self.writes += 1
        for target in reached:
            if not self.running[target] or self.failed[target]:
                return
            self.held[target].add(self.writes)
        self.acknowledged.add(self.writes)

    @rule()
    def sync(self) -> None:
        """The last serving target fills the one that is syncing."""
        syncing = [t.target for t in self.chain.targets if t.state is PublicState.SYNCING]
        serving = self.chain.serving()
        if syncing and self.running[syncing[0]] and self.running[serving[-1]] and not self.failed[serving[-1]]:
            self.held[syncing[0]] = set(self.held[serving[-1]])
            self.synced_at[syncing[0]] = self.chain.version

    @rule()
    def heal(self) -> None:
        """When every process runs and works, every replica serves again soon."""
        for node in NODES:
            self.failed[node] = False
            if not self.running[node]:
                self.start(node)
        for _ in range(3):
            for node in NODES:
                self.beat(node)
            self.sync()
        for node in NODES:
            self.beat(node)
        assert len(self.chain.serving()) == 3, self.chain

    @invariant()
    def whoever_serves_has_everything(self) -> None:
        for target in self.chain.serving():
            assert self.held[target] >= self.acknowledged, (target, self.chain)

    @invariant()
    def one_history_and_versions_grow(self) -> None:
        states = [t.state for t in self.chain.targets]
        assert (PublicState.SERVING in states) != (states.count(PublicState.LASTSRV) == 1), self.chain
        assert states.count(PublicState.SYNCING) <= 1, self.chain
        assert self.chain.version >= self.last_version
        self.last_version = self.chain.version
        assert self.saved.chains[1] == self.chain

    @invariant()
    def leases_run_exactly_for_the_living(self) -> None:
        for node in self.cluster.routing.nodes.values():
            assert not node.alive or self.cluster.heartbeat(HeartbeatRequest(node.id, node.incarnation), self.now)


TestChain = ChainMachine.TestCase
TestChain.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
