"""Connections between processes of one host: frames over a Unix socket, bulk data by memory that both share.

A daemon that has a TCP address may be found under a name made of it in the kernel's list of abstract sockets, which exists
once per network namespace: who finds the name there would reach the same daemon by TCP, and who does not uses TCP.

The client owns the memory. A request's frame says where its bulk data lies and where there is room for its reply's; the
server reads and writes there in place of the socket, whose frame then carries 32 bytes (`_REQUEST`). What is small, or for
which there is no slot left, travels inline as it does over TCP.

When a slot may be used again: once the reply came, or the server's word that it is done with a request whose reply nobody
will send (`FLAG_SETTLED`: the handler was cancelled). Whatever becomes of the call, a slot is not free before. When the
connection ends, its memory is never used again, since a handler may still be at work.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from functools import partial

import trio

from ..errors import Code, ConfigError, FS3Error, ProtocolError
from ..wire.frame import FLAG_SHARED, PAYLOAD_SIZE_MAX, Frame, Kind, encode_head
from .base import Connection, FileSlice, Listener, Loan, Part, Transport
from .buffers import BufferPool
from .local_memory import PLACED_SIZE_MAX, SETTLE_S, LocalLoan, OwnMemories, PeerMemories, Process, Ticket
from .registered import Registration, Use
from .shared import POOL_SIZE, PeerMemory, SharedPool
from .tcp import KERNEL_BUFFER_SIZE, PEER_CLOSED, TcpConnection

logger = logging.getLogger("fs3.transport.local")

SHARED_MIN = 32 * 1024
"""Bulk data of this size goes by shared memory: less is faster inline."""

FLAG_SETTLED = 0x4000
"""No reply: the server will not touch this request's memory any more. Also its first word, for request 0, before which no
memory is used. From the client, whose requests have no such flag: it has sent memory that its user registered, or the
server is to forget some; the request's id is the memory's number, the method is one of these two."""
FLAG_PLACED = 0x2000
"""With FLAG_SHARED, in a request: its bulk data is in registered memory. With FLAG_SETTLED: the server has the memory of
this number; it has not if there is a body, which says why."""
ANNOUNCED, FORGET = 1, 2

WITHDRAW_S = 2.0
"""How long a server may take to write to memory that it is about to write to, before its client goes on without it."""

_REQUEST = struct.Struct("<QQQQ")
"""Offset and length of the bulk data, offset and length of the room for the reply's; lengths of 0 for none."""
_REPLY = struct.Struct("<Q")
"""How many bytes stand in the room."""
_HELLO = struct.Struct("<8sI")
_MAGIC = b"fs3local"
_VERSION = 1
_CREDENTIALS = struct.Struct("3i")
_NAME_SIZE_MAX = 107
_BACKLOG = 1024


_PLACING = b"\1"
"""The body of the server's first word, if it can use registered memory."""


class _LocalConnection(TcpConnection):
    """What both sides share."""

    def _slip_in(self, notice: bytes) -> None:
        """Send a frame without payload: at once, or else with whatever leaves next."""
        if not self._sending and not self._kept:
            try:
                if self._socket.send(notice) < len(notice):
                    self._close("it took a part of a frame")
                return
            except BlockingIOError:
                pass
            except OSError:
                return  # it has closed, but what it sent before is to be read all the same
        self._kept.append(notice)
        self._kept_size += len(notice)


