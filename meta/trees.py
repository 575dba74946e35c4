"""rmtree: a directory loses its name at once, in one small transaction, and what is in it goes in the background.

A directory without a name that is to go is "doomed": a TDIR record names it, and nobody finds anything in it any more. The
worker takes the entries of a doomed directory, a page at a time: files lose that name as by unlink, directories become
doomed in their turn, so no transaction is large and none has to know the way up. Each leaves the store in order, and all
that there is to do in it: whoever comes next, after a crash too, goes on. The tree is gone when no TDIR of it is left.

The rights of whoever removed the tree count. What they could not have removed one by one is not removed: it gets a name in
/lost+found.
"""

from __future__ import annotations

import trio

from fs3.api.meta import Caller, RmtreeReply, RmtreeRequest
from fs3.api.meta_admin import TREE_DIRECTORIES_MAX, ListTreesReply, ListTreesRequest, TreeInfo
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fs3.kv.base import Txn
from fs3.kv.transact import transact

from . import acl, resolve
from .context import Context
from .lost_found import home_of_the_lost
from .ops.unlink import discard_directory, drop_name, is_empty
from .schema import (
    DIRECTORY,
    ENTRY_PREFIX,
    INODE_DOOMED,
    Inode,
    Tree,
    doomed_key,
    doomed_key_parts,
    entry_key,
    inode_key,
    inode_of_key,
    pack_entry,
    pack_times,
    span,
    subdirectories_key,
    times_key,
    tree_key,
    unpack_entry,
)

PAGE = 64
"""Names and directories removed by one transaction: other requests wait for it for some milliseconds."""
PAGES_MAX = 64
"""Of one tree, until the others have their turn."""
LIST_MAX = 1000

_ALL = acl.READ | acl.WRITE | acl.EXECUTE


async def rmtree(ctx: Context, txn: Txn, request: RmtreeRequest) -> RmtreeReply:
    caller, name = request.caller, request.name
    parent = await resolve.directory(txn, request.parent, caller)
    if name in (b".", b".."):
        raise FS3Error(Code.INVALID, "a directory cannot be removed by . or ..")
    resolve.check_name(name)
    inode = await resolve.named(txn, parent.id, name)
    acl.require(parent, caller, acl.WRITE)
    acl.require_unsticky(parent, inode, caller)
    if inode.kind != DIRECTORY:
        raise FS3Error(Code.NOT_DIRECTORY, f"{name!r} in directory {parent.id}")
    if not await is_empty(txn, inode.id):
        acl.require(inode, caller, _ALL)
    now_ns = ctx.now_ns()
    txn.clear(entry_key(parent.id, name))
    txn.set(times_key(parent.id), pack_times(now_ns, now_ns))
    txn.atomic_add(subdirectories_key(parent.id), -1)
    _doom(txn, inode.id, inode)
    txn.set(tree_key(inode.id), Tree(now_ns, 0, 0, inode.id, caller.uid, caller.gid, caller.groups).pack())
    ctx.trees.set()
    return RmtreeReply(inode.id)


def _doom(txn: Txn, tree: int, inode: Inode) -> None:
    """A directory has lost its name; what is in it will go."""
    inode.parent = ROOT_INODE  # what is above it now may be gone before it is
    inode.flags |= INODE_DOOMED
    txn.set(inode_key(inode.id), inode.pack())
    txn.set(doomed_key(tree, inode.id), b"")


class Trees:
    """Removes what is left of removed trees. Any number of daemons may run it over one store."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def work(self) -> None:
        """Remove all that there is of the trees that are this daemon's share. Raises the first error of any."""
        failed: dict[int, FS3Error] = {}
        while True:
            share = self._ctx.share()
            busy = False
            for tree in await self._all():
                if tree in failed or not share.has(tree):
                    continue
                try:
                    busy = await self._pages(tree) or busy
                except FS3Error as error:
                    failed[tree] = error
            if not busy:
                break
        if failed:
            raise next(iter(failed.values()))

    async def _all(self) -> list[int]:
        begin, end = span(b"TREE")
        found: list[int] = []
        while True:
            pairs = await self._ctx.engine.transaction().get_range(begin, end, limit=LIST_MAX, snapshot=True)
            found += [inode_of_key(key) for key, _ in pairs]
            if len(pairs) < LIST_MAX:
                return found
            begin = pairs[-1][0] + b"\0"

    async def _pages(self, tree: int) -> bool:
        """Do some of a tree; whether there is more."""
        ctx = self._ctx

        async def page(txn: Txn) -> int:
            return await remove_page(ctx, txn, tree)

        for _ in range(PAGES_MAX):
            done = await transact(ctx.engine, page, env=ctx.env, idempotent=True)
            if done < 0:
                return False
            ctx.env.metrics.count("meta.tree_names_removed", done)
            await trio.lowlevel.checkpoint()
        return True

    async def list(self, request: ListTreesRequest) -> ListTreesReply:
        txn = self._ctx.engine.transaction()
        limit = max(1, min(request.limit, LIST_MAX))
        begin, end = tree_key(request.after + 1), span(b"TREE")[1]
        pairs = await txn.get_range(begin, end, limit=limit + 1, snapshot=True)
        found = []
        for key, value in pairs[:limit]:
            number, tree = inode_of_key(key), Tree.unpack(value)
            first, last = span(doomed_key(number, 0)[:12])
            doomed = await txn.get_range(first, last, limit=TREE_DIRECTORIES_MAX, snapshot=True)
            found.append(TreeInfo(number, tree.since_ns, tree.uid, tree.removed, tree.kept, len(doomed)))
        return ListTreesReply(tuple(found), len(pairs) > limit)


