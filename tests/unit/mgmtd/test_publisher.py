from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from fs3.api.mgmtd import GetRoutingReply, GetRoutingRequest, not_primary
from fs3.env import Env
from fs3.errors import FS3Error
from fs3.routing import RoutingInfo
from fs3.rpc.server import Call, Encoded, Later
from fs3.transport.memory import MemoryTransport
from fs3.wire.codec import decode
from mgmtd.cluster import Cluster, Timing
from mgmtd.publisher import PACE_S, SLICE, Publisher
from mgmtd.state import FIRST_CLIENT, Head, Saved

from .test_deltas import changed


class FakeLater:
    """A caller who waits. at: when it was answered."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.at = 0.0
        self.gone = False

    def reply(self, answer: Any) -> None:
        self.answers.append(answer)
        self.at = trio.current_time()


class FakeCall:
    def __init__(self, timeout_s: float) -> None:
        self.deadline = trio.current_time() + timeout_s
        self.later = FakeLater()

    def reply_later(self) -> Later:
        return cast(Later, self.later)


class Office:
    """A primary whose routing the test changes."""

    def __init__(self) -> None:
        self.publisher = Publisher(Env(MemoryTransport(), random.Random(1)))
        self.cluster = Cluster(Saved(Head(1, 1, "c", FIRST_CLIENT)), Timing(), 0.0)
        first = changed(self.cluster.state, *[("targets", number, 0) for number in range(1, 20)])
        self.cluster.apply(first)
        self.publisher.begin(self.cluster, first, 1)
        self.info = self.cluster.routing

    def change(self, target: int = 1) -> None:
        change = changed(self.cluster.state, ("targets", target, self.cluster.version))
        self.cluster.apply(change)
        self.publisher.applied(change)

    def ask(self, known: int, wait_ms: int = 10_000, urgent: bool = False, timeout_s: float = 12.0) -> FakeLater:
        call = FakeCall(timeout_s)
        answer = self.publisher.answer(GetRoutingRequest(known, wait_ms, True, urgent), cast(Call, call))
        if isinstance(answer, Encoded):
            call.later.reply(answer)
        else:
            assert answer is call.later
        return call.later


def reply_of(later: FakeLater) -> GetRoutingReply:
    (answer,) = later.answers
    assert isinstance(answer, Encoded)
    return decode(GetRoutingReply, answer.body)


def version_of(later: FakeLater, base: RoutingInfo) -> int:
    """The version that one who knew `base` has now; 0: the answer was that there is nothing new."""
    reply = reply_of(later)
    if reply.delta is not None:
        return reply.delta.apply(base).version
    return reply.routing.version if reply.routing is not None else 0


@asynccontextmanager
async def office() -> AsyncIterator[Office]:
    async with trio.open_nursery() as nursery:
        made = Office()
        nursery.start_soon(made.publisher.run)
        await trio.testing.wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_all_that_wait_are_told_with_the_same_bytes(autojump_clock: MockClock) -> None:
    async with office() as o:
        waiting = [o.ask(2) for _ in range(3 * SLICE + 1)]
        await trio.sleep(1)
        assert not any(later.answers for later in waiting)
        o.change()
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert {version_of(later, o.info) for later in waiting} == {3}
        assert len({id(later.answers[0].body) for later in waiting}) == 1
        assert {later.at for later in waiting} == {1.0}, "news after a quiet time leave at once"


async def test_a_question_is_answered_at_the_end_of_its_time(autojump_clock: MockClock) -> None:
    async with office() as o:
        start = trio.current_time()
        waits_ms = (10_000, 200, 30_000, 1)
        asked = [o.ask(2, wait_ms, timeout_s=100) for wait_ms in waits_ms]
        asked.append(o.ask(2, 10_000, timeout_s=5))
        await trio.sleep(60)
        for later, wait_ms in zip(asked, (*waits_ms, 5000), strict=True):
            assert reply_of(later) == GetRoutingReply(None)
            assert 0.98 * wait_ms <= (later.at - start) * 1000 <= wait_ms + 0.1
        assert reply_of(o.ask(2, 0)) == reply_of(o.ask(2, -5)) == GetRoutingReply(None), "it waits for nothing"
        assert reply_of(o.ask(2, 100, timeout_s=0)) == GetRoutingReply(None)


async def test_news_that_follow_each_other_are_told_together(autojump_clock: MockClock) -> None:
    async with office() as o:
        first = [o.ask(2) for _ in range(1000)]
        o.change()
        await trio.sleep(PACE_S)
        assert {version_of(later, o.info) for later in first} == {3}
        info = o.cluster.routing
        again = [o.ask(3) for _ in range(1000)]
        start = trio.current_time()
        for target in range(1, 11):
            o.change(target)
            await trio.sleep(PACE_S)
        assert not any(later.answers for later in again), "they were told just now"
        assert version_of(o.ask(3, wait_ms=0), info) == 13, "who asks for what there is now gets it"
        assert version_of(o.ask(2), o.info) == 13, "and who is behind"
        await trio.sleep(1)
        assert {version_of(later, info) for later in again} == {13}
        assert all(later.at - start <= 1000 * PACE_S for later in again)


async def test_who_is_ahead_of_the_others_waits_with_them(autojump_clock: MockClock) -> None:
    """It was told more, since it asked in the middle; it is not told the same twice."""
    async with office() as o:
        waiting = [o.ask(2) for _ in range(1000)]
        o.change()
        await trio.sleep(PACE_S)
        o.change()
        info = o.cluster.routing
        ahead = o.ask(4)
        await trio.sleep(1)
        assert not ahead.answers and all(len(later.answers) == 1 for later in waiting)
        o.change()
        await trio.sleep(1)
        assert version_of(ahead, info) == 5


async def test_those_in_chains_do_not_wait_for_the_others(autojump_clock: MockClock) -> None:
    async with office() as o:
        for _ in range(5000):
            o.ask(2)
        o.change()
        await trio.sleep(PACE_S)
        info = o.cluster.routing
        client, storage = o.ask(3), o.ask(3, urgent=True)
        o.change()
        await trio.sleep(0.01)
        assert version_of(storage, info) == 4 and not client.answers
        await trio.sleep(5000 * PACE_S)
        assert version_of(client, info) == 4


async def test_all_are_refused_at_the_end_of_the_office(autojump_clock: MockClock) -> None:
    async with office() as o:
        waiting = [o.ask(2, urgent=urgent) for urgent in (True, False) for _ in range(100)]
        o.publisher.end(not_primary("mem://other"))
        for later in waiting:
            (answer,) = later.answers
            assert isinstance(answer, FS3Error) and "mem://other" in answer.message


async def test_a_version_that_we_do_not_have_is_another_clusters(autojump_clock: MockClock) -> None:
    async with office() as o:
        reply = reply_of(o.ask(77))
        assert reply.routing is not None and reply.routing.to_info() == o.cluster.routing


@pytest.mark.parametrize("urgent", [False, True])
async def test_the_next_primary_tells_what_it_changed_alone(autojump_clock: MockClock, urgent: bool) -> None:
    """Its clients know what its predecessor told them last."""
    async with office() as o:
        reply = reply_of(o.ask(1, urgent=urgent))
        assert reply.delta is not None and reply.delta.base == 1
