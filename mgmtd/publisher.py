"""Tells thousands of routing news, without holding up what keeps their leases."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from fs3.api.mgmtd import GetRoutingReply, GetRoutingRequest
from fs3.env import Env
from fs3.errors import FS3Error
from fs3.rpc.server import Call, Encoded, Later
from fs3.wire.codec import encode

from .cluster import Cluster
from .deltas import Deltas
from .state import Change

WAIT_MS_MAX = 60_000
"""Longest that a question waits for something newer."""
ROUNDING = 64
"""Questions end at multiples of this part of their waiting time, so that many end together."""
CLOSE_S = 1e-6
"""So close to its end a question has waited long enough: two clocks never agree to the last digit."""
SLICE = 64
"""Answers between two turns of other tasks."""
PACE_S = 0.0002
"""The next news wait so long for each one that was told the last: several changes then cost no more than one, and what is
told in all takes no more than about a third of a core. News after a quiet time leave at once."""

_NOTHING = Encoded(encode(GetRoutingReply(None)))


@dataclass(slots=True, eq=False)
class _Poll:
    """A question by one who knows version `known`. deltas: it understands them."""

    later: Later
    known: int
    deltas: bool


class _Lane:
    """Those who are told together, and when their questions have waited long enough."""

    def __init__(self, env: Env) -> None:
        self.told = 0  # the version that was told last, or is being told
        self.news = trio.Event()
        self._env = env
        self._waiting: dict[int, _Poll] = {}
        self._ends: list[tuple[float, int]] = []  # heap: when a question's time is over; its number
        self._count = 0
        self._scope = trio.CancelScope()
        self._wakes_at = math.inf
        # Invariant: each number in _waiting is in _ends.

    def add(self, poll: _Poll, wait_s: float) -> None:
        """Let it wait so long, or a little less."""
        step_s = wait_s / ROUNDING
        ends_at = math.floor((self._env.monotonic() + wait_s) / step_s) * step_s
        self._count += 1
        self._waiting[self._count] = poll
        heapq.heappush(self._ends, (ends_at, self._count))
        if ends_at < self._wakes_at:
            self._wakes_at = ends_at
            self._scope.deadline = self._trio_time()

    def take(self, version: int) -> Iterator[list[_Poll]]:
        """All that wait now and know another version, in slices; they are taken out when their slice is handed out."""
        numbers = [number for number, poll in self._waiting.items() if poll.known != version]
        for start in range(0, len(numbers), SLICE):
            yield [self._waiting.pop(number) for number in numbers[start : start + SLICE] if number in self._waiting]
        if len(self._ends) > 2 * len(self._waiting) + 1000:
            self._ends = [end for end in self._ends if end[1] in self._waiting]
            heapq.heapify(self._ends)

    async def watch(self) -> None:
        """Answer those whose time is over, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._trio_time()) as self._scope:
                await trio.sleep(math.inf)
            now = self._env.monotonic() + CLOSE_S
            while self._ends and self._ends[0][0] <= now:
                poll = self._waiting.pop(heapq.heappop(self._ends)[1], None)
                if poll is not None:
                    poll.later.reply(_NOTHING)
            self._wakes_at = self._ends[0][0] if self._ends else math.inf

    def _trio_time(self) -> float:
        return trio.current_time() + (self._wakes_at - self._env.monotonic())


class Publisher:
    """Answers questions for routing info. A question that waits takes no task.

    Those that are urgent (storage daemons, which take part in chains) are told before the others.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self._cluster: Cluster | None = None
        self._deltas = Deltas(0)
        self._urgent = _Lane(env)
        self._others = _Lane(env)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for lane in (self._urgent, self._others):
                nursery.start_soon(self._tell, lane)
                nursery.start_soon(lane.watch)

    def begin(self, cluster: Cluster, change: Change, before: int) -> None:
        """We are primary. change: the one by which we became it; before: the routing version before it."""
        self._cluster = cluster
        self._deltas = Deltas(before)
        for lane in (self._urgent, self._others):
            lane.told = before
        self.applied(change)

    def applied(self, change: Change) -> None:
        """A change was committed and applied."""
        if change.head is not None:
            self._deltas.add(change)
            for lane in (self._urgent, self._others):
                lane.news.set()

    def end(self, refusal: FS3Error) -> None:
        """We are no longer primary: all that wait are refused."""
        self._cluster = None
        for lane in (self._urgent, self._others):
            for polls in lane.take(-1):
                for poll in polls:
                    poll.later.reply(refusal)

    def answer(self, request: GetRoutingRequest, call: Call) -> Encoded | Later:
        """The answer, or its promise."""
        assert self._cluster is not None
        lane = self._urgent if request.urgent else self._others
        known, version = request.known_version, self._cluster.version
        # A version above ours is of a cluster whose data was replaced: that is news too.
        if not lane.told <= known <= version or (request.wait_ms <= 0 and known != version):
            return self._news(known, request.deltas)
        wait_s = min(min(request.wait_ms, WAIT_MS_MAX) / 1000, call.deadline - self._env.monotonic())
        if wait_s <= 0:
            return _NOTHING
        later = call.reply_later()
        lane.add(_Poll(later, known, request.deltas), wait_s)
        return later

    def _news(self, known: int, deltas: bool) -> Encoded:
        assert self._cluster is not None
        return Encoded(self._deltas.reply(self._cluster.routing, known, deltas, self._env.monotonic()))

    async def _tell(self, lane: _Lane) -> None:
        """Tell those of a lane what is new, as often as it may be."""
        while True:
            await lane.news.wait()
            lane.news = trio.Event()
            await trio.sleep(await self._tell_all(lane) * PACE_S)

    async def _tell_all(self, lane: _Lane) -> int:
        """Returns how many were told."""
        count = 0
        if self._cluster is not None and self._cluster.version != lane.told:
            lane.told = self._cluster.version
            for polls in lane.take(lane.told):
                for poll in polls:
                    poll.later.reply(self._news(poll.known, poll.deltas))
                count += len(polls)
                await trio.lowlevel.checkpoint()
        return count
