"""Routing information: which targets make up which chains, and where they are. Immutable. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class PublicState(IntEnum):
    """The state of a target in its chain, as everybody sees it (3FS design notes, failure detection)."""

    SERVING = 1
    """Serves reads; writes are propagated to it."""
    SYNCING = 2
    """Being filled by its predecessor; writes are propagated to it as full chunks; no reads."""
    WAITING = 3
    """Alive, waits for its recovery to start."""
    LASTSRV = 4
    """Down, and the last that served: only its return brings the chain back."""
    OFFLINE = 5
    """Down, or its disk failed."""


class LocalState(IntEnum):
    """The state of a target as its own daemon reports it."""

    UPTODATE = 1
    ONLINE = 2
    OFFLINE = 3


@dataclass(frozen=True, slots=True)
class ChainTarget:
    """A target's place in a chain."""

    target: int
    state: PublicState


@dataclass(frozen=True, slots=True)
class Chain:
    """A replication chain. Targets in order: serving first (the head leads), then lastsrv, syncing, waiting, offline.

    version grows with each change of the targets or their states.
    """

    id: int
    version: int
    targets: tuple[ChainTarget, ...]

    def serving(self) -> tuple[int, ...]:
        """The ids of the serving targets, head first, tail last."""
        return tuple([t.target for t in self.targets if t.state is PublicState.SERVING])

    def writable(self) -> tuple[int, ...]:
        """The ids of the targets that a write reaches, in its order: serving ones, then a syncing one."""
        return tuple([t.target for t in self.targets if t.state in (PublicState.SERVING, PublicState.SYNCING)])

    def head(self) -> int | None:
        """The id of the target that takes writes; None when no target serves."""
        first = self.targets[0] if self.targets else None
        return first.target if first is not None and first.state is PublicState.SERVING else None

    def successor(self, target: int) -> ChainTarget | None:
        """The next one that a write at `target` is forwarded to; None at the end of the chain."""
        found = False
        for entry in self.targets:
            if found:
                return entry if entry.state in (PublicState.SERVING, PublicState.SYNCING) else None
            found = entry.target == target
        return None

    def predecessor(self, target: int) -> ChainTarget | None:
        """The one before `target`; None at the head, or where the chain does not hold it."""
        before: ChainTarget | None = None
        for entry in self.targets:
            if entry.target == target:
                return before
            before = entry
        return None

    def state_of(self, target: int) -> PublicState | None:
        for entry in self.targets:
            if entry.target == target:
                return entry.state
        return None


@dataclass(frozen=True, slots=True)
class Table:
    """A chain table: the chains that the files of a directory tree are spread over.

    It only grows: version v has the first lengths[v - 1] chains, and files made at that version stay on those.
    replicas: how many targets each chain is meant to have.
    """

    id: int
    version: int
    chains: tuple[int, ...]
    replicas: int
    lengths: tuple[int, ...] = ()
    """Empty for a table of one version."""

    def chains_at(self, version: int) -> tuple[int, ...] | None:
        """The chains of files that were made at a version; None for a version newer than this table."""
        if version > self.version:
            return None
        return self.chains[: self.lengths[version - 1]] if 1 <= version <= len(self.lengths) else self.chains


@dataclass(frozen=True, slots=True)
class Target:
    """One target: a part of one disk of one node. capacity and used in bytes; as last reported."""

    id: int
    node: int
    disk: int
    chain: int
    """0 while it is in no chain."""
    local: LocalState
    capacity: int
    used: int
    retired: bool = False
    """It has left its chain, and its daemon is to throw away what it holds; in no chain until that is done."""
    leaving: bool = False
    """Its daemon is to stop serving it, for good or until it was filled anew, and to say so."""
    since: int = 0
    """The routing version at which it was last retired, or asked to leave: what a daemon says to have done is of this."""


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon of the cluster. kind: ids.NodeKind. address: `scheme://host:port`. alive: has a running lease.

    tags: of its configuration; `rack=NAME` names its failure domain. drained: it is to get no more targets.
    """

    id: int
    kind: int
    address: str
    host: str
    alive: bool
    incarnation: int
    tags: tuple[str, ...] = ()
    drained: bool = False


@dataclass(frozen=True, slots=True)
class RoutingInfo:
    """All that a client or daemon needs to find chunks, at one version. Built once, never changed."""

    version: int
    cluster: str
    chains: Mapping[int, Chain] = field(default_factory=dict)
    tables: Mapping[int, Table] = field(default_factory=dict)
    targets: Mapping[int, Target] = field(default_factory=dict)
    nodes: Mapping[int, Node] = field(default_factory=dict)

    def node_of(self, target: int) -> Node | None:
        """The node that serves a target."""
        entry = self.targets.get(target)
        return self.nodes.get(entry.node) if entry is not None else None

    def nodes_of(self, kind: int) -> tuple[Node, ...]:
        """The living nodes of a kind, by id."""
        return tuple([n for _, n in sorted(self.nodes.items()) if n.kind == kind and n.alive])

    def capacity(self) -> tuple[int, int]:
        """(capacity, used) in bytes of content: a chain is as large as the smallest of its serving targets."""
        capacity = used = 0
        for chain in self.chains.values():
            targets = [self.targets[target] for target in chain.serving() if target in self.targets]
            if targets:
                capacity += min([target.capacity for target in targets])
                used += max([target.used for target in targets])
        return capacity, used


EMPTY = RoutingInfo(0, "")
