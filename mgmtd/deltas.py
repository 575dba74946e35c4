"""Routing info as it goes to those who ask: whole, or as what changed since the version that they know. Pure.

Thousands ask for the same at once, so each answer is encoded once and its bytes are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fs3.api.mgmtd import GetRoutingReply, RoutingDelta, RoutingMessage
from fs3.routing import RoutingInfo
from fs3.wire.codec import encode

from .state import Change

T = TypeVar("T")

IDS_MAX = 50_000
"""Of changed entries that are remembered. Who knows an older version gets all."""
CHANGES_MAX = 2_000
AGE_S_PER_ENTRY = 50e-6
"""The whole routing info may be this old for each entry that it has: encoding takes a microsecond for one, so it takes a
few percent of a core at most. Local states and fill levels alone are that old; any new version is encoded at once."""
BASES_MAX = 64


@dataclass(frozen=True, slots=True)
class _Ids:
    """What one version changed."""

    version: int
    chains: tuple[int, ...]
    tables: tuple[int, ...]
    targets: tuple[int, ...]
    nodes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.chains) + len(self.tables) + len(self.targets) + len(self.nodes)


class Deltas:
    """The recent changes of the routing info and the bytes that tell of them."""

    def __init__(self, version: int) -> None:
        """version: of the routing info before the first change."""
        self._version = version
        self._oldest = version  # the oldest base that a delta can be made upon
        self._changes: deque[_Ids] = deque()
        self._size = 0
        self._encoded: dict[int, bytes] = {}  # by base, all of the present version
        self._full: bytes | None = None
        self._full_version = 0
        self._full_at = 0.0
        # Invariant: _changes are of the versions _oldest + 1 to _version.

    def add(self, change: Change) -> None:
        """A change was applied; most make no new version."""
        if change.head is None or change.head.routing_version == self._version:
            return
        self._version = change.head.routing_version
        ids = _Ids(
            self._version, tuple(change.chains), tuple(change.tables), tuple(change.stored_targets), tuple(change.nodes)
        )
        self._changes.append(ids)
        self._size += len(ids)
        while self._size > IDS_MAX or len(self._changes) > CHANGES_MAX:
            dropped = self._changes.popleft()
            self._size -= len(dropped)
            self._oldest = dropped.version
        self._encoded.clear()

    def reply(self, routing: RoutingInfo, base: int, deltas: bool, now: float) -> bytes:
        """The encoded GetRoutingReply that brings one who knows version `base` (0: none) to `routing`, the present one.

        deltas: it understands them. now: monotonic seconds.
        """
        assert routing.version == self._version, (routing.version, self._version)
        if not deltas or not self._oldest <= base < self._version:
            return self._whole(routing, now)
        found = self._encoded.get(base)
        if found is None:
            delta = self.delta(routing, base)
            found = encode(GetRoutingReply(None, delta)) if delta is not None else self._whole(routing, now)
            if len(self._encoded) >= BASES_MAX:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[base] = found
        return found

    def delta(self, routing: RoutingInfo, base: int) -> RoutingDelta | None:
        """What changed since `base`; None where the whole is shorter."""
        chains: set[int] = set()
        tables: set[int] = set()
        targets: set[int] = set()
        nodes: set[int] = set()
        for ids in reversed(self._changes):
            if ids.version <= base:
                break
            chains.update(ids.chains)
            tables.update(ids.tables)
            targets.update(ids.targets)
            nodes.update(ids.nodes)
        if len(chains) + len(targets) + len(nodes) > _entries(routing):
            return None
        return RoutingDelta(
            base,
            routing.version,
            routing.cluster,
            _present(routing.chains, chains),
            _present(routing.tables, tables),
            _present(routing.targets, targets),
            _present(routing.nodes, nodes),
            _gone(routing.chains, chains),
            _gone(routing.tables, tables),
            _gone(routing.targets, targets),
            _gone(routing.nodes, nodes),
        )

    def _whole(self, routing: RoutingInfo, now: float) -> bytes:
        age_max_s = AGE_S_PER_ENTRY * _entries(routing)
        if self._full is None or self._full_version != routing.version or now - self._full_at > age_max_s:
            self._full = encode(GetRoutingReply(RoutingMessage.of(routing)))
            self._full_version = routing.version
            self._full_at = now
        return self._full


def _entries(routing: RoutingInfo) -> int:
    return len(routing.chains) + len(routing.targets) + len(routing.nodes)


def _present(entries: Mapping[int, T], ids: Iterable[int]) -> tuple[T, ...]:
    return tuple([entries[number] for number in sorted(ids) if number in entries])


def _gone(entries: Mapping[int, T], ids: Iterable[int]) -> tuple[int, ...]:
    return tuple([number for number in sorted(ids) if number not in entries])
