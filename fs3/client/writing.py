"""Small writes to a chain that has several of them under way wait for its next reply, and leave together in one request.
None waits for longer than a round trip, and the busier a chain is, the less each of them costs, from its head to its tail.

Those of different chains do not wait for each other: one of them may stand still until a daemon is taken for dead."""

from __future__ import annotations

import trio

from ..api.storage import WRITE, Update, UpdateKind, UpdateResult, WriteReply, WriteRequest
from ..checksum import Buffer
from ..env import Env
from ..errors import Code, FS3Error, ProtocolError
from .reading import Caller, error_of

SMALL_BYTES = 64 * 1024
"""Writes up to this size wait for others."""
UNDER_WAY_MAX = 2
"""Requests for small writes that one chain has at a time; more writes leave together."""
BATCH_MAX = 64
BATCH_BYTES_MAX = 1024 * 1024
"""Of the writes that leave together: the chunks of all of them are locked meanwhile."""


class _Waiting:
    """A write that waits for its turn. batch: set where its task is to send these, of which it is one. result, error: what
    became of it; neither where whoever was to send it gave up."""

    __slots__ = ("batch", "data", "error", "limit", "result", "task", "update")

    def __init__(self, update: Update, data: Buffer, limit: float) -> None:
        self.update = update
        self.data = data
        self.limit = limit
        self.batch: list[_Waiting] | None = None
        self.result: UpdateResult | None = None
        self.error: FS3Error | None = None
        self.task: trio.lowlevel.Task | None = None


class _Queue:
    """A chain's small writes. Invariant: while anybody waits, requests are under way, or a task was woken to send one."""

    __slots__ = ("under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: list[_Waiting] = []


class SharedWrites:
    """Sends writes, once each. Whatever goes wrong is raised to who can try again: with the same tag it is done once."""

    def __init__(self, env: Env, rpc: Caller) -> None:
        self._env = env
        self._rpc = rpc
        self._queues: dict[tuple[str, int], _Queue] = {}  # by the head's address, and the chain

    async def send(self, address: str, update: Update, data: Buffer, limit: float) -> UpdateResult:
        """Have an update done by the daemon at `address`. limit: when to give up (monotonic seconds)."""
        if update.kind is not UpdateKind.WRITE or update.length > SMALL_BYTES:
            return await self._one(address, update, data, limit)
        key = (address, update.chain)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        if queue.under_way < UNDER_WAY_MAX:
            queue.under_way += 1
            try:
                return await self._one(address, update, data, limit)
            finally:
                self._next(key, queue)
        waiting = _Waiting(update, data, limit)
        await self._wait(queue, waiting)
        batch = waiting.batch
        if batch is not None:
            try:
                await self._many(address, batch)
            finally:
                for other in batch:
                    if other.task is not None:
                        trio.lowlevel.reschedule(other.task)
                        other.task = None
                self._next(key, queue)
        if waiting.error is not None:
            raise FS3Error(waiting.error.code, waiting.error.message)
        if waiting.result is None:
            raise FS3Error(Code.CONNECTION_LOST, f"{address}: the request that this write shared was given up")
        return _checked(waiting.result)

    async def _wait(self, queue: _Queue, waiting: _Waiting) -> None:
        """Until the write is done, or was in vain, or it is this task that is to send it with others."""
        waiting.task = trio.lowlevel.current_task()
        queue.waiting.append(waiting)

        def abort(_: object) -> trio.lowlevel.Abort:
            waiting.task = None
            if waiting in queue.waiting:
                queue.waiting.remove(waiting)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _next(self, key: tuple[str, int], queue: _Queue) -> None:
        """A request came to its end: have the first one who waits send those who wait."""
        if not queue.waiting:
            queue.under_way -= 1
            if not queue.under_way:
                del self._queues[key]
            return
        size = count = 0
        for waiting in queue.waiting[:BATCH_MAX]:
            size += waiting.update.length
            if count and size > BATCH_BYTES_MAX:
                break
            count += 1
        batch = queue.waiting[:count]
        del queue.waiting[:count]
        first = batch[0]
        first.batch = batch
        assert first.task is not None
        trio.lowlevel.reschedule(first.task)
        first.task = None

    async def _one(self, address: str, update: Update, data: Buffer, limit: float) -> UpdateResult:
        payload = (data,) if len(data) else ()
        reply = await self._rpc.call(address, WRITE, WriteRequest((update,)), deadline=limit, payload=payload)
        return _checked(_results(address, reply, 1)[0])

    async def _many(self, address: str, batch: list[_Waiting]) -> None:
        updates = tuple([waiting.update for waiting in batch])
        payload = [waiting.data for waiting in batch]
        limit = min([waiting.limit for waiting in batch])
        try:
            reply = await self._rpc.call(address, WRITE, WriteRequest(updates), deadline=limit, payload=payload)
            results = _results(address, reply, len(batch))
        except FS3Error as error:
            for waiting in batch:
                waiting.error = error
            return
        self._env.metrics.count("client.gathered_writes", len(batch))
        for waiting, result in zip(batch, results, strict=True):
            waiting.result = result


def _results(address: str, reply: WriteReply, count: int) -> tuple[UpdateResult, ...]:
    if len(reply.results) != count:
        raise ProtocolError(f"{address} answered {len(reply.results)} updates instead of {count}")
    return reply.results


def _checked(result: UpdateResult) -> UpdateResult:
    if result.code:
        raise error_of(result.code, result.message)
    return result
