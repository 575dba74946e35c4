"""The read path: ranges of committed chunks, with checksums, in one reply.

What needs no waiting for the disk is read at once, one range after the other; all others then wait together. The bytes of a
request lie in as few buffers as can be, which are used again once the reply has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import trio

from fs3.api.packed import PackedReadReply, PackedReadRequest, RangeFailure, pack_numbers, unpack_ranges
from fs3.api.storage import READ_RANGES_MAX, ReadRange, ReadReply, ReadRequest, ReadResult
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.rpc.server import Call
from fs3.transport.base import Loan, Part
from fs3.transport.buffers import POOLED_SIZE_MAX
from fs3.wire.frame import PAYLOAD_SIZE_MAX

from . import blocks
from .engine import ReadData
from .local import DAMAGE, LocalTarget, StorageNode
from .replica import readable

WAITING_MAX = 16
"""Ranges of one request that wait for disks at once."""

_ABSENT = ReadResult(0, 0, 0, 0, ())
_EMPTY = memoryview(b"")


async def read(node: StorageNode, request: ReadRequest, call: Call) -> ReadReply:
    """Answer all ranges. Raises INVALID on a request that is too large or makes no sense."""
    reader = _Reader(node, request.ranges, call)
    reader.begin()
    if reader.waiting:
        await reader.wait()
    parts = reader.parts()
    if parts:
        call.reply_payload(parts)
    return ReadReply(tuple(reader.results))


async def read_packed(node: StorageNode, request: PackedReadRequest, call: Call) -> PackedReadReply:
    """As read. Raises ProtocolError besides."""
    reader = _PackedReader(node, request, call)
    reader.begin()
    if reader.waiting:
        await reader.wait()
    parts = reader.parts()
    if parts:
        call.reply_payload(parts)
    return reader.reply()


class _Reading:
    """The ranges of one request on their way."""

    def __init__(self, node: StorageNode, lengths: Sequence[int], call: Call) -> None:
        count, size = len(lengths), sum(lengths)
        if count > READ_RANGES_MAX or size > PAYLOAD_SIZE_MAX:
            raise FS3Error(Code.INVALID, f"{count} ranges, or too many bytes, in one request")
        self._node = node
        self._left = size  # bytes that have no room yet
        self._filled: list[memoryview] = []
        self._theirs = call.room(size)  # room for all of it in the caller's own memory
        loan = call.lend(size) if self._theirs is None else None  # the same, with rules
        self._loan = loan if loan is not None and _fit(lengths, loan.views) else None
        self._lent = iter(self._loan.views if self._loan is not None else ())
        self._late: set[int] = set()  # ranges that have yet to be put into the loan
        self._lengths = lengths
        self._buffer = _EMPTY if self._theirs is None else self._theirs
        self._used = 0
        self._data = [_EMPTY] * count
        self._full = True  # all ranges have all their bytes
        self.waiting: list[tuple[int, LocalTarget, memoryview]] = []

    def begin(self) -> None:
        """Read what needs no waiting."""
        loan = self._loan
        if loan is None:
            self.read_now()
            return
        if not loan.begin():
            raise FS3Error(Code.CONNECTION_LOST, "the client gave this request up")
        try:
            self.read_now()
        finally:
            loan.end()

    def read_now(self) -> None:
        raise NotImplementedError

    def _item(self, position: int) -> ReadRange:
        raise NotImplementedError

    def _take(self, position: int, found: ReadData) -> None:
        """A range was read. Its bytes are in its room."""
        raise NotImplementedError

    def _refuse(self, position: int, error: FS3Error) -> None:
        """A range could not be read."""
        raise NotImplementedError

    def _room(self, length: int) -> memoryview:
        """Room for one range, behind the one before where the buffer suffices."""
        start = self._used
        if start + length > len(self._buffer):
            self._filled.append(self._buffer[:start])
            following = next(self._lent, None)
            if following is not None:
                self._buffer, self._used = following, length
                return following[:length]
            self._buffer, start = self._node.buffers.take(max(length, min(self._left, POOLED_SIZE_MAX))), 0
        self._left -= length
        self._used = start + length
        return self._buffer[start : self._used]

    def _read_one(self, position: int, item: ReadRange, target: LocalTarget, into: memoryview) -> None:
        """Read a range, unless it has to wait for the disk, which it is marked for then."""
        engine = target.engine
        loan = self._loan
        if loan is not None and loan.fragile:
            into = self._elsewhere(position, into)
        try:
            state = engine.get(item.chunk)
            if state is None:
                self._full = self._full and not item.length
                return
            if not readable(state):
                raise FS3Error(Code.CHUNK_PENDING, "an update of this chunk is being committed")
            try:
                found = engine.read_now(item.chunk, item.offset, into)
            except FS3Error as error:
                raise self._failed(target, item, error) from None
        except FS3Error as error:
            self._refuse(position, error)
            return
        if found is None:
            if loan is not None and not loan.fragile:
                into = self._elsewhere(position, into)
            self.waiting.append((position, target, into))
        else:
            self._take(position, found)

    def _elsewhere(self, position: int, into: memoryview) -> memoryview:
        """Room for a range that is put into the loan in the end: what has to wait may not be read there."""
        self._late.add(position)
        return self._node.buffers.take(len(into))

    async def wait(self) -> None:
        """Read the others, several at once."""
        if len(self.waiting) == 1:
            await self._work()
            return
        async with trio.open_nursery() as nursery:
            for _ in range(min(len(self.waiting), WAITING_MAX)):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while self.waiting:
            position, target, into = self.waiting.pop()
            item = self._item(position)
            try:
                found = await target.engine.read_into(item.chunk, item.offset, into)
            except FS3Error as error:
                self._refuse(position, self._failed(target, item, error))
                continue
            self._take(position, found)
            self._node.env.metrics.count("storage.read_bytes", len(found.data))

    def _failed(self, target: LocalTarget, item: ReadRange, error: FS3Error) -> FS3Error:
        """Take note of what the engine raised; what to tell the client."""
        if error.code is Code.DISK_FAILED:
            self._node.disk_failed(target, error)
        elif error.code in DAMAGE:
            return self._node.unreadable(target, item.chunk, error)
        return error

    def parts(self) -> list[Part]:
        """The reply's payload: whole buffers where all ranges are full."""
        if self._loan is not None:
            return self._lent_parts(self._loan)
        if self._full and self._theirs is not None:
            self._node.env.metrics.count("storage.shared_reads")
            return [self._theirs]
        return [part for part in ([*self._filled, self._buffer[: self._used]] if self._full else self._data) if len(part)]

    def _lent_parts(self, loan: Loan) -> list[Part]:
        """The same, of what stands in the client's memory, but for ranges that do not yet."""
        if self._full and (not self._late or self._put(loan)):
            self._node.env.metrics.count("storage.lent_reads")
            return loan.views  # type: ignore[return-value]
        return [  # no views: the client may use its memory again
            data if position in self._late else loan.get(start, len(data))
            for position, (data, start) in enumerate(zip(self._data, self._starts(), strict=False))
            if len(data)
        ]

    def _put(self, loan: Loan) -> bool:
        """Put what is elsewhere into the client's memory, if it takes it."""
        if not loan.begin():
            raise FS3Error(Code.CONNECTION_LOST, "the client gave this request up")
        try:
            late = [(start, self._data[position]) for position, start in enumerate(self._starts()) if position in self._late]
            return all(loan.put(start, data) for start, data in late)
        finally:
            loan.end()

    def _starts(self) -> Iterable[int]:
        return accumulate(self._lengths, initial=0)


