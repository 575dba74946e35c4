"""An RDMA device in the simulator: queue pairs over the simulated network, and memory of which it is known who may touch it.

It is as unkind as real ones may be. What a work request reads or writes is read and written later, in pieces, as the
device gets to it. Completions come late and in batches. A peer that is gone is noticed by the sender's patience alone. And
what is on its way is written into memory until the queue pair that it is for was destroyed, whatever else has ended since.

What must never happen ends the simulation: a message without a receive, a buffer that is used while the device has it, more
work requests than the queue holds, and above all a piece of a transfer that meets memory which is no more, or not yet
again, that of the request which it belongs to.
"""

from __future__ import annotations

import ctypes
import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from fs3.errors import ConfigError
from fs3.transport.rdma_flow import Limits, Post, Work
from fs3.transport.rdma_memory import RegisteredMemory, Slot
from fs3.transport.rdma_port import MESSAGE_SIZE, Completion, Device, Ends, QueuePair, Region, Remote
from tests.sim.cables import Cable
from tests.sim.failure import SimulationError
from tests.sim.net import Network, SimTransport

REGION_SIZE = 256 * 1024
INLINE_MAX = 128
_HEADER = 64
_PAGE = 4096


class SimRegion(Region):
    """over: a user's buffer is the user's alone again, though it is still registered."""

    def __init__(self, nic: SimNic, memory: Any, users: bool) -> None:
        self.view = memoryview(memory).cast("B")
        self.address = nic.address_of(self.view) if users else nic.free_address(len(self.view))
        self.key = nic.free_number()
        nic.forget_stranger()
        self.users = users
        self.over = False
        self.slots: list[LeasedSlot] = []
        self._nic = nic
        nic.regions[self.key] = self

    def close(self) -> None:
        self._nic.regions.pop(self.key, None)

    def holder(self, offset: int, length: int) -> LeasedSlot | SimRegion | None:
        """Whose these bytes are now."""
        if self.users:
            return self
        for slot in self.slots:
            if slot.offset <= offset and offset + length <= slot.offset + slot.length:
                return slot
        return None


class LeasedSlot(Slot):
    """A slot that nobody can take for another one: its peers know it by an address which no other has ever had."""

    __slots__ = ("address",)

    def __init__(self, region: SimRegion, offset: int, length: int, free: Callable[[], None], address: int) -> None:
        super().__init__(region, offset, length, free)
        self.address = address

    @property
    def remote(self) -> Remote:
        return Remote(self.address, self.length, self.region.key)


class WatchedMemory(RegisteredMemory):
    """Tells the device who holds which of its memory."""

    def make(self, region: Region, offset: int, length: int, free: Callable[[], None]) -> Slot:
        assert isinstance(region, SimRegion) and isinstance(self.device, SimNic)
        nic, slots = self.device, region.slots

        def freed() -> None:
            slots.remove(slot)
            del nic.leases[slot.address]
            free()

        slot = LeasedSlot(region, offset, length, freed, nic.free_address(length))
        slots.append(slot)
        nic.leases[slot.address] = slot
        return slot


def still(holder: LeasedSlot | SimRegion) -> bool:
    """Whether bytes are still of him whom they were of."""
    return holder.users > 0 if isinstance(holder, LeasedSlot) else not holder.over


