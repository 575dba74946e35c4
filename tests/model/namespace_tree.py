"""A tree of files in memory, obviously right: what the metadata service is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fs3.api.meta import Attr, Caller, FileKind, RenameFlags
from fs3.errors import Code
from fs3.ids import ROOT_INODE

R, W, X = 4, 2, 1


class Refused(Exception):
    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Node:
    """A file or directory of the model. stored: what writers have put on the chains; length: what meta knows."""

    kind: FileKind
    mode: int
    uid: int
    gid: int
    inode: int = 0
    entries: dict[bytes, Node] = field(default_factory=dict)
    parent: Node | None = None
    names: int = 1
    target: bytes = b""
    stored: bytearray = field(default_factory=bytearray)
    length: int = 0
    handles: int = 0

    def nlink(self) -> int:
        if self.kind is FileKind.DIRECTORY:
            return 2 + sum(each.kind is FileKind.DIRECTORY for each in self.entries.values())
        return self.names

    def content(self) -> bytes:
        return bytes(self.stored[: self.length]) + bytes(max(0, self.length - len(self.stored)))

    def cut(self, length: int) -> None:
        del self.stored[length:]
        self.length = length

    def walk(self) -> Iterator[Node]:
        yield self
        for each in self.entries.values():
            yield from each.walk()


@dataclass(eq=False)
class Handle:
    """A file open for writing: its client's session, and what that client knows of the file."""

    node: Node
    session: int
    attr: Attr
    end: int = -1


def may(node: Node, user: Caller, mask: int) -> bool:
    if user.uid == 0:
        return mask & X == 0 or node.kind is FileKind.DIRECTORY or node.mode & 0o111 != 0
    shift = 6 if user.uid == node.uid else 3 if node.gid in (user.gid, *user.groups) else 0
    return mask & ~(node.mode >> shift) == 0


def need(node: Node, user: Caller, mask: int) -> None:
    if not may(node, user, mask):
        raise Refused(Code.PERMISSION_DENIED)


def need_unsticky(directory: Node, node: Node, user: Caller) -> None:
    if directory.mode & 0o1000 and user.uid not in (0, directory.uid, node.uid):
        raise Refused(Code.NOT_PERMITTED)


def searched(directory: Node, user: Caller) -> Node:
    if directory.kind is not FileKind.DIRECTORY:
        raise Refused(Code.NOT_DIRECTORY)
    need(directory, user, X)
    return directory


def clear_set_id(node: Node) -> None:
    node.mode &= ~0o4000
    if node.mode & 0o010:
        node.mode &= ~0o2000


