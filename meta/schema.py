"""Every key and value that the metadata service keeps in the key-value store. Pure.

Keys are a 4-byte tag and ordered parts (fs3.kv.keys). Integers in values are little-endian.

    tag   key parts                 value
    INOD  inode                     Inode: attributes, layout, a symlink's target; POSIX ACLs where INODE_ACL is set. Present
                                    as long as the inode has a name or a session; what has neither is in GCQ_, or gone.
    DENT  parent, name              inode u64, kind u8: one directory entry.
    DTIM  directory                 mtime i64, ctime i64 (ns). Of directories these two stand here and not in INOD, so that
                                    creating and removing names writes them blindly and conflicts with nobody.
    DSUB  directory                 counter (atomic_add): subdirectories. nlink of a directory = 2 + this.
    XATR  inode, name               value of an extended attribute. INODE_XATTRS is set where an inode has, or had, any.
    SESS  inode, client, session    Session: an open for writing, or a hold (a file open for reading whose last name was
                                    removed by its own mount, or open for more than a moment). An inode without names
                                    lives until its last session ends. Those of a dead client are found by reading all
                                    SESS, which only its death causes, and once a minute.
    LOCK  inode, client, owner      Lock: an advisory lock. INODE_LOCKS is set where an inode has, or had, any. Those of a
                                    dead client end with its sessions.
    IDEM  client, channel           sequence u64, method u16, second u64, error u8, reply: what the last request of this
                                    channel came to, written by the transaction that did it.
    INTN  inode                     Intent: what has to be done to the file's chunks before anybody goes on with it.
                                    INODE_PENDING is set in the inode exactly while this key is present.
    GCQ_  inode                     Garbage: a removed file whose chunks are to be removed.
    TREE  directory                 Tree: a directory that was removed with all that is in it, which is under way.
    TDIR  tree, directory           name: a directory without a name that is to be emptied and removed, for the TREE whose
                                    directory is `tree`. Entries up to that name are gone, b"" for none. INODE_DOOMED is set
                                    in the inode exactly while this key is present, so that it gets no new ones.
    IBLK                            counter u64: inode ids below it are handed out.
    STAT  name                      counter (atomic_add). "inodes": how many INOD there are.

Invariants: every DENT names an INOD; the nlink of a file is its number of DENT; a directory has exactly one DENT, in
`parent`, and its DTIM, or none while it is in TDIR: then its `parent` is the root; an inode id is never used twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fs3.api.meta import Attr, FileKind
from fs3.errors import Code, FS3Error
from fs3.layout import FileLayout

FILE = FileKind.FILE
DIRECTORY = FileKind.DIRECTORY
SYMLINK = FileKind.SYMLINK
_KINDS = {int(kind): kind for kind in FileKind}

INODE_PENDING = 1
"""An INTN is there: whoever opens, resizes or reports on this file completes it first."""
INODE_XATTRS = 2
"""XATR keys may exist."""
INODE_ACL = 4
"""The inode has an access or a default ACL."""
INODE_SPARSE = 8
"""The file may have holes: its length does not tell how much space it takes."""
INODE_DOOMED = 16
"""A directory that has lost its name with all that is in it: a TDIR is there."""

INODE_LOCKS = 32
"""LOCK keys may exist."""

FORMAT = 1
"""First byte of INOD, SESS, LOCK, INTN, GCQ_ and TREE values; a reader refuses a greater one."""
FORMAT_ACL = 2
"""That of an INOD value with INODE_ACL, which a reader that knows no ACLs must refuse."""

_INODE = struct.Struct("<BBBHIIIqqqqQQQQIIIIQ")
_LENGTH = struct.Struct("<H")
_DENTRY = struct.Struct("<QB")
_TIMES = struct.Struct("<qq")
_SESSION = struct.Struct("<BBIq")
_LOCK = struct.Struct("<BBQQIq")
_INTENT = struct.Struct("<BBqqQQ")
_GARBAGE = struct.Struct("<BqIIIIQ16x")
# 16 unused bytes: who removed it, once.
_GARBAGE_SINCE = struct.Struct("<q")
_TREE = struct.Struct("<BqQQQIIH")
_RECORD = struct.Struct("<QHQB")
_COUNTER = struct.Struct("<q")

STAT_INODES = b"STATinodes"
INODE_BLOCKS = b"IBLK"

_U64 = struct.Struct(">Q").pack
_U64_U64 = struct.Struct(">QQ").pack
_U64_U64_U64 = struct.Struct(">QQQ").pack


def inode_key(inode: int) -> bytes:
    return b"INOD" + _U64(inode)


def entry_key(parent: int, name: bytes) -> bytes:
    return b"DENT" + _U64(parent) + name


def times_key(inode: int) -> bytes:
    return b"DTIM" + _U64(inode)


def subdirectories_key(inode: int) -> bytes:
    return b"DSUB" + _U64(inode)


def xattr_key(inode: int, name: bytes) -> bytes:
    return b"XATR" + _U64(inode) + name


def session_key(inode: int, client: int, session: int) -> bytes:
    return b"SESS" + _U64_U64_U64(inode, client, session)


def session_key_parts(key: bytes) -> tuple[int, int, int]:
    """(inode, client, session) of a SESS key."""
    return int.from_bytes(key[4:12], "big"), int.from_bytes(key[12:20], "big"), int.from_bytes(key[20:28], "big")


def lock_key(inode: int, client: int, owner: int) -> bytes:
    return b"LOCK" + _U64_U64_U64(inode, client, owner)


lock_key_parts = session_key_parts
"""(inode, client, owner) of a LOCK key."""


def record_key(client: int, channel: int) -> bytes:
    return b"IDEM" + _U64_U64(client, channel)


def intent_key(inode: int) -> bytes:
    return b"INTN" + _U64(inode)


def garbage_key(inode: int) -> bytes:
    return b"GCQ_" + _U64(inode)


def tree_key(tree: int) -> bytes:
    return b"TREE" + _U64(tree)


def doomed_key(tree: int, directory: int) -> bytes:
    return b"TDIR" + _U64_U64(tree, directory)


def doomed_key_parts(key: bytes) -> tuple[int, int]:
    """(tree, directory) of a TDIR key."""
    return int.from_bytes(key[4:12], "big"), int.from_bytes(key[12:20], "big")


def inode_of_key(key: bytes) -> int:
    """The first number of a key."""
    return int.from_bytes(key[4:12], "big")


ENTRY_PREFIX = 12
"""Bytes of a DENT or XATR key before the name."""


def span(prefix: bytes) -> tuple[bytes, bytes]:
    """[begin, end) of the keys that start with a tag, or with a tag and a number, whichever is given."""
    number = int.from_bytes(prefix, "big") + 1
    return prefix, number.to_bytes(len(prefix), "big")


@dataclass(slots=True)
class Inode:
    """The value of INOD, unpacked. mtime_ns, ctime_ns and nlink of a directory are right only once they were read from
    DTIM and DSUB (resolve.complete). flags: INODE_*. target: of a symlink. access, default: ACLs (meta.posix_acl), b"" for
    none; set them by set_acls. For the rest see fs3.api.meta.Attr."""

    id: int
    kind: int
    flags: int
    mode: int
    uid: int
    gid: int
    nlink: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int
    parent: int
    truncate_version: int
    data_version: int
    table: int
    table_version: int
    chunk_size: int
    stripe: int
    seed: int
    target: bytes = b""
    access: bytes = b""
    default: bytes = b""

    def set_acls(self, access: bytes, default: bytes) -> None:
        self.access, self.default = access, default
        self.flags = self.flags | INODE_ACL if access or default else self.flags & ~INODE_ACL

    def pack(self) -> bytes:
        acls = self.flags & INODE_ACL
        value = _INODE.pack(
            FORMAT_ACL if acls else FORMAT,
            self.kind,
            self.flags,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.length,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.rdev,
            self.parent,
            self.truncate_version,
            self.data_version,
            self.table,
            self.table_version,
            self.chunk_size,
            self.stripe,
            self.seed,
        )
        if acls:
            return value + _LENGTH.pack(len(self.access)) + self.access + self.default
        return value + self.target if self.target else value

    @staticmethod
    def unpack(inode: int, value: bytes) -> Inode:
        fields = _INODE.unpack_from(value)
        found = Inode(inode, *fields[1:])
        if fields[0] == FORMAT_ACL:
            begin = _INODE.size + _LENGTH.size
            end = begin + _LENGTH.unpack_from(value, _INODE.size)[0]
            found.access, found.default = value[begin:end], value[end:]
        elif fields[0] != FORMAT:
            raise _newer("INOD", fields[0])
        elif len(value) > _INODE.size:
            found.target = value[_INODE.size :]
        return found

    def layout(self) -> FileLayout:
        return FileLayout(self.table, self.table_version, self.chunk_size, self.stripe, self.seed)

    def attr(self) -> Attr:
        kind = self.kind
        return Attr(
            self.id,
            0,
            _KINDS[kind],
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.length,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.rdev,
            self.parent,
            self.truncate_version,
            self.data_version,
            self.layout() if kind <= 2 else None,
            self.flags & (INODE_XATTRS | INODE_ACL) != 0,
            self.flags & INODE_SPARSE != 0,
        )


def pack_entry(inode: int, kind: int) -> bytes:
    return _DENTRY.pack(inode, kind)


def unpack_entry(value: bytes) -> tuple[int, int]:
    """(inode, kind) of a DENT value."""
    inode, kind = _DENTRY.unpack(value)
    return inode, kind


def pack_times(mtime_ns: int, ctime_ns: int) -> bytes:
    return _TIMES.pack(mtime_ns, ctime_ns)


def unpack_times(value: bytes) -> tuple[int, int]:
    """(mtime_ns, ctime_ns) of a DTIM value."""
    mtime_ns, ctime_ns = _TIMES.unpack(value)
    return mtime_ns, ctime_ns


def unpack_counter(value: bytes | None) -> int:
    """A counter kept by atomic_add."""
    return 0 if value is None else int(_COUNTER.unpack(value)[0])


@dataclass(frozen=True, slots=True)
class Session:
    """uid: of the opener, whose writing clears set-id bits. hold: only keeps the data. since_ns: wall clock."""

    uid: int
    hold: bool
    since_ns: int

    def pack(self) -> bytes:
        return _SESSION.pack(FORMAT, self.hold, self.uid, self.since_ns)

    @staticmethod
    def unpack(value: bytes) -> Session:
        version, hold, uid, since_ns = _SESSION.unpack(value)
        if version != FORMAT:
            raise _newer("SESS", version)
        return Session(uid, bool(hold), since_ns)


@dataclass(frozen=True, slots=True)
class Lock:
    """An advisory lock of the bytes start <= at < end. uid: of who asked for it. since_ns: wall clock."""

    exclusive: bool
    start: int
    end: int
    uid: int
    since_ns: int

    def pack(self) -> bytes:
        return _LOCK.pack(FORMAT, self.exclusive, self.start, self.end, self.uid, self.since_ns)

    @staticmethod
    def unpack(value: bytes) -> Lock:
        version, exclusive, start, end, uid, since_ns = _LOCK.unpack(value)
        if version != FORMAT:
            raise _newer("LOCK", version)
        return Lock(bool(exclusive), start, end, uid, since_ns)


INTENT_TRUNCATE = 1
INTENT_SETTLE = 2


@dataclass(frozen=True, slots=True)
class Intent:
    """Work on the chunks of a file that has to be done before the file is used further.

    INTENT_TRUNCATE: nothing may stay behind `length`; `bound`: no chunk holds bytes at or behind it (-1: not known).
    INTENT_SETTLE: the length becomes at least what the chains hold. owner, beat: who is at it; a claim that stays the
    same for longer than its holder may work counts as abandoned.
    """

    kind: int
    length: int
    bound: int
    owner: int
    beat: int

    def pack(self) -> bytes:
        return _INTENT.pack(FORMAT, self.kind, self.length, self.bound, self.owner, self.beat)

    @staticmethod
    def unpack(value: bytes) -> Intent:
        version, kind, length, bound, owner, beat = _INTENT.unpack(value)
        if version != FORMAT:
            raise _newer("INTN", version)
        return Intent(kind, length, bound, owner, beat)


@dataclass(frozen=True, slots=True)
class Garbage:
    """A removed file. bound: no chunk holds bytes at or behind it (-1: not known). since_ns: when it was removed, wall
    clock; 0 where that is not known."""

    bound: int
    layout: FileLayout
    since_ns: int = 0

    def pack(self) -> bytes:
        of = self.layout
        value = _GARBAGE.pack(FORMAT, self.bound, of.table, of.table_version, of.chunk_size, of.stripe, of.seed)
        return value + _GARBAGE_SINCE.pack(self.since_ns)

    @staticmethod
    def unpack(value: bytes) -> Garbage:
        version, bound, table, table_version, chunk_size, stripe, seed = _GARBAGE.unpack_from(value)
        if version != FORMAT:
            raise _newer("GCQ_", version)
        rest = value[_GARBAGE.size :]
        since_ns = _GARBAGE_SINCE.unpack(rest)[0] if rest else 0
        return Garbage(bound, FileLayout(table, table_version, chunk_size, stripe, seed), since_ns)


@dataclass(frozen=True, slots=True)
class Tree:
    """The removal of a directory with all that is in it. since_ns: wall clock. removed: names so far; kept: those that went
    to /lost+found. highest: of it no TDIR has a greater directory. uid, gid, groups: of whoever asked for it, whose rights
    count."""

    since_ns: int
    removed: int
    kept: int
    highest: int
    uid: int
    gid: int
    groups: tuple[int, ...]

    def pack(self) -> bytes:
        count = len(self.groups)
        value = _TREE.pack(FORMAT, self.since_ns, self.removed, self.kept, self.highest, self.uid, self.gid, count)
        return value + struct.pack(f"<{count}I", *self.groups)

    @staticmethod
    def unpack(value: bytes) -> Tree:
        version, since_ns, removed, kept, highest, uid, gid, count = _TREE.unpack_from(value)
        if version != FORMAT:
            raise _newer("TREE", version)
        return Tree(since_ns, removed, kept, highest, uid, gid, struct.unpack_from(f"<{count}I", value, _TREE.size))


def pack_record(sequence: int, method: int, second: int, error: bool, body: bytes) -> bytes:
    return _RECORD.pack(sequence, method, second, error) + body


def unpack_record(value: bytes) -> tuple[int, int, int, bool, bytes]:
    """(sequence, method, second, whether body is an error, body) of an IDEM value."""
    sequence, method, second, error = _RECORD.unpack_from(value)
    return sequence, method, second, bool(error), value[_RECORD.size :]


def _newer(tag: str, version: int) -> FS3Error:
    return FS3Error(
        Code.FORMAT_VERSION,
        f"{tag} record of format {version}, this program knows {FORMAT}: the store was written by a newer version",
        retryable=False,
    )
