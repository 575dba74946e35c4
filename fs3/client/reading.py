"""Reads of single ranges, past the machinery for many: most reads of a mount are one, and succeed.

Small ones that would go to a node that has several of them under way wait for the next reply from it, and leave together in
one request: none waits for longer than a round trip, and the busier a node is, the less each of them costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from ..api.common import Method, Rep, Req
from ..api.storage import READ, READ_RANGES_MAX, ReadRange, ReadRequest, ReadResult
from ..checksum import piece_checksums
from ..env import Env
from ..errors import Code, FS3Error, ProtocolError
from ..ids import ChunkId
from ..routing import RoutingInfo
from ..transport.base import Part
from ..transport.buffers import BufferPool
from .retry import Action, action_for
from .selection import ReplicaSelector

ATTEMPT_S = 5.0
"""How long one attempt may take before the next one, besides what its bytes need at SLOWEST_BYTES_PER_S."""
FIRST_READ_ATTEMPT_S = 1.0
"""The same of a read that can still go to another replica: a daemon that hangs delays it by no more."""
SLOWEST_BYTES_PER_S = 8 * 1024 * 1024

SMALL_BYTES = 16 * 1024
"""Reads up to this size wait for others."""
UNDER_WAY_MAX = 4
"""Requests for small reads that one node has at a time; more leave together. With two, eight threads got a third less."""

NOBODY: frozenset[int] = frozenset()


class Caller(Protocol):
    """What this module needs of RpcClient."""

    async def call(
        self, address: str, method: Method[Req, Rep], request: Req, *, deadline: float, payload: Sequence[Part] = ()
    ) -> Rep: ...

    async def call_bulk(
        self,
        address: str,
        method: Method[Req, Rep],
        request: Req,
        *,
        deadline: float,
        payload: Sequence[Part] = (),
        into: memoryview | Sequence[memoryview] | None = None,
    ) -> tuple[Rep, memoryview]: ...


@dataclass(slots=True)
class ChunkRead:
    """Read len(into) bytes at `offset` of a chunk into `into`."""

    chain: int
    chunk: ChunkId
    offset: int
    into: memoryview


class _Waiting:
    """A read that waits for its turn. length: of what was read; None while it was not. batch: set where its task is to send
    these, of which it is one. given_up: nobody waits for it any more."""

    __slots__ = ("batch", "given_up", "length", "range", "read", "task")

    def __init__(self, read: ChunkRead, item: ReadRange) -> None:
        self.read = read
        self.range = item
        self.length: int | None = None
        self.batch: list[_Waiting] | None = None
        self.given_up = False
        self.task: trio.lowlevel.Task | None = None


class _Node:
    """A node's small reads. Invariant: whoever waits is woken once: with its bytes, in vain, or to send those who wait."""

    __slots__ = ("under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: list[_Waiting] = []


class SingleReads:
    """Tries single reads, once each. Whatever goes wrong is left to who can try again, elsewhere or later."""

    def __init__(self, env: Env, rpc: Caller, selector: ReplicaSelector, buffers: BufferPool) -> None:
        self._env = env
        self._rpc = rpc
        self._selector = selector
        self._buffers = buffers
        self._nodes: dict[int, _Node] = {}

    async def read(self, routing: RoutingInfo, read: ChunkRead, deadline: float) -> int | None:
        """How many bytes the chunk really had; the rest of read.into is zeroed. None where that did not succeed."""
        now = self._env.monotonic()
        chain = routing.chains.get(read.chain)
        target = self._selector.pick(routing, chain, read.chunk, NOBODY, now) if chain is not None else None
        node = routing.node_of(target) if target is not None else None
        if chain is None or target is None or node is None:
            return None
        size = len(read.into)
        attempt_s = FIRST_READ_ATTEMPT_S if len(chain.targets) > 1 else ATTEMPT_S
        if self._env.rare("client.read.impatient"):
            attempt_s = 0.0005
        item = ReadRange(read.chain, chain.version, target, read.chunk, read.offset, size)
        limit = min(deadline, now + attempt_s + size / SLOWEST_BYTES_PER_S)
        if size > SMALL_BYTES:
            return await self._one(node.id, node.address, read, item, now, limit)
        queue = self._nodes.get(node.id)
        if queue is None:
            queue = self._nodes[node.id] = _Node()
        if queue.under_way < UNDER_WAY_MAX:
            queue.under_way += 1
            try:
                return await self._one(node.id, node.address, read, item, now, limit)
            finally:
                self._next(queue)
        waiting = _Waiting(read, item)
        await self._wait(queue, waiting)
        batch = waiting.batch
        if batch is None:
            return waiting.length
        try:
            now = self._env.monotonic()
            await self._many(node.id, node.address, batch, now, min(deadline, now + attempt_s + size / SLOWEST_BYTES_PER_S))
        finally:
            for other in batch:
                if other is not waiting and other.task is not None:
                    trio.lowlevel.reschedule(other.task)
                    other.task = None
            self._next(queue)
        return waiting.length

    async def _wait(self, queue: _Node, waiting: _Waiting) -> None:
        """Until the bytes are here, or were not to be had, or it is this task that is to fetch them for all."""
        waiting.task = trio.lowlevel.current_task()
        queue.waiting.append(waiting)

        def abort(_: object) -> trio.lowlevel.Abort:
            waiting.task = None
            waiting.given_up = True
            if waiting in queue.waiting:
                queue.waiting.remove(waiting)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _next(self, queue: _Node) -> None:
        """A request came to its end: have the first one who waits send those who wait."""
        if not queue.waiting:
            queue.under_way -= 1
            return
        batch = queue.waiting[:READ_RANGES_MAX]
        del queue.waiting[:READ_RANGES_MAX]
        first = batch[0]
        first.batch = batch
        assert first.task is not None
        trio.lowlevel.reschedule(first.task)
        first.task = None

    async def _one(
        self, node: int, address: str, read: ChunkRead, item: ReadRange, started: float, limit: float
    ) -> int | None:
        try:
            request = ReadRequest((item,))
            reply, data = await self._rpc.call_bulk(address, READ, request, deadline=limit, into=read.into)
        except FS3Error as error:
            self._failed(node, error)
            return None
        now = self._env.monotonic()
        self._selector.succeeded(node, now - started, now)
        if len(reply.results) != 1 or take(read, data, reply.results[0], True) is not None:
            return None
        return reply.results[0].length

    async def _many(self, node: int, address: str, batch: list[_Waiting], started: float, limit: float) -> None:
        ranges = tuple([waiting.range for waiting in batch])
        into = self._buffers.take(sum([item.length for item in ranges]))
        try:
            reply, data = await self._rpc.call_bulk(address, READ, ReadRequest(ranges), deadline=limit, into=into)
        except FS3Error as error:
            self._failed(node, error)
            return
        now = self._env.monotonic()
        self._selector.succeeded(node, now - started, now)
        self._env.metrics.count("client.gathered_reads", len(batch))
        if len(reply.results) != len(batch):
            return
        at = 0
        for waiting, result in zip(batch, reply.results, strict=True):
            # Who gave up may use its buffer for other things now.
            if not waiting.given_up and take(waiting.read, data[at : at + result.length], result, False) is None:
                waiting.length = result.length
            at += result.length

    def _failed(self, node: int, error: FS3Error) -> None:
        if action_for(error) is Action.ELSEWHERE:
            self._selector.failed(node, self._env.monotonic())


def take(read: ChunkRead, data: memoryview, result: ReadResult, in_place: bool) -> FS3Error | None:
    """Verify one range's bytes and put them where they belong. Returns what is wrong with them."""
    if result.code:
        return error_of(result.code, result.message)
    if len(data) != result.length or result.length > len(read.into):
        return ProtocolError(f"{read.chunk}: {result.length} bytes announced, {len(data)} came, {len(read.into)} asked")
    if piece_checksums(data, read.offset) != result.checksums:
        return FS3Error(Code.CHECKSUM, f"{read.chunk}: bytes at {read.offset} do not match their checksums")
    if not in_place:
        read.into[: result.length] = data
    missing = len(read.into) - result.length
    if missing:
        read.into[result.length :] = bytes(missing)
    return None


def error_of(code: int, message: str) -> FS3Error:
    """The error that a reply tells of one of its parts."""
    try:
        return FS3Error(Code(code), message)
    except ValueError:
        return FS3Error(Code.INTERNAL, f"error {code} of a newer peer: {message}")
