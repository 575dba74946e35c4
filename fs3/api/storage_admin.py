"""Messages by which operators look at the chunks that a target holds, whatever its place in a chain. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..ids import ChunkId
from .common import Method
from .storage import ChunkMeta

PREFETCH_INODES_MAX = 1000
"""Files in one request."""
LIST_CHUNKS_MAX = 2000
"""Chunks in one reply."""


@dataclass(frozen=True, slots=True)
class ListChunksRequest:
    """A target's chunks with after < chunk <= until (None: from the first, to the last). contents: also the CRC32C of what
    each chunk holds, made from the stored checksums of its blocks."""

    target: int
    after: ChunkId | None = None
    until: ChunkId | None = None
    limit: int = LIST_CHUNKS_MAX
    contents: bool = False


@dataclass(frozen=True, slots=True)
class ListChunksReply:
    """crcs: as many as chunks where they were asked for; 0 for a chunk without a committed version."""

    chunks: tuple[ChunkMeta, ...]
    more: bool
    crcs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PrefetchRequest:
    """Files whose chunks on a target are to be read into memory, from an index on in the first of them."""

    target: int
    inodes: tuple[int, ...]
    first_index: int = 0


@dataclass(frozen=True, slots=True)
class PrefetchReply:
    """done: how many of the files are through; next_index: where to go on in the one after those. size: bytes that are in
    memory now. cached: whether the disk is read by way of a page cache at all; else nothing was done."""

    done: int
    next_index: int
    size: int
    cached: bool = True


LIST_CHUNKS = Method(320, "storage.list_chunks", ListChunksRequest, ListChunksReply)
PREFETCH = Method(321, "storage.prefetch", PrefetchRequest, PrefetchReply)
