"""Advisory locks between clients. Each is a record of its own under its inode, so who asks for one reads all of the inode's:
two who do so at once conflict in the store, whichever daemons they asked."""

from __future__ import annotations

from fs3.api.meta_locks import (
    LOCK_END,
    LOCKS_MAX,
    GetLockRequest,
    ListLocksReply,
    ListLocksRequest,
    LockInfo,
    LockMode,
    LockReply,
    LockRequest,
)
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn

from .. import acl, resolve
from ..context import Context
from ..schema import INODE_LOCKS, Lock, inode_key, lock_key, lock_key_parts, span

PAGE = 1000


async def lock(ctx: Context, txn: Txn, request: LockRequest) -> LockReply:
    key = lock_key(request.inode, request.client, request.owner)
    if request.mode is LockMode.UNLOCKED:
        txn.clear(key)
        return LockReply(None)
    _check(request)
    inode = await resolve.present(txn, request.inode)
    caller = request.caller
    if not (acl.may(inode, caller, acl.READ) or acl.may(inode, caller, acl.WRITE)):
        raise FS3Error(Code.PERMISSION_DENIED, f"inode {inode.id}: who can neither read nor write it cannot lock it")
    locks = await _locks(txn, request.inode)
    found = _in_the_way(locks, request)
    if found is not None:
        return LockReply(found)
    if len(locks) >= LOCKS_MAX:
        raise FS3Error(Code.NO_LOCKS, f"inode {inode.id} has {len(locks)} locks")
    if not inode.flags & INODE_LOCKS:
        inode.flags |= INODE_LOCKS
        txn.set(inode_key(inode.id), inode.pack())
    made = Lock(request.mode is LockMode.EXCLUSIVE, request.start, request.end, caller.uid, ctx.now_ns())
    txn.set(key, made.pack())
    return LockReply(None)


async def get(ctx: Context, txn: Txn, request: GetLockRequest) -> LockReply:
    _check(request)
    await resolve.present(txn, request.inode)
    return LockReply(_in_the_way(await _locks(txn, request.inode), request))


def _check(request: LockRequest | GetLockRequest) -> None:
    if not 0 <= request.start < request.end <= LOCK_END:
        raise FS3Error(Code.INVALID, f"a lock of the bytes from {request.start} to {request.end}")


async def _locks(txn: Txn, inode: int) -> list[LockInfo]:
    pairs = await txn.get_range(*span(lock_key(inode, 0, 0)[:12]))
    return [_info(key, value) for key, value in pairs]


def _info(key: bytes, value: bytes) -> LockInfo:
    number, client, owner = lock_key_parts(key)
    found = Lock.unpack(value)
    mode = LockMode.EXCLUSIVE if found.exclusive else LockMode.SHARED
    return LockInfo(number, client, owner, mode, found.start, found.end, found.uid, found.since_ns)


def _in_the_way(locks: list[LockInfo], wanted: LockRequest | GetLockRequest) -> LockInfo | None:
    """Another owner's lock that excludes the wanted one."""
    for found in locks:
        if found.owner == wanted.owner or found.start >= wanted.end or found.end <= wanted.start:
            continue
        if LockMode.EXCLUSIVE in (found.mode, wanted.mode):
            return found
    return None


async def list_locks(txn: Txn, request: ListLocksRequest) -> ListLocksReply:
    begin, end = span(lock_key(request.inode, 0, 0)[:12] if request.inode else b"LOCK")
    if request.after:
        begin = max(begin, request.after + b"\0")
    limit = max(1, min(request.limit, PAGE))
    pairs = await txn.get_range(begin, end, limit=PAGE, snapshot=True)
    found: list[LockInfo] = []
    for key, value in pairs:
        info = _info(key, value)
        if request.client in (0, info.client):
            found.append(info)
        if len(found) == limit:
            return ListLocksReply(tuple(found), key)
    return ListLocksReply(tuple(found), pairs[-1][0] if len(pairs) == PAGE else b"")
