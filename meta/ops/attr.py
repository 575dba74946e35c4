"""setattr: chmod, chown, truncate, utimens, in any combination."""

from __future__ import annotations

from fs3.api.meta import AttrReply, SetattrRequest
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn
from fs3.layout import FILE_LENGTH_MAX

from .. import acl, posix_acl, resolve
from ..context import Context
from ..schema import (
    DIRECTORY,
    FILE,
    INODE_PENDING,
    INODE_SPARSE,
    INTENT_TRUNCATE,
    Inode,
    Intent,
    inode_key,
    intent_key,
    pack_times,
    times_key,
)
from .unlink import has_writer

_TIME_MAX_NS = (1 << 63) - 1
_ID_MAX = (1 << 32) - 2
"""The number after it stands for "leave alone" in chown(2)."""


async def set_length(ctx: Context, txn: Txn, inode: Inode, length: int, now_ns: int) -> None:
    """Give a file another length; the caller writes the inode.

    What lies behind the new length has to go before anybody extends the file again, so it is noted as an intent. Nothing
    can lie there if the file was not longer and nobody has it open for writing, whose last bytes are not reported yet.
    """
    open_for_write = await has_writer(txn, inode.id)
    if open_for_write or length < inode.length:
        bound = -1 if open_for_write else inode.length
        txn.set(intent_key(inode.id), Intent(INTENT_TRUNCATE, length, bound, ctx.owner, 0).pack())
        inode.flags |= INODE_PENDING
        inode.truncate_version += 1
        inode.data_version += 1
    elif length > inode.length:
        inode.data_version += 1
    if length > inode.length:
        inode.flags |= INODE_SPARSE
    elif not length:
        inode.flags &= ~INODE_SPARSE
    inode.length = length
    inode.mtime_ns = inode.ctime_ns = now_ns


def _set_mode_and_owner(inode: Inode, request: SetattrRequest) -> None:
    caller = request.caller
    if request.mode is not None:
        inode.mode = acl.changed_mode(inode, caller, request.mode, request.by_handle)
        if inode.access:
            inode.access = posix_acl.with_mode(inode.access, inode.mode)
    uid, gid = request.uid, request.gid
    if uid is None and gid is None:
        return
    acl.require_chown(inode, caller, uid, gid)
    for number in (uid, gid):
        if number is not None and not 0 <= number <= _ID_MAX:
            raise FS3Error(Code.INVALID, f"no id of a user or group: {number}")
    if uid is not None:
        inode.uid = uid
    if gid is not None:
        inode.gid = gid
    if inode.kind != DIRECTORY:
        inode.mode = acl.without_set_id(inode.mode)


def _set_times(inode: Inode, request: SetattrRequest, now_ns: int) -> None:
    if request.atime_ns is not None:
        inode.atime_ns = max(-_TIME_MAX_NS, min(request.atime_ns, _TIME_MAX_NS))
    elif request.atime_now:
        inode.atime_ns = now_ns
    if request.mtime_ns is not None:
        inode.mtime_ns = max(-_TIME_MAX_NS, min(request.mtime_ns, _TIME_MAX_NS))
    elif request.mtime_now:
        inode.mtime_ns = now_ns


def _check_times(inode: Inode, request: SetattrRequest) -> None:
    caller = request.caller
    if request.atime_ns is not None or request.mtime_ns is not None:
        acl.require_owner(inode, caller)
    elif (request.atime_now or request.mtime_now) and caller.uid != inode.uid and not request.by_handle:
        acl.require(inode, caller, acl.WRITE)


def _check_length(inode: Inode, request: SetattrRequest) -> None:
    length = request.length
    if length is None:
        return
    if inode.kind != FILE:
        raise FS3Error(
            Code.IS_DIRECTORY if inode.kind == DIRECTORY else Code.INVALID, f"inode {inode.id} is no regular file"
        )
    if length < 0:
        raise FS3Error(Code.INVALID, f"a length of {length} bytes")
    if length > FILE_LENGTH_MAX:
        raise FS3Error(Code.FILE_TOO_LARGE, f"a length of {length} bytes")
    if not request.by_handle:
        acl.require(inode, request.caller, acl.WRITE)


async def setattr(ctx: Context, txn: Txn, request: SetattrRequest) -> AttrReply:
    inode = await resolve.in_order(txn, request.inode)
    await resolve.complete(txn, inode)
    _check_length(inode, request)
    _check_times(inode, request)
    now_ns = ctx.now_ns()
    before = inode.pack()
    _set_mode_and_owner(inode, request)
    if request.length is not None:
        await set_length(ctx, txn, inode, request.length, now_ns)
        if request.caller.uid != 0:
            inode.mode = acl.without_set_id(inode.mode)
    _set_times(inode, request, now_ns)
    asked = (request.mode, request.uid, request.gid, request.length, request.atime_ns, request.mtime_ns)
    if any(value is not None for value in asked) or request.atime_now or request.mtime_now:
        inode.ctime_ns = now_ns
    if inode.kind == DIRECTORY:
        txn.set(times_key(inode.id), pack_times(inode.mtime_ns, inode.ctime_ns))
    after = inode.pack()
    if after != before:
        txn.set(inode_key(inode.id), after)
    return AttrReply(inode.attr())
