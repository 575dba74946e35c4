"""Rings: takes batches of operations off them, in the order of their priorities, and serves them.

Users take turns, and no one of them has all of what may be under way, so that a user who keeps the daemon busy with rings of
high priority is first among his own.
"""

from __future__ import annotations

import errno
import logging
import math
import mmap
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import trio

from fs3.client.many import Read
from fs3.control import refuse_descriptors
from fs3.env import Env
from fs3.metrics import Operation
from fs3.rings import COUNT, DaemonRing, RingError, Submission, ring_bytes
from fs3.transport.shared import sealed_file

from .fs import FileSystem
from .ring_files import RingFile, RingWrite
from .ring_memory import RingMemory

logger = logging.getLogger("fs3.fuse.ring_queue")

BATCHES_MAX, BATCHES_OF_USER_MAX, BATCHES_OF_RING_MAX = 32, 16, 8
"""Batches under way, of all, of one user, and of one ring."""
BOUNCE_BYTES = 4 * 1024 * 1024
"""What is read at once for memory that is not received into."""
PRIORITIES = 3
_OFFSET_MAX = 2**63 - 1

_Part = tuple[int, RingMemory, int, RingFile, int, int]
"""Of a read that is not received in its place: its number, memory, offset there, file, offset there, length."""


class Queue:
    """Rings that have a batch to be served."""

    def __init__(self) -> None:
        self._users: dict[int, tuple[deque[Ring], ...]] = {}  # by priority; who is first has the next turn
        self._of_user: dict[int, int] = {}
        self.under_way = 0

    def add(self, ring: Ring) -> None:
        """A ring may have a batch now."""
        self._put(ring)
        self._begin()

    def ended(self, ring: Ring) -> None:
        """One of its batches has ended."""
        self.under_way -= 1
        self._of_user[ring.uid] -= 1
        if not self._of_user[ring.uid]:
            del self._of_user[ring.uid]
        self.add(ring)

    def _put(self, ring: Ring) -> None:
        if ring.queued or not ring.has_batch():
            return
        ring.queued = True
        waiting = self._users.get(ring.uid)
        if waiting is None:
            waiting = self._users[ring.uid] = tuple([deque() for _ in range(PRIORITIES)])
        waiting[ring.priority].append(ring)

    def _begin(self) -> None:
        while self.under_way < BATCHES_MAX:
            ring = self._next()
            if ring is None:
                return
            self.under_way += 1
            self._of_user[ring.uid] = self._of_user.get(ring.uid, 0) + 1
            ring.begin()
            self._put(ring)

    def _next(self) -> Ring | None:
        for uid in list(self._users):
            if self._of_user.get(uid, 0) >= BATCHES_OF_USER_MAX:
                continue
            waiting = self._users.pop(uid)
            found = _first(waiting)
            if any(waiting):
                self._users[uid] = waiting  # behind the others
            if found is not None:
                return found
        return None


def _first(waiting: tuple[deque[Ring], ...]) -> Ring | None:
    """Take off the first that still has a batch."""
    for rings in waiting:
        while rings:
            ring = rings.popleft()
            ring.queued = False
            if ring.has_batch():
                return ring
    return None


class Owner(ABC):
    """What a ring needs of the program that made it."""

    def __init__(self, pid: int, uid: int) -> None:
        self.pid = pid
        self.uid = uid
        self.files: dict[int, RingFile] = {}
        self.memories: dict[int, RingMemory] = {}

    @abstractmethod
    def done_with(self, things: set[RingFile | RingMemory]) -> None:
        """A batch that used them has ended."""