async def remove_page(ctx: Context, txn: Txn, number: int) -> int:
    """Remove some names of a tree, in one transaction; returns how many, -1 when nothing is left of it."""
    value = await txn.get(tree_key(number))
    if value is None:
        return -1
    page = _Page(ctx, txn, number, Tree.unpack(value))
    left = 1 if ctx.env.rare("meta.trees.one") else PAGE
    # The newest first, which lie deepest most of the time: so there are never many of them. Where keys were removed a store
    # may search for long: it is not asked again about those that are known to be gone.
    doomed = await txn.get_range(doomed_key(number, 0), doomed_key(number, page.highest + 1), limit=left, reverse=True)
    if not doomed:
        txn.clear(tree_key(number))
        return -1
    for key, name in doomed:
        page.highest = doomed_key_parts(key)[1]
        left -= await page.empty(page.highest, name, left)
        if left <= 0:
            break
    page.highest = max(page.below, page.highest)
    txn.set(tree_key(number), page.tree_now().pack())
    return page.removed


class _Page:
    """One transaction of the worker."""

    def __init__(self, ctx: Context, txn: Txn, number: int, tree: Tree) -> None:
        self._ctx = ctx
        self._txn = txn
        self._number = number
        self._tree = tree
        self._caller = Caller(tree.uid, tree.gid, tree.groups)
        self._now_ns = ctx.now_ns()
        self.highest = tree.highest
        self.below = 0  # the greatest of the directories that this page has doomed
        self.removed = 0
        self.kept = 0

    def tree_now(self) -> Tree:
        """The tree's record after this page."""
        tree = self._tree
        removed, kept = tree.removed + self.removed, tree.kept + self.kept
        return Tree(tree.since_ns, removed, kept, self.highest, tree.uid, tree.gid, tree.groups)

    async def empty(self, number: int, name: bytes, limit: int) -> int:
        """Remove at most `limit` entries of a doomed directory, and then itself if that were all. name: they begin behind
        it. Returns what it took."""
        txn = self._txn
        directory = await resolve.load(txn, number)
        if directory is None:  # in a damaged store
            txn.clear(doomed_key(self._number, number))
            return 1
        begin, end = entry_key(number, name) + b"\0" * bool(name), span(entry_key(number, b""))[1]
        pairs = await txn.get_range(begin, end, limit=limit)
        below = 0
        for _, value in pairs:
            inode = await resolve.load(txn, unpack_entry(value)[0])
            if inode is not None:  # as always, but in a damaged store
                below += inode.kind == DIRECTORY
                await self._take(directory, inode)
        if pairs:
            txn.clear_range(begin, pairs[-1][0] + b"\0")
        if len(pairs) == limit:
            txn.set(doomed_key(self._number, number), pairs[-1][0][ENTRY_PREFIX:])
            if below:
                txn.atomic_add(subdirectories_key(number), -below)
            return limit
        discard_directory(txn, directory)
        txn.clear(doomed_key(self._number, number))
        return len(pairs) + 1

    async def _take(self, directory: Inode, inode: Inode) -> None:
        """What an entry stood for, which goes."""
        caller = self._caller
        sticky = directory.mode & acl.STICKY and caller.uid not in (0, inode.uid, directory.uid)
        if inode.kind != DIRECTORY:
            if sticky:
                await self._keep(inode)
                return
            await drop_name(self._ctx, self._txn, inode, self._now_ns, 0, 0)
        elif sticky or not (acl.may(inode, caller, _ALL) or await is_empty(self._txn, inode.id)):
            await self._keep(inode)
            return
        else:
            _doom(self._txn, self._number, inode)
            self.below = max(self.below, inode.id)
        self.removed += 1

    async def _keep(self, inode: Inode) -> None:
        """Give it a name in /lost+found in place of the one that it had."""
        txn = self._txn
        home = await home_of_the_lost(self._ctx, txn)
        if not home:
            raise FS3Error(Code.NOT_DIRECTORY, "/lost+found is no directory: rename it", retryable=False)
        name = b"#%d" % inode.id
        again = 0
        while await txn.get(entry_key(home, name)) is not None:
            again += 1
            name = b"#%d.%d" % (inode.id, again)
        txn.set(entry_key(home, name), pack_entry(inode.id, inode.kind))
        txn.set(times_key(home), pack_times(self._now_ns, self._now_ns))
        if inode.kind == DIRECTORY:
            inode.parent = home
            txn.atomic_add(subdirectories_key(home), 1)
        else:
            inode.ctime_ns = self._now_ns
        txn.set(inode_key(inode.id), inode.pack())
        self.kept += 1
