"""Thousands of nodes as mgmtd sees them: light ones that send real messages, for tests.bench.scale."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from fs3.api.common import ErrorBody, Method
from fs3.api.mgmtd import (
    GET_ROUTING,
    HEARTBEAT,
    REGISTER,
    GetRoutingReply,
    GetRoutingRequest,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
    primary_of,
)
from fs3.client.mgmtd import POLL_GRACE_MS, POLL_MS, SCATTER_MS_MAX, SCATTER_MS_PER_NODE
from fs3.client.retry import Backoff
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.routing import EMPTY, LocalState, PublicState, RoutingInfo
from fs3.transport.base import Connection, Transport
from fs3.wire.codec import decode, encode
from fs3.wire.frame import Frame, Kind

TARGET_BYTES = 8 << 40
_BACKOFF = Backoff(first_s=0.02, max_s=1.0)
_METHODS: tuple[Method[Any, Any], ...] = (REGISTER, HEARTBEAT, GET_ROUTING, GET_ROUTING)
"""By the last two bits of the request id; the last one is a question that is not asked again."""
PROBE_MS = 1_000
REGISTER_S = 10.0
_POLL_MS = POLL_MS + POLL_GRACE_MS


@dataclass(slots=True)
class Seen:
    """What all nodes together learned. bytes_in: of bodies, by method. routing: the latest that anybody learned."""

    bytes_in: Counter[str]
    replies: Counter[str]
    routing: RoutingInfo
    versions: dict[bytes, int]

    def read(self, body: bytes) -> int:
        """The version that a GET_ROUTING reply tells of, 0 where it has no news. Equal bytes are looked at once."""
        known = self.versions.get(body)
        if known is None:
            reply = decode(GetRoutingReply, body)
            news = reply.delta or reply.routing
            known = self.versions[body] = news.version if news is not None else 0
            if reply.delta is not None and reply.delta.base == self.routing.version:
                self.routing = reply.delta.apply(self.routing)
            elif reply.routing is not None and reply.routing.version > self.routing.version:
                self.routing = reply.routing.to_info()
        return known


class LightNode:
    """A storage daemon or a client: one connection, one open question, heartbeats. It keeps no routing but its version."""

    __slots__ = (
        "_beat_at", "_connection", "_host", "_links", "_next", "_population", "_report", "_report_of", "_since", "alive",
        "answered_at",
        "failures", "incarnation", "kind", "node", "registered", "scope", "targets", "told_at", "transport", "version",
        "where",
    )  # fmt: skip

    def __init__(self, population: Population, kind: NodeKind, node: int, host: str, targets: tuple[int, ...]) -> None:
        self._population = population
        self.kind = kind
        self.node = node
        self.targets = targets
        self.incarnation = population.chance.getrandbits(62) | 1
        self.transport = population.transport(host)
        self._host = host
        self._connection: Connection | None = None  # that with the one it asks; _links has those with others too
        self._links: dict[int, Connection] = {}
        self._since = 0  # answers to requests up to this one are of an attempt that is over
        self._next = 0
        self._beat_at = 0.0
        self._report: tuple[TargetReport, ...] = ()
        self._report_of = -1
        self.registered = False
        self.alive = True
        self.failures = 0
        self.version = 0
        self.told_at = 0.0
        self.answered_at = 0.0  # its last heartbeat
        self.where = 0  # which mgmtd it asks
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        """Follow mgmtd until dead."""
        with self.scope:
            while True:
                error: FS3Error
                try:
                    await self._follow()
                except FS3Error as caught:
                    error = caught
                self._connection = None
                self._beat_at = 0.0
                if error.code is not Code.NOT_PRIMARY:
                    await self._close()
                await self._elsewhere(error)

    def die(self) -> None:
        """As a host that loses power."""
        self.alive = False
        self.scope.cancel()

    def heartbeat(self) -> None:
        """Send one, if there is anybody to send it to."""
        if self._connection is not None and self.registered:
            if self._beat_at:  # the one before was not answered for a quarter of the lease
                self._population.lost_heartbeats += 1
            self._beat_at = self._population.now()
            self._send(HEARTBEAT, HeartbeatRequest(self.node, self.incarnation, self._reports()), 5_000)

    def probe(self) -> None:
        """Ask for news, for a second, besides the question that is open."""
        self._send(GET_ROUTING, GetRoutingRequest(self.version, PROBE_MS, True), 2 * PROBE_MS, 3)

    def _reports(self) -> tuple[TargetReport, ...]:
        if not self.targets:
            return ()
        population = self._population
        routing = population.seen.routing
        if self._report_of != routing.version or population.writing:
            self._report_of = routing.version
            used = population.used()
            self._report = tuple([self._reported(routing, target, used) for target in self.targets])
        return self._report

    def _reported(self, routing: RoutingInfo, target: int, used: int) -> TargetReport:
        entry = routing.targets.get(target)
        chain = routing.chains.get(entry.chain) if entry is not None else None
        state = chain.state_of(target) if chain is not None else None
        local = LocalState.UPTODATE if state in (PublicState.SERVING, PublicState.SYNCING) else LocalState.ONLINE
        return TargetReport(target, target % 100, local, TARGET_BYTES, used, chain.version if chain is not None else 0)

    async def _follow(self) -> None:
        addresses = self._population.addresses
        where = self.where % len(addresses)
        if where not in self._links:
            self._links[where] = await self.transport.connect(addresses[where])
        self._connection = self._links[where]
        self._since = self._next + 3
        if self.registered:
            self.heartbeat()
            self._ask()
        else:
            reports = tuple([TargetReport(t, t % 100, LocalState.ONLINE, TARGET_BYTES, 0) for t in self.targets])
            address = f"tcp://10.0.{self.node // 256 % 256}.{self.node % 256}:7300" if self.targets else ""
            request = RegisterRequest(
                self.node, self.kind, address, f"{self._host}.example.net", self.incarnation, (), reports
            )
            self._send(REGISTER, request, 10_000)
        while True:
            with trio.move_on_after(math.inf if self.registered else REGISTER_S) as late:
                frame = await self._connection.receive()
            if late.cancelled_caught:
                raise FS3Error(Code.DEADLINE_EXCEEDED, "no answer")
            if frame.request_id <= self._since:
                continue
            method = _METHODS[frame.request_id & 3]
            self._population.count(method.name, len(frame.body))
            if frame.kind is Kind.ERROR:
                raise decode(ErrorBody, frame.body).to_error()
            if frame.request_id & 3 != 3:
                self._take(method, frame.body)

    def _take(self, method: Method[Any, Any], body: bytes) -> None:
        self.failures = 0
        if method.id == HEARTBEAT.id:
            self._beat_at = 0.0
            self.answered_at = self._population.now()
        elif method.id == REGISTER.id:
            self.node = decode(RegisterReply, body).node
            self.registered = True
            self._ask()
        else:
            version = self._population.seen.read(body)
            if version:
                self.version = version
                self.told_at = self._population.now()
            self._ask()

    def _ask(self) -> None:
        urgent = self.kind is NodeKind.STORAGE
        self._send(GET_ROUTING, GetRoutingRequest(self.version, POLL_MS, True, urgent), _POLL_MS)

    def _send(self, method: Method[Any, Any], request: object, timeout_ms: int, mark: int = -1) -> None:
        if self._connection is None:
            return
        self._next += 4
        number = self._next + (mark if mark >= 0 else _METHODS.index(method))
        frame = Frame(Kind.REQUEST, method.id, 0, number, timeout_ms, encode(request))
        with suppress(FS3Error):  # whoever receives is told
            rest = self._connection.start_send(frame)
            assert rest is None, "a few hundred bytes always fit"

    async def _close(self) -> None:
        link = self._links.pop(self.where % len(self._population.addresses), None)
        if link is not None:
            with trio.CancelScope(shield=True):
                await link.aclose()

    async def _elsewhere(self, error: FS3Error) -> None:
        """As MgmtdClient does it."""
        addresses = self._population.addresses
        self.failures += 1
        named = primary_of(error)
        self.where = addresses.index(named) if named in addresses else self.where + 1
        if error.code is Code.STALE_INCARNATION:
            self.alive = False
            self.scope.cancel()
        if self.failures == 1 and error.code is not Code.NOT_PRIMARY and self.kind is NodeKind.CLIENT:
            nodes = len(self._population.seen.routing.nodes)
            limit_s = min(SCATTER_MS_MAX, SCATTER_MS_PER_NODE * nodes) / 1000
            await trio.sleep(limit_s * self._population.chance.random())
            return
        if named and self.failures <= 2:
            return
        rounds = self.failures // len(addresses)
        if rounds:
            await trio.sleep(_BACKOFF.delay_s(rounds, self._population.chance.random))


class Population:
    """All nodes, and the clock of their heartbeats.

    transport: makes that of a host. writing: fill levels differ with each heartbeat.
    """

    def __init__(self, addresses: Sequence[str], transport: Callable[[str], Transport], now: Callable[[], float]) -> None:
        self.addresses = list(addresses)
        self.transport = transport
        self.now = now
        self.chance = random.Random(1)
        self.storages: list[LightNode] = []
        self.clients: list[LightNode] = []
        self.seen = Seen(Counter(), Counter(), EMPTY, {})
        self.writing = False
        self.lost_heartbeats = 0
        self._used = 0

    def add_storages(self, count: int, targets: int) -> None:
        for node in range(1001, 1001 + count):
            own = tuple(range(node * 100, node * 100 + targets))
            self.storages.append(LightNode(self, NodeKind.STORAGE, node, f"storage{node}", own))

    def add_clients(self, count: int) -> None:
        self.clients += [LightNode(self, NodeKind.CLIENT, 0, f"client{n}", ()) for n in range(count)]

    def all(self) -> list[LightNode]:
        return [node for node in (*self.storages, *self.clients) if node.alive]

    def count(self, method: str, size: int) -> None:
        self.seen.replies[method] += 1
        self.seen.bytes_in[method] += size

    def used(self) -> int:
        if self.writing:
            self._used = (self._used + 1_000_003) % (TARGET_BYTES // 100)
        return self._used

    async def beat(self, storage_s: float, client_s: float) -> None:
        """Let each send its heartbeats, evenly spread over so many seconds, until cancelled."""
        start = self.now()
        due = [
            (start + every_s * n / len(nodes), number, node, every_s)
            for nodes, every_s in ((self.storages, storage_s), (self.clients, client_s))
            for n, (number, node) in enumerate([(node.incarnation, node) for node in nodes])
        ]
        heapq.heapify(due)
        while due:
            at, number, node, every_s = due[0]
            if at > self.now():
                await trio.sleep(at - self.now())
                continue
            if not node.alive:
                heapq.heappop(due)
                continue
            node.heartbeat()
            heapq.heapreplace(due, (at + every_s, number, node, every_s))

    async def until(self, holds: Callable[[LightNode], bool], limit_s: float) -> float:
        """Wait until this is true of all that live; returns when that was. Raises TooSlowError."""
        with trio.fail_after(limit_s):
            while not all(holds(node) for node in self.all()):  # noqa: ASYNC110
                await trio.sleep(0.05)
        return self.now()
