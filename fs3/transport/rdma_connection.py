"""A connection over a queue pair: frames as a stream of messages, and one-sided transfers beside them.

Frames are written into send buffers as room and credits allow, and cut out of the receive buffers by the same framer as
TCP's. What the roles do with bulk data is in `rdma_roles`.

Nothing works here by itself: whichever task waits for something, a frame, a transfer or room to send, drives the
connection for all until it has what it wants, and then hands over to the next one that waits. So transfers go on also while
a server takes no further requests. The socket over which the connection was agreed upon stays open: its end says that the
peer is gone.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from ..errors import Code, FS3Error, ProtocolError
from ..wire.frame import Frame, Framer, encode_head
from .base import Connection, FileSlice, Part
from .buffers import BufferPool
from .rdma_flow import Flow, Limits
from .rdma_memory import Slot
from .rdma_port import MESSAGE_SIZE, Completion, QueuePair, Region, Remote

logger = logging.getLogger("fs3.transport.rdma")


LINGER_S = 0.2
"""How long a connection that is closed waits for the device to send what it has."""


BACKLOG_FRAMES_MAX = 128
BACKLOG_BYTES_MAX = 4 * 1024 * 1024
"""Of frames that came and that nobody took yet. What comes then stays in its receive buffers, without whose credits the peer
can send no more."""
OUTGOING_MAX = 8192
"""Frames and transfers that wait for a peer that takes none."""


class Socket(Protocol):
    """What is left of the socket over which a connection was agreed upon: it ends when the peer does."""

    def recv(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class Waiter:
    """A task that waits for something of a connection."""

    __slots__ = ("done", "task")

    def __init__(self) -> None:
        self.done = False
        self.task: trio.lowlevel.Task | None = None


class Transfer:
    """A READ or WRITE to come or under way. slot: let go of when the device is done with it."""

    __slots__ = ("offset", "region", "remote", "slot", "waiter")

    def __init__(self, region: Region, offset: int, remote: Remote, slot: Slot | None, waiter: Waiter | None = None) -> None:
        self.region = region
        self.offset = offset
        self.remote = remote
        self.slot = slot
        self.waiter = waiter
        if slot is not None:
            slot.keep()

    def over(self) -> None:
        if self.slot is not None:
            self.slot.release()
            self.slot = None


class Outgoing:
    """Bytes of a frame on their way into send buffers."""

    __slots__ = ("begun", "parts", "waiter")

    def __init__(self, parts: list[memoryview]) -> None:
        self.parts = parts
        self.begun = False
        self.waiter: Waiter | None = None


class RdmaConnection(Connection):
    """What both roles share."""

    scatters = True

    def __init__(self, sock: Socket, peer: str, pair: QueuePair, limits: tuple[Limits, Limits]) -> None:
        """limits: ours, the peer's."""
        self.peer = peer
        self._socket = sock
        self._pair = pair
        self._flow = Flow(*limits)
        self._buffers = BufferPool()
        self._framer = Framer(self._allocate)
        self._frames: deque[Frame] = deque()
        self._backlog = 0  # bytes of those
        self._unread: deque[Completion] = deque()  # messages that stay in their receive buffers for now
        self._exposed: dict[int, memoryview | Sequence[memoryview]] = {}
        self._outgoing: deque[Outgoing | Transfer] = deque()  # in order: a reply's message comes after its WRITEs
        self._reads: deque[Transfer] = deque()
        self._transfers: dict[int, Transfer] = {}  # by token: posted
        self._token = 0
        self._waiters: dict[Waiter, None] = {}  # those that sleep
        self._driving = False
        self._receiver = Waiter()
        self._idle: Waiter | None = None
        self._closed = ""
        self._worked = False  # something came in
        self.on_error: Callable[[bool], None] = lambda worked: None
        """Told when the device fails this connection; and whether it ever worked."""

    # Driving

    async def _until(self, waiter: Waiter) -> None:
        """Wait until somebody calls `_wake` with it. Raises CONNECTION_LOST if the connection ends before."""
        while not waiter.done:
            if self._closed:
                raise self._lost()
            if not self._driving:
                await self._drive(waiter)
                continue
            waiter.task = trio.lowlevel.current_task()
            self._waiters[waiter] = None

            def abort(_: object) -> trio.lowlevel.Abort:
                del self._waiters[waiter]
                waiter.task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    async def _drive(self, waiter: Waiter) -> None:
        self._driving = True
        try:
            while not waiter.done and not self._closed:
                self._work()
                if not waiter.done and not self._closed:
                    await self._pair.wait()
        except OSError as error:
            self._close(error.strerror or str(error))
        finally:
            self._driving = False
            for other in self._waiters:  # the next one that waits
                self._rouse(other)
                break

    def _rouse(self, waiter: Waiter) -> None:
        if waiter.task is not None:
            del self._waiters[waiter]
            trio.lowlevel.reschedule(waiter.task)
            waiter.task = None

    def _wake(self, waiter: Waiter) -> None:
        waiter.done = True
        self._rouse(waiter)

    def _work(self) -> None:
        """Take in what the device has done, and give it what there is to do."""
        self._guarded(self._work_on)

    def _work_on(self) -> None:
        completions = self._pair.poll()
        if not completions:
            self._look_at_socket()
        for completion in completions:
            self._completed(completion)
            if self._closed:
                return
        self._pump()

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something that ends the connection if it fails."""
        try:
            act()
        except ProtocolError as error:
            logger.warning("closed the connection with %s: %s", self.peer, error.message)
            self._close(error.message)
        except OSError as error:
            self._close(error.strerror or str(error))

    def _look_at_socket(self) -> None:
        try:
            if not self._socket.recv(1):
                self._close("closed by the peer")
            else:
                raise ProtocolError("bytes over TCP on a connection that uses RDMA")
        except BlockingIOError:
            pass

    def _completed(self, completion: Completion) -> None:
        if completion.error:
            self.on_error(self._worked)
            self._close(f"RDMA failed: {completion.error}")
        elif completion.receive:
            self._worked = True
            self._flow.arrived(completion.immediate)  # at once: what we owe the peer may wait for it
            if not completion.length:
                self._pair.post_receive(completion.number)
            elif self._unread or self._full():
                self._unread.append(completion)
            else:
                self._read(completion)
        else:
            for token in self._flow.completed(completion.number):
                transfer = self._transfers.pop(token)
                transfer.over()
                if transfer.waiter is not None:
                    self._wake(transfer.waiter)
            if self._idle is not None and self._flow.idle:
                self._wake(self._idle)

    def _full(self) -> bool:
        return len(self._frames) >= BACKLOG_FRAMES_MAX or self._backlog >= BACKLOG_BYTES_MAX

    def _read(self, completion: Completion) -> None:
        """Take in a message, and return its receive buffer."""
        self._take_in(self._pair.received(completion.number, completion.length))
        self._pair.post_receive(completion.number)
        self._flow.taken()

    def _take_in(self, data: memoryview) -> None:
        while len(data):
            buffer = self._framer.buffer()
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            data = data[count:]
            for frame in self._received(self._framer.received(count)):
                self._frames.append(frame)
                self._backlog += _size_of(frame)
        if self._frames and not self._receiver.done:
            self._wake(self._receiver)

    def _next(self) -> Frame:
        """The first of the frames that came. Those which still lie in receive buffers may take its place."""
        frame = self._frames.popleft()
        self._backlog -= _size_of(frame)
        if self._unread and not self._full():
            self._guarded(self._read_on)
        return frame

    def _read_on(self) -> None:
        while self._unread and not self._full():
            self._read(self._unread.popleft())
        self._pump()

    def _received(self, frames: list[Frame]) -> list[Frame]:
        """What `receive` is to return of these. Raises ProtocolError."""
        return frames

    # Sending

    async def send(self, frame: Frame, payload: Sequence[Part] = ()) -> None:
        rest = self.start_send(frame, payload)
        if rest is not None:
            await rest

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        return self._send_inline(frame, payload)

    def _send_inline(self, frame: Frame, payload: Sequence[Part]) -> Awaitable[None] | None:
        if self._closed:
            raise self._lost()
        item = self._put(frame, payload)
        if self._closed:
            raise self._lost()
        return self._sent(item) if item.parts else None

    def _put(self, frame: Frame, payload: Sequence[Part] = ()) -> Outgoing:
        """Send a frame, or as much of it as can be; the rest when there are credits, which whoever drives sees to."""
        parts = [memoryview(_bytes_of(part) if isinstance(part, FileSlice) else part) for part in payload]
        length = sum([len(part) for part in parts])
        head = encode_head(frame.kind, frame.method, frame.flags, frame.request_id, frame.timeout_ms, frame.body, length)
        item = Outgoing([memoryview(head), *[part for part in parts if len(part)]])
        self._outgoing.append(item)
        self._guarded(self._pump)
        if len(self._outgoing) > OUTGOING_MAX:
            self._close("the peer takes nothing")
        return item

    async def _sent(self, item: Outgoing) -> None:
        waiter = item.waiter = Waiter()
        try:
            await self._until(waiter)
        except BaseException:  # cancelled, or closed already
            if not item.parts:
                raise  # another task's pumping sent all of it meanwhile
            if item.begun:
                self._close("a send was given up half way")
            elif item in self._outgoing:
                self._outgoing.remove(item)
            raise

    def _pump(self) -> None:
        """Post what can be posted, and ring once for all of it. Raises OSError."""
        while self._reads and self._post_transfer(self._reads[0], True):
            self._reads.popleft()
        while self._outgoing:
            item = self._outgoing[0]
            if isinstance(item, Transfer):
                if not self._post_transfer(item, False):
                    break
                self._outgoing.popleft()
            elif not self._post_message():
                break
        post = self._flow.returning()
        if post is not None:
            self._pair.post_message(post, 0)
        self._pair.ring()

    def _post_transfer(self, transfer: Transfer, read: bool) -> bool:
        post = self._flow.read(self._token + 1) if read else self._flow.write(self._token + 1)
        if post is None:
            return False
        self._token += 1
        self._transfers[self._token] = transfer
        self._pair.post_transfer(post, transfer.region, transfer.offset, transfer.remote)
        return True

    def _post_message(self) -> bool:
        """One message with as much as fits of the frames that wait."""
        post = self._flow.message()
        if post is None:
            return False
        buffer = self._pair.sending(post.buffer)
        filled = 0
        while filled < MESSAGE_SIZE and self._outgoing:
            item = self._outgoing[0]
            if isinstance(item, Transfer):
                break
            item.begun = True
            part = item.parts[0]
            count = min(len(part), MESSAGE_SIZE - filled)
            buffer[filled : filled + count] = part[:count]
            filled += count
            if count < len(part):
                item.parts[0] = part[count:]
                continue
            item.parts.pop(0)
            if not item.parts:
                self._outgoing.popleft()
                if item.waiter is not None:
                    self._wake(item.waiter)
        self._pair.post_message(post, filled)
        return True

    # Receiving

    async def receive(self) -> Frame:
        while not self._frames:
            if self._closed:
                raise self._lost()
            waiter = self._receiver = Waiter()
            await self._until(waiter)
        return self._next()

    def ready(self) -> Frame | None:
        return self._next() if self._frames else None

    def any_ready(self) -> bool:
        return bool(self._frames)

    def _allocate(self, frame: Frame) -> memoryview | Sequence[memoryview]:
        return self._buffers.take(frame.payload_length)

    def expose(self, request_id: int, into: memoryview | Sequence[memoryview]) -> None:
        self._exposed[request_id] = into

    async def withdraw(self, request_id: int) -> None:
        self.withdraw_now(request_id)

    def withdraw_now(self, request_id: int) -> bool:
        self._exposed.pop(request_id, None)
        self._framer.abandon(request_id)
        return True

    async def fetch(self, frame: Frame) -> memoryview:
        return frame.payload if frame.payload is not None else memoryview(b"")

    # Closing

    async def aclose(self) -> None:
        if not self._closed and not self._flow.idle:
            await self._linger()
        self._close("closed")

    async def _linger(self) -> None:
        """What was sent before may arrive: a queue pair that is destroyed takes along what the device has not sent yet."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + LINGER_S):
            self._drop_unposted()
            try:
                post = self._flow.last()
                if post is None:
                    return
                self._pair.post_message(post, 0)
                self._pair.ring()
                while not self._closed and not self._flow.idle:
                    waiter = self._idle = Waiter()
                    await self._until(waiter)
            except (OSError, FS3Error):
                return

    def _close(self, reason: str) -> None:
        """The queue pair goes first: from then on the device touches none of the memory that others may use again."""
        if self._closed:
            return
        self._closed = reason or "closed"
        gone = self._pair.destroy()
        self._drop_unposted()
        self._frames.clear()
        self._unread.clear()
        if gone:
            for token in self._flow.destroyed():
                self._transfers.pop(token).over()
            self._forget()
        else:
            logger.error("%s: a queue pair would not be destroyed: its memory is not used again", self.peer)
        self._socket.close()
        for waiter in list(self._waiters):
            self._rouse(waiter)

    def _drop_unposted(self) -> None:
        for item in (*self._outgoing, *self._reads):
            if isinstance(item, Transfer):
                item.over()
        self._outgoing.clear()
        self._reads.clear()

    def _forget(self) -> None:
        """Let go of the memory that was lent: the device does not know of it any more."""

    def _lost(self) -> FS3Error:
        return FS3Error(Code.CONNECTION_LOST, f"connection with {self.peer}: {self._closed}")


def _size_of(frame: Frame) -> int:
    return len(frame.body) + (len(frame.payload) if frame.payload is not None else 0)


def _bytes_of(part: FileSlice) -> bytes:
    data = os.pread(part.fd, part.length, part.offset)
    if len(data) != part.length:
        raise FS3Error(Code.CONNECTION_LOST, f"file ends {part.length - len(data)} bytes before what was to be sent")
    return data
