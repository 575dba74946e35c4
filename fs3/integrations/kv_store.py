"""Blocks by keys in a folder of fs3: what the connectors of inference engines keep their KV caches in.

    store = open_store({"place": "/mnt/fs3/kv", "capacity": "1TiB"})   # through the mount's rings; see kv_options
    store = open_store({"place": "fs3://10.0.0.1:7000/kv"})            # by a client in this process, without a mount
    store.put([key, ...], [buffer, ...]); store.get([key, ...], [buffer, ...])

A store is a log: each process appends blocks to data files of its own ("segments"), and then to the segment's index, which
publishes them. So a batch of blocks costs two writes and no metadata, and one file holds hundreds of blocks. Everybody reads
everybody's indexes: what one process has put, others find after refresh_s; a process that starts finds all. A block is taken
only if its checksum is that of its index, so one that a crash tore, or that was deleted meanwhile, is a miss.

capacity_bytes bounds the data files of the whole folder, whoever wrote them: before a segment is made, the segments that
nobody read or wrote for longest are removed. With n processes that write, there may be n segments more for a moment.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..checksum import crc32c
from ..doors import Door, Piece
from ..env import SystemEnv
from . import kv_records
from .kv_segments import ALIGNMENT, DATA, INDEX, Readers, Segment, Writer, fresh_name, make_room, remove, sizes, view_of

logger = logging.getLogger("fs3.integrations.kv_store")

SEGMENT_BYTES = 256 * 1024 * 1024
SEGMENT_BYTES_MIN = 1024 * 1024
SEGMENTS_MIN, SEGMENTS_MAX = 8, 1024
"""A bounded store is cut into so many segments at least, that not too much is lost at once; and at most, for all of them are
listed to see what is new."""
REFRESH_PART = 0.1
"""Looking for what is new takes no more of the time than this, and is done less often where it would."""
INDEX_PIECE_BYTES = 16 * 1024 * 1024
TOUCH_S = 30.0
"""Reading says so often at most that a segment is in use."""
SCRAMBLE_BYTES = 64


class Block(NamedTuple):
    """Where a block is. at: of its record in the segment's index."""

    segment: Segment
    offset: int
    length: int
    crc: int
    at: int


