"""What is wrong with a cluster, and the way out: facts in, advice out. No cluster is asked here.

Each kind of advice has its paragraph in docs/operations.md, "States and ways out".
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...api.admin import ConfigUse, Operation, OperationState
from ...api.common import StatusReply
from ...ids import NodeKind
from ...placement.topology import domain_of, limit_in
from ...routing import Chain, LocalState, Node, PublicState, RoutingInfo, Target
from ...settings import OVERRIDDEN
from .common import ranges
from .rows import counted, is_free, node_id, percent, wanted_replicas
from .shows import progress

ERROR, WARNING, NOTE = "error", "warning", "note"
"""error: data cannot be reached, or one more failure loses some; warning: to be seen to; note: nothing to do."""

FULL_PERCENT = 90.0
FULL_SOON_PERCENT = 97.0
UNEVEN_HEADS = 1.5
"""A node that leads this many times as many chains as the average takes that much more of the writes."""


@dataclass(frozen=True, slots=True)
class Advice:
    """kind: one of KINDS. way_out: what to do, with commands in backticks."""

    severity: str
    kind: str
    what: str
    why: str
    way_out: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a cluster. formatted: it has a chain table. mgmtd: address -> whether it answers, of those that the
    operator named. statuses: of living daemons, None where one gave none. earlier: the same, some seconds before.
    """

    routing: RoutingInfo
    formatted: bool = True
    mgmtd: Mapping[str, bool] = field(default_factory=dict)
    statuses: Mapping[int, StatusReply | None] = field(default_factory=dict)
    earlier: Mapping[int, StatusReply | None] = field(default_factory=dict)
    operations: tuple[Operation, ...] = ()
    uses: tuple[ConfigUse, ...] = ()

    def metrics(self, node: int, *, earlier: bool = False) -> dict[str, float]:
        status = (self.earlier if earlier else self.statuses).get(node)
        return json.loads(status.metrics) if status is not None else {}


def diagnose(facts: Facts) -> list[Advice]:
    """All that is to be said of a cluster, the worst first."""
    found = [advice for check in _CHECKS for advice in check(facts)]
    return sorted(found, key=lambda advice: (ERROR, WARNING, NOTE).index(advice.severity))


def no_mgmtd(addresses: Iterable[str]) -> Advice:
    """No mgmtd answers, so that nothing else is known."""
    named = ", ".join(addresses)
    return Advice(
        ERROR,
        "no-primary",
        f"no management daemon answers as primary at {named}",
        "everything goes on for half a lease with what is known, and then stops",
        f"start fs3-mgmtd (its log says why it ended); `fs3 ping {' '.join(named.split(', '))}` says which answer."
        " Where they answer, but none is primary, their store cannot be reached.",
    )


def _mgmtd(facts: Facts) -> Iterator[Advice]:
    for address, answers in facts.mgmtd.items():
        if not answers:
            yield Advice(
                WARNING,
                "mgmtd-silent",
                f"the management daemon at {address} does not answer",
                "when the primary fails too, nobody takes over",
                f"start it; `fs3 ping {address}` says whether it answers",
            )


def _formatted(facts: Facts) -> Iterator[Advice]:
    if not facts.formatted:
        free = sum(is_free(facts.routing, target) for target in facts.routing.targets.values())
        yield Advice(
            ERROR,
            "not-formatted",
            "the cluster has no chain table",
            f"no file can be written; {counted(free, 'target')} could make up chains",
            "`fs3 format` makes the first one, once all storage daemons run",
        )


