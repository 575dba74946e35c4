"""The product's RDMA connections inside the simulator: what two processes use that both have a device."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

from fs3.transport import rdma_hello, rdma_roles
from fs3.transport.base import Connection, Part
from fs3.transport.rdma_flow import Limits
from fs3.transport.rdma_hello import Hello
from fs3.transport.rdma_roles import FLAG_SETTLED, RdmaClient, RdmaServer
from fs3.wire.frame import Frame
from tests.sim.cables import Cable
from tests.sim.net import Network, SimTransport, _SimListener
from tests.sim.nic import SimNic, SimPair, SimRegion

LIMITS = (
    Limits(receives=4, sends=3, depth=8, reads=2, return_after=2),
    Limits(receives=2, sends=2, depth=4, reads=1, return_after=1),
    Limits(receives=16, sends=16, depth=64, reads=8, return_after=4),
    Limits(receives=64, sends=64, depth=256, reads=16, return_after=16),
)
POOLS = (1024 * 1024, 128 * 1024, 16 * 1024)
BULK_MIN = 256
LACKS = 0.15
"""How likely a host has no device."""
REGISTERS = 0.4
"""How likely a caller's buffer is registered memory."""


class SimSocket:
    """What is left of the socket over which a connection was agreed upon."""

    def __init__(self, cable: Cable) -> None:
        self.pair: SimPair | None = None
        self.peer: SimSocket | None = None
        self._cable = cable
        self._closed = False

    def recv(self, size: int, /) -> bytes:
        assert self.pair is not None
        if self.pair.ended:
            return b""
        raise BlockingIOError

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._cable.put(self._tell, 0)
            self._cable.unplug()

    def _tell(self) -> None:
        assert self.peer is not None and self.peer.pair is not None
        self.peer.pair.end()


class SimClient(RdmaClient):
    """Some of the buffers that it is to fill, or to send, are memory which their users registered."""

    link: Link
    chance: Random

    def expose(self, request_id: int, into: memoryview | Sequence[memoryview]) -> None:
        if isinstance(into, memoryview):
            self._register(request_id, into)
        super().expose(request_id, into)

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        for part in payload:
            if isinstance(part, bytearray):
                self._register(frame.request_id, memoryview(part))
        return super().start_send(frame, payload, more)

    def _register(self, request_id: int, view: memoryview) -> None:
        if len(view) >= BULK_MIN and self.chance.random() < REGISTERS:
            region = self.memory.register(view)
            assert isinstance(region, SimRegion)
            self.link.registered.setdefault(request_id, []).append(region)

    def withdraw_now(self, request_id: int) -> bool:
        free = super().withdraw_now(request_id)
        if free:
            self._user_has(request_id)
        return free

    async def withdraw(self, request_id: int) -> None:
        await super().withdraw(request_id)
        self._user_has(request_id)

    def _user_has(self, request_id: int) -> None:
        for region in self.link.registered.pop(request_id, ()):
            region.over = True
            self.memory.forget(region)

    def _received(self, frames: list[Frame]) -> list[Frame]:
        self.link.observe(frames, self.link.there, self.link.here)
        return super()._received(frames)

    def close(self) -> None:
        self._close("closed")


class SimServer(RdmaServer):
    link: Link

    def _received(self, frames: list[Frame]) -> list[Frame]:
        self.link.observe(frames, self.link.here, self.link.there)
        return super()._received(frames)

    def close(self) -> None:
        self._close("closed")


class Link:
    """A connection as the network has it: two queue pairs, two sockets, and the cables between them."""

    def __init__(self, network: Network, client: SimTransport, server: SimTransport) -> None:
        self.network = network
        self.here = client.name
        self.there = server.name
        self.registered: dict[int, list[SimRegion]] = {}

    def observe(self, frames: list[Frame], source: str, destination: str) -> None:
        for frame in frames:
            if frame.flags & FLAG_SETTLED:
                continue
            self.network.messages += 1
            if self.network.observe is not None:
                data = bytes(frame.payload) if frame.payload is not None else b""
                self.network.observe("message", source, destination, frame, data)


