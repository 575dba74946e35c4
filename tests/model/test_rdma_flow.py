"""Two ends of an RDMA connection and a device that takes its time: what 3FS checks of its RDMA sockets, and more.

Of that: no message meets a peer without a receive; no buffer is posted twice, none is filled or read that the device has;
the queues never overflow; messages arrive once, whole and in order; what waits goes out in the end, so that nobody stands
still; an empty message returns credits. Besides: credits are neither lost nor made; transfers come back once, when the
device is done with them or the queue pair is gone, whenever it fails; what says that memory is free waits for READs of it.

The device does work requests in order, but for what READs bring, delivers in order, and tells of completions whenever it
likes. A side may leave messages in their receive buffers for as long as it likes, too.
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


class Done:
    """A work request that the device has begun, and is done with once what it reads is here."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.finished = post.work is not Work.READ


class End:
    """One side, with its part of the device."""

    def __init__(self, ours: Limits, theirs: Limits) -> None:
        self.limits = ours
        self.flow = Flow(ours, theirs)
        self.receives = deque(range(ours.receives + theirs.returns))  # posted now: the indices of their buffers
        self.queue: deque[tuple[Post, int]] = deque()  # posted, not begun: and which message it is
        self.done: deque[Done] = deque()  # begun, and not told of
        self.buffers: set[int] = set()  # posted, and not known to be done
        self.waiting = 0  # messages to send
        self.reads: deque[int] = deque()
        self.writes: deque[int] = deque()
        self.sent = 0
        self.received = 0
        self.inbox: deque[tuple[int, int, int]] = deque()  # arrived, not seen: index, which message (0: empty), credits
        self.unread: deque[int] = deque()  # seen, and still in their buffers: their indices
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
            if not self.post(self.flow.message(), self.sent + 1):
                break
            self.waiting -= 1
            self.sent += 1
        self.post(self.flow.returning())
        return len(self.queue) + self.sent > before

    def post(self, post: Post | None, message: int = 0) -> bool:
        if post is None:
            return False
        if post.work is Work.MESSAGE:
            assert 0 <= post.buffer < self.limits.sends
            assert post.buffer not in self.buffers, "a buffer that the device may still read"
            self.buffers.add(post.buffer)
        elif post.work is Work.RETURN:
            assert post.immediate > 0, "an empty message that returns nothing"
        self.queue.append((post, message))
        assert len(self.queue) + len(self.done) <= self.limits.depth, "the send queue overflows"
        reads = sum(each.work is Work.READ for each, _ in self.queue) + sum(not each.finished for each in self.done)
        assert reads <= self.limits.reads
        return True

    def reading(self) -> list[Done]:
        return [each for each in self.done if not each.finished]

    def finish(self) -> bool:
        """What the first READ asked for is here."""
        for each in self.reading():
            each.finished = True
            return True
        return False

    def tell(self) -> bool:
        """One completion, if any was asked for among what is done."""
        for i, each in enumerate(self.done):
            if not each.finished:
                return False
            if each.post.signaled:
                for told in [self.done.popleft() for _ in range(i + 1)]:
                    self.buffers.discard(told.post.buffer)
                tokens = self.flow.completed(each.post.number)
                assert self.under_way.issuperset(tokens) and len(set(tokens)) == len(tokens)
                self.under_way.difference_update(tokens)
                return True
        return False

    def see(self) -> bool:
        if not self.inbox:
            return False
        index, message, immediate = self.inbox.popleft()
        self.flow.arrived(immediate)
        if message:
            self.received += 1
            assert message == self.received, "lost, doubled, or overtaken"
            self.unread.append(index)
        else:
            self.post_receive(index)
        return True

    def take(self) -> bool:
        """A message's buffer is wanted for the next one."""
        if not self.unread:
            return False
        self.post_receive(self.unread.popleft())
        self.flow.taken()
        return True

    def post_receive(self, index: int) -> None:
        assert index not in self.receives
        self.receives.append(index)


class Connection(RuleBasedStateMachine):
    ends: tuple[End, End]

    @initialize(a=limits(), b=limits())
    def begin(self, a: Limits, b: Limits) -> None:
        self.connect(a, b)

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

    @rule(side=SIDES)
    def give_up_reads(self, side: int) -> None:
        """Those under way are of no use any more, and the next message says so."""
        end = self.ends[side]
        end.reads.clear()
        end.flow.fence()

    @rule(side=SIDES, count=st.integers(1, 8))
    def work(self, side: int, count: int) -> None:
        for _ in range(count):
            self._work(side)

    def _work(self, side: int) -> bool:
        """The device begins with one work request."""
        end, peer = self.ends[side], self.ends[1 - side]
        if not end.queue or (end.queue[0][0].fenced and end.reading()):
            return False
        post, message = end.queue.popleft()
        if post.work in (Work.MESSAGE, Work.RETURN):
            assert peer.receives, "the peer is not ready to receive"
            peer.inbox.append((peer.receives.popleft(), message, post.immediate))
        end.done.append(Done(post))
        return True

    @rule(side=SIDES)
    def finish(self, side: int) -> None:
        self.ends[side].finish()

    @rule(side=SIDES, count=st.integers(1, 8), take=st.booleans())
    def see(self, side: int, count: int, take: bool) -> None:
        end = self.ends[side]
        for _ in range(count):
            end.see()
            if take:
                end.take()
            end.pump()

    @rule(side=SIDES)
    def tell(self, side: int) -> None:
        self.ends[side].tell()
        self.ends[side].pump()

    @rule()
    def fail(self) -> None:
        """Both queue pairs are destroyed, and nobody waits any more for what was under way. Then there are new ones."""
        for end in self.ends:
            tokens = end.flow.destroyed()
            assert set(tokens) == end.under_way and len(set(tokens)) == len(tokens)
            assert end.flow.idle and end.flow.destroyed() == []
        a, b = [end.limits for end in self.ends]
        self.connect(a, b)

    @invariant()
    def credits_are_neither_lost_nor_made(self) -> None:
        if not hasattr(self, "ends"):
            return
        for end, peer in (self.ends, reversed(self.ends)):
            on_way = sum(post.work is Work.MESSAGE for post, _ in end.queue) + sum(bool(each) for _, each, _ in peer.inbox)
            returning = sum(post.immediate for post, _ in peer.queue) + sum(immediate for _, _, immediate in end.inbox)
            held = on_way + len(peer.unread) + peer.flow.owed + returning
            assert end.flow.credits + held == peer.limits.receives

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
                steps = [end.pump(), self._work(side), end.finish(), end.see(), end.take(), end.tell()]
                moved = any(steps) or moved
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