class LocalClient(_LocalConnection):
    """The side that owns the memory and sends requests."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        buffers: BufferPool,
        pool: SharedPool,
        memories: OwnMemories,
    ) -> None:
        super().__init__(sock, peer, buffers)
        self._pool = pool
        self.welcome = False  # the server has our memory
        self._lent: dict[int, tuple[int, int, int, int]] = {}  # by request: the slots that the server may touch, as sent
        self._memories = memories
        self._placing = False  # the server knows of registered memory
        self._placed: dict[int, Ticket] = {}  # by request: of those whose bulk data goes by registered memory
        self._process = Process(_credentials(sock)[0])

    @property
    def lent(self) -> int:
        """Requests whose slots the server may still touch."""
        return len(self._lent) + len(self._placed)

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        number = frame.request_id
        use, self.use = self.use, None
        length = sum([len(part) for part in payload]) if payload else 0
        into = self._exposed.get(number)
        room = 0 if into is None else len(into) if isinstance(into, memoryview) else sum([len(part) for part in into])
        room = min(room, PAYLOAD_SIZE_MAX)
        if (length < SHARED_MIN and room < SHARED_MIN) or not self.welcome or frame.kind is not Kind.REQUEST:
            return super().start_send(frame, payload, more)
        flags, where = FLAG_SHARED | FLAG_PLACED, self._place(number, use) if use is not None else b""
        if not where:
            slots = self._lend(number, payload, length, room)
            if slots is None:
                return super().start_send(frame, payload, more)
            flags, where = FLAG_SHARED, _REQUEST.pack(*slots)
        shared = Frame(frame.kind, frame.method, frame.flags | flags, number, frame.timeout_ms, frame.body)
        rest = super().start_send(shared, (where,), more)
        return None if rest is None else self._send_lent(rest, number)

    def _place(self, number: int, use: Use) -> bytes:
        """What to tell the server if it has the registered memory that a request uses; else nothing."""
        if not self._placing or number in self._placed:
            return b""
        found = self._memories.place(use)
        if isinstance(found, tuple):
            self._placed[number] = found[0]
            return found[1]
        for registration in found:
            memory = self._memories.announce(registration)
            if memory:
                registration.holders[self] = partial(self._forget, registration)
                self._slip_in(encode_head(Kind.REQUEST, ANNOUNCED, FLAG_SETTLED, memory, 0, b"", 0))
        return b""

    def _forget(self, registration: Registration) -> None:
        memory = self._memories.forget(registration)
        if memory and not self._closed:
            self._slip_in(encode_head(Kind.REQUEST, FORGET, FLAG_SETTLED, memory, 0, b"", 0))

    def _lend(self, number: int, payload: Sequence[Part], length: int, room: int) -> tuple[int, int, int, int] | None:
        """Take slots for a request and put its bulk data there; None where that cannot be."""
        if number in self._lent or any(type(part) is FileSlice for part in payload):
            return None
        bulk_at = self._pool.take(length) if length else 0
        if bulk_at is None:
            return None
        room_at = self._pool.take(room) if room else 0
        if room_at is None:
            if length:
                self._pool.give_back(bulk_at, length)
            return None
        at = bulk_at
        for part in payload:
            self._pool.view(at, len(part))[:] = part  # type: ignore[assignment]
            at += len(part)
        slots = self._lent[number] = bulk_at, length, room_at, room
        return slots

    async def _send_lent(self, rest: Awaitable[None], number: int) -> None:
        try:
            await rest
        except BaseException:
            if not self._closed:  # given up before the first byte left
                self._give_back(number)
            raise

    def _give_back(self, number: int) -> memoryview | None:
        """The slots of a request are free; returns what was room for its reply."""
        ticket = self._placed.pop(number, None)
        if ticket is not None:
            self._memories.give_back(ticket)
            return None
        slots = self._lent.pop(number, None)
        if slots is None:
            return None
        bulk_at, length, room_at, room = slots
        if length:
            self._pool.give_back(bulk_at, length)
        if not room:
            return None
        self._pool.give_back(room_at, room)
        return self._pool.view(room_at, room)

    def _allocate(self, frame: Frame) -> memoryview | Sequence[memoryview]:
        if frame.flags & FLAG_SHARED:
            return _room_for(frame, _REPLY)
        return super()._allocate(frame)

    def _received(self, frames: list[Frame]) -> list[Frame]:
        answers = []
        for frame in frames:
            if frame.kind is not Kind.REQUEST:
                if frame.flags & FLAG_PLACED and frame.flags & FLAG_SETTLED:
                    self._announced(frame)
                    continue
                ticket = self._placed.get(frame.request_id)
                room = self._give_back(frame.request_id)
                if frame.flags & FLAG_SETTLED:
                    self.welcome = True
                    self._placing = self._placing or frame.body == _PLACING
                    continue
                if frame.flags & FLAG_SHARED and ticket is not None:
                    self._was_placed(frame, ticket)
                elif frame.flags & FLAG_SHARED:
                    self._take(frame, room)
            answers.append(frame)
        return answers

    def _announced(self, frame: Frame) -> None:
        """The server has memory of ours, or will not have it."""
        if not frame.body:
            self._memories.accepted(frame.request_id)
        else:
            reason = frame.body.decode(errors="replace")
            logger.warning("%s does not use registered memory, which costs copies: %s", self.peer, reason)

    def _was_placed(self, frame: Frame, ticket: Ticket) -> None:
        """A reply's bulk data is where its caller wants it."""
        length = _REPLY.unpack(frame.payload)[0] if frame.payload is not None else 0
        if length > sum([end - begin for _, begin, end in ticket.room]):
            raise ProtocolError(f"a reply of {length} bytes in less registered memory")
        frame.payload, frame.payload_length, frame.flags = None, length, frame.flags & ~FLAG_SHARED
        into = self._exposed.get(frame.request_id)
        if into is None:
            frame.payload_length = 0  # its caller has gone
        elif isinstance(into, memoryview):
            frame.payload = into[:length]

    def withdraw_now(self, request_id: int) -> bool:
        super().withdraw_now(request_id)
        ticket = self._placed.get(request_id)
        return ticket is None or not ticket.room

    async def withdraw(self, request_id: int) -> None:
        if self.withdraw_now(request_id):
            return
        ticket = self._placed[request_id]
        ticket.take_back()
        until = trio.current_time() + WITHDRAW_S
        await trio.sleep(SETTLE_S)
        while ticket.written() and request_id in self._placed and not self._process.ended(self._closed):
            if trio.current_time() > until:
                logger.warning("%s stands still, and may yet write to registered memory", self.peer)
                for registration, begin, end in ticket.room:
                    registration.held.append((begin, end, partial(self._let_go, ticket)))
                return
            await trio.sleep(SETTLE_S)

    def _let_go(self, ticket: Ticket) -> bool:
        """Whether the server, which was given up, will not write any more."""
        return not ticket.written() or self._process.ended(self._closed)

    def _close(self, reason: str) -> None:
        super()._close(reason)
        self._pool.close()
        for ticket in self._placed.values():
            ticket.take_back()
        for registration in self._memories.close():
            registration.holders.pop(self, None)

    def _take(self, frame: Frame, room: memoryview | None) -> None:
        """Move a reply's bulk data to where its caller wants it, before anybody may use the slot again."""
        if frame.payload is None or room is None:
            raise ProtocolError("a reply in shared memory that was not asked for")
        (length,) = _REPLY.unpack(frame.payload)
        if length > len(room):
            raise ProtocolError(f"a reply of {length} bytes in {len(room)} of shared memory")
        frame.payload, frame.payload_length, frame.flags = None, length, frame.flags & ~FLAG_SHARED
        into = self._exposed.get(frame.request_id)
        if into is None:
            frame.payload_length = 0  # its caller has gone
        elif isinstance(into, memoryview):
            frame.payload = into[:length]
            frame.payload[:] = room[:length]
        else:
            at = 0
            for buffer in into:
                count = min(len(buffer), length - at)
                buffer[:count] = room[at : at + count]
                at += count


