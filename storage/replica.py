"""What a replica does with an update of a chunk: version decisions of the chain protocol. Pure.

A chunk has at most two versions: the committed one, `v`, and a pending one, `u`. The head numbers each update `u = v + 1`;
every replica holds `u` before the tail commits it, and commits run back from the tail. An absent chunk is at version 0, and
a removed one is absent again, so numbers start anew at 1: which of two copies is newer is told by the chain version at which
each was committed, before the number.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from fs3.api.storage import Update, UpdateKind, UpdateResult
from fs3.checksum import crc32c
from fs3.ids import RequestTag

from . import blocks


@dataclass(slots=True)
class ChunkVersion:
    """One version of a chunk. length in bytes; checksums: CRC32C of each block, little-endian u32 each.

    chain_version: of the chain when this version was committed (of a pending one: when it was prepared).
    tag: of the request that made it. removed: this version is the chunk's removal.
    """

    number: int
    chain_version: int
    length: int
    checksums: bytes
    tag: RequestTag
    removed: bool = False

    def checksum(self) -> int:
        """The CRC32C over the block checksums: what replicas compare."""
        return crc32c(self.checksums)

    def result(self) -> UpdateResult:
        return UpdateResult(0, self.number, self.length, crc32c(self.checksums))


class Chunk(Protocol):
    """The state of a chunk on one target."""

    @property
    def committed(self) -> ChunkVersion | None: ...

    @property
    def pending(self) -> ChunkVersion | None: ...

    @property
    def damaged(self) -> bool:
        """Whether the committed content is known to be unreadable."""
        ...


class Action(Enum):
    """What to do with an update."""

    APPLY = auto()
    """Make the pending version and go on down the chain."""
    RESUME = auto()
    """This very update is pending already: go on down the chain."""
    REPLAY = auto()
    """It is committed already: answer with the committed version."""
    NOTHING = auto()
    """There is nothing to change, here or further down: answer success."""
    STALE = auto()
    """A later version is committed: refuse."""
    GAP = auto()
    """The version before it is missing here: refuse, so that the predecessor sends the whole chunk."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and the version number that the update makes."""

    action: Action
    version: int = 0


_NEED_A_CHUNK = (UpdateKind.REMOVE, UpdateKind.PUNCH)
_NOTHING = Decision(Action.NOTHING)
_STALE = Decision(Action.STALE)
_GAP = Decision(Action.GAP)


def prepare_first(chunk: Chunk | None, update: Update) -> Decision:
    """At the head, for a client's update. No other update of the chunk is pending: the head rolled it forward before."""
    committed = chunk.committed if chunk is not None else None
    pending = chunk.pending if chunk is not None else None
    if pending is not None:
        assert pending.tag == update.tag, "the head takes a new update only once the one before is committed"
        return Decision(Action.RESUME, pending.number)
    if committed is None:
        if update.kind in _NEED_A_CHUNK or (update.kind is UpdateKind.TRUNCATE and update.length == 0):
            return _NOTHING
        return Decision(Action.APPLY, 1)
    return Decision(Action.APPLY, committed.number + 1)


def prepare_next(chunk: Chunk | None, update: Update, syncing: bool) -> Decision:
    """At any other replica, for an update that its predecessor numbered. syncing: this target is being filled."""
    committed = chunk.committed if chunk is not None else None
    pending = chunk.pending if chunk is not None else None
    number = committed.number if committed is not None else 0
    if pending is not None and pending.number == update.version and pending.tag == update.tag and not syncing:
        return Decision(Action.RESUME, pending.number)
    if update.kind is UpdateKind.REMOVE:
        if chunk is None or (committed is None and pending is None):
            return _NOTHING
        if number >= update.version and not syncing:
            return _STALE
        return Decision(Action.APPLY, update.version)
    if update.kind in (UpdateKind.REPLACE, UpdateKind.LOST):
        return _prepare_replace(chunk, update, syncing)
    if syncing:
        return _GAP
    if number > update.version:
        return _STALE
    if number == update.version:
        return Decision(Action.REPLAY, number)
    return Decision(Action.APPLY, update.version) if number + 1 == update.version else _GAP


def _prepare_replace(chunk: Chunk | None, update: Update, syncing: bool) -> Decision:
    if chunk is not None and (committed := chunk.committed) is not None:
        if committed.number > update.version and not syncing:
            return _STALE
        same = committed.number == update.version and committed.checksum() == crc32c(blocks.pack(update.checksums))
        since = update.commit_chain_version or update.chain_version
        known = not syncing or committed.chain_version >= since
        if same and chunk.pending is None and (update.kind is UpdateKind.LOST or (known and not chunk.damaged)):
            return Decision(Action.REPLAY, update.version)  # what is lost elsewhere may be whole here, and stays
    return Decision(Action.APPLY, update.version)


def readable(chunk: Chunk) -> bool:
    """Whether this replica may serve the committed version: not while a later one may be committed elsewhere."""
    return chunk.pending is None