class Ring:
    """One ring, and the memory and the socket that it shares with the program. priority: 0 is first."""

    def __init__(
        self,
        env: Env,
        fs: FileSystem,
        queue: Queue,
        owner: Owner,
        entries: int,
        for_read: bool,
        io_depth: int,
        priority: int,
        timeout_s: float,
    ) -> None:
        """Raises OSError."""
        self.uid = owner.uid
        self.priority = priority
        self.entries = entries
        self.for_read = for_read
        self.queued = False
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.memory_fd = sealed_file("fs3-ring", ring_bytes(entries))
        try:
            memory = mmap.mmap(self.memory_fd, ring_bytes(entries))
            self._socket, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except BaseException:
            os.close(self.memory_fd)
            raise
        refuse_descriptors(self._socket)
        self._socket.setblocking(False)
        self._ring = DaemonRing(memoryview(memory), entries, io_depth)
        self._env = env
        self._fs = fs
        self._queue = queue
        self._owner = owner
        self._timeout_s = timeout_s if io_depth < 0 else 0.0
        self._since = 0.0  # when the first of those that wait came
        self._nap = trio.CancelScope()  # of the wait for more
        self._batches = 0
        self._owed = 0  # completions that the program was not told of
        self._nursery: trio.Nursery | None = None
        self._timing = env.metrics.timing("rings.read" if for_read else "rings.write")

    def close_peer(self) -> None:
        """The program has its side."""
        os.close(self.memory_fd)
        self.peer.close()

    async def run(self) -> None:
        """Until the program closes it, breaks the rules, or `scope` is cancelled. Nothing is under way afterwards."""
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    try:
                        await self._listen()
                    finally:
                        self._nursery = None  # nothing more is begun
                    nursery.cancel_scope.cancel()
        finally:
            self._socket.close()
            self.ended.set()

    async def _listen(self) -> None:
        while True:
            try:
                message = self._socket.recv(COUNT.size)
            except BlockingIOError:
                await self._wait()
                continue
            except OSError:
                return
            if not message:
                return
            try:
                if len(message) != COUNT.size:
                    raise RingError(f"a message of {len(message)} bytes")
                if not self._ring.waiting:
                    self._since = self._env.monotonic()
                self._ring.arrived(*COUNT.unpack(message))
            except RingError as error:
                logger.info("a ring of uid %d is closed: %s", self.uid, error)
                return
            self._queue.add(self)

    async def _wait(self) -> None:
        """For the next message; or until enough was waited for a batch to become full."""
        if not self._timeout_s or not self._ring.waiting:
            await trio.lowlevel.wait_readable(self._socket)
            return
        since = self._since
        left_s = math.inf if self.queued or self._gathered() else max(0.0, since + self._timeout_s - self._env.monotonic())
        with trio.move_on_after(left_s) as self._nap:
            await trio.lowlevel.wait_readable(self._socket)
            return
        if since == self._since and left_s < math.inf:
            self._since = min(since, self._env.monotonic() - self._timeout_s)
            self._queue.add(self)

    def _gathered(self) -> bool:
        return self._env.monotonic() >= self._since + self._timeout_s

    def has_batch(self) -> bool:
        if self._nursery is None or self.scope.cancel_called:
            return False
        return self._batches < BATCHES_OF_RING_MAX and self._ring.batch(self._gathered()) > 0

    def begin(self) -> None:
        """Serve the next batch."""
        assert self._nursery is not None
        first, asked = self._ring.take(self._ring.batch(self._gathered()))
        self._since = self._env.monotonic()
        self._batches += 1
        self._nap.cancel()  # those that are left wait from now on
        self._nursery.start_soon(self._serve, first, asked)

    async def _serve(self, first: int, asked: list[Submission]) -> None:
        started = self._env.monotonic()
        used: set[RingFile | RingMemory] = set()
        try:
            try:
                results = await (self._read(asked, used) if self.for_read else self._write(asked, used))
            except Exception:
                logger.exception("a batch of uid %d failed", self.uid)  # a bug, of which the mount must not die
                results = [-errno.EIO] * len(asked)
            self._ring.complete(first, results)
            self._tell(len(results))
            self._count(results, int((self._env.monotonic() - started) * 1e9))
        finally:
            self._batches -= 1
            self._owner.done_with(used)
            self._queue.ended(self)

    def _count(self, results: Sequence[int], took_ns: int) -> None:
        """For those who watch the mount."""
        metrics = self._env.metrics
        kind = "read" if self.for_read else "written"
        worst = min(results)
        if worst < 0:
            metrics.count("rings.errors", sum([result < 0 for result in results]))
            size = sum([result for result in results if result > 0])
        else:
            size = sum(results)
        metrics.count(f"rings.{kind}_operations", len(results))
        metrics.count(f"rings.{kind}_bytes", size)
        self._timing.observe(took_ns)
        if metrics.listeners:
            name = "rings.read" if self.for_read else "rings.write"
            error = errno.errorcode.get(-worst, str(-worst)) if worst < 0 else ""
            detail = f"operations={len(results)} bytes={size}"
            metrics.tell(Operation(name, took_ns, f"{self._owner.pid}:{self.uid}", error, detail=detail))

    # Reading

    async def _read(self, asked: Sequence[Submission], used: set[RingFile | RingMemory]) -> list[int]:
        results = [0] * len(asked)
        read_from: set[RingFile] = set()
        reads: list[Read] = []
        places: list[int] = []
        bounced: list[_Part] = []
        last_file = last_memory = -1
        size = wrong = 0
        view: memoryview | None = None
        # Most go to one file and one Iov, which are looked at once.
        for number, (offset, at, length, file, memory) in enumerate(asked):
            if file != last_file or memory != last_memory:
                last_file, last_memory = file, memory
                found = self._find(file, memory, used)
                wrong = found if isinstance(found, int) else 0
                if not isinstance(found, int):
                    entry, region = found
                    read_from.add(entry)
                    handle, size, view = entry.file, region.size, region.view if region.direct else None
            end = at + length
            if wrong or not length or end > size or offset + length > _OFFSET_MAX:
                results[number] = -(wrong or errno.EINVAL)
            elif view is not None:
                reads.append((handle, offset, view[at:end]))
                places.append(number)
            else:
                bounced.append((number, region, at, entry, offset, length))
        if reads:
            done = await self._fs.ring_read(read_from, reads)
            if len(reads) == len(asked):
                return done
            for number, result in zip(places, done, strict=True):
                results[number] = result
        if bounced:
            await self._read_bounced(bounced, results)
        return results

    def _find(self, file: int, memory: int, used: set[RingFile | RingMemory]) -> int | tuple[RingFile, RingMemory]:
        """What an operation names, which is counted as used; an errno where it may not."""
        entry, region = self._owner.files.get(file), self._owner.memories.get(memory)
        if entry is None or entry.closing:
            return errno.EBADF
        if not (entry.readable if self.for_read else entry.writable):
            return errno.EACCES
        if region is None or region.closing:
            return errno.EINVAL
        for thing in (entry, region):
            if thing not in used:
                used.add(thing)
                thing.users += 1
        return entry, region

    async def _read_bounced(self, items: Sequence[_Part], results: list[int]) -> None:
        """By way of memory of our own, a part at a time: the program could change what it sees before we have verified it,
        and have us complain of replicas that are well."""
        some: list[_Part] = []
        size = 0
        for number, region, at, entry, offset, length in items:
            for start in range(0, length, BOUNCE_BYTES):
                part = min(length - start, BOUNCE_BYTES)
                if size + part > BOUNCE_BYTES:
                    await self._bounce(some, results)
                    some, size = [], 0
                if results[number] == start:  # else it ended, or failed, before
                    some.append((number, region, at + start, entry, offset + start, part))
                    size += part
        if some:
            await self._bounce(some, results)

    async def _bounce(self, some: Sequence[_Part], results: list[int]) -> None:
        async with self._fs.ring_room:
            whole = self._fs.ring_buffer(sum([part[5] for part in some]))
            reads: list[Read] = []
            start = 0
            for _, _, _, entry, offset, length in some:
                reads.append((entry.file, offset, whole[start : start + length]))
                start += length
            found = await self._fs.ring_read({part[3] for part in some}, reads)
            for (number, region, at, _, _, _), (_, _, into), result in zip(some, reads, found, strict=True):
                if result > 0:
                    try:
                        region.put(at, into[:result])
                    except OSError as error:
                        result = -(error.errno or errno.EFAULT)
                results[number] = result if result < 0 else results[number] + result

    # Writing

    async def _write(self, asked: Sequence[Submission], used: set[RingFile | RingMemory]) -> list[int]:
        results = [0] * len(asked)
        writes: list[RingWrite] = []
        places: list[int] = []
        for number, (offset, at, length, file, memory) in enumerate(asked):
            found = self._find(file, memory, used)
            if isinstance(found, int):
                results[number] = -found
                continue
            entry, region = found
            if not length or at + length > region.size or offset + length > _OFFSET_MAX:
                results[number] = -errno.EINVAL
                continue
            writes.append(RingWrite(entry, offset, length, region, at))
            places.append(number)
        if writes:
            await self._fs.ring_write(writes)
            for number, write in zip(places, writes, strict=True):
                results[number] = write.result
        return results

    # Telling the program

    def _tell(self, count: int) -> None:
        if self._owed:
            self._owed += count
            return
        try:
            self._socket.send(COUNT.pack(count))
        except BlockingIOError:  # it does not look; the messages that it has are enough to wake it
            self._owed = count
            if self._nursery is not None:
                self._nursery.start_soon(self._tell_later)
        except OSError:
            self.scope.cancel()  # it is gone

    async def _tell_later(self) -> None:
        while self._owed:
            await trio.lowlevel.wait_writable(self._socket)
            with suppress(BlockingIOError):
                try:
                    self._socket.send(COUNT.pack(self._owed))
                except ConnectionError:
                    self.scope.cancel()
                self._owed = 0
