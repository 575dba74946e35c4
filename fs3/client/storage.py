"""The storage client: chunks of chains, whatever happens to the daemons that hold them.

Every call retries until its deadline: a lost connection means another replica, or the same daemon once it is back; a wrong
chain version means newer routing. A change keeps its RequestTag over all its retries, so that it is done once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from ..api.storage import (
    QUERY,
    QUERY_LISTED_MAX,
    READ,
    READ_RANGES_MAX,
    REMOVE_FILE,
    SUSPECT,
    SYNC,
    QueryReply,
    QueryRequest,
    ReadRange,
    ReadRequest,
    ReadResult,
    RemoveFileReply,
    RemoveFileRequest,
    SuspectRequest,
    SyncReply,
    SyncRequest,
    Update,
    UpdateKind,
    UpdateResult,
)
from ..checksum import Buffer, piece_checksums
from ..env import Env
from ..errors import Code, FS3Error, ProtocolError
from ..ids import ChunkId, RequestTag
from ..layout import CHUNK_SIZE_MAX
from ..routing import Chain, RoutingInfo
from ..transport.buffers import BufferPool
from ..wire.frame import PAYLOAD_SIZE_MAX
from .channels import ChannelPool
from .packed import PackedReads, Plan
from .reading import (
    ATTEMPT_S,
    FIRST_READ_ATTEMPT_S,
    SLOWEST_BYTES_PER_S,
    Caller,
    ChunkRead,
    SingleReads,
    take,
)
from .retry import Action, Backoff, action_for
from .selection import ReplicaSelector
from .writing import SharedWrites

logger = logging.getLogger("fs3.client.storage")

T = TypeVar("T")

SUSPECT_S = 1.0
"""How long a client lets a daemon take to hear that its bytes are wrong."""

IN_PLACE_BYTES = 16 * 1024
"""A read of at least this size lands in its place, smaller ones are copied there: each costs a call less to receive."""
REQUEST_BYTES = 1024 * 1024
"""Reads that land in place share a request of up to this size, so that several requests are on their way at once."""

_EMPTY = memoryview(b"")

COMPLAIN_AFTER_S = 2.0
"""A call that has met errors for this long says so in the log, once."""

BACKOFF = Backoff()


class RoutingSource(Protocol):
    """What this module needs of MgmtdClient."""

    @property
    def routing(self) -> RoutingInfo: ...

    async def wait_change(self, version: int) -> RoutingInfo: ...


@dataclass(slots=True)
class _Batch:
    """Reads that go to one node in one request. items: (position in the caller's list, target). in_place: their bytes are
    received where they belong."""

    node: int
    address: str
    items: list[tuple[int, int]]
    bytes: int
    in_place: bool
    attempt_s: float


@dataclass(slots=True)
class _Failure:
    position: int
    target: int
    """0 where no target could be asked."""
    error: FS3Error


class _Retry:
    """The course of one call's attempts: counts failures, waits between them, gives up at the deadline."""

    __slots__ = ("_attempt", "_client", "_complained", "_deadline", "_started", "_what")

    def __init__(self, client: StorageClient, what: str, deadline: float) -> None:
        self._client = client
        self._what = what
        self._deadline = deadline
        self._attempt = 0
        self._started = 0.0
        self._complained = False

    async def pause(self, error: FS3Error, routing_version: int) -> None:
        """Wait before the next attempt: until newer routing comes, at most for the back-off.

        Raises DEADLINE_EXCEEDED when the deadline would pass meanwhile.
        """
        env = self._client.env
        now = env.monotonic()
        if self._attempt == 0:
            self._started = now
        self._attempt += 1
        delay = BACKOFF.delay_s(self._attempt, env.random.random)
        if now + delay >= self._deadline:
            raise FS3Error(Code.DEADLINE_EXCEEDED, f"{self._what}: {error}")
        if not self._complained and now - self._started > COMPLAIN_AFTER_S:
            self._complained = True
            logger.warning("%s: retrying for %.0f s now: %s", self._what, now - self._started, error)
        env.metrics.count("client.storage_retries")
        with trio.move_on_after(delay):
            await self._client.mgmtd.wait_change(routing_version)


class StorageClient:
    """Reads and changes chunks. Deadlines are env.monotonic() seconds; past them calls raise DEADLINE_EXCEEDED.

    client_id: the random id of this process incarnation, for request tags. host: this machine's name, as nodes report
    theirs, so that replicas on it are preferred.
    """

    def __init__(self, env: Env, rpc: Caller, mgmtd: RoutingSource, client_id: int, host: str = "") -> None:
        self.env = env
        self.mgmtd = mgmtd
        self._rpc = rpc
        self._channels = ChannelPool(client_id)
        self._selector = ReplicaSelector(host, client_id)
        self._buffers = BufferPool()  # for what is not received in place
        self._writes = SharedWrites(env, rpc)
        self._singles = SingleReads(env, rpc, self._selector, self._buffers)
        self._packed = PackedReads(env, rpc, self._selector, self._suspect)

    # Reading

    async def read(
        self, reads: Sequence[ChunkRead], *, deadline: float, errors: dict[int, FS3Error] | None = None
    ) -> list[int]:
        """Fill every read's `into`; returns how many bytes each chunk really had there. The rest is zeroed.

        Raises FS3Error(DEADLINE_EXCEEDED), naming the last error, when not all could be read in time. errors: takes the
        errors of single reads, by their positions, instead of having the first one raised.
        """
        lengths = [len(read.into) for read in reads]
        failures: list[_Failure] = []
        pending: Sequence[int] = range(len(reads))
        if len(reads) > 1:
            plan = self.plan(len(reads))
            for position, read in enumerate(reads):
                if read.into:
                    chunk = read.chunk
                    plan.add(position, read.chain, chunk.inode, chunk.index, read.offset, read.into, len(read.into))
            pending = await self._try_packed(plan, lengths, failures, deadline)
        if failures or pending:
            await self._read_all(reads, pending, lengths, failures, deadline, errors)
        return lengths

    def plan(self, count: int) -> Plan:
        """To be filled with about so many reads, for `read_planned`."""
        return self._packed.plan(self.mgmtd.routing, count)

    async def read_planned(self, plan: Plan, *, deadline: float, errors: dict[int, FS3Error]) -> dict[int, int]:
        """As `read`; returns how many bytes there were where chunks had fewer than asked for."""
        outcome = await self._packed.read(plan, deadline)
        if not outcome.failures and not outcome.untried:
            return outcome.short
        by_position = plan.reads()
        positions = sorted({*[position for position, _, _ in outcome.failures], *outcome.untried})
        places = {position: place for place, position in enumerate(positions)}
        reads = [by_position[position] for position in positions]
        lengths = [len(read.into) for read in reads]
        failures = [_Failure(places[position], target, error) for position, target, error in outcome.failures]
        pending = [places[position] for position in outcome.untried]
        found: dict[int, FS3Error] = {}
        await self._read_all(reads, pending, lengths, failures, deadline, found)
        errors.update({positions[place]: error for place, error in found.items()})
        for position, read, length in zip(positions, reads, lengths, strict=True):
            if length < len(read.into):
                outcome.short[position] = length
        return outcome.short

    async def _try_packed(self, plan: Plan, lengths: list[int], failures: list[_Failure], deadline: float) -> list[int]:
        """Returns the positions of reads that were not tried."""
        outcome = await self._packed.read(plan, deadline)
        for position, length in outcome.short.items():
            lengths[position] = length
        failures += [_Failure(position, target, error) for position, target, error in outcome.failures]
        return outcome.untried

    async def _read_all(
        self,
        reads: Sequence[ChunkRead],
        pending: Sequence[int],
        lengths: list[int],
        failures: list[_Failure],
        deadline: float,
        errors: dict[int, FS3Error] | None,
    ) -> None:
        """Read the pending ones, and those that failed already, until all are read or can be read no more."""
        tried: dict[int, frozenset[int]] = {}
        retry: _Retry | None = None
        while True:
            routing = self.mgmtd.routing
            batches = self._plan(routing, reads, pending, tried, failures)
            if len(batches) == 1:
                await self._read_batch(routing, batches[0], reads, lengths, failures, deadline)
            elif batches:
                async with trio.open_nursery() as nursery:
                    for batch in batches:
                        nursery.start_soon(self._read_batch, routing, batch, reads, lengths, failures, deadline)
            if not failures:
                return
            if retry is None:
                retry = _Retry(self, f"read of {reads[failures[0].position].chunk}", deadline)
            error = self._judge(routing, reads, failures, tried, errors)
            pending = [failure.position for failure in failures if errors is None or failure.position not in errors]
            failures = []
            if error is not None:
                try:
                    await retry.pause(error, routing.version)
                except FS3Error as late:
                    if errors is None:
                        raise
                    errors.update(dict.fromkeys(pending, late))
                    return
            elif not pending:
                return

    async def read_one(self, read: ChunkRead, *, deadline: float) -> int:
        """As `read`, of one range."""
        length = await self._singles.read(self.mgmtd.routing, read, deadline)
        return (await self.read((read,), deadline=deadline))[0] if length is None else length

    def _plan(
        self,
        routing: RoutingInfo,
        reads: Sequence[ChunkRead],
        pending: Sequence[int],
        tried: dict[int, frozenset[int]],
        failures: list[_Failure],
    ) -> list[_Batch]:
        """Pick a replica for each pending read and gather them by node."""
        now = self.env.monotonic()
        batches: list[_Batch] = []
        shared: dict[tuple[int, bool], _Batch] = {}
        patience: dict[int, float] = {}  # by chain
        for position in pending:
            read = reads[position]
            chain = routing.chains.get(read.chain)
            if chain is not None and read.chain not in patience:
                patience[read.chain] = FIRST_READ_ATTEMPT_S if len(chain.serving()) > 1 else ATTEMPT_S
            avoided = tried.get(position, frozenset())
            target = self._selector.pick(routing, chain, read.chunk, avoided, now) if chain is not None else None
            node = routing.node_of(target) if target is not None else None
            if target is None or node is None:
                error = FS3Error(Code.CHAIN_UNAVAILABLE, f"chain {read.chain} has no serving target")
                failures.append(_Failure(position, 0, error))
                continue
            attempt_s = ATTEMPT_S if avoided else patience[read.chain]
            size = len(read.into)
            in_place = size >= IN_PLACE_BYTES
            batch = shared.get((node.id, in_place))
            limit = REQUEST_BYTES if in_place else PAYLOAD_SIZE_MAX
            if batch is not None and len(batch.items) < READ_RANGES_MAX and batch.bytes + size <= limit:
                batch.items.append((position, target))
                batch.bytes += size
                batch.attempt_s = max(batch.attempt_s, attempt_s)
                continue
            batch = _Batch(node.id, node.address, [(position, target)], size, in_place, attempt_s)
            shared[node.id, in_place] = batch
            batches.append(batch)
        return batches

    async def _read_batch(
        self,
        routing: RoutingInfo,
        batch: _Batch,
        reads: Sequence[ChunkRead],
        lengths: list[int],
        failures: list[_Failure],
        deadline: float,
    ) -> None:
        """Send one request and take in what it answers; what failed goes to `failures`."""
        ranges = []
        for position, target in batch.items:
            read = reads[position]
            version = routing.chains[read.chain].version
            ranges.append(ReadRange(read.chain, version, target, read.chunk, read.offset, len(read.into)))
        into: memoryview | list[memoryview]
        if len(ranges) == 1:
            into = reads[batch.items[0][0]].into
        elif batch.in_place:
            into = [reads[position].into for position, _ in batch.items]
        else:
            into = self._buffers.take(batch.bytes)
        started = self.env.monotonic()
        attempt_s = 0.0005 if self.env.rare("client.read.impatient") else batch.attempt_s
        limit = min(deadline, started + attempt_s + batch.bytes / SLOWEST_BYTES_PER_S)
        try:
            reply, payload = await self._rpc.call_bulk(
                batch.address, READ, ReadRequest(tuple(ranges)), deadline=limit, into=into
            )
            if len(reply.results) != len(ranges):
                raise ProtocolError(f"{batch.address} answered {len(reply.results)} of {len(ranges)} ranges")
        except FS3Error as error:
            if action_for(error) is Action.ELSEWHERE:
                self._selector.failed(batch.node, self.env.monotonic())
            failures.extend([_Failure(position, target, error) for position, target in batch.items])
            return
        now = self.env.monotonic()
        self._selector.succeeded(batch.node, now - started, now)
        if isinstance(into, list) and not len(payload):
            payload = _rejoin(into, reply.results)
        in_place = isinstance(into, list) and not len(payload)
        at = 0
        for (position, target), result in zip(batch.items, reply.results, strict=True):
            read = reads[position]
            data = read.into[: result.length] if in_place else payload[at : at + result.length]
            at += result.length
            failed = take(read, data, result, in_place or len(ranges) == 1)
            if failed is None:
                lengths[position] = result.length
            else:
                if failed.code is Code.CHECKSUM and not result.code:
                    await self._suspect(batch.address, target, reads[position].chunk, failed)
                failures.append(_Failure(position, target, failed))

    async def _suspect(self, address: str, target: int, chunk: ChunkId, error: FS3Error) -> None:
        """Tell a target of bytes that only we saw to be wrong, so that it repairs them."""
        self.env.metrics.count("client.checksum_errors")
        logger.warning("%s, target %d: %s", address, target, error)
        try:
            limit = self.env.monotonic() + SUSPECT_S
            await self._rpc.call(address, SUSPECT, SuspectRequest(target, (chunk,)), deadline=limit)
        except FS3Error as failure:
            logger.info("%s does not know of it: %s", address, failure)  # its scrubber will find it

    def _judge(
        self,
        routing: RoutingInfo,
        reads: Sequence[ChunkRead],
        failures: list[_Failure],
        tried: dict[int, frozenset[int]],
        errors: dict[int, FS3Error] | None,
    ) -> FS3Error | None:
        """Decide what each failed read tries next. Returns the error to wait about; None when all can go on at once.

        The error of a read that cannot succeed goes to `errors`; without that it is raised.
        """
        wait: FS3Error | None = None
        for failure in failures:
            lost = failure.error.code is Code.DATA_LOST
            action = Action.ELSEWHERE if lost else action_for(failure.error)
            if action is Action.GIVE_UP:
                if errors is None:
                    raise failure.error
                errors[failure.position] = failure.error
                continue
            if action is Action.ELSEWHERE:
                serving = routing.chains[reads[failure.position].chain].serving()
                if failure.error.code is Code.CHUNK_PENDING and failure.target != serving[-1]:
                    tried[failure.position] = frozenset(serving[:-1])  # the tail never has a pending version for long
                    continue
                others = tried.get(failure.position, frozenset()) | {failure.target}
                if not others.issuperset(serving):
                    tried[failure.position] = others
                    continue
                if lost:
                    if errors is None:
                        raise failure.error
                    errors[failure.position] = failure.error
                    continue
            tried.pop(failure.position, None)
            wait = failure.error
        return wait

    # Changing

    async def write(
        self, chain: int, chunk: ChunkId, offset: int, data: Buffer, chunk_size: int, *, deadline: float
    ) -> UpdateResult:
        """Write `data` at `offset` of a chunk, on all its replicas. Raises NO_SPACE, DEADLINE_EXCEEDED."""
        checksums = piece_checksums(data, offset)
        return await self._update(chain, chunk, UpdateKind.WRITE, offset, len(data), chunk_size, deadline, checksums, data)

    async def truncate(
        self, chain: int, chunk: ChunkId, length: int, chunk_size: int, *, deadline: float, tag: RequestTag | None = None
    ) -> UpdateResult:
        """Make a chunk `length` bytes long, cutting it or adding zeros; one that is absent is made only if length > 0.

        tag: see remove_file.
        """
        return await self._update(chain, chunk, UpdateKind.TRUNCATE, 0, length, chunk_size, deadline, tag=tag)

    async def punch(
        self, chain: int, chunk: ChunkId, offset: int, length: int, chunk_size: int, *, deadline: float
    ) -> UpdateResult:
        """Make a range of a chunk zeros and give its space back. The chunk's length stays; an absent one stays absent."""
        return await self._update(chain, chunk, UpdateKind.PUNCH, offset, length, chunk_size, deadline)

    async def remove_chunk(self, chain: int, chunk: ChunkId, *, deadline: float) -> None:
        """Remove one chunk; one that is absent is removed already."""
        await self._update(chain, chunk, UpdateKind.REMOVE, 0, 0, CHUNK_SIZE_MAX, deadline)

    async def _update(
        self,
        chain_id: int,
        chunk: ChunkId,
        kind: UpdateKind,
        offset: int,
        length: int,
        chunk_size: int,
        deadline: float,
        checksums: tuple[int, ...] = (),
        data: Buffer = b"",
        tag: RequestTag | None = None,
    ) -> UpdateResult:
        assert offset >= 0 and offset + length <= chunk_size, (offset, length, chunk_size)

        async def update(tag: RequestTag) -> UpdateResult:
            async def send(address: str, chain: Chain, head: int, limit: float) -> UpdateResult:
                change = Update(tag, chain_id, chain.version, head, chunk, kind, offset, length, chunk_size, checksums)
                return await self._writes.send(address, change, data, limit)

            return await self._at_head(f"{kind.name} of {chunk.inode}:{chunk.index}", chain_id, send, deadline, length)

        return await (self._tagged(update) if tag is None else update(tag))

    async def remove_file(
        self, chain: int, inode: int, first_index: int, *, deadline: float, tag: RequestTag | None = None
    ) -> int:
        """Remove a file's chunks on a chain from first_index on; returns how many there were.

        tag: the caller's own name for this request, by which several processes may ask for it: it is done once among them.
        """
        removed = 0
        more = True
        while more:

            async def step(tag: RequestTag) -> RemoveFileReply:
                async def send(address: str, info: Chain, head: int, limit: float) -> RemoveFileReply:
                    request = RemoveFileRequest(tag, chain, info.version, head, inode, first_index)
                    return await self._rpc.call(address, REMOVE_FILE, request, deadline=limit)

                return await self._at_head(f"removal of inode {inode}", chain, send, deadline)

            # With a tag of its own a request that has left chunks is not done yet, so that the same tag goes on with it.
            reply = await (self._tagged(step) if tag is None else step(tag))
            removed += reply.removed
            more = reply.more
        return removed

    async def query(self, chain: int, inode: int, first_index: int = 0, *, deadline: float) -> QueryReply:
        """What a file has on a chain, chunks before first_index left out."""

        async def send(address: str, info: Chain, head: int, limit: float) -> QueryReply:
            request = QueryRequest(chain, info.version, head, inode, first_index)
            return await self._rpc.call(address, QUERY, request, deadline=limit)

        return await self._at_head(f"query of inode {inode}", chain, send, deadline)

    async def chunk_lengths(
        self, chain: int, inode: int, first_index: int, *, deadline: float
    ) -> tuple[dict[int, int], int]:
        """The lengths of a file's chunks on a chain by their indices, of some of them from first_index on; and the index
        from which to ask on, -1 where these were all. Raises NOT_SUPPORTED where the daemon is older."""

        async def send(address: str, info: Chain, head: int, limit: float) -> QueryReply:
            request = QueryRequest(chain, info.version, head, inode, first_index, QUERY_LISTED_MAX)
            return await self._rpc.call(address, QUERY, request, deadline=limit)

        reply = await self._at_head(f"query of inode {inode}", chain, send, deadline)
        if len(reply.indices) != reply.chunks:
            raise FS3Error(Code.NOT_SUPPORTED, "a storage daemon is older than this client and does not list chunks")
        found = dict(zip(reply.indices, reply.lengths, strict=True))
        return found, reply.last_index + 1 if reply.more else -1

    async def sync(self, chain: int, chunks: Sequence[ChunkId], *, deadline: float) -> None:
        """Make chunks durable on every serving replica of a chain; no chunks given means all that the chain holds."""

        async def send(address: str, info: Chain, head: int, limit: float) -> SyncReply:
            request = SyncRequest(chain, info.version, head, tuple(chunks))
            return await self._rpc.call(address, SYNC, request, deadline=limit)

        await self._at_head(f"sync of chain {chain}", chain, send, deadline, attempt_s=max(ATTEMPT_S, 15.0))

    async def _tagged(self, request: Callable[[RequestTag], Awaitable[T]]) -> T:
        """Run one request on a channel of its own."""
        channel = self._channels.take()
        settled = False
        try:
            result = await request(channel.next_tag())
            settled = True
            return result
        finally:
            self._channels.give_back(channel, settled)

    async def _at_head(
        self,
        what: str,
        chain_id: int,
        send: Callable[[str, Chain, int, float], Awaitable[T]],
        deadline: float,
        size: int = 0,
        attempt_s: float = ATTEMPT_S,
    ) -> T:
        """Run `send(address, chain, head target, attempt's deadline)` at the chain's head until it succeeds."""
        retry: _Retry | None = None
        attempt_s += size / SLOWEST_BYTES_PER_S
        while True:
            routing = self.mgmtd.routing
            chain = routing.chains.get(chain_id)
            head = chain.head() if chain is not None else None
            node = routing.node_of(head) if head is not None else None
            try:
                if chain is None or head is None or node is None:
                    raise FS3Error(Code.CHAIN_UNAVAILABLE, f"chain {chain_id} has no serving target")
                patience_s = 0.001 if self.env.rare("client.write.impatient") else attempt_s
                return await send(node.address, chain, head, min(deadline, self.env.monotonic() + patience_s))
            except FS3Error as error:
                if action_for(error) is Action.GIVE_UP:
                    raise
                if retry is None:
                    retry = _Retry(self, what, deadline)
                await retry.pause(error, routing.version)


def _rejoin(buffers: Sequence[memoryview], results: Sequence[ReadResult]) -> memoryview:
    """The bytes that were received into these buffers, in one piece; empty where each range has filled its own."""
    if all(len(buffer) == result.length for buffer, result in zip(buffers, results, strict=True)):
        return _EMPTY
    return memoryview(b"".join(buffers))[: sum([result.length for result in results])]
