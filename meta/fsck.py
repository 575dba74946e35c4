"""Checks all that the store says of the namespace against the invariants of schema, and chunks against the namespace. Pure.

What is read must be of one instant. Who reads a store in use, over many transactions, looks again at what was found: some of
it is only what was under way.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from fs3.errors import FS3Error
from fs3.ids import ROOT_INODE, ChunkId
from fs3.layout import file_chains
from fs3.routing import Table

from .schema import (
    DIRECTORY,
    ENTRY_PREFIX,
    FILE,
    INODE_BLOCKS,
    INODE_DOOMED,
    INODE_LOCKS,
    INODE_PENDING,
    INODE_XATTRS,
    STAT_INODES,
    Garbage,
    Inode,
    Intent,
    Lock,
    Session,
    Tree,
    doomed_key_parts,
    inode_of_key,
    session_key_parts,
    unpack_counter,
    unpack_entry,
    unpack_record,
    unpack_times,
)


class Fault(Enum):
    """What may be wrong."""

    UNREADABLE = "a record that cannot be understood"
    DANGLING_ENTRY = "an entry whose inode, or whose directory, does not exist"
    WRONG_KIND = "an entry of another kind than its inode"
    WRONG_LINKS = "a link count that is not the number of entries"
    WRONG_PARENT = "a directory whose only entry is not in the parent that it notes"
    UNREACHABLE = "an inode that has neither an entry nor a session"
    LOOP = "a directory that does not lie below the root"
    NO_TIMES = "a directory without times, or times without a directory"
    WRONG_SUBDIRECTORIES = "a count of subdirectories that is wrong"
    DANGLING_SESSION = "a session of no inode"
    WRONG_PENDING = "an intent without its mark in the inode, or a mark without intent"
    DANGLING_XATTR = "an extended attribute of no inode, or of one that is not marked to have any"
    DANGLING_LOCK = "a lock of no inode, or of one that is not marked to have any"
    WRONG_DOOM = "a directory that is marked as removed with its tree and not queued for that, or queued and not removed"
    REMOVED_ALIVE = "an inode that is queued for removal and still there"
    FOREIGN_ID = "an inode whose id was never handed out"
    WRONG_COUNT = "a count of inodes that is wrong"
    ORPHAN_CHUNK = "a chunk of no inode"
    CHUNK_BEHIND_END = "a chunk behind the end of its file"
    FOREIGN_CHUNK = "a chunk of an inode whose id was never handed out"
    WRONG_CHAIN = "a chunk on a chain where its file has none"
    NO_TABLE = "a layout whose chain table, or the version of it, does not exist"
    DAMAGED_CHUNK = "a chunk that a target cannot read"
    REPLICAS_DIFFER = "a chunk of which the targets of its chain hold different versions"


@dataclass(frozen=True, slots=True)
class Finding:
    """inode: the one concerned, 0 for none. text: for people. parent, name: of the entry concerned; of a record that cannot
    be understood, name is its key."""

    fault: Fault
    inode: int
    text: str
    parent: int = 0
    name: bytes = b""


@dataclass(slots=True)
class Survey:
    """All of a store's records, by inode. records: how many keys of each tag there are.

    part, parts: what is kept is of the inodes whose number is `part` modulo `parts`, and of all directories, so that a big
    store can be checked part by part: findings of other parts are left to these.
    """

    part: int = 0
    parts: int = 1
    inodes: dict[int, Inode] = field(default_factory=dict)
    entries: list[tuple[int, bytes, int, int]] = field(default_factory=list)  # parent, name, inode, kind
    times: set[int] = field(default_factory=set)
    subdirectories: dict[int, int] = field(default_factory=dict)
    xattrs: set[int] = field(default_factory=set)
    locks: set[int] = field(default_factory=set)
    sessions: dict[int, int] = field(default_factory=dict)  # inode -> how many
    written: set[int] = field(default_factory=set)  # inodes that somebody has open for writing
    clients: Counter[int] = field(default_factory=Counter)  # client -> sessions
    intents: set[int] = field(default_factory=set)
    garbage: set[int] = field(default_factory=set)
    trees: set[int] = field(default_factory=set)
    doomed: dict[int, int] = field(default_factory=dict)  # directory -> tree
    ids_end: int = ROOT_INODE + 1
    counted: int = 0
    records: Counter[str] = field(default_factory=Counter)
    unreadable: list[Finding] = field(default_factory=list)

    def add(self, key: bytes, value: bytes) -> None:
        """Take in one record."""
        tag = key[:4].decode(errors="replace")
        self.records[tag] += 1
        try:
            self._add(tag, key, value)
        except (struct.error, FS3Error, ValueError) as error:
            if self.part == 0:
                self.unreadable.append(Finding(Fault.UNREADABLE, 0, f"{key!r}: {error}", name=key))

    def mine(self, inode: int) -> bool:
        """Whether findings on an inode belong to this part."""
        return inode % self.parts == self.part

    def _add(self, tag: str, key: bytes, value: bytes) -> None:
        if key == INODE_BLOCKS:
            self.ids_end = int.from_bytes(value, "little")
            return
        if key == STAT_INODES:
            self.counted = unpack_counter(value)
            return
        number = inode_of_key(key)
        if tag == "INOD":
            inode = Inode.unpack(number, value)
            if inode.kind == DIRECTORY or self.mine(number):
                self.inodes[number] = inode
        elif tag == "DENT":
            named, kind = unpack_entry(value)
            if kind == DIRECTORY or self.mine(named):
                self.entries.append((number, key[ENTRY_PREFIX:], named, kind))
        elif tag == "TREE":
            Tree.unpack(value)
            self.trees.add(number)
        elif tag == "TDIR":
            tree, directory = doomed_key_parts(key)
            self.doomed[directory] = tree
        elif tag != "IDEM" and tag in _TAGS and not self.mine(number):
            pass
        elif tag == "DTIM":
            unpack_times(value)
            self.times.add(number)
        elif tag == "DSUB":
            self.subdirectories[number] = unpack_counter(value)
        elif tag == "XATR":
            self.xattrs.add(number)
        elif tag == "LOCK":
            Lock.unpack(value)
            self.locks.add(number)
        elif tag == "SESS":
            if not Session.unpack(value).hold:
                self.written.add(number)
            _, client, _ = session_key_parts(key)
            self.sessions[number] = self.sessions.get(number, 0) + 1
            self.clients[client] += 1
        elif tag == "INTN":
            Intent.unpack(value)
            self.intents.add(number)
        elif tag == "GCQ_":
            Garbage.unpack(value)
            self.garbage.add(number)
        elif tag == "IDEM":
            unpack_record(value)
        else:
            raise ValueError("an unknown tag")


_TAGS = frozenset({"DTIM", "DSUB", "XATR", "LOCK", "SESS", "INTN", "GCQ_", "IDEM"})


def survey(pairs: Iterable[tuple[bytes, bytes]]) -> Survey:
    """Take in all keys and values of the metadata service, in any order."""
    found = Survey()
    for key, value in pairs:
        found.add(key, value)
    return found


def check(found: Survey) -> list[Finding]:
    """What is wrong with the namespace; empty where all is well."""
    return [
        *found.unreadable,
        *_entries(found),
        *_links(found),
        *_directories(found),
        *_satellites(found),
        *_numbers(found),
    ]


def _entries(found: Survey) -> Iterator[Finding]:
    for parent, name, number, kind in found.entries:
        if not found.mine(number):
            continue
        inode, above = found.inodes.get(number), found.inodes.get(parent)
        what = f"{name!r} in directory {parent}"
        if inode is None:
            text = f"{what} names inode {number}, which does not exist"
            yield Finding(Fault.DANGLING_ENTRY, number, text, parent, name)
        elif inode.kind != kind:
            text = f"{what} says kind {kind}, inode {number} is of kind {inode.kind}"
            yield Finding(Fault.WRONG_KIND, number, text, parent, name)
        if above is None or above.kind != DIRECTORY:
            yield Finding(Fault.DANGLING_ENTRY, parent, f"{what}: there is no such directory", parent, name)


def _links(found: Survey) -> Iterator[Finding]:
    names = Counter(number for _, _, number, _ in found.entries)
    for number, inode in found.inodes.items():
        if not found.mine(number):
            continue
        count = names[number]
        if inode.flags & INODE_DOOMED and inode.kind == DIRECTORY:
            if count:
                text = f"directory {number} is removed with its tree, and has {count} entries"
                yield Finding(Fault.WRONG_DOOM, number, text, found.doomed.get(number, 0))
            continue
        if inode.kind == DIRECTORY:
            if count != (number != ROOT_INODE):
                yield Finding(Fault.WRONG_LINKS, number, f"directory {number} has {count} entries")
        elif inode.nlink != count:
            yield Finding(Fault.WRONG_LINKS, number, f"inode {number} has {count} entries and counts {inode.nlink}")
        if count == 0 and number != ROOT_INODE and number not in found.sessions:
            yield Finding(Fault.UNREACHABLE, number, f"inode {number} has neither an entry nor a session")


def _directories(found: Survey) -> Iterator[Finding]:
    parents = {number: parent for parent, _, number, kind in found.entries if kind == DIRECTORY}
    below = Counter(parents.values())
    rooted = {int(ROOT_INODE)}
    rooted.update([number for number, inode in found.inodes.items() if inode.flags & INODE_DOOMED])
    for number, inode in found.inodes.items():
        if inode.kind != DIRECTORY or not found.mine(number):
            continue
        if number not in found.times:
            yield Finding(Fault.NO_TIMES, number, f"directory {number} has no times")
        count = found.subdirectories.get(number, 0)
        if count != below[number]:
            text = f"directory {number} has {below[number]} subdirectories and counts {count}"
            yield Finding(Fault.WRONG_SUBDIRECTORIES, number, text)
        if number == ROOT_INODE:
            continue
        if number in parents and inode.parent != parents[number]:
            text = f"directory {number} is in {parents[number]} and notes {inode.parent}"
            yield Finding(Fault.WRONG_PARENT, number, text)
        way: list[int] = []
        at = number
        while at not in rooted and at in parents and len(way) <= len(parents):
            way.append(at)
            at = parents[at]
        if at in rooted:
            rooted.update(way)
        else:
            yield Finding(Fault.LOOP, number, f"directory {number} does not lie below the root")


def _satellites(found: Survey) -> Iterator[Finding]:
    """Records that stand beside an inode."""
    inodes = found.inodes
    for number in sorted(found.times | found.subdirectories.keys()):
        inode = inodes.get(number)
        if inode is None or inode.kind != DIRECTORY:
            yield Finding(Fault.NO_TIMES, number, f"times or a count of subdirectories for {number}, which is no directory")
    for number in sorted(found.sessions.keys() - inodes.keys()):
        yield Finding(Fault.DANGLING_SESSION, number, f"a session of inode {number}, which does not exist")
    pending = {number for number, inode in inodes.items() if inode.flags & INODE_PENDING}
    for number in sorted(pending ^ found.intents):
        yield Finding(Fault.WRONG_PENDING, number, f"inode {number}: " + ("no intent" if number in pending else "no mark"))
    marked = {number for number, inode in inodes.items() if inode.flags & INODE_XATTRS}
    for number in sorted(found.xattrs - marked):
        yield Finding(Fault.DANGLING_XATTR, number, f"an extended attribute of inode {number}, which has none")
    locked = {number for number, inode in inodes.items() if inode.flags & INODE_LOCKS}
    for number in sorted(found.locks - locked):
        yield Finding(Fault.DANGLING_LOCK, number, f"a lock of inode {number}, which has none")
    for number in sorted({number for number, inode in inodes.items() if inode.flags & INODE_DOOMED} ^ found.doomed.keys()):
        text = f"directory {number}: " + ("no mark" if number in found.doomed else "no tree that it is removed with")
        if found.mine(number):
            yield Finding(Fault.WRONG_DOOM, number, text, found.doomed.get(number, 0))
    for number, tree in sorted(found.doomed.items()):
        if tree not in found.trees and found.mine(number):
            text = f"directory {number} is to be removed with tree {tree}, which does not exist"
            yield Finding(Fault.WRONG_DOOM, number, text, tree)
    for number in sorted(found.garbage & inodes.keys()):
        yield Finding(Fault.REMOVED_ALIVE, number, f"inode {number} is queued for removal")


def _numbers(found: Survey) -> Iterator[Finding]:
    for number in sorted(found.inodes.keys() | found.garbage):
        if number >= found.ids_end and found.mine(number):
            yield Finding(Fault.FOREIGN_ID, number, f"inode {number}; ids are handed out below {found.ids_end}")
    if found.part == 0 and found.counted != found.records["INOD"]:
        yield Finding(Fault.WRONG_COUNT, 0, f"{found.records['INOD']} inodes, counted as {found.counted}")


def check_chunks(found: Survey, chunks: Iterable[tuple[ChunkId, int]]) -> Iterator[Finding]:
    """What is wrong with chunks, given each with its length in bytes. Chunks that were made after the survey are not
    known to it: take the chunks first. Of files that somebody writes, or whose chunks are about to be put in order, the
    length is not known yet; those queued for removal may have chunks for a while."""
    for chunk, length in chunks:
        finding = check_chunk(found, chunk, length)
        if finding is not None:
            yield finding


def check_chunk(found: Survey, chunk: ChunkId, length: int) -> Finding | None:
    """The same of one chunk."""
    number = chunk.inode
    if not found.mine(number):
        return None
    inode = found.inodes.get(number)
    if inode is None or inode.kind != FILE:
        if number >= found.ids_end:
            text = f"{chunk_name(chunk)}: there is no such file, ids are handed out below {found.ids_end}"
            return Finding(Fault.FOREIGN_CHUNK, number, text)
        if number not in found.garbage:
            return Finding(Fault.ORPHAN_CHUNK, number, f"{chunk_name(chunk)}: there is no such file")
    elif number not in found.written and not inode.flags & INODE_PENDING:
        end = chunk.index * inode.chunk_size + length
        if length and end > inode.length:
            text = f"{chunk_name(chunk)} ends at {end}, the file at {inode.length}"
            return Finding(Fault.CHUNK_BEHIND_END, number, text)
    return None


def check_place(found: Survey, tables: Mapping[int, Table], chunk: ChunkId, chain: int) -> Finding | None:
    """Whether a chunk lies on the chain where its file's layout puts it."""
    inode = found.inodes.get(chunk.inode)
    if inode is None or inode.kind != FILE:
        return None
    right = place_of(inode, tables, chunk.index)
    if right in (0, chain):
        return None
    return Finding(Fault.WRONG_CHAIN, chunk.inode, f"{chunk_name(chunk)} is on chain {chain}, its place is chain {right}")


def place_of(inode: Inode, tables: Mapping[int, Table], index: int) -> int:
    """The chain that a chunk of a file belongs to; 0 where the file's chain table is not known."""
    table = tables.get(inode.table)
    chains = table.chains_at(inode.table_version) if table is not None else None
    if not chains or not inode.stripe:
        return 0
    order = file_chains(inode.layout(), chains)
    return order[index % len(order)]


def check_layouts(found: Survey, tables: Mapping[int, Table]) -> Iterator[Finding]:
    """Files and directories whose chain table does not exist, given all tables."""
    for number, inode in found.inodes.items():
        if inode.kind not in (FILE, DIRECTORY) or not found.mine(number):
            continue
        table = tables.get(inode.table)
        if table is None or table.chains_at(inode.table_version) is None:
            what = "directory" if inode.kind == DIRECTORY else "file"
            text = f"{what} {number} is of version {inode.table_version} of chain table {inode.table}, which does not exist"
            yield Finding(Fault.NO_TABLE, number, text)


def chunk_name(chunk: ChunkId) -> str:
    return f"chunk {chunk.index} of inode {chunk.inode}"