class Tree:
    """The model: what a local file system does."""

    def __init__(self) -> None:
        self.root = Node(FileKind.DIRECTORY, 0o755, 0, 0, int(ROOT_INODE))
        self.root.parent = self.root
        self.orphans: list[Node] = []

    def make(self, user: Caller, parent: Node, name: bytes, kind: FileKind, mode: int, target: bytes = b"") -> Node:
        if name in searched(parent, user).entries:
            raise Refused(Code.EXISTS)
        need(parent, user, W)
        directory = kind is FileKind.DIRECTORY
        gid = user.gid
        if parent.mode & 0o2000:
            gid = parent.gid
            if directory:
                mode |= 0o2000
            elif mode & 0o2010 == 0o2010 and user.uid != 0 and gid not in (user.gid, *user.groups):
                mode &= ~0o2000
        node = Node(kind, 0o777 if target else mode, user.uid, gid, target=target, length=len(target))
        node.parent = parent if directory else None
        parent.entries[name] = node
        return node

    def link(self, user: Caller, node: Node, parent: Node, name: bytes) -> Node:
        if name in searched(parent, user).entries:
            raise Refused(Code.EXISTS)
        need(parent, user, W)
        if node.kind is FileKind.DIRECTORY:
            raise Refused(Code.NOT_PERMITTED)
        if node.names == 0:
            raise Refused(Code.NOT_FOUND)
        parent.entries[name] = node
        node.names += 1
        return node

    def remove(self, user: Caller, parent: Node, name: bytes, directory: bool) -> Node:
        node = searched(parent, user).entries.get(name)
        if node is None:
            raise Refused(Code.NOT_FOUND)
        need(parent, user, W)
        need_unsticky(parent, node, user)
        if directory and node.kind is not FileKind.DIRECTORY:
            raise Refused(Code.NOT_DIRECTORY)
        if not directory and node.kind is FileKind.DIRECTORY:
            raise Refused(Code.IS_DIRECTORY)
        if node.entries:
            raise Refused(Code.NOT_EMPTY)
        self.drop(parent, name)
        return node

    def drop(self, parent: Node, name: bytes) -> None:
        node = parent.entries.pop(name)
        node.names -= 1
        if node.names == 0 and node.handles:
            self.orphans.append(node)

    def rename(self, user: Caller, old: Node, name: bytes, new: Node, new_name: bytes, flags: RenameFlags) -> Node | None:
        """Returns what was replaced."""
        searched(old, user)
        searched(new, user)
        source, target = old.entries.get(name), new.entries.get(new_name)
        exchange = flags is RenameFlags.EXCHANGE
        if source is None:
            raise Refused(Code.NOT_FOUND)
        if target is None and exchange:
            raise Refused(Code.NOT_FOUND)
        if target is not None and flags is RenameFlags.NOREPLACE:
            raise Refused(Code.EXISTS)
        if old is not new:
            if new in list(source.walk()):
                raise Refused(Code.INVALID)
            if exchange and target is not None and old in list(target.walk()):
                raise Refused(Code.INVALID)
        if source is target:
            return None
        need(old, user, W)
        need_unsticky(old, source, user)
        need(new, user, W)
        is_directory = source.kind is FileKind.DIRECTORY
        if target is not None:
            need_unsticky(new, target, user)
            if not exchange and is_directory and target.kind is not FileKind.DIRECTORY:
                raise Refused(Code.NOT_DIRECTORY)
            if not exchange and not is_directory and target.kind is FileKind.DIRECTORY:
                raise Refused(Code.IS_DIRECTORY)
        if old is not new:
            for moved in (source, target if exchange else None):
                if moved is not None and moved.kind is FileKind.DIRECTORY:
                    need(moved, user, W)
        if target is not None and not exchange:
            if target.entries:
                raise Refused(Code.NOT_EMPTY)
            self.drop(new, new_name)
        del old.entries[name]
        if exchange:
            assert target is not None
            old.entries[name] = target
            target.parent = old if target.kind is FileKind.DIRECTORY else None
        new.entries[new_name] = source
        source.parent = new if is_directory else None
        return None if exchange else target

    def chmod(self, user: Caller, node: Node, mode: int) -> None:
        if user.uid not in (0, node.uid):
            drops = node.mode & ~mode
            if not drops or drops & ~0o6000 or mode & ~node.mode or not may(node, user, W):
                raise Refused(Code.NOT_PERMITTED)
        elif user.uid != 0 and node.gid not in (user.gid, *user.groups):
            mode &= ~0o2000
        node.mode = mode

    def chown(self, user: Caller, node: Node, uid: int, gid: int) -> None:
        if user.uid != 0:
            own_group = gid == node.gid or gid in (user.gid, *user.groups)
            if not (user.uid == node.uid == uid and own_group):
                raise Refused(Code.NOT_PERMITTED)
        node.uid, node.gid = uid, gid
        if node.kind is not FileKind.DIRECTORY:
            clear_set_id(node)

    def truncate(self, user: Caller, node: Node, length: int) -> None:
        if node.kind is not FileKind.FILE:
            raise Refused(Code.IS_DIRECTORY if node.kind is FileKind.DIRECTORY else Code.INVALID)
        need(node, user, W)
        node.cut(length)
        if user.uid:
            clear_set_id(node)

    def open(self, user: Caller, node: Node, truncate: bool) -> None:
        if node.kind is FileKind.DIRECTORY:
            raise Refused(Code.IS_DIRECTORY)
        if node.kind is FileKind.SYMLINK:
            raise Refused(Code.LOOP)
        need(node, user, R | W)
        if truncate and node.kind is FileKind.FILE:
            node.cut(0)
            if user.uid:
                clear_set_id(node)