def _fit(lengths: Sequence[int], places: Sequence[memoryview]) -> bool:
    """Whether each range lies in one place."""
    if len(places) == 1:
        return True
    rest = iter(places)
    left = 0
    for length in lengths:
        if length > left:
            if left:
                return False
            left = len(next(rest, _EMPTY))
        left -= length
        if left < 0:
            return False
    return True


class _Reader(_Reading):
    """Ranges that came one by one."""

    def __init__(self, node: StorageNode, ranges: tuple[ReadRange, ...], call: Call) -> None:
        for item in ranges:
            if item.offset < 0 or item.length < 0:
                raise FS3Error(Code.INVALID, f"{item.length} bytes at {item.offset}")
        super().__init__(node, [item.length for item in ranges], call)
        self._ranges = ranges
        self.results = [_ABSENT] * len(ranges)

    def read_now(self) -> None:
        """Read what needs no waiting."""
        node = self._node
        known: dict[int, tuple[int, int, LocalTarget]] = {}  # by target, those of this request
        for position, item in enumerate(self._ranges):
            into = self._room(item.length)
            chain, version = item.chain, item.chain_version
            entry = known.get(item.target)
            if entry is not None and entry[0] == chain and entry[1] == version:
                target = entry[2]
            else:
                try:
                    target = node.target(node.map.for_read(chain, version, item.target))
                except FS3Error as error:
                    self._refuse(position, error)
                    continue
                known[item.target] = chain, version, target
            self._read_one(position, item, target, into)
        metrics = node.env.metrics
        metrics.count("storage.reads", len(self._ranges))
        metrics.count("storage.read_bytes", sum([len(data) for data in self._data]))

    def _item(self, position: int) -> ReadRange:
        return self._ranges[position]

    def _take(self, position: int, found: ReadData) -> None:
        data = found.data
        self._data[position] = data
        if len(data) != self._ranges[position].length:
            self._full = False
        self.results[position] = ReadResult(0, len(data), found.chunk_length, found.version, found.checksums)

    def _refuse(self, position: int, error: FS3Error) -> None:
        self._full = False
        self.results[position] = ReadResult(int(error.code), 0, 0, 0, (), error.message)


