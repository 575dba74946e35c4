"""The ring by which a program and a mount's daemon exchange operations: what lies where, and what each side keeps. Pure.

A ring is memory that both share: `entries` submissions, written by the program, then `entries` completions, written by the
daemon. No counters lie in it: each side tells the other by a message how many it has added, and remembers for itself how
far it is. So nothing is torn or read too early, and a program that writes rubbish there can only spoil its own operations.

A submission is the file's offset, the offset in the Iov, the length, the number of the registered file and that of the Iov;
a completion the submission's sequence number (they count from 0) and the bytes done, or a negative errno.
"""

from __future__ import annotations

import errno
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SUBMISSION = struct.Struct("=QQQII")
COMPLETION = struct.Struct("=Qq")
COUNT = struct.Struct("<I")
"""The message by which a side tells how many it has added."""

ENTRIES_MAX = 16_384
BATCH_MAX = 1024
"""What is served at once of a ring that does not say how much that is to be."""
VERSION = 1
"""Of all this, and of what is said at the door."""

Submission = tuple[int, int, int, int, int]


@dataclass(slots=True)
class Completion:
    """An operation that has ended. result: bytes, or a negative errno. index: what `prepare` returned."""

    result: int
    userdata: Any
    index: int


class RingError(Exception):
    """The other side does not keep to the rules."""


def ring_bytes(entries: int) -> int:
    """The memory of a ring."""
    return entries * (SUBMISSION.size + COMPLETION.size)


def check_ring(entries: int, io_depth: int, timeout_s: float) -> str:
    """What is wrong with the wish for a ring; empty where nothing is."""
    if not 1 <= entries <= ENTRIES_MAX:
        return f"entries: expected 1 to {ENTRIES_MAX}, got {entries}"
    if abs(io_depth) > entries:
        return f"io_depth: expected at most the {entries} entries of the ring, got {io_depth}"
    if not 0 <= timeout_s < 3600:
        return f"timeout_s: expected 0 to 3600, got {timeout_s}"
    return ""


class ProgramRing:
    """The program's side.

    Invariants: reaped <= told <= prepared <= reaped + entries, so each operation has its slot for itself until its
    completion was handed out; at most prepared - reaped completions are yet to be read off the ring.
    """

    __slots__ = ("_abandoned", "_entries", "_memory", "_prepared", "_reaped", "_results", "_seen", "_told", "_userdata")

    def __init__(self, memory: memoryview, entries: int) -> None:
        assert len(memory) >= ring_bytes(entries)
        self._memory = memory
        self._entries = entries
        self._prepared = 0
        self._told = 0  # of those prepared: submitted
        self._seen = 0  # completions read off the ring, in the order in which operations ended
        self._reaped = 0  # handed out, or abandoned and ended: in the order in which they were prepared
        self._abandoned = 0  # those before this are handed to nobody
        self._results: list[int | None] = [None] * entries
        self._userdata: list[Any] = [None] * entries

    @property
    def outstanding(self) -> int:
        """Operations that were prepared and not handed out yet."""
        return self._prepared - max(self._reaped, self._abandoned)

    @property
    def lingering(self) -> int:
        """Operations that were abandoned and have not ended yet."""
        return max(0, self._abandoned - self._reaped)

    def prepare(self, iov: int, iov_offset: int, length: int, file: int, file_offset: int, userdata: Any) -> int:
        """Its sequence number. Raises BlockingIOError where the ring is full, struct.error for numbers out of range."""
        sequence = self._prepared
        if sequence - self._reaped >= self._entries:
            raise BlockingIOError(errno.EAGAIN, f"the ring is full: {self._entries} operations have not been waited for")
        slot = sequence % self._entries
        SUBMISSION.pack_into(self._memory, slot * SUBMISSION.size, file_offset, iov_offset, length, file, iov)
        self._userdata[slot] = userdata
        self._prepared = sequence + 1
        return sequence

    def submit(self) -> int:
        """How many to tell the daemon of."""
        count = self._prepared - self._told
        self._told = self._prepared
        return count

    def completed(self, count: int) -> None:
        """The daemon has added so many completions. Raises RingError."""
        if not 0 < count <= self._told - self._seen:
            raise RingError(f"{count} completions, where {self._told - self._seen} can come")
        entries, results = self._entries, self._results
        base = entries * SUBMISSION.size
        for first, last in _parts(self._seen, count, entries):
            area = bytes(self._memory[base + first * COMPLETION.size : base + last * COMPLETION.size])
            for sequence, result in COMPLETION.iter_unpack(area):
                slot = sequence % entries
                if not self._reaped <= sequence < self._told or results[slot] is not None:
                    raise RingError(f"completion of operation {sequence}, which is not under way")
                results[slot] = result
        self._seen += count
        if self._reaped < self._abandoned:
            self._reap(self._abandoned)

    def ready(self) -> int:
        """How many could be handed out."""
        results, entries = self._results, self._entries
        at = self._reaped
        if at < self._abandoned:
            return 0
        while at < self._told and results[at % entries] is not None:
            at += 1
        return at - self._reaped

    def take(self, count_max: int) -> list[Completion]:
        """Operations that have ended, in the order in which they were prepared."""
        if self._reaped < self._abandoned:
            return []
        return self._reap(min(self._told, self._reaped + count_max))

    def abandon(self) -> int:
        """Nobody wants to hear of what was prepared until now; returns how many that were. What was submitted keeps its slot
        until it has ended; what was not is gone."""
        count = self.outstanding
        self._prepared = self._told
        self._abandoned = self._told
        self._reap(self._abandoned)
        return count

    def _reap(self, until: int) -> list[Completion]:
        results, userdata, entries = self._results, self._userdata, self._entries
        found = []
        sequence = self._reaped
        while sequence < until:
            slot = sequence % entries
            result = results[slot]
            if result is None:
                break
            found.append(Completion(result, userdata[slot], sequence))
            results[slot] = userdata[slot] = None
            sequence += 1
        self._reaped = sequence
        return found


