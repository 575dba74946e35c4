"""Memory that users of the local connection registered: the server writes replies' bulk data straight into it.

The client hands the file of such memory to the server over a socket pair of the connection's own, and names it by a number
from then on. A request says in which places of which memory its bulk data lies, and where there is room for its reply's.

The room is the user's, who may give the call up and use the memory for something else; the server may be in the middle of
anything then, or stopped. So each request has a ticket, two bytes in memory that both share. The server says in its byte
that it writes, then looks whether the client's byte still allows that, writes without giving way to other tasks, and clears
its byte. To take the memory back the client clears its own byte, waits for `SETTLE_S`, and looks at the server's. A store
is seen by all other processors long before that, so either the server has seen that it may not write, or the client
sees that it does.

The server touches only memory that is sealed against shrinking, since to touch what was cut off would kill it. What is not
sealed (POSIX shared memory cannot be) it reads and writes by system calls, which fail instead; for its own user and root it
maps that, too, for reads from a file straight into it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ProtocolError
from ..wire.frame import PAYLOAD_SIZE_MAX
from .base import Loan
from .registered import Piece, Registration, Use
from .shared import PEER_SIZE_MAX, sealed_memory
from .tcp import PEER_CLOSED

MEMORIES_MAX = 64
"""Of one connection."""
MEMORY_SIZE_MAX = 1 << 42
"""Of one connection's memories together, in bytes, if it belongs to our own user or root; PEER_SIZE_MAX for others."""
PLACES_MAX = 256
"""In which one request's bulk data, or the room for its reply's, may lie."""
TICKETS = 16 * 1024
SETTLE_S = 0.001

_ANNOUNCE = struct.Struct("<8sII")
_MAGIC = b"fs3memry"
_VERSION = 1
_CONTROL = 0
"""The number of the memory that holds the tickets."""
_HEAD = struct.Struct("<IHH")
"""Ticket, places of the bulk data, places of the room for the reply's."""
_PLACE = struct.Struct("<QII")
"""Offset, length, number of the memory."""
PLACED_SIZE_MAX = _HEAD.size + 2 * PLACES_MAX * _PLACE.size


class Ticket:
    """Of one request. room: the memory that the server may write to while the ticket holds; addresses."""

    __slots__ = ("_words", "index", "room")

    def __init__(self, words: memoryview, index: int, room: list[Piece]) -> None:
        self._words = words
        self.index = index
        self.room = room

    def take_back(self) -> None:
        self._words[2 * self.index] = 0

    def written(self) -> bool:
        """Whether the server writes there now, perhaps."""
        return self._words[2 * self.index + 1] != 0


class OwnMemories:
    """The client's side: what of its user's memory the server of one connection has."""

    def __init__(self, side: socket.socket) -> None:
        self._side = side
        self._words = memoryview(b"")
        self._free: list[int] = []
        self._numbers: dict[Registration, int] = {}
        self._usable: set[int] = set()
        self._next = 1

    def number_of(self, registration: Registration) -> int:
        """0 where the server has not got it (yet)."""
        number = self._numbers.get(registration, 0)
        return number if number in self._usable else 0

    def announce(self, registration: Registration) -> int:
        """Send a memory's file; the number that the server is to be told of. 0 where it was sent already, or cannot be."""
        if registration in self._numbers or registration.fd < 0 or len(self._numbers) >= MEMORIES_MAX:
            return 0
        try:
            if not self._words:
                fd, words = sealed_memory("fs3-tickets", 2 * TICKETS)
                try:
                    self._send(_CONTROL, fd)
                finally:
                    os.close(fd)
                self._words = memoryview(words)
                self._free = list(range(TICKETS))[::-1]
            self._send(self._next, registration.fd)
        except OSError:
            return 0  # later, perhaps
        number = self._numbers[registration] = self._next
        self._next += 1
        return number

    def _send(self, number: int, fd: int) -> None:
        socket.send_fds(self._side, [_ANNOUNCE.pack(_MAGIC, _VERSION, number)], [fd])

    def accepted(self, number: int) -> None:
        if number in self._numbers.values():
            self._usable.add(number)

    def forget(self, registration: Registration) -> int:
        """The number that the server is to forget."""
        number = self._numbers.pop(registration, 0)
        self._usable.discard(number)
        return number

    def place(self, use: Use) -> tuple[Ticket, bytes] | list[Registration]:
        """A ticket, and what to tell the server, if it has all of this memory; else what it has not got."""
        missing: list[Registration] = []
        words = []
        for registration, begin, end in (*use.bulk, *use.room):
            number = self.number_of(registration)
            if number:
                words.append(_PLACE.pack(begin - registration.begin + registration.offset, end - begin, number))
            elif registration not in missing:
                missing.append(registration)
        if missing or not self._free or len(use.bulk) > PLACES_MAX or len(use.room) > PLACES_MAX:
            return missing
        index = self._free.pop()
        self._words[2 * index + 1] = 0
        self._words[2 * index] = 1
        return Ticket(self._words, index, use.room), _HEAD.pack(index, len(use.bulk), len(use.room)) + b"".join(words)

    def give_back(self, ticket: Ticket) -> None:
        """The server is done with its request."""
        self._free.append(ticket.index)

    def close(self) -> list[Registration]:
        """The connection has ended; returns what was announced over it."""
        self._side.close()
        self._usable.clear()
        self._free.clear()
        announced, self._numbers = list(self._numbers), {}
        return announced


