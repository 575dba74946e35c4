"""Many reads in few requests, past the machinery for those that do not succeed at once: each is tried once.

What goes to one storage daemon is cut into several requests, some of which are under way at a time, so that the daemon reads
while this process verifies. Neighbouring reads of a chunk are one range to the daemon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ..api.packed import READ_PACKED, PackedReadReply, PackedReadRequest, Place, pack_ranges, unpack_numbers
from ..api.storage import READ_RANGES_MAX
from ..checksum import BLOCK_SIZE, crc32c
from ..env import Env
from ..errors import Code, FS3Error, ProtocolError
from ..ids import ChunkId
from ..routing import Node, RoutingInfo
from .each import each
from .reading import ATTEMPT_S, FIRST_READ_ATTEMPT_S, NOBODY, SLOWEST_BYTES_PER_S, Caller, ChunkRead, error_of
from .retry import Action, action_for
from .selection import ReplicaSelector

REQUEST_BYTES = 1024 * 1024
"""Of one request, unless a single range has more."""
REQUEST_RANGES_MIN = 32
"""A batch of more ranges than this is cut into REQUESTS requests, or more."""
REQUESTS = 4
UNDER_WAY_MAX = 4
"""Requests of one batch to one daemon at a time."""

Failed = Callable[[int, int, FS3Error], None]
"""Told of each read that failed: its position, the target (0: none could be asked), and why."""


Suspect = Callable[[str, int, ChunkId, FS3Error], Awaitable[None]]
"""Tells the daemon at an address that a target gave bytes of a chunk that do not match."""


class _Request:
    """Ranges for one node. into: the memory of all reads in order; owners: of each range the positions of its reads."""

    __slots__ = (
        "attempt_s",
        "indexes",
        "inodes",
        "into",
        "lengths",
        "node",
        "numbers",
        "offsets",
        "owners",
        "places",
        "size",
    )

    def __init__(self, node: Node) -> None:
        self.node = node
        self.places: dict[int, tuple[int, Place]] = {}  # number and place, by target
        self.numbers: list[int] = []
        self.inodes: list[int] = []
        self.indexes: list[int] = []
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.owners: list[list[int]] = []
        self.into: list[memoryview] = []
        self.size = 0
        self.attempt_s = 0.0

    def add(self, position: int, read: ChunkRead, size: int, choice: _Choice) -> None:
        """One more range, or a longer one."""
        self.into.append(read.into)
        self.size += size
        chunk, offset = read.chunk, read.offset
        if (
            self.owners
            and offset == self.offsets[-1] + self.lengths[-1]
            and chunk.index == self.indexes[-1]
            and chunk.inode == self.inodes[-1]
        ):
            self.lengths[-1] += size
            self.owners[-1].append(position)
            return
        place = self.places.get(choice.target)
        if place is None:
            place = self.places[choice.target] = len(self.places), Place(read.chain, choice.version, choice.target)
            self.attempt_s = max(self.attempt_s, choice.attempt_s)
        self.numbers.append(place[0])
        self.inodes.append(chunk.inode)
        self.indexes.append(chunk.index)
        self.offsets.append(offset)
        self.lengths.append(size)
        self.owners.append([position])

    def target(self, number: int) -> int:
        """Of a range."""
        wanted = self.numbers[number]
        return next(target for target, (place, _) in self.places.items() if place == wanted)

    def message(self) -> PackedReadRequest:
        columns = self.numbers, self.inodes, self.indexes, self.offsets, self.lengths
        return PackedReadRequest(tuple([place for _, place in self.places.values()]), pack_ranges(columns))


@dataclass(slots=True)
class _Choice:
    """Where to read chunks of a chain."""

    target: int
    node: Node
    version: int
    attempt_s: float


class PackedReads:
    """Tries reads, once each. Whatever goes wrong is left to who can try again, elsewhere or later."""

    def __init__(self, env: Env, rpc: Caller, selector: ReplicaSelector, suspect: Suspect) -> None:
        self._env = env
        self._rpc = rpc
        self._selector = selector
        self._suspect = suspect
        self._older: set[tuple[str, int]] = set()  # daemons that do not know the method: address and incarnation

    async def read(
        self, routing: RoutingInfo, reads: Sequence[ChunkRead], lengths: list[int], deadline: float, failed: Failed
    ) -> list[int]:
        """Fill the reads' memory and `lengths`. Returns the positions of those that were not tried, for a daemon that is too
        old for it."""
        untried: list[int] = []
        requests = self._plan(routing, reads, untried, failed)

        async def ask(request: _Request) -> None:
            if not await self._ask(request, reads, lengths, deadline, failed):
                untried.extend([position for owners in request.owners for position in owners])

        if len(requests) == 1:
            await ask(requests[0])
        elif requests:
            await each(requests, ask, UNDER_WAY_MAX * len({request.node.id for request in requests}))
        return untried

    # Planning

    def _plan(self, routing: RoutingInfo, reads: Sequence[ChunkRead], untried: list[int], failed: Failed) -> list[_Request]:
        """Pick a replica for each read, and gather reads by node."""
        now = self._env.monotonic()
        requests: list[_Request] = []
        filling: dict[int, _Request] = {}  # by node
        known: dict[int, _Choice] = {}  # by chain
        ranges_max = min(READ_RANGES_MAX, max(REQUEST_RANGES_MIN, -(-len(reads) // REQUESTS)))
        for position, read in enumerate(reads):
            choice = known.get(read.chain) or self._choose(routing, read, now, known)
            if choice is None:
                failed(position, 0, FS3Error(Code.CHAIN_UNAVAILABLE, f"chain {read.chain} has no serving target"))
                continue
            node = choice.node
            size = len(read.into)
            if not size:
                continue
            request = filling.get(node.id)
            if request is None or request.size + size > REQUEST_BYTES or len(request.owners) >= ranges_max:
                if self._older and (node.address, node.incarnation) in self._older:
                    untried.append(position)
                    continue
                request = filling[node.id] = _Request(node)
                requests.append(request)
            request.add(position, read, size, choice)
        return requests

    def _choose(self, routing: RoutingInfo, read: ChunkRead, now: float, known: dict[int, _Choice]) -> _Choice | None:
        """Where to read a chunk; `known` takes what holds for its whole chain."""
        chain = routing.chains.get(read.chain)
        if chain is None:
            return None
        only = self._selector.only(routing, chain)
        target = only if only is not None else self._selector.pick(routing, chain, read.chunk, NOBODY, now)
        node = routing.node_of(target) if target is not None else None
        if target is None or node is None:
            return None
        attempt_s = FIRST_READ_ATTEMPT_S if len(chain.targets) > 1 else ATTEMPT_S
        choice = _Choice(target, node, chain.version, attempt_s)
        if only is not None:
            known[chain.id] = choice
        return choice

    # Asking

    async def _ask(
        self, request: _Request, reads: Sequence[ChunkRead], lengths: list[int], deadline: float, failed: Failed
    ) -> bool:
        """Send one request and take in what it answers. False where the daemon is too old."""
        node, into = request.node, request.into
        started = self._env.monotonic()
        attempt_s = 0.0005 if self._env.rare("client.read.impatient") else request.attempt_s
        limit = min(deadline, started + attempt_s + request.size / SLOWEST_BYTES_PER_S)
        try:
            reply, payload = await self._rpc.call_bulk(
                node.address, READ_PACKED, request.message(), deadline=limit, into=into[0] if len(into) == 1 else into
            )
            wrong = _Answer(request, reply, payload).take(lengths)
        except FS3Error as error:
            if error.code is Code.UNKNOWN_METHOD:
                self._older.add((node.address, node.incarnation))
                return False
            if action_for(error) is Action.ELSEWHERE:
                self._selector.failed(node.id, self._env.monotonic())
            for number, owners in enumerate(request.owners):
                for position in owners:
                    failed(position, request.target(number), error)
            return True
        now = self._env.monotonic()
        self._selector.succeeded(node.id, now - started, now)
        for number, why in wrong:
            target, owners = request.target(number), request.owners[number]
            if why.code is Code.CHECKSUM and not any(failure.position == number for failure in reply.failures):
                await self._suspect(node.address, target, reads[owners[0]].chunk, why)
            for position in owners:
                failed(position, target, why)
        return True


class _Answer:
    """A reply on its way into the reads' memory."""

    def __init__(self, request: _Request, reply: PackedReadReply, payload: memoryview) -> None:
        """Raises ProtocolError where the reply is none to this request."""
        self._request = request
        self._checksums = unpack_numbers(reply.checksums)
        self._at = 0  # in them
        self._failures = {failure.position: failure for failure in reply.failures}
        asked = request.lengths
        self._lengths: Sequence[int] = unpack_numbers(reply.lengths) if reply.lengths else asked
        if len(self._lengths) != len(asked) or (self._failures and not reply.lengths):
            raise ProtocolError(f"{request.node.address} answered {len(self._lengths)} of {len(asked)} ranges")
        into = request.into
        if (len(payload) and len(into) > 1) or reply.lengths:
            data = payload if len(payload) or len(into) == 1 else memoryview(b"".join(into))
            self._spread(data)

    def _spread(self, data: memoryview) -> None:
        """Put bytes that did not land where they belong there, and zeros behind what there is less of."""
        request = self._request
        views = iter(request.into)
        at = 0
        for length, asked, owners in zip(self._lengths, request.lengths, request.owners, strict=True):
            if length > asked or at + length > len(data):
                raise ProtocolError(f"{request.node.address} sent {length} bytes of {asked}, {len(data)} in all")
            for _ in owners:
                view = next(views)
                count = min(length, len(view))
                view[:count] = data[at : at + count]
                if count < len(view):
                    view[count:] = bytes(len(view) - count)
                at += count
                length -= count

    def take(self, lengths: list[int]) -> list[tuple[int, FS3Error]]:
        """Verify all bytes; `lengths` takes how many there were. Returns the ranges that are not there, and why."""
        request = self._request
        checksums, into = self._checksums, request.into
        if len(into) == len(request.owners) == len(checksums) and self._lengths is request.lengths:
            # The usual: one read and one checksum for each.
            wrong = [number for number, view in enumerate(into) if crc32c(view) != checksums[number]]
            for view, owners in zip(into, request.owners, strict=True):
                lengths[owners[0]] = len(view)
            return [(number, self._mismatch(number)) for number in wrong]
        return self._take_any(lengths)

    def _take_any(self, lengths: list[int]) -> list[tuple[int, FS3Error]]:
        request = self._request
        found = []
        first = 0
        for number, (owners, length) in enumerate(zip(request.owners, self._lengths, strict=True)):
            views = request.into[first : first + len(owners)]
            first += len(owners)
            failure = self._failures.get(number)
            if failure is not None:
                found.append((number, error_of(failure.code, failure.message)))
            elif not self._matches(request.offsets[number], length, views):
                found.append((number, self._mismatch(number)))
            else:
                for position, view in zip(owners, views, strict=True):
                    lengths[position] = min(len(view), length)
                    length -= lengths[position]
        return found

    def _matches(self, offset: int, length: int, views: list[memoryview]) -> bool:
        """Whether the first `length` bytes of these, which lie at `offset` of their chunk, have the next checksums."""
        good = True
        end = offset + length
        value = 0
        for view in views:
            at = 0
            while at < len(view) and offset < end:
                size = min(BLOCK_SIZE - offset % BLOCK_SIZE, len(view) - at, end - offset)
                value = crc32c(view[at : at + size], value)
                at += size
                offset += size
                if offset == end or not offset % BLOCK_SIZE:
                    good, value = self._next() == value and good, 0
        return good

    def _next(self) -> int:
        self._at += 1
        return self._checksums[self._at - 1] if self._at <= len(self._checksums) else -1

    def _mismatch(self, number: int) -> FS3Error:
        request = self._request
        chunk = f"{request.inodes[number]:x}.{request.indexes[number]}"
        return FS3Error(Code.CHECKSUM, f"{chunk}: bytes at {request.offsets[number]} do not match their checksums")
