"""What the kernel holds of this mount: inodes by their lookup counts, open handles, names of open files. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

H = TypeVar("H")

Name = tuple[int, bytes]
"""A directory's inode and a name in it."""


class KnownInode:
    """An inode that the kernel knows. lookups: how often it was told of it and has not forgotten, at least 1.

    name: one under which it was last seen. cache_version: data_version of the file that the kernel's page cache stands
    for; -1 where it stands for none.
    """

    __slots__ = ("cache_version", "lookups", "name")

    def __init__(self) -> None:
        self.lookups = 0
        self.name: Name | None = None
        self.cache_version = -1


class InodeTable:
    """Lookup counts, exactly as the kernel counts them."""

    def __init__(self) -> None:
        self._known: dict[int, KnownInode] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, inode: int) -> KnownInode | None:
        return self._known.get(inode)

    def told(self, inode: int, name: Name | None) -> KnownInode:
        """A reply tells the kernel of an inode: one lookup more."""
        known = self._known.get(inode)
        if known is None:
            known = self._known[inode] = KnownInode()
        known.lookups += 1
        if name is not None:
            known.name = name
        return known

    def forget(self, inode: int, lookups: int) -> bool:
        """The kernel gives back lookups; whether it now knows the inode no more."""
        known = self._known.get(inode)
        if known is None:
            return False  # the root, which nobody looks up
        known.lookups -= lookups
        assert known.lookups >= 0, f"inode {inode}: the kernel forgot more than it was told"
        if known.lookups == 0:
            del self._known[inode]
            return True
        return False


class HandleTable(Generic[H]):
    """Open files or directories by the numbers that the kernel gets for them."""

    def __init__(self) -> None:
        self._handles: dict[int, H] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: H) -> int:
        self._last += 1
        self._handles[self._last] = handle
        return self._last

    def get(self, number: int) -> H:
        """Raises KeyError for a number that is not open: the kernel never sends one."""
        return self._handles[number]

    def pop(self, number: int) -> H:
        return self._handles.pop(number)

    def values(self) -> list[H]:
        return list(self._handles.values())


class OpenNames:
    """Names of open files, to know at a removal whether the name may be that of an open one.

    It may answer yes for a file that is not open, never no for one that is.
    """

    def __init__(self) -> None:
        self._inode_of: dict[Name, int] = {}
        self._names_of: dict[int, set[Name]] = {}
        self._unsure: set[int] = set()  # open files that have, or had, names which are not all known

    def opened(self, inode: int, name: Name | None, links: int) -> None:
        """A file is open, once or more often. links: how many names it has."""
        names = self._names_of.setdefault(inode, set())
        if name is not None:
            names.add(name)
            self._inode_of[name] = inode
        if len(names) < links:
            self._unsure.add(inode)

    def seen(self, inode: int, name: Name, links: int) -> None:
        """A name was found to stand for an inode."""
        before = self._inode_of.get(name)
        if before is not None and before != inode:
            self.removed(name)
        if inode in self._names_of:
            self.opened(inode, name, links)

    def removed(self, name: Name) -> None:
        inode = self._inode_of.pop(name, None)
        if inode is not None:
            self._names_of[inode].discard(name)

    def renamed(self, old: Name, new: Name) -> None:
        self.removed(new)
        inode = self._inode_of.pop(old, None)
        if inode is not None:
            names = self._names_of[inode]
            names.discard(old)
            names.add(new)
            self._inode_of[new] = inode

    def closed(self, inode: int) -> None:
        """No handle is left."""
        for name in self._names_of.pop(inode, ()):
            del self._inode_of[name]
        self._unsure.discard(inode)

    def may_be_open(self, name: Name) -> bool:
        return name in self._inode_of or bool(self._unsure)
