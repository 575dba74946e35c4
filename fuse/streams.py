"""How one handle is read: which of its reads go on where an earlier one ended, or come at equal distances. Pure.

A handle may have several readers: threads that share it, or the mappings of a file. Each run of reads that follow on each
other is a stream; a mount reads ahead of those that go on, and never of single reads at random places.
"""

from __future__ import annotations

from collections import OrderedDict, deque

FIRST_READ_MIN = 128 * 1024
"""A first read from the start of a file counts as the first of many if it has this length."""
EARLY_READS, LATE_READS = 1, 2
"""The kernel sends a reader's requests several at a time, and they may come out of order: what lies this many of its length
behind the expected place, or before it, belongs to a stream."""
SURE_READS = 3
"""Reads of a stream from which on it is read ahead of, unless it began at the start of the file: two that are neighbours may
be one read of a program, which the kernel has cut."""
STREAMS_MAX = 16
"""Of one handle; the one that stood still for longest makes room."""
SINGLES_MAX = 8
"""Reads that may become streams."""
STEPS_MAX = 32
"""Places where a reader at equal distances would go on."""
STEPS_TRUSTED = 2
"""Equal distances in a row after which such a reader is believed."""
IDLE_READS = 1024
"""A stream that stood still while the mount's other streams were read so often has no share of the memory."""


class Stream:
    """One reader that goes on. next_offset: where. run: bytes that it has read, in so many reads. fetched: the block up to
    which was read ahead for it."""

    __slots__ = ("_length", "fetched", "next_offset", "reads", "run", "seen_at")

    def __init__(self, offset: int, length: int) -> None:
        self.next_offset = offset + length
        self.run = length
        self.reads = 1 if offset else SURE_READS
        self.fetched = 0
        self.seen_at = 0
        self._length = length

    def takes(self, offset: int, length: int) -> bool:
        """Take in a read if it is one of this stream."""
        late = self.next_offset - offset
        if not -EARLY_READS * self._length <= late <= LATE_READS * self._length:
            return False
        self.run += length
        self.reads += 1
        self._length = length
        if offset + length > self.next_offset:
            self.next_offset = offset + length
        return True


class Steps:
    """A reader at equal distances. distance: from the start of one read to that of the next, may be negative. count: how
    many equal ones there were."""

    __slots__ = ("count", "distance", "length")

    def __init__(self, distance: int, length: int) -> None:
        self.distance = distance
        self.length = length
        self.count = 1

    @property
    def trusted(self) -> bool:
        return self.count >= STEPS_TRUSTED

    def ahead(self, limit: int) -> int:
        """How many reads to be ahead: more the longer it goes on, at most `limit` bytes."""
        return min(self.count, max(1, limit // max(self.length, 1)), STEPS_MAX)


class ReadPattern:
    """Follows the reads of one handle. stream, steps: what the last read belongs to, one of them at most.

    Invariant: at most STREAMS_MAX streams, SINGLES_MAX single reads and STEPS_MAX places are remembered.
    """

    __slots__ = ("_followed", "_singles", "_steps", "_streams", "_usual_run", "steps", "stream")

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.steps: Steps | None = None
        self._streams: list[Stream] = []  # the one read last is the last
        self._singles: deque[Stream] = deque(maxlen=SINGLES_MAX)
        self._steps: OrderedDict[int, Steps] = OrderedDict()  # by the place where it would go on
        self._followed: deque[tuple[int, int]] = deque(maxlen=2)  # the last reads that are no stream's
        self._usual_run = 0  # of streams that ended; 0: none did

    def observe(self, offset: int, length: int) -> bool:
        """Take in a read; whether it is one of a sequential reader."""
        streams = self._streams
        self.steps = None
        if streams and streams[-1].takes(offset, length):
            self.stream = streams[-1]
            return True
        for stream in reversed(streams):
            if stream.takes(offset, length):
                streams.remove(stream)
                streams.append(stream)
                self.stream = stream
                return True
        self.stream = None
        for single in self._singles:
            if single.takes(offset, length):
                self._singles.remove(single)
                self._begin(single)
                return True
        if offset == 0 and length >= FIRST_READ_MIN:
            self._begin(Stream(0, length))
            return True
        self._singles.append(Stream(offset, length))
        self._follow(offset, length)
        return False

    def _follow(self, offset: int, length: int) -> None:
        """Take in a read that is no stream's: does it come at the distance of those before?"""
        step = self._steps.pop(offset, None) if self._steps else None
        if step is not None and step.length == length:
            step.count += 1
            self._expect(offset + step.distance, step)
            if step.trusted:
                self.steps = step
                return
        for start, size in self._followed:
            if size == length and step is None and start != offset:
                self._expect(2 * offset - start, Steps(offset - start, length))
        self._followed.append((offset, length))

    def ahead(self, block: int, limit: int) -> int:
        """How many bytes to be ahead of the stream: at least a block, then as many as it has read, `limit` at most. 0 where
        it may end at once.

        Where this handle's streams usually end earlier, no farther than that: whoever reads records of a few MiB at random
        places needs the rest of a record, and nothing behind it.
        """
        stream = self.stream
        assert stream is not None
        if stream.reads < SURE_READS:
            return 0
        if stream.run < 2 * self._usual_run:
            left = self._usual_run - stream.run
            return min(limit, left) if left >= block else 0
        return min(limit, max(block, stream.run))

    def streams(self) -> list[Stream]:
        return self._streams

    def _begin(self, stream: Stream) -> None:
        self.stream = stream
        if len(self._streams) >= STREAMS_MAX:
            ended = self._streams.pop(0).run
            self._usual_run = ended if not self._usual_run else (3 * self._usual_run + ended) // 4
        self._streams.append(stream)

    def _expect(self, place: int, step: Steps) -> None:
        if place < 0:
            return
        self._steps[place] = step
        if len(self._steps) > STEPS_MAX:
            self._steps.popitem(last=False)


class Shares:
    """Shares the memory for what is read ahead among the streams that are being read, so that none pushes out what another
    one is about to need."""

    def __init__(self) -> None:
        self._active: OrderedDict[Stream, None] = OrderedDict()  # the one read longest ago is the first
        self._reads = 0

    def of(self, stream: Stream, capacity: int) -> int:
        """Bytes for this stream, which is being read now: of half of the capacity, since what was read stays for a while."""
        self._reads += 1
        stream.seen_at = self._reads
        active = self._active
        if stream in active:
            active.move_to_end(stream)
        else:
            active[stream] = None
        while self._reads - next(iter(active)).seen_at > IDLE_READS:
            active.popitem(last=False)
        return capacity // 2 // len(active)

    def forget(self, pattern: ReadPattern) -> None:
        """The handle is closed."""
        for stream in pattern.streams():
            self._active.pop(stream, None)
