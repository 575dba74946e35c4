"""Bulk data of requests and replies over RDMA: the client lends memory, the server reads and writes it.

A request's frame says where its bulk data lies in the client's registered memory, and where there is room for its reply's
(`FLAG_SHARED`). Both may be in several places, which the server reads and writes in order. Bulk data that lies in memory
which the user registered stays where it is; else it passes through a slot of the client's pool.

Memory that was lent comes back with the reply, which the device delivers after the WRITEs before it; or with the server's
word that nobody will reply (`FLAG_SETTLED`); or when the queue pair is destroyed. Not when the caller gives up: then a
slot of the pool stays lent, and a user's buffer is waited for, at most `WITHDRAW_S`, after which the connection is ended
to get it back.

The server's own memory is nobody else's affair: its queue pairs do not let clients read or write any.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

import trio

from ..errors import FS3Error, ProtocolError
from ..wire.frame import FLAG_SHARED, PAYLOAD_SIZE_MAX, Frame, Kind
from .base import FileSlice, Part
from .rdma_connection import Outgoing, RdmaConnection, Socket, Transfer, Waiter
from .rdma_flow import Limits
from .rdma_memory import RegisteredMemory, Slot, UserRegion
from .rdma_port import QueuePair, Remote

BULK_MIN = 4 * 1024
"""Bulk data of this size goes one-sided: less is faster in the message."""
PLACES_MAX = 64
"""In which one request's bulk data, or the room for its reply's, may lie."""
LENT_BYTES_MAX = 128 * 1024 * 1024
LENT_REQUESTS_MAX = 1024
"""Of the pool for one connection, and requests that have memory lent: what comes then waits its turn in messages, so that a
peer which gives nothing back does not hold what others need."""
WITHDRAW_S = 2.0
FLAG_SETTLED = 0x4000
"""No reply: the server will not touch this request's memory any more."""

_COUNTS = struct.Struct("<HH")
_PLACE = struct.Struct("<QII")
_REPLY = struct.Struct("<Q")
"""How many bytes stand in the room."""
_SIZE_MAX = _COUNTS.size + 2 * PLACES_MAX * _PLACE.size


def encode_places(bulk: Sequence[Remote], room: Sequence[Remote]) -> bytes:
    places = [_PLACE.pack(each.address, each.length, each.key) for each in (*bulk, *room)]
    return _COUNTS.pack(len(bulk), len(room)) + b"".join(places)


def decode_places(data: memoryview) -> tuple[list[Remote], list[Remote]]:
    """Raises ProtocolError."""
    if len(data) < _COUNTS.size:
        raise ProtocolError("a request that does not say where its memory is")
    bulk, room = _COUNTS.unpack_from(data)
    if bulk > PLACES_MAX or room > PLACES_MAX or len(data) != _COUNTS.size + (bulk + room) * _PLACE.size:
        raise ProtocolError(f"{len(data)} bytes for {bulk} and {room} places in memory")
    places = [Remote(*fields) for fields in _PLACE.iter_unpack(data[_COUNTS.size :])]
    for part in (places[:bulk], places[bulk:]):
        if sum([each.length for each in part]) > PAYLOAD_SIZE_MAX or any(each.length == 0 for each in part):
            raise ProtocolError("places in memory of no use, or too large")
    return places[:bulk], places[bulk:]


@dataclass(slots=True)
class _Lent:
    """What the server may touch for one request. users: memory of the caller's. direct: the room is such."""

    data: Slot | None = None
    room: Slot | None = None
    users: list[UserRegion] = field(default_factory=list)
    direct: bool = False
    waiter: Waiter | None = None


