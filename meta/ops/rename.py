"""rename: plain, RENAME_NOREPLACE, RENAME_EXCHANGE."""

from __future__ import annotations

from fs3.api.meta import Attr, Caller, RenameFlags, RenameReply, RenameRequest
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fs3.kv.base import Txn

from .. import acl, resolve
from ..context import Context
from ..schema import DIRECTORY, Inode, entry_key, inode_key, pack_entry, pack_times, subdirectories_key, times_key
from .unlink import drop_directory, drop_name


async def rename(ctx: Context, txn: Txn, request: RenameRequest) -> RenameReply:
    caller, name, new_name = request.caller, request.name, request.new_name
    old = await resolve.directory(txn, request.parent, caller)
    new = old if request.new_parent == old.id else await resolve.directory(txn, request.new_parent, caller)
    for each in (name, new_name):
        if each in (b".", b".."):
            raise FS3Error(Code.BUSY, "a directory cannot be renamed by . or ..")
        resolve.check_name(each)
    exchange = request.flags == RenameFlags.EXCHANGE
    source = await resolve.named(txn, old.id, name)
    target = await _target(txn, new, new_name, request.flags)
    if source.kind == DIRECTORY and new is not old:
        await _require_outside(txn, new, source.id)
    if exchange and target is not None and target.kind == DIRECTORY and new is not old:
        await _require_outside(txn, old, target.id)
    if target is not None and target.id == source.id:
        return RenameReply(await resolve.attr(txn, source))
    _check_rights(caller, old, new, source, target, exchange)

    now_ns = ctx.now_ns()
    replaced = 0
    left: Attr | None = None
    if target is None:
        txn.clear(entry_key(old.id, name))
    elif exchange:
        txn.set(entry_key(old.id, name), pack_entry(target.id, target.kind))
        await _moved(txn, target, new, old, now_ns)
    else:
        replaced = target.id
        left = await _replace(ctx, txn, request, new, target, now_ns)
        txn.clear(entry_key(old.id, name))
    txn.set(entry_key(new.id, new_name), pack_entry(source.id, source.kind))
    await _moved(txn, source, old, new, now_ns)
    txn.set(times_key(old.id), pack_times(now_ns, now_ns))
    txn.set(times_key(new.id), pack_times(now_ns, now_ns))
    return RenameReply(await resolve.attr(txn, source), replaced, left)


async def _target(txn: Txn, new: Inode, new_name: bytes, flags: RenameFlags) -> Inode | None:
    """What the new name stands for. Raises EXISTS, NOT_FOUND as the flags want it."""
    found = await resolve.entry(txn, new.id, new_name)
    if found is None:
        if flags == RenameFlags.EXCHANGE:
            raise FS3Error(Code.NOT_FOUND, f"no {new_name!r} in directory {new.id}")
        return None
    if flags == RenameFlags.NOREPLACE:
        raise FS3Error(Code.EXISTS, f"{new_name!r} in directory {new.id}")
    return await resolve.named(txn, new.id, new_name)


async def _require_outside(txn: Txn, directory: Inode, moved: int) -> None:
    """Raises INVALID where `directory` is `moved` or lies below it. Reads all that is above `directory`, so that two renames
    which together would tie a loop conflict."""
    above = directory
    while True:
        if above.id == moved:
            raise FS3Error(Code.INVALID, f"directory {moved} cannot move into itself")
        if above.id == ROOT_INODE:
            return
        parent = await resolve.load(txn, above.parent)
        assert parent is not None, f"directory {above.id} is in directory {above.parent}, which does not exist"
        above = parent


def _check_rights(caller: Caller, old: Inode, new: Inode, source: Inode, target: Inode | None, exchange: bool) -> None:
    acl.require(old, caller, acl.WRITE)
    acl.require_unsticky(old, source, caller)
    acl.require(new, caller, acl.WRITE)
    if target is not None:
        acl.require_unsticky(new, target, caller)
        if not exchange and source.kind == DIRECTORY and target.kind != DIRECTORY:
            raise FS3Error(Code.NOT_DIRECTORY, f"inode {target.id} is no directory")
        if not exchange and source.kind != DIRECTORY and target.kind == DIRECTORY:
            raise FS3Error(Code.IS_DIRECTORY, f"inode {target.id} is a directory")
    if new is not old:
        # The parent that a directory notes changes with it.
        for moved in (source, target if exchange else None):
            if moved is not None and moved.kind == DIRECTORY:
                acl.require(moved, caller, acl.WRITE)


async def _replace(ctx: Context, txn: Txn, request: RenameRequest, new: Inode, target: Inode, now_ns: int) -> Attr | None:
    if target.kind == DIRECTORY:
        return await drop_directory(txn, new, target, now_ns)
    return await drop_name(ctx, txn, target, now_ns, request.client, request.hold)


async def _moved(txn: Txn, inode: Inode, old: Inode, new: Inode, now_ns: int) -> None:
    """An inode has got another name."""
    if inode.kind != DIRECTORY:
        inode.ctime_ns = now_ns
        txn.set(inode_key(inode.id), inode.pack())
        return
    await resolve.complete(txn, inode)
    txn.set(times_key(inode.id), pack_times(inode.mtime_ns, now_ns))
    if new is not old:
        inode.parent = new.id
        txn.set(inode_key(inode.id), inode.pack())
        txn.atomic_add(subdirectories_key(old.id), -1)
        txn.atomic_add(subdirectories_key(new.id), 1)