class _PackedReader(_Reading):
    """Ranges in columns. Most are read by one call of the engine each, all others one by one, as above."""

    def __init__(self, node: StorageNode, request: PackedReadRequest, call: Call) -> None:
        self._columns = unpack_ranges(request.ranges)
        places, lengths = self._columns[0], self._columns[4]
        super().__init__(node, lengths, call)
        if places and max(places) >= len(request.places):
            raise FS3Error(Code.INVALID, f"a range in place {max(places)} of {len(request.places)}")
        self._places = request.places
        self._checksums = [b""] * len(lengths)
        self._failures: list[RangeFailure] = []

    def read_now(self) -> None:
        """Read what needs no waiting."""
        places, inodes, indexes, offsets, lengths = self._columns
        targets = [self._target(position) for position in range(len(self._places))]
        quick: list[Callable[[int, int, int, memoryview], bytes | None]] = [
            _nothing if isinstance(target, FS3Error) else target.engine.read_quickly for target in targets
        ]
        data, checksums, room = self._data, self._checksums, self._room
        for position, place in enumerate(places):
            into = room(lengths[position])
            found = quick[place](inodes[position], indexes[position], offsets[position], into)
            if found is not None:
                data[position] = into
                checksums[position] = found
                continue
            target = targets[place]
            if isinstance(target, FS3Error):
                self._refuse(position, target)
            else:
                self._read_one(position, self._item(position), target, into)
        metrics = self._node.env.metrics
        metrics.count("storage.reads", len(places))
        metrics.count("storage.read_bytes", sum(lengths) if self._full else sum([len(view) for view in data]))

    def _target(self, number: int) -> LocalTarget | FS3Error:
        place = self._places[number]
        node = self._node
        try:
            return node.target(node.map.for_read(place.chain, place.chain_version, place.target))
        except FS3Error as error:
            return error

    def _item(self, position: int) -> ReadRange:
        number, inode, index, offset, length = [column[position] for column in self._columns]
        place = self._places[number]
        return ReadRange(place.chain, place.chain_version, place.target, ChunkId(inode, index), offset, length)

    def _take(self, position: int, found: ReadData) -> None:
        data = self._data[position] = found.data
        if len(data) != self._columns[4][position]:
            self._full = False
        self._checksums[position] = blocks.pack(found.checksums)

    def _refuse(self, position: int, error: FS3Error) -> None:
        self._full = False
        self._failures.append(RangeFailure(position, int(error.code), error.message))

    def reply(self) -> PackedReadReply:
        lengths = b"" if self._full else pack_numbers([len(data) for data in self._data])
        return PackedReadReply(b"".join(self._checksums), lengths, tuple(self._failures))


def _nothing(inode: int, index: int, offset: int, into: memoryview) -> bytes | None:
    return None
