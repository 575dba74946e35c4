"""What the kernel holds of this mount: inodes by their lookup counts, open handles, names of open files. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, TypeVar

from fs3.api.meta import Attr

H = TypeVar("H")

Name = tuple[int, bytes]
"""A directory's inode and a name in it."""


NAMES_MAX = 16
"""Names remembered of one inode."""


class KnownInode:
    """An inode that the kernel knows. lookups: how often it was told of it and has not forgotten, at least 1.

    names: those that the kernel was told and that were not removed here, so all by which it may remove the inode; others may
    have removed some. more: whether there were too many. cache_version: data_version of the file that the kernel's page
    cache stands for; -1 where it stands for none. bare_since: when meta last said that it has no extended attributes and no
    ACL (monotonic seconds). attributed: this mount has given it some, and meta's older answers may still come. gone: last
    attributes of a directory that this mount removed, for those who have it open. shown_ctime_ns, shown_length: what the
    kernel was told last. length: with the option writeback, what the kernel takes for the file's length: it listens only
    once.

    There may be millions of them: most have one name, which is kept without tuples.
    """

    __slots__ = (
        "_name",
        "_others",
        "_parent",
        "attributed",
        "bare_since",
        "cache_version",
        "gone",
        "length",
        "lookups",
        "more",
        "shown_ctime_ns",
        "shown_length",
    )

    def __init__(self) -> None:
        self.lookups = 0
        self._parent = 0
        self._name: bytes | None = None
        self._others: tuple[Name, ...] = ()
        self.more = False
        self.cache_version = -1
        self.bare_since = -math.inf
        self.attributed = False
        self.gone: Attr | None = None
        self.shown_ctime_ns = self.shown_length = 0
        self.length = 0

    def show(self, attr: Attr) -> bool:
        """The kernel is told, or will ask for, these attributes; whether they are others than it was told before."""
        ctime_ns, length = attr.ctime_ns, attr.length
        if ctime_ns == self.shown_ctime_ns and length == self.shown_length:
            return False
        self.shown_ctime_ns, self.shown_length = ctime_ns, length
        return True

    @property
    def names(self) -> tuple[Name, ...]:
        return () if self._name is None else ((self._parent, self._name), *self._others)

    def add(self, name: Name) -> None:
        if self._name is None:
            self._parent, self._name = name
        elif self._name != name[1] or self._parent != name[0]:
            names = self.names
            if name not in names:
                self.more = self.more or len(names) == NAMES_MAX
                self._keep((*names[-NAMES_MAX + 1 :], name))

    def drop(self, name: Name) -> None:
        self._keep(tuple([each for each in self.names if each != name]))

    def _keep(self, names: tuple[Name, ...]) -> None:
        self._parent, self._name = names[0] if names else (0, None)
        self._others = names[1:]


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
            known.add(name)
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
        self._inodes_of: dict[Name, set[int]] = {}  # more than one where others have changed what a name stands for
        self._names_of: dict[int, set[Name]] = {}
        self._unsure: set[int] = set()  # open files that have, or had, names which are not all known

    def opened(self, inode: int, known: Iterable[Name], links: int, more: bool = False) -> None:
        """A file is open, once or more often. known: its names, as far as they are known, or what were its names. links: how
        many it has. more: there were others."""
        names = self._names_of.setdefault(inode, set())
        for name in known:
            names.add(name)
            self._inodes_of.setdefault(name, set()).add(inode)
        if more or len(names) < links:
            self._unsure.add(inode)

    def seen(self, inode: int, name: Name, links: int) -> None:
        """A name was found to stand for an inode."""
        before = self._inodes_of.get(name)
        if before is not None and before != {inode}:
            self.removed(name)
        if inode in self._names_of:
            self.opened(inode, (name,), links)

    def removed(self, name: Name) -> None:
        for inode in self._inodes_of.pop(name, ()):
            self._names_of[inode].discard(name)

    def renamed(self, old: Name, new: Name) -> None:
        self.removed(new)
        inodes = self._inodes_of.pop(old, None)
        if inodes is not None:
            self._inodes_of[new] = inodes
            for inode in inodes:
                names = self._names_of[inode]
                names.discard(old)
                names.add(new)

    def closed(self, inode: int) -> None:
        """No handle is left."""
        for name in self._names_of.pop(inode, ()):
            inodes = self._inodes_of[name]
            inodes.discard(inode)
            if not inodes:
                del self._inodes_of[name]
        self._unsure.discard(inode)

    def may_be_open(self, name: Name) -> bool:
        return name in self._inodes_of or bool(self._unsure)
