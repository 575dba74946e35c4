"""The door at which programs of this host get user-space rings, and what each has: rings, memory, registered files.

A program connects to an abstract socket, whose name is made of the mount's device number, and asks by one JSON object in
each packet: `hello`, `memory`, `wrap`, `release`, `ring`, `close`, `open`, `shut`, `punch`, or `forget`, which alone is not
answered. Answers come in order, one object each, with the descriptors of what was made. The kernel says who it is. When the
connection ends, or the process, all that it had is given back as soon as what is under way has ended. Descriptors come from
the daemon and never go to it; see ring_memory.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from fs3.client.file import FileClient
from fs3.control import refuse_descriptors
from fs3.errors import FS3Error
from fs3.rings import ENTRIES_MAX, VERSION, check_ring, ring_bytes
from fs3.transport.shared import sealed_file
from fs3.usrbio import door

from .fs import FileSystem
from .processes import Descriptor, check_process, file_of_mount, file_size_limit
from .ring_files import RingFile
from .ring_memory import RingMemory, internal_mount, open_memory
from .ring_queue import Owner, Queue, Ring

logger = logging.getLogger("fs3.fuse.rings")

QUESTION_BYTES = 4096
ANSWER_S = 10.0
"""In which an answer must have been taken."""
CLOSE_S = 30.0
"""How long what was written is settled, when a program is gone."""
CONNECTIONS_MAX, CONNECTIONS_OF_USER_MAX = 1024, 256
MAPPINGS_MAX = 16_384
"""Iovs and rings: a process has 65,530 mappings at most, and fails in everything when it has no more."""
SHARE = 2
"""A program may have one of so many parts of all, and so may a user, but for root and the daemon's own."""
_CREDENTIALS = struct.Struct("3i")
_NUMBER_MAX = 2**63 - 1

Reply = tuple[dict[str, Any] | None, list[int], Ring | None]
"""An answer, or None for none; descriptors that go with it; the ring that they are of."""


@dataclass(frozen=True, slots=True)
class RingLimits:
    """Of a whole mount. rings: 0 for no door. others: whether users besides root and the daemon's own may come."""

    rings: int
    files: int
    memory_bytes: int
    others: bool


