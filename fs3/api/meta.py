"""Messages of the metadata service. Pure.

Names are bytes, as POSIX has them. Times are nanoseconds since 1970. Modes hold permission bits and set-id bits only
(07777); the type stands in `kind`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..ids import RequestTag
from ..layout import FileLayout
from ..quick import quick
from .common import Empty, Method

NAME_SIZE_MAX = 255
SYMLINK_SIZE_MAX = 4095


class FileKind(IntEnum):
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


@quick
@dataclass(frozen=True, slots=True)
class Caller:
    """Whose rights count. groups: all the groups of the process, its primary one included. umask: for new files."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int = 0


@quick
@dataclass(frozen=True, slots=True)
class Attr:
    """An inode. length in bytes (a symlink's: of its target). parent: of directories, else 0. truncate_version grows
    with each change of the size by a client, so that a length report from before it is not taken for one after it.
    data_version grows whenever content may have changed (a writer's report, truncation): kernel caches live by it.
    xattrs: False where it surely has neither extended attributes nor ACLs. sparse: it may have holes."""

    inode: int
    generation: int
    kind: FileKind
    mode: int
    uid: int
    gid: int
    nlink: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    parent: int = 0
    truncate_version: int = 0
    data_version: int = 0
    layout: FileLayout | None = None
    xattrs: bool = True
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class AttrReply:
    attr: Attr


@quick
@dataclass(frozen=True, slots=True)
class LookupRequest:
    """`.` and `..` are names too. NOT_FOUND, NOT_DIRECTORY, PERMISSION_DENIED (no search right), NAME_TOO_LONG."""

    caller: Caller
    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class GetattrRequest:
    """STALE_HANDLE where the inode is gone."""

    inode: int


@quick
@dataclass(frozen=True, slots=True)
class SetattrRequest:
    """None leaves a field alone. atime_now / mtime_now set the server's time (and need only write permission).

    length: truncates or extends; settled on the chains before the reply. by_handle: the caller holds the file open for
    writing, so that ftruncate needs no permission.
    """

    tag: RequestTag
    caller: Caller
    inode: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    length: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False
    by_handle: bool = False


@quick
@dataclass(frozen=True, slots=True)
class MknodRequest:
    """Make a directory entry and inode: mkdir (DIRECTORY), symlink (SYMLINK, with target), mknod (any other kind).

    mode: before the umask, which the server applies, unless the directory has a default ACL.
    """

    tag: RequestTag
    caller: Caller
    parent: int
    name: bytes
    kind: FileKind
    mode: int
    rdev: int = 0
    target: bytes = b""


class Access(IntEnum):
    READ = 1
    WRITE = 2
    READ_WRITE = 3


@quick
@dataclass(frozen=True, slots=True)
class CreateRequest:
    """open(O_CREAT): make the file unless it exists (EXISTS if exclusive), and open it, in one transaction.

    access: as for open. session: fresh 63-bit id of this open, used for WRITE access.
    """

    tag: RequestTag
    caller: Caller
    client: int
    parent: int
    name: bytes
    mode: int
    access: Access
    exclusive: bool
    truncate: bool
    session: int


@quick
@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Open by inode. Checks permission. A WRITE or READ_WRITE open makes a session that holds the file's data until it
    is closed or its client dies."""

    tag: RequestTag
    caller: Caller
    client: int
    inode: int
    access: Access
    truncate: bool
    session: int


@dataclass(frozen=True, slots=True)
class OpenReply:
    """created: whether create made the file."""

    attr: Attr
    created: bool = False


@quick
@dataclass(frozen=True, slots=True)
class CloseRequest:
    """Ends a session and settles the length: `length_hint` is the end of what this session wrote at truncate_version
    (-1: it wrote nothing); the file becomes at least that long. wrote: content changed, set mtime. sparse: a write began
    behind the file's end."""

    tag: RequestTag
    client: int
    inode: int
    session: int
    length_hint: int
    truncate_version: int
    wrote: bool
    sparse: bool = False


