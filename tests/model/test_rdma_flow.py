"""Two ends of an RDMA connection and a device that takes its time: what the RDMASocket specification of 3FS checks, and that
nothing is sent which the peer has no receive for.

The device does work requests in order, delivers in order, and tells of completions whenever it likes.
"""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fs3.errors import ProtocolError
from fs3.transport.rdma_flow import Flow, Limits, Post, Work

SIDES = st.integers(0, 1)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    receives = draw(st.integers(1, 6))
    sends = draw(st.integers(1, 6))
    return_after = draw(st.integers(1, receives))
    depth = sends + 1 + draw(st.integers(0, 4))
    return Limits(receives, sends, depth, draw(st.integers(1, 3)), return_after)


class End:
    """One side, with its part of the device."""

    def __init__(self, ours: Limits, theirs: Limits) -> None:
        self.limits = ours
        self.flow = Flow(ours, theirs)
        self.receives = ours.receives + theirs.returns  # posted now
        self.queue: deque[Post] = deque()  # posted, not done
        self.done: deque[Post] = deque()  # done, not told
        self.buffers: set[int] = set()  # posted, and not known to be done
        self.waiting = 0  # messages to send
        self.reads: deque[int] = deque()
        self.writes: deque[int] = deque()
        self.sent = 0
        self.received = 0
        self.inbox: deque[tuple[int, bool]] = deque()  # arrived, not seen: immediate, empty
        self.under_way: set[int] = set()
        self.tokens = 0

    def pump(self) -> bool:
        """Post what can be posted."""
        before = len(self.queue) + self.sent
        while self.reads:
            if not self.post(self.flow.read(self.reads[0])):
                break
            self.under_way.add(self.reads.popleft())
        while self.writes:
            if not self.post(self.flow.write(self.writes[0])):
                break
            self.under_way.add(self.writes.popleft())
        while self.waiting:
            if not self.post(self.flow.message()):
                break
            self.waiting -= 1
            self.sent += 1
        self.post(self.flow.returning())
        return len(self.queue) + self.sent > before

    def post(self, post: Post | None) -> bool:
        if post is None:
            return False
        if post.work is Work.MESSAGE:
            assert post.buffer not in self.buffers, "a buffer that the device may still read"
            self.buffers.add(post.buffer)
        self.queue.append(post)
        assert len(self.queue) + len(self.done) <= self.limits.depth
        return True

    def tell(self) -> bool:
        """One completion, if any was asked for among what is done."""
        for i, post in enumerate(self.done):
            if post.signaled:
                for told in [self.done.popleft() for _ in range(i + 1)]:
                    self.buffers.discard(told.buffer)
                tokens = self.flow.completed(post.number)
                assert self.under_way.issuperset(tokens) and len(set(tokens)) == len(tokens)
                self.under_way.difference_update(tokens)
                return True
        return False

    def see(self) -> bool:
        if not self.inbox:
            return False
        immediate, empty = self.inbox.popleft()
        self.receives += 1
        self.flow.arrived(immediate)
        if not empty:
            self.flow.taken()
            self.received += 1
        return True


class Connection(RuleBasedStateMachine):
    ends: tuple[End, End]

    @initialize(a=limits(), b=limits())
    def connect(self, a: Limits, b: Limits) -> None:
        self.ends = (End(a, b), End(b, a))

    @rule(side=SIDES, count=st.integers(1, 10))
    def send(self, side: int, count: int) -> None:
        self.ends[side].waiting += count
        self.ends[side].pump()

    @rule(side=SIDES, write=st.booleans(), count=st.integers(1, 4))
    def transfer(self, side: int, write: bool, count: int) -> None:
        end = self.ends[side]
        for _ in range(count):
            end.tokens += 1
            (end.writes if write else end.reads).append(end.tokens)
        end.pump()

    @rule(side=SIDES, count=st.integers(1, 8))
    def work(self, side: int, count: int) -> None:
        for _ in range(count):
            self._work(side)

    def _work(self, side: int) -> bool:
        """The device does one work request."""
        end, peer = self.ends[side], self.ends[1 - side]
        if not end.queue:
            return False
        post = end.queue.popleft()
        if post.work in (Work.MESSAGE, Work.RETURN):
            assert peer.receives > 0, "the peer is not ready to receive"
            peer.receives -= 1
            peer.inbox.append((post.immediate, post.work is Work.RETURN))
        end.done.append(post)
        return True

    @rule(side=SIDES, count=st.integers(1, 8))
    def see(self, side: int, count: int) -> None:
        for _ in range(count):
            self.ends[side].see()
            self.ends[side].pump()

    @rule(side=SIDES)
    def tell(self, side: int) -> None:
        self.ends[side].tell()
        self.ends[side].pump()

    @invariant()
    def credits_are_neither_lost_nor_made(self) -> None:
        for end, peer in (self.ends, reversed(self.ends)) if hasattr(self, "ends") else ():
            on_way = sum(post.work is Work.MESSAGE for post in end.queue) + sum(not empty for _, empty in peer.inbox)
            returning = sum(post.immediate for post in peer.queue) + sum(immediate for immediate, _ in end.inbox)
            assert end.flow.credits + on_way + peer.flow.owed + returning == peer.limits.receives

    def teardown(self) -> None:
        """Whatever waits goes out in the end, and every transfer's token comes back."""
        if not hasattr(self, "ends"):
            return
        for end in self.ends:
            end.waiting += 1  # asks for a completion of the writes before it
        moved = True
        while moved:
            moved = False
            for side, end in enumerate(self.ends):
                moved = any([end.pump(), self._work(side), end.see(), end.tell()]) or moved
        a, b = self.ends
        assert not a.waiting and not b.waiting
        assert (a.sent, b.sent) == (b.received, a.received)
        for end in self.ends:
            assert not end.reads and not end.writes and not end.under_way
            assert end.flow.destroyed() == []


TestConnection = Connection.TestCase
TestConnection.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_credits_that_the_peer_never_had_are_refused() -> None:
    ours = Limits(4, 2, 9, 1, 2)
    flow = Flow(ours, ours)
    assert flow.message() is not None
    flow.arrived(1)
    with pytest.raises(ProtocolError, match="returned 1 credits"):
        flow.arrived(1)


def test_destruction_gives_back_what_was_under_way() -> None:
    ours = Limits(4, 2, 9, 1, 2)
    flow = Flow(ours, ours)
    assert flow.read(5) is not None and flow.write(6) is not None and flow.message() is not None
    assert flow.read(7) is None, "one READ at once"
    assert flow.destroyed() == [5, 6] and flow.idle


def test_limits_that_would_stand_still_are_refused() -> None:
    for bad in ((0, 1, 8, 1, 1), (4, 2, 2, 1, 2), (4, 2, 8, 1, 5), (4, 2, 8, 0, 2)):
        with pytest.raises(ProtocolError):
            Limits(*bad)


def test_a_written_source_is_heard_of_by_the_message_behind_it() -> None:
    ours = Limits(16, 16, 32, 1, 4)
    flow = Flow(ours, ours)
    first = flow.message()
    assert first is not None and not first.signaled
    assert flow.write(6) is not None
    answer = flow.message()
    assert answer is not None and answer.signaled, "else its memory stays taken until others follow"
    assert flow.completed(answer.number) == [6]


def test_credits_are_not_returned_one_by_one() -> None:
    ours = Limits(4, 4, 9, 1, 2)
    flow = Flow(ours, ours)
    flow.taken()
    assert flow.returning() is None
    flow.taken()
    assert flow.returning() is not None and flow.owed == 0
