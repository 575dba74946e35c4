"""/lost+found: where things get a name that have lost theirs, or that nobody had the right to take it from."""

from __future__ import annotations

from fs3.api.meta import Caller, FileKind, MknodRequest
from fs3.ids import ROOT_INODE, RequestTag
from fs3.kv.base import Txn

from . import resolve
from .context import Context
from .ops.create import mknod
from .schema import DIRECTORY

LOST_AND_FOUND = b"lost+found"

_OPERATOR = Caller(0, 0, (0,))
_NO_TAG = RequestTag(0, 0, 0)


async def home_of_the_lost(ctx: Context, txn: Txn) -> int:
    """The inode of /lost+found, which is made where there is none; 0 where it is no directory."""
    found = await resolve.entry(txn, ROOT_INODE, LOST_AND_FOUND)
    if found is None:
        request = MknodRequest(_NO_TAG, _OPERATOR, ROOT_INODE, LOST_AND_FOUND, FileKind.DIRECTORY, 0o700)
        return (await mknod(ctx, txn, request)).attr.inode
    return found[0] if found[1] == DIRECTORY and await resolve.load(txn, found[0]) is not None else 0