class DaemonRing:
    """The daemon's side. It believes nothing that it reads in the memory, and copies it out before it looks at it.

    Invariants: done <= taken <= arrived <= done + entries.
    """

    __slots__ = ("_arrived", "_done", "_entries", "_io_depth", "_memory", "_taken")

    def __init__(self, memory: memoryview, entries: int, io_depth: int) -> None:
        assert len(memory) >= ring_bytes(entries)
        self._memory = memory
        self._entries = entries
        self._io_depth = io_depth
        self._arrived = 0
        self._taken = 0
        self._done = 0

    @property
    def waiting(self) -> int:
        """Submissions that were not taken yet."""
        return self._arrived - self._taken

    @property
    def under_way(self) -> int:
        return self._taken - self._done

    def arrived(self, count: int) -> None:
        """The program has added so many submissions. Raises RingError where it cannot have."""
        free = self._entries - (self._arrived - self._done)
        if not 0 < count <= free:
            raise RingError(f"{count} submissions on a ring that has room for {free}")
        self._arrived += count

    def batch(self, gathered: bool) -> int:
        """How many to take and serve at once now; 0 for none yet. gathered: enough time was spent waiting for more."""
        waiting, depth = self._arrived - self._taken, self._io_depth
        if depth > 0:
            return depth if waiting >= depth else 0
        if depth < 0:
            return min(waiting, -depth) if gathered or waiting >= -depth else 0
        return min(waiting, BATCH_MAX)

    def take(self, count: int) -> tuple[int, list[Submission]]:
        """The sequence number of the first, and what they ask for, unchecked."""
        assert 0 < count <= self.waiting
        first = self._taken
        self._taken += count
        found: list[Submission] = []
        for start, stop in _parts(first, count, self._entries):
            area = bytes(self._memory[start * SUBMISSION.size : stop * SUBMISSION.size])
            found.extend(SUBMISSION.iter_unpack(area))
        return first, found

    def complete(self, first: int, results: list[int]) -> None:
        """Add the completions of operations that follow on each other."""
        count = len(results)
        assert 0 < count <= self.under_way
        numbers = array("q", bytes(count * COMPLETION.size))
        numbers[::2] = array("q", range(first, first + count))
        numbers[1::2] = array("q", results)
        packed = numbers.tobytes()
        base = self._entries * SUBMISSION.size
        at = 0
        for start, stop in _parts(self._done, count, self._entries):
            size = (stop - start) * COMPLETION.size
            self._memory[base + start * COMPLETION.size : base + stop * COMPLETION.size] = packed[at : at + size]
            at += size
        self._done += count


def _parts(first: int, count: int, entries: int) -> Iterable[tuple[int, int]]:
    """The slots of so many numbers from `first` on, as ranges."""
    start = first % entries
    if start + count <= entries:
        return ((start, start + count),)
    return ((start, entries), (0, start + count - entries))
