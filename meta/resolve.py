"""Reads of inodes and entries as operations need them, with the errors that a missing one means."""

from __future__ import annotations

from functools import lru_cache

from fs3.api.meta import NAME_SIZE_MAX, Attr, Caller
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn

from . import acl
from .schema import (
    DIRECTORY,
    INODE_DOOMED,
    INODE_PENDING,
    Inode,
    entry_key,
    inode_key,
    subdirectories_key,
    times_key,
    unpack_counter,
    unpack_entry,
    unpack_times,
)

_UNPACKED_MAX = 1024
"""Directories whose values are kept as they were unpacked last."""


class IntentPending(Exception):
    """An operation met a file whose chunks have to be put in order first. The runner sees to that and runs it again."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


def check_name(name: bytes) -> None:
    """Raises NAME_TOO_LONG, NOT_FOUND (empty), INVALID (a slash or a NUL)."""
    if len(name) > NAME_SIZE_MAX:
        raise FS3Error(Code.NAME_TOO_LONG, f"a name of {len(name)} bytes")
    if not name:
        raise FS3Error(Code.NOT_FOUND, "an empty name")
    if b"/" in name or b"\0" in name:
        raise FS3Error(Code.INVALID, f"no name may contain / or NUL: {name!r}")


async def load(txn: Txn, inode: int) -> Inode | None:
    value = await txn.get(inode_key(inode))
    return None if value is None else Inode.unpack(inode, value)


async def present(txn: Txn, inode: int) -> Inode:
    """The inode. Raises STALE_HANDLE where it is gone."""
    value = await txn.get(inode_key(inode))
    if value is None:
        raise FS3Error(Code.STALE_HANDLE, f"inode {inode} is gone")
    return Inode.unpack(inode, value)


async def in_order(txn: Txn, inode: int) -> Inode:
    """As present(), for those who use or change the length. Raises IntentPending."""
    found = await present(txn, inode)
    if found.flags & INODE_PENDING:
        raise IntentPending(inode)
    return found


@lru_cache(maxsize=_UNPACKED_MAX)
def _unpacked(inode: int, value: bytes) -> Inode:
    """The value of a directory's INOD changes seldom: its times and its link count stand elsewhere."""
    return Inode.unpack(inode, value)


async def directory(txn: Txn, inode: int, caller: Caller) -> Inode:
    """A directory in which the caller may look up names; others share the object, so it must not be changed.

    Raises NOT_FOUND (removed), NOT_DIRECTORY, PERMISSION_DENIED.
    """
    value = await txn.get(inode_key(inode))
    if value is None:
        raise FS3Error(Code.NOT_FOUND, f"directory {inode} is gone")
    found = _unpacked(inode, value)
    if found.kind != DIRECTORY:
        raise FS3Error(Code.NOT_DIRECTORY, f"inode {inode} is no directory")
    if found.flags & INODE_DOOMED:
        raise FS3Error(Code.NOT_FOUND, f"directory {inode} is removed with all that was in it")
    acl.require(found, caller, acl.EXECUTE)
    return found


async def entry(txn: Txn, parent: int, name: bytes) -> tuple[int, int] | None:
    """(inode, kind) that a name stands for; None where there is no such name."""
    value = await txn.get(entry_key(parent, name))
    return None if value is None else unpack_entry(value)


async def named(txn: Txn, parent: int, name: bytes) -> Inode:
    """The inode that a name stands for. Raises NOT_FOUND."""
    value = await txn.get(entry_key(parent, name))
    if value is None:
        raise FS3Error(Code.NOT_FOUND, f"no {name!r} in directory {parent}")
    number, _ = unpack_entry(value)
    found = await load(txn, number)
    assert found is not None, f"{name!r} in directory {parent} names inode {number}, which does not exist"
    return found


async def complete(txn: Txn, inode: Inode) -> None:
    """Read what INOD does not hold: the times and the link count of a directory."""
    if inode.kind == DIRECTORY:
        times = await txn.get(times_key(inode.id))
        assert times is not None, f"directory {inode.id} has no times"
        inode.mtime_ns, inode.ctime_ns = unpack_times(times)
        # By snapshot: only replies tell the link count, and they must not make others wait.
        inode.nlink = 2 + unpack_counter(await txn.get(subdirectories_key(inode.id), snapshot=True))


async def attr(txn: Txn, inode: Inode) -> Attr:
    """The attributes of an inode just read."""
    if inode.kind == DIRECTORY:
        await complete(txn, inode)
    return inode.attr()
