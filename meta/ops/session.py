"""open, close and report: sessions of writers, and what they tell about length and content."""

from __future__ import annotations

from fs3.api.common import Empty
from fs3.api.meta import (
    RELEASES_MAX,
    Access,
    AppendReply,
    AppendRequest,
    AttrReply,
    Caller,
    CloseRequest,
    HoldReply,
    HoldRequest,
    OpenReply,
    OpenRequest,
    ReleaseRequest,
    ReportRequest,
    atime_due,
)
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn
from fs3.layout import FILE_LENGTH_MAX

from .. import acl, resolve
from ..context import Context
from ..schema import (
    DIRECTORY,
    FILE,
    INODE_PENDING,
    INODE_SPARSE,
    INODE_XATTRS,
    INTENT_SETTLE,
    SYMLINK,
    Inode,
    Intent,
    Session,
    inode_key,
    intent_key,
    session_key,
    xattr_key,
)
from .attr import set_length
from .unlink import discard, has_session
from .xattr import CAPABILITY

WRITES = int(Access.WRITE)
_RIGHTS = {Access.READ: acl.READ, Access.WRITE: acl.WRITE, Access.READ_WRITE: acl.READ | acl.WRITE}


async def open_inode(
    ctx: Context, txn: Txn, number: int, caller: Caller, client: int, access: Access, truncate: bool, session: int
) -> OpenReply:
    """Open what exists. Raises IntentPending and what OpenRequest says."""
    inode = await resolve.in_order(txn, number)
    writes = access & WRITES
    if inode.kind == DIRECTORY and (writes or truncate):
        raise FS3Error(Code.IS_DIRECTORY, f"inode {number} is a directory")
    if inode.kind == SYMLINK:
        raise FS3Error(Code.LOOP, f"inode {number} is a symbolic link")
    acl.require(inode, caller, _RIGHTS[access] | (acl.WRITE if truncate else 0))
    if inode.kind == FILE and truncate:
        await set_length(ctx, txn, inode, 0, ctx.now_ns())
        if caller.uid != 0:
            inode.mode = acl.without_set_id(inode.mode)
        txn.set(inode_key(number), inode.pack())
    if inode.kind == FILE and writes:
        txn.set(session_key(number, client, session), Session(caller.uid, False, ctx.now_ns()).pack())
    return OpenReply(await resolve.attr(txn, inode))


async def open(ctx: Context, txn: Txn, request: OpenRequest) -> OpenReply:
    return await open_inode(
        ctx,
        txn,
        request.inode,
        request.caller,
        request.client,
        request.access,
        request.truncate,
        request.session,
    )


async def _take_report(ctx: Context, txn: Txn, inode: Inode, request: CloseRequest | ReportRequest) -> bool:
    """Bring the inode up to what a writer tells. Returns whether that changed it."""
    hint = request.length_hint
    if hint > FILE_LENGTH_MAX:
        raise FS3Error(Code.FILE_TOO_LARGE, f"a length of {hint} bytes")
    changed = request.wrote
    if hint >= 0 and request.truncate_version != inode.truncate_version:
        # Somebody cut the file meanwhile: what of the writer's bytes is still there, only the chains know.
        inode.flags |= INODE_PENDING
        txn.set(intent_key(inode.id), Intent(INTENT_SETTLE, 0, -1, ctx.owner, 0).pack())
        changed = True
    elif hint > inode.length:
        inode.length = hint
        changed = True
    if request.sparse:
        inode.flags |= INODE_SPARSE
    if request.wrote:
        inode.mtime_ns = inode.ctime_ns = ctx.now_ns()
        inode.data_version += 1
        await _drop_privileges(txn, inode, request)
    return changed


async def _drop_privileges(txn: Txn, inode: Inode, request: CloseRequest | ReportRequest | AppendRequest) -> None:
    """What a write takes from a file: capabilities, and set-id bits unless root wrote. The kernel has done so already but
    for writes past its pages."""
    if inode.mode & (acl.SET_UID | acl.SET_GID):
        value = await txn.get(session_key(inode.id, request.client, request.session))
        if value is None or Session.unpack(value).uid != 0:
            inode.mode = acl.without_set_id(inode.mode)
    if inode.flags & INODE_XATTRS:
        txn.clear(xattr_key(inode.id, CAPABILITY))