class Room:
    """So much there is of something, for all, each user, and each program."""

    def __init__(self, what: str, total: int) -> None:
        self.used = 0
        self._what = what
        self._total = total
        self._of_user: dict[int, int] = {}

    def take(self, uid: int, of_program: int, amount: int, trusted: bool) -> None:
        """of_program: what it has already. Raises OSError EAGAIN."""
        of_user = self._of_user.get(uid, 0)
        if (
            self.used + amount > self._total
            or of_program + amount > max(1, self._total // SHARE)
            or (not trusted and of_user + amount > max(1, self._total // SHARE))
        ):
            raise OSError(errno.EAGAIN, f"the mount has no room for more {self._what} (of this program, this user, or all)")
        self.used += amount
        self._of_user[uid] = of_user + amount

    def give_back(self, uid: int, amount: int) -> None:
        self.used -= amount
        self._of_user[uid] -= amount
        if not self._of_user[uid]:
            del self._of_user[uid]


class Rings:
    """All rings of a mount. device: its `major:minor`."""

    def __init__(self, client: FileClient, fs: FileSystem, device: str, limits: RingLimits) -> None:
        env = client.env
        self.env = env
        self.client = client
        self.fs = fs
        self.device = device
        self.limits = limits
        self.queue = Queue()
        self.rings = Room("rings", limits.rings)
        self.files = Room("registered files", limits.files)
        self.memory = Room("ring memory", limits.memory_bytes)
        self.mappings = Room("Iovs", MAPPINGS_MAX)
        self.internal_mount = internal_mount()
        self.find_file: Callable[[int, int, str], Descriptor] = file_of_mount
        self._connections: dict[int, int] = {}
        env.metrics.sources.append(self._values)

    def _values(self) -> dict[str, float]:
        return {
            "rings.programs": sum(self._connections.values()),
            "rings.open": self.rings.used,
            "rings.files": self.files.used,
            "rings.memory_bytes": self.memory.used,
            "rings.batches_under_way": self.queue.under_way,
        }

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. A door that cannot be opened is one line in the log."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            try:
                refuse_descriptors(sock)
                await sock.bind(door(self.device))
                sock.listen(CONNECTIONS_MAX)
            except OSError as error:
                logger.warning("programs get no rings of this mount: its socket cannot be had: %s", error.strerror)
                task_status.started()
                return
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        peer, _ = await sock.accept()
                    except OSError as error:
                        logger.info("rings: %s", error.strerror)
                        await trio.sleep(1.0)
                        continue
                    nursery.start_soon(self._visit, peer)

    async def _visit(self, peer: trio.socket.SocketType) -> None:
        with peer:
            uid = -1
            try:
                pid, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
                trusted = uid in (0, os.geteuid())
                known = self._connections.get(uid, 0)
                full = sum(self._connections.values()) >= CONNECTIONS_MAX or (
                    not trusted and known >= CONNECTIONS_OF_USER_MAX
                )
                self._connections[uid] = known + 1
                if full or not (trusted or self.limits.others):
                    number = errno.EAGAIN if full else errno.EACCES
                    await _send(peer, {"errno": number, "error": "no rings of this mount for this user"}, [])
                    return
                await Program(self, peer, pid, uid, trusted).run()
            except (OSError, trio.TooSlowError) as error:
                logger.debug("rings: %s", error)
            except Exception:
                logger.exception("rings")  # a bug, of which the mount must not die
            finally:
                self._connections[uid] = self._connections.get(uid, 0) - 1
                if self._connections[uid] <= 0:
                    del self._connections[uid]


class Program(Owner):
    """What one connection has."""

    def __init__(self, all_: Rings, peer: trio.socket.SocketType, pid: int, uid: int, trusted: bool) -> None:
        super().__init__(pid, uid)
        self._all = all_
        self._peer = peer
        self._trusted = trusted
        self._rings: dict[int, Ring] = {}
        self._last = 0
        self._files_used = 0
        self._memory_used = self._mappings = 0
        self._leaving: list[RingFile | RingMemory] = []  # nobody uses them any more
        self._left = trio.Event()
        self._calls = {
            "hello": self._hello,
            "memory": self._make_memory,
            "wrap": self._wrap,
            "release": self._release,
            "forget": self._forget,
            "ring": self._make_ring,
            "close": self._close_ring,
            "open": self._open,
            "shut": self._shut,
            "punch": self._punch,
        }

    async def run(self) -> None:
        """Until the program goes."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._follow, nursery.cancel_scope)
                nursery.start_soon(self._sweep)
                await self._listen()
                nursery.cancel_scope.cancel()
        finally:
            # No batch is under way any more.
            with trio.CancelScope(shield=True):
                for memory in list(self.memories.values()):
                    self._drop_memory(memory)
                for file in list(self.files.values()):
                    self._drop_file(file)
                left_s = CLOSE_S
                while self._leaving:
                    with trio.move_on_after(left_s):
                        await self._sweep_once()
                    left_s = 0.0  # the others are not settled, but not kept either

    async def _follow(self, scope: trio.CancelScope) -> None:
        """The process may end while others, which it made, have the connection open."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return  # another PID namespace, or gone
        try:
            await trio.lowlevel.wait_readable(pidfd)
            scope.cancel()
        finally:
            trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)

    async def _listen(self) -> None:
        while True:
            try:
                question = await self._peer.recv(QUESTION_BYTES)
            except ConnectionError:
                return
            if not question:
                return
            try:
                reply, fds, made = await self._answer(question)
            except OSError as error:
                reply, fds, made = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}, [], None
            except FS3Error as error:
                reply, fds, made = {"errno": error.errno, "error": error.message}, [], None
            try:
                if reply is not None:
                    await _send(self._peer, reply, fds)
            except (OSError, trio.TooSlowError):
                return
            finally:
                if made is not None:
                    made.close_peer()
                else:
                    for fd in fds:
                        os.close(fd)

    async def _answer(self, question: bytes) -> Reply:
        try:
            request = json.loads(question)
            call = self._calls[request["do"]]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise OSError(errno.EINVAL, "a question that is not understood") from None
        return await call(request)

    # Questions

    async def _hello(self, request: dict[str, Any]) -> Reply:
        if request.get("version") != VERSION:
            raise OSError(errno.EPROTONOSUPPORT, f"the mount's daemon speaks version {VERSION} of rings, not this one")
        return {"version": VERSION}, [], None

    async def _make_memory(self, request: dict[str, Any]) -> Reply:
        size = _number(request, "size", 1)
        self._take_memory(size)
        try:
            fd = sealed_file("fs3-iov", size)
            try:
                told = os.dup(fd)
            except BaseException:
                os.close(fd)
                raise
            try:
                number = self._add_memory(RingMemory(fd, size, True, self._trusted))
            except BaseException:
                os.close(told)
                raise
        except BaseException:
            self._give_memory_back(size)
            raise
        return {"id": number}, [told], None

    async def _wrap(self, request: dict[str, Any]) -> Reply:
        size, fd = _number(request, "size", 1), _number(request, "fd", 0)
        check_process(self.pid, self.uid)
        self._take_memory(size)
        try:
            memory = open_memory(self.pid, fd, size, self._trusted, self._all.internal_mount)
            try:
                check_process(self.pid, self.uid)  # it may have become another program while we looked
                number = self._add_memory(memory)
            except BaseException:
                await memory.release()  # which waits for nobody yet
                raise
        except BaseException:
            self._give_memory_back(size)
            raise
        return {"id": number}, [], None

    async def _release(self, request: dict[str, Any]) -> Reply:
        memory = self.memories.get(_number(request, "memory", 0))
        if memory is not None:
            self._drop_memory(memory)
            with trio.move_on_after(ANSWER_S):
                await memory.released.wait()
        return {}, [], None

    async def _forget(self, request: dict[str, Any]) -> Reply:
        numbers = request.get("memories")
        for number in numbers if isinstance(numbers, list) else ():
            memory = self.memories.get(number) if isinstance(number, int) else None
            if memory is not None:
                self._drop_memory(memory)
        return None, [], None

    async def _make_ring(self, request: dict[str, Any]) -> Reply:
        entries, depth = _number(request, "entries", 1), _number(request, "depth", -ENTRIES_MAX)
        priority, timeout_s = _number(request, "priority", -1), request.get("timeout_s", 0)
        for_read = request.get("read") is True
        wrong = "timeout_s: expected a number" if not isinstance(timeout_s, (int, float)) else ""
        wrong = wrong or ("priority: expected -1, 0 or 1" if priority > 1 else check_ring(entries, depth, timeout_s))
        if wrong:
            raise OSError(errno.EINVAL, wrong)
        room, all_ = self._all.rings, self._all
        room.take(self.uid, len(self._rings), 1, self._trusted)
        try:
            self._take_memory(ring_bytes(entries))
            try:
                ring = Ring(all_.env, all_.fs, all_.queue, self, entries, for_read, depth, priority + 1, timeout_s)
            except BaseException:
                self._give_memory_back(ring_bytes(entries))
                raise
        except BaseException:
            room.give_back(self.uid, 1)
            raise
        self._last += 1
        self._rings[self._last] = ring
        self._nursery.start_soon(self._run_ring, self._last, ring)
        return {"id": self._last}, [ring.memory_fd, ring.peer.fileno()], ring

    async def _run_ring(self, number: int, ring: Ring) -> None:
        try:
            await ring.run()
        finally:
            del self._rings[number]
            self._all.rings.give_back(self.uid, 1)
            self._give_memory_back(ring_bytes(ring.entries))

    async def _close_ring(self, request: dict[str, Any]) -> Reply:
        ring = self._rings.get(_number(request, "ring", 0))
        if ring is not None:
            ring.scope.cancel()
            await ring.ended.wait()
        return {}, [], None

    async def _open(self, request: dict[str, Any]) -> Reply:
        fd, inode = _number(request, "fd", 0), _number(request, "inode", 1)
        check_process(self.pid, self.uid)
        found = self._all.find_file(self.pid, fd, self._all.device)
        if found.inode != inode:
            raise OSError(errno.EBADF, f"descriptor {fd} stands for another file in this process than for who asks")
        limit = file_size_limit(self.pid)
        check_process(self.pid, self.uid)  # it may have become another program while we looked
        room = self._all.files
        room.take(self.uid, self._files_used, 1, self._trusted)
        self._files_used += 1
        try:
            file = await self._all.fs.open_for_rings(inode, found.flags, limit, self.uid)
        except BaseException:
            room.give_back(self.uid, 1)
            self._files_used -= 1
            raise
        self._last += 1
        self.files[self._last] = file
        return {"id": self._last}, [], None

    async def _shut(self, request: dict[str, Any]) -> Reply:
        file = self.files.get(_number(request, "file", 0))
        if file is not None:
            self._drop_file(file)
        return {}, [], None

    async def _punch(self, request: dict[str, Any]) -> Reply:
        file = self.files.get(_number(request, "file", 0))
        if file is None or file.closing or not file.writable:
            raise OSError(errno.EBADF, "no such file, or it is not open for writing")
        file.users += 1
        try:
            await self._all.fs.ring_punch(file, _number(request, "offset", 0), _number(request, "length", 1))
        finally:
            self.done_with({file})
        return {}, [], None

    # What the program has

    def _take_memory(self, size: int) -> None:
        self._all.mappings.take(self.uid, self._mappings, 1, self._trusted)
        try:
            self._all.memory.take(self.uid, self._memory_used, size, self._trusted)
        except OSError:
            self._all.mappings.give_back(self.uid, 1)
            raise
        self._mappings += 1
        self._memory_used += size

    def _give_memory_back(self, size: int) -> None:
        self._all.memory.give_back(self.uid, size)
        self._all.mappings.give_back(self.uid, 1)
        self._mappings -= 1
        self._memory_used -= size

    def _add_memory(self, memory: RingMemory) -> int:
        memory.settle(self._all.client)
        self._last += 1
        self.memories[self._last] = memory
        return self._last

    def _drop_memory(self, memory: RingMemory) -> None:
        """As soon as nobody uses it."""
        if not memory.closing:
            memory.closing = True
            if not memory.users:
                self._leave(memory)

    def _drop_file(self, file: RingFile) -> None:
        if not file.closing:
            file.closing = True
            if not file.users:
                self._leave(file)

    def done_with(self, things: set[RingFile | RingMemory]) -> None:
        for thing in things:
            thing.users -= 1
            if thing.closing and not thing.users:
                self._leave(thing)

    def _leave(self, thing: RingFile | RingMemory) -> None:
        self._leaving.append(thing)
        self._left.set()

    async def _sweep(self) -> None:
        """Give back what nobody uses any more."""
        while True:
            await self._left.wait()
            self._left = trio.Event()
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
                await self._sweep_once()
            if self._leaving:
                self._left.set()

    async def _sweep_once(self) -> None:
        while self._leaving:
            thing = self._leaving.pop()
            if isinstance(thing, RingMemory):
                self.memories = {number: each for number, each in self.memories.items() if each is not thing}
                try:
                    await thing.release()
                finally:
                    self._give_memory_back(thing.size)
                continue
            self.files = {number: each for number, each in self.files.items() if each is not thing}
            try:
                await self._all.fs.close_for_rings(thing)
            except FS3Error as error:
                logger.warning("inode %d, written by rings: could not be settled: %s", thing.file.inode.id, error)
            finally:
                self._files_used -= 1
                self._all.files.give_back(self.uid, 1)


def _number(request: dict[str, Any], key: str, low: int) -> int:
    """Raises OSError EINVAL."""
    found = request.get(key)
    if type(found) is not int or not low <= found <= _NUMBER_MAX:
        raise OSError(errno.EINVAL, f"{key}: expected a number from {low} on")
    return found


async def _send(peer: trio.socket.SocketType, reply: dict[str, Any], fds: list[int]) -> None:
    """Raises OSError: the program is gone, or does not listen."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    with trio.fail_after(ANSWER_S):
        await peer.sendmsg([json.dumps(reply).encode()], ancillary)
