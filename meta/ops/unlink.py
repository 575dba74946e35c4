"""unlink and rmdir, and what happens to a file that has lost its last name."""

from __future__ import annotations

from fs3.api.meta import Attr, RemoveReply, RemoveRequest
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn

from .. import acl, resolve
from ..context import Context
from ..schema import (
    DIRECTORY,
    FILE,
    INODE_LOCKS,
    INODE_PENDING,
    INODE_XATTRS,
    STAT_INODES,
    Garbage,
    Inode,
    Session,
    entry_key,
    garbage_key,
    inode_key,
    intent_key,
    lock_key,
    pack_times,
    session_key,
    span,
    subdirectories_key,
    times_key,
    xattr_key,
)

HOLDS_LOOKED_AT = 100
"""Where there are more of them, a writer may be among them."""


async def has_session(txn: Txn, inode: int) -> bool:
    """Whether anybody holds the inode."""
    begin, end = span(session_key(inode, 0, 0)[:12])
    return bool(await txn.get_range(begin, end, limit=1))


async def has_writer(txn: Txn, inode: int) -> bool:
    """Whether anybody may have the file open for writing."""
    begin, end = span(session_key(inode, 0, 0)[:12])
    pairs = await txn.get_range(begin, end, limit=HOLDS_LOOKED_AT)
    return len(pairs) == HOLDS_LOOKED_AT or not all(Session.unpack(value).hold for _, value in pairs)


def discard(ctx: Context, txn: Txn, inode: Inode) -> None:
    """Remove an inode that has neither names nor sessions; its chunks are left to the collector."""
    number = inode.id
    txn.clear(inode_key(number))
    txn.atomic_add(STAT_INODES, -1)
    if inode.flags & INODE_XATTRS:
        txn.clear_range(*span(xattr_key(number, b"")))
    if inode.flags & INODE_LOCKS:
        txn.clear_range(*span(lock_key(number, 0, 0)[:12]))
    bound = inode.length
    if inode.flags & INODE_PENDING:
        txn.clear(intent_key(number))
        bound = -1
    if inode.kind == FILE and bound != 0:
        txn.set(garbage_key(number), Garbage(bound, inode.layout(), ctx.now_ns()).pack())
        ctx.tell_removed(number)


def discard_directory(txn: Txn, inode: Inode) -> None:
    """Remove an empty directory's own records."""
    number = inode.id
    txn.clear(inode_key(number))
    txn.clear(times_key(number))
    txn.clear(subdirectories_key(number))
    txn.atomic_add(STAT_INODES, -1)
    if inode.flags & INODE_XATTRS:
        txn.clear_range(*span(xattr_key(number, b"")))
    if inode.flags & INODE_LOCKS:
        txn.clear_range(*span(lock_key(number, 0, 0)[:12]))


async def is_empty(txn: Txn, directory: int) -> bool:
    begin, end = span(entry_key(directory, b""))
    return not await txn.get_range(begin, end, limit=1)


async def require_empty(txn: Txn, directory: int) -> None:
    """Raises NOT_EMPTY."""
    if not await is_empty(txn, directory):
        raise FS3Error(Code.NOT_EMPTY, f"directory {directory}")


async def drop_directory(txn: Txn, parent: Inode, inode: Inode, now_ns: int) -> Attr:
    """Remove a directory but for its entry. Returns its last attributes. Raises NOT_EMPTY."""
    await require_empty(txn, inode.id)
    await resolve.complete(txn, inode)
    inode.nlink, inode.ctime_ns = 0, now_ns
    discard_directory(txn, inode)
    txn.atomic_add(subdirectories_key(parent.id), -1)
    return inode.attr()


async def drop_name(ctx: Context, txn: Txn, inode: Inode, now_ns: int, client: int, hold: int) -> Attr | None:
    """A name of `inode` (no directory) was removed. Returns its attributes, None when the inode is gone with it."""
    inode.nlink -= 1
    inode.ctime_ns = now_ns
    if inode.nlink == 0:
        if hold:
            txn.set(session_key(inode.id, client, hold), Session(0, True, now_ns).pack())
        elif inode.kind != FILE or not await has_session(txn, inode.id):
            discard(ctx, txn, inode)
            return None
    txn.set(inode_key(inode.id), inode.pack())
    return inode.attr()


async def remove(ctx: Context, txn: Txn, request: RemoveRequest) -> RemoveReply:
    caller, name = request.caller, request.name
    parent = await resolve.directory(txn, request.parent, caller)
    if name == b".":
        raise FS3Error(Code.INVALID if request.directory else Code.IS_DIRECTORY, "a directory cannot remove itself")
    if name == b"..":
        raise FS3Error(Code.NOT_EMPTY if request.directory else Code.IS_DIRECTORY, "a directory cannot remove its parent")
    resolve.check_name(name)
    inode = await resolve.named(txn, parent.id, name)
    acl.require(parent, caller, acl.WRITE)
    acl.require_unsticky(parent, inode, caller)
    if request.directory != (inode.kind == DIRECTORY):
        code = Code.NOT_DIRECTORY if request.directory else Code.IS_DIRECTORY
        raise FS3Error(code, f"{name!r} in directory {parent.id}")
    now_ns = ctx.now_ns()
    if request.directory:
        attr: Attr | None = await drop_directory(txn, parent, inode, now_ns)
    else:
        attr = await drop_name(ctx, txn, inode, now_ns, request.client, request.hold)
    txn.clear(entry_key(parent.id, name))
    txn.set(times_key(parent.id), pack_times(now_ns, now_ns))
    return RemoveReply(inode.id, attr, now_ns)
