"""Exactly once: who has asked what last, and what the answer was. Pure.

A client numbers the requests of each of its channels and has one outstanding on each, so the last number and its result
tell a new request from a retry, and both from a copy that the network held back. Every replica of a chain keeps this table
(the head forwards the tags), so that it still holds when another replica becomes head; the engine stores it with the chunk
records, so that it holds after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from fs3.api.storage import UpdateResult
from fs3.ids import RequestTag


class Admission(Enum):
    NEW = auto()
    REPLAY = auto()
    """It was done: answer with its result."""
    IN_PROGRESS = auto()
    """An earlier copy of it is still being worked on."""
    STALE = auto()
    """The client has gone on to a later request on this channel: whatever this one would do must not happen now."""


@dataclass(slots=True)
class _Lane:
    # Invariant: not (running and result is not None).
    sequence: int
    running: bool
    result: UpdateResult | None
    used: float


Key = tuple[int, int]


class Channels:
    """The table of one target. Bounded: beyond `limit` channels the one unused for the longest time is dropped."""

    def __init__(self, limit: int = 65536) -> None:
        assert limit > 0
        self._limit = limit
        self._lanes: dict[Key, _Lane] = {}  # ordered by last use, oldest first

    def __len__(self) -> int:
        return len(self._lanes)

    def restore(self, tag: RequestTag, result: UpdateResult, now: float) -> None:
        """Take in what was stored before a restart."""
        self._lanes[tag.client, tag.channel] = _Lane(tag.sequence, False, result, now)

    def done(self) -> list[tuple[RequestTag, UpdateResult]]:
        """The requests whose results are known, of all channels."""
        lanes = self._lanes.items()
        return [(RequestTag(*key, lane.sequence), lane.result) for key, lane in lanes if lane.result is not None]

    def learn(self, tag: RequestTag, result: UpdateResult, now: float) -> bool:
        """Another replica has done a request; whether that was news."""
        lane = self._lanes.get((tag.client, tag.channel))
        if lane is not None and (
            lane.sequence > tag.sequence or (lane.sequence == tag.sequence and lane.result is not None)
        ):
            return False
        self.finish(tag, result, now)
        return True

    def admit(self, tag: RequestTag, now: float) -> tuple[Admission, UpdateResult | None]:
        """Begin a request. After NEW the caller owes a finish() or abandon()."""
        key = (tag.client, tag.channel)
        lane = self._lanes.pop(key, None)
        if lane is None:
            lane = _Lane(tag.sequence, True, None, now)
            self._lanes[key] = lane
            return Admission.NEW, None
        self._lanes[key] = lane
        lane.used = now
        if tag.sequence < lane.sequence:
            return Admission.STALE, None
        if tag.sequence == lane.sequence:
            if lane.running:
                return Admission.IN_PROGRESS, None
            if lane.result is not None:
                return Admission.REPLAY, lane.result
        lane.sequence = tag.sequence
        lane.running = True
        lane.result = None
        return Admission.NEW, None

    def confirm(self, tag: RequestTag) -> tuple[Admission, UpdateResult | None]:
        """Ask again after waiting: others may have finished the request, or the client may have gone on."""
        lane = self._lanes.get((tag.client, tag.channel))
        if lane is None or lane.sequence == tag.sequence:
            if lane is not None and lane.result is not None:
                return Admission.REPLAY, lane.result
            return Admission.NEW, None
        return (Admission.STALE, None) if tag.sequence < lane.sequence else (Admission.NEW, None)

    def finish(self, tag: RequestTag, result: UpdateResult, now: float) -> None:
        """The request is done; so is one that nobody admitted here, when a pending version is rolled forward."""
        key = (tag.client, tag.channel)
        lane = self._lanes.pop(key, None)
        if lane is None or lane.sequence <= tag.sequence:
            lane = _Lane(tag.sequence, False, result, now)
        self._lanes[key] = lane

    def abandon(self, tag: RequestTag) -> None:
        """The request ended without being done; a retry is new."""
        lane = self._lanes.get((tag.client, tag.channel))
        if lane is not None and lane.sequence == tag.sequence:
            lane.running = False

    def drop_excess(self) -> list[Key]:
        """Forget the longest unused channels beyond the limit; returns their (client, channel)."""
        dropped: list[Key] = []
        while len(self._lanes) > self._limit:
            key = next((key for key, lane in self._lanes.items() if not lane.running), None)
            if key is None:
                break
            del self._lanes[key]
            dropped.append(key)
        return dropped

    def drop_idle(self, before: float) -> list[Key]:
        """Forget the channels not used since `before`; returns their (client, channel)."""
        dropped: list[Key] = []
        for key, lane in self._lanes.items():
            if lane.used >= before:
                break
            if not lane.running:
                dropped.append(key)
        for key in dropped:
            del self._lanes[key]
        return dropped
