"""The channel table against the plain rule: a request is new once, its retries get its result, older ones are stale."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fs3.api.storage import UpdateResult
from fs3.ids import RequestTag
from storage.channels import Admission, Channels

LANES = st.integers(0, 3)


class ChannelMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.channels = Channels(limit=100)
        self.now = 0.0
        self.last: dict[int, int] = {}  # lane -> the highest sequence admitted or finished
        self.running: set[RequestTag] = set()
        self.done: dict[RequestTag, UpdateResult] = {}

    def tag(self, lane: int, sequence: int) -> RequestTag:
        return RequestTag(1, lane, sequence)

    @rule(lane=LANES, ahead=st.integers(-2, 2))
    def admit(self, lane: int, ahead: int) -> None:
        self.now += 1
        last = self.last.get(lane, 5)
        tag = self.tag(lane, last + ahead)
        if lane not in self.last or ahead > 0:
            expected: tuple[Admission, UpdateResult | None] = (Admission.NEW, None)
        elif ahead < 0:
            expected = (Admission.STALE, None)
        elif tag in self.done:
            expected = (Admission.REPLAY, self.done[tag])
        elif tag in self.running:
            expected = (Admission.IN_PROGRESS, None)
        else:
            expected = (Admission.NEW, None)
        assert self.channels.admit(tag, self.now) == expected
        if expected[0] is Admission.NEW:
            self.running.add(tag)
            self.last[lane] = tag.sequence

    @rule(lane=LANES, behind=st.integers(0, 1))
    def finish(self, lane: int, behind: int) -> None:
        if lane not in self.last:
            return
        self.now += 1
        tag = self.tag(lane, self.last[lane] - behind)
        result = UpdateResult(0, int(self.now), 0, 0)
        self.channels.finish(tag, result, self.now)
        self.running.discard(tag)
        self.done[tag] = result

    @rule(lane=LANES, behind=st.integers(0, 1))
    def abandon(self, lane: int, behind: int) -> None:
        if lane in self.last:
            tag = self.tag(lane, self.last[lane] - behind)
            self.channels.abandon(tag)
            self.running.discard(tag)

    @rule(lane=LANES, ahead=st.integers(-2, 1))
    def confirm(self, lane: int, ahead: int) -> None:
        if lane not in self.last:
            return
        tag = self.tag(lane, self.last[lane] + ahead)
        if ahead < 0:
            expected: tuple[Admission, UpdateResult | None] = (Admission.STALE, None)
        elif ahead == 0 and tag in self.done:
            expected = (Admission.REPLAY, self.done[tag])
        else:
            expected = (Admission.NEW, None)
        assert self.channels.confirm(tag) == expected

    @rule(age=st.integers(0, 20))
    def drop_idle(self, age: int) -> None:
        for _, lane in self.channels.drop_idle(self.now - age):
            assert self.tag(lane, self.last[lane]) not in self.running
            del self.last[lane]
            self.done = {tag: result for tag, result in self.done.items() if tag.channel != lane}
            self.running = {tag for tag in self.running if tag.channel != lane}
        assert len(self.channels) == len(self.last)


TestChannels = ChannelMachine.TestCase
TestChannels.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