class Process:
    """The process at the other end of a socket: whether it still runs."""

    def __init__(self, number: int) -> None:
        self._id = number  # 0 where it is in a namespace of its own
        self._born = self._look()

    def ended(self, closed: str) -> bool:
        """closed: why the connection is, if it is. A server does not close it while it writes, so it ended then."""
        return closed == PEER_CLOSED or (self._id != 0 and self._look() != self._born)

    def _look(self) -> str:
        try:
            with open(f"/proc/{self._id}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # when it was started


@dataclass(slots=True)
class _Memory:
    """The client's memory as the server has it. view: empty where it is not mapped. sealed: it cannot be cut off; else there
    is a descriptor for what must not touch it, -1 once it is closed."""

    size: int
    view: memoryview
    sealed: bool
    fd: int = -1


class PeerMemories:
    """The server's side. trusted: the client could do us worse harm anyhow."""

    def __init__(self, side: int, trusted: bool) -> None:
        """side: the client's end is another's. Raises ProtocolError where it is no such socket."""
        self._side = _side(side)
        self._trusted = trusted
        self._bytes_max = MEMORY_SIZE_MAX if trusted else PEER_SIZE_MAX
        self._memories: dict[int, _Memory] = {}
        self._refused: dict[int, str] = {}

    def take(self, number: int) -> str:
        """Take in what was sent, and see whether that memory is among it; why not, or nothing. Raises ProtocolError."""
        with suppress(OSError):  # there is no more, or never will be
            while True:
                data, fds, _, _ = socket.recv_fds(self._side, _ANNOUNCE.size, 1)
                if not data:
                    break
                try:
                    self._meet(data, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        if number in self._memories:
            return ""
        return self._refused.pop(number, "it was not sent")

    def _meet(self, data: bytes, fds: Sequence[int]) -> None:
        if len(data) != _ANNOUNCE.size:
            raise ProtocolError("an announcement of memory that makes no sense")
        magic, version, number = _ANNOUNCE.unpack(data)
        if magic != _MAGIC or number in self._memories:
            raise ProtocolError("an announcement of memory that makes no sense")
        if version != _VERSION:
            self._refused[number] = f"version {version}"
        elif len(self._memories) > MEMORIES_MAX or len(self._refused) > MEMORIES_MAX:
            raise ProtocolError(f"more than {MEMORIES_MAX} memories")
        elif not fds:
            self._refused[number] = "its descriptor did not arrive: this process has too many open"
        else:
            try:
                self._memories[number] = self._opened(fds[0], number == _CONTROL)
            except (OSError, ValueError) as error:
                self._refused[number] = str(error)

    def _opened(self, fd: int, control: bool) -> _Memory:
        """Raises OSError, ValueError where it cannot be used."""
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # an error for any other kind of file
        if os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
            raise ValueError("it is of huge pages, which may not be there when they are touched")
        size = os.fstat(fd).st_size
        if not size or size + sum([memory.size for memory in self._memories.values()]) > self._bytes_max:
            raise ValueError(f"{size} bytes, or too many together")
        if seals & fcntl.F_SEAL_SHRINK:
            return _Memory(size, memoryview(mmap.mmap(fd, size)), True)
        if control:
            raise ValueError("it can shrink")
        view = memoryview(mmap.mmap(fd, size)) if self._trusted else memoryview(b"")
        return _Memory(size, view, False, os.dup(fd))

    def forget(self, number: int) -> None:
        memory = self._memories.pop(number, None)
        if memory is not None and memory.fd >= 0:
            os.close(memory.fd)
            memory.fd = -1

    def find(self, data: memoryview) -> tuple[PeerPlaces, PeerPlaces, memoryview]:
        """Where a request's bulk data is, where the room for its reply's, and its ticket's bytes. Raises ProtocolError."""
        if len(data) < _HEAD.size:
            raise ProtocolError("a request that does not say where its memory is")
        index, bulk, room = _HEAD.unpack_from(data)
        if bulk > PLACES_MAX or room > PLACES_MAX or len(data) != _HEAD.size + (bulk + room) * _PLACE.size:
            raise ProtocolError(f"{len(data)} bytes for {bulk} and {room} places in memory")
        control = self._memories.get(_CONTROL)
        if control is None or 2 * index + 2 > control.size:
            raise ProtocolError("a request in memory without a ticket")
        found = [self._place(*fields) for fields in _PLACE.iter_unpack(data[_HEAD.size :])]
        words = control.view[2 * index : 2 * index + 2]
        return PeerPlaces(found[:bulk]), PeerPlaces(found[bulk:]), words

    def _place(self, offset: int, length: int, number: int) -> tuple[_Memory, int, int]:
        memory = self._memories.get(number) if number != _CONTROL else None
        if memory is None:
            raise ProtocolError(f"a place in memory {number}, of which we know nothing")
        if not length or offset > memory.size or length > memory.size - offset:
            raise ProtocolError(f"{length} bytes at {offset} of shared memory of {memory.size}")
        return memory, offset, length

    def close(self) -> None:
        """Mappings go with the last view of them."""
        self._side.close()
        for number in list(self._memories):
            self.forget(number)


def _side(fd: int) -> socket.socket:
    """The socket by which a client sends memory. Raises ProtocolError where it is none."""
    try:
        side = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise ProtocolError("what was offered to send memory by is no socket") from None
    if side.family != socket.AF_UNIX or side.type != socket.SOCK_SEQPACKET:
        side.close()
        raise ProtocolError("what was offered to send memory by is not of the kind for that")
    side.setblocking(False)
    return side


class PeerPlaces:
    """Places in the client's memory, one behind the other."""

    def __init__(self, places: list[tuple[_Memory, int, int]]) -> None:
        self._places = places
        self.length = sum([length for _, _, length in places])
        if self.length > PAYLOAD_SIZE_MAX:
            raise ProtocolError(f"{self.length} bytes in shared memory")

    def read(self, into: memoryview, start: int = 0) -> None:
        """Copy what is `start` bytes behind the beginning. What is not there any more is zeros."""
        at = 0
        for memory, offset, length in self._from(start):
            piece = into[at : at + length]
            length = len(piece)
            if memory.sealed:
                piece[:] = memory.view[offset : offset + length]
            else:
                count = 0
                with suppress(OSError):
                    count = os.preadv(memory.fd, [piece], offset)
                piece[count:] = bytes(length - count)
            at += length

    def _from(self, start: int) -> Iterator[tuple[_Memory, int, int]]:
        for memory, offset, length in self._places:
            if start < length:
                yield memory, offset + start, length - start
            start = max(0, start - length)

    def write(self, parts: Sequence[bytes | bytearray | memoryview], start: int = 0) -> None:
        """Put these there, one behind the other. Raises OSError."""
        places = self._from(start)
        memory, offset, left = next(places)
        for part in parts:
            view = memoryview(part)
            while len(view):
                if not left:
                    memory, offset, left = next(places)
                count = min(left, len(view))
                if memory.sealed:
                    memory.view[offset : offset + count] = view[:count]
                else:
                    count = os.pwrite(memory.fd, view[:count], offset)
                view, offset, left = view[count:], offset + count, left - count

    def views(self, size: int) -> list[memoryview] | None:
        """The first `size` bytes of it; None where it has fewer, or where they are in memory that is not mapped."""
        views: list[memoryview] = []
        left = size
        for memory, offset, length in self._places:
            if not len(memory.view):
                return None
            if left:
                views.append(memory.view[offset : offset + min(length, left)])
                left -= len(views[-1])
        return None if left else views

    @property
    def sealed(self) -> bool:
        return all(memory.sealed for memory, _, _ in self._places)


class LocalLoan(Loan):
    """What a request lent of the client's memory: its bulk data, and room for its reply's."""

    def __init__(self, bulk: PeerPlaces, room: PeerPlaces, words: memoryview) -> None:
        self.bulk = bulk
        self.views = []
        self.fragile = not room.sealed
        self.over = False  # the connection has ended
        self._room = room
        self._words = words

    def cut(self, size: int) -> bool:
        """Make `views` of so many bytes, if that can be."""
        views = self._room.views(size) if not self.over and size else None
        self.views = views or []
        return views is not None

    def begin(self) -> bool:
        self._words[1] = 1
        if self.over or not self._words[0]:
            self._words[1] = 0
            return False
        return True

    def end(self) -> None:
        self._words[1] = 0

    def put(self, at: int, data: memoryview) -> bool:
        try:
            self._room.write([data], at)
        except OSError:
            return False
        return True

    def get(self, at: int, length: int) -> bytes:
        data = bytearray(length)
        self._room.read(memoryview(data), at)
        return bytes(data)

    def fill(self, parts: Sequence[bytes | bytearray | memoryview], length: int) -> bool:
        """Put a reply's bulk data there. False where that cannot be."""
        if length > self._room.length or not self.begin():
            return False
        try:
            self._room.write(parts)
        except OSError:
            return False
        finally:
            self.end()
        return True
