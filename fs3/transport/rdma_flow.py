"""What may be given to a queue pair, and when: credits, send buffers, room in the send queue. Pure.

Each side keeps receives posted: `receives` of its own limits for messages, and `returns` of the peer's for messages that do
nothing but return credits. A message uses a credit of its sender. The receiver returns it once the buffer is posted again,
with the immediate value of whatever message it sends next, or with an empty one if `return_after` have gathered. So no
message ever meets a peer without a receive: an empty message returns at least `return_after` credits, which its receiver
had used up, so that never more than `returns` of them are under way.

Work requests of one send queue are done in order. So most of them ask for no completion; one that does tells of all before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from ..errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Limits:
    """One side's resources. receives: messages that it is ready to take. sends: its send buffers. depth: work requests that
    its send queue holds. reads: RDMA READs of its own at once. return_after: credits that it gathers at most."""

    receives: int
    sends: int
    depth: int
    reads: int
    return_after: int

    def __post_init__(self) -> None:
        if not (0 < self.return_after <= self.receives and self.sends > 0 and self.reads > 0):
            raise ProtocolError(f"RDMA limits that cannot work: {self}")
        if self.depth <= self.sends:
            raise ProtocolError(f"an RDMA send queue of {self.depth} for {self.sends} send buffers")

    @property
    def returns(self) -> int:
        """Empty messages of this side that can be under way at once, and a last one: the peer keeps so many receives for
        them."""
        return -(-self.receives // self.return_after) + 1


class Work(Enum):
    MESSAGE = "message"
    """SEND with immediate, out of a send buffer."""
    RETURN = "return"
    """SEND with immediate of nothing: it returns credits."""
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Post:
    """A work request to be posted, in this order. number: its id. buffer: index of the send buffer, of a message. immediate:
    credits returned. signaled: whether it asks for a completion. fenced: only once all READs before it are done."""

    number: int
    work: Work
    buffer: int
    immediate: int
    signaled: bool
    fenced: bool = False


@dataclass(slots=True)
class _Posted:
    number: int
    work: Work
    buffer: int
    token: int


class Flow:
    """One side of a connection. Tokens are the caller's names for one-sided transfers; each comes back once."""

    def __init__(self, ours: Limits, theirs: Limits) -> None:
        self._ours = ours
        self._credits = theirs.receives
        self._credits_max = theirs.receives
        self._buffers = list(range(ours.sends))
        self._posted: deque[_Posted] = deque()
        self._reads = 0
        self._next = 1
        self._quiet = 0  # posted since the last one that asked for a completion
        self._written = False  # a WRITE is among those
        self._owed = 0  # credits to return
        self._fence = False

    @property
    def credits(self) -> int:
        return self._credits

    @property
    def owed(self) -> int:
        return self._owed

    @property
    def idle(self) -> bool:
        """Nothing is posted of which we do not know that it is done."""
        return not self._posted

    # Posting. Each returns None where the caller has to wait, for something to complete or to arrive.

    def message(self) -> Post | None:
        """The caller fills the buffer and posts it."""
        if self._credits == 0 or not self._buffers or not self._room():
            return None
        self._credits -= 1
        return self._post(Work.MESSAGE, self._buffers.pop(), 0)

    def read(self, token: int) -> Post | None:
        if self._reads >= self._ours.reads or not self._room():
            return None
        self._reads += 1
        return self._post(Work.READ, -1, token)

    def write(self, token: int) -> Post | None:
        return self._post(Work.WRITE, -1, token) if self._room() else None

    def returning(self) -> Post | None:
        """An empty message, if it is time for one: to be asked for after whatever else could be posted."""
        if self._owed < self._ours.return_after or not self._room():
            return None
        return self._post(Work.RETURN, -1, 0)

    def fence(self) -> None:
        """READs that are under way are of no use any more: the next message, which says that their memory is free, waits
        for them."""
        self._fence = self._reads > 0

    def last(self) -> Post | None:
        """An empty message that asks for a completion, to learn of all before it."""
        if not self._room():
            return None
        self._quiet = self._ours.depth  # so that it asks
        return self._post(Work.RETURN, -1, 0)

    def _room(self) -> bool:
        return len(self._posted) < self._ours.depth

    def _post(self, work: Work, buffer: int, token: int) -> Post:
        number = self._next
        self._next += 1
        self._posted.append(_Posted(number, work, buffer, token))
        immediate, fenced = 0, False
        if work in (Work.MESSAGE, Work.RETURN):
            immediate, self._owed = self._owed, 0
            fenced, self._fence = self._fence, False
        self._quiet += 1
        self._written = self._written or work is Work.WRITE
        signaled = work is Work.READ or self._must_hear(work)
        if signaled:
            self._quiet = 0
            self._written = False
        return Post(number, work, buffer, immediate, signaled, fenced)

    def _must_hear(self, work: Work) -> bool:
        """Whether to ask for a completion: else buffers, room, or a WRITE's source would stay taken for long."""
        if work in (Work.MESSAGE, Work.RETURN) and self._written:
            return True
        return 2 * self._quiet >= self._ours.sends or not self._buffers

    # What happens

    def arrived(self, immediate: int) -> None:
        """A message came in, with credits. Raises ProtocolError if it returns what the peer never had."""
        if immediate > self._credits_max - self._credits:
            raise ProtocolError(f"the peer returned {immediate} credits, of {self._credits_max} with {self._credits} here")
        self._credits += immediate

    def taken(self) -> None:
        """A message that was not empty is done with, and its receive is posted again. Raises ProtocolError if the peer had
        no credit for it: there are receives for its empty messages too, which it may have used."""
        if self._owed >= self._ours.receives:
            raise ProtocolError(f"the peer sent more messages than its {self._ours.receives} credits allow")
        self._owed += 1

    def completed(self, number: int) -> list[int]:
        """The work request `number` is done, and so are all before it: the tokens of one-sided transfers among them."""
        tokens: list[int] = []
        while self._posted and self._posted[0].number <= number:
            done = self._posted.popleft()
            if done.work is Work.MESSAGE:
                self._buffers.append(done.buffer)
            elif done.work is not Work.RETURN:
                tokens.append(done.token)
                self._reads -= done.work is Work.READ
        return tokens

    def destroyed(self) -> list[int]:
        """The queue pair is gone, so the device touches nothing any more: the tokens of transfers that were under way."""
        tokens = [posted.token for posted in self._posted if posted.work in (Work.READ, Work.WRITE)]
        self._posted.clear()
        return tokens
