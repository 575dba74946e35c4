"""Who may do what: permission bits, ACLs, sticky directories, set-id bits. Pure.

The order in which operations ask is Linux's, since programs and test suites know its error numbers.
"""

from __future__ import annotations

from fs3.api.meta import Caller
from fs3.errors import Code, FS3Error

from . import posix_acl
from .schema import DIRECTORY, INODE_ACL, Inode

READ = 4
WRITE = 2
EXECUTE = 1

SET_UID = 0o4000
SET_GID = 0o2000
STICKY = 0o1000
_GROUP_EXECUTE = 0o010


def in_group(caller: Caller, gid: int) -> bool:
    return gid == caller.gid or gid in caller.groups


def may(inode: Inode, caller: Caller, mask: int) -> bool:
    """Whether the caller has all rights of `mask` (READ | WRITE | EXECUTE) on an inode."""
    uid = caller.uid
    mode = inode.mode
    if uid == 0:
        return not mask & EXECUTE or inode.kind == DIRECTORY or mode & 0o111 != 0
    if uid == inode.uid:
        mode >>= 6
    elif inode.flags & INODE_ACL and inode.access and mode & 0o070:  # as Linux: without bits of the group it does not ask
        return posix_acl.allows(inode.access, inode.gid, caller, mask)
    elif inode.gid == caller.gid or inode.gid in caller.groups:
        mode >>= 3
    return mode & mask == mask


def require(inode: Inode, caller: Caller, mask: int) -> None:
    """Raises PERMISSION_DENIED where the caller lacks a right."""
    if not may(inode, caller, mask):
        raise FS3Error(Code.PERMISSION_DENIED, f"inode {inode.id}: mode {inode.mode:o} for uid {caller.uid}")


def require_unsticky(directory: Inode, inode: Inode, caller: Caller) -> None:
    """Raises NOT_PERMITTED where a sticky directory keeps the caller from removing or renaming an entry of another."""
    if directory.mode & STICKY and caller.uid not in (0, inode.uid, directory.uid):
        raise FS3Error(Code.NOT_PERMITTED, f"directory {directory.id} is sticky")


def require_owner(inode: Inode, caller: Caller) -> None:
    """Raises NOT_PERMITTED unless the caller owns the inode or is root."""
    if caller.uid not in (0, inode.uid):
        raise FS3Error(Code.NOT_PERMITTED, f"inode {inode.id} belongs to uid {inode.uid}, not {caller.uid}")


def initial_mode(parent: Inode, caller: Caller, directory: bool, mode: int) -> tuple[int, int]:
    """(mode, gid) of what the caller makes in `parent`: umask, unless a default ACL takes its place, and the group of a
    set-gid directory."""
    mode = mode & 0o7777 & ~(0 if parent.default else caller.umask)
    if not parent.mode & SET_GID:
        return mode, caller.gid
    if directory:
        return mode | SET_GID, parent.gid
    runs_as_group = mode & (SET_GID | _GROUP_EXECUTE) == SET_GID | _GROUP_EXECUTE
    if runs_as_group and caller.uid != 0 and not in_group(caller, parent.gid):
        mode &= ~SET_GID
    return mode, parent.gid


def changed_mode(inode: Inode, caller: Caller, mode: int, may_write: bool) -> int:
    """The mode after chmod. Raises NOT_PERMITTED.

    Who may write may also drop set-id bits: the kernel does so in the name of the writer. may_write: known by other
    means than the permission bits (an open handle).
    """
    mode &= 0o7777
    if caller.uid not in (0, inode.uid):
        dropped = inode.mode & ~mode
        only_drops = dropped and mode | dropped == inode.mode and not dropped & ~(SET_UID | SET_GID)
        if not only_drops or not (may_write or may(inode, caller, WRITE)):
            require_owner(inode, caller)
        return mode
    if mode & SET_GID and caller.uid != 0 and not in_group(caller, inode.gid):
        mode &= ~SET_GID
    return mode


def require_chown(inode: Inode, caller: Caller, uid: int | None, gid: int | None) -> None:
    """Raises NOT_PERMITTED: only root gives files away, and an owner may pick among their own groups."""
    if caller.uid == 0:
        return
    if uid is not None and (uid != inode.uid or caller.uid != inode.uid):
        raise FS3Error(Code.NOT_PERMITTED, f"uid {caller.uid} may not give inode {inode.id} to uid {uid}")
    if gid is not None and (caller.uid != inode.uid or (gid != inode.gid and not in_group(caller, gid))):
        raise FS3Error(Code.NOT_PERMITTED, f"uid {caller.uid} may not give inode {inode.id} to group {gid}")


def without_set_id(mode: int) -> int:
    """The mode after an owner change, or a write by somebody other than root. Set-gid without group execute stays (it once
    meant mandatory locking, not a privilege)."""
    mode &= ~SET_UID
    if mode & _GROUP_EXECUTE:
        mode &= ~SET_GID
    return mode
