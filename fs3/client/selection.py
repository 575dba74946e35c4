"""Which replica to read from. Pure.

A chunk's replicas take turns by a hash of client and chunk: one client reads a chunk from one place, whose page cache then
knows it, while different chunks and clients spread over all. Replicas on the reader's own host come first. One that failed
lately, or was much slower than usual, comes last until its penalty is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ids import U64_MAX, ChunkId
from ..routing import Chain, RoutingInfo

PENALTY_FIRST_S = 0.5
PENALTY_MAX_S = 8.0
SLOW_MIN_S = 0.25
SLOW_FACTOR = 8.0
_SMOOTHING = 0.125


@dataclass(frozen=True, slots=True)
class _Replicas:
    """A chain's serving targets with their nodes, at one routing version: those to prefer, and the rest."""

    routing_version: int
    preferred: tuple[tuple[int, int], ...]
    others: tuple[tuple[int, int], ...]


class ReplicaSelector:
    """Remembers how nodes behaved and picks replicas by it. Times are seconds on one monotonic clock."""

    def __init__(self, host: str, client: int) -> None:
        self._host = host
        self._salt = client * 0x9E3779B97F4A7C15 & U64_MAX
        self._usual_s = 0.0
        self._replicas: dict[int, _Replicas] = {}
        self._failures: dict[int, int] = {}
        self._avoid_until: dict[int, float] = {}  # node -> when its penalty ends; empty while all is well

    def succeeded(self, node: int, latency_s: float, now: float) -> None:
        """A read from `node` took latency_s."""
        if node in self._failures:
            del self._failures[node]
            self._avoid_until.pop(node, None)
        if latency_s > SLOW_MIN_S and latency_s > SLOW_FACTOR * self._usual_s > 0.0:
            self._avoid_until[node] = now + PENALTY_FIRST_S
        else:
            self._usual_s += (latency_s - self._usual_s) * _SMOOTHING

    def failed(self, node: int, now: float) -> None:
        """A read from `node` failed in a way that speaks of the node: the more in a row, the longer it is avoided."""
        failures = self._failures[node] = self._failures.get(node, 0) + 1
        self._avoid_until[node] = now + min(PENALTY_MAX_S, PENALTY_FIRST_S * 2.0 ** min(failures - 1, 10))

    def pick(self, routing: RoutingInfo, chain: Chain, chunk: ChunkId, tried: frozenset[int], now: float) -> int | None:
        """The target to read `chunk` from; None when all that serve were tried, or none serves."""
        replicas = self._replicas.get(chain.id)
        if replicas is None or replicas.routing_version != routing.version:
            replicas = self._replicas[chain.id] = self._sort(routing, chain)
        turn = _mix(chunk.inode, chunk.index, self._salt)
        last: int | None = None
        for group in (replicas.preferred, replicas.others):
            for step in range(len(group)):
                target, node = group[(turn + step) % len(group)]
                if target in tried:
                    continue
                if not self._avoid_until or self._avoid_until.get(node, 0.0) <= now:
                    return target
                if last is None:
                    last = target
        return last

    def usual(self, routing: RoutingInfo, chain: Chain, now: float) -> tuple[int, ...]:
        """The targets among which `turn` chooses for each chunk of a chain, as `pick` does while all nodes are well; empty
        where they are not, or where none serves."""
        if self._avoid_until and max(self._avoid_until.values()) > now:
            return ()
        replicas = self._replicas.get(chain.id)
        if replicas is None or replicas.routing_version != routing.version:
            replicas = self._replicas[chain.id] = self._sort(routing, chain)
        return tuple([target for target, _ in replicas.preferred or replicas.others])

    def turn(self, inode: int, index: int) -> int:
        """A number that says which of several replicas a chunk is read from."""
        return _mix(inode, index, self._salt)

    def _sort(self, routing: RoutingInfo, chain: Chain) -> _Replicas:
        preferred: list[tuple[int, int]] = []
        others: list[tuple[int, int]] = []
        for target in chain.serving():
            node = routing.node_of(target)
            if node is not None:
                (preferred if node.host == self._host else others).append((target, node.id))
        return _Replicas(routing.version, tuple(preferred), tuple(others))


def _mix(inode: int, index: int, salt: int) -> int:
    value = (inode * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB + salt) & U64_MAX
    value ^= value >> 29
    return (value * 0xD6E8FEB86659FD93 & U64_MAX) >> 32