@quick
@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What CloseRequest reports, while the file stays open: every second, and at fsync.

    sync: reply only when the metadata is on stable storage.
    """

    tag: RequestTag
    client: int
    inode: int
    session: int
    length_hint: int
    truncate_version: int
    wrote: bool
    sync: bool
    sparse: bool = False


@quick
@dataclass(frozen=True, slots=True)
class RemoveRequest:
    """unlink (directory=False: IS_DIRECTORY on one) or rmdir (directory=True: NOT_DIRECTORY, NOT_EMPTY).

    hold: this client has the file open for reading; keep the data under this session until it closes it."""

    tag: RequestTag
    caller: Caller
    parent: int
    name: bytes
    directory: bool
    client: int = 0
    hold: int = 0


@dataclass(frozen=True, slots=True)
class RemoveReply:
    """inode: what the name stood for. attr: of it now, a removed directory's last; None when it is gone with its name.
    changed_ns: the directory's times from now on; 0 from a daemon that does not tell."""

    inode: int
    attr: Attr | None
    changed_ns: int = 0


class RenameFlags(IntEnum):
    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2


@quick
@dataclass(frozen=True, slots=True)
class RenameRequest:
    """hold: as in RemoveRequest, for a file that is replaced."""

    tag: RequestTag
    caller: Caller
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: RenameFlags
    client: int = 0
    hold: int = 0


@dataclass(frozen=True, slots=True)
class RenameReply:
    """replaced: the inode whose name was taken over; 0 when none. left: its attributes, as in RemoveReply."""

    attr: Attr
    replaced: int = 0
    left: Attr | None = None


@dataclass(frozen=True, slots=True)
class LinkRequest:
    tag: RequestTag
    caller: Caller
    inode: int
    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class ReadlinkRequest:
    inode: int


@dataclass(frozen=True, slots=True)
class ReadlinkReply:
    target: bytes


@dataclass(frozen=True, slots=True)
class ReaddirRequest:
    """Entries of a directory with their attributes, in name order, after the name `after` (b"" = from the start)."""

    caller: Caller
    inode: int
    after: bytes
    limit: int


@quick
@dataclass(frozen=True, slots=True)
class DirEntry:
    name: bytes
    attr: Attr


@dataclass(frozen=True, slots=True)
class ReaddirReply:
    """parent: inode of `..`."""

    entries: tuple[DirEntry, ...]
    more: bool
    parent: int


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """mask: R_OK 4, W_OK 2, X_OK 1. PERMISSION_DENIED if the caller may not."""

    caller: Caller
    inode: int
    mask: int


@dataclass(frozen=True, slots=True)
class StatfsReply:
    """files: inodes in use. Space comes from routing, not from meta."""

    files: int


class XattrMode(IntEnum):
    ANY = 0
    CREATE = 1
    REPLACE = 2


@dataclass(frozen=True, slots=True)
class SetxattrRequest:
    """value None removes the attribute (NO_ATTRIBUTE where there is none). POSIX ACLs are system.posix_acl_access and
    system.posix_acl_default, in the kernel's form."""

    tag: RequestTag
    caller: Caller
    inode: int
    name: bytes
    value: bytes | None
    mode: XattrMode = XattrMode.ANY


@dataclass(frozen=True, slots=True)
class GetxattrRequest:
    caller: Caller
    inode: int
    name: bytes


@dataclass(frozen=True, slots=True)
class GetxattrReply:
    value: bytes


@dataclass(frozen=True, slots=True)
class ListxattrRequest:
    caller: Caller
    inode: int


