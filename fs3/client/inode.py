"""What a client knows of an inode that it has open. Pure.

A writer's own view of a file runs ahead of meta's: `end` is how far it wrote, `changes` counts its writes, and a report
brings meta up to date. Replies of meta may overtake each other; versions tell which one is newer.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..api.meta import Attr
from ..ids import ChunkId
from ..layout import FileLayout, file_chains
from ..quick import changed

UNSYNCED_MAX = 16_384
"""Chunks remembered one by one as not known to be on stable storage; beyond that all of the file's are taken for it."""


NO_VERSION = -1
"""A truncate_version that no file has."""


class OpenInode:
    """One inode with open handles, shared by all of them.

    length: as this client sees it. unsynced: indices of chunks to make durable at fsync; unsynced_all: all of them.
    """

    __slots__ = (
        "_chains",
        "_table",
        "attr",
        "changes",
        "chunk_size",
        "end",
        "end_version",
        "failed",
        "gone",
        "handles",
        "holds",
        "id",
        "length",
        "mtime_ns",
        "reported",
        "sessions",
        "sparse",
        "unsynced",
        "unsynced_all",
        "unsynced_attr",
    )

    # Invariants: reported <= changes; end <= length where end_version == attr.truncate_version; handles >= 1 while in use.

    def __init__(self, attr: Attr, table: tuple[int, ...], fresh: bool) -> None:
        """table: the chains of the file's table, as of its making. fresh: the file was just made, it has no content."""
        layout = attr.layout
        assert layout is not None, f"inode {attr.inode} has no layout"
        self.id = attr.inode
        self.attr = attr
        self._table = table
        self._chains: tuple[int, ...] | None = None
        self.chunk_size = layout.chunk_size
        self.length = attr.length
        self.handles = 0
        self.sessions: list[int] = []  # of handles open for writing
        self.gone = False  # meta took this client for dead, and the file, which had no name, with it
        self.holds: list[int] = []  # sessions that keep the data of a file whose last name this client removed
        self.end = -1  # -1: wrote nothing at end_version
        self.end_version = attr.truncate_version
        self.changes = 0
        self.reported = 0
        self.failed = 0  # the last of the changes that was a write that failed
        self.mtime_ns = 0  # of the last own write
        self.sparse = False  # a write of ours began behind the end
        self.unsynced: set[int] = set()
        self.unsynced_all = not fresh
        self.unsynced_attr = True

    @property
    def dirty(self) -> bool:
        """Whether meta has not heard of all that was written."""
        return self.changes != self.reported

    @property
    def chains(self) -> tuple[int, ...]:
        """The chains of the file's chunks. Drawn when first needed: many files are opened and never read."""
        chains = self._chains
        if chains is None:
            chains = self._chains = file_chains(self.layout, self._table)
        return chains

    @property
    def layout(self) -> FileLayout:
        layout = self.attr.layout
        assert layout is not None
        return layout

    def by_chain(self, indices: Iterable[int], count_max: int) -> list[tuple[int, list[ChunkId]]]:
        """Chunks of the file by their chains, at most so many together."""
        chunks: dict[int, list[ChunkId]] = {}
        for index in indices:
            chunks.setdefault(self.chains[index % len(self.chains)], []).append(ChunkId(self.id, index))
        return [
            (chain, all_[at : at + count_max]) for chain, all_ in chunks.items() for at in range(0, len(all_), count_max)
        ]

    def wrote(self, offset: int, length: int, now_ns: int) -> None:
        """A write of this client succeeded."""
        end = offset + length
        if self.end_version != self.attr.truncate_version and not self.dirty:
            self.end, self.end_version = -1, self.attr.truncate_version
        # Else somebody cut the file between our writes: told of the older version, meta asks the chains what is left.
        if end > self.end:
            self.end = end
        if offset > self.length:
            self.sparse = True
        if end > self.length:
            self.length = end
        self.changes += 1
        self.mtime_ns = now_ns
        self.unsynced_attr = True
        size = self.chunk_size
        first, last = offset // size, (end - 1) // size
        unsynced = self.unsynced
        if first == last:
            unsynced.add(first)
        else:
            unsynced.update(range(first, last + 1))
        if len(unsynced) > UNSYNCED_MAX:
            self.unsynced_all = True
            unsynced.clear()

    def wrote_in_part(self) -> None:
        """A write failed, or was given up: any part of it may be on the chains, and only they know."""
        self.changes += 1
        self.failed = self.changes
        self.unsynced_all = True

    @property
    def report(self) -> tuple[int, int]:
        """What to tell meta: how far this client wrote, and at which version of the length. After a write that failed it is
        a version that there is not, on which meta asks the chains."""
        if self.failed > self.reported:
            return max(self.end, 0), NO_VERSION
        return self.end, self.end_version

    def learn(self, attr: Attr) -> Attr:
        """Take in attributes that meta sent; returns them as this client's programs should see them."""
        known = self.attr
        older = (attr.truncate_version, attr.data_version) < (known.truncate_version, known.data_version)
        if not older:
            self.attr = attr
            length = attr.length
            if self.end > length and self.end_version == attr.truncate_version:
                length = self.end
            self.length = length
        return self.view(attr)

    def view(self, attr: Attr) -> Attr:
        """`attr` with what this client wrote and meta has not heard of."""
        if self.length != attr.length or (self.dirty and self.mtime_ns > attr.mtime_ns):
            return changed(attr, length=self.length, mtime_ns=max(attr.mtime_ns, self.mtime_ns if self.dirty else 0))
        return attr

    def was_reported(self, changes: int, attr: Attr) -> Attr:
        """Meta took in the report of the first `changes` changes and answered with `attr`."""
        self.reported = max(self.reported, changes)
        if not self.dirty and self.end_version != attr.truncate_version:
            self.end, self.end_version = -1, attr.truncate_version
        return self.learn(attr)

    def truncated(self, attr: Attr) -> None:
        """This client set the length; every write before that is settled by it."""
        self.end, self.end_version = -1, attr.truncate_version
        self.reported = self.changes
        self.attr = attr
        self.length = attr.length
        self.unsynced_all = True
        self.unsynced_attr = True
