"""Many reads in few requests, past the machinery for those that do not succeed at once: each is tried once.

What goes to one storage daemon is cut into several requests, some of which are under way at a time, so that the daemon reads
while this process verifies. Neighbouring reads of a chunk are one range to the daemon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

from ..api.packed import READ_PACKED, PackedReadReply, PackedReadRequest, Place, pack_ranges, unpack_numbers
from ..api.storage import READ_RANGES_MAX
from ..checksum import BLOCK_SIZE, crc32c
from ..env import Env
from ..errors import Code, FS3Error, ProtocolError
from ..ids import ChunkId
from ..routing import Chain, Node, RoutingInfo
from .each import each
from .reading import ATTEMPT_S, FIRST_READ_ATTEMPT_S, NOBODY, SLOWEST_BYTES_PER_S, Caller, ChunkRead, error_of
from .retry import Action, action_for
from .selection import ReplicaSelector

REQUEST_BYTES = 2 * 1024 * 1024
"""Of one request, unless a single range has more."""
REQUEST_RANGES_MIN = 64
"""A batch of more ranges than this is cut into REQUESTS requests, or more."""
REQUESTS = 4
UNDER_WAY_MAX = 4
"""Requests of one batch to one daemon at a time."""

Suspect = Callable[[str, int, ChunkId, FS3Error], Awaitable[None]]
"""Tells the daemon at an address that a target gave bytes of a chunk that do not match."""
Failure = tuple[int, int, FS3Error]
"""The position of a read that failed, the target that was asked (0: none could be), and why."""


class _Request:
    """Ranges for one node, in columns. into: the memory of all reads in order, owners: their positions. counts: how many
    reads each range is."""

    __slots__ = (
        "attempt_s", "counts", "end", "indexes", "inodes", "into", "lengths", "node", "numbers", "offsets",
        "owners", "places", "size",
    )  # fmt: skip

    def __init__(self, node: Node | None) -> None:
        self.node = node
        self.places: list[Place] = []
        self.numbers: list[int] = []
        self.inodes: list[int] = []
        self.indexes: list[int] = []
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.counts: list[int] = []
        self.into: list[memoryview] = []
        self.owners: list[int] = []
        self.size = 0
        self.end = -1  # of the last range in its chunk
        self.attempt_s = 0.0

    def message(self) -> PackedReadRequest:
        columns = self.numbers, self.inodes, self.indexes, self.offsets, self.lengths
        return PackedReadRequest(tuple(self.places), pack_ranges(columns))

    def reads(self) -> Iterator[tuple[int, ChunkRead]]:
        """All reads with their positions."""
        at = 0
        for number, count in enumerate(self.counts):
            chunk = ChunkId(self.inodes[number], self.indexes[number])
            offset = self.offsets[number]
            for view, position in zip(self.into[at : at + count], self.owners[at : at + count], strict=True):
                yield position, ChunkRead(self.places[self.numbers[number]].chain, chunk, offset, view)
                offset += len(view)
            at += count


class _Lane:
    """The ranges that go to one target. number: of its place in the request that is being filled."""

    __slots__ = ("attempt_s", "node", "number", "place", "request")

    def __init__(self, place: Place, node: Node, attempt_s: float, request: _Request) -> None:
        self.place = place
        self.node = node
        self.attempt_s = attempt_s
        self.request = request
        self.number = 0


class Plan:
    """Which requests are to be sent. Reads are numbered by their caller."""

    def __init__(self, routing: RoutingInfo, selector: ReplicaSelector, count: int, now: float) -> None:
        """count: of the reads that will be added, about."""
        self.requests: list[_Request] = []
        self.homeless: list[tuple[int, ChunkRead]] = []  # reads that no target serves
        self._routing = routing
        self._selector = selector
        self._now = now
        self._ranges_max = min(READ_RANGES_MAX, max(REQUEST_RANGES_MIN, -(-count // REQUESTS)))
        self._lanes: dict[int, _Lane] = {}  # by chain, where all its chunks are read from one target
        self._choices: dict[int, list[_Lane]] = {}  # by chain, where all its nodes are well
        self._targets: dict[int, _Lane] = {}
        self._filling: dict[int, _Request] = {}  # by node
        self._none = _Request(None)
        self._none.size = REQUEST_BYTES

    def add(self, position: int, chain: int, inode: int, index: int, offset: int, into: memoryview, size: int) -> None:
        """Read `size` bytes, at least one, at `offset` of a chunk into `into`, which is as long."""
        lane = self._lanes.get(chain) or self._pick(chain, inode, index)
        if lane is None:
            self.homeless.append((position, ChunkRead(chain, ChunkId(inode, index), offset, into)))
            return
        request = lane.request
        if request.size + size > REQUEST_BYTES or len(request.numbers) >= self._ranges_max:
            request = self._renew(lane, size)
        request.size += size
        request.into.append(into)
        request.owners.append(position)
        if offset == request.end and index == request.indexes[-1] and inode == request.inodes[-1]:
            request.lengths[-1] += size
            request.counts[-1] += 1
        else:
            request.numbers.append(lane.number)
            request.inodes.append(inode)
            request.indexes.append(index)
            request.offsets.append(offset)
            request.lengths.append(size)
            request.counts.append(1)
        request.end = offset + size

    def reads(self) -> dict[int, ChunkRead]:
        """All reads by their positions."""
        found = dict(self.homeless)
        for request in self.requests:
            found.update(request.reads())
        return found

    def patience_s(self) -> float:
        """How much longer all may take than a few reads."""
        return sum([request.size for request in self.requests[1:]]) / SLOWEST_BYTES_PER_S

    def _renew(self, lane: _Lane, size: int) -> _Request:
        """Let a lane fill the next request to its node."""
        node = lane.node.id
        request = self._filling.get(node)
        if (
            request is None
            or request is lane.request
            or request.size + size > REQUEST_BYTES
            or len(request.numbers) >= self._ranges_max
        ):
            request = self._filling[node] = _Request(lane.node)
            self.requests.append(request)
        lane.request = request
        lane.number = len(request.places)
        request.places.append(lane.place)
        request.attempt_s = max(request.attempt_s, lane.attempt_s)
        return request

    def _pick(self, chain_id: int, inode: int, index: int) -> _Lane | None:
        """Pick a replica for a chunk."""
        choices = self._choices.get(chain_id)
        if choices is not None:
            return choices[self._selector.turn(inode, index) % len(choices)]
        routing = self._routing
        chain = routing.chains.get(chain_id)
        if chain is None:
            return None
        usual = self._selector.usual(routing, chain, self._now)
        if not usual:
            target = self._selector.pick(routing, chain, ChunkId(inode, index), NOBODY, self._now)
            return self._lane(chain, target) if target is not None else None
        lanes = [lane for lane in [self._lane(chain, target) for target in usual] if lane is not None]
        if len(lanes) != len(usual):
            return None
        self._choices[chain_id] = lanes
        if len(lanes) == 1:
            self._lanes[chain_id] = lanes[0]
        return lanes[self._selector.turn(inode, index) % len(lanes)]

    def _lane(self, chain: Chain, target: int) -> _Lane | None:
        lane = self._targets.get(target)
        if lane is None:
            node = self._routing.node_of(target)
            if node is None:
                return None
            attempt_s = FIRST_READ_ATTEMPT_S if len(chain.targets) > 1 else ATTEMPT_S
            lane = self._targets[target] = _Lane(Place(chain.id, chain.version, target), node, attempt_s, self._none)
        return lane


class Outcome:
    """What became of a plan's reads. short: how many bytes there were, by position, where there were fewer than asked for.
    untried: the positions of those that are to be asked for in another way, since their daemon is too old."""

    __slots__ = ("failures", "short", "untried")

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.short: dict[int, int] = {}
        self.untried: list[int] = []


class PackedReads:
    """Tries reads, once each. Whatever goes wrong is left to who can try again, elsewhere or later."""

    def __init__(self, env: Env, rpc: Caller, selector: ReplicaSelector, suspect: Suspect) -> None:
        self._env = env
        self._rpc = rpc
        self._selector = selector
        self._suspect = suspect
        self._older: set[tuple[str, int]] = set()  # daemons that do not know the method: address and incarnation

    def plan(self, routing: RoutingInfo, count: int) -> Plan:
        return Plan(routing, self._selector, count, self._env.monotonic())

    async def read(self, plan: Plan, deadline: float) -> Outcome:
        """Fill the reads' memory, with zeros behind what a chunk has."""
        outcome = Outcome()
        for position, read in plan.homeless:
            error = FS3Error(Code.CHAIN_UNAVAILABLE, f"chain {read.chain} has no serving target")
            outcome.failures.append((position, 0, error))
        requests = plan.requests
        if len(requests) == 1:
            await self._ask(requests[0], outcome, deadline)
        elif requests:
            nodes = len({request.node.id for request in requests if request.node is not None})
            await each(requests, lambda request: self._ask(request, outcome, deadline), UNDER_WAY_MAX * nodes)
        return outcome

    async def _ask(self, request: _Request, outcome: Outcome, deadline: float) -> None:
        """Send one request and take in what it answers."""
        node, into = request.node, request.into
        assert node is not None
        if self._older and (node.address, node.incarnation) in self._older:
            outcome.untried += request.owners
            return
        started = self._env.monotonic()
        attempt_s = 0.0005 if self._env.rare("client.read.impatient") else request.attempt_s
        limit = min(deadline, started + attempt_s + request.size / SLOWEST_BYTES_PER_S)
        try:
            reply, payload = await self._rpc.call_bulk(
                node.address, READ_PACKED, request.message(), deadline=limit, into=into[0] if len(into) == 1 else into
            )
            wrong = _Answer(request, reply, payload).take(outcome.short)
        except FS3Error as error:
            if error.code is Code.UNKNOWN_METHOD:
                self._older.add((node.address, node.incarnation))
                outcome.untried += request.owners
                return
            if action_for(error) is Action.ELSEWHERE:
                self._selector.failed(node.id, self._env.monotonic())
            self._fail(request, dict.fromkeys(range(len(request.counts)), error), outcome)
            return
        now = self._env.monotonic()
        self._selector.succeeded(node.id, now - started, now)
        if wrong:
            told = {failure.position for failure in reply.failures}
            for number, why in wrong.items():
                if number not in told:
                    chunk = ChunkId(request.inodes[number], request.indexes[number])
                    await self._suspect(node.address, request.places[request.numbers[number]].target, chunk, why)
            self._fail(request, wrong, outcome)

    @staticmethod
    def _fail(request: _Request, errors: dict[int, FS3Error], outcome: Outcome) -> None:
        """Note what ranges met for each of their reads."""
        at = 0
        for number, count in enumerate(request.counts):
            error = errors.get(number)
            if error is not None:
                target = request.places[request.numbers[number]].target
                outcome.failures += [(position, target, error) for position in request.owners[at : at + count]]
            at += count


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
            raise ProtocolError(f"a reply with {len(self._lengths)} of {len(asked)} ranges")
        into = request.into
        if (len(payload) and len(into) > 1) or reply.lengths:
            self._spread(payload if len(payload) or len(into) == 1 else memoryview(b"".join(into)))

    def _spread(self, data: memoryview) -> None:
        """Put bytes that did not land where they belong there, and zeros behind what there is less of."""
        request = self._request
        views = iter(request.into)
        at = 0
        for length, asked, count in zip(self._lengths, request.lengths, request.counts, strict=True):
            if length > asked or at + length > len(data):
                raise ProtocolError(f"{length} bytes of {asked} announced, {len(data)} came in all")
            for _ in range(count):
                view = next(views)
                size = min(length, len(view))
                view[:size] = data[at : at + size]
                if size < len(view):
                    view[size:] = bytes(len(view) - size)
                at += size
                length -= size

    def take(self, short: dict[int, int]) -> dict[int, FS3Error]:
        """Verify all bytes. short: see Outcome. Returns why ranges are not there, by their numbers."""
        request = self._request
        checksums, into = self._checksums, request.into
        if len(into) == len(request.counts) == len(checksums) and self._lengths is request.lengths:
            # The usual: one read and one checksum for each.
            wrong = [number for number, view in enumerate(into) if crc32c(view) != checksums[number]]
            return {number: self._mismatch(number) for number in wrong}
        return self._take_any(short)

    def _take_any(self, short: dict[int, int]) -> dict[int, FS3Error]:
        request = self._request
        found = {}
        first = 0
        for number, (count, length, asked) in enumerate(zip(request.counts, self._lengths, request.lengths, strict=True)):
            views = request.into[first : first + count]
            failure = self._failures.get(number)
            if failure is not None:
                found[number] = error_of(failure.code, failure.message)
            elif not self._matches(request.offsets[number], length, views):
                found[number] = self._mismatch(number)
            elif length < asked:
                for position, view in zip(request.owners[first : first + count], views, strict=True):
                    if length < len(view):
                        short[position] = max(0, length)
                    length -= len(view)
            first += count
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
