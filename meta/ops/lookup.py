"""lookup, getattr, access, readlink, statfs: operations that change nothing."""

from __future__ import annotations

from copy import copy

from fs3.api.common import Empty
from fs3.api.meta import (
    NAME_SIZE_MAX,
    AccessRequest,
    AttrReply,
    GetattrRequest,
    LookupRequest,
    ReadlinkReply,
    ReadlinkRequest,
    StatfsReply,
)
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn

from .. import acl, resolve
from ..context import Context
from ..schema import DIRECTORY, STAT_INODES, SYMLINK, Inode, entry_key, inode_key, unpack_counter, unpack_entry


async def lookup(ctx: Context, txn: Txn, request: LookupRequest) -> AttrReply:
    parent = await resolve.directory(txn, request.parent, request.caller)
    name = request.name
    if name == b".":
        return AttrReply(await resolve.attr(txn, copy(parent)))
    if name == b"..":
        above = await resolve.load(txn, parent.parent)
        assert above is not None, f"directory {parent.id} is in directory {parent.parent}, which does not exist"
        return AttrReply(await resolve.attr(txn, above))
    if len(name) > NAME_SIZE_MAX:
        resolve.check_name(name)
    value = await txn.get(entry_key(parent.id, name))
    if value is None:
        resolve.check_name(name)
        raise FS3Error(Code.NOT_FOUND, f"no {name!r} in directory {parent.id}")
    number, kind = unpack_entry(value)
    value = await txn.get(inode_key(number))
    assert value is not None, f"{name!r} in directory {parent.id} names inode {number}, which does not exist"
    inode = Inode.unpack(number, value)
    if kind == DIRECTORY:
        await resolve.complete(txn, inode)
    return AttrReply(inode.attr())


async def getattr(ctx: Context, txn: Txn, request: GetattrRequest) -> AttrReply:
    return AttrReply(await resolve.attr(txn, await resolve.present(txn, request.inode)))


async def access(ctx: Context, txn: Txn, request: AccessRequest) -> Empty:
    inode = await resolve.present(txn, request.inode)
    if request.mask & ~(acl.READ | acl.WRITE | acl.EXECUTE):
        raise FS3Error(Code.INVALID, f"access mask {request.mask}")
    acl.require(inode, request.caller, request.mask)
    return Empty()


async def readlink(ctx: Context, txn: Txn, request: ReadlinkRequest) -> ReadlinkReply:
    inode = await resolve.present(txn, request.inode)
    if inode.kind != SYMLINK:
        raise FS3Error(Code.INVALID, f"inode {request.inode} is no symbolic link")
    return ReadlinkReply(inode.target)


async def statfs(ctx: Context, txn: Txn, request: Empty) -> StatfsReply:
    return StatfsReply(unpack_counter(await txn.get(STAT_INODES, snapshot=True)))
