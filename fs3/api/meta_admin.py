"""Messages by which operators look into the metadata service: sessions, removed files, layouts, fsck. Pure.

There are no rights on the wire: whoever reaches a daemon may send them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .common import Empty, Method
from .meta import AttrReply

SCAN_BYTES_MAX = 1024 * 1024
"""About how much a ScanReply holds."""
PROBLEMS_MAX = 256
"""In one MendRequest."""


@dataclass(frozen=True, slots=True)
class ListSessionsRequest:
    """Sessions in the order of their keys, after the key `after` (b"": from the first); client, inode: 0 for any."""

    after: bytes = b""
    limit: int = 1000
    client: int = 0
    inode: int = 0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """An open for writing, or (hold) a file that its own mount removed while it had it open. uid: of the opener.
    since_ns: wall clock. length: of the file, and nlink its names; -1 where there is no such inode."""

    inode: int
    client: int
    session: int
    uid: int
    hold: bool
    since_ns: int
    length: int
    nlink: int


@dataclass(frozen=True, slots=True)
class ListSessionsReply:
    """after: for the next request; b"" when there are no more."""

    sessions: tuple[SessionInfo, ...]
    after: bytes


@dataclass(frozen=True, slots=True)
class PruneSessionsRequest:
    """End all sessions of a client, now, instead of after its grace. BUSY while mgmtd takes the client for alive: it would
    go on writing to files that may be removed."""

    client: int


@dataclass(frozen=True, slots=True)
class PruneSessionsReply:
    ended: int


@dataclass(frozen=True, slots=True)
class GcStatusReply:
    """Removed files whose chunks wait to be removed: how many, of how many bytes at most (without those of `unsized`), and
    how long the first has been waiting (-1: not known). more: there are more than were counted. intents: files whose chunks
    are being put in order. collected, failures: files done, and rounds that failed, since this daemon started uptime_ms ago;
    problem: what stopped the last round, "" where nothing did."""

    files: int
    bytes: int
    unsized: int
    oldest_ms: int
    more: bool
    intents: int
    collected: int
    failures: int
    uptime_ms: int
    problem: str


@dataclass(frozen=True, slots=True)
class ListTreesRequest:
    """Trees that are being removed, by inode, after the inode `after`."""

    after: int = 0
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class TreeInfo:
    """tree: inode of the removed directory. since_ns: wall clock. uid: of who removed it. removed: names so far; kept: those
    that the remover had no right to remove, which are in /lost+found. directories: found and not yet removed, counted up to
    TREE_DIRECTORIES_MAX."""

    tree: int
    since_ns: int
    uid: int
    removed: int
    kept: int
    directories: int


TREE_DIRECTORIES_MAX = 1000


@dataclass(frozen=True, slots=True)
class ListTreesReply:
    trees: tuple[TreeInfo, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class SetLayoutRequest:
    """How files that are made in a directory from now on are cut and spread; directories made in it inherit that.

    table: a chain table's id; chunk_size: bytes; stripe: over how many chains. 0: as it is. INVALID with the reason.
    """

    inode: int
    table: int = 0
    chunk_size: int = 0
    stripe: int = 0


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """Records of the store as they are, with begin <= key < end. More than one reply holds is not of one instant."""

    begin: bytes
    end: bytes
    limit: int = 10_000


@dataclass(frozen=True, slots=True)
class ScanReply:
    """more: the next page begins behind the last key."""

    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class EntryRef:
    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """What fsck believes to be wrong. fault: the name of a meta.fsck.Fault.

    parent, name: of the entry concerned, if it is one; of a record that cannot be read, name is its key. names: all entries
    that were seen of the inode; of a directory in a loop: its own entry, that of the directory above it, and so on.
    ctime_ns: of the inode, read before the names were. length: where a chunk ends, in its file.
    """

    fault: str
    inode: int
    parent: int = 0
    name: bytes = b""
    names: tuple[EntryRef, ...] = ()
    ctime_ns: int = 0
    length: int = 0


class Verdict(IntEnum):
    GONE = 1
    """It is not so, or not any more."""
    FOUND = 2
    """It is so."""
    MENDED = 3
    """It was so, and is put right."""
    CANNOT = 4
    """It is so, and stays so; the text says what to do."""
    UNSETTLED = 5
    """What it concerns is changing: look again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """text: what was done, or why not."""

    verdict: Verdict
    text: str = ""


@dataclass(frozen=True, slots=True)
class MendRequest:
    """Look at each problem, in one transaction each, and put it right if so asked. May be sent again."""

    problems: tuple[Problem, ...]
    repair: bool = False


@dataclass(frozen=True, slots=True)
class MendReply:
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class UnusedIdsReply:
    """Inode ids that this daemon has taken and may still hand out: begin <= id < end."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TableUseRequest:
    """Which inodes name a chain table. after: the key that the last reply ended with; empty: from the start."""

    table: int
    after: bytes = b""


@dataclass(frozen=True, slots=True)
class TableUseReply:
    """Of the records looked at: files, those included that are removed and not collected yet; directories, whose
    new files would get it. example: the first of these inodes, 0 for none. after: empty when all were looked at."""

    files: int
    directories: int
    example: int
    after: bytes


LIST_SESSIONS = Method(230, "meta.list_sessions", ListSessionsRequest, ListSessionsReply)
PRUNE_SESSIONS = Method(231, "meta.prune_sessions", PruneSessionsRequest, PruneSessionsReply)
GC_STATUS = Method(232, "meta.gc_status", Empty, GcStatusReply)
SET_LAYOUT = Method(233, "meta.set_layout", SetLayoutRequest, AttrReply)
SCAN = Method(234, "meta.scan", ScanRequest, ScanReply)
MEND = Method(235, "meta.mend", MendRequest, MendReply)
UNUSED_IDS = Method(236, "meta.unused_ids", Empty, UnusedIdsReply)
LIST_TREES = Method(237, "meta.list_trees", ListTreesRequest, ListTreesReply)
TABLE_USE = Method(238, "meta.table_use", TableUseRequest, TableUseReply)
