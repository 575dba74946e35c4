"""Messages of the storage service. Pure.

Checksums on the wire: a byte range of a chunk is cut at the chunk's block borders (checksum.BLOCK_SIZE, counted from the
chunk's start), and each piece has its CRC32C. The receiver of the bytes verifies every piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..ids import ChunkId, RequestTag
from .common import Method


class UpdateKind(IntEnum):
    WRITE = 1
    """Write the payload at `offset`; a gap before it reads as zeros."""
    TRUNCATE = 2
    """Make the chunk `length` bytes long, cutting or extending with zeros. Creates the chunk only if length > 0."""
    REMOVE = 3
    """Remove the chunk; one that is absent is removed already."""
    REPLACE = 4
    """Between replicas: the payload is the whole content, and `version` the committed version, of the chunk."""
    PUNCH = 5
    """Make the `length` bytes at `offset` zeros, giving their space back; the chunk does not get longer or shorter."""
    LOST = 6
    """Between replicas: no replica can read the chunk's content any more. As REPLACE (`length`, `checksums` are those of
    the content), but without payload: the chunk is damaged wherever this arrives, until something replaces all of it."""


@dataclass(frozen=True, slots=True)
class ReadRange:
    """Read `length` bytes at `offset` of a chunk. chain_version: as the client knows it."""

    chain: int
    chain_version: int
    target: int
    chunk: ChunkId
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Many ranges at once: at most READ_RANGES_MAX, READ_BYTES_MAX. The payload of the reply holds the ranges' bytes
    one behind the other, each as long as its result says."""

    ranges: tuple[ReadRange, ...]


@dataclass(frozen=True, slots=True)
class ReadResult:
    """code: 0, or an errors.Code. length: bytes that the chunk really has in the range (short at its end; 0 where the
    chunk is absent, which is no error: chunk_length is 0 then). checksums: one for each piece of the range."""

    code: int
    length: int
    chunk_length: int
    version: int
    checksums: tuple[int, ...]
    message: str = ""