class _End:
    """What a process holds of a link, as its death meets it."""

    def __init__(self, pair: SimPair, sock: SimSocket, cables: tuple[Cable, Cable]) -> None:
        self._pair = pair
        self._sock = sock
        self._cables = cables

    def unplug(self, silently: bool) -> None:
        """The kernel destroys the queue pair, and closes the socket."""
        for cable in self._cables:
            if silently:
                cable.lose()
            else:
                cable.lose_some()
        self._pair.destroy()
        if not silently:
            self._sock.close()
            return
        peer = self._sock.peer
        assert peer is not None and peer.pair is not None
        network = self._pair.nic.network
        network.at(network.clock.now + network.patience_s(), peer.pair.end)  # nothing answers, not even to nothing


class Fabric:
    """Gives processes devices, and connects those that have one."""

    def __init__(self, network: Network, seed: str, workload: str) -> None:
        self._network = network
        self._chance = Random(f"{seed}/rdma")
        self._lacks = LACKS if workload != "wires" else 0.0
        self.limits = self._chance.choice(LIMITS)
        self._pool = self._chance.choice(POOLS)
        self.nics: dict[SimTransport, SimNic | None] = {}
        network.devices = self.connect

    def nic(self, transport: SimTransport) -> SimNic | None:
        if transport not in self.nics:
            has = self._chance.random() >= self._lacks
            chance = Random(self._chance.random())
            self.nics[transport] = SimNic(self._network, transport, chance, self._pool) if has else None
        return self.nics[transport]

    def connect(self, transport: SimTransport, listener: _SimListener, address: str) -> Connection | None:
        ours, theirs = self.nic(transport), self.nic(listener.transport)
        if ours is None or theirs is None:
            return None
        limits = self.limits
        here = ours.queue_pair(limits, limits.receives + limits.returns, -1, "", True)
        there = theirs.queue_pair(limits, limits.receives + limits.returns, -1, "", False)
        link = Link(self._network, transport, listener.transport)
        socks = self._plug(here, there, transport.name, listener.transport.name)
        for pair, peer in ((here, there), (there, here)):
            hello = rdma_hello.decode(rdma_hello.encode(Hello(peer.ends, limits)))
            assert hello.ends == peer.ends and hello.limits == limits
            for index in range(limits.receives + limits.returns):
                pair.post_receive(index)
            pair.connect(hello.ends)
        client = SimClient(socks[0], address, here, (limits, limits), ours.memory)
        client.link, client.chance = link, ours.chance
        server = SimServer(socks[1], f"sim://{transport.name}:r{there.number}", there, (limits, limits), theirs.memory)
        server.link = link
        self._hold(transport, here, socks[0])
        self._hold(listener.transport, there, socks[1])
        listener.arrive(server)
        return client

    def _plug(self, here: SimPair, there: SimPair, client: str, server: str) -> tuple[SimSocket, SimSocket]:
        network = self._network
        here.peer, there.peer = there, here
        here.cable = Cable(network, client, server, lambda why: here.fail(why))
        there.cable = Cable(network, server, client, lambda why: there.fail(why))
        socks = []
        for source, destination, peer in ((client, server, there), (server, client, here)):
            socks.append(SimSocket(Cable(network, source, destination, lambda why, peer=peer: peer.end())))  # type: ignore[misc]
        ours, theirs = socks
        ours.pair, theirs.pair = here, there
        ours.peer, theirs.peer = theirs, ours
        return ours, theirs

    @staticmethod
    def _hold(transport: SimTransport, pair: SimPair, sock: SimSocket) -> None:
        assert pair.cable is not None
        end = _End(pair, sock, (pair.cable, sock._cable))
        number = pair.cable.number
        transport.connections[number] = end
        pair.when_destroyed = lambda: transport.connections.pop(number, None)


@contextmanager
def small_bulk() -> Iterator[None]:
    """While this lasts, also small bulk data goes one-sided."""
    before = rdma_roles.BULK_MIN
    rdma_roles.BULK_MIN = BULK_MIN
    try:
        yield
    finally:
        rdma_roles.BULK_MIN = before
