"""What FileClient does with names: calls of meta that need no open file. Files are inodes; fs3.client.paths adds paths."""

from __future__ import annotations

from dataclasses import dataclass

from ..api.common import Empty
from ..api.meta import (
    ACCESS,
    GETXATTR,
    LINK,
    LISTXATTR,
    LOOKUP,
    MKNOD,
    READDIR,
    READLINK,
    REMOVE,
    RENAME,
    RMTREE,
    SETXATTR,
    STATFS,
    AccessRequest,
    Attr,
    Caller,
    FileKind,
    GetxattrRequest,
    LinkRequest,
    ListxattrRequest,
    LookupRequest,
    MknodRequest,
    ReaddirReply,
    ReaddirRequest,
    ReadlinkRequest,
    RemoveReply,
    RemoveRequest,
    RenameFlags,
    RenameReply,
    RenameRequest,
    RmtreeRequest,
    SetxattrRequest,
    XattrMode,
)
from ..env import Env
from .holds import Holds
from .inode import OpenInode
from .locks import Locks
from .meta import MetaClient
from .releases import Releases
from .storage import RoutingSource

UNKNOWN = 0
"""No inode's number."""


@dataclass(frozen=True, slots=True)
class Space:
    """Capacity and use of the cluster for file content, in bytes, replicas counted once; files: inodes in use."""

    capacity: int
    used: int
    files: int


