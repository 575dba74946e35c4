"""Connections within one process, for tests: the semantics of TCP without its bytes. Buffers are bounded alike."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import trio

from ..errors import Code, ConfigError, FS3Error
from ..wire.frame import BODY_SIZE_MAX, PAYLOAD_SIZE_MAX, Frame, Kind
from .base import Connection, FileSlice, Listener, Part, Transport

CAPACITY = 256 * 1024
"""Bytes that one direction of a connection holds before senders wait; one frame larger than that passes alone."""

_FRAME_COST = 32
_EMPTY = memoryview(b"")


class _Pipe:
    """One direction of a connection: frames on their way, in order."""

    def __init__(self) -> None:
        self._frames: deque[tuple[Frame, bytes]] = deque()
        self._size = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()
        self.closed = False

    async def put(self, frame: Frame, data: bytes) -> None:
        size = _FRAME_COST + len(frame.body) + len(data)
        async with self._turn:
            while self._size and self._size + size > CAPACITY and not self.closed:
                await self._changed.park()
            if not self.closed:
                self._frames.append((frame, data))
                self._size += size
                self._changed.unpark_all()

    async def get(self) -> tuple[Frame, bytes] | None:
        """The next frame; None when there will be none any more."""
        while not self._frames:
            if self.closed:
                return None
            await self._changed.park()
        frame, data = self._frames.popleft()
        self._size -= _FRAME_COST + len(frame.body) + len(data)
        self._changed.unpark_all()
        return frame, data

    def close(self) -> None:
        self.closed = True
        self._changed.unpark_all()


class MemoryConnection(Connection):
    """One end of a pair of pipes."""

    def __init__(self, peer: str, outgoing: _Pipe, incoming: _Pipe) -> None:
        self.peer = peer
        self._outgoing = outgoing
        self._incoming = incoming
        self._exposed: dict[int, memoryview] = {}
        self._closed = False

    async def send(self, frame: Frame, payload: Sequence[Part] = ()) -> None:
        self._check(not self._outgoing.closed)
        data = b"".join([_read(part) if isinstance(part, FileSlice) else bytes(part) for part in payload])
        assert len(frame.body) <= BODY_SIZE_MAX and len(data) <= PAYLOAD_SIZE_MAX
        copy = Frame(
            frame.kind, frame.method, frame.flags, frame.request_id, frame.timeout_ms, bytes(frame.body), None, len(data)
        )
        await self._outgoing.put(copy, data)
        self._check(not self._outgoing.closed)

    async def receive(self) -> Frame:
        self._check(True)
        item = await self._incoming.get()
        self._check(item is not None)
        assert item is not None
        frame, data = item
        if data:
            into = self._exposed.get(frame.request_id) if frame.kind is Kind.REPLY else None
            if into is None or len(into) < len(data):
                into = memoryview(bytearray(len(data)))
            frame.payload = into[: len(data)]
            frame.payload[:] = data
        return frame

    def expose(self, request_id: int, into: memoryview | Sequence[memoryview]) -> None:
        assert isinstance(into, memoryview)
        self._exposed[request_id] = into

    async def withdraw(self, request_id: int) -> None:
        self._exposed.pop(request_id, None)

    async def fetch(self, frame: Frame) -> memoryview:
        return frame.payload if frame.payload is not None else _EMPTY

    async def aclose(self) -> None:
        self._closed = True
        self._outgoing.close()
        self._incoming.close()

    def _check(self, alive: bool) -> None:
        if self._closed or not alive:
            raise FS3Error(Code.CONNECTION_LOST, f"connection with {self.peer}: closed")


class MemoryListener(Listener):
    """Waits for connections under a name."""

    def __init__(self, transport: MemoryTransport, address: str) -> None:
        self.address = address
        self._transport = transport
        self._accepted, self._arrivals = trio.open_memory_channel[MemoryConnection](1024)

    def arrive(self, connection: MemoryConnection) -> None:
        self._accepted.send_nowait(connection)

    async def accept(self) -> Connection:
        try:
            return await self._arrivals.receive()
        except (trio.ClosedResourceError, trio.EndOfChannel):
            raise FS3Error(Code.CONNECTION_LOST, f"listener {self.address} is closed") from None

    async def aclose(self) -> None:
        self._transport.forget(self)
        self._accepted.close()
        # As the kernel does with connections that nobody accepted.
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                await self._arrivals.receive_nowait().aclose()
        self._arrivals.close()


class MemoryTransport(Transport):
    """Addresses `mem://name`, known to this object alone. `mem://name:0` gets a free number."""

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryListener] = {}
        self._connects = 0

    async def connect(self, address: str) -> Connection:
        listener = self._listeners.get(_checked(address))
        if listener is None:
            raise FS3Error(Code.CONNECT_FAILED, f"{address}: nobody listens there")
        there, back = _Pipe(), _Pipe()
        self._connects += 1
        try:
            listener.arrive(MemoryConnection(f"mem://client:{self._connects}", back, there))
        except trio.WouldBlock:
            raise FS3Error(Code.CONNECT_FAILED, f"{address}: too many connections wait to be accepted") from None
        return MemoryConnection(address, there, back)

    async def listen(self, address: str) -> Listener:
        name, _, port = _checked(address).rpartition(":")
        if port == "0":
            number = 1
            while f"{name}:{number}" in self._listeners:
                number += 1
            address = f"{name}:{number}"
        if address in self._listeners:
            raise ConfigError(f"cannot listen on {address}: Address already in use")
        listener = self._listeners[address] = MemoryListener(self, address)
        return listener

    def forget(self, listener: MemoryListener) -> None:
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]


def _checked(address: str) -> str:
    if not address.startswith("mem://") or address == "mem://":
        raise ConfigError(f"bad address {address!r}: expected mem://name")
    return address


def _read(part: FileSlice) -> bytes:
    data = os.pread(part.fd, part.length, part.offset)
    if len(data) != part.length:
        raise FS3Error(Code.CONNECTION_LOST, f"file ends {part.length - len(data)} bytes before what was to be sent")
    return data