async def close(ctx: Context, txn: Txn, request: CloseRequest) -> AttrReply:
    inode = await resolve.in_order(txn, request.inode)
    changed = await _take_report(ctx, txn, inode, request)
    txn.clear(session_key(inode.id, request.client, request.session))
    if inode.nlink == 0 and not await has_session(txn, inode.id):
        discard(ctx, txn, inode)
    elif changed:
        txn.set(inode_key(inode.id), inode.pack())
    return AttrReply(inode.attr())


async def release(ctx: Context, txn: Txn, request: ReleaseRequest) -> Empty:
    if len(request.sessions) > RELEASES_MAX or len(request.touched) > RELEASES_MAX:
        raise FS3Error(Code.INVALID, f"{len(request.sessions)} sessions, {len(request.touched)} files in one request")
    now_ns = ctx.now_ns()
    for number in request.touched:
        found = await resolve.load(txn, number)
        if found is not None and found.kind == FILE and atime_due(found.atime_ns, found.mtime_ns, found.ctime_ns, now_ns):
            found.atime_ns = now_ns
            txn.set(inode_key(number), found.pack())
    for ended in request.sessions:
        txn.clear(session_key(ended.inode, request.client, ended.session))
        inode = await resolve.load(txn, ended.inode)
        if inode is not None and inode.nlink == 0 and not await has_session(txn, inode.id):
            discard(ctx, txn, inode)
    return Empty()


async def hold(ctx: Context, txn: Txn, request: HoldRequest) -> HoldReply:
    if len(request.sessions) > RELEASES_MAX:
        raise FS3Error(Code.INVALID, f"{len(request.sessions)} files in one request")
    made = Session(0, True, ctx.now_ns()).pack()
    gone = []
    for wanted in request.sessions:
        inode = await resolve.load(txn, wanted.inode)
        if inode is None or inode.kind != FILE:
            gone.append(wanted.inode)
        else:
            txn.set(session_key(wanted.inode, request.client, wanted.session), made)
    return HoldReply(tuple(gone))


async def report(ctx: Context, txn: Txn, request: ReportRequest) -> AttrReply:
    inode = await resolve.in_order(txn, request.inode)
    if await _take_report(ctx, txn, inode, request):
        txn.set(inode_key(inode.id), inode.pack())
    return AttrReply(inode.attr())


async def peek(ctx: Context, txn: Txn, request: ReportRequest) -> AttrReply | None:
    """The reply to a report that changes nothing; None where it does change something."""
    inode = await resolve.in_order(txn, request.inode)
    new = request.length_hint >= 0 and (
        request.length_hint > inode.length or request.truncate_version != inode.truncate_version
    )
    return None if new or request.wrote else AttrReply(inode.attr())


class StaleHint(Exception):
    """An appender's own idea of the file's end is from before a truncation: only the chains know where its end is."""


async def settle(ctx: Context, txn: Txn, number: int) -> None:
    """Have the length looked up on the chains, unless other work on them is pending: completing that comes first."""
    inode = await resolve.present(txn, number)
    if not inode.flags & INODE_PENDING:
        inode.flags |= INODE_PENDING
        txn.set(inode_key(number), inode.pack())
        txn.set(intent_key(number), Intent(INTENT_SETTLE, 0, -1, ctx.owner, 0).pack())


async def append(ctx: Context, txn: Txn, request: AppendRequest) -> AppendReply:
    """Give the appender the range behind the file's end. Raises StaleHint."""
    inode = await resolve.in_order(txn, request.inode)
    if request.length_hint >= 0 and request.truncate_version != inode.truncate_version:
        raise StaleHint
    if request.length < 0:
        raise FS3Error(Code.INVALID, f"an append of {request.length} bytes")
    offset = max(inode.length, request.length_hint)
    if offset + request.length > FILE_LENGTH_MAX:
        raise FS3Error(Code.FILE_TOO_LARGE, f"an append of {request.length} bytes at {offset}")
    inode.length = offset + request.length
    inode.mtime_ns = inode.ctime_ns = ctx.now_ns()
    inode.data_version += 1
    await _drop_privileges(txn, inode, request)
    txn.set(inode_key(inode.id), inode.pack())
    return AppendReply(offset, inode.attr())
