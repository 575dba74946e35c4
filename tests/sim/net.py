"""A network in memory, on a virtual clock, with one seed: what the transport port looks like from every host at once.

Addresses are `sim://host:port`. Each direction of a connection keeps its order; different connections overtake each other.
All that moves is one queue of events by (time, number), so that the same seed gives the same run. Nothing is lost inside
a living connection, as with TCP: what a partition holds up arrives after it has healed, or never, when the sender's patience
(`patience_s`) ends before that and the connection breaks.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from fs3.errors import Code, ConfigError, FS3Error
from fs3.transport.base import Connection, FileSlice, Listener, Part, Transport
from fs3.wire.frame import BODY_SIZE_MAX, PAYLOAD_SIZE_MAX, Frame, Kind
from tests.sim.clock import SimClock

CAPACITY = 256 * 1024
"""Bytes that one direction holds before senders wait; a larger frame passes alone."""
_FRAME_COST = 32
_EMPTY = memoryview(b"")
_BACKLOG = 1024


@dataclass(slots=True)
class Weather:
    """How the network behaves. Times in seconds. spike: how likely a message is to take up to latency_spike_s."""

    latency_min_s: float = 0.00005
    latency_mean_s: float = 0.0001
    latency_spike_s: float = 0.02
    spike: float = 0.002
    bytes_per_s: float = 2e9
    patience_min_s: float = 3.0
    patience_max_s: float = 12.0
    connect_timeout_s: float = 3.0


Observer = Callable[[str, str, str, "Frame | None", bytes], None]
"""(what happened, from host, to host, frame, payload); for traces."""


class Way(Protocol):
    """One direction between two hosts, as faults meet it."""

    source: str
    destination: str

    def resume(self) -> None: ...

    def break_now(self, why: str) -> None: ...


class Joined(Protocol):
    """What a process holds at the network, as its death meets it."""

    def unplug(self, silently: bool) -> None: ...


Devices = Callable[["SimTransport", "_SimListener", str], "Connection | None"]
"""(from, to, address): connects two processes by devices that both have; None where one has none."""


class Network:
    """All hosts, links and connections, moved by the clock."""

    def __init__(
        self, clock: SimClock, chance: random.Random, weather: Weather | None = None, observe: Observer | None = None
    ) -> None:
        self.clock = clock
        self.at = clock.at
        self.chance = chance
        self.weather = weather or Weather()
        self.observe = observe
        self.slow: dict[str, float] = {}  # host -> by how much all its messages take longer
        self.messages = 0
        self._blocked: dict[tuple[str, str], int] = {}  # (from, to) -> how many partitions block it
        self.listeners: dict[str, _SimListener] = {}
        self.devices: Devices | None = None
        self._wires: dict[int, Way] = {}  # those of living connections, in order of birth
        self._connections = 0
        self._healed = trio.Event()
        self._ports: dict[str, int] = {}

    def delay_s(self, source: str, destination: str, size: int) -> float:
        """How long a message takes now."""
        weather, chance = self.weather, self.chance
        delay = weather.latency_min_s + chance.expovariate(1 / weather.latency_mean_s) + size / weather.bytes_per_s
        if chance.random() < weather.spike:
            delay += chance.random() * weather.latency_spike_s
        if self.slow:
            delay *= max(self.slow.get(source, 1.0), self.slow.get(destination, 1.0))
        return delay

    # Faults

    def host(self, name: str) -> SimTransport:
        """The transport of one incarnation of a process on a host."""
        return SimTransport(self, name)

    def blocked(self, source: str, destination: str) -> bool:
        return (source, destination) in self._blocked

    def block(self, source: str, destination: str) -> None:
        """Nothing passes in this direction from now on. Counted: what was blocked twice must be unblocked twice."""
        if source != destination:
            self._blocked[source, destination] = self._blocked.get((source, destination), 0) + 1

    def unblock(self, source: str, destination: str) -> None:
        if source == destination:
            return
        left = self._blocked[source, destination] - 1
        if left:
            self._blocked[source, destination] = left
            return
        del self._blocked[source, destination]
        for wire in list(self._wires.values()):
            if (wire.source, wire.destination) == (source, destination):
                wire.resume()
        healed, self._healed = self._healed, trio.Event()
        healed.set()

    async def wait_unblocked(self, source: str, destination: str) -> None:
        while self.blocked(source, destination):
            await self._healed.wait()

    def cut(self, a: str, b: str) -> int:
        """Break every connection between two hosts; returns how many there were."""
        found = [wire for wire in list(self._wires.values()) if (wire.source, wire.destination) in ((a, b), (b, a))]
        for wire in found:
            wire.break_now(f"connection between {a} and {b} was cut")
        return len(found) // 2

    # Connections

    def free_port(self, host: str) -> int:
        self._ports[host] = self._ports.get(host, 0) + 1
        return self._ports[host]

    def patience_s(self) -> float:
        return self.chance.uniform(self.weather.patience_min_s, self.weather.patience_max_s)

    def plug_in(self, way: Way) -> int:
        """Let faults meet it; returns its number."""
        self._connections += 1
        number = 2 * self._connections
        self._wires[number] = way
        return number

    def forget_number(self, number: int) -> None:
        self._wires.pop(number, None)

    def connect(self, transport: SimTransport, listener: _SimListener, address: str) -> Connection:
        by_device = self.devices(transport, listener, address) if self.devices is not None else None
        return by_device or self._connect(transport, listener, address)

    def _connect(self, transport: SimTransport, listener: _SimListener, address: str) -> SimConnection:
        self._connections += 1
        number = self._connections
        here, there = transport.name, listener.transport.name
        out, back = _Wire(self, 2 * number, here, there), _Wire(self, 2 * number + 1, there, here)
        client = SimConnection(self, transport, address, out, back)
        server = SimConnection(self, listener.transport, f"sim://{here}:c{number}", back, out)
        out.receiver, back.receiver = server, client
        out.sender, back.sender = client, server
        self._wires[out.number] = out
        self._wires[back.number] = back
        listener.arrive(server)
        return client

    def forget(self, wire: _Wire) -> None:
        self._wires.pop(wire.number, None)


class _Wire:
    """One direction of a connection.

    A message is on its way (`flying`), then `due` while its link is blocked, then in the receiver's inbox. None: the end.
    """

    __slots__ = (
        "destination",
        "due",
        "ended",
        "flying",
        "inbox",
        "last_at",
        "network",
        "number",
        "receiver",
        "sender",
        "size",
        "source",
        "stalls",
    )
    receiver: SimConnection
    sender: SimConnection

    def __init__(self, network: Network, number: int, source: str, destination: str) -> None:
        self.network = network
        self.number = number
        self.source = source
        self.destination = destination
        self.flying: deque[tuple[Frame, bytes] | None] = deque()
        self.due = 0
        self.inbox: deque[tuple[Frame, bytes]] = deque()
        self.size = 0
        self.last_at = 0.0
        self.ended = False  # the end, or a break, was sent
        self.stalls = 0

    def room(self, size: int) -> bool:
        return not self.size or self.size + size <= CAPACITY

    def put(self, frame: Frame, data: bytes) -> None:
        size = _FRAME_COST + len(frame.body) + len(data)
        self.size += size
        self._launch((frame, data), size)

    def end(self) -> None:
        """Nothing more comes after what was sent."""
        if not self.ended:
            self.ended = True
            self._launch(None, 0)

    def _launch(self, item: tuple[Frame, bytes] | None, size: int) -> None:
        network = self.network
        when = network.clock.now + network.delay_s(self.source, self.destination, size)
        if when < self.last_at:
            when = self.last_at
        self.last_at = when
        self.flying.append(item)
        network.at(when, self._arrive)

    def _arrive(self) -> None:
        if not self.flying:
            return  # it was broken meanwhile
        network = self.network
        if self.due or (network._blocked and network.blocked(self.source, self.destination)):
            self.due += 1
            if self.due == 1:
                self._lose_patience_later()
            return
        self._deliver()

    def _lose_patience_later(self) -> None:
        self.stalls += 1
        stall = self.stalls

        def give_up() -> None:
            if self.due and self.stalls == stall and self.flying[0] is not None:
                self.sender.break_(f"{self.destination} does not answer")
                self.flying.clear()
                self.due = 0
                self.ended = False
                self.end()  # the other side hears of it when it can

        self.network.at(self.network.clock.now + self.network.patience_s(), give_up)

    def resume(self) -> None:
        """The link works again: what is due comes after a moment."""
        if not self.due:
            return
        network = self.network
        self.last_at = max(self.last_at, self.network.clock.now + network.delay_s(self.source, self.destination, 0))
        due, self.due = self.due, 0
        self.stalls += 1
        for _ in range(due):
            network.at(self.last_at, self._arrive)

    def _deliver(self) -> None:
        item = self.flying.popleft()
        network = self.network
        receiver = self.receiver
        if item is None:
            receiver.break_(f"{self.source} closed the connection")
            return
        network.messages += 1
        if network.observe is not None:
            network.observe("message", self.source, self.destination, item[0], item[1])
        if receiver.closed or receiver.transport.unplugged:
            return
        self.inbox.append(item)
        receiver.wake_receiver()

    def break_now(self, why: str) -> None:
        """A cut: part of what is on its way is lost. A payload that was just coming in has filled its buffer in part."""
        if self.flying and self.flying[0] is not None:
            self.receiver.spill(*self.flying[0])
        self.flying.clear()
        self.due = 0
        self.ended = True
        self.sender.break_(why)
        self.receiver.break_(why)


class SimConnection(Connection):
    """One end of a connection."""

    def __init__(self, network: Network, transport: SimTransport, peer: str, outgoing: _Wire, incoming: _Wire) -> None:
        self.peer = peer
        self.transport = transport
        self.closed = False  # by us
        self._network = network
        self._outgoing = outgoing
        self._incoming = incoming
        self._broken = ""
        self._exposed: dict[int, memoryview] = {}
        self._reader: trio.lowlevel.Task | None = None
        self._turn = trio.lowlevel.ParkingLot()
        self._turn_held = False
        self._room = trio.lowlevel.ParkingLot()
        transport.connections[outgoing.number] = self

    # Sending

    async def send(self, frame: Frame, payload: Sequence[Part] = ()) -> None:
        rest = self.start_send(frame, payload)
        if rest is not None:
            await rest
        else:
            await trio.lowlevel.checkpoint()

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        self._check_sending()
        data = self._gather(payload)
        assert len(frame.body) <= BODY_SIZE_MAX and len(data) <= PAYLOAD_SIZE_MAX
        copy = Frame(
            frame.kind, frame.method, frame.flags, frame.request_id, frame.timeout_ms, bytes(frame.body), None, len(data)
        )
        if not self._turn_held and self._outgoing.room(_FRAME_COST + len(copy.body) + len(data)):
            self._outgoing.put(copy, data)
            return None
        return self._send_later(copy, data)

    async def _send_later(self, frame: Frame, data: bytes) -> None:
        if self._turn_held:
            await self._turn.park()  # who leaves hands the turn over
        else:
            self._turn_held = True
        try:
            self._check_sending()
            while not self._outgoing.room(_FRAME_COST + len(frame.body) + len(data)):
                await self._room.park()
                self._check_sending()
            self._outgoing.put(frame, data)
        finally:
            if self._turn:
                self._turn.unpark()
            else:
                self._turn_held = False

    def _gather(self, payload: Sequence[Part]) -> bytes:
        parts = []
        for part in payload:
            if isinstance(part, FileSlice):
                piece = os.pread(part.fd, part.length, part.offset)
                if len(piece) != part.length:
                    self.break_("a file was shorter than what was to be sent")
                    self._outgoing.end()
                    self._check_sending()
                parts.append(piece)
            else:
                parts.append(bytes(part))
        return b"".join(parts)

    def _check_sending(self) -> None:
        if self.closed or self._broken or self.transport.unplugged:
            raise self._lost()

    def _lost(self) -> FS3Error:
        return FS3Error(Code.CONNECTION_LOST, f"connection with {self.peer}: {self._broken or 'closed'}")

    # Receiving

    async def receive(self) -> Frame:
        while not self._incoming.inbox:
            if self.closed or self._broken or self.transport.unplugged:
                raise self._lost()
            assert self._reader is None, "two tasks receive"
            self._reader = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._reader = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if self.closed:
            raise self._lost()
        return self._take()

    def ready(self) -> Frame | None:
        if self.closed or not self._incoming.inbox:
            return None
        return self._take()

    def _take(self) -> Frame:
        frame, data = self._incoming.inbox.popleft()
        self._incoming.size -= _FRAME_COST + len(frame.body) + len(data)
        self._incoming.sender.wake_sender()
        if data:
            into = self._exposed.get(frame.request_id) if frame.kind is Kind.REPLY else None
            if into is None or len(into) < len(data):
                into = memoryview(bytearray(len(data)))
            frame.payload = into[: len(data)]
            frame.payload[:] = data
        return frame

    def spill(self, frame: Frame, data: bytes) -> None:
        """Part of a reply's payload has come in when the connection broke."""
        into = self._exposed.get(frame.request_id) if frame.kind is Kind.REPLY else None
        if into is not None and data and len(into) >= len(data):
            count = self._network.chance.randrange(len(data))
            into[:count] = data[:count]

    def wake_receiver(self) -> None:
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    def wake_sender(self) -> None:
        if self._room:
            self._room.unpark_all()

    def expose(self, request_id: int, into: memoryview | Sequence[memoryview]) -> None:
        assert isinstance(into, memoryview)
        self._exposed[request_id] = into

    async def withdraw(self, request_id: int) -> None:
        self._exposed.pop(request_id, None)

    async def fetch(self, frame: Frame) -> memoryview:
        return frame.payload if frame.payload is not None else _EMPTY

    # Ending

    def break_(self, why: str) -> None:
        """This end is of no use any more; what has arrived can still be received."""
        if not self._broken and not self.closed:
            self._broken = why
            self._ended()

    def _ended(self) -> None:
        self._network.forget(self._incoming)
        self.transport.connections.pop(self._outgoing.number, None)
        self.wake_receiver()
        self._room.unpark_all()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._outgoing.end()
            self._ended()

    def unplug(self, silently: bool) -> None:
        network, wire = self._network, self._outgoing
        kept = network.chance.randint(0, len(wire.flying)) if not silently else 0
        while len(wire.flying) > kept:
            wire.flying.pop()
        wire.due = min(wire.due, len(wire.flying))
        self.closed = True
        self._ended()
        if not silently:
            wire.end()
            return
        wire.ended = True
        peer = wire.receiver
        network.at(network.clock.now + network.patience_s(), lambda: peer.break_("no answer"))