class LocalServer(_LocalConnection):
    """The side that serves requests."""

    def __init__(self, sock: socket.socket, peer: str, buffers: BufferPool) -> None:
        super().__init__(sock, peer, buffers)
        self._memory: PeerMemory | None = None
        self._trusted = False
        self._borrowed: dict[int, memoryview] = {}  # by request, until it is answered or settled: room for its reply
        self._memories: PeerMemories | None = None  # which the client's user registered
        self._loans: dict[int, LocalLoan] = {}  # by request, until it is answered or settled: room there

    async def receive(self) -> Frame:
        if self._memory is None:
            await self._greet()
        return await super().receive()

    async def _greet(self) -> None:
        """Take the client's memory over. Raises CONNECTION_LOST, ProtocolError."""
        while not self._closed:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _HELLO.size, 2)
            except BlockingIOError:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(self._fd)
                continue
            except OSError as error:
                self._close(str(error))
                break
            try:
                if data:
                    self._meet(data, fds)
                    return
                self._close(PEER_CLOSED)
            except (ProtocolError, OSError) as error:
                logger.warning("closed the connection with %s: %s", self.peer, error)
                self._close(str(error))
                raise error if isinstance(error, ProtocolError) else self._lost() from None
            finally:
                for fd in fds:
                    os.close(fd)
        raise self._lost()

    def _meet(self, data: bytes, fds: Sequence[int]) -> None:
        if len(data) != _HELLO.size or len(fds) not in (1, 2) or _HELLO.unpack(data) != (_MAGIC, _VERSION):
            raise ProtocolError("not an fs3 process of this version")
        self._memory = PeerMemory(fds[0])
        # Who may change our files could do worse than to change what we are writing there: nobody else is believed.
        self._trusted = _credentials(self._socket)[1] in (0, os.geteuid())
        if len(fds) > 1:
            self._memories = PeerMemories(os.dup(fds[1]), self._trusted)
        self._notify(0, _PLACING if self._memories is not None else b"")

    def _notify(self, number: int, body: bytes = b"") -> None:
        """Tell of a settled request (or that we are ready)."""
        self._slip_in(encode_head(Kind.REPLY, 0, FLAG_SETTLED, number, 0, body, 0))

    def _allocate(self, frame: Frame) -> memoryview | Sequence[memoryview]:
        if frame.flags & FLAG_SHARED and frame.flags & FLAG_PLACED and frame.payload_length <= PLACED_SIZE_MAX:
            return memoryview(bytearray(frame.payload_length))
        if frame.flags & FLAG_SHARED:
            return _room_for(frame, _REQUEST)
        return super()._allocate(frame)

    def _received(self, frames: list[Frame]) -> list[Frame]:
        heard = 0
        for frame in frames:
            if frame.flags & FLAG_SHARED and frame.flags & FLAG_PLACED:
                self._find(frame)
            elif frame.flags & FLAG_SHARED:
                self._borrow(frame)
            elif frame.flags & FLAG_SETTLED and frame.kind is Kind.REQUEST:
                self._hear(frame)
                heard += 1
        if not heard:
            return frames
        return [frame for frame in frames if not frame.flags & FLAG_SETTLED or frame.kind is not Kind.REQUEST]

    def _hear(self, frame: Frame) -> None:
        """The client has sent memory, or wants it forgotten."""
        if self._memories is None or frame.method not in (ANNOUNCED, FORGET) or not frame.request_id:
            raise ProtocolError("a word of registered memory that makes no sense")
        number = frame.request_id
        if frame.method == FORGET:
            self._memories.forget(number)
            return
        refused = self._memories.take(number)
        if refused:
            logger.info("%s: registered memory cannot be used: %s", self.peer, refused)
        self._slip_in(encode_head(Kind.REPLY, 0, FLAG_SETTLED | FLAG_PLACED, number, 0, refused.encode(), 0))

    def _find(self, frame: Frame) -> None:
        """Get a request's bulk data from registered memory, and find the room for its reply's."""
        number = frame.request_id
        if frame.payload is None or frame.kind is not Kind.REQUEST or self._memories is None or number in self._loans:
            raise ProtocolError("a request in registered memory that makes no sense")
        bulk, room, words = self._memories.find(frame.payload)
        self._loans[number] = LocalLoan(bulk, room, words)
        frame.payload, frame.payload_length = None, bulk.length

    async def fetch(self, frame: Frame) -> memoryview:
        loan = self._loans.get(frame.request_id) if frame.payload is None and frame.payload_length else None
        if loan is not None:
            # Copied here, and not by the client: what is verified and what is stored must be the same, whatever the user
            # does with the memory meanwhile.
            frame.payload = self._buffers.take(frame.payload_length)
            loan.bulk.read(frame.payload)
        elif frame.payload is None and frame.payload_length:
            raise self._lost()
        return await super().fetch(frame)

    def _borrow(self, frame: Frame) -> None:
        """Find a request's bulk data, and the room for its reply's."""
        assert self._memory is not None
        if frame.payload is None or frame.kind is not Kind.REQUEST or frame.request_id in self._borrowed:
            raise ProtocolError("a request in shared memory that makes no sense")
        bulk_at, length, room_at, room = _REQUEST.unpack(frame.payload)
        if length > PAYLOAD_SIZE_MAX or room > PAYLOAD_SIZE_MAX:
            raise ProtocolError(f"{length} bytes and room for {room} in shared memory")
        bulk = self._memory.view(bulk_at, length)
        self._borrowed[frame.request_id] = self._memory.view(room_at, room)
        frame.payload, frame.payload_length = None, length
        if length and self._trusted:
            frame.payload = bulk
        elif length:
            frame.payload = self._buffers.take(length)
            frame.payload[:] = bulk

    def room(self, frame: Frame, size: int) -> memoryview | None:
        room = self._borrowed.get(frame.request_id)
        if room is None or not 0 < size <= len(room):
            return None
        room = self._borrowed[frame.request_id] = room[:size]
        return room

    def lend(self, frame: Frame, size: int) -> Loan | None:
        loan = self._loans.get(frame.request_id)
        return loan if loan is not None and loan.cut(size) else None

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        if frame.kind is not Kind.REQUEST:
            loan = self._loans.pop(frame.request_id, None)
            if loan is not None and payload and frame.kind is Kind.REPLY:
                frame, payload = self._into_loan(loan, frame, payload)
            room = self._borrowed.pop(frame.request_id, None)
            if room is not None and len(payload) == 1 and payload[0] is room:
                frame = Frame(frame.kind, frame.method, frame.flags | FLAG_SHARED, frame.request_id, 0, frame.body)
                payload = (_REPLY.pack(len(room)),)
        return super().start_send(frame, payload, more)

    @staticmethod
    def _into_loan(loan: LocalLoan, frame: Frame, payload: Sequence[Part]) -> tuple[Frame, Sequence[Part]]:
        """Have a reply's bulk data stand in the client's memory, if it does not already; what is to be sent."""
        length = sum([len(part) for part in payload])
        if payload is not loan.views:
            parts = [part for part in payload if not isinstance(part, FileSlice)]
            if length < SHARED_MIN or len(parts) < len(payload) or not loan.fill(parts, length):
                return frame, payload
        return Frame(frame.kind, frame.method, frame.flags | FLAG_SHARED, frame.request_id, 0, frame.body), (
            _REPLY.pack(length),
        )

    def _close(self, reason: str) -> None:
        super()._close(reason)
        self._memory = None  # goes with the last handler that looks at it
        self._borrowed.clear()
        for loan in self._loans.values():
            loan.over = True
        self._loans.clear()
        if self._memories is not None:
            self._memories.close()

    def settle(self, frame: Frame) -> None:
        settled = self._loans.pop(frame.request_id, None) is not None
        settled = self._borrowed.pop(frame.request_id, None) is not None or settled
        if settled and not self._closed:
            self._notify(frame.request_id)