class RdmaClient(RdmaConnection):
    """The side that lends memory and sends requests."""

    def __init__(
        self, sock: Socket, peer: str, pair: QueuePair, limits: tuple[Limits, Limits], memory: RegisteredMemory
    ) -> None:
        super().__init__(sock, peer, pair, limits)
        self.memory = memory
        self._lent: dict[int, _Lent] = {}
        self._lent_bytes = 0

    @property
    def lent(self) -> int:
        """Requests whose memory the server may still touch."""
        return len(self._lent)

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        number = frame.request_id
        if self._closed or frame.kind is not Kind.REQUEST or number in self._lent or len(self._lent) >= LENT_REQUESTS_MAX:
            return self._send_inline(frame, payload)
        lent = _Lent()
        bulk = self._lend_bulk(lent, payload)
        room = self._lend_room(lent, self._exposed.get(number))
        if not bulk and not room:
            return self._send_inline(frame, payload)
        if not bulk and payload:
            self._let_go(lent)  # one request is either here or there
            return self._send_inline(frame, payload)
        self._lent[number] = lent
        shared = Frame(frame.kind, frame.method, frame.flags | FLAG_SHARED, number, frame.timeout_ms, frame.body)
        item = self._put(shared, (encode_places(bulk, room),))
        if self._closed:
            raise self._lost()
        return self._send_lent(item, number) if item.parts else None

    def _lend_bulk(self, lent: _Lent, payload: Sequence[Part]) -> list[Remote]:
        """Where a request's bulk data is to be read; empty where it has to go inline."""
        length = sum([len(part) for part in payload])
        if not BULK_MIN <= length <= PAYLOAD_SIZE_MAX or any(isinstance(part, FileSlice) for part in payload):
            return []
        views = [memoryview(part) for part in payload if len(part)]  # type: ignore[arg-type]
        own = self._registered(lent, views)
        if own is not None:
            return own
        slot = lent.data = self._take_slot(length)
        if slot is None:
            return []
        at = 0
        target = slot.view
        for view in views:
            target[at : at + len(view)] = view
            at += len(view)
        return [slot.remote]

    def _lend_room(self, lent: _Lent, into: memoryview | Sequence[memoryview] | None) -> list[Remote]:
        if into is None:
            return []
        views = [into] if isinstance(into, memoryview) else [view for view in into if len(view)]
        length = sum([len(view) for view in views])
        if not BULK_MIN <= length <= PAYLOAD_SIZE_MAX:
            return []
        own = self._registered(lent, views)
        if own is not None:
            lent.direct = True
            return own
        slot = lent.room = self._take_slot(length)
        return [] if slot is None else [slot.remote]

    def _take_slot(self, length: int) -> Slot | None:
        if self._lent_bytes + length > LENT_BYTES_MAX:
            return None
        slot = self.memory.take(length)
        if slot is not None:
            self._lent_bytes += length
        return slot

    def _registered(self, lent: _Lent, views: Sequence[memoryview]) -> list[Remote] | None:
        """Where these lie, if all of them do in memory that the user registered."""
        if len(views) > PLACES_MAX:
            return None
        places = []
        users = []
        for view in views:
            found = self.memory.find(view)
            if found is None:
                return None
            user, offset = found
            users.append(user)
            places.append(Remote(user.region.address + offset, len(view), user.region.key))
        for user in users:
            user.keep()
        lent.users += users
        return places

    async def _send_lent(self, item: Outgoing, number: int) -> None:
        try:
            await self._sent(item)
        except BaseException:
            # Given up before the first byte left; else the server has the request, and comes for the memory.
            if item.parts and not self._closed:
                lent = self._lent.pop(number, None)
                if lent is not None:
                    self._let_go(lent)
            raise

    def _let_go(self, lent: _Lent) -> None:
        for slot in (lent.data, lent.room):
            if slot is not None:
                self._lent_bytes -= slot.length
                slot.release()
        lent.data = lent.room = None
        for user in lent.users:
            user.release()
        lent.users.clear()
        if lent.waiter is not None:
            self._wake(lent.waiter)

    def _allocate(self, frame: Frame) -> memoryview | Sequence[memoryview]:
        if frame.flags & FLAG_SHARED:
            if frame.payload_length != _REPLY.size:
                raise ProtocolError(f"{frame.payload_length} bytes to describe a reply in memory")
            return memoryview(bytearray(_REPLY.size))
        into = self._exposed.get(frame.request_id) if frame.kind is not Kind.REQUEST else None
        if into is not None:
            room = len(into) if isinstance(into, memoryview) else sum([len(view) for view in into])
            if room >= frame.payload_length:
                return into
        return super()._allocate(frame)

    def _received(self, frames: list[Frame]) -> list[Frame]:
        answers = []
        for frame in frames:
            if frame.kind is not Kind.REQUEST:
                lent = self._lent.pop(frame.request_id, None)
                try:
                    if frame.flags & FLAG_SETTLED:
                        continue
                    if frame.flags & FLAG_SHARED:
                        self._take(frame, lent)
                finally:
                    if lent is not None:
                        self._let_go(lent)
            answers.append(frame)
        return answers

    def _take(self, frame: Frame, lent: _Lent | None) -> None:
        """A reply's bulk data, which is in its room, belongs where its caller wants it."""
        if frame.payload is None or lent is None or not (lent.direct or lent.room is not None):
            raise ProtocolError("a reply in memory that was not lent")
        (length,) = _REPLY.unpack(frame.payload)
        into = self._exposed.get(frame.request_id)
        frame.payload, frame.payload_length, frame.flags = None, length, frame.flags & ~FLAG_SHARED
        if into is None:
            frame.payload_length = 0  # its caller has gone
            return
        views = [into] if isinstance(into, memoryview) else into
        if length > sum([len(view) for view in views]):
            raise ProtocolError(f"a reply of {length} bytes in less memory")
        if lent.room is not None:
            at = 0
            source = lent.room.view
            for view in views:
                count = min(len(view), length - at)
                view[:count] = source[at : at + count]
                at += count
        if isinstance(into, memoryview):
            frame.payload = into[:length]

    def withdraw_now(self, request_id: int) -> bool:
        super().withdraw_now(request_id)
        lent = self._lent.get(request_id)
        return lent is None or not lent.direct

    async def withdraw(self, request_id: int) -> None:
        if self.withdraw_now(request_id):
            return
        lent = self._lent[request_id]
        waiter = lent.waiter = Waiter()
        with trio.move_on_after(WITHDRAW_S):
            try:
                await self._until(waiter)
            except FS3Error:
                pass  # the queue pair is gone
        if waiter.done or self._closed:
            return
        self._close("memory had to be taken back from a request that was given up")

    def _forget(self) -> None:
        for lent in list(self._lent.values()):
            self._let_go(lent)
        self._lent.clear()


