"""mknod (mkdir, symlink, fifos, devices), create (open with O_CREAT), link, and the root."""

from __future__ import annotations

from fs3.api.meta import (
    NAME_SIZE_MAX,
    SYMLINK_SIZE_MAX,
    AttrReply,
    Caller,
    CreateRequest,
    FileKind,
    LinkRequest,
    MknodRequest,
    OpenReply,
)
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fs3.kv.base import Txn
from fs3.layout import FileLayout

from .. import acl, posix_acl, resolve
from ..context import Context
from ..schema import (
    DIRECTORY,
    FILE,
    STAT_INODES,
    SYMLINK,
    Inode,
    Session,
    entry_key,
    inode_key,
    pack_entry,
    pack_times,
    session_key,
    subdirectories_key,
    times_key,
    unpack_entry,
)
from .session import WRITES, open_inode

LINKS_MAX = 1 << 20
"""Names of one file."""

_DEVICES = (FileKind.CHARACTER_DEVICE, FileKind.BLOCK_DEVICE)
_NO_LAYOUT = FileLayout(0, 0, 0, 0, 0)


async def _make(ctx: Context, txn: Txn, parent: Inode, name: bytes, kind: int, caller: Caller, mode: int) -> Inode:
    """An inode that the caller makes in a directory, and its entry, both written but for INOD."""
    acl.require(parent, caller, acl.WRITE)
    mode, gid = acl.initial_mode(parent, caller, kind == DIRECTORY, mode)
    access = b""
    if parent.default and kind != SYMLINK:
        access, mode = posix_acl.inherited(parent.default, mode)
    now_ns = ctx.now_ns()
    number = await ctx.ids.take()
    if kind == FILE:
        layout = ctx.file_layout(parent)
    elif kind == DIRECTORY:
        layout = parent.layout()
        txn.set(times_key(number), pack_times(now_ns, now_ns))
        txn.atomic_add(subdirectories_key(parent.id), 1)
    else:
        layout = _NO_LAYOUT
    inode = Inode(
        number,
        kind,
        0,
        mode,
        caller.uid,
        gid,
        2 if kind == DIRECTORY else 1,
        0,
        now_ns,
        now_ns,
        now_ns,
        0,
        parent.id if kind == DIRECTORY else 0,
        0,
        0,
        layout.table,
        layout.table_version,
        layout.chunk_size,
        layout.stripe,
        layout.seed,
    )
    if parent.default:
        inode.set_acls(access, parent.default if kind == DIRECTORY else b"")
    txn.set(entry_key(parent.id, name), pack_entry(number, kind))
    txn.set(times_key(parent.id), pack_times(now_ns, now_ns))
    txn.atomic_add(STAT_INODES, 1)
    return inode


async def mknod(ctx: Context, txn: Txn, request: MknodRequest) -> AttrReply:
    caller, name, kind = request.caller, request.name, request.kind
    parent = await resolve.directory(txn, request.parent, caller)
    resolve.check_name(name)
    if name in (b".", b"..") or await txn.get(entry_key(parent.id, name)) is not None:
        raise FS3Error(Code.EXISTS, f"{name!r} in directory {parent.id}")
    if kind in _DEVICES and caller.uid != 0:
        raise FS3Error(Code.NOT_PERMITTED, "only root makes device files")
    if kind == SYMLINK and len(request.target) > SYMLINK_SIZE_MAX:
        raise FS3Error(Code.NAME_TOO_LONG, f"a link target of {len(request.target)} bytes")
    if kind == SYMLINK and not request.target:
        raise FS3Error(Code.NOT_FOUND, "an empty link target")
    inode = await _make(ctx, txn, parent, name, kind, caller, request.mode)
    if kind == SYMLINK:
        inode.mode = 0o777
        inode.target = request.target
        inode.length = len(request.target)
    elif kind in _DEVICES:
        inode.rdev = request.rdev
    txn.set(inode_key(inode.id), inode.pack())
    return AttrReply(inode.attr())


async def create(ctx: Context, txn: Txn, request: CreateRequest) -> OpenReply:
    caller, name = request.caller, request.name
    parent = await resolve.directory(txn, request.parent, caller)
    if len(name) > NAME_SIZE_MAX:
        resolve.check_name(name)
    value = await txn.get(entry_key(parent.id, name))
    if value is None:
        resolve.check_name(name)
        if name in (b".", b".."):
            raise FS3Error(Code.EXISTS if request.exclusive else Code.IS_DIRECTORY, "a directory")
        inode = await _make(ctx, txn, parent, name, FILE, caller, request.mode)
        txn.set(inode_key(inode.id), inode.pack())
        if request.access & WRITES:
            session = Session(caller.uid, False, inode.ctime_ns)
            txn.set(session_key(inode.id, request.client, request.session), session.pack())
        return OpenReply(inode.attr(), True)
    number, kind = unpack_entry(value)
    if request.exclusive:
        raise FS3Error(Code.EXISTS, f"{name!r} in directory {parent.id}")
    if kind == DIRECTORY:
        raise FS3Error(Code.IS_DIRECTORY, f"{name!r} in directory {parent.id}")
    if kind != FILE:
        # The caller saw no such name a moment ago. This error makes the kernel look again, and then follow or open it.
        raise FS3Error(Code.STALE_HANDLE, f"{name!r} in directory {parent.id} is no regular file")
    return await open_inode(ctx, txn, number, caller, request.client, request.access, request.truncate, request.session)


async def link(ctx: Context, txn: Txn, request: LinkRequest) -> AttrReply:
    caller, name = request.caller, request.name
    parent = await resolve.directory(txn, request.parent, caller)
    resolve.check_name(name)
    if name in (b".", b"..") or await txn.get(entry_key(parent.id, name)) is not None:
        raise FS3Error(Code.EXISTS, f"{name!r} in directory {parent.id}")
    inode = await resolve.present(txn, request.inode)
    acl.require(parent, caller, acl.WRITE)
    if inode.kind == DIRECTORY:
        raise FS3Error(Code.NOT_PERMITTED, "a directory has one name")
    if inode.nlink == 0:
        raise FS3Error(Code.NOT_FOUND, f"inode {inode.id} has lost its last name")
    if inode.nlink >= LINKS_MAX:
        raise FS3Error(Code.TOO_MANY_LINKS, f"inode {inode.id} has {inode.nlink} names")
    now_ns = ctx.now_ns()
    inode.nlink += 1
    inode.ctime_ns = now_ns
    txn.set(inode_key(inode.id), inode.pack())
    txn.set(entry_key(parent.id, name), pack_entry(inode.id, inode.kind))
    txn.set(times_key(parent.id), pack_times(now_ns, now_ns))
    return AttrReply(inode.attr())


async def make_root(ctx: Context, txn: Txn, layout: FileLayout, uid: int = 0, gid: int = 0) -> bool:
    """Make the root directory unless it is there. layout: the default of the whole tree. Returns whether it was made."""
    if await txn.get(inode_key(ROOT_INODE)) is not None:
        return False
    now_ns = ctx.now_ns()
    root = Inode(
        ROOT_INODE, DIRECTORY, 0, 0o755, uid, gid, 2, 0, now_ns, now_ns, now_ns, 0, ROOT_INODE, 0, 0,
        layout.table, layout.table_version, layout.chunk_size, layout.stripe, 0,
    )  # fmt: skip
    txn.set(inode_key(ROOT_INODE), root.pack())
    txn.set(times_key(ROOT_INODE), pack_times(now_ns, now_ns))
    txn.atomic_add(STAT_INODES, 1)
    return True