class NameCalls:
    """The part of FileClient that deals in names. What is open here matters to it: removed files may have to be held."""

    def __init__(self, env: Env, meta: MetaClient, mgmtd: RoutingSource, node: int) -> None:
        self.env = env
        self.node = node
        self._meta = meta
        self._mgmtd = mgmtd
        self._inodes: dict[int, OpenInode] = {}  # those with open handles
        self._opening: dict[int, int] = {}  # how many opens of an inode wait for meta; of what a name stands for: UNKNOWN
        self._kept: dict[int, list[int]] = {}  # holds of inodes that are not open, but perhaps being opened
        self.releases = Releases(meta, node)
        self.locks = Locks(env, meta, node)
        self.holds = Holds(meta, node, self._inodes, self.releases, self._new_session)

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> Attr:
        return self._seen((await self._meta.call(LOOKUP, LookupRequest(caller, parent, name))).attr)

    async def mknod(
        self, caller: Caller, parent: int, name: bytes, kind: FileKind, mode: int, rdev: int = 0, target: bytes = b""
    ) -> Attr:
        """Make anything but an open file: a directory, symbolic link (to `target`), device, pipe, socket or empty file."""
        reply = await self._meta.change(MKNOD, lambda tag: MknodRequest(tag, caller, parent, name, kind, mode, rdev, target))
        return reply.attr

    async def link(self, caller: Caller, inode: int, parent: int, name: bytes) -> Attr:
        reply = await self._meta.change(LINK, lambda tag: LinkRequest(tag, caller, inode, parent, name))
        for state in self._open_as(inode):
            state.unsynced_attr = True
        return self._seen(reply.attr)

    def _open_as(self, inode: int) -> list[OpenInode]:
        """The state of an inode, if it is open here."""
        state = self._inodes.get(inode)
        return [state] if state is not None else []

    async def readlink(self, inode: int) -> bytes:
        return (await self._meta.call(READLINK, ReadlinkRequest(inode))).target

    async def remove(self, caller: Caller, parent: int, name: bytes, *, directory: bool, hold: bool = False) -> RemoveReply:
        """unlink, or rmdir. hold: the name may stand for a file that this client has open only for reading, whose data
        is then kept until it is closed here."""
        session = self._new_session() if hold else 0
        reply = await self._meta.change(
            REMOVE, lambda tag: RemoveRequest(tag, caller, parent, name, directory, self.node, session)
        )
        if session and reply.attr is not None and reply.attr.nlink == 0:  # else meta made no hold
            self._hold(reply.inode, session)
            self._seen(reply.attr)
        return reply

    async def rmtree(self, caller: Caller, parent: int, name: bytes) -> int:
        """Remove a directory with all that is in it, which goes in the background; returns its inode (see RmtreeRequest)."""
        return (await self._meta.change(RMTREE, lambda tag: RmtreeRequest(tag, caller, parent, name))).tree

    async def rename(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: RenameFlags = RenameFlags.NONE,
        *,
        hold: bool = False,
    ) -> RenameReply:
        """hold: as in remove, for a file whose name is taken over."""
        session = self._new_session() if hold else 0
        reply = await self._meta.change(
            RENAME,
            lambda tag: RenameRequest(tag, caller, parent, name, new_parent, new_name, flags, self.node, session),
        )
        if session and reply.replaced:
            self._hold(reply.replaced, session)
        for state in list(self._inodes.values()) if flags == RenameFlags.EXCHANGE else self._open_as(reply.attr.inode):
            state.unsynced_attr = True  # the next fsync is to make the name durable, too
        return reply

    async def readdir(self, caller: Caller, inode: int, after: bytes, limit: int) -> ReaddirReply:
        """Entries with attributes after a name; those of files open here as this client sees them."""
        return await self._meta.call(READDIR, ReaddirRequest(caller, inode, after, limit))

    @property
    def changes(self) -> int:
        """Grows with each change of metadata that this client makes, at its begin and at its end."""
        return self._meta.changes

    def seen(self, attr: Attr) -> Attr:
        """Attributes out of a directory listing, as this client's programs should see them."""
        return self._seen(attr)

    async def access(self, caller: Caller, inode: int, mask: int) -> None:
        """Raises PERMISSION_DENIED."""
        await self._meta.call(ACCESS, AccessRequest(caller, inode, mask))

    async def space(self) -> Space:
        """Capacity and use of all chain tables, and the number of inodes."""
        files = (await self._meta.call(STATFS, Empty())).files
        capacity, used = self._mgmtd.routing.capacity()
        return Space(capacity, used, files)

    async def setxattr(
        self, caller: Caller, inode: int, name: bytes, value: bytes | None, mode: XattrMode = XattrMode.ANY
    ) -> None:
        """value None removes the attribute."""
        await self._meta.change(SETXATTR, lambda tag: SetxattrRequest(tag, caller, inode, name, value, mode))

    async def getxattr(self, caller: Caller, inode: int, name: bytes) -> bytes:
        return (await self._meta.call(GETXATTR, GetxattrRequest(caller, inode, name))).value

    async def listxattr(self, caller: Caller, inode: int) -> tuple[bytes, ...]:
        return (await self._meta.call(LISTXATTR, ListxattrRequest(caller, inode))).names

    def _hold(self, inode: int, session: int) -> None:
        """A hold was asked for when a name of this inode was removed: keep it while it serves, else end it. It need not
        exist, if other names are left; so one hold does not do for all."""
        state = self._inodes.get(inode)
        if state is not None:
            state.holds.append(session)
        elif inode in self._opening or UNKNOWN in self._opening:
            self._kept.setdefault(inode, []).append(session)
        else:
            self.releases.add(inode, session)

    def _begin_open(self, inode: int) -> None:
        """From now on meta may have told somebody here that the inode is open."""
        self._opening[inode] = self._opening.get(inode, 0) + 1

    def _end_open(self, inode: int) -> None:
        """The answer came, or none will. Ends the holds that waited for it and that nobody needs."""
        left = self._opening.pop(inode) - 1
        if left:
            self._opening[inode] = left
        if self._kept:
            kept, self._kept = self._kept, {}
            for number, sessions in kept.items():
                for session in sessions:
                    self._hold(number, session)

    def _new_session(self) -> int:
        return self.env.random.getrandbits(63) | 1

    def _seen(self, attr: Attr) -> Attr:
        state = self._inodes.get(attr.inode)
        return attr if state is None else state.learn(attr)
