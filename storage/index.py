"""The records of a target's chunks in memory, by file and in order. Pure."""

from __future__ import annotations

from sortedcontainers import SortedList

from fs3.api.storage import ChunkMeta
from fs3.checksum import crc32c
from fs3.ids import ChunkId

from .records import Record


class ChunkIndex:
    """chunk -> record. Files are kept in order; the chunks of one file are sorted when somebody asks for them."""

    def __init__(self) -> None:
        self._files: dict[int, dict[int, Record]] = {}  # inode -> index in the file -> record
        self._inodes: SortedList = SortedList()  # the keys of _files

    def find(self, chunk: ChunkId) -> Record | None:
        of_inode = self._files.get(chunk.inode)
        return of_inode.get(chunk.index) if of_inode is not None else None

    def insert(self, chunk: ChunkId, record: Record) -> None:
        of_inode = self._files.get(chunk.inode)
        if of_inode is None:
            of_inode = self._files[chunk.inode] = {}
            self._inodes.add(chunk.inode)
        of_inode[chunk.index] = record

    def delete(self, chunk: ChunkId) -> None:
        of_inode = self._files[chunk.inode]
        del of_inode[chunk.index]
        if not of_inode:
            del self._files[chunk.inode]
            self._inodes.remove(chunk.inode)

    def chunks_of(self, inode: int, first_index: int) -> list[tuple[ChunkId, int]]:
        """The committed chunks of a file from an index on, in order, with their lengths."""
        found = self._files.get(inode, {})
        return [
            (ChunkId(inode, index), committed.length)
            for index in sorted(found)
            if index >= first_index and (committed := found[index].committed) is not None
        ]

    def dump(self, after: ChunkId | None, until: ChunkId | None, limit: int) -> tuple[list[ChunkMeta], bool]:
        """At most `limit` chunks in order (after < chunk <= until), and whether there are more."""
        metas: list[ChunkMeta] = []
        for inode in self._inodes.irange(after.inode if after is not None else None, until.inode if until else None):
            of_inode = self._files[inode]
            for index in sorted(of_inode):
                chunk = ChunkId(inode, index)
                if after is not None and chunk <= after:
                    continue
                if until is not None and chunk > until:
                    return metas, False
                if len(metas) == limit:
                    return metas, True
                metas.append(_meta(chunk, of_inode[index]))
        return metas, False


def _meta(chunk: ChunkId, record: Record) -> ChunkMeta:
    committed = record.committed
    pending = record.pending.number if record.pending is not None else 0
    if committed is None:
        return ChunkMeta(chunk, 0, 0, pending, 0, 0)
    return ChunkMeta(
        chunk,
        committed.number,
        committed.chain_version,
        pending,
        committed.length,
        crc32c(committed.checksums),
        record.damaged,
    )