@dataclass(frozen=True, slots=True)
class ListxattrReply:
    names: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Reserve `length` bytes at the end of a file that is open for writing, for one O_APPEND write: the file is as much
    longer when the reply comes, and nobody else gets the same range. length_hint, truncate_version: as in ReportRequest."""

    tag: RequestTag
    client: int
    inode: int
    session: int
    length: int
    length_hint: int
    truncate_version: int


@dataclass(frozen=True, slots=True)
class AppendReply:
    """offset: of the reserved range. attr: of the file, the range included."""

    offset: int
    attr: Attr


@dataclass(frozen=True, slots=True)
class SessionRef:
    """A session of the client that sends it."""

    inode: int
    session: int


RELEASES_MAX = 64
"""Sessions in one ReleaseRequest."""

ATIME_LIFE_NS = 24 * 3600 * 10**9


def atime_due(atime_ns: int, mtime_ns: int, ctime_ns: int, now_ns: int) -> bool:
    """Whether reading sets the access time, as Linux does with relatime."""
    return atime_ns <= max(mtime_ns, ctime_ns) or now_ns - atime_ns >= ATIME_LIFE_NS


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """Ends sessions through which nothing was written, or all that was written is reported. Those that are gone already,
    with their inode or without it, count as ended. touched: files that were read; those whose access time is not after
    their other times, or a day old, get a new one (relatime). At most RELEASES_MAX of each."""

    tag: RequestTag
    client: int
    sessions: tuple[SessionRef, ...]
    touched: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """This client has files open only for reading, and means to keep them: makes a session for each that holds its data,
    should others remove it. ReleaseRequest ends them. At most RELEASES_MAX."""

    tag: RequestTag
    client: int
    sessions: tuple[SessionRef, ...]


@dataclass(frozen=True, slots=True)
class HoldReply:
    """gone: inodes that are not there any more, or no files, for which nothing was made."""

    gone: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RmtreeRequest:
    """Remove a directory with all that is in it: its name goes at once, the rest in the background (meta.trees).

    NOT_DIRECTORY; PERMISSION_DENIED, NOT_PERMITTED as rmdir, and PERMISSION_DENIED where it is not empty and the caller may
    not read, write and search it. What the caller could not remove one by one goes to /lost+found.
    """

    tag: RequestTag
    caller: Caller
    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class RmtreeReply:
    """tree: inode of the directory, by which meta.list_trees knows it."""

    tree: int


LOOKUP = Method(200, "meta.lookup", LookupRequest, AttrReply)
GETATTR = Method(201, "meta.getattr", GetattrRequest, AttrReply)
SETATTR = Method(202, "meta.setattr", SetattrRequest, AttrReply)
MKNOD = Method(203, "meta.mknod", MknodRequest, AttrReply)
CREATE = Method(204, "meta.create", CreateRequest, OpenReply)
OPEN = Method(205, "meta.open", OpenRequest, OpenReply)
CLOSE = Method(206, "meta.close", CloseRequest, AttrReply)
REPORT = Method(207, "meta.report", ReportRequest, AttrReply)
REMOVE = Method(208, "meta.remove", RemoveRequest, RemoveReply)
RENAME = Method(209, "meta.rename", RenameRequest, RenameReply)
LINK = Method(210, "meta.link", LinkRequest, AttrReply)
READLINK = Method(211, "meta.readlink", ReadlinkRequest, ReadlinkReply)
READDIR = Method(212, "meta.readdir", ReaddirRequest, ReaddirReply)
ACCESS = Method(213, "meta.access", AccessRequest, Empty)
STATFS = Method(214, "meta.statfs", Empty, StatfsReply)
SETXATTR = Method(215, "meta.setxattr", SetxattrRequest, Empty)
GETXATTR = Method(216, "meta.getxattr", GetxattrRequest, GetxattrReply)
LISTXATTR = Method(217, "meta.listxattr", ListxattrRequest, ListxattrReply)
APPEND = Method(218, "meta.append", AppendRequest, AppendReply)
RELEASE = Method(219, "meta.release", ReleaseRequest, Empty)
RMTREE = Method(220, "meta.rmtree", RmtreeRequest, RmtreeReply)
HOLD = Method(223, "meta.hold", HoldRequest, HoldReply)