@dataclass(frozen=True, slots=True)
class ReadReply:
    results: tuple[ReadResult, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one chunk.

    length: of the payload in bytes (WRITE, REPLACE), or the new length (TRUNCATE), or of the range (PUNCH), or of what is
    lost (LOST). chunk_size: how long the chunk may get.
    checksums: of the payload's pieces. version: 0 from a client; between replicas the version that this update makes.
    commit_chain_version: of a REPLACE in a resync, the chain version at which the content was committed; else 0.
    """

    tag: RequestTag
    chain: int
    chain_version: int
    target: int
    chunk: ChunkId
    kind: UpdateKind
    offset: int
    length: int
    chunk_size: int
    checksums: tuple[int, ...]
    version: int = 0
    commit_chain_version: int = 0


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Updates whose payloads stand one behind the other in the request's payload. They are independent of each other.

    from_client: False when a predecessor forwards.
    """

    updates: tuple[Update, ...]
    from_client: bool = True


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """code: 0, or an errors.Code. version: now committed. chunk_length: in bytes. checksum: CRC32C of the whole chunk's
    block checksums (little-endian u32 each), which predecessor and successor compare."""

    code: int
    version: int
    chunk_length: int
    checksum: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class WriteReply:
    results: tuple[UpdateResult, ...]


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Make chunks durable on this target and on its serving successors. chunks: empty means all of the chain's."""

    chain: int
    chain_version: int
    target: int
    chunks: tuple[ChunkId, ...] = ()


@dataclass(frozen=True, slots=True)
class SyncReply:
    pass


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """What a file has on a chain. first_index: leave out chunks before it. listed: at most so many of them are told one by
    one, and then only of these the rest is told."""

    chain: int
    chain_version: int
    target: int
    inode: int
    first_index: int = 0
    listed: int = 0


@dataclass(frozen=True, slots=True)
class QueryReply:
    """chunks: how many. last_index: -1 when there are none; last_length: of that chunk. bytes: in all. indices, lengths: of
    each chunk in order, if asked for; more: there are others behind them. (Daemons that tell none are older.)"""

    chunks: int
    last_index: int
    last_length: int
    bytes: int
    indices: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    more: bool = False


QUERY_LISTED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class RemoveFileRequest:
    """Remove all chunks of a file on a chain from first_index on, on all its targets. Sent to the head.

    Removes at most `limit` chunks; `more` in the reply says that some are left.
    """

    tag: RequestTag
    chain: int
    chain_version: int
    target: int
    inode: int
    first_index: int = 0
    limit: int = 1024


@dataclass(frozen=True, slots=True)
class RemoveFileReply:
    removed: int
    more: bool


@dataclass(frozen=True, slots=True)
class ChunkMeta:
    """One chunk for a resync. chain_version: of the chain when `version` was committed. pending: 0, or the version of an
    update that is not committed yet. checksum: as in UpdateResult. damaged: the committed content cannot be read."""

    chunk: ChunkId
    version: int
    chain_version: int
    pending: int
    length: int
    checksum: int
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class DumpRequest:
    """The metadata of a target's chunks after `after` (exclusive, in ChunkId order), at most `limit`."""

    chain: int
    chain_version: int
    target: int
    after: ChunkId | None
    limit: int = 10_000


@dataclass(frozen=True, slots=True)
class DumpReply:
    chunks: tuple[ChunkMeta, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class SyncDoneRequest:
    """The predecessor has brought this target up to date at this chain version."""

    chain: int
    chain_version: int
    target: int


@dataclass(frozen=True, slots=True)
class SyncDoneReply:
    pass


@dataclass(frozen=True, slots=True)
class DoneRequest:
    """The last request done on a channel of a client, and its result. For REMOVE_FILE version is the number of chunks."""

    tag: RequestTag
    version: int
    chunk_length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class LearnDoneRequest:
    """What another target of the chain has done, so that a retry is recognised when this one leads: to one that is being
    filled, before SYNC_DONE, and to all after a removal. At most DONE_REQUESTS_MAX at once."""

    chain: int
    chain_version: int
    target: int
    done: tuple[DoneRequest, ...]


@dataclass(frozen=True, slots=True)
class LearnDoneReply:
    pass


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """From a target whose copy of a chunk is damaged, to any other of its chain: the bytes of this version, committed or
    pending, as the reply's payload. Whoever asks verifies them. checksum: as in UpdateResult."""

    target: int
    chunk: ChunkId
    version: int
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class FetchReply:
    """found: False where the target does not have this version, or cannot read it."""

    found: bool


@dataclass(frozen=True, slots=True)
class SuspectRequest:
    """From a client that got bytes which do not match their checksums: the target looks at its copies of these chunks,
    later, and repairs them."""

    target: int
    chunks: tuple[ChunkId, ...]


@dataclass(frozen=True, slots=True)
class SuspectReply:
    pass


READ_RANGES_MAX = 1024
DONE_REQUESTS_MAX = 10_000
WRITE_UPDATES_MAX = 1024

READ = Method(300, "storage.read", ReadRequest, ReadReply)
WRITE = Method(301, "storage.write", WriteRequest, WriteReply)
SYNC = Method(302, "storage.sync", SyncRequest, SyncReply)
QUERY = Method(303, "storage.query", QueryRequest, QueryReply)
REMOVE_FILE = Method(304, "storage.remove_file", RemoveFileRequest, RemoveFileReply)
DUMP = Method(305, "storage.dump", DumpRequest, DumpReply)
SYNC_DONE = Method(306, "storage.sync_done", SyncDoneRequest, SyncDoneReply)
LEARN_DONE = Method(307, "storage.learn_done", LearnDoneRequest, LearnDoneReply)
FETCH = Method(308, "storage.fetch", FetchRequest, FetchReply)
SUSPECT = Method(309, "storage.suspect", SuspectRequest, SuspectReply)
