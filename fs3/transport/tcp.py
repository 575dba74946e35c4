"""Frames over TCP. Bulk data travels inline, behind the frame that it belongs to.

Every send and every receive is tried on the non-blocking socket first; a task waits only when the kernel says so.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Sequence

import trio

from ..checksum import Buffer
from ..errors import Code, ConfigError, FS3Error, ProtocolError
from ..wire.frame import Frame, Framer, Kind, encode_head
from .base import Connection, FileSlice, Listener, Part, Transport
from .buffers import BufferPool

logger = logging.getLogger("fs3.transport.tcp")

_BUFFERS_PER_CALL = 512
"""Buffers handed to one sendmsg; Linux takes 1024."""

_BYTES_PER_TURN = 8 * 1024 * 1024
_BYTES_FOR_FRAME = 64 * 1024
"""A task that receives lets others have a turn after so many bytes, should the socket never block. The work that a frame
makes counts as so many."""

_KEPT_FRAME_MAX = 16 * 1024
_KEPT_SIZE_MAX = 64 * 1024
"""Of frames that wait for others to leave with: of one, payload included, and of all of them."""
_KEPT_FRAMES_MAX = 2
"""Where all of a turn left together, the peer had nothing to do until then, and we nothing until it was done."""

_HEAD_ROOM = 4 * 1024
"""While payloads are awaited that go to many buffers: what comes together with a frame's head has to be parted by us."""

_BACKLOG = 1024
_UNACKNOWLEDGED_MS_MAX = 20_000
KERNEL_BUFFER_SIZE = 2 * 1024 * 1024
"""Of a socket, in each direction: a large payload leaves in one call and arrives in few. What the kernel would choose by
itself starts so small that both sides wake up many times for each MiB."""
_KEEPALIVE_S = 10
_KEEPALIVE_INTERVAL_S = 5
_KEEPALIVE_PROBES = 3

PEER_CLOSED = "closed by the peer"
"""Why a connection is closed, where the peer did that, or ended."""

_EMPTY = memoryview(b"")


class TcpConnection(Connection):
    """One connected socket."""

    gathers = True
    scatters = True

    def __init__(self, sock: socket.socket, peer: str, buffers: BufferPool) -> None:
        self.peer = peer
        self._socket = sock
        self._fd = sock.fileno()
        self._buffers = buffers
        self._framer = Framer(self._allocate)
        self._frames: deque[Frame] = deque()
        self._exposed: dict[int, memoryview | Sequence[memoryview]] = {}
        self._scattered: set[int] = set()  # those of the exposed that are several buffers
        self._drained = True  # the last read took all there was, so the next one would block
        self._taken = 0  # bytes since the last wait
        self._sending = False
        self._kept_frames = 0
        self._kept: list[Buffer] = []  # whole frames that wait for more
        self._kept_size = 0
        self._turns: deque[trio.lowlevel.Task] = deque()  # wait to send, in order; not empty only while _sending
        self._closed = ""  # why, once it is
        if sock.family != socket.AF_UNIX:
            tune(sock)

    # Sending

    async def send(self, frame: Frame, payload: Sequence[Part] = ()) -> None:
        rest = self.start_send(frame, payload)
        if rest is not None:
            await rest

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        if self._closed:
            raise self._lost()
        length = 0
        plain = True
        for part in payload:
            length += len(part)
            if type(part) is FileSlice:
                plain = False
        head = encode_head(frame.kind, frame.method, frame.flags, frame.request_id, frame.timeout_ms, frame.body, length)
        if (more or self._kept) and plain and len(head) + length <= _KEPT_FRAME_MAX:
            self._kept.append(head)
            self._kept.extend([bytes(part) for part in payload])  # type: ignore[arg-type]
            self._kept_size += len(head) + length
            self._kept_frames += 1
            full = self._kept_frames >= _KEPT_FRAMES_MAX or self._kept_size >= _KEPT_SIZE_MAX
            return None if more and not full else self.flush()
        if self._sending:
            return self._send_in_turn(head, payload)
        if self._kept:
            rest = self.flush()
            if rest is not None:
                return self._send_behind(rest, head, payload)
        sent = 0
        if plain and len(payload) < _BUFFERS_PER_CALL:
            try:
                sent = self._socket.sendmsg([head, *payload]) if length else self._socket.send(head)  # type: ignore[list-item]
            except BlockingIOError:
                pass
            except OSError as error:
                self._close(str(error))
                raise self._lost() from None
            if sent == len(head) + length:
                return None
        self._sending = True
        return self._send_rest(head, payload, sent)

    def flush(self) -> Awaitable[None] | None:
        if not self._kept or self._closed:
            return None
        data = self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)
        self._kept.clear()
        self._kept_size = 0
        self._kept_frames = 0
        sent = 0
        if not self._sending:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self._close(str(error))
                raise self._lost() from None
            if sent == len(data):
                return None
            self._sending = True
            return self._or_close(self._send_rest(data, (), sent))
        return self._or_close(self._send_in_turn(data, ()))

    async def _or_close(self, rest: Awaitable[None]) -> None:
        """Frames whose senders have gone on leave soon, or the connection ends: nobody else would notice."""
        try:
            with trio.move_on_after(_UNACKNOWLEDGED_MS_MAX / 1000):
                await rest
                return
        except trio.Cancelled:
            self._close("a send was given up")
            raise
        self._close("the peer takes nothing any more")
        raise self._lost()

    async def _send_behind(self, rest: Awaitable[None], head: Buffer, payload: Sequence[Part]) -> None:
        await rest
        await self._send_in_turn(head, payload)

    async def _send_in_turn(self, head: Buffer, payload: Sequence[Part]) -> None:
        task = trio.lowlevel.current_task()
        if self._sending:
            self._turns.append(task)

            def abort(_: object) -> trio.lowlevel.Abort:
                self._turns.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if self._closed:
            raise self._lost()
        self._sending = True
        await self._send_rest(head, payload, 0)

    async def _send_rest(self, head: Buffer, payload: Sequence[Part], sent: int) -> None:
        """Send all but the first `sent` bytes of head and payload; then the next sender has its turn."""
        total = sent
        try:
            run: list[memoryview] = []
            for part in (head, *payload):
                if isinstance(part, FileSlice):
                    total += await self._send_buffers(run, socket.MSG_MORE, total)
                    run = []
                    total += await self._send_file(part)
                elif sent >= len(part):
                    sent -= len(part)
                else:
                    run.append(memoryview(part)[sent:])
                    sent = 0
            await self._send_buffers(run, 0, total)
        except OSError as error:
            self._close(str(error))
            raise self._lost() from None
        finally:
            self._sending = False
            if self._turns:
                self._sending = True
                trio.lowlevel.reschedule(self._turns.popleft())

    async def _send_buffers(self, run: list[memoryview], flags: int, before: int) -> int:
        """Send the buffers, whole. before: bytes of this frame that left already. Returns how many are sent."""
        done = 0
        at = 0
        while at < len(run):
            try:
                sent = self._socket.sendmsg(run[at : at + _BUFFERS_PER_CALL], (), flags)
            except BlockingIOError:
                await self._writable(before + done > 0)
                continue
            done += sent
            while at < len(run) and sent >= len(run[at]):
                sent -= len(run[at])
                at += 1
            if sent:
                run[at] = run[at][sent:]
        return done

    async def _send_file(self, part: FileSlice) -> int:
        done = 0
        while done < part.length:
            try:
                sent = os.sendfile(self._fd, part.fd, part.offset + done, part.length - done)
            except BlockingIOError:
                await self._writable(True)
                continue
            if sent == 0:
                raise OSError(errno.EIO, f"file ends {part.length - done} bytes before what was to be sent")
            done += sent
        return done

    async def _writable(self, begun: bool) -> None:
        """Wait until the socket takes more. begun: a part of the frame left, so to give up is to close."""
        try:
            await trio.lowlevel.wait_writable(self._fd)
        except trio.ClosedResourceError:
            raise self._lost() from None
        except BaseException:
            if begun:
                self._close("a send was given up half way")
            raise
        if self._closed:
            raise self._lost()

    # Receiving

    async def receive(self) -> Frame:
        if self._frames:
            return self._frames.popleft()
        if self._kept:
            rest = self.flush()
            if rest is not None:
                await rest
        framer = self._framer
        while True:
            if self._closed:
                raise self._lost()
            if self._drained:
                self._taken = 0
                try:
                    await trio.lowlevel.wait_readable(self._fd)
                except trio.ClosedResourceError:
                    raise self._lost() from None
            elif self._taken >= _BYTES_PER_TURN:
                self._taken = 0
                await trio.lowlevel.checkpoint()
                continue
            buffers = framer.buffers()
            try:
                if buffers is None:
                    buffer = framer.buffer(_HEAD_ROOM if self._scattered else None)
                    count, room = self._socket.recv_into(buffer), len(buffer)
                else:
                    count, room = self._socket.recvmsg_into(buffers)[0], sum([len(buffer) for buffer in buffers])
            except BlockingIOError:
                self._drained = True
                continue
            except OSError as error:
                self._close(str(error))
                raise self._lost() from None
            if count == 0:
                self._close(PEER_CLOSED)
                raise self._lost()
            self._drained = count < room
            frames = self._parse(count)
            self._taken += count + len(frames) * _BYTES_FOR_FRAME
            if frames:
                if len(frames) > 1:
                    self._frames.extend(frames[1:])
                return frames[0]

    def fileno(self) -> int:
        return -1 if self._closed else self._fd

    def expect(self) -> None:
        self._drained = False

    def take(self) -> Sequence[Frame]:
        if self._closed:
            raise self._lost()
        try:
            count = self._socket.recv_into(self._framer.buffer())
        except BlockingIOError:
            return ()
        except OSError as error:
            self._close(str(error))
            raise self._lost() from None
        if count == 0:
            self._close(PEER_CLOSED)
            raise self._lost()
        return self._parse(count)

    def ready(self) -> Frame | None:
        return self._frames.popleft() if self._frames else None

    def any_ready(self) -> bool:
        return bool(self._frames)

    def _parse(self, count: int) -> list[Frame]:
        try:
            return self._received(self._framer.received(count))
        except ProtocolError as error:
            if not self._closed:
                logger.warning("closed the connection with %s: %s", self.peer, error.message)
            self._close(error.message)
            raise

    def _received(self, frames: list[Frame]) -> list[Frame]:
        """What `receive` is to return of these. Raises ProtocolError."""
        return frames

    def _allocate(self, frame: Frame) -> memoryview | Sequence[memoryview]:
        if frame.kind is Kind.REPLY:
            into = self._exposed.get(frame.request_id)
            if into is not None:
                room = len(into) if isinstance(into, memoryview) else sum([len(buffer) for buffer in into])
                if room >= frame.payload_length:
                    return into
        return self._buffers.take(frame.payload_length)

    def expose(self, request_id: int, into: memoryview | Sequence[memoryview]) -> None:
        self._exposed[request_id] = into
        if not isinstance(into, memoryview):
            self._scattered.add(request_id)

    async def withdraw(self, request_id: int) -> None:
        self.withdraw_now(request_id)

    def withdraw_now(self, request_id: int) -> bool:
        self._exposed.pop(request_id, None)
        self._scattered.discard(request_id)
        self._framer.abandon(request_id)
        return True

    async def fetch(self, frame: Frame) -> memoryview:
        return frame.payload if frame.payload is not None else _EMPTY

    # Closing

    async def aclose(self) -> None:
        self._close("closed")

    def _close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = reason or "closed"
        self._frames.clear()
        self._kept.clear()
        trio.lowlevel.notify_closing(self._fd)
        self._socket.close()
        for task in self._turns:
            trio.lowlevel.reschedule(task)
        self._turns.clear()

    def _lost(self) -> FS3Error:
        return FS3Error(Code.CONNECTION_LOST, f"connection with {self.peer}: {self._closed}")


class TcpListener(Listener):
    """One listening socket."""

    def __init__(self, sock: socket.socket, buffers: BufferPool) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._buffers = buffers
        self._closed = False
        self.address = _format(sock.getsockname())

    async def accept(self) -> Connection:
        while True:
            if self._closed:
                raise FS3Error(Code.CONNECTION_LOST, f"listener {self.address} is closed")
            try:
                sock, name = self._socket.accept()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(self._fd)
                except trio.ClosedResourceError:
                    pass
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    logger.error("%s cannot accept connections: %s", self.address, error.strerror)
                    await trio.sleep(0.1)
                # Anything else is that one connection's failure, such as ECONNABORTED.
            else:
                sock.setblocking(False)
                return TcpConnection(sock, _format(name), self._buffers)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._fd)
            self._socket.close()


class TcpTransport(Transport):
    """Addresses `tcp://host:port`; an IPv6 address stands in brackets."""

    def __init__(self) -> None:
        self._buffers = BufferPool()

    async def connect(self, address: str) -> Connection:
        return TcpConnection(await self.connect_socket(address), address, self._buffers)

    async def connect_socket(self, address: str) -> socket.socket:
        """A connected socket, non-blocking. Raises as connect does."""
        host, port = split_address(address)
        reason = "no address"
        try:
            candidates = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise FS3Error(Code.CONNECT_FAILED, f"{address}: {error.strerror or error}") from None
        for family, kind, protocol, _, name in candidates:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            _size_buffers(sock)
            try:
                reason = await _connect(sock, name)
                if not reason:
                    return sock
            except BaseException:
                sock.close()
                raise
            sock.close()
        raise FS3Error(Code.CONNECT_FAILED, f"{address}: {reason}")

    async def listen(self, address: str) -> Listener:
        return TcpListener(await self.listen_socket(address), self._buffers)

    async def listen_socket(self, address: str) -> socket.socket:
        """A listening socket, non-blocking. Raises as listen does."""
        host, port = split_address(address)
        try:
            candidates = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, name = candidates[0]
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _size_buffers(sock)
                sock.bind(name)
                sock.listen(_BACKLOG)
                return sock
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None


async def _connect(sock: socket.socket, name: object) -> str:
    """Connect; returns why it failed, or nothing."""
    code = sock.connect_ex(name)  # type: ignore[arg-type]
    if code == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock.fileno())
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        return os.strerror(code)
    # A dead port in the ephemeral range may be drawn as our own: TCP then connects the socket with itself.
    return "nobody listens there" if sock.getsockname() == sock.getpeername() else ""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`. Raises ConfigError."""
    scheme, _, rest = address.partition("://")
    host, separator, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # an IPv6 address without brackets: where its port starts is anybody's guess
    if scheme != "tcp" or not separator or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"bad address {address!r}: expected tcp://host:port, such as tcp://127.0.0.1:7000")
    return host, int(port)


def _format(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = name[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _size_buffers(sock: socket.socket) -> None:
    """Before the connection is made, which fixes how large its window can get; accepted sockets inherit the listener's."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER_SIZE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER_SIZE)


def tune(sock: socket.socket) -> None:
    """Small frames leave at once; a peer that vanished is noticed, idle or not."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS_MAX)
    except OSError as error:
        logger.debug("socket options: %s", error)  # such as a connection that was reset before it was accepted
