"""Attributes of directories as this mount knows them without asking again. Pure.

The kernel forgets a directory's attributes with each change that is made in it, and asks for them before the next one. They
are kept here no longer than the kernel itself would keep them, and follow what this mount does: a change in a directory sets
its times to those that meta's reply tells.
"""

from __future__ import annotations

from fs3.api.meta import Attr, FileKind
from fs3.quick import changed

FOLDERS_MAX = 1024
"""Directories remembered; the oldest goes first."""


class _Folder:
    """attr: None while not known. asked_at: monotonic seconds before it was asked for. changes: that this mount has made,
    known from their replies; changed_ns: time of the last of them. doubts: grows where older replies count no more."""

    __slots__ = ("asked_at", "attr", "changed_ns", "changes", "doubts")

    def __init__(self) -> None:
        self.attr: Attr | None = None
        self.asked_at = 0.0
        self.changes = 0
        self.changed_ns = 0
        self.doubts = 0


class Ticket:
    """A question to meta that is under way."""

    __slots__ = ("asked_at", "changes", "doubts", "folder")

    def __init__(self, folder: _Folder, asked_at: float) -> None:
        self.folder = folder
        self.asked_at = asked_at
        self.changes = folder.changes
        self.doubts = folder.doubts


class Folders:
    """What is known of the directories asked for last."""

    def __init__(self) -> None:
        self._folders: dict[int, _Folder] = {}

    def known(self, inode: int, since: float) -> tuple[Attr, float] | None:
        """Attributes that were asked for after `since`, and when; seconds, monotonic."""
        folder = self._folders.get(inode)
        if folder is None or folder.attr is None or folder.asked_at <= since:
            return None
        return folder.attr, folder.asked_at

    def asking(self, inode: int, now: float) -> Ticket | None:
        """An inode's attributes are about to be asked for. None: it is not known to be a directory."""
        folder = self._folders.get(inode)
        return None if folder is None else Ticket(folder, now)

    def answered(self, ticket: Ticket | None, attr: Attr) -> Attr:
        """The reply has come. Returns it with what has changed here meanwhile."""
        if ticket is None:
            if attr.kind is FileKind.DIRECTORY:
                self._remember(attr.inode)  # the next reply will count: what changed since this one was asked, is not known
            return attr
        folder = ticket.folder
        if ticket.doubts != folder.doubts:
            return attr
        if ticket.changes != folder.changes:  # meta may have answered before it made one of them
            attr = _moved_on(attr, folder.changed_ns)
        if folder.attr is None or ticket.asked_at >= folder.asked_at:
            folder.attr, folder.asked_at = attr, ticket.asked_at
        return attr

    def _remember(self, inode: int) -> None:
        if inode in self._folders:
            return
        if len(self._folders) >= FOLDERS_MAX:
            del self._folders[next(iter(self._folders))]
        self._folders[inode] = _Folder()

    def changed(self, inode: int, at_ns: int) -> None:
        """This mount made a change in a directory that set its times, and no more of it, to at_ns."""
        folder = self._folders.get(inode)
        if folder is None:
            return
        folder.changes += 1
        folder.changed_ns = max(folder.changed_ns, at_ns)
        if folder.attr is not None:
            folder.attr = _moved_on(folder.attr, at_ns)

    def doubt(self, inode: int) -> None:
        """More than its times may have changed, or may be changing: what was answered and what is asked now does not count.
        To be called before and after such a change."""
        folder = self._folders.get(inode)
        if folder is not None:
            folder.doubts += 1
            folder.attr = None
            folder.changed_ns = 0


def _moved_on(attr: Attr, at_ns: int) -> Attr:
    if at_ns <= attr.ctime_ns:
        return attr
    return changed(attr, mtime_ns=at_ns, ctime_ns=at_ns)
