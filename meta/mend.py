"""Looks again at what fsck found, and puts it right: each problem in one transaction, so of one instant.

Who surveyed the store read it over many transactions, in which much has changed. What a problem rests on is read again
here: a key that is there, or is not, says the same whenever it is read. That an inode has no other names than those which
the survey saw cannot be read so; but each change of them sets its ctime, so where that is still what it was before the names
were read, they are as they were.

Nothing that had a name is thrown away: what lost its name is linked into /lost+found.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable, Sequence

from fs3.api.meta import FileKind
from fs3.api.meta_admin import EntryRef, MendRequest, Outcome, Problem, Verdict
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fs3.kv.base import Txn
from fs3.kv.transact import transact

from . import resolve
from .context import Context
from .fsck import Fault, survey
from .intents import Intents
from .lost_found import home_of_the_lost
from .ops.unlink import discard, has_session, has_writer
from .schema import (
    DIRECTORY,
    FILE,
    INODE_BLOCKS,
    INODE_DOOMED,
    INODE_LOCKS,
    INODE_PENDING,
    INODE_XATTRS,
    INTENT_SETTLE,
    STAT_INODES,
    Inode,
    Intent,
    doomed_key,
    entry_key,
    garbage_key,
    inode_key,
    intent_key,
    lock_key,
    pack_entry,
    pack_times,
    session_key,
    span,
    subdirectories_key,
    times_key,
    tree_key,
    unpack_counter,
    unpack_entry,
    xattr_key,
)

logger = logging.getLogger("fs3.meta.mend")

PAGE = 1000
READ_S = 2.0
"""How long one look may read: a transaction lasts no longer than 5 s, and so does the patience of who asked."""
IDS_END_MAX = 1 << 48
"""Ids of inodes are not moved beyond this for the sake of a chunk that says it has such a one."""

GONE = Outcome(Verdict.GONE)
FOUND = Outcome(Verdict.FOUND)
UNSETTLED = Outcome(Verdict.UNSETTLED, "in use")

_UNDECIDED = (Code.TRANSACTION_TOO_OLD, Code.CONFLICT, Code.KV_UNAVAILABLE, Code.COMMIT_UNKNOWN)

Look = Callable[[Context, Txn, Problem, bool], Awaitable[Outcome]]


def mended(text: str) -> Outcome:
    return Outcome(Verdict.MENDED, text)


async def mend(ctx: Context, intents: Intents, request: MendRequest) -> list[Outcome]:
    """Look at all problems in turn. Raises INVALID for a fault that is not known here."""
    outcomes = []
    for problem in request.problems:
        try:
            look = LOOKS[Fault[problem.fault]]
        except KeyError:
            raise FS3Error(Code.INVALID, f"a fault {problem.fault!r}") from None
        outcome = await _mend_one(ctx, look, problem, request.repair)
        if outcome.verdict is Verdict.MENDED:
            logger.warning("fsck: %s, inode %d %r: %s", problem.fault, problem.inode, problem.name, outcome.text)
            if problem.fault in (Fault.CHUNK_BEHIND_END.name, Fault.WRONG_PENDING.name):
                await intents.complete(problem.inode)
            elif problem.fault in (Fault.FOREIGN_ID.name, Fault.FOREIGN_CHUNK.name):
                await ctx.engine.sync()
        outcomes.append(outcome)
    return outcomes


async def _mend_one(ctx: Context, look: Look, problem: Problem, repair: bool) -> Outcome:
    async def once(txn: Txn) -> Outcome:
        return await look(ctx, txn, problem, repair)

    try:
        return await transact(ctx.engine, once, env=ctx.env, idempotent=True)
    except struct.error as error:
        return Outcome(Verdict.CANNOT, f"a record cannot be understood: {error}")
    except FS3Error as error:
        if error.code not in _UNDECIDED:
            return Outcome(Verdict.CANNOT, str(error))
        return Outcome(Verdict.UNSETTLED, str(error))


# Entries


async def _dangling_entry(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    key = entry_key(problem.parent, problem.name)
    value = await txn.get(key)
    if value is None:
        return GONE
    above = await resolve.load(txn, problem.parent)
    placed = above is not None and above.kind == DIRECTORY
    if placed and await resolve.load(txn, unpack_entry(value)[0]) is not None:
        return GONE
    if not repair:
        return FOUND
    txn.clear(key)
    if placed:
        txn.set(times_key(problem.parent), pack_times(ctx.now_ns(), ctx.now_ns()))
    return mended("the entry is removed")


async def _wrong_kind(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    key = entry_key(problem.parent, problem.name)
    value = await txn.get(key)
    if value is None:
        return GONE
    number, kind = unpack_entry(value)
    inode = await resolve.load(txn, number)
    if inode is None or inode.kind == kind:
        return GONE
    if not repair:
        return FOUND
    txn.set(key, pack_entry(number, inode.kind))
    return mended(f"the entry says {FileKind(inode.kind).name.lower()} now")


# Links


async def _still(txn: Txn, names: Sequence[EntryRef], inode: int) -> list[EntryRef]:
    """Those of the entries that name the inode now."""
    there = []
    for ref in names:
        value = await txn.get(entry_key(ref.parent, ref.name))
        if value is not None and unpack_entry(value)[0] == inode:
            there.append(ref)
    return there


async def _wrong_links(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    inode = await resolve.load(txn, problem.inode)
    if inode is None:
        return GONE
    there = await _still(txn, problem.names, inode.id)
    if not there:
        # Without any name it is as if it could not be reached, also while somebody has it open.
        return GONE if inode.nlink == 0 else await _unreachable(ctx, txn, problem, repair)
    if inode.kind == DIRECTORY:
        return _too_many_names(txn, inode, there, repair)
    if inode.nlink == len(there):
        return GONE
    if inode.ctime_ns != problem.ctime_ns:
        return UNSETTLED
    if not repair:
        return FOUND
    inode.nlink = len(there)
    txn.set(inode_key(inode.id), inode.pack())
    return mended(f"it counts {inode.nlink} now")


def _too_many_names(txn: Txn, directory: Inode, there: list[EntryRef], repair: bool) -> Outcome:
    if len(there) == 1:
        return GONE
    if not repair:
        return FOUND
    kept = next((ref for ref in there if ref.parent == directory.parent), there[0])
    for ref in there:
        if ref is not kept:
            txn.clear(entry_key(ref.parent, ref.name))
    return mended(f"of {len(there)} entries only {kept.name!r} in directory {kept.parent} is left")


async def _unreachable(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    inode = await resolve.load(txn, problem.inode)
    if inode is None or inode.id == ROOT_INODE or await _still(txn, problem.names, inode.id):
        return GONE
    if inode.flags & INODE_DOOMED:
        return GONE
    if inode.kind == DIRECTORY:
        if await _has_entry(ctx, txn, inode.parent, inode.id):
            return GONE
    elif inode.nlink == 0 and await has_session(txn, inode.id):
        return GONE
    elif inode.ctime_ns != problem.ctime_ns:
        return UNSETTLED
    if not repair:
        return FOUND
    if inode.kind != DIRECTORY and inode.nlink == 0:
        discard(ctx, txn, inode)
        return mended("it has no name and is open nowhere: it is removed")
    return await _reconnect(ctx, txn, inode)


async def _has_entry(ctx: Context, txn: Txn, directory: int, inode: int) -> bool:
    """Whether a directory has an entry that names the inode."""
    named = await _sum(ctx, txn, entry_key(directory, b""), lambda value: unpack_entry(value)[0] == inode, snapshot=False)
    return named > 0


async def _sum(ctx: Context, txn: Txn, prefix: bytes, wanted: Callable[[bytes], bool], *, snapshot: bool) -> int:
    """How many of the values, whose keys have a prefix, are wanted. Raises TRANSACTION_TOO_OLD, without hope, where there
    are too many of them to be read in one transaction."""
    begin, end = span(prefix)
    until = ctx.env.monotonic() + READ_S
    count = 0
    while True:
        pairs = await txn.get_range(begin, end, limit=PAGE, snapshot=snapshot)
        count += sum([wanted(value) for _, value in pairs])
        if len(pairs) < PAGE:
            return count
        if ctx.env.monotonic() >= until:
            raise FS3Error(Code.TRANSACTION_TOO_OLD, "too many records to read them all at one moment", retryable=False)
        begin = pairs[-1][0] + b"\0"


async def _reconnect(ctx: Context, txn: Txn, inode: Inode) -> Outcome:
    """Give an inode without names one in /lost+found."""
    now_ns = ctx.now_ns()
    home = await home_of_the_lost(ctx, txn)
    if not home:
        return Outcome(Verdict.CANNOT, "/lost+found is no directory: rename it, and run this again")
    name = b"#%d" % inode.id
    if await txn.get(entry_key(home, name)) is not None:
        return Outcome(Verdict.CANNOT, f"/lost+found/{name.decode()} is something else: rename it, and run this again")
    txn.set(entry_key(home, name), pack_entry(inode.id, inode.kind))
    txn.set(times_key(home), pack_times(now_ns, now_ns))
    if inode.kind == DIRECTORY:
        inode.parent = home
        txn.atomic_add(subdirectories_key(home), 1)
    else:
        inode.nlink = 1
        inode.ctime_ns = now_ns
    txn.set(inode_key(inode.id), inode.pack())
    return mended(f"it is in /lost+found/{name.decode()} now")


# Directories


async def _wrong_parent(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    inode = await resolve.load(txn, problem.inode)
    if inode is None or inode.kind != DIRECTORY:
        return GONE
    there = await _still(txn, problem.names, inode.id)
    if not there or any(ref.parent == inode.parent for ref in there):
        return GONE
    if not repair:
        return FOUND
    inode.parent = there[0].parent
    txn.set(inode_key(inode.id), inode.pack())
    return mended(f"it notes directory {inode.parent} now")


async def _loop(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    """names: the way up from the directory, as far as there was one."""
    at = problem.inode
    way = {at}
    inode = await resolve.load(txn, at)
    if inode is None or inode.kind != DIRECTORY:
        return GONE
    for ref in problem.names:
        value = await txn.get(entry_key(ref.parent, ref.name))
        if value is None or unpack_entry(value)[0] != at:
            return GONE  # it has moved, or a directory above it has
        at = ref.parent
        if at == ROOT_INODE:
            return GONE
        if at in way:
            break
        way.add(at)
    else:
        top = await resolve.load(txn, at)
        if top is None or top.kind != DIRECTORY or await _has_entry(ctx, txn, top.parent, at):
            return GONE if top is not None else FOUND  # an entry in a directory that is gone is a finding of its own
        if top.flags & INODE_DOOMED:
            return GONE
        return await _reconnect(ctx, txn, top) if repair else FOUND
    if not repair:
        return FOUND
    if at != problem.inode:
        return Outcome(Verdict.FOUND, f"it lies below directory {at}, which is in the loop")
    first = problem.names[0]
    txn.clear(entry_key(first.parent, first.name))
    return await _reconnect(ctx, txn, inode)


async def _wrong_doom(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    """problem.parent: the tree that it is queued with, 0 for none. Where it has no name, another look finds that."""
    number, tree = problem.inode, problem.parent
    inode = await resolve.load(txn, number)
    marked = inode is not None and inode.flags & INODE_DOOMED != 0
    queued = await txn.get(doomed_key(tree, number)) is not None
    there = await _still(txn, problem.names, number)
    if marked == queued and not (marked and there) and (not queued or await txn.get(tree_key(tree)) is not None):
        return GONE
    if not repair:
        return FOUND
    txn.clear(doomed_key(tree, number))
    if inode is not None:
        inode.flags &= ~INODE_DOOMED
        inode.parent = there[0].parent if there else inode.parent
        txn.set(inode_key(number), inode.pack())
    return mended("it is removed with no tree any more")


async def _no_times(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    number = problem.inode
    inode = await resolve.load(txn, number)
    times = await txn.get(times_key(number))
    if inode is not None and inode.kind == DIRECTORY:
        if times is not None:
            return GONE
        if not repair:
            return FOUND
        txn.set(times_key(number), pack_times(ctx.now_ns(), ctx.now_ns()))
        return mended("its times are now")
    if times is None and await txn.get(subdirectories_key(number)) is None:
        return GONE
    if not repair:
        return FOUND
    txn.clear(times_key(number))
    txn.clear(subdirectories_key(number))
    return mended("they are removed")


async def _wrong_subdirectories(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    number = problem.inode
    inode = await resolve.load(txn, number)  # its removal conflicts; what else happens in it does not, and need not
    if inode is None or inode.kind != DIRECTORY:
        return GONE
    counted = unpack_counter(await txn.get(subdirectories_key(number), snapshot=True))
    entries = entry_key(number, b"")
    count = await _sum(ctx, txn, entries, lambda value: unpack_entry(value)[1] == DIRECTORY, snapshot=True)
    if count == counted:
        return GONE
    if not repair:
        return FOUND
    txn.atomic_add(subdirectories_key(number), count - counted)
    return mended(f"it counts {count} now")


# Records beside inodes


async def _dangling_session(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    if await resolve.load(txn, problem.inode) is not None or not await has_session(txn, problem.inode):
        return GONE
    if not repair:
        return FOUND
    txn.clear_range(*span(session_key(problem.inode, 0, 0)[:12]))
    return mended("it is removed")


async def _wrong_pending(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    inode = await resolve.load(txn, problem.inode)
    intent = await txn.get(intent_key(problem.inode))
    marked = inode is not None and bool(inode.flags & INODE_PENDING)
    if marked == (intent is not None):
        return GONE
    if not repair:
        return FOUND
    if inode is None:
        txn.clear(intent_key(problem.inode))
        return mended("the intent is removed")
    _settle(ctx, txn, inode, intent)
    return mended("its chunks are put in order")


def _settle(ctx: Context, txn: Txn, inode: Inode, intent: bytes | None) -> None:
    """Have an intent completed, by default one that makes the file as long as its chunks are."""
    inode.flags |= INODE_PENDING
    txn.set(inode_key(inode.id), inode.pack())
    txn.set(intent_key(inode.id), intent or Intent(INTENT_SETTLE, 0, -1, ctx.owner, 0).pack())


async def _dangling_xattr(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    begin, end = span(xattr_key(problem.inode, b""))
    inode = await resolve.load(txn, problem.inode)
    if (inode is not None and inode.flags & INODE_XATTRS) or not await txn.get_range(begin, end, limit=1):
        return GONE
    if not repair:
        return FOUND
    if inode is None:
        txn.clear_range(begin, end)
        return mended("its attributes are removed")
    inode.flags |= INODE_XATTRS
    txn.set(inode_key(inode.id), inode.pack())
    return mended("it is marked to have attributes")


async def _dangling_lock(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    begin, end = span(lock_key(problem.inode, 0, 0)[:12])
    inode = await resolve.load(txn, problem.inode)
    if (inode is not None and inode.flags & INODE_LOCKS) or not await txn.get_range(begin, end, limit=1):
        return GONE
    if not repair:
        return FOUND
    if inode is None:
        txn.clear_range(begin, end)
        return mended("its locks are removed")
    inode.flags |= INODE_LOCKS
    txn.set(inode_key(inode.id), inode.pack())
    return mended("it is marked to have locks")


async def _removed_alive(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    key = garbage_key(problem.inode)
    if await txn.get(key) is None or await resolve.load(txn, problem.inode) is None:
        return GONE
    if not repair:
        return FOUND
    txn.clear(key)
    return mended("it is not queued any more")


# Numbers


async def _foreign_id(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    value = await txn.get(INODE_BLOCKS)
    number = problem.inode
    if number < (int.from_bytes(value, "little") if value is not None else ROOT_INODE + 1):
        return GONE
    if problem.fault == Fault.FOREIGN_ID.name:
        there = await resolve.load(txn, number) is not None or await txn.get(garbage_key(number)) is not None
        if not there:
            return GONE
    if not repair:
        return FOUND
    if number >= IDS_END_MAX:
        return Outcome(Verdict.CANNOT, "no id is as large as that: remove it on the daemon that has it")
    txn.set(INODE_BLOCKS, (number + 1).to_bytes(8, "little"))
    return mended("ids are handed out from above it")


async def _wrong_count(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    """By snapshot: the difference is right at its instant, and adding it is right at any. A store that takes longer to read
    than a transaction may last is not decided."""
    counted = unpack_counter(await txn.get(STAT_INODES, snapshot=True))
    count = await _sum(ctx, txn, b"INOD", lambda value: True, snapshot=True)
    if count == counted:
        return GONE
    if not repair:
        return FOUND
    txn.atomic_add(STAT_INODES, count - counted)
    return mended(f"corrected by {count - counted}")


# What is not put right here


async def _unreadable(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    value = await txn.get(problem.name)
    if value is None or not survey([(problem.name, value)]).unreadable:
        return GONE
    text = "kept as it is: a newer version of fs3 may have written it; else bring the store back from a backup"
    return Outcome(Verdict.CANNOT, text) if repair else FOUND


async def _orphan_chunk(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    inode = await resolve.load(txn, problem.inode)
    gone = inode is None or inode.kind != FILE
    return FOUND if gone and await txn.get(garbage_key(problem.inode)) is None else GONE


async def _chunk_behind_end(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    inode = await resolve.load(txn, problem.inode)
    if inode is None or inode.kind != FILE or inode.flags & INODE_PENDING or problem.length <= inode.length:
        return GONE
    if await has_writer(txn, inode.id):
        return GONE
    if not repair:
        return FOUND
    _settle(ctx, txn, inode, None)
    return mended("the file is as long as its chunks now")


async def _of_a_file(ctx: Context, txn: Txn, problem: Problem, repair: bool) -> Outcome:
    """What concerns the layout of an inode, which never changes while it is a file."""
    inode = await resolve.load(txn, problem.inode)
    if inode is None or inode.kind not in (FILE, DIRECTORY):
        return GONE
    if problem.fault == Fault.NO_TABLE.name and repair:
        if inode.kind == DIRECTORY:
            return Outcome(Verdict.CANNOT, "give it a table that exists: `fs3 admin layout set`")
        return Outcome(Verdict.CANNOT, "its content cannot be found: bring back mgmtd's store, or remove the file")
    return FOUND


LOOKS: dict[Fault, Look] = {
    Fault.UNREADABLE: _unreadable,
    Fault.DANGLING_ENTRY: _dangling_entry,
    Fault.WRONG_KIND: _wrong_kind,
    Fault.WRONG_LINKS: _wrong_links,
    Fault.WRONG_PARENT: _wrong_parent,
    Fault.UNREACHABLE: _unreachable,
    Fault.LOOP: _loop,
    Fault.NO_TIMES: _no_times,
    Fault.WRONG_SUBDIRECTORIES: _wrong_subdirectories,
    Fault.DANGLING_SESSION: _dangling_session,
    Fault.WRONG_PENDING: _wrong_pending,
    Fault.DANGLING_XATTR: _dangling_xattr,
    Fault.DANGLING_LOCK: _dangling_lock,
    Fault.WRONG_DOOM: _wrong_doom,
    Fault.REMOVED_ALIVE: _removed_alive,
    Fault.FOREIGN_ID: _foreign_id,
    Fault.WRONG_COUNT: _wrong_count,
    Fault.ORPHAN_CHUNK: _orphan_chunk,
    Fault.CHUNK_BEHIND_END: _chunk_behind_end,
    Fault.FOREIGN_CHUNK: _foreign_id,
    Fault.WRONG_CHAIN: _of_a_file,
    Fault.NO_TABLE: _of_a_file,
}