@dataclass(slots=True)
class _Borrowed:
    """What a request lent us, and the slots of ours that stand for it. view: of the room's, as the handler got it."""

    bulk: list[Remote]
    room: list[Remote]
    data: Slot | None = None
    reply: Slot | None = None
    view: memoryview | None = None
    answered: bool = False


class RdmaServer(RdmaConnection):
    """The side that serves requests."""

    def __init__(
        self, sock: Socket, peer: str, pair: QueuePair, limits: tuple[Limits, Limits], memory: RegisteredMemory
    ) -> None:
        super().__init__(sock, peer, pair, limits)
        self.memory = memory
        self._borrowed: dict[int, _Borrowed] = {}  # until settled

    def _allocate(self, frame: Frame) -> memoryview | Sequence[memoryview]:
        if frame.flags & FLAG_SHARED and frame.payload_length > _SIZE_MAX:
            raise ProtocolError(f"{frame.payload_length} bytes to describe places in memory")
        return super()._allocate(frame)

    def _received(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            if frame.flags & FLAG_SHARED:
                self._borrow(frame)
        return frames

    def _borrow(self, frame: Frame) -> None:
        if frame.payload is None or frame.kind is not Kind.REQUEST or frame.request_id in self._borrowed:
            raise ProtocolError("a request with places in memory that makes no sense")
        bulk, room = decode_places(frame.payload)
        self._borrowed[frame.request_id] = _Borrowed(bulk, room)
        frame.payload, frame.payload_length = None, sum([each.length for each in bulk])

    async def fetch(self, frame: Frame) -> memoryview:
        borrowed = self._borrowed.get(frame.request_id) if frame.flags & FLAG_SHARED else None
        if frame.payload is not None or borrowed is None or not borrowed.bulk:
            return frame.payload if frame.payload is not None else memoryview(b"")
        length = frame.payload_length
        if self._closed:
            raise self._lost()
        slot = borrowed.data = self.memory.must_take(length)
        transfers = self._reads_of(slot, borrowed.bulk)
        self._reads.extend(transfers)
        self._guarded(self._pump)
        try:
            for transfer in transfers:
                assert transfer.waiter is not None
                await self._until(transfer.waiter)
        except BaseException:  # cancelled, or closed already
            self._abandon(transfers)
            raise
        frame.payload = slot.view
        return frame.payload

    def _abandon(self, transfers: Sequence[Transfer]) -> None:
        """Nobody wants these any more. The client hears that its memory is free only after those under way are done."""
        for transfer in transfers:
            if transfer in self._reads:
                self._reads.remove(transfer)
                transfer.over()
        self._flow.fence()

    @staticmethod
    def _reads_of(slot: Slot, places: Sequence[Remote]) -> list[Transfer]:
        transfers = []
        at = slot.offset
        for place in places:
            transfers.append(Transfer(slot.region, at, place, slot, Waiter()))
            at += place.length
        return transfers

    def room(self, frame: Frame, size: int) -> memoryview | None:
        borrowed = self._borrowed.get(frame.request_id)
        if borrowed is None or borrowed.reply is not None or not size:
            return None
        if size > sum([place.length for place in borrowed.room]):
            return None
        slot = self.memory.take(size)
        if slot is None:
            return None
        borrowed.reply = slot
        borrowed.view = slot.view
        return borrowed.view

    def start_send(self, frame: Frame, payload: Sequence[Part] = (), more: bool = False) -> Awaitable[None] | None:
        if frame.kind is Kind.REQUEST or self._closed:
            return self._send_inline(frame, payload)
        borrowed = self._borrowed.get(frame.request_id)
        if borrowed is None:
            return self._send_inline(frame, payload)
        borrowed.answered = True
        if borrowed.view is None or len(payload) != 1 or payload[0] is not borrowed.view:
            return self._answer(borrowed, self._send_inline(frame, payload))
        self._write(borrowed)
        length = len(borrowed.view)
        answer = Frame(frame.kind, frame.method, frame.flags | FLAG_SHARED, frame.request_id, 0, frame.body)
        return self._answer(borrowed, self._send_inline(answer, (_REPLY.pack(length),)))

    def _answer(self, borrowed: _Borrowed, rest: Awaitable[None] | None) -> Awaitable[None] | None:
        return None if rest is None else self._answer_rest(borrowed, rest)

    @staticmethod
    async def _answer_rest(borrowed: _Borrowed, rest: Awaitable[None]) -> None:
        try:
            await rest
        except BaseException:
            borrowed.answered = False  # `settle` says so instead
            raise

    def _write(self, borrowed: _Borrowed) -> None:
        """Put what stands in our room into the client's."""
        slot = borrowed.reply
        assert slot is not None
        at = 0
        for place in borrowed.room:
            count = min(place.length, slot.length - at)
            if count <= 0:
                break
            remote = Remote(place.address, count, place.key)
            self._outgoing.append(Transfer(slot.region, slot.offset + at, remote, slot))
            at += count

    def settle(self, frame: Frame) -> None:
        borrowed = self._borrowed.pop(frame.request_id, None) if frame.flags & FLAG_SHARED else None
        if borrowed is None:
            return
        self._give_up(borrowed)
        if not borrowed.answered and not self._closed:
            self._put(Frame(Kind.REPLY, frame.method, FLAG_SETTLED, frame.request_id, 0, b""))

    @staticmethod
    def _give_up(borrowed: _Borrowed) -> None:
        """The handler has no use for the slots any more; the device may."""
        for slot in (borrowed.data, borrowed.reply):
            if slot is not None:
                slot.release()
        borrowed.data = borrowed.reply = borrowed.view = None
