"""The engine port: the chunks of one target. ChunkEngine (chunk_engine.py) is the implementation.

The caller holds the chunk's lock during put(), commit() and drop_pending(); reads need none. What a call changed survives a
crash of the process when it returned, and power loss after sync(). Every chunk is at any instant as it was before a call, or
as it is after it. Raises NO_SPACE (nothing changed), DISK_FAILED (the target must not be used any more), CHECKSUM (what is
stored does not match its checksums), READ_FAILED (the disk cannot read it: the same as damage, for what it means).

A chunk whose committed content was found not to match, or not to be readable, is damaged: reading it raises CHECKSUM at
once, and so do updates that keep any of its content. What replaces all of it heals it: a committed REPLACE, REMOVE, a WRITE
of all of it or more, a TRUNCATE to nothing. LOST makes a chunk damaged, over restarts too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fs3.api.storage import ChunkMeta, Update, UpdateResult
from fs3.ids import ChunkId, RequestTag

from .replica import Chunk, ChunkVersion


@dataclass(slots=True)
class ReadData:
    """Bytes of a chunk's committed version. data may be shorter than asked for; checksums: of its pieces."""

    data: memoryview
    checksums: tuple[int, ...]
    chunk_length: int
    version: int


class Engine(ABC):
    """One target's chunks."""

    @abstractmethod
    def get(self, chunk: ChunkId) -> Chunk | None:
        """The chunk's state; None where it is absent. A live object: look again after an await."""

    @abstractmethod
    async def put(
        self, update: Update, version: int, chain_version: int, data: memoryview, *, commit: bool, remember: bool
    ) -> ChunkVersion:
        """Apply an update to the committed version, giving the pending one, or with `commit` at once the committed one.

        data: the verified payload. An earlier pending version is dropped. remember: as for commit().
        """

    @abstractmethod
    def commit(self, chunk: ChunkId, chain_version: int, *, remember: bool) -> ChunkVersion:
        """Make the pending version the committed one. remember: store its tag and result among the channels too."""

    @abstractmethod
    def drop_pending(self, chunk: ChunkId) -> None:
        """Forget the pending version, if there is one."""

    async def read(self, chunk: ChunkId, offset: int, length: int) -> ReadData:
        """A range of the committed version, in a buffer of its own."""
        state = self.get(chunk)
        there = state.committed.length if state is not None and state.committed is not None else 0
        return await self.read_into(chunk, offset, memoryview(bytearray(max(0, min(length, there - offset)))))

    @abstractmethod
    async def read_into(self, chunk: ChunkId, offset: int, into: memoryview) -> ReadData:
        """A range of the committed version; its bytes are put at the start of `into`."""

    @abstractmethod
    def read_now(self, chunk: ChunkId, offset: int, into: memoryview) -> ReadData | None:
        """As read_into, but None where it would have to wait for the disk; `into` holds anything then."""

    def read_quickly(self, inode: int, index: int, offset: int, into: memoryview) -> bytes | None:
        """As read_now, where all of `into` can be had and no update of the chunk is pending; else None, and so for all that
        is not the usual. Returns the checksums of the pieces, little-endian u32 each."""
        return None

    @abstractmethod
    async def read_whole(self, chunk: ChunkId, *, pending: bool) -> memoryview:
        """All of the pending or the committed version, verified. The caller holds the chunk's lock."""

    @abstractmethod
    async def prefetch(self, chunk: ChunkId) -> tuple[int, bool]:
        """Read a chunk's committed version from the disk into memory, without looking at it. How many bytes that were, and
        whether this disk is read by way of a page cache at all."""

    @abstractmethod
    def pending(self) -> list[ChunkId]:
        """The chunks that have a pending version."""

    @abstractmethod
    def chunks_of(self, inode: int, first_index: int) -> list[tuple[ChunkId, int]]:
        """The committed chunks of a file from an index on, in order, with their lengths."""

    @abstractmethod
    def dump(self, after: ChunkId | None, until: ChunkId | None, limit: int) -> tuple[list[ChunkMeta], bool]:
        """The state of at most `limit` chunks in order (after < chunk <= until), and whether there are more."""

    @abstractmethod
    async def sync(self, chunks: Sequence[ChunkId] | None = None) -> None:
        """Make durable what was changed of these chunks before the call. None: everything, the channels too."""

    @abstractmethod
    async def verify(self, chunk: ChunkId) -> bool:
        """Whether the committed content can be read from the disk and matches its checksums; True for an absent chunk.

        Where it does not the chunk is damaged from now on, and where it does it is not any more. Needs no lock.
        """

    @abstractmethod
    def damaged(self) -> list[ChunkId]:
        """The chunks that are known to be damaged."""

    @abstractmethod
    def used_bytes(self) -> int:
        """The space that chunks take up."""

    @abstractmethod
    async def tidy(self) -> None:
        """Give the space of what was removed back to the file system, in part; called now and then."""

    @abstractmethod
    def channels(self) -> list[tuple[RequestTag, UpdateResult]]:
        """The last remembered result of each channel, when the engine was opened."""

    @abstractmethod
    def remember(self, tag: RequestTag, result: UpdateResult) -> None:
        """Store the result of a request that is not one chunk's update."""

    @abstractmethod
    def forget(self, channels: Iterable[tuple[int, int]]) -> None:
        """Drop the stored results of these (client, channel)."""

    @abstractmethod
    async def abandon(self) -> None:
        """Close while others may still be at work: their calls fail with NOT_SERVING, those that reached the disk end."""

    @abstractmethod
    def close(self) -> None: ...
