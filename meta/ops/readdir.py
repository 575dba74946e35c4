"""readdir: the entries of a directory in name order, by pages, with their attributes."""

from __future__ import annotations

import logging

from fs3.api.meta import DirEntry, ReaddirReply, ReaddirRequest
from fs3.errors import Code, FS3Error
from fs3.kv.base import Txn

from .. import acl, resolve
from ..context import Context
from ..schema import DIRECTORY, ENTRY_PREFIX, Inode, entry_key, inode_key, span, unpack_entry

logger = logging.getLogger("fs3.meta.readdir")

ENTRIES_MAX = 1024
"""In one reply, whatever was asked for: it keeps other requests waiting for some milliseconds."""


async def readdir(ctx: Context, txn: Txn, request: ReaddirRequest) -> ReaddirReply:
    directory = await resolve.present(txn, request.inode)
    if directory.kind != DIRECTORY:
        raise FS3Error(Code.NOT_DIRECTORY, f"inode {request.inode} is no directory")
    acl.require(directory, request.caller, acl.READ)
    if request.limit < 1:
        raise FS3Error(Code.INVALID, f"a limit of {request.limit} entries")
    limit = 1 if ctx.env.rare("meta.readdir.one") else min(request.limit, ENTRIES_MAX)
    begin, end = span(entry_key(directory.id, b""))
    if request.after:
        begin = entry_key(directory.id, request.after) + b"\0"
    pairs = await txn.get_range(begin, end, limit=limit + 1, snapshot=True)
    more = len(pairs) > limit
    if more:
        pairs.pop()
    entries = []
    for key, value in pairs:
        number, kind = unpack_entry(value)
        value_of_inode = await txn.get(inode_key(number), snapshot=True)
        if value_of_inode is None:
            logger.error("%r in directory %d names inode %d, which does not exist", key[ENTRY_PREFIX:], directory.id, number)
            continue
        inode = Inode.unpack(number, value_of_inode)
        if kind == DIRECTORY:
            await resolve.complete(txn, inode)
        entries.append(DirEntry(key[ENTRY_PREFIX:], inode.attr()))
    return ReaddirReply(tuple(entries), more, directory.parent)
