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

import trio

from ..errors import Code, ConfigError, FS3Error, ProtocolError
from ..wire.frame import FLAG_SHARED, PAYLOAD_SIZE_MAX, Frame, Kind, encode_head
from .base import Connection, FileSlice, Listener, Part, Transport
from .buffers import BufferPool
from .shared import POOL_SIZE, PeerMemory, SharedPool
from .tcp import KERNEL_BUFFER_SIZE, TcpConnection

logger = logging.getLogger("fs3.transport.local")

SHARED_MIN = 32 * 1024
"""Bulk data of this size goes by shared memory: less is faster inline."""

FLAG_SETTLED = 0x4000
"""No reply: the server will not touch this request's memory any more. Also its first word, for request 0, before which no
memory is used."""

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


class LocalClient(TcpConnection):
    """The side that owns the memory and sends requests."""

    def __init__(self, sock: socket.socket, peer: str, buffers: BufferPool, pool: SharedPool) -> None:
        super().__init__(sock, peer, buffers)
        self._pool = pool
        self.welcome = False  # the server has our memory
        self._lent: dict[int, tuple[int, int, int, int]] = {}  # by request: the slots that the server may touch, as sent

    @property
    def lent(self) -> int:
        """Requests whose slots the server may still touch."""
        return len(self._lent)

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        number = frame.request_id
        length = sum([len(part) for part in payload]) if payload else 0
        into = self._exposed.get(number)
        room = 0 if into is None else len(into) if isinstance(into, memoryview) else sum([len(part) for part in into])
        room = min(room, PAYLOAD_SIZE_MAX)
        if (length < SHARED_MIN and room < SHARED_MIN) or not self.welcome or frame.kind is not Kind.REQUEST:
            return super().start_send(frame, payload, more)
        slots = self._lend(number, payload, length, room)
        if slots is None:
            return super().start_send(frame, payload, more)
        shared = Frame(frame.kind, frame.method, frame.flags | FLAG_SHARED, number, frame.timeout_ms, frame.body)
        rest = super().start_send(shared, (_REQUEST.pack(*slots),), more)
        return None if rest is None else self._send_lent(rest, number)

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
                room = self._give_back(frame.request_id)
                if frame.flags & FLAG_SETTLED:
                    self.welcome = True
                    continue
                if frame.flags & FLAG_SHARED:
                    self._take(frame, room)
            answers.append(frame)
        return answers

    def _close(self, reason: str) -> None:
        super()._close(reason)
        self._pool.close()

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


class LocalServer(TcpConnection):
    """The side that serves requests."""

    def __init__(self, sock: socket.socket, peer: str, buffers: BufferPool) -> None:
        super().__init__(sock, peer, buffers)
        self._memory: PeerMemory | None = None
        self._trusted = False
        self._borrowed: dict[int, memoryview] = {}  # by request, until it is answered or settled: room for its reply

    async def receive(self) -> Frame:
        if self._memory is None:
            await self._greet()
        return await super().receive()

    async def _greet(self) -> None:
        """Take the client's memory over. Raises CONNECTION_LOST, ProtocolError."""
        while not self._closed:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _HELLO.size, 1)
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
                self._close("closed by the peer")
            except (ProtocolError, OSError) as error:
                logger.warning("closed the connection with %s: %s", self.peer, error)
                self._close(str(error))
                raise error if isinstance(error, ProtocolError) else self._lost() from None
            finally:
                for fd in fds:
                    os.close(fd)
        raise self._lost()

    def _meet(self, data: bytes, fds: Sequence[int]) -> None:
        if len(data) != _HELLO.size or len(fds) != 1 or _HELLO.unpack(data) != (_MAGIC, _VERSION):
            raise ProtocolError("not an fs3 process of this version")
        self._memory = PeerMemory(fds[0])
        # Who may change our files could do worse than to change what we are writing there: nobody else is believed.
        self._trusted = _credentials(self._socket)[1] in (0, os.geteuid())
        self._notify(0)

    def _notify(self, number: int) -> None:
        """Tell of a settled request (or that we are ready): at once, or else with whatever leaves next."""
        notice = encode_head(Kind.REPLY, 0, FLAG_SETTLED, number, 0, b"", 0)
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

    def _allocate(self, frame: Frame) -> memoryview | Sequence[memoryview]:
        if frame.flags & FLAG_SHARED:
            return _room_for(frame, _REQUEST)
        return super()._allocate(frame)

    def _received(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            if frame.flags & FLAG_SHARED:
                self._borrow(frame)
        return frames

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

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        if frame.kind is not Kind.REQUEST:
            room = self._borrowed.pop(frame.request_id, None)
            if room is not None and len(payload) == 1 and payload[0] is room:
                frame = Frame(frame.kind, frame.method, frame.flags | FLAG_SHARED, frame.request_id, 0, frame.body)
                payload = (_REPLY.pack(len(room)),)
        return super().start_send(frame, payload, more)

    def _close(self, reason: str) -> None:
        super()._close(reason)
        self._memory = None  # goes with the last handler that looks at it
        self._borrowed.clear()

    def settle(self, frame: Frame) -> None:
        if self._borrowed.pop(frame.request_id, None) is not None and not self._closed:
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
            try:
                socket.send_fds(sock, [_HELLO.pack(_MAGIC, _VERSION)], [pool.fd])
            finally:
                pool.close_fd()
            return LocalClient(sock, address, self._buffers, pool)
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