class _SimListener(Listener):
    def __init__(self, transport: SimTransport, address: str) -> None:
        self.address = address
        self.transport = transport
        self._waiting: deque[Connection] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False

    def full(self) -> bool:
        return len(self._waiting) >= _BACKLOG

    def arrive(self, connection: Connection) -> None:
        self._waiting.append(connection)
        self._arrived.unpark()

    async def accept(self) -> Connection:
        while not self._waiting:
            if self._closed:
                raise FS3Error(Code.CONNECTION_LOST, f"listener {self.address} is closed")
            await self._arrived.park()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            listeners = self.transport.network.listeners
            if listeners.get(self.address) is self:
                del listeners[self.address]
            for connection in self._waiting:
                connection.close()  # type: ignore[attr-defined]
            self._waiting.clear()
            self._arrived.unpark_all()


class SimTransport(Transport):
    """The network as one incarnation of a process sees it."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.unplugged = False
        self.connections: dict[int, Joined] = {}

    def unplug(self, *, silently: bool = False) -> None:
        """The process dies: nothing goes out any more, nothing comes in. What it sent before may still arrive, or some
        of it. silently (its host dies too): its peers do not hear of that; they find out by themselves."""
        if self.unplugged:
            return
        self.unplugged = True
        network = self.network
        for listener in [found for found in network.listeners.values() if found.transport is self]:
            listener.close()
        for connection in list(self.connections.values()):
            connection.unplug(silently)

    async def connect(self, address: str) -> Connection:
        host, _ = _split(address)
        network = self.network
        if self.unplugged:
            raise FS3Error(Code.CONNECT_FAILED, f"{address}: no network")
        with trio.move_on_after(network.weather.connect_timeout_s):
            await network.wait_unblocked(self.name, host)
            await trio.sleep(network.delay_s(self.name, host, 0))
            await network.wait_unblocked(host, self.name)
            await trio.sleep(network.delay_s(host, self.name, 0))
            listener = network.listeners.get(address)
            if listener is None or listener.full() or self.unplugged:
                raise FS3Error(Code.CONNECT_FAILED, f"{address}: nobody listens there")
            return network.connect(self, listener, address)
        raise FS3Error(Code.CONNECT_FAILED, f"{address}: no answer")

    async def listen(self, address: str) -> Listener:
        host, port = _split(address)
        if host != self.name or self.unplugged:
            raise ConfigError(f"cannot listen on {address}: this is host {self.name}")
        if port == "0":
            address = f"sim://{host}:{self.network.free_port(host)}"
        if address in self.network.listeners:
            raise ConfigError(f"cannot listen on {address}: Address already in use")
        listener = self.network.listeners[address] = _SimListener(self, address)
        return listener


def _split(address: str) -> tuple[str, str]:
    if not address.startswith("sim://") or ":" not in address[6:]:
        raise ConfigError(f"bad address {address!r}: expected sim://host:port")
    host, _, port = address[6:].rpartition(":")
    return host, port
