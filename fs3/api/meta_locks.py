"""Messages for advisory locks between clients: on a whole inode or a range of its bytes. Pure.

A lock is its owner's, a fresh number for each lock, so that two locks of one client exclude each other like those of two.
It ends when its owner unlocks it, with its inode, or some time after its client's lease has run out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..ids import RequestTag
from .common import Method
from .meta import Caller

LOCK_END = 1 << 63
"""The end of a lock on all that a file has and will have."""
LOCKS_MAX = 4096
"""On one inode."""


class LockMode(IntEnum):
    UNLOCKED = 0
    SHARED = 1
    EXCLUSIVE = 2


@dataclass(frozen=True, slots=True)
class LockRequest:
    """Lock the bytes start <= at < end, or change the owner's lock to that, or (UNLOCKED) end it, which it may be already.

    All requests of one owner go by one channel, so that what was given up is never done after what came later.
    PERMISSION_DENIED: the caller can neither read nor write the inode. STALE_HANDLE: it is gone. NO_LOCKS: it has too many.
    """

    tag: RequestTag
    caller: Caller
    client: int
    inode: int
    owner: int
    mode: LockMode
    start: int = 0
    end: int = LOCK_END


@dataclass(frozen=True, slots=True)
class GetLockRequest:
    """Whether a LockRequest with these fields would be granted. wait_ms: the reply may be so late, if it is not before."""

    inode: int
    owner: int
    mode: LockMode
    start: int = 0
    end: int = LOCK_END
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class LockInfo:
    """client: its id at mgmtd. uid: of who asked for it. since_ns: wall clock."""

    inode: int
    client: int
    owner: int
    mode: LockMode
    start: int
    end: int
    uid: int
    since_ns: int


@dataclass(frozen=True, slots=True)
class LockReply:
    """holder: one whose lock is in the way, so that nothing was changed; None: granted."""

    holder: LockInfo | None


@dataclass(frozen=True, slots=True)
class ListLocksRequest:
    """Locks in the order of their keys, after the key `after` (b"": from the first); client, inode: 0 for any."""

    after: bytes = b""
    limit: int = 1000
    client: int = 0
    inode: int = 0


@dataclass(frozen=True, slots=True)
class ListLocksReply:
    """after: for the next request; b"" when there are no more."""

    locks: tuple[LockInfo, ...]
    after: bytes


LOCK = Method(221, "meta.lock", LockRequest, LockReply)
GET_LOCK = Method(222, "meta.get_lock", GetLockRequest, LockReply)
LIST_LOCKS = Method(239, "meta.list_locks", ListLocksRequest, ListLocksReply)
