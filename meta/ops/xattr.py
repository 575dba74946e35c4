"""Extended attributes, by Linux's rules for their name spaces: user, trusted, security, and the ACLs of system."""

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

from .. import acl, posix_acl, resolve
from ..context import Context
from ..schema import (
    DIRECTORY,
    ENTRY_PREFIX,
    FILE,
    INODE_XATTRS,
    SYMLINK,
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
CAPABILITY = b"security.capability"
_ACLS = (posix_acl.ACCESS, posix_acl.DEFAULT)


def _check_name(name: bytes) -> None:
    if len(name) > NAME_SIZE_MAX:
        raise FS3Error(Code.OUT_OF_RANGE, f"an attribute name of {len(name)} bytes")
    prefix, _, rest = name.partition(b".")
    if prefix + b"." not in (_USER, _TRUSTED, _SECURITY):
        raise FS3Error(Code.NOT_SUPPORTED, f"no attributes {name!r} here")
    if not rest or b"\0" in name:
        raise FS3Error(Code.INVALID, f"an attribute name {name!r}")


def _require_write(inode: Inode, caller: Caller, name: bytes, removes: bool) -> None:
    if name.startswith(_USER):
        if inode.kind not in (FILE, DIRECTORY):
            raise FS3Error(Code.NOT_PERMITTED, "user attributes are for files and directories")
        if inode.kind == DIRECTORY and inode.mode & acl.STICKY:
            acl.require_owner(inode, caller)
        acl.require(inode, caller, acl.WRITE)
    elif removes and name == CAPABILITY and acl.may(inode, caller, acl.WRITE):
        return  # the kernel does so in the name of whoever writes to the file
    elif caller.uid != 0:
        raise FS3Error(Code.NOT_PERMITTED, f"only root sets {name!r}")


def _require_read(inode: Inode, caller: Caller, name: bytes) -> None:
    if name.startswith(_USER):
        if inode.kind not in (FILE, DIRECTORY):
            raise FS3Error(Code.NO_ATTRIBUTE, "user attributes are for files and directories")
        acl.require(inode, caller, acl.READ)
    elif name.startswith(_TRUSTED) and caller.uid != 0:
        raise FS3Error(Code.NO_ATTRIBUTE, f"only root sees {name!r}")


def _set_acl(inode: Inode, request: SetxattrRequest) -> None:
    """Give an inode another ACL, or take away what it may have. What an access ACL says of owner, group and others becomes
    the mode."""
    caller, access = request.caller, request.name == posix_acl.ACCESS
    if inode.kind == SYMLINK:
        raise FS3Error(Code.NOT_SUPPORTED, "a symbolic link has no ACL")
    entries = posix_acl.parsed(request.value) if request.value is not None else []
    acl.require_owner(inode, caller)
    if not access and inode.kind != DIRECTORY and entries:
        raise FS3Error(Code.PERMISSION_DENIED, "only a directory has a default ACL")
    before = inode.access if access else inode.default
    if not before and request.mode == XattrMode.REPLACE:
        raise FS3Error(Code.NO_ATTRIBUTE, f"inode {inode.id} has no {request.name!r}")
    if before and request.mode == XattrMode.CREATE:
        raise FS3Error(Code.EXISTS, f"inode {inode.id} has {request.name!r}")
    value = posix_acl.packed(entries)
    if not access:
        inode.set_acls(inode.access, value)
        return
    if entries:
        bits, plain = posix_acl.as_mode(entries)
        inode.mode = inode.mode & ~0o777 | bits
        if caller.uid != 0 and not acl.in_group(caller, inode.gid):
            inode.mode &= ~acl.SET_GID
        value = b"" if plain else value
    inode.set_acls(value, inode.default)


async def setxattr(ctx: Context, txn: Txn, request: SetxattrRequest) -> Empty:
    inode = await resolve.present(txn, request.inode)
    if request.name in _ACLS:
        _set_acl(inode, request)
    else:
        await _set(txn, inode, request)
    inode.ctime_ns = ctx.now_ns()
    if inode.kind == DIRECTORY:
        changed_ns = inode.ctime_ns
        await resolve.complete(txn, inode)
        txn.set(times_key(inode.id), pack_times(inode.mtime_ns, changed_ns))
    txn.set(inode_key(inode.id), inode.pack())
    return Empty()


async def _set(txn: Txn, inode: Inode, request: SetxattrRequest) -> None:
    name, value = request.name, request.value
    _check_name(name)
    _require_write(inode, request.caller, name, value is None)
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


async def getxattr(ctx: Context, txn: Txn, request: GetxattrRequest) -> GetxattrReply:
    inode = await resolve.present(txn, request.inode)
    name = request.name
    value: bytes | None = None
    if name in _ACLS:
        value = (inode.access if name == posix_acl.ACCESS else inode.default) or None
    else:
        _check_name(name)
        _require_read(inode, request.caller, name)
        if inode.flags & INODE_XATTRS:
            value = await txn.get(xattr_key(inode.id, name))
    if value is None:
        raise FS3Error(Code.NO_ATTRIBUTE, f"attribute {name!r} of inode {inode.id}")
    return GetxattrReply(value)


async def listxattr(ctx: Context, txn: Txn, request: ListxattrRequest) -> ListxattrReply:
    inode = await resolve.present(txn, request.inode)
    names = [name for name, value in zip(_ACLS, (inode.access, inode.default), strict=True) if value]
    if inode.flags & INODE_XATTRS:
        pairs = await txn.get_range(*span(xattr_key(inode.id, b"")), limit=_LIST_MAX)
        names += [key[ENTRY_PREFIX:] for key, _ in pairs]
    if request.caller.uid != 0:
        names = [name for name in names if not name.startswith(_TRUSTED)]
    return ListxattrReply(tuple(names))