class BlockStore:
    """One folder; all methods may be called by any number of threads. Raises OSError from __init__ only: later, what cannot
    be read is a miss, and what cannot be written is not kept, with a warning."""

    def __init__(
        self,
        door: Door,
        *,
        capacity_bytes: int = 0,
        segment_bytes: int = 0,
        refresh_s: float = 1.0,
        verify: bool = True,
        clock: Callable[[], float] = SystemEnv.monotonic,
        wall_ns: Callable[[], int] = SystemEnv.wall_ns,
    ) -> None:
        """capacity_bytes: 0: no bound but the file system's. segment_bytes: 0: as suits the capacity. verify: by the
        checksum of each block that is read."""
        segment_bytes = segment_bytes or max(SEGMENT_BYTES, capacity_bytes // SEGMENTS_MAX)
        if capacity_bytes:
            segment_bytes = max(SEGMENT_BYTES_MIN, min(segment_bytes, capacity_bytes // SEGMENTS_MIN))
            if capacity_bytes < 2 * segment_bytes:
                raise ValueError(f"capacity_bytes: at least {2 * segment_bytes}, found {capacity_bytes}")
        self._door = door
        self._capacity = capacity_bytes
        self._segment_bytes = segment_bytes
        self._refresh_s = refresh_s
        self._verify = verify
        self._clock = clock
        self._wall_ns = wall_ns
        self._lock = threading.Lock()  # around what is known: the dictionaries, never around a call of the door
        self._blocks: dict[bytes, Block] = {}
        self._segments: dict[str, Segment] = {}
        self._mine: set[str] = set()  # names of segments that this process fills
        self._writing = threading.Lock()  # around the choice of places, and appends to indexes
        self._writer: Writer | None = None
        self._refreshing = threading.Lock()
        self._fresh_until = float("-inf")
        self._readers = Readers(door)
        door.make((INDEX, DATA))
        self._refresh()

    # Finding

    def exists(self, keys: Sequence[str | bytes]) -> list[bool]:
        """Whether each block is there, as far as is known: others' are known refresh_s after they were put."""
        return [block is not None for block in self._find([kv_records.digest(key) for key in keys])]

    def leading(self, keys: Sequence[str | bytes]) -> int:
        """How many of the keys, from the first on without a gap, are there."""
        found = self.exists(keys)
        return found.index(False) if False in found else len(found)

    def lengths(self, keys: Sequence[str | bytes]) -> list[int | None]:
        """Bytes of each block; None where there is none."""
        found = self._find([kv_records.digest(key) for key in keys])
        return [None if block is None else block.length for block in found]

    def _find(self, digests: Sequence[bytes]) -> list[Block | None]:
        with self._lock:
            found = [self._blocks.get(digest) for digest in digests]
        if None in found and self._clock() >= self._fresh_until:
            self._refresh_or_warn()
            with self._lock:
                found = [self._blocks.get(digest) for digest in digests]
        return found

    def _refresh_or_warn(self) -> None:
        try:
            self._refresh()
        except OSError as error:
            logger.warning("%s: what others have put cannot be looked up: %s", self._door.place, error)

    def refresh(self) -> None:
        """Learn now what others have put and removed. Raises OSError."""
        self._fresh_until = float("-inf")
        self._refresh()

    def _refresh(self) -> None:
        with self._refreshing:
            began = self._clock()
            if began < self._fresh_until:
                return  # another thread has just done it
            with self._lock:
                known = list(self._segments.values())
            listing = self._door.entries(INDEX)
            gone = {segment for segment in known if segment.name not in listing}
            with self._writing:
                if self._writer is not None and self._writer.segment in gone:
                    self._finish(self._writer)
            for segment in gone:
                self._forget(segment)
            grown: list[tuple[Segment, int]] = []
            for name, entry in listing.items():
                segment = self._segments.get(name) or Segment(name)
                if name not in self._mine and entry.size != segment.size and entry.size > segment.seen:
                    grown.append((segment, entry.size))
            self._learn(grown)
            ended = self._clock()
            self._fresh_until = ended + max(self._refresh_s, (ended - began) / REFRESH_PART)

    def _learn(self, grown: list[tuple[Segment, int]]) -> None:
        """Read what is new in these indexes, up to their sizes."""
        first = 0
        while first < len(grown):
            last, total = first, 0
            while last < len(grown) and last - first < 128 and (total < INDEX_PIECE_BYTES or last == first):
                total += grown[last][1] - grown[last][0].seen
                last += 1
            self._learn_some(grown[first:last])
            first = last

    def _learn_some(self, grown: list[tuple[Segment, int]]) -> None:
        pieces: list[Piece] = []
        opened: list[tuple[Segment, int]] = []
        counts: dict[int, int] = {}
        try:
            for segment, size in grown:
                try:
                    handle = self._door.open(segment.index)
                except FileNotFoundError:
                    continue  # removed meanwhile
                pieces.append((handle, segment.seen, memoryview(bytearray(size - segment.seen))))
                opened.append((segment, size))
            self._door.read(pieces, counts.__setitem__)
        finally:
            for handle, _, _ in pieces:
                with suppress(OSError):  # of a mount that is gone
                    self._door.close(handle)
        for number, ((segment, size), (_, at, data)) in enumerate(zip(opened, pieces, strict=True)):
            count = counts[number]
            if count > 0:
                self._take(segment, data[:count], at, size)

    def _take(self, segment: Segment, data: memoryview, at: int, size: int) -> None:
        """Know the blocks of a part of an index."""
        if at == 0:
            if not kv_records.is_header(data):
                if len(data) >= kv_records.RECORD_SIZE:
                    logger.warning("%s: %s is no index of this version", self._door.place, segment.index)
                    segment.size = size
                    with self._lock:
                        self._segments[segment.name] = segment
                return
            data, at = data[kv_records.RECORD_SIZE :], kv_records.RECORD_SIZE
        with self._lock:
            self._segments[segment.name] = segment
            for record in kv_records.unpack(data, at):
                at += kv_records.RECORD_SIZE
                if record is not None:
                    self._blocks[record.digest] = Block(segment, record.offset, record.length, record.crc, record.at)
                    segment.digests.append(record.digest)
            segment.seen, segment.size = at, size

    def _forget(self, segment: Segment) -> None:
        """It was removed, by us or others."""
        with self._lock:
            self._segments.pop(segment.name, None)
            for digest in segment.digests:
                block = self._blocks.get(digest)
                if block is not None and block.segment is segment:
                    del self._blocks[digest]
        self._readers.drop(segment)

    # Reading

    def get(self, keys: Sequence[str | bytes], into: Sequence[Any]) -> list[int | None]:
        """Read blocks into buffers; the length of each, or None where there is none that is whole and fits its buffer, of
        which parts may be overwritten then."""
        digests = [kv_records.digest(key) for key in keys]
        views = [view_of(buffer) for buffer in into]
        found: list[int | None] = [None] * len(digests)
        pieces: list[Piece] = []
        sources: list[tuple[int, Block]] = []
        for position, block in enumerate(self._find(digests)):
            if block is not None and block.length <= len(views[position]):
                handle = self._acquire(block.segment)
                if handle is not None:
                    pieces.append((handle, block.offset, views[position][: block.length]))
                    sources.append((position, block))
        wrong: list[tuple[bytes, Block]] = []
        broken: dict[Segment, int] = {}

        def done(number: int, count: int) -> None:
            position, block = sources[number]
            if count < 0:
                broken[block.segment] = -count
            elif count == block.length and (not self._verify or crc32c(pieces[number][2]) == block.crc):
                found[position] = count
            else:
                wrong.append((digests[position], block))

        try:
            self._door.read(pieces, done)
        except OSError as error:
            logger.warning("%s: cannot be read: %s", self._door.place, error)
        finally:
            for _, block in sources:
                self._readers.release(block.segment)
        for segment, number in broken.items():
            logger.warning("%s: %s cannot be read: %s", self._door.place, segment.data, os.strerror(number))
            self._readers.reopen(segment)
        if wrong:
            self._dismiss(wrong)
        self._touch({block.segment for _, block in sources})
        return found

    def _acquire(self, segment: Segment) -> Any:
        try:
            return self._readers.acquire(segment)
        except FileNotFoundError:
            self._forget(segment)
        except OSError as error:
            logger.warning("%s: %s cannot be opened: %s", self._door.place, segment.data, error)
        return None

    def _dismiss(self, wrong: list[tuple[bytes, Block]]) -> None:
        """Blocks that were deleted, evicted or torn are not asked for again."""
        logger.info("%s: %d blocks are not what their index says, and count as missing", self._door.place, len(wrong))
        with self._lock:
            for digest, block in wrong:
                if self._blocks.get(digest) is block:
                    del self._blocks[digest]

    def _touch(self, segments: set[Segment]) -> None:
        now = self._clock()
        for segment in segments:
            if now >= segment.touched + TOUCH_S and not segment.gone:
                segment.touched = now
                try:
                    self._door.touch(segment.data)
                except OSError as error:
                    logger.warning("%s: %s: %s", self._door.place, segment.data, error)

    # Writing

    def put(self, keys: Sequence[str | bytes], blocks: Sequence[Any]) -> list[bool]:
        """Keep blocks; whether each is kept. One that is there already stays as it is. When this returns, others can find
        what was kept, and the bytes are in memory of all replicas."""
        digests = [kv_records.digest(key) for key in keys]
        views = [view_of(block) for block in blocks]
        with self._lock:
            kept = [digest in self._blocks for digest in digests]
        todo = list({digests[n]: n for n in range(len(kept)) if not kept[n]}.values())
        try:
            self._put(digests, views, todo, kept)
        except OSError as error:
            logger.warning("%s: blocks are not kept: %s", self._door.place, error)
            if error.errno == errno.ENOSPC:
                self._make_room(full=True)
        same = {digests[n] for n in todo if kept[n]}
        return [done or digest in same for done, digest in zip(kept, digests, strict=True)]

    def _put(self, digests: list[bytes], views: list[memoryview], todo: list[int], kept: list[bool]) -> None:
        places = self._places([len(views[number]) for number in todo])
        error = 0
        try:
            pieces = [(writer.data, offset, views[n]) for (writer, offset), n in zip(places, todo, strict=True)]
            written = self._door.write(pieces)
            fresh: dict[Writer, list[tuple[int, int]]] = {}
            for (writer, offset), number, count in zip(places, todo, written, strict=True):
                if count == len(views[number]):
                    fresh.setdefault(writer, []).append((number, offset))
                else:
                    writer.full = True
                    error = error or (-count if count < 0 else errno.EIO)
            for writer, each in fresh.items():
                records = [(digests[number], offset, len(views[number]), crc32c(views[number])) for number, offset in each]
                self._publish(writer, records)
                for number, _ in each:
                    kept[number] = True
        finally:
            self._leave([writer for writer, _ in places])
        if error:
            raise OSError(error, "not all were written")

    def _places(self, lengths: list[int]) -> list[tuple[Writer, int]]:
        """Of each block the segment and offset where it goes; `_leave` must follow."""
        places: list[tuple[Writer, int]] = []
        try:
            with self._writing:
                for length in lengths:
                    writer = self._writer
                    if writer is None or writer.full or writer.end + length > writer.size:
                        writer = self._roll(length)
                    places.append((writer, writer.end))
                    writer.end += -(-length // ALIGNMENT) * ALIGNMENT
                    writer.pending += 1
        except BaseException:
            self._leave([writer for writer, _ in places])
            raise
        return places

    def _roll(self, length: int) -> Writer:
        """Begin another segment, with room for a block of this length at least."""
        old, self._writer = self._writer, None
        if old is not None:
            self._finish(old)
        size = max(self._segment_bytes, -(-length // ALIGNMENT) * ALIGNMENT)
        segment = Segment(fresh_name(self._wall_ns()))
        self._door.make((INDEX, DATA))
        index = self._door.create(segment.index, 0)
        try:
            self._append(index, 0, kv_records.header(size))
            self._mine.add(segment.name)
            data = self._door.create(segment.data, size)
        except BaseException:
            self._door.close(index)
            self._mine.discard(segment.name)
            self._door.remove(segment.index)
            raise
        segment.seen = kv_records.RECORD_SIZE
        with self._lock:
            self._segments[segment.name] = segment
        self._writer = Writer(segment, data, index, size)
        if self._capacity:
            self._make_room()
        return self._writer

    def _append(self, index: Any, at: int, data: bytes) -> None:
        count = self._door.write([(index, at, data)])[0]
        if count != len(data):
            raise OSError(-count if count < 0 else errno.EIO, "the index cannot be written")

    def _publish(self, writer: Writer, records: list[tuple[bytes, int, int, int]]) -> None:
        segment = writer.segment
        packed = b"".join([kv_records.pack(*record) for record in records])
        with self._writing:
            at = segment.seen
            if at < 0:
                raise OSError(errno.EIO, "the index cannot be written")
            try:
                self._append(writer.index, at, packed)
            except OSError:
                segment.seen = -1  # who knows what is there now
                writer.full = True
                raise
            segment.seen = at + len(packed)
            with self._lock:
                for number, (digest, offset, length, crc) in enumerate(records):
                    self._blocks[digest] = Block(segment, offset, length, crc, at + number * kv_records.RECORD_SIZE)
                    segment.digests.append(digest)

    def _leave(self, writers: list[Writer]) -> None:
        with self._writing:
            for writer in writers:
                writer.pending -= 1
            for writer in set(writers):
                if writer.full and writer.pending == 0:
                    self._finish(writer)

    def _finish(self, writer: Writer) -> None:
        """Nobody gets more of a segment. Closes it once nobody writes to it any more."""
        writer.full = True
        if self._writer is writer:
            self._writer = None
        if writer.pending:
            return
        try:
            self._door.truncate(writer.data, writer.end)  # what is free counts no more
        except OSError as error:
            logger.warning("%s: %s: %s", self._door.place, writer.segment.data, error)
        for handle in (writer.data, writer.index):
            try:
                self._door.close(handle)
            except OSError as error:
                logger.warning("%s: %s: %s", self._door.place, writer.segment.name, error)
        self._mine.discard(writer.segment.name)
        writer.segment.size = writer.segment.seen

    # Removing

    def _make_room(self, *, full: bool = False) -> None:
        """full: the file system is, whatever the bound: an eighth goes."""
        try:
            capacity = self._capacity
            if full:
                capacity = sizes(self._door.entries(DATA)) * 7 // 8
            names = make_room(self._door, capacity, set(self._mine))
        except OSError as error:
            logger.warning("%s: nothing can be removed: %s", self._door.place, error)
            return
        with self._lock:
            segments = [self._segments[name] for name in names if name in self._segments]
        for segment in segments:
            self._forget(segment)

    def delete(self, keys: Sequence[str | bytes]) -> list[bool]:
        """Remove blocks, for everybody; whether each was there. Their space comes back with their segments."""
        digests = [kv_records.digest(key) for key in keys]
        found = self._find(digests)
        by_segment: dict[Segment, list[tuple[bytes, Block]]] = {}
        for digest, block in zip(digests, found, strict=True):
            if block is not None:
                by_segment.setdefault(block.segment, []).append((digest, block))
        for segment, each in by_segment.items():
            with self._lock:
                for digest, block in each:
                    if self._blocks.get(digest) is block:
                        del self._blocks[digest]
            try:
                self._strike(segment, each)
            except FileNotFoundError:
                pass  # removed meanwhile
            except OSError as error:
                logger.warning("%s: blocks cannot be deleted for good: %s", self._door.place, error)
        return [block is not None for block in found]

    def _strike(self, segment: Segment, each: list[tuple[bytes, Block]]) -> None:
        """For those who start later in the index; for those who know the block already in its content."""
        index = self._door.open(segment.index, write=True)
        try:
            dead = bytes([kv_records.DEAD])
            self._door.write([(index, block.at + kv_records.STATE_AT, dead) for _, block in each])
        finally:
            self._door.close(index)
        data = self._door.open(segment.data, write=True)
        try:
            noise = [(block, bytes([byte ^ 0xA5 for byte in digest * 4])) for digest, block in each]
            self._door.write([(data, block.offset, text[: min(SCRAMBLE_BYTES, block.length)]) for block, text in noise])
        finally:
            self._door.close(data)

    def clear(self) -> None:
        """Remove all blocks, for everybody; what others put meanwhile may stay. Raises OSError."""
        with self._writing:
            if self._writer is not None:
                self._finish(self._writer)
        for name in {*self._door.entries(INDEX), *self._door.entries(DATA)} - self._mine:
            remove(self._door, name)
        self.refresh()

    # The rest

    def register(self, buffer: Any) -> None:
        """Memory that blocks will be read into and written from, until close(): over RDMA they are not copied then."""
        self._door.register(buffer)

    def usage(self) -> tuple[int, int]:
        """Bytes of the data files of all who write here, and how many blocks are known. Raises OSError."""
        total = sizes(self._door.entries(DATA))
        with self._lock:
            return total, len(self._blocks)

    @property
    def capacity_bytes(self) -> int:
        return self._capacity

    def close(self) -> None:
        """Blocks stay. Nobody may be using it."""
        with self._writing:
            if self._writer is not None:
                self._finish(self._writer)
        self._readers.end()
        self._door.end()
