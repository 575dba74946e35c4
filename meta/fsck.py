"""Checks all that the store says of the namespace against the invariants of schema, and chunks against the namespace. Pure.

What is read must be of one instant. Who reads a store in use, over many transactions, looks again at what was found: some of
it is only what was under way.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from fs3.errors import FS3Error
from fs3.ids import ROOT_INODE, ChunkId

from .schema import (
    DIRECTORY,
    ENTRY_PREFIX,
    FILE,
    INODE_BLOCKS,
    INODE_PENDING,
    INODE_XATTRS,
    STAT_INODES,
    Garbage,
    Inode,
    Intent,
    Session,
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
    REMOVED_ALIVE = "an inode that is queued for removal and still there"
    FOREIGN_ID = "an inode whose id was never handed out"
    WRONG_COUNT = "a count of inodes that is wrong"
    ORPHAN_CHUNK = "a chunk of no inode"
    CHUNK_BEHIND_END = "a chunk behind the end of its file"


@dataclass(frozen=True, slots=True)
class Finding:
    """inode: the one concerned, 0 for none. text: for people."""

    fault: Fault
    inode: int
    text: str


@dataclass(slots=True)
class Survey:
    """All of a store's records, by inode. records: how many keys of each tag there are."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    entries: list[tuple[int, bytes, int, int]] = field(default_factory=list)  # parent, name, inode, kind
    times: set[int] = field(default_factory=set)
    subdirectories: dict[int, int] = field(default_factory=dict)
    xattrs: set[int] = field(default_factory=set)
    sessions: dict[int, int] = field(default_factory=dict)  # inode -> how many
    clients: Counter[int] = field(default_factory=Counter)  # client -> sessions
    intents: set[int] = field(default_factory=set)
    garbage: set[int] = field(default_factory=set)
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
            self.unreadable.append(Finding(Fault.UNREADABLE, 0, f"{key!r}: {error}"))

    def _add(self, tag: str, key: bytes, value: bytes) -> None:
        if key == INODE_BLOCKS:
            self.ids_end = int.from_bytes(value, "little")
            return
        if key == STAT_INODES:
            self.counted = unpack_counter(value)
            return
        number = inode_of_key(key)
        if tag == "INOD":
            self.inodes[number] = Inode.unpack(number, value)
        elif tag == "DENT":
            self.entries.append((number, key[ENTRY_PREFIX:], *unpack_entry(value)))
        elif tag == "DTIM":
            unpack_times(value)
            self.times.add(number)
        elif tag == "DSUB":
            self.subdirectories[number] = unpack_counter(value)
        elif tag == "XATR":
            self.xattrs.add(number)
        elif tag == "SESS":
            Session.unpack(value)
            inode, client, _ = session_key_parts(key)
            self.sessions[inode] = self.sessions.get(inode, 0) + 1
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
        inode, above = found.inodes.get(number), found.inodes.get(parent)
        what = f"{name!r} in directory {parent}"
        if inode is None:
            yield Finding(Fault.DANGLING_ENTRY, number, f"{what} names inode {number}, which does not exist")
        elif inode.kind != kind:
            yield Finding(Fault.WRONG_KIND, number, f"{what} says kind {kind}, inode {number} is of kind {inode.kind}")
        if above is None or above.kind != DIRECTORY:
            yield Finding(Fault.DANGLING_ENTRY, parent, f"{what}: there is no such directory")


def _links(found: Survey) -> Iterator[Finding]:
    names = Counter(number for _, _, number, _ in found.entries)
    for number, inode in found.inodes.items():
        count = names[number]
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
    for number, inode in found.inodes.items():
        if inode.kind != DIRECTORY:
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
    for number in sorted(found.garbage & inodes.keys()):
        yield Finding(Fault.REMOVED_ALIVE, number, f"inode {number} is queued for removal")


def _numbers(found: Survey) -> Iterator[Finding]:
    for number in sorted(found.inodes.keys() | found.garbage):
        if number >= found.ids_end:
            yield Finding(Fault.FOREIGN_ID, number, f"inode {number}; ids are handed out below {found.ids_end}")
    if found.counted != len(found.inodes):
        yield Finding(Fault.WRONG_COUNT, 0, f"{len(found.inodes)} inodes, counted as {found.counted}")


def check_chunks(found: Survey, chunks: Iterable[tuple[ChunkId, int]]) -> Iterator[Finding]:
    """What is wrong with chunks, given each with its length in bytes. Chunks that were made after the survey are not
    known to it: take the chunks first. Of files that somebody writes, or whose chunks are about to be put in order, the
    length is not known yet; those queued for removal may have chunks for a while."""
    for chunk, length in chunks:
        inode = found.inodes.get(chunk.inode)
        if inode is None or inode.kind != FILE:
            if chunk.inode not in found.garbage:
                yield Finding(Fault.ORPHAN_CHUNK, chunk.inode, f"chunk {chunk}: there is no such file")
        elif chunk.inode not in found.sessions and not inode.flags & INODE_PENDING:
            end = chunk.index * inode.chunk_size + length
            if length and end > inode.length:
                text = f"chunk {chunk} ends at {end}, the file at {inode.length}"
                yield Finding(Fault.CHUNK_BEHIND_END, chunk.inode, text)