class LocalListener(Listener):
    """Accepts connections of this host's processes. address: the one that clients know."""

    def __init__(self, address: str, buffers: BufferPool) -> None:
        """Raises OSError where the name is taken."""
        self.address = address
        self._buffers = buffers
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._fd = self._socket.fileno()
        try:
            self._socket.bind(_name_of(address))
            self._socket.listen(_BACKLOG)
        except BaseException:
            self._socket.close()
            raise

    async def accept(self) -> Connection:
        while True:
            if self._closed:
                raise FS3Error(Code.CONNECTION_LOST, f"listener {self.address} is closed")
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(self._fd)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    logger.error("%s cannot accept connections: %s", self.address, error.strerror)
                    await trio.sleep(0.1)
            else:
                sock.setblocking(False)
                _size_buffers(sock)
                return LocalServer(sock, f"process {_credentials(sock)[0]} of this host", self._buffers)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._fd)
            self._socket.close()


class LocalTransport(Transport):
    """Addresses `local://name`, which are known on this host only; and those of other transports, as names (see above)."""

    def __init__(self, pool_size: int = POOL_SIZE) -> None:
        self._buffers = BufferPool()
        self._pool_size = pool_size
        self._made = 0

    async def connect(self, address: str) -> Connection:
        _check(address)
        connection = self.find(address)
        if connection is None:
            raise FS3Error(Code.CONNECT_FAILED, f"{address}: nobody listens there")
        return connection

    def find(self, address: str) -> LocalClient | None:
        """A connection with the daemon that is known by this address, if one offers that on this host."""
        name = _name_of(address)
        if len(name) > _NAME_SIZE_MAX:
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if sock.connect_ex(name):
                sock.close()
                return None
            uid = _credentials(sock)[1]
            if uid not in (0, os.geteuid()):  # anybody may take a name
                raise OSError(errno.EPERM, f"it belongs to user {uid}")
            _size_buffers(sock)
            pool = SharedPool(self._pool_size)
            side, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                socket.send_fds(sock, [_HELLO.pack(_MAGIC, _VERSION)], [pool.fd, theirs.fileno()])
            except BaseException:
                side.close()
                raise
            finally:
                pool.close_fd()
                theirs.close()
            return LocalClient(sock, address, self._buffers, pool, OwnMemories(side))
        except OSError as error:
            sock.close()
            reason = error.strerror or error
            logger.info("%s: a process of this host offers shared memory, but it cannot be used: %s", address, reason)
            return None

    async def listen(self, address: str) -> Listener:
        _check(address)
        if address.endswith(":0"):
            self._made += 1
            address = f"{address[:-1]}{os.getpid()}.{self._made}"
        try:
            return self.listen_as(address)
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None

    def listen_as(self, address: str) -> LocalListener:
        """Be found under any address. Raises OSError where its name is taken or too long."""
        return LocalListener(address, self._buffers)


def _check(address: str) -> None:
    if not address.startswith("local://") or len(_name_of(address)) > _NAME_SIZE_MAX:
        raise ConfigError(f"bad address {address!r}: expected local://name, with at most 90 characters")


def _room_for(frame: Frame, layout: struct.Struct) -> memoryview:
    if frame.payload_length != layout.size:
        raise ProtocolError(f"{frame.payload_length} bytes to describe shared memory")
    return memoryview(bytearray(layout.size))


def _name_of(address: str) -> bytes:
    return b"\0fs3 " + address.encode()


def _size_buffers(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER_SIZE)


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group of the other side when it connected."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid
