"""Addresses `rdma://host:port`: TCP connections on which both sides agree to use RDMA, if both can.

A process without a device may use such addresses too, and so may one whose peer has none: then the connection that was
made to agree upon RDMA is an ordinary TCP one, which is said once.
"""

from __future__ import annotations

import errno
import logging
import math
import select
import socket
from collections.abc import Callable, Sequence

import trio

from ..errors import Code, ConfigError, FS3Error, ProtocolError
from ..wire.frame import PAYLOAD_SIZE_MAX
from . import rdma_hello
from .base import Connection, Listener, Transport
from .buffers import BufferPool
from .rdma_flow import Limits
from .rdma_hello import Hello
from .rdma_memory import RegisteredMemory
from .rdma_port import Device, QueuePair, Region
from .rdma_roles import RdmaClient, RdmaServer
from .registered import Registered, Registration
from .tcp import TcpConnection, TcpTransport, split_address, tune

logger = logging.getLogger("fs3.transport.rdma")

LIMITS = Limits(receives=64, sends=64, depth=256, reads=16, return_after=16)
POOL_SIZE_MAX = 256 * 1024 * 1024
"""Of registered memory for each device."""
GREETING_S_MAX = 5.0
AVOID_S = 30.0
"""A device that failed is used after the others for so long."""
UNREACHED_S = 60.0
RETRY_S = 0.1
_TRIES = 2
"""How often each device may fail to reach an address before that counts as unreached: its daemon may just have died."""
_WAITING_MAX = 1024
"""Connections that have not said yet what they are."""


class Nic:
    """A device with the memory that is registered with it."""

    def __init__(self, device: Device, size_max: int) -> None:
        self.device = device
        self.memory = RegisteredMemory(device, size_max, min(size_max, PAYLOAD_SIZE_MAX))
        self.failed_at = -math.inf
        self._regions: dict[Registration, Region] = {}

    def pin(self, registration: Registration) -> None:
        """Register a user's memory with the device, if it can be; else its bytes pass through the pool."""
        try:
            self._regions[registration] = self.memory.register(registration.memory)
        except ConfigError as error:
            logger.warning("%s: memory that was registered is copied all the same: %s", self.device.name, error.message)

    def unpin(self, registration: Registration) -> None:
        region = self._regions.pop(registration, None)
        if region is not None:
            self.memory.forget(region)


class _Pinned(Registered):
    """What users registered, at all devices."""

    def __init__(self, transport: RdmaTransport) -> None:
        super().__init__()
        self._transport = transport
        self.all: list[Registration] = []

    def add(self, registration: Registration) -> None:
        super().add(registration)
        self.all.append(registration)
        for nic in self._transport.opened:
            nic.pin(registration)

    def remove(self, registration: Registration) -> None:
        super().remove(registration)
        self.all.remove(registration)
        for nic in self._transport.opened:
            nic.unpin(registration)


class RdmaTransport(Transport):
    """open_devices: returns those to be used; raises ConfigError saying what is missing. Called once, when first
    needed. pool_size_max: bytes of memory registered with each. required: without devices nothing works, since somebody said
    which are to be used; else TCP does. in_turn: all devices serve all connections; else those do that have a connection's
    address, if any has.
    """

    def __init__(
        self,
        open_devices: Callable[[], Sequence[Device]],
        pool_size_max: int = POOL_SIZE_MAX,
        required: bool = False,
        in_turn: bool = False,
    ) -> None:
        self._pool_size_max = pool_size_max
        self._open_devices = open_devices
        self._required = required
        self._in_turn = in_turn
        self._tcp = TcpTransport()
        self.opened: Sequence[Nic] = ()
        self._asked = False
        self._pinned = _Pinned(self)
        self.registered = self._pinned
        self._turn = 0
        self._why = ""  # there are none
        self._told: set[str] = set()
        self._unreached: dict[str, tuple[int, float]] = {}  # address: how often nothing came through, and when last
        self._buffers = BufferPool()

    def nics(self) -> Sequence[Nic]:
        """All of this host; none where something is missing, which is said once, or where some are required raises
        ConfigError."""
        if not self._asked:
            try:
                self.opened = [Nic(device, self._pool_size_max) for device in self._open_devices()]
            except ConfigError as error:
                if self._required:
                    raise
                self._why = error.message
                logger.info("no RDMA on this host, using TCP for addresses rdma://: %s", error.message)
            self._asked = True
            for nic in self.opened:
                for registration in self._pinned.all:
                    nic.pin(registration)
        return self.opened

    def nic(self, local: str = "") -> Nic | None:
        """For a connection from or to this address of the host: the next one's turn, of those whose port is active, and
        which did not fail of late if there are others. None where this host has none."""
        active = [nic for nic in self.nics() if nic.device.active()]
        if not self._in_turn:  # another one's network may be no way to the peer
            active = [nic for nic in active if nic.device.has(local)] or active
        if not active:
            if self.opened:
                self._why = f"no port is active of {', '.join([nic.device.name for nic in self.opened])}"
            return None
        now = trio.current_time()
        healthy = [nic for nic in active if nic.failed_at + AVOID_S < now]
        if not healthy:
            return min(active, key=lambda nic: nic.failed_at)
        self._turn += 1
        return healthy[self._turn % len(healthy)]

    @property
    def why_not(self) -> str:
        """Why this host has no RDMA; empty where it has."""
        return self._why

    async def connect(self, address: str) -> Connection:
        reaches = self._reaches(address)
        sock = await self._tcp.connect_socket(_as_tcp(address))
        try:
            nic = self.nic(_local(sock)) if reaches else None
            if nic is not None:
                connection = await self._introduce(sock, address, nic)
                if connection is not None:
                    return connection
        except BaseException:
            sock.close()
            raise
        return TcpConnection(sock, address, self._buffers)

    def _reaches(self, address: str) -> bool:
        """Whether RDMA is worth trying: not for a while after nothing came through by any device."""
        times, last = self._unreached.get(address, (0, 0.0))
        return times < _TRIES * len(self.nics()) or last + UNREACHED_S < trio.current_time()

    def failed(self, nic: Nic, address: str, worked: bool) -> None:
        """A connection met an error of the device."""
        nic.failed_at = trio.current_time()
        if worked:
            self._unreached.pop(address, None)
            return
        times = self._unreached.get(address, (0, 0.0))[0] + 1
        self._unreached[address] = times, trio.current_time()
        if times == _TRIES * len(self.nics()):
            logger.warning(
                "%s: nothing comes through by RDMA, though both sides have it; using TCP, and trying again in %d s (can the "
                "devices' networks reach each other, and does UDP port 4791 pass?)", address, UNREACHED_S,
            )  # fmt: skip

    async def _introduce(self, sock: socket.socket, address: str, nic: Nic) -> Connection | None:
        """Agree with the server; None where it wants TCP."""
        try:
            pair = self._pair(nic, sock, lends=True)
        except ConfigError as error:
            self._say_once(address, error.message)
            return None
        try:
            hello = await self._ask(sock, Hello(pair.ends, LIMITS))
            if hello.ends is None or hello.limits is None:
                self._say_once(address, hello.reason)
                pair.destroy()
                return None
            _post_receives(pair, hello.limits)
            try:
                pair.connect(hello.ends)
            except OSError:  # other failures may be those of a daemon that ends
                self.failed(nic, address, False)
                raise
        except (OSError, ProtocolError) as error:
            pair.destroy()
            raise FS3Error(Code.CONNECT_FAILED, f"{address}: {error}") from None
        except BaseException:
            pair.destroy()
            raise
        client = RdmaClient(sock, address, pair, (LIMITS, hello.limits), nic.memory)
        client.on_error = lambda worked: self.failed(nic, address, worked)
        return client

    @staticmethod
    def _pair(nic: Nic, sock: socket.socket, lends: bool) -> QueuePair:
        """Raises ConfigError."""
        tune(sock)
        return nic.device.queue_pair(LIMITS, LIMITS.receives + RETURNS_MAX, sock.fileno(), _local(sock), lends)

    def serve(self, sock: socket.socket, peer: str, hello: Hello) -> Connection | str:
        """The server's side: a connection that uses RDMA, or why not. Raises OSError, ProtocolError."""
        nic = self.nic(_local(sock))
        if nic is None:
            return self.why_not
        if hello.ends is None or hello.limits is None:
            return "no ends"
        try:
            pair = self._pair(nic, sock, lends=False)
        except ConfigError as error:
            logger.warning("%s: %s; using TCP", peer, error.message)
            return error.message
        try:
            _post_receives(pair, hello.limits)
            try:
                pair.connect(hello.ends)
            except OSError as error:  # there may be no way to that end
                logger.warning("%s: %s; using TCP", peer, error)
                pair.destroy()
                return f"{nic.device.name}: {error}"
            sock.send(rdma_hello.encode(Hello(pair.ends, LIMITS)))
        except BaseException:
            pair.destroy()
            raise
        server = RdmaServer(sock, peer, pair, (LIMITS, hello.limits), nic.memory)
        server.on_error = lambda worked: self.failed(nic, peer, True)
        return server

    async def _ask(self, sock: socket.socket, ours: Hello) -> Hello:
        """Raises OSError, ProtocolError."""
        sock.send(rdma_hello.encode(ours))  # it is the first, and small
        data = b""
        with trio.move_on_after(GREETING_S_MAX):
            while True:
                await trio.lowlevel.wait_readable(sock.fileno())
                wanted = (rdma_hello.size_of(data) if data else None) or rdma_hello.HEAD_SIZE
                more = sock.recv(wanted - len(data))
                if not more:
                    raise OSError("closed by the peer, which may not know of RDMA")
                data += more
                if len(data) == rdma_hello.size_of(data):
                    return rdma_hello.decode(data)
        raise OSError("no answer to the question for RDMA")

    def _say_once(self, address: str, reason: str) -> None:
        if address not in self._told:
            self._told.add(address)
            logger.info("%s: no RDMA there, using TCP: %s", address, reason)

    async def listen(self, address: str) -> Listener:
        self.nics()  # says what is missing when it starts, not when the first client comes
        return RdmaListener(await self._tcp.listen_socket(_as_tcp(address)), self, self._buffers)


RETURNS_MAX = 64
"""Receives that are kept for the peer's empty messages: its limits are not known yet when they are made."""


def _local(sock: socket.socket) -> str:
    return str(sock.getsockname()[0])


def _post_receives(pair: QueuePair, theirs: Limits) -> None:
    if theirs.returns > RETURNS_MAX:
        raise ProtocolError(f"the peer may return credits in {theirs.returns} messages, of at most {RETURNS_MAX}")
    for index in range(LIMITS.receives + theirs.returns):
        pair.post_receive(index)


class RdmaListener(Listener):
    """Accepts connections once they have said what they are: a hello, or a frame's first bytes."""

    def __init__(self, sock: socket.socket, transport: RdmaTransport, buffers: BufferPool) -> None:
        host, port = sock.getsockname()[:2]
        self.address = f"rdma://[{host}]:{port}" if ":" in host else f"rdma://{host}:{port}"
        self._socket = sock
        self._transport = transport
        self._buffers = buffers
        self._epoll = select.epoll()
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._waiting: dict[int, tuple[socket.socket, str, float]] = {}  # by descriptor: and until when
        self._closed = False

    async def accept(self) -> Connection:
        while True:
            if self._closed:
                raise FS3Error(Code.CONNECTION_LOST, f"listener {self.address} is closed")
            for fd, events in self._epoll.poll(0):
                if fd == self._socket.fileno():
                    if not self._take():
                        await trio.sleep(RETRY_S)
                    continue
                connection = self._look(fd, bool(events & select.EPOLLRDHUP))
                if connection is not None:
                    return connection
            self._drop_silent()
            with trio.move_on_after(GREETING_S_MAX if self._waiting else float("inf")):
                try:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                except trio.ClosedResourceError:
                    pass

    def _take(self) -> bool:
        """Take a connection in. False where there is no room for one now."""
        try:
            sock, name = self._socket.accept()
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                return True  # that one connection's failure
            logger.error("%s cannot accept connections: %s", self.address, error.strerror)
            return False
        sock.setblocking(False)
        if len(self._waiting) >= _WAITING_MAX:
            sock.close()
            return True
        self._waiting[sock.fileno()] = sock, f"tcp://{name[0]}:{name[1]}", trio.current_time() + GREETING_S_MAX
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        return True

    def _drop_silent(self) -> None:
        """A plain TCP client may take its time, but not a place that another one needs."""
        now = trio.current_time()
        for fd, (sock, peer, until) in list(self._waiting.items()):
            if until <= now:
                logger.debug("%s said nothing", peer)
                self._leave(fd)
                sock.close()

    def _leave(self, fd: int) -> tuple[socket.socket, str]:
        sock, peer, _ = self._waiting.pop(fd)
        self._epoll.unregister(fd)
        return sock, peer

    def _look(self, fd: int, ended: bool) -> Connection | None:
        """What became of a connection that said something; None where it is not complete, or was no use. ended: it will say
        nothing more."""
        sock, peer, _ = self._waiting[fd]
        try:
            data = sock.recv(rdma_hello.HEAD_SIZE + rdma_hello.HELLO_SIZE_MAX, socket.MSG_PEEK)
            if not data:
                raise OSError("closed by the peer")
            try:
                size = rdma_hello.size_of(data)
            except ProtocolError:
                self._leave(fd)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                return TcpConnection(sock, peer, self._buffers)
            if size is None or len(data) < size:
                if ended:
                    raise OSError("closed by the peer in the middle of its hello")
                # What came stays where it is: be woken when there is more than that.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)
                return None
            self._leave(fd)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            sock.recv(size)
            return self._agree(sock, peer, rdma_hello.decode(data[:size]))
        except (OSError, ProtocolError) as error:
            logger.debug("%s: %s", peer, error)
            if fd in self._waiting:
                self._leave(fd)
            sock.close()
            return None

    def _agree(self, sock: socket.socket, peer: str, hello: Hello) -> Connection:
        """Raises OSError, ProtocolError."""
        made = self._transport.serve(sock, peer.replace("tcp://", "rdma://"), hello)
        if isinstance(made, Connection):
            return made
        sock.send(rdma_hello.encode(Hello(None, None, made)))
        return TcpConnection(sock, peer, self._buffers)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._epoll.fileno())
        self._epoll.close()
        for sock, _, _ in self._waiting.values():
            sock.close()
        self._waiting.clear()
        self._socket.close()


def _as_tcp(address: str) -> str:
    scheme, _, rest = address.partition("://")
    if scheme != "rdma":
        raise ConfigError(f"bad address {address!r}: expected rdma://host:port")
    split_address(f"tcp://{rest}")
    return f"tcp://{rest}"
