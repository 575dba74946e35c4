"""Serves requests: dispatch, deadlines, back-pressure.

Each connection has a few worker tasks, of which one leads: it receives a request and runs its handler at once, in the same
task. Most handlers end without ever waiting, and then no other task is involved. A handler that has to wait takes its
worker with it: at that moment, not before, another worker becomes the leader and goes on receiving.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from ..api.common import PING, Empty, ErrorBody, Method, Rep, Req
from ..direct import DirectWaiter, DirectWaits
from ..drive import resume
from ..env import Env
from ..errors import Code, FS3Error
from ..metrics import Histogram
from ..transport.base import Connection, Listener, Loan, Part
from ..wire.codec import decode, encode
from ..wire.frame import BODY_SIZE_MAX, FLAG_SHARED, PAYLOAD_SIZE_MAX, Frame, Kind
from .client import FLAG_RELAYED
from .watching import described, watch

logger = logging.getLogger("fs3.rpc.server")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A reply that a handler has encoded already: for those that go to many callers alike."""

    body: bytes


Handler = Callable[[Any, "Call"], Coroutine[Any, Any, Any]]

_DIRECT_AFTER = 32
"""So many requests of one connection in a row, and the next ones are waited for on the spot."""
_DIRECT_TIMEOUT_MS = 1
"""Timers of the process may be late by IN_A_ROW_MAX times this."""
_IDLE_WORKERS_MAX = 16
"""Workers that a connection keeps parked for the next handlers that wait."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one connection may have in flight before the server stops reading from it.

    bytes_max counts bulk data, of requests and of replies. reply_timeout_ms: a peer that does not take a reply for so
    long is cut off.
    """

    requests_max: int = 256
    bytes_max: int = 64 * 1024 * 1024
    reply_timeout_ms: int = 30_000


class Call:
    """A request as its handler sees it. deadline: env.monotonic() seconds; the handler is cancelled then."""

    __slots__ = ("_session", "arrived", "counted", "deadline", "frame", "later", "parts", "peer", "release")

    def __init__(self, session: _Session, frame: Frame, arrived: float) -> None:
        self.peer = session.connection.peer
        self.arrived = arrived
        self.deadline = arrived + frame.timeout_ms / 1000
        self.frame = frame
        self.parts: Sequence[Part] = ()
        self.release: Callable[[], None] | None = None
        self.counted: int | None = None  # bytes that count against the connection's limits; None: it does not (yet)
        self.later: Later | None = None
        self._session = session

    async def payload(self) -> memoryview:
        """The request's bulk data; empty where it has none."""
        return await self._session.connection.fetch(self.frame)

    def room(self, size: int) -> memoryview | None:
        """The caller's own memory for the reply's payload, if it can be had; see Connection.room."""
        return self._session.connection.room(self.frame, size)

    def lend(self, size: int) -> Loan | None:
        """Memory that the caller registered for the reply's payload, if it can be had; see Connection.lend."""
        return self._session.connection.lend(self.frame, size)

    def reply_payload(self, parts: Sequence[Part], release: Callable[[], None] | None = None) -> None:
        """Bulk data for the reply, once per call. release is called once, after it was sent or dropped."""
        assert not self.parts and self.release is None, "reply_payload is for once"
        self.release = release
        size = sum([len(part) for part in parts])
        assert size <= PAYLOAD_SIZE_MAX, f"reply payload of {size} bytes"
        self.parts = parts

    def reply_later(self) -> Later:
        """The call is answered by whoever holds the result, which the handler must also return.

        For questions that wait for news, thousands at once: they take no task, and their deadline is the holder's affair.
        """
        assert self.later is None and not self.parts and self.release is None
        self._session.take_into_account(self)
        self.later = Later(self._session, self.frame, self.counted)
        return self.later


