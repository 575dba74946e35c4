"""What a returning target lacks: compares the chunks of a serving target with those of its syncing successor. Pure.

After 3FS's rules: a chunk that only the serving target has is transferred; one that only the successor has is removed; one
committed here at a later chain version is transferred; at the same, whatever differs is. Equal copies stay, unless only the
successor's is damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from fs3.api.storage import ChunkMeta
from fs3.ids import ChunkId


class Step(Enum):
    SAME = auto()
    TRANSFER = auto()
    REMOVE = auto()


def compare(local: ChunkMeta | None, remote: ChunkMeta | None) -> Step:
    """What to do for one chunk. version 0 stands for a chunk with nothing committed yet."""
    if local is None or local.version == 0:
        return Step.REMOVE if remote is not None else Step.SAME
    if remote is None or remote.pending:
        return Step.TRANSFER
    same = (local.version, local.length, local.checksum) == (remote.version, remote.length, remote.checksum)
    if not same:
        return Step.TRANSFER
    if local.damaged:
        return Step.SAME  # nothing better to send; where the remote is whole, it is the source of a repair
    if remote.damaged or local.chain_version > remote.chain_version:
        return Step.TRANSFER
    return Step.SAME


def content(metas: Sequence[ChunkMeta]) -> list[tuple[ChunkId, int, int, int]]:
    """What equal replicas have in common, of the chunks that have anything committed."""
    return [(meta.chunk, meta.version, meta.length, meta.checksum) for meta in metas if meta.version]


def plan(local: Sequence[ChunkMeta], remote: Sequence[ChunkMeta]) -> Iterator[tuple[ChunkId, Step]]:
    """The steps that are not SAME, for two lists sorted by chunk that cover the same range of chunks."""
    at_local = at_remote = 0
    while at_local < len(local) or at_remote < len(remote):
        ours = local[at_local] if at_local < len(local) else None
        theirs = remote[at_remote] if at_remote < len(remote) else None
        if ours is not None and theirs is not None:
            if ours.chunk < theirs.chunk:
                theirs = None
            elif theirs.chunk < ours.chunk:
                ours = None
        at_local += ours is not None
        at_remote += theirs is not None
        step = compare(ours, theirs)
        if step is not Step.SAME:
            chunk = ours.chunk if ours is not None else theirs.chunk if theirs is not None else None
            assert chunk is not None
            yield chunk, step


@dataclass(slots=True)
class Batch:
    """Chunks, in order, to be settled by one request. bytes: of their contents here."""

    chunks: list[ChunkId]
    bytes: int


def batches(
    steps: Iterable[tuple[ChunkId, Step]], local: Sequence[ChunkMeta], chunks_max: int, bytes_max: int
) -> Iterator[Batch]:
    """The chunks of a plan in batches within both limits; a chunk larger than bytes_max is a batch of its own."""
    lengths = {meta.chunk: meta.length for meta in local}
    batch = Batch([], 0)
    for chunk, _ in steps:
        length = lengths.get(chunk, 0)
        if batch.chunks and (len(batch.chunks) == chunks_max or batch.bytes + length > bytes_max):
            yield batch
            batch = Batch([], 0)
        batch.chunks.append(chunk)
        batch.bytes += length
    if batch.chunks:
        yield batch
