"""Calls to peers: one connection per address, shared by all calls, opened on demand.

A call costs little: encode, one sendmsg, park. A reader task per connection wakes the callers. Deadlines cost nothing
while they hold: one task per client sleeps until the earliest one and fails the calls that are past theirs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import trio

from ..api.common import ErrorBody, Method, Rep, Req
from ..direct import DirectWaiter, DirectWaits
from ..env import Env
from ..errors import Code, FS3Error, ProtocolError
from ..metrics import Histogram
from ..transport.base import Connection, Part
from ..wire.codec import decode, encode
from ..wire.frame import Frame, Kind

logger = logging.getLogger("fs3.rpc.client")

CONNECT_TIMEOUT_MS = 5_000
GATHER_FROM = 8
"""With more calls than these under way on a connection, a small request waits for others of the same turn."""
FLAG_RELAYED = 1
"""This request serves another one, which its server has admitted already: its receiver must not hold it back."""

_TIMEOUT_MS_MAX = (1 << 32) - 1
_EMPTY = memoryview(b"")


class _Pending:
    """One call that waits for its reply. frame or error is set once, by who takes it out of the outstanding ones."""

    __slots__ = ("deadline", "error", "frame", "sent_at", "task")

    def __init__(self, sent_at: float, deadline: float) -> None:
        self.sent_at = sent_at
        self.deadline = deadline
        self.task: trio.lowlevel.Task | None = None
        self.frame: Frame | None = None
        self.error: FS3Error | None = None


class _Link:
    """One connection and the calls outstanding on it.

    Invariant: every outstanding call is woken exactly once: by its reply, its deadline, or the end of the connection.
    """

    def __init__(self, client: RpcClient, address: str, connection: Connection) -> None:
        self.client = client
        self.address = address
        self.connection = connection
        self.outstanding: dict[int, _Pending] = {}
        self.received_at = -math.inf  # when something last came in
        self.scope = trio.CancelScope()
        self._next_id = 1
        self._waking = 0  # callers that have their reply and have yet to run
        self._flusher: trio.lowlevel.Task | None = None  # while it has nothing to do
        self._waiter: DirectWaiter | None = None

    async def call(
        self, method: int, body: bytes, now: float, deadline: float, payload: Sequence[Part],
        into: memoryview | Sequence[memoryview] | None, flags: int,
    ) -> Frame:  # fmt: skip
        request_id = self._next_id
        self._next_id = request_id + 1
        connection = self.connection
        registered = self.client.env.transport.registered
        use = registered.use(into, payload) if registered is not None else None
        pending = self.outstanding[request_id] = _Pending(now, deadline)
        if deadline < self.client.wakes_at:
            self.client.watch(deadline)
        if into is not None:
            if isinstance(into, memoryview) or connection.scatters:
                connection.expose(request_id, into)
            else:
                into = None
        timeout_ms = min(int((deadline - now) * 1000) + 1, _TIMEOUT_MS_MAX) if deadline < math.inf else _TIMEOUT_MS_MAX
        try:
            # Requests of callers that run in the same turn leave together: there are such when replies woke several, and
            # likely where many calls are under way.
            more = connection.gathers and (self._waking > 0 or len(self.outstanding) > GATHER_FROM)
            if use is not None and use.whole:
                connection.use = use
            rest = connection.start_send(Frame(Kind.REQUEST, method, flags, request_id, timeout_ms, body), payload, more)
            if more and self._flusher is not None:
                trio.lowlevel.reschedule(self._flusher)
                self._flusher = None
            if rest is not None:
                with trio.CancelScope(deadline=self.client.trio_time(deadline)) as scope:
                    await rest
                if scope.cancelled_caught:
                    raise FS3Error(Code.DEADLINE_EXCEEDED, f"{self.address} did not take the request in time")
                if deadline < self.client.wakes_at:
                    self.client.watch(deadline)
            elif not more and self.client.env.direct is not None:
                self._wait_directly(pending, self.client.env.direct)
            if pending.frame is None and pending.error is None:
                pending.task = trio.lowlevel.current_task()

                def abort(_: object) -> trio.lowlevel.Abort:
                    pending.task = None
                    return trio.lowlevel.Abort.SUCCEEDED

                await trio.lowlevel.wait_task_rescheduled(abort)
                self._waking -= 1
        finally:
            self.outstanding.pop(request_id, None)
            if into is not None and not connection.withdraw_now(request_id):
                with trio.CancelScope(shield=True):
                    await connection.withdraw(request_id)
            if use is not None:
                connection.use = None
                use.end()
            if self.client.links.get(self.address) is not self and not self.outstanding:
                self.scope.cancel()  # retired, and this was its last call
        if pending.error is not None:
            raise pending.error
        assert pending.frame is not None
        return pending.frame

    def _wait_directly(self, pending: _Pending, direct: DirectWaits) -> None:
        """Wait for a reply on the spot, if it comes at once and nothing else is to be done. Nobody else need run for it."""
        waiter = self._waiter
        if waiter is None:
            descriptor = self.connection.fileno()
            if descriptor < 0:
                return
            waiter = self._waiter = direct.waiter(descriptor)
        try:
            while pending.frame is None and waiter.readable():
                for frame in self.connection.take():
                    self._deliver(frame)
        except FS3Error as error:
            logger.debug("%s: %s", self.address, error)
            self.scope.cancel()  # _read() fails the calls

    def _deliver(self, frame: Frame) -> None:
        """Hand a reply to its caller."""
        self.received_at = self.client.env.monotonic()
        if frame.kind is Kind.REQUEST:
            logger.warning("closed the connection with %s: it sent a request to its client", self.address)
            raise ProtocolError("a server sent a request")
        pending = self.outstanding.pop(frame.request_id, None)
        if pending is not None:  # else its caller gave up
            pending.frame = frame
            self._wake(pending)

    def _wake(self, pending: _Pending) -> None:
        if pending.task is not None:
            trio.lowlevel.reschedule(pending.task)
            pending.task = None
            self._waking += 1

    async def run(self) -> None:
        """Work until the connection ends; runs as a task."""
        if not self.connection.gathers:
            await self._read()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_flushed)
            await self._read()
            nursery.cancel_scope.cancel()

    async def _keep_flushed(self) -> None:
        """Send requests that wait for more, should no more come."""
        try:
            while True:
                rest = self.connection.flush()
                if rest is not None:
                    await rest
                    continue
                self._flusher = trio.lowlevel.current_task()

                def abort(_: object) -> trio.lowlevel.Abort:
                    self._flusher = None
                    return trio.lowlevel.Abort.SUCCEEDED

                await trio.lowlevel.wait_task_rescheduled(abort)
        except FS3Error as error:
            logger.debug("%s: %s", self.address, error)  # _read() fails the calls

    async def _read(self) -> None:
        """Receive replies until the connection ends."""
        error: FS3Error = FS3Error(Code.CONNECTION_LOST, f"connection with {self.address}: closed")
        with self.scope:
            try:
                while True:
                    self._deliver(await self.connection.receive())
            except FS3Error as caught:
                error = caught
            finally:
                self.fail(error)
                with trio.CancelScope(shield=True):
                    await self.connection.aclose()

    def fail(self, error: FS3Error) -> None:
        """The connection is of no use any more: fail its calls."""
        if self.client.links.get(self.address) is self:
            del self.client.links[self.address]
        outstanding, self.outstanding = self.outstanding, {}
        if outstanding:
            logger.debug("%s: %d calls failed: %s", self.address, len(outstanding), error)
        for pending in outstanding.values():
            pending.error = FS3Error(Code.CONNECTION_LOST, error.message)
            self._wake(pending)

    def expire(self, now: float) -> float:
        """Fail the calls that are past their deadline; return the earliest deadline of the others."""
        earliest = math.inf
        for request_id, pending in list(self.outstanding.items()):
            if pending.deadline > now:
                earliest = min(earliest, pending.deadline)
                continue
            if pending.task is None:
                continue  # still sending: it watches its deadline itself
            del self.outstanding[request_id]
            pending.error = _late(self.address)
            self._wake(pending)
            if self.received_at <= pending.sent_at and self.client.links.get(self.address) is self:
                # Silent since that call was sent: perhaps dead. New calls get a new connection, the others finish here.
                del self.client.links[self.address]
        return earliest


class RpcClient:
    """A pool of connections for calls. Tasks run in the given nursery; cancelling it, or aclose(), ends them."""

    def __init__(self, env: Env, nursery: trio.Nursery) -> None:
        self.env = env
        self.links: dict[str, _Link] = {}
        self.wakes_at = math.inf
        self._timings: dict[int, Histogram] = {}  # of calls that were answered, by method id
        self._nursery = nursery
        self._opening: dict[str, _Opening] = {}
        self._all: set[_Link] = set()  # links with a reader, the retired ones included
        self._closed = False
        self._sleep = trio.CancelScope()
        self._watcher = trio.CancelScope()
        nursery.start_soon(self._watch)

    async def call(
        self, address: str, method: Method[Req, Rep], request: Req, *, deadline: float,
        payload: Sequence[Part] = (), relayed: bool = False,
    ) -> Rep:  # fmt: skip
        """The reply to a request. deadline: env.monotonic() seconds. relayed: see call_bulk. Raises FS3Error."""
        return (await self.call_bulk(address, method, request, deadline=deadline, payload=payload, relayed=relayed))[0]

    async def call_bulk(
        self, address: str, method: Method[Req, Rep], request: Req, *, deadline: float,
        payload: Sequence[Part] = (), into: memoryview | Sequence[memoryview] | None = None, relayed: bool = False,
    ) -> tuple[Rep, memoryview]:  # fmt: skip
        """The reply and its payload, which landed in `into` if it fits there, else in a fresh buffer.

        Several buffers may take it one after the other, where the connection can do that; what is returned is empty then.

        relayed: the request is sent on behalf of another one that this process serves (a forwarded write): the peer
        does not count it against its limits, since servers that hold back each other's relays could wait in a ring.
        Raises FS3Error: the peer's own, CONNECTION_LOST, CONNECT_FAILED, DEADLINE_EXCEEDED.
        """
        body = encode(request)
        now = self.env.monotonic()
        if deadline <= now:
            raise _late(address)
        link = self.links.get(address)
        if link is None:
            link = await self._open(address, deadline)
            now = self.env.monotonic()
            if deadline <= now:  # the connection was there in time, but our turn was not
                raise _late(address)
        frame = await link.call(method.id, body, now, deadline, payload, into, FLAG_RELAYED if relayed else 0)
        timing = self._timings.get(method.id)
        if timing is None:
            timing = self._timings[method.id] = self.env.metrics.timing(f"call.{method.name}")
        timing.observe(int((link.received_at - now) * 1e9))  # a frame of later, if any came before our turn
        if frame.kind is Kind.ERROR:
            raise decode(ErrorBody, frame.body).to_error()
        return decode(method.reply, frame.body), frame.payload if frame.payload is not None else _EMPTY

    async def aclose(self) -> None:
        """Close all connections; outstanding calls fail with CONNECTION_LOST."""
        self._closed = True
        self._watcher.cancel()
        for opening in self._opening.values():
            opening.scope.cancel()
        for link in list(self._all):
            link.fail(FS3Error(Code.CONNECTION_LOST, f"connection with {link.address}: closed"))
            link.scope.cancel()
            await link.connection.aclose()

    # Connecting

    async def _open(self, address: str, deadline: float) -> _Link:
        """The link to an address; whoever asks first makes a task connect, all others wait for it too."""
        if self._closed:
            raise FS3Error(Code.CONNECTION_LOST, f"{address}: this client is closed")
        opening = self._opening.get(address)
        if opening is None:
            opening = self._opening[address] = _Opening()
            self._nursery.start_soon(self._connect, address, opening)
        with trio.CancelScope(deadline=self.trio_time(deadline)) as scope:
            await opening.done.wait()
        if opening.link is not None:
            return opening.link
        if scope.cancelled_caught:
            raise _late(address)
        assert opening.error is not None
        raise FS3Error(opening.error.code, opening.error.message)

    async def _connect(self, address: str, opening: _Opening) -> None:
        opening.error = FS3Error(Code.CONNECT_FAILED, f"{address}: no connection within {CONNECT_TIMEOUT_MS} ms")
        try:
            opening.scope.deadline = trio.current_time() + CONNECT_TIMEOUT_MS / 1000
            with opening.scope:
                connection = await self.env.transport.connect(address)
                link = opening.link = self.links[address] = _Link(self, address, connection)
                self._all.add(link)
                if self._closed:
                    link.scope.cancel()
        except FS3Error as error:
            opening.error = error
        finally:
            del self._opening[address]
            opening.done.set()
        if opening.link is not None:
            try:
                await opening.link.run()
            finally:
                self._all.discard(opening.link)

    # Deadlines

    def watch(self, deadline: float) -> None:
        """See to it that the watcher looks at `deadline` at the latest."""
        self.wakes_at = deadline
        self._sleep.deadline = self.trio_time(deadline)

    def trio_time(self, deadline: float) -> float:
        """A deadline on env's clock, as cancel scopes take it: the clocks may run apart in a simulation.

        One that lies ahead does so here too: what is left is computed first, since a sum of both would be rounded.
        """
        return trio.current_time() + (deadline - self.env.monotonic())

    async def _watch(self) -> None:
        with self._watcher:
            while True:
                with trio.CancelScope(deadline=self.trio_time(self.wakes_at)) as self._sleep:
                    await trio.sleep(math.inf)
                now = self.env.monotonic()
                self.wakes_at = min([link.expire(now) for link in list(self._all)], default=math.inf)


class _Opening:
    """A connection attempt that several callers may wait for."""

    __slots__ = ("done", "error", "link", "scope")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: FS3Error | None = None
        self.link: _Link | None = None
        self.scope = trio.CancelScope()


def _late(address: str) -> FS3Error:
    return FS3Error(Code.DEADLINE_EXCEEDED, f"no answer from {address} in time")
