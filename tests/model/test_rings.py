"""Both sides of a ring, and messages that take their time: each operation reaches the daemon as it was prepared, and comes
back once, in its turn, with its own result, however the daemon serves it; and rubbish in the memory breaks neither side."""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fs3.rings import BATCH_MAX, COMPLETION, SUBMISSION, DaemonRing, ProgramRing, RingError, ring_bytes

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


class Rings(RuleBasedStateMachine):
    """prepared: what was asked for, by sequence number. Of those: told, then taken in batches, then returned in order."""

    @initialize(entries=st.integers(1, 9), data=st.data())
    def make(self, entries: int, data: st.DataObject) -> None:
        self.entries = entries
        self.depth = data.draw(st.integers(-entries, entries))
        memory = memoryview(bytearray(ring_bytes(entries)))
        self.program = ProgramRing(memory, entries)
        self.daemon = DaemonRing(memory, entries, self.depth)
        self.prepared: list[tuple[int, ...]] = []
        self.told = 0
        self.submissions: deque[int] = deque()  # messages on their way
        self.completions: deque[int] = deque()
        self.taken: list[tuple[int, int]] = []  # batches under way: first, count
        self.results: dict[int, int] = {}  # of operations that have ended
        self.returned = 0
        self.abandoned = 0
        self.ended: list[int] = []  # in the order in which the daemon had them done
        self.seen = 0  # of those, as far as the program was told
        self.freed = 0  # abandoned, and known to have ended, as have all before

    @rule(iov=U32, at=U64, length=U64, file=U32, offset=U64)
    def prepare(self, iov: int, at: int, length: int, file: int, offset: int) -> None:
        number = len(self.prepared)
        if number - max(self.returned, self.freed) >= self.entries:
            with pytest.raises(BlockingIOError):
                self.program.prepare(iov, at, length, file, offset, number)
            return
        assert self.program.prepare(iov, at, length, file, offset, number) == number
        self.prepared.append((offset, at, length, file, iov))

    @rule()
    def submit(self) -> None:
        count = self.program.submit()
        assert count == len(self.prepared) - self.told
        self.told = len(self.prepared)
        if count:
            self.submissions.append(count)

    @precondition(lambda self: self.submissions)
    @rule()
    def message_to_daemon(self) -> None:
        self.daemon.arrived(self.submissions.popleft())

    @rule(gathered=st.booleans())
    def take(self, gathered: bool) -> None:
        waiting = self.daemon.waiting
        count = self.daemon.batch(gathered)
        if self.depth > 0:
            assert count == (self.depth if waiting >= self.depth else 0)
        elif self.depth < 0:
            assert count == (min(waiting, -self.depth) if gathered or waiting >= -self.depth else 0)
        else:
            assert count == min(waiting, BATCH_MAX)
        if count:
            first, asked = self.daemon.take(count)
            assert asked == self.prepared[first : first + count]
            self.taken.append((first, count))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        first, count = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        results = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count))
        self.daemon.complete(first, results)
        self.results.update(zip(range(first, first + count), results, strict=True))
        self.ended.extend(range(first, first + count))
        self.completions.append(count)

    @precondition(lambda self: self.completions)
    @rule(together=st.booleans())
    def message_to_program(self, together: bool) -> None:
        count = self.completions.popleft()
        while together and self.completions:
            count += self.completions.popleft()
        self.program.completed(count)
        self.seen += count
        self._free()

    def _free(self) -> None:
        known = self.ended[: self.seen]
        self.freed = max(self.freed, min(self.returned, self.abandoned))
        while self.freed < self.abandoned and self.freed in known:
            self.freed += 1

    @rule(most=st.integers(1, 10))
    def wait(self, most: int) -> None:
        ready = self.program.ready()
        found = self.program.take(most)
        assert len(found) == min(ready, most)
        if found:
            self.returned = max(self.returned, self.abandoned)
        for done in found:
            assert (done.index, done.userdata, done.result) == (self.returned, self.returned, self.results[self.returned])
            self.returned += 1

    @rule()
    def abandon(self) -> None:
        expected = len(self.prepared) - max(self.returned, self.abandoned)
        assert self.program.abandon() == expected
        del self.prepared[self.told :]
        self.abandoned = self.told
        self._free()

    @invariant()
    def what_is_outstanding_is_known(self) -> None:
        if hasattr(self, "program"):
            assert self.program.outstanding == len(self.prepared) - max(self.returned, self.abandoned)

    def teardown(self) -> None:
        """When the daemon serves all that it can, all of that comes back."""
        if not hasattr(self, "program"):
            return
        self.submit()
        while self.submissions:
            self.message_to_daemon()
        while self.daemon.batch(True):
            self.take(True)
        for first, count in self.taken:
            self.daemon.complete(first, [first] * count)
            self.results.update(dict.fromkeys(range(first, first + count), first))
            self.ended.extend(range(first, first + count))
            self.completions.append(count)
        while self.completions:
            self.message_to_program(False)
        self.wait(self.entries)
        left = self.daemon.waiting
        assert left == 0 or (self.depth > 0 and left < self.depth)
        assert self.program.outstanding <= left


Rings.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRings = Rings.TestCase


@given(rubbish=st.binary(max_size=400), counts=st.lists(st.integers(0, 12), max_size=8), depth=st.integers(-5, 5))
def test_rubbish_is_copied_out_or_refused(rubbish: bytes, counts: list[int], depth: int) -> None:
    memory = bytearray(ring_bytes(5))
    memory[: len(rubbish)] = rubbish[: len(memory)]
    daemon = DaemonRing(memoryview(memory), 5, depth)
    under_way: list[tuple[int, int]] = []
    for count in counts:
        try:
            daemon.arrived(count)
        except RingError:
            assert not 0 < count <= 5 - daemon.waiting - daemon.under_way
            continue
        size = daemon.batch(True)
        if size:
            first, asked = daemon.take(size)
            assert len(asked) == size
            assert all(len(each) == 5 for each in asked)
            under_way.append((first, size))
            if len(under_way) > 1:
                first, size = under_way.pop(0)
                daemon.complete(first, [0] * size)


@given(rubbish=st.binary(min_size=5 * COMPLETION.size, max_size=5 * COMPLETION.size), count=st.integers(0, 7))
def test_a_program_believes_no_completion_of_what_is_not_under_way(rubbish: bytes, count: int) -> None:
    memory = bytearray(ring_bytes(5))
    program = ProgramRing(memoryview(memory), 5)
    for number in range(4):
        program.prepare(0, 0, 1, 0, 0, number)
    program.submit()
    memory[5 * SUBMISSION.size :] = rubbish
    told = [sequence for sequence, _ in COMPLETION.iter_unpack(rubbish)][:count]
    if 0 < count <= 4 and sorted(set(told)) == sorted(told) and all(sequence < 4 for sequence in told):
        program.completed(count)
    else:
        with pytest.raises(RingError):
            program.completed(count)
