"""Lanes for request tags. Pure.

A server remembers, per (client, channel), the last sequence number and its result. That is enough to answer a retry only
while each channel has at most one request outstanding; so a request borrows a channel for itself.
"""

from __future__ import annotations

from ..ids import RequestTag


class Channel:
    """One lane: numbers its requests."""

    __slots__ = ("_client", "_id", "_sequence")

    def __init__(self, client: int, channel: int) -> None:
        self._client = client
        self._id = channel
        self._sequence = 0

    def next_tag(self) -> RequestTag:
        """The tag of a new request. Its retries use the same tag."""
        self._sequence += 1
        return RequestTag(self._client, self._id, self._sequence)


class ChannelPool:
    """Channels of one client incarnation; grows to as many as are in use at once."""

    __slots__ = ("_client", "_free", "_last")

    def __init__(self, client: int) -> None:
        self._client = client
        self._free: list[Channel] = []
        self._last = 0

    def take(self) -> Channel:
        """A channel on which nothing is outstanding."""
        if self._free:
            return self._free.pop()
        self._last += 1
        return Channel(self._client, self._last)

    def give_back(self, channel: Channel, settled: bool) -> None:
        """End the loan. settled: the server answered the last request for good. Otherwise it may still arrive there, after
        a later one on the same channel, so this channel is never used again."""
        if settled:
            self._free.append(channel)
