"""An RDMA device made of lists, for the port of fs3.transport.rdma_port: all in one process, over real addresses of memory.

It does work requests in order and one by one, each after a moment, tells of completions later still, and
checks what a device would refuse: keys, bounds, a message without a receive, memory of a queue pair that is destroyed.
"""

from __future__ import annotations

import ctypes
import random
from collections import deque
from typing import Any

import trio

from fs3.transport.rdma_flow import Limits, Post, Work
from fs3.transport.rdma_port import MESSAGE_SIZE, Completion, Device, Ends, QueuePair, Region, Remote


class ListedRegion(Region):
    def __init__(self, device: ListedDevice, memory: Any) -> None:
        self.view = memoryview(memory).cast("B")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.view))
        device.keys += 1
        self.key = device.keys
        self._device = device
        device.regions[self.key] = self

    def close(self) -> None:
        self._device.regions.pop(self.key, None)


class ListedDevice(Device):
    """seed: of its delays."""

    def __init__(self, seed: int = 0, name: str = "listed0") -> None:
        self.name = name
        self.random = random.Random(seed)
        self.keys = 1000
        self.regions: dict[int, ListedRegion] = {}
        self.pairs: dict[int, ListedPair] = {}
        self.transfers = {Work.READ: 0, Work.WRITE: 0, Work.MESSAGE: 0, Work.RETURN: 0}
        self.transferred = 0
        self.up = True
        self.addresses: tuple[str, ...] = ()
        self.rings = 0
        self.stalled = False
        """While set nothing is done: the link is down, and nobody has noticed."""

    def allocate(self, size: int) -> ListedRegion:
        return ListedRegion(self, bytearray(size))

    def register(self, memory: Any) -> ListedRegion:
        return ListedRegion(self, memory)

    def active(self) -> bool:
        return self.up

    def has(self, local: str) -> bool:
        return local in self.addresses

    def queue_pair(self, ours: Limits, receives: int, fd: int, local: str, lends: bool) -> ListedPair:
        return ListedPair(self, ours, receives, fd, lends)


class ListedPair(QueuePair):
    def __init__(self, device: ListedDevice, ours: Limits, receives: int, fd: int, lends: bool) -> None:
        self.lends = lends
        self._device = device
        self._depth = ours.depth
        number = len(device.pairs) + 1
        device.pairs[number] = self
        self.ends = Ends(number, 7, "::1", 5, 0)
        self._fd = fd
        self._sends = [bytearray(MESSAGE_SIZE) for _ in range(ours.sends)]
        self._receives = [bytearray(MESSAGE_SIZE) for _ in range(receives)]
        self._posted: deque[int] = deque()
        self._queue: deque[tuple[Post, int, tuple[Region, int, Remote] | None]] = deque()
        self._not_rung: list[tuple[Post, int, tuple[Region, int, Remote] | None]] = []
        self._outstanding = 0  # work requests of which the owner cannot know that they are done
        self._told = 0
        self._completions: list[Completion] = []
        self._peer: ListedPair | None = None
        self._changed = trio.Event()
        self._worker: trio.lowlevel.Task | None = None
        self._destroyed = False
        self.failed = ""

    def connect(self, peer: Ends) -> None:
        self._peer = self._device.pairs.get(peer.number)
        self._worker = trio.lowlevel.spawn_system_task(self._work)

    def received(self, index: int, length: int) -> memoryview:
        return memoryview(self._receives[index])[:length]

    def sending(self, index: int) -> memoryview:
        return memoryview(self._sends[index])

    def post_receive(self, index: int) -> None:
        assert index not in self._posted
        self._posted.append(index)

    def post_message(self, post: Post, length: int) -> None:
        self._post(post, length, None)

    def post_transfer(self, post: Post, region: Region, offset: int, remote: Remote) -> None:
        assert offset + remote.length <= len(region.view)
        self._post(post, remote.length, (region, offset, remote))

    def _post(self, post: Post, length: int, transfer: tuple[Region, int, Remote] | None) -> None:
        if self._destroyed:
            raise OSError("the queue pair is destroyed")
        self._outstanding += 1
        assert self._outstanding <= self._depth, "the send queue overflows"
        self._not_rung.append((post, length, transfer))

    def ring(self) -> None:
        if self._not_rung:
            self._device.rings += 1
            self._queue.extend(self._not_rung)
            self._not_rung.clear()
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _work(self) -> None:
        while not self._destroyed:
            if not self._queue or self._device.stalled:
                await self._changed.wait()
                continue
            await trio.sleep(self._device.random.choice((0, 0, 0, 0, 0.0001)))
            if self._destroyed or self._device.stalled:
                continue
            self._do(*self._queue.popleft())

    def _do(self, post: Post, length: int, transfer: tuple[Region, int, Remote] | None) -> None:
        peer = self._peer
        assert peer is not None
        if peer._destroyed or self.failed:
            self.fail("the peer does not answer")
            return
        self._device.transfers[post.work] += 1
        if transfer is not None:
            region, offset, remote = transfer
            self._device.transferred += remote.length
            found = self._device.regions.get(remote.key)
            at = remote.address - found.address if found is not None else -1
            if not peer.lends or found is None or at < 0 or at + remote.length > len(found.view):
                self.fail("remote access error")
                return
            there, here = found.view[at : at + remote.length], region.view[offset : offset + remote.length]
            if post.work is Work.READ:
                here[:] = there
            else:
                there[:] = here
        else:
            assert peer._posted, "the peer is not ready to receive"
            index = peer._posted.popleft()
            if length:
                peer._receives[index][:length] = self._sends[post.buffer][:length]
            peer._completions.append(Completion(True, index, length, post.immediate, ""))
            peer._tell()
        if post.signaled:
            self._completions.append(Completion(False, post.number, length, 0, ""))
            self._tell()

    def fail(self, reason: str) -> None:
        """The queue pair is in error: it does nothing any more, and says so."""
        self.failed = reason
        self._completions.append(Completion(False, 0, 0, 0, reason))
        self._tell()

    def poll(self) -> list[Completion]:
        if self._destroyed:
            raise OSError("the queue pair is destroyed")
        found, self._completions = self._completions, []
        assert not self._not_rung, "posted, and forgotten"
        for completion in found:
            if not completion.receive and not completion.error:
                self._outstanding -= completion.number - self._told
                self._told = completion.number
        return found

    async def wait(self) -> None:
        if self._destroyed:
            raise OSError("the queue pair is destroyed")
        if self._completions:
            return
        changed = self._changed
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                try:
                    await trio.lowlevel.wait_readable(self._fd)
                except (trio.ClosedResourceError, OSError):
                    pass  # closed while this waits, or before it could
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await changed.wait()
            nursery.cancel_scope.cancel()

    def destroy(self) -> bool:
        if not self._destroyed:
            self._destroyed = True
            self._queue.clear()
            self._tell()
        return True
