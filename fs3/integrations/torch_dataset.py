"""Data sets for torch.utils.data.DataLoader that read by read_batch: records in any order, and shards in a shuffled order.

Both may be made in the main process and used in workers, forked or spawned: each process connects by itself when it first
reads. Records are tensors of bytes; `decode` makes of them what the model wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..client.each import each
from ..client.paths import AsyncFile
from ..client.sync import File, FileSystem, shared
from ..errors import Code, FS3Error
from .cluster import addresses

FILES_OPEN_MAX = 4096
OPENS_AT_ONCE = 16
BLOCK_BYTES = 4 * 1024 * 1024
"""Shards are read in blocks of about this size."""
FETCH_BYTES = 64 * 1024 * 1024
"""So much is read at once, mixed, and held twice: while it is given out the next is read."""
SHARDS_AT_ONCE = 16
"""Blocks of so many shards are mixed."""

Decode = Callable[[Any], Any]


class _Source:
    """A cluster, and files of it that stay open; each process has its own."""

    def __init__(self, mgmtd: str | Sequence[str] | None) -> None:
        self._addresses = addresses(mgmtd)
        self._files: dict[str, File] = {}

    @property
    def fs(self) -> FileSystem:
        return shared(self._addresses)

    def open(self, paths: Sequence[str]) -> dict[str, File]:
        """Open those that are not open yet, several at once, as long as there are not too many."""
        fresh = [path for path in dict.fromkeys(paths) if path not in self._files]
        if fresh and len(self._files) + len(fresh) <= FILES_OPEN_MAX:
            fs = self.fs
            opened = fs.call(_open_all, fs, fresh)
            self._files |= {path: File(fs, opened[path], "r") for path in fresh}
        return self._files

    def lengths(self, paths: Sequence[str]) -> list[int]:
        files = self.open(paths)
        return [files[path].stat().length if path in files else self.fs.stat(path).length for path in paths]

    def read(self, items: Sequence[tuple[str, int, int]], into: torch.Tensor) -> None:
        """Fill a tensor of bytes with ranges of files, all of which must be there."""
        files = self.open([path for path, _, _ in items])
        ranges = [(files.get(path, path), offset, length) for path, offset, length in items]
        got = self.fs.read_batch(ranges, into.numpy(), strict=True)
        for (path, offset, length), count in zip(items, got, strict=True):
            if count != length:
                raise FS3Error(Code.OUT_OF_RANGE, f"{path}: {length} bytes at {offset} were to be read, there are {count}")

    def __getstate__(self) -> dict[str, Any]:
        return {"_addresses": self._addresses, "_files": {}}


async def _open_all(fs: FileSystem, paths: Sequence[str]) -> dict[str, AsyncFile]:
    found: dict[str, AsyncFile] = {}

    async def open_one(path: str) -> None:
        found[path] = await fs.paths.open_file(path)

    try:
        await each(paths, open_one, OPENS_AT_ONCE)
    except BaseException:
        for file in found.values():
            await file.close()  # which waits for nothing: it is open for reading only
        raise
    return found


class RecordDataset(Dataset):
    """Map-style: record number i is the range `index[i]` = (number of the file, offset, length) of `files`.

    index: an array of shape (records, 3). The DataLoader asks for whole batches (__getitems__), and each is one read_batch.
    The records of a batch are slices of one buffer; decode(record) gets a 1-d tensor of uint8.
    """

    def __init__(
        self, files: Sequence[str], index: Any, *, mgmtd: str | Sequence[str] | None = None, decode: Decode | None = None
    ) -> None:
        self.files = list(files)
        self.index = np.ascontiguousarray(index, dtype=np.int64)
        if self.index.ndim != 2 or self.index.shape[1] != 3:
            raise ValueError(f"index: expected rows (file, offset, length), found an array of shape {self.index.shape}")
        self._decode = decode
        self._source = _Source(mgmtd)

    @classmethod
    def of_equal_records(
        cls,
        files: Sequence[str],
        record_bytes: int,
        *,
        mgmtd: str | Sequence[str] | None = None,
        decode: Decode | None = None,
    ) -> RecordDataset:
        """Files that are nothing but records of one size, one behind the other."""
        counts = [length // record_bytes for length in _Source(mgmtd).lengths(files)]
        index = np.empty((sum(counts), 3), dtype=np.int64)
        index[:, 0] = np.repeat(np.arange(len(counts)), counts)
        index[:, 1] = np.concatenate([np.arange(count) * record_bytes for count in counts]) if counts else 0
        index[:, 2] = record_bytes
        return cls(files, index, mgmtd=mgmtd, decode=decode)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """A whole batch."""
        rows = self.index[np.asarray(numbers, dtype=np.int64)].tolist()
        lengths = [length for _, _, length in rows]
        buffer = torch.empty(sum(lengths), dtype=torch.uint8)
        self._source.read([(self.files[file], offset, length) for file, offset, length in rows], buffer)
        records = list(torch.split(buffer, lengths)) if lengths else []
        return records if self._decode is None else [self._decode(record) for record in records]


class ShardDataset(IterableDataset):
    """Iterable: files of records of one size, read in large blocks, in an order that seed and epoch decide.

    The shards are dealt to the ranks of torch.distributed and to the DataLoader's workers. Blocks of SHARDS_AT_ONCE shards
    are mixed, and the records of FETCH_BYTES of them shuffled. batch_records: yield tensors of shape (batch_records,
    record_bytes), the last one shorter, for DataLoader(batch_size=None): that is much faster than collating single records.
    decode: gets what is yielded.
    """

    def __init__(
        self,
        shards: Sequence[str],
        record_bytes: int,
        *,
        mgmtd: str | Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        batch_records: int | None = None,
        decode: Decode | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        """rank, world: as of torch.distributed by default, if that is initialized."""
        super().__init__()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.shards = list(shards)
        self.record_bytes = record_bytes
        self.epoch = 0
        self._shuffle = shuffle
        self._seed = seed
        self._batch = batch_records
        self._decode = decode
        self._rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self._world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
        self._source = _Source(mgmtd)

    def set_epoch(self, epoch: int) -> None:
        """Call before each epoch, in the main process: the order changes with it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        decode = self._decode if self._decode is not None else _as_it_is
        for records in self._batches() if self._batch is not None else self._mixed():
            if self._batch is not None:
                yield decode(records)
            else:
                yield from map(decode, records)

    def _batches(self) -> Iterator[torch.Tensor]:
        """Tensors of as many records as were asked for."""
        assert self._batch is not None
        rest: torch.Tensor | None = None
        for records in self._mixed():
            if rest is not None:
                records = torch.cat([rest, records])
            whole = len(records) - len(records) % self._batch
            yield from torch.split(records[:whole], self._batch) if whole else ()
            rest = records[whole:] if whole < len(records) else None
        if rest is not None:
            yield rest

    def _mixed(self) -> Iterator[torch.Tensor]:
        """Tensors of shape (some, record_bytes), in the order in which records are given out."""
        worker = get_worker_info()
        parts = self._world * (worker.num_workers if worker is not None else 1)
        part = self._rank * (worker.num_workers if worker is not None else 1) + (worker.id if worker is not None else 0)
        chance = np.random.default_rng([self._seed, self.epoch])  # the same everywhere, until the shards are dealt
        order = chance.permutation(len(self.shards)) if self._shuffle else np.arange(len(self.shards))
        mine = [self.shards[number] for number in order[part::parts]]
        chance = np.random.default_rng([self._seed, self.epoch, part, 0])
        fetches = self._fetches(mine, np.random.default_rng([self._seed, self.epoch, part, 1]))
        with ThreadPoolExecutor(1, "fs3-shards") as pool:
            waiting = pool.submit(self._next, fetches)
            while (records := waiting.result()) is not None:
                waiting = pool.submit(self._next, fetches)
                yield records[torch.from_numpy(chance.permutation(len(records)))] if self._shuffle else records

    def _next(self, fetches: Iterator[list[tuple[str, int, int]]]) -> torch.Tensor | None:
        """Read what is next; None at the end."""
        fetch = next(fetches, None)
        if fetch is None:
            return None
        buffer = torch.empty(sum([length for _, _, length in fetch]), dtype=torch.uint8)
        self._source.read(fetch, buffer)
        return buffer.view(-1, self.record_bytes)

    def _fetches(self, shards: Sequence[str], chance: np.random.Generator) -> Iterator[list[tuple[str, int, int]]]:
        """What to read at once, one after the other."""
        size = self.record_bytes
        block = max(1, BLOCK_BYTES // size) * size
        fetch: list[tuple[str, int, int]] = []
        for first in range(0, len(shards), SHARDS_AT_ONCE):
            group = shards[first : first + SHARDS_AT_ONCE]
            lengths = [length - length % size for length in self._source.lengths(group)]
            blocks = [
                (path, at, min(block, length - at))
                for path, length in zip(group, lengths, strict=True)
                for at in range(0, length, block)
            ]
            for number in chance.permutation(len(blocks)) if self._shuffle else range(len(blocks)):
                fetch.append(blocks[number])
                if sum([length for _, _, length in fetch]) >= FETCH_BYTES:
                    yield fetch
                    fetch = []
        if fetch:
            yield fetch


def _as_it_is(record: Any) -> Any:
    return record