class Later:
    """A call that waits for its answer without a task."""

    __slots__ = ("_counted", "_method", "_request_id", "_session")

    def __init__(self, session: _Session, frame: Frame, counted: int | None) -> None:
        self._session = session
        self._method = frame.method
        self._request_id = frame.request_id
        self._counted = counted

    @property
    def gone(self) -> bool:
        """Nobody waits any more: the connection has ended."""
        return self._session.ended

    def reply(self, answer: Any) -> None:
        """Answer, once: a message, Encoded, or an FS3Error. Waits for nobody; what cannot be sent at once is sent by the
        connection's own tasks, within the server's time for replies, and dropped with the connection."""
        session = self._session
        if session.ended:
            return
        kind = Kind.ERROR if isinstance(answer, FS3Error) else Kind.REPLY
        frame = Frame(kind, self._method, 0, self._request_id, 0, _body(answer))
        try:
            rest = session.connection.start_send(frame)
            if rest is not None:
                session.send_rest(rest)
        except FS3Error as error:
            logger.debug("reply to %s dropped: %s", session.connection.peer, error)
        finally:
            if self._counted is not None:
                session.count(-1, -self._counted)


class RpcServer:
    """Answers requests of any number of connections with the handlers it was given."""

    def __init__(self, env: Env, limits: ServerLimits = ServerLimits(), direct: DirectWaits | None = None) -> None:
        """direct: for a server whose time goes into many small calls that never wait: while one connection alone brings
        requests, the next one is waited for on the spot."""
        self.env = env
        self.limits = limits
        self.direct = direct
        if direct is not None:
            direct.timeout_ms = _DIRECT_TIMEOUT_MS
        self.busiest: _Session | None = None  # where the latest requests came from
        self.in_a_row = 0  # how many of them
        self.handlers: dict[int, tuple[Method[Any, Any], Handler]] = {}
        self.timings: dict[int, Histogram] = {}  # by method id
        self.handle(PING, _ping)
        watch(self)

    def handle(
        self, method: Method[Req, Rep], handler: Callable[[Req, Call], Coroutine[Any, Any, Rep | Encoded | Later]]
    ) -> None:
        """Let `handler` answer requests of `method`. What it raises goes to the caller: FS3Error as it is, else INTERNAL."""
        assert method.id not in self.handlers, f"two handlers for {method.name}"
        self.handlers[method.id] = (method, handler)
        self.timings[method.id] = self.env.metrics.timing(f"rpc.{method.name}")

    def note(self, call: Call, kind: Kind, body: bytes) -> None:
        """A call was handled."""
        env, method = self.env, call.frame.method
        timing = self.timings.get(method)
        if timing is not None:
            took_ns = int((env.monotonic() - call.arrived) * 1e9)
            timing.observe(took_ns)
            if env.metrics.listeners:
                env.metrics.tell(described(self.handlers[method][0], call.frame.body, kind, body, call.peer, took_ns))

    async def serve(self, listener: Listener, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; handlers are cancelled with it. Closes the listener."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    nursery.start_soon(_Session(self, await listener.accept()).run)
        finally:
            with trio.CancelScope(shield=True):
                await listener.aclose()


class _Session:
    """One connection, its workers and what it has in flight.

    Invariant: while the connection lives exactly one worker leads, or is on its way to.
    """

    def __init__(self, server: RpcServer, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.ended = False
        self._idle: list[_Worker] = []
        self._requests = 0
        self._bytes = 0
        self._room: trio.lowlevel.Task | None = None  # the leader, while it waits for handlers to end
        self._waiter: DirectWaiter | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                self._wake(None)
        finally:
            self.ended = True
            with trio.CancelScope(shield=True):
                await self.connection.aclose()

    def send_rest(self, rest: Awaitable[None]) -> None:
        """Send what a reply could not send at once."""
        assert self._nursery is not None and not self.ended
        self._nursery.start_soon(self._send_rest, rest)

    async def _send_rest(self, rest: Awaitable[None]) -> None:
        try:
            with trio.move_on_after(self.server.limits.reply_timeout_ms / 1000):
                await rest
        except FS3Error as error:
            logger.debug("reply to %s dropped: %s", self.connection.peer, error)

    def wait_directly(self, direct: DirectWaits) -> None:
        """Wait on the spot for the next request where that pays: trio's loop costs more than many a call. Tasks that the
        loop took up together with this one would have to wait, so this is for when all that comes comes from here."""
        server = self.server
        if server.busiest is not self:
            server.busiest, server.in_a_row = self, 0
        server.in_a_row += 1
        if server.in_a_row < _DIRECT_AFTER or self.connection.any_ready():
            return
        if self._waiter is None:
            descriptor = self.connection.fileno()
            if descriptor < 0:
                return
            self._waiter = direct.waiter(descriptor)
        if self._waiter.readable():
            self.connection.expect()

    def take_into_account(self, call: Call) -> None:
        """Let a call count against the limits. One that is answered before anything else is received need not."""
        frame = call.frame
        if call.counted is None and not frame.flags & FLAG_RELAYED:
            self.count(1, frame.payload_length)
            call.counted = frame.payload_length

    def hand_over(self) -> None:
        """The leader is about to wait: requests that are here already get workers, and one more worker leads."""
        self.server.busiest = None
        while not self.full() and (frame := self.connection.ready()) is not None:
            call = Call(self, frame, self.server.env.monotonic())
            self.take_into_account(call)
            self._wake(call)
        self._wake(None)

    def _wake(self, call: Call | None) -> None:
        """Let a worker run this call, or else lead."""
        if self._idle:
            worker = self._idle.pop()
            assert worker.task is not None
            trio.lowlevel.reschedule(worker.task)
        else:
            worker = _Worker(self)
            assert self._nursery is not None
            self._nursery.start_soon(worker.run)
        worker.call = call
        worker.leads = call is None

    def needs_idle(self) -> bool:
        return not self.ended and len(self._idle) < _IDLE_WORKERS_MAX

    async def park(self, worker: _Worker) -> None:
        """Wait as an idle worker, until woken for a call, or to lead, or because the connection ended."""
        self._idle.append(worker)
        worker.task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(worker)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def end(self) -> None:
        """The connection is gone: handlers finish, idle workers leave."""
        self.ended = True
        for worker in self._idle:
            assert worker.task is not None
            trio.lowlevel.reschedule(worker.task)
        self._idle.clear()

    def full(self) -> bool:
        limits = self.server.limits
        return self._requests >= limits.requests_max or self._bytes >= limits.bytes_max

    async def room(self) -> None:
        """Wait until the connection has less in flight than it may have."""
        while self.full():
            self._room = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._room = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    def count(self, requests: int, size: int) -> None:
        self._requests += requests
        self._bytes += size
        if self._room is not None and not self.full():
            trio.lowlevel.reschedule(self._room)
            self._room = None


class _Worker:
    """A task that runs calls: one after the other as they arrive while it leads, or one that it was handed."""

    def __init__(self, session: _Session) -> None:
        self.leads = False
        self.call: Call | None = None
        self.task: trio.lowlevel.Task | None = None
        self._session = session
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            if self.leads:  # cancelled, as all others are: there will soon be no tasks to send anything
                self._session.ended = True

    async def _run(self) -> None:
        session = self._session
        while self.leads or self.call is not None or session.needs_idle():
            # A scope is used for many calls, until the deadline of one passes while its handler waits.
            with trio.CancelScope() as self._scope:
                while not self._scope.cancel_called:
                    self._scope.deadline = math.inf
                    while self.leads:
                        await self._lead()
                    if self.call is not None:
                        call, self.call = self.call, None
                        await self._answer(call)
                    elif session.needs_idle():
                        await session.park(self)
                    else:
                        return
            if self._scope.cancelled_caught:
                session.server.env.metrics.count("rpc.deadline_exceeded")

    async def _lead(self) -> None:
        """Receive a request and answer it."""
        session = self._session
        direct = session.server.direct
        if direct is not None:
            session.wait_directly(direct)
        try:
            frame = await session.connection.receive()
        except FS3Error:
            self.leads = False
            session.end()
            return
        if session.full() and not frame.flags & FLAG_RELAYED:
            arrived = session.server.env.monotonic()
            await self._flush()
            await session.room()
            waited_ms = (session.server.env.monotonic() - arrived) * 1000
            if waited_ms >= frame.timeout_ms:
                session.connection.settle(frame)
                session.server.env.metrics.count("rpc.deadline_exceeded")
                return
            frame.timeout_ms -= int(waited_ms)
        await self._answer(Call(session, frame, session.server.env.monotonic()))

    async def _flush(self) -> None:
        """Let no reply wait for the next one, which may take long."""
        with suppress(FS3Error):  # the next receive() tells
            rest = self._session.connection.flush()
            if rest is not None:
                await rest

    def _blocked(self, call: Call) -> None:
        """The call is about to wait for the first time: from here on its deadline cancels it, and another leads."""
        self._session.take_into_account(call)
        if self.leads:
            self.leads = False
            self._session.hand_over()
        self._set_deadline(call.deadline)

    def _set_deadline(self, deadline: float) -> None:
        """Be cancelled at this time of env's clock; a leader must not be, since nobody would receive any more."""
        assert not self.leads
        self._scope.deadline = trio.current_time() + (deadline - self._session.server.env.monotonic())

    async def _answer(self, call: Call) -> None:
        session = self._session
        connection = session.connection
        try:
            if call.frame.kind is not Kind.REQUEST:
                logger.warning("closed the connection with %s: it sent a reply to its server", call.peer)
                await connection.aclose()
                return
            kind, body = await self._handle(call)
            if body is None:
                call.counted = None  # it goes on counting until it is answered
                return
            session.server.note(call, kind, body)
            reply = Frame(kind, call.frame.method, 0, call.frame.request_id, 0, body)
            parts = call.parts if kind is Kind.REPLY else ()
            # While requests are here already this worker leads on at once: their replies leave together.
            rest = connection.start_send(reply, parts, self.leads and connection.any_ready())
            if rest is not None:
                await self._finish(call, parts, rest)
        except FS3Error as error:
            logger.debug("reply to %s dropped: %s", call.peer, error)
        except Exception:
            logger.exception("reply to %s could not be sent", call.peer)  # a bug; the stream may be broken in the middle
            await connection.aclose()
        finally:
            if call.counted is not None:
                session.count(-1, -call.counted)
            if call.release is not None:
                call.release()
            if call.frame.flags & FLAG_SHARED:
                connection.settle(call.frame)

    async def _finish(self, call: Call, parts: Sequence[Part], rest: Awaitable[None]) -> None:
        """Send the rest of a reply. The work is done, and a frame that is cut short cuts off all other calls too: so this
        has a deadline of its own."""
        self._blocked(call)
        if call.counted is not None:
            size = sum([len(part) for part in parts])
            self._session.count(0, size)
            call.counted += size
        server = self._session.server
        self._set_deadline(server.env.monotonic() + server.limits.reply_timeout_ms / 1000)
        await rest

    async def _handle(self, call: Call) -> tuple[Kind, bytes | None]:
        """The kind and the body of the reply; no body where it comes later."""
        found = self._session.server.handlers.get(call.frame.method)
        if found is None:
            return Kind.ERROR, encode(ErrorBody.of(FS3Error(Code.UNKNOWN_METHOD, f"method {call.frame.method}")))
        method, handler = found
        try:
            handling = handler(decode(method.request, call.frame.body), call)
            try:
                trap = handling.send(None)
            except StopIteration as done:
                reply = done.value
            else:
                self._blocked(call)
                reply = await resume(handling, trap)
            return Kind.REPLY, None if type(reply) is Later else _body(reply)
        except FS3Error as error:
            return Kind.ERROR, encode(ErrorBody.of(error))
        except Exception as error:
            inner = _only(error)
            if inner is None:
                logger.exception("%s from %s failed unexpectedly", method.name, call.peer)
                inner = FS3Error(Code.INTERNAL, f"{method.name}: {type(error).__name__}: {error}")
            return Kind.ERROR, encode(ErrorBody.of(inner))


def _body(answer: Any) -> bytes:
    if type(answer) is Encoded:
        return answer.body
    body = encode(ErrorBody.of(answer) if isinstance(answer, FS3Error) else answer)
    assert len(body) <= BODY_SIZE_MAX, f"reply of {len(body)} bytes"
    return body


def _only(error: BaseException) -> FS3Error | None:
    """The FS3Error in a group that holds nothing but such, as a handler's nursery raises it."""
    while isinstance(error, BaseExceptionGroup):
        if not all(isinstance(inner, FS3Error | BaseExceptionGroup) for inner in error.exceptions):
            return None
        error = error.exceptions[0]
    return error if isinstance(error, FS3Error) else None


async def _ping(request: Empty, call: Call) -> Empty:
    return request