def _dead_nodes(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    for node in _daemons(routing):
        if node.alive:
            continue
        kind = NodeKind(node.kind).name.lower()
        if node.kind != NodeKind.STORAGE:
            others = routing.nodes_of(node.kind)
            yield Advice(
                WARNING if others else ERROR,
                "node-dead",
                f"{kind} node {node.id} (host {node.host}) is dead",
                f"{counted(len(others), 'other')} of its kind {'do' if len(others) > 1 else 'does'} its work"
                if others
                else "no other of its kind is alive: calls wait for it, and fail",
                f"start its daemon; if it is gone for good, `fs3 admin node forget {node.id}`",
            )
            continue
        chains = [target.chain for target in _own(routing, node.id) if target.chain]
        if chains:
            forget = f"`fs3 admin drain {node.id}` fills other targets in its stead, then `fs3 admin node forget {node.id}`"
            why = f"{counted(len(chains), 'chain')} lack a replica"
        else:
            forget, why = f"`fs3 admin node forget {node.id}`", "no chain needs it"
        yield Advice(
            ERROR if chains else WARNING,
            "node-dead",
            f"storage node {node.id} (host {node.host}) is dead",
            why,
            f"start its daemon: its targets then catch up by themselves; if it is gone for good, {forget}",
        )


def _silent_daemons(facts: Facts) -> Iterator[Advice]:
    for number, status in facts.statuses.items():
        if status is None:
            node = facts.routing.nodes[number]
            yield Advice(
                WARNING,
                "daemon-silent",
                f"{NodeKind(node.kind).name.lower()} node {number} at {node.address} does not answer, but counts as alive",
                "it hangs, or this machine cannot reach it",
                f"`fs3 ping {node.address}` asks again; look into its log, and restart it",
            )


def _versions(facts: Facts) -> Iterator[Advice]:
    versions: dict[str, list[int]] = defaultdict(list)
    for number, status in facts.statuses.items():
        if status is not None:
            versions[status.version].append(number)
    if len(versions) > 1:
        words = "; ".join([f"{version}: nodes {ranges(nodes)}" for version, nodes in sorted(versions.items())])
        yield Advice(
            WARNING,
            "versions-mixed",
            f"daemons run different versions of fs3 ({words})",
            "neighbouring versions work together, but what is new works only where all have it",
            "upgrade and restart the older ones, one at a time; `fs3 admin node show NODE` names the version of each",
        )


def _disks(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    disks: dict[tuple[int, int], list[Target]] = defaultdict(list)
    for target in routing.targets.values():
        disks[target.node, target.disk].append(target)
    for (number, disk), targets in sorted(disks.items()):
        node = routing.nodes.get(number)
        if node is None or not node.alive:
            continue
        offline = [target for target in targets if target.local is LocalState.OFFLINE]
        full = [target for target in offline if percent(target.used, target.capacity) >= FULL_PERCENT]
        if full:
            yield _too_full(routing, number, disk, full)
        elif offline:
            chains = sum(target.chain != 0 for target in offline)
            yield Advice(
                ERROR if chains else WARNING,
                "disk-failed",
                f"disk {disk} of node {number}: {counted(len(offline), 'target')} of {len(targets)}"
                f" {'is' if len(offline) == 1 else 'are'} offline ({ranges([target.id for target in offline])})",
                f"{counted(chains, 'chain')} of theirs lack a replica; the daemon lives, its disk or its records do not",
                f"put an empty disk in its place and restart the daemon, or have others take over:"
                f" `fs3 admin replace {number}/{disk}`. Its log says what happened.",
            )
        yield from _filling(number, disk, targets)


def _too_full(routing: RoutingInfo, number: int, disk: int, full: list[Target]) -> Advice:
    return Advice(
        WARNING,
        "target-full",
        f"disk {disk} of node {number} has no room to fill {counted(len(full), 'target')}"
        f" ({ranges([target.id for target in full])})",
        "their chains go on without them, and try again from time to time",
        "remove files, or add disks or nodes and `fs3 admin rebalance`;"
        f" `fs3 admin replace {number}/{disk}` moves them elsewhere",
    )


def _filling(number: int, disk: int, targets: list[Target]) -> Iterator[Advice]:
    used = percent(sum(target.used for target in targets), sum(target.capacity for target in targets))
    if used >= FULL_PERCENT:
        yield Advice(
            ERROR if used >= FULL_SOON_PERCENT else WARNING,
            "disk-full",
            f"disk {disk} of node {number} is {used:.0f} % full",
            "a chain holds as much as its smallest target: when that is full, writes get ENOSPC",
            "remove files, or add disks or nodes and `fs3 admin rebalance`",
        )


def _unavailable(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    waiting_for: dict[int, list[Chain]] = defaultdict(list)
    for chain in routing.chains.values():
        if chain.head() is None:
            last = [entry.target for entry in chain.targets if entry.state is PublicState.LASTSRV]
            waiting_for[last[0] if last else 0].append(chain)
    nodes: dict[int, list[tuple[int, Chain]]] = defaultdict(list)
    for target, chains in waiting_for.items():
        nodes[node_id(routing, target)] += [(target, chain) for chain in chains]
    for number, lost in sorted(nodes.items()):
        named = ranges([chain.id for _, chain in lost])
        example = lost[0][1].id
        if number:
            node = routing.nodes.get(number)
            dead = node is None or not node.alive
            disks = sorted({routing.targets[target].disk for target, _ in lost if target in routing.targets})
            first = "start its daemon" if dead else f"bring its disk {ranges(disks)} back and restart the daemon"
            why = f"node {number} has what was written last; nothing else may serve before it is back"
        else:
            first, why = "start the daemons of its targets", "its targets wait, and none of them is known to be up to date"
        yield Advice(
            ERROR,
            "chain-unavailable",
            f"{counted(len(lost), 'chain')} ({named}) {'is' if len(lost) == 1 else 'are'} served by no target",
            f"{why}. Calls to it wait, and fail with EIO or ETIMEDOUT.",
            f"{first}; if that is gone for good, `fs3 admin chain give-up {example}` compares what the others hold, and lets"
            " one of them serve: what was written last is lost then",
        )


def _recoveries(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    for chain in sorted(routing.chains.values(), key=lambda chain: chain.id):
        syncing = [entry.target for entry in chain.targets if entry.state is PublicState.SYNCING]
        if not syncing or chain.head() is None:
            continue
        now, before = _progress(facts, chain), _progress(facts, chain, earlier=True)
        what = f"target {syncing[0]} of chain {chain.id} is being filled"
        if now is not None and before is not None and now == before and now["compared_percent"] < 100:
            yield _stalled(what, f"its source has not gone on for some seconds, at {now['compared_percent']} %", chain)
        elif now is None and before is None and facts.statuses and facts.earlier:
            yield _stalled(what, "but none of its chain's targets says that it fills it", chain)
        else:
            part = f", {now['compared_percent']} % done" if now is not None else ""
            yield Advice(
                NOTE, "target-syncing", what + part, "it serves once it is full", "wait; `fs3 recovery` shows how far it is"
            )


def _progress(facts: Facts, chain: Chain, *, earlier: bool = False) -> dict[str, float] | None:
    for target in chain.serving():
        found = progress(facts.metrics(node_id(facts.routing, target), earlier=earlier), chain.id)
        if found is not None:
            return found
    return None


def _stalled(what: str, why: str, chain: Chain) -> Advice:
    return Advice(
        WARNING,
        "target-stalled",
        what,
        why,
        f"look again in a minute (`fs3 admin chain show {chain.id}`); if it does not move, restart the daemon of its"
        f" predecessor, target {chain.serving()[-1]}; a rate that is too low: `fs3 recovery --resync-rate 128MiB`",
    )


def _replicas(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    wanted = wanted_replicas(routing)
    busy = any(operation.state is OperationState.RUNNING for operation in facts.operations)
    for name, over in (("fewer", False), ("more", True)):
        chains = [
            chain.id
            for chain in routing.chains.values()
            if chain.id in wanted
            and (len(chain.targets) > wanted[chain.id] if over else len(chain.targets) < wanted[chain.id])
        ]
        if chains and not (over and busy):
            table = min([table.id for table in routing.tables.values() if set(table.chains) & set(chains)])
            count = routing.tables[table].replicas
            yield Advice(
                NOTE if busy or over else WARNING,
                f"chain-{name}",
                f"{counted(len(chains), 'chain')} ({ranges(chains)}) {'has' if len(chains) == 1 else 'have'} {name} targets"
                " than wanted",
                "an operation is under way" if busy else f"table {table} wants {count}",
                f"`fs3 admin set-replicas {table} {count}` brings them to that number",
            )


def _together(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    limits = {
        replicas: limit_in(routing, replicas) for replicas in {len(chain.targets) for chain in routing.chains.values()}
    }
    for kind, where, severity in (("replicas-on-one-node", "node", ERROR), ("replicas-in-one-rack", "rack", WARNING)):
        found: dict[int, Target] = {}  # chain -> one that could go
        for chain in routing.chains.values():
            members = [routing.targets[entry.target] for entry in chain.targets if entry.target in routing.targets]
            if where == "node":
                crowded = Counter([target.node for target in members])
                over = [target for target in members if crowded[target.node] > 1]
            else:
                places = {target.id: domain_of(node) for target in members if (node := routing.nodes.get(target.node))}
                racks = Counter(places.values())
                over = [target for target in members if racks[places.get(target.id, "")] > limits[len(chain.targets)]]
                over = over if len({target.node for target in over}) > 1 else []
            if over:
                found[chain.id] = over[-1]
        if found:
            example = next(iter(found.values()))
            yield Advice(
                severity,
                kind,
                f"{counted(len(found), 'chain')} ({ranges(found)}) {'has' if len(found) == 1 else 'have'} more replicas"
                f" on one {where} than need be",
                f"the loss of that {where} takes them all",
                f"`fs3 admin rebalance` moves them apart where it can; `fs3 admin replace {example.node}/{example.disk}`"
                " moves what one disk has elsewhere",
            )


def _retired(facts: Facts) -> Iterator[Advice]:
    nodes: dict[int, list[int]] = defaultdict(list)
    for target in facts.routing.targets.values():
        if target.retired:
            nodes[target.node].append(target.id)
    for number, targets in sorted(nodes.items()):
        node = facts.routing.nodes.get(number)
        alive = node is not None and node.alive
        yield Advice(
            NOTE,
            "target-retired",
            f"{counted(len(targets), 'target')} of node {number} ({ranges(targets)}) left a chain and"
            f" {'is' if len(targets) == 1 else 'are'} not emptied yet",
            "its daemon throws away what it holds" if alive else "its daemon is dead, and does so when it comes back",
            "wait" if alive else f"start it, or `fs3 admin node forget {number}` where it is gone for good",
        )


def _leftovers(facts: Facts) -> Iterator[Advice]:
    targets = [t for t in facts.routing.targets.values() if t.used and not t.chain and not t.retired]
    if targets:
        yield Advice(
            NOTE,
            "target-not-empty",
            f"{counted(len(targets), 'target')} ({ranges([target.id for target in targets])}) in no chain"
            f" {'holds' if len(targets) == 1 else 'hold'} something of a former time",
            "until it is thrown away, they cannot come into a chain",
            f"`fs3 admin target empty {targets[0].id}`, if it is known to be of no use",
        )


def _drained(facts: Facts) -> Iterator[Advice]:
    busy = any(operation.state in (OperationState.RUNNING, OperationState.PAUSED) for operation in facts.operations)
    for node in _daemons(facts.routing):
        if not node.drained:
            continue
        chains = [target.chain for target in _own(facts.routing, node.id) if target.chain]
        if chains and not busy:
            yield Advice(
                WARNING,
                "node-drained",
                f"node {node.id} is drained, but has targets in {counted(len(chains), 'chain')}",
                "no operation is under way that moves them",
                f"`fs3 admin drain {node.id}` plans anew, `fs3 admin node undrain {node.id}` keeps it",
            )
        elif not chains and node.alive:
            yield Advice(
                NOTE,
                "node-empty",
                f"node {node.id} is drained and empty",
                "no chain needs it",
                f"stop its daemon and `fs3 admin node forget {node.id}`, or `fs3 admin node undrain {node.id}`",
            )


def _operations(facts: Facts) -> Iterator[Advice]:
    for operation in facts.operations:
        number = operation.id
        if operation.state is OperationState.FAILED:
            yield Advice(
                WARNING,
                "operation-failed",
                f"operation {number} ({operation.title}) has failed",
                "not all of its moves are done",
                f"`fs3 admin operation show {number}` says why; `fs3 admin operation retry {number}` begins anew what is not"
                f" done, `fs3 admin operation cancel {number}` leaves it",
            )
        elif operation.state is OperationState.PAUSED:
            yield Advice(
                WARNING,
                "operation-paused",
                f"operation {number} ({operation.title}) is paused",
                "none of its moves begins",
                f"`fs3 admin operation resume {number}`, or `fs3 admin operation cancel {number}`",
            )


def _heads(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    heads = Counter([node_id(routing, head) for chain in routing.chains.values() if (head := chain.head()) is not None])
    holders = {target.node for target in routing.targets.values() if target.chain}
    nodes = [node.id for node in routing.nodes_of(NodeKind.STORAGE) if node.id in holders]
    if len(nodes) < 2 or not heads:
        return
    most = max(nodes, key=lambda node: heads[node])
    even = sum(heads.values()) / len(nodes)
    if heads[most] > UNEVEN_HEADS * even + 1:
        yield Advice(
            NOTE,
            "heads-uneven",
            f"node {most} leads {heads[most]} chains, the average is {even:.1f}",
            "writes go to the head of a chain first, so that node has more to do",
            "`fs3 admin rebalance` evens it out",
        )


def _stores(facts: Facts) -> Iterator[Advice]:
    embedded = [number for number in facts.statuses if facts.metrics(number).get("meta.store_embedded")]
    metas = [node.id for node in facts.routing.nodes_of(NodeKind.META)]
    if len(metas) > 1 and embedded:
        yield Advice(
            ERROR,
            "meta-stores",
            f"{len(metas)} meta daemons run, and nodes {ranges(embedded)} have a store of their own",
            "each sees other files",
            "run one meta daemon, or give all the same FoundationDB store (`store`); stop the others and"
            " `fs3 admin node forget` them",
        )


def _room(facts: Facts) -> Iterator[Advice]:
    routing = facts.routing
    holders: Counter[int] = Counter([target.node for target in routing.targets.values() if target.chain])
    if len(holders) < 2:
        return
    largest, needed = holders.most_common(1)[0]
    free = sum(is_free(routing, target) for target in routing.targets.values() if target.node != largest)
    if free < needed:
        yield Advice(
            NOTE,
            "no-room",
            f"no node as large as {largest}, with {counted(needed, 'target')} in chains, could be drained:"
            f" {free} are free elsewhere",
            "after the loss of a node its chains lack a replica until it is back",
            "add a node, or raise `targets_per_disk` of storage daemons and restart them:"
            " `fs3 admin node list` shows what is free",
        )


_COUNTERS = {
    "storage.lost_chunks": (
        ERROR,
        "chunks-lost",
        "no target of their chain could read them; reads of them fail with EIO",
        "the daemon's log names them; bring back a target that has them, or write those files anew; `fs3 admin fsck` finds"
        " whose they are",
    ),
    "storage.replicas_differ": (
        ERROR,
        "replicas-differ",
        "the scrubber found chunks of which the replicas are not the same, each whole by itself",
        "the daemon's log names them: `fs3 admin checksum FILE` compares; read the file and write it anew, or fill the wrong"
        " one from the others, `fs3 admin target resync TARGET`",
    ),
    "storage.damaged_chunks": (
        NOTE,
        "chunks-damaged",
        "bytes on its disks could not be read, or were not what was written; they were repaired from another replica",
        "nothing, unless it grows day by day: then the disk fails, and `fs3 admin replace NODE/DISK` empties it",
    ),
}


def _chunks(facts: Facts) -> Iterator[Advice]:
    for number in facts.statuses:
        metrics = facts.metrics(number)
        for name, (severity, kind, why, way_out) in _COUNTERS.items():
            count = int(metrics.get(name, 0))
            if count:
                word = name.rpartition(".")[2].replace("_", " ")
                yield Advice(severity, kind, f"storage node {number}: {count} {word} since it started", why, way_out)


def _configs(facts: Facts) -> Iterator[Advice]:
    for use in facts.uses:
        if use.problem:
            # A daemon may have a value of its own for good; what it cannot use is another matter.
            own = use.problem.startswith(OVERRIDDEN) and ";" not in use.problem
            yield Advice(
                NOTE if own else WARNING,
                "config-not-used",
                f"{use.kind} node {use.node} does not use the latest settings: {use.problem}",
                "what its own file or flags say counts more than what mgmtd says",
                f"`fs3 admin config get {use.kind}` shows what is set; take the key out of the daemon's file and restart it",
            )


def _daemons(routing: RoutingInfo) -> list[Node]:
    return [node for _, node in sorted(routing.nodes.items()) if node.kind != NodeKind.CLIENT]


def _own(routing: RoutingInfo, node: int) -> list[Target]:
    return [target for target in routing.targets.values() if target.node == node]


_CHECKS: tuple[Callable[[Facts], Iterator[Advice]], ...] = (
    _mgmtd,
    _formatted,
    _unavailable,
    _dead_nodes,
    _disks,
    _chunks,
    _together,
    _stores,
    _silent_daemons,
    _versions,
    _recoveries,
    _replicas,
    _operations,
    _drained,
    _retired,
    _leftovers,
    _heads,
    _configs,
    _room,
)

KINDS = (
    "no-primary",
    "mgmtd-silent",
    "not-formatted",
    "chain-unavailable",
    "node-dead",
    "disk-failed",
    "target-full",
    "disk-full",
    "chunks-lost",
    "replicas-differ",
    "chunks-damaged",
    "replicas-on-one-node",
    "replicas-in-one-rack",
    "meta-stores",
    "daemon-silent",
    "versions-mixed",
    "target-syncing",
    "target-stalled",
    "chain-fewer",
    "chain-more",
    "operation-failed",
    "operation-paused",
    "node-drained",
    "node-empty",
    "target-retired",
    "target-not-empty",
    "heads-uneven",
    "config-not-used",
    "no-room",
)