class SimNic(Device):
    """Of one incarnation of a process. chance: of what it does. pool: bytes."""

    def __init__(self, network: Network, transport: SimTransport, chance: Random, pool: int) -> None:
        self.name = f"sim-{transport.name}"
        self.network = network
        self.transport = transport
        self.chance = chance
        self.memory = WatchedMemory(self, pool, min(pool, REGION_SIZE))
        self.regions: dict[int, SimRegion] = {}
        self.leases: dict[int, LeasedSlot] = {}
        self.pairs: dict[int, SimPair] = {}
        self.transfers = 0
        self._address = _PAGE
        self._stranger = 0, 0, 0  # of what is not registered (yet) the real address, the length, and how we call it
        self._numbers = 0

    @property
    def registered(self) -> list[SimRegion]:
        """Buffers of users."""
        return [region for region in self.regions.values() if region.users]

    def free_address(self, size: int) -> int:
        address = self._address
        self._address += (size // _PAGE + 2) * _PAGE
        return address

    def free_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def allocate(self, size: int) -> SimRegion:
        if self.transport.unplugged:
            raise ConfigError("no device")
        return SimRegion(self, bytearray(size), False)

    def register(self, memory: Any) -> SimRegion:
        return SimRegion(self, memory, True)

    def address_of(self, view: memoryview) -> int:
        """Real addresses stay inside: no run has the same ones."""
        address = _real(view)
        for region in self.regions.values():
            if region.users and not region.over:
                offset = address - _real(region.view)
                if 0 <= offset < len(region.view):
                    return region.address + offset
        if self._stranger[:2] != (address, len(view)):
            self._stranger = address, len(view), self.free_address(len(view))
        return self._stranger[2]

    def forget_stranger(self) -> None:
        self._stranger = 0, 0, 0

    def active(self) -> bool:
        return True

    def queue_pair(self, ours: Limits, receives: int, fd: int, local: str, lends: bool) -> SimPair:
        number = self.free_number()
        pair = self.pairs[number] = SimPair(self, number, ours, receives, lends)
        return pair

    def must(self, holds: bool, what: str) -> None:
        """Else the simulation ends, whoever it is that would catch what is raised."""
        if not holds:
            error = SimulationError(f"{self.name}: {what}")
            if self.network.clock.failed is not None:
                self.network.clock.failed(error)
            raise error

    def named(self, request: _Request) -> tuple[LeasedSlot | SimRegion, memoryview]:
        """What a peer names. It must be there, and lent: nobody here names what is not his."""
        remote = request.remote
        assert remote is not None
        work = request.post.work.value
        region = self.regions.get(remote.key)
        self.must(region is not None, f"a {work} of memory that is not registered any more")
        assert region is not None
        holder: LeasedSlot | SimRegion | None = region if region.users else None
        begin, at = region.address, 0
        if not region.users:
            slot = holder = self.leases.get(remote.address)
            self.must(slot is not None, f"a {work} meets memory that was given back")
            assert slot is not None
            begin, at = slot.address, slot.offset
        assert holder is not None
        self.must(still(holder) or request.post.work is Work.READ, f"a {work} meets a buffer that its user has again")
        at += remote.address - begin
        return holder, region.view[at : at + remote.length]


def _real(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@dataclass(slots=True)
class _Request:
    """A work request. data: of a message that was handed over by value. holder: of the local memory of a transfer."""

    post: Post
    length: int
    data: bytes | None = None
    region: SimRegion | None = None
    offset: int = 0
    remote: Remote | None = None
    holder: LeasedSlot | SimRegion | None = None
    done: bool = False


class SimPair(QueuePair):
    """lends: whether the peer may touch registered memory through it."""

    def __init__(self, nic: SimNic, number: int, ours: Limits, receives: int, lends: bool) -> None:
        self.nic = nic
        self.number = number
        self.lends = lends
        self.destroyed = False
        self.failed = ""
        self.peer: SimPair | None = None
        self.cable: Cable | None = None
        self.ended = False  # the socket
        self.when_destroyed: Callable[[], object] = lambda: None
        self.ends = Ends(number, nic.chance.randrange(1 << 24), "0000:" * 7 + "0001", 5, 0)
        self.receives_of: deque[int] = deque()  # posted, in order
        self._depth = ours.depth
        self._sends = [bytearray(MESSAGE_SIZE) for _ in range(ours.sends)]
        self._receives = [bytearray(MESSAGE_SIZE) for _ in range(receives)]
        self._sending: set[int] = set()  # send buffers that the device has
        self._not_rung: list[_Request] = []
        self._queue: deque[_Request] = deque()  # not begun
        self._under_way: deque[_Request] = deque()  # begun, and of those that are done no completion may tell yet
        self._unknown = 0  # work requests of which nobody was told that they are done
        self._told = 0
        self._working = False
        self._completions: deque[Completion] = deque()
        self._waiter: trio.lowlevel.Task | None = None
        self._interrupted = False

    def connect(self, peer: Ends) -> None:
        assert self.peer is not None, "the queue pairs are not plugged together"

    # Buffers

    def received(self, index: int, length: int) -> memoryview:
        self._must(index not in self.receives_of, "a receive buffer is read that the device has")
        return memoryview(self._receives[index])[:length]

    def sending(self, index: int) -> memoryview:
        self._must(index not in self._sending, "a send buffer is filled that the device has")
        return memoryview(self._sends[index])

    def _must(self, holds: bool, what: str) -> None:
        self.nic.must(holds, what)

    # Posting

    def post_receive(self, index: int) -> None:
        self._check()
        self._must(index not in self.receives_of, "a receive buffer is posted twice")
        self.receives_of.append(index)

    def post_message(self, post: Post, length: int) -> None:
        request = _Request(post, length)
        if post.buffer >= 0:
            self._must(post.buffer not in self._sending, "a send buffer is posted twice")
            self._sending.add(post.buffer)
            if length <= INLINE_MAX:
                request.data = bytes(self._sends[post.buffer][:length])
        self._post(request)

    def post_transfer(self, post: Post, region: Region, offset: int, remote: Remote) -> None:
        assert isinstance(region, SimRegion) and offset + remote.length <= len(region.view)
        self.nic.transfers += 1
        holder = region.holder(offset, remote.length)
        self._must(holder is not None, f"a {post.work.value} is posted with memory that was given back")
        self._post(_Request(post, remote.length, None, region, offset, remote, holder))

    def _post(self, request: _Request) -> None:
        self._check()
        self._unknown += 1
        self._must(self._unknown <= self._depth, "the send queue overflows")
        self._not_rung.append(request)

    def ring(self) -> None:
        self._check()
        self._queue.extend(self._not_rung)
        self._not_rung.clear()
        self._go_on()

    def _check(self) -> None:
        if self.destroyed:
            raise OSError(errno.ENOTCONN, "the queue pair is destroyed")

    # Working

    def _go_on(self) -> None:
        """Begin with the next work request in a moment."""
        if self._working or not self._queue or self.destroyed or self.failed:
            return
        first = self._queue[0]
        if first.post.fenced and any(each.post.work is Work.READ and not each.done for each in self._under_way):
            return
        self._working = True
        self._later(self.nic.chance.choice((0.0, 0.000001, 0.00001, 0.0001)), self._begin)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.nic.network.at(self.nic.network.clock.now + seconds, act)

    def _begin(self) -> None:
        self._working = False
        if self.destroyed or self.failed:
            return
        request = self._queue.popleft()
        self._under_way.append(request)
        if request.region is None:
            self._send(request)
        elif request.post.work is Work.READ:
            self._put(lambda peer: peer.read_by(request), 0)
        else:
            self._write(request)
        self._go_on()

    def _send(self, request: _Request) -> None:
        post = request.post
        data = request.data
        if data is None:
            data = bytes(self._sends[post.buffer][: request.length]) if post.buffer >= 0 else b""
        self._put(lambda peer: peer.arrived(request, data), len(data))

    def _write(self, request: _Request) -> None:
        """In two pieces, each read when its turn comes."""
        assert request.region is not None and request.remote is not None
        half = request.length // 2
        for begin, end in ((0, half), (half, request.length)):
            if begin < end:
                self._must_still(request)
                data = bytes(request.region.view[request.offset + begin : request.offset + end])
                self._put_piece(request, begin, data, end == request.length)

    def _put_piece(self, request: _Request, begin: int, data: bytes, last: bool) -> None:
        self._put(lambda peer: peer.written_by(request, begin, data, last), len(data))

    def _must_still(self, request: _Request) -> None:
        if request.holder is not None:
            work = request.post.work.value
            self._must(still(request.holder), f"memory of a {work} was given back while the device has it")

    def _put(self, deliver: Callable[[SimPair], None], size: int) -> None:
        """Send something to the peer. Where it has gone there is no answer, which ends our patience."""
        assert self.cable is not None and self.peer is not None
        peer = self.peer

        def arrive() -> None:
            if peer.destroyed:
                if not self.failed:
                    self._later(self.nic.network.patience_s(), lambda: self.fail("transport retry counter exceeded"))
            else:
                deliver(peer)

        self.cable.put(arrive, _HEADER + size)

    # What the peer's device does with us

    def arrived(self, request: _Request, data: bytes) -> None:
        if self.failed:
            self._put(lambda peer: peer.fail("the peer's queue pair has failed"), 0)
            return
        self._must(bool(self.receives_of), "a message comes and there is no receive")
        index = self.receives_of.popleft()
        self._receives[index][: len(data)] = data
        self._complete(Completion(True, index, len(data), request.post.immediate, ""))
        self._put(lambda peer: peer.acknowledged(request), 0)

    def written_by(self, request: _Request, begin: int, data: bytes, last: bool) -> None:
        """Also when this queue pair has failed: only its destruction ends that."""
        self._must(self.lends, "a client writes to its server's memory")
        self.nic.named(request)[1][begin : begin + len(data)] = data
        if last:
            self._put(lambda peer: peer.acknowledged(request), 0)

    def read_by(self, request: _Request) -> None:
        """What comes behind this may overtake it."""
        self._must(self.lends, "a client reads its server's memory")
        half = request.length // 2
        if half:
            self._respond(request, 0, half)
        self._later(
            self.nic.chance.choice((0.0, 0.0001, 0.001, 0.004)), lambda: self._respond(request, half, request.length)
        )

    def _respond(self, request: _Request, begin: int, end: int) -> None:
        if self.destroyed:
            return
        data = bytes(self.nic.named(request)[1][begin:end])
        self._put(lambda peer: peer.was_read(request, begin, data, end == request.length), len(data))

    def was_read(self, request: _Request, begin: int, data: bytes, last: bool) -> None:
        """What we asked for comes in."""
        self._must_still(request)
        assert request.region is not None
        at = request.offset + begin
        request.region.view[at : at + len(data)] = data
        if last:
            self.acknowledged(request)

    def acknowledged(self, request: _Request) -> None:
        if self.failed:
            return
        if request.post.work is not Work.READ:
            self._must_still(request)  # it might have had to be sent again
        request.done = True
        while self._under_way and self._under_way[0].done:
            post = self._under_way.popleft().post
            if post.buffer >= 0:
                self._sending.discard(post.buffer)
            if post.signaled:
                self._complete(Completion(False, post.number, 0, 0, ""))
        self._go_on()

    # Completions

    def fail(self, why: str) -> None:
        """It does nothing any more of itself, and says so."""
        if self.failed or self.destroyed:
            return
        self.failed = why
        self._complete(Completion(False, 0, 0, 0, why))

    def _complete(self, completion: Completion) -> None:
        if self.destroyed:
            return
        self._completions.append(completion)
        self.interrupt()

    def interrupt(self) -> None:
        """Wake who waits; devices gather what they tell."""
        if self._waiter is not None and not self._interrupted:
            self._interrupted = True
            self._later(self.nic.chance.choice((0.0, 0.0, 0.00002, 0.0003)), self._wake)

    def _wake(self) -> None:
        self._interrupted = False
        if self._waiter is not None:
            trio.lowlevel.reschedule(self._waiter)
            self._waiter = None

    def poll(self) -> list[Completion]:
        self._check()
        found = list(self._completions)
        self._completions.clear()
        for completion in found:
            if not completion.receive and not completion.error:
                self._unknown -= completion.number - self._told
                self._told = completion.number
        return found

    async def wait(self) -> None:
        self._check()
        self._must(not self._not_rung, "something was posted, and the device does not know")
        if self._completions or self.ended:
            await trio.lowlevel.checkpoint()
        else:
            self._waiter = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._waiter = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._check()

    def end(self) -> None:
        """The socket has ended."""
        self.ended = True
        self.interrupt()

    def destroy(self) -> bool:
        if not self.destroyed:
            self.destroyed = True
            self.nic.pairs.pop(self.number, None)
            if self.cable is not None:
                self.cable.unplug()
            self.when_destroyed()
            self._wake()
        return True
