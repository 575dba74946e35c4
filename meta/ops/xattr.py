"""Extended attributes, by Linux's rules for their name spaces: user, trusted, security. POSIX ACLs are not there yet."""

from __future__ import annotations

from fs3.api.common import Empty
from fs3.api.meta import (
    NAME_SIZE_MAX,
    Caller,
    GetxattrReply,
    GetxattrRequest,
    ListxattrReply,
    ListxattrRequest,
    SetxattrRequest,
    XattrMode,
)
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn

from .. import acl, resolve
from ..context import Context
from ..schema import (
    DIRECTORY,
    ENTRY_PREFIX,
    FILE,
    INODE_XATTRS,
    Inode,
    inode_key,
    pack_times,
    span,
    times_key,
    xattr_key,
)

VALUE_SIZE_MAX = 64 * 1024
_LIST_MAX = 1024
"""Attributes of one inode: what listxattr(2) can return in one go."""

_USER = b"user."
_TRUSTED = b"trusted."
_SECURITY = b"security."


def _check_name(name: bytes) -> None:
    if len(name) > NAME_SIZE_MAX:
        raise FS3Error(Code.OUT_OF_RANGE, f"an attribute name of {len(name)} bytes")
    prefix, _, rest = name.partition(b".")
    if prefix + b"." not in (_USER, _TRUSTED, _SECURITY):
        raise FS3Error(Code.NOT_SUPPORTED, f"no attributes {name!r} here")
    if not rest or b"\0" in name:
        raise FS3Error(Code.INVALID, f"an attribute name {name!r}")


def _require_write(inode: Inode, caller: Caller, name: bytes) -> None:
    if name.startswith(_USER):
        if inode.kind not in (FILE, DIRECTORY):
            raise FS3Error(Code.NOT_PERMITTED, "user attributes are for files and directories")
        if inode.kind == DIRECTORY and inode.mode & acl.STICKY:
            acl.require_owner(inode, caller)
        acl.require(inode, caller, acl.WRITE)
    elif caller.uid != 0:
        raise FS3Error(Code.NOT_PERMITTED, f"only root sets {name!r}")


def _require_read(inode: Inode, caller: Caller, name: bytes) -> None:
    if name.startswith(_USER):
        if inode.kind not in (FILE, DIRECTORY):
            raise FS3Error(Code.NO_ATTRIBUTE, "user attributes are for files and directories")
        acl.require(inode, caller, acl.READ)
    elif name.startswith(_TRUSTED) and caller.uid != 0:
        raise FS3Error(Code.NO_ATTRIBUTE, f"only root sees {name!r}")


async def setxattr(ctx: Context, txn: Txn, request: SetxattrRequest) -> Empty:
    inode = await resolve.present(txn, request.inode)
    name, value = request.name, request.value
    _check_name(name)
    _require_write(inode, request.caller, name)
    if value is not None and len(value) > VALUE_SIZE_MAX:
        raise FS3Error(Code.ATTRIBUTE_TOO_LARGE, f"{name!r}: {len(value)} bytes")
    key = xattr_key(inode.id, name)
    present = await txn.get(key) is not None
    if present and value is not None and request.mode == XattrMode.CREATE:
        raise FS3Error(Code.EXISTS, f"attribute {name!r} of inode {inode.id}")
    if not present and (value is None or request.mode == XattrMode.REPLACE):
        raise FS3Error(Code.NO_ATTRIBUTE, f"attribute {name!r} of inode {inode.id}")
    if value is None:
        txn.clear(key)
    else:
        if not present and len(await txn.get_range(*span(xattr_key(inode.id, b"")), limit=_LIST_MAX)) == _LIST_MAX:
            raise FS3Error(Code.NO_SPACE, f"inode {inode.id} has {_LIST_MAX} attributes")
        txn.set(key, value)
    inode.flags |= INODE_XATTRS
    inode.ctime_ns = ctx.now_ns()
    if inode.kind == DIRECTORY:
        changed_ns = inode.ctime_ns
        await resolve.complete(txn, inode)
        txn.set(times_key(inode.id), pack_times(inode.mtime_ns, changed_ns))
    txn.set(inode_key(inode.id), inode.pack())
    return Empty()


async def getxattr(ctx: Context, txn: Txn, request: GetxattrRequest) -> GetxattrReply:
    inode = await resolve.present(txn, request.inode)
    _check_name(request.name)
    _require_read(inode, request.caller, request.name)
    value = await txn.get(xattr_key(inode.id, request.name)) if inode.flags & INODE_XATTRS else None
    if value is None:
        raise FS3Error(Code.NO_ATTRIBUTE, f"attribute {request.name!r} of inode {inode.id}")
    return GetxattrReply(value)


async def listxattr(ctx: Context, txn: Txn, request: ListxattrRequest) -> ListxattrReply:
    inode = await resolve.present(txn, request.inode)
    if not inode.flags & INODE_XATTRS:
        return ListxattrReply(())
    pairs = await txn.get_range(*span(xattr_key(inode.id, b"")), limit=_LIST_MAX)
    names = [key[ENTRY_PREFIX:] for key, _ in pairs]
    if request.caller.uid != 0:
        names = [name for name in names if not name.startswith(_TRUSTED)]
    return ListxattrReply(tuple(names))
