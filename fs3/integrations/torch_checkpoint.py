"""torch.distributed.checkpoint on fs3: FS3Writer and FS3Reader.

    dcp.save(state, storage_writer=FS3Writer("fs3://HOST:PORT/checkpoints/step-100"))
    dcp.load(state, storage_reader=FS3Reader("fs3://HOST:PORT/checkpoints/step-100"))

What is written is what torch's own FileSystemWriter writes, so that its FileSystemReader reads it through a mount, and what
that wrote is read here. Besides, the metadata say where each tensor's bytes lie, so that they are read into its own memory.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, Metadata, SavePlan, SavePlanner, StorageReader, StorageWriter
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, DEFAULT_SUFFIX, _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ..client.sync import File, FileSystem, shared
from ..errors import Code, FS3Error
from .cluster import PROTOCOL, addresses, split_url

logger = logging.getLogger("fs3.integrations.torch_checkpoint")

METADATA = ".metadata"
RAW = "fs3_raw"
"""Attribute of a tensor's storage info: (offset of its bytes behind the item's, shape, type), absent where they do not lie
in their order in one piece."""
DIRECT_BYTES = 1024 * 1024
"""Pieces of at least this size are written as they come, smaller ones are gathered."""
GATHER_BYTES = 8 * 1024 * 1024
BATCH_BYTES = 256 * 1024 * 1024
"""Of memory for what cannot be read right into a tensor, at once."""


class _Place:
    """A folder of a cluster."""

    def __init__(self, url: str | os.PathLike[str], mgmtd: str | Sequence[str] | None) -> None:
        self._mgmtd = mgmtd
        self.move(url)

    def move(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        found, self.folder = split_url(self.url)
        self._addresses = found or addresses(self._mgmtd)

    @property
    def fs(self) -> FileSystem:
        return shared(self._addresses)

    def path(self, name: str) -> str:
        return f"{self.folder.rstrip('/')}/{name}"

    def metadata(self, rank: int | None) -> str:
        """Where the metadata are; of one rank, where each wrote its own."""
        return self.path(METADATA if rank is None else f"__{rank}{METADATA}")


def _valid(checkpoint_id: str | os.PathLike[str]) -> bool:
    try:
        return os.fspath(checkpoint_id).startswith(PROTOCOL) and bool(split_url(os.fspath(checkpoint_id)))
    except ValueError:
        return False


class _Out(io.RawIOBase):
    """Takes what torch.save writes, and notes where the bytes of a tensor come to lie."""

    def __init__(self, file: File) -> None:
        super().__init__()
        self._file = file
        self._written = 0
        self._gathered = bytearray()
        self._tensor: torch.Tensor | None = None
        self.found = -1

    def look_for(self, tensor: torch.Tensor | None) -> None:
        self._tensor = tensor
        self.found = -1

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written + len(self._gathered)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        tensor = self._tensor
        if tensor is not None and len(view) == tensor.nbytes and _address(view) == tensor.data_ptr():
            self.found = self.tell()
        if len(view) < DIRECT_BYTES:
            self._gathered += view
            if len(self._gathered) >= GATHER_BYTES:
                self.flush()
        else:
            self.flush()
            self._written += self._file.pwrite(view, self._written)
        return len(view)

    def flush(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._written += self._file.pwrite(gathered, self._written)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)


def _plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's bytes, as they lie in memory, are all there is to it."""
    return (
        tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_quantized
        and tensor.nbytes > 0
    )


class FS3Writer(StorageWriter, BlockingAsyncStager):
    """Writes a checkpoint into a folder, which is made if need be.

    path: fs3://HOST:PORT/FOLDER, or /FOLDER with mgmtd as for fsspec. threads: files that each rank writes at once.
    overwrite: replace a checkpoint that is there: it stays whole until the new one is, since the files of the new one have
    other names; the metadata are written last, take their name by a rename, and only then are the old files removed.
    When save returns, all of it is on stable storage (unless sync is False). Raises FS3Error.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mgmtd: str | Sequence[str] | None = None,
        threads: int = 2,
        overwrite: bool = True,
        sync: bool = True,
        cache_staged_state_dict: bool = False,
    ) -> None:
        BlockingAsyncStager.__init__(self, cache_staged_state_dict=cache_staged_state_dict)
        self._place = _Place(path, mgmtd)
        self._threads = threads
        self._overwrite = overwrite
        self._sync = sync
        self._save_id = uuid.uuid4().hex
        self._own: int | None = None  # our rank, where each writes metadata of its own

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id:
            self._place.move(checkpoint_id)
        self._save_id = uuid.uuid4().hex

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._own = None if kwargs.get("use_collectives", True) else kwargs.get("rank")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        place = self._place
        place.fs.makedirs(place.folder)
        if not self._overwrite and place.fs.exists(place.metadata(self._own)):
            raise RuntimeError(f"{place.url} holds a checkpoint already, and overwrite is False")
        return plan if self._own is None else replace(plan, storage_data=self._prefix(self._own))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [
            plan if plan.storage_data is not None else replace(plan, storage_data=self._prefix(rank))
            for rank, plan in enumerate(plans)
        ]

    def _prefix(self, rank: int) -> _StoragePrefix:
        """Of the names of a rank's files: different for each save."""
        return _StoragePrefix(f"__{rank}_{self._save_id[:12]}_")

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        files = [
            (f"{plan.storage_data.prefix}{number}{DEFAULT_SUFFIX}", items)
            for number, items in enumerate(_shares(plan.items, self._threads))
        ]
        results: list[WriteResult] = []
        with ThreadPoolExecutor(self._threads, "fs3-checkpoint") as pool:
            for found in pool.map(lambda file: self._write_file(file[0], file[1], planner), files):
                results += found
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write_file(self, name: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        with self._place.fs.open(self._place.path(name), "w") as file:
            out = _Out(file)
            results = [_write_item(out, name, item, planner.resolve_data(item)) for item in items]
            out.flush()
            if self._sync:
                file.sync()
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Show the checkpoint, all at once, in the place of the one before."""
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for found in results for result in found}
        metadata.storage_meta = self.storage_meta()
        place = self._place
        target = place.metadata(self._own)
        old = self._files_of(target)
        fresh = f"{target}.{self._save_id}"
        with place.fs.open(fresh, "w") as file:
            file.write(pickle.dumps(metadata))
            if self._sync:
                file.sync()
        place.fs.rename(fresh, target)
        if self._sync:
            place.fs.sync_folder(place.folder)
        for name in old - {info.relative_path for info in metadata.storage_data.values()}:
            try:
                place.fs.unlink(place.path(name))
            except FS3Error as error:
                logger.warning("%s, of the checkpoint before, is not removed: %s", place.path(name), error)

    def _files_of(self, path: str) -> set[str]:
        """The files of the checkpoint that is there."""
        fs = self._place.fs
        if not fs.exists(path):
            return set()
        try:
            metadata = pickle.loads(fs.read_file(path))
            return {info.relative_path for info in metadata.storage_data.values()}
        except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError) as error:
            logger.warning("%s cannot be read, so the files that it names stay: %r", path, error)
            return set()

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self._place.url, save_id=self._save_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return _valid(checkpoint_id)


def _shares(items: Sequence[WriteItem], count: int) -> list[list[WriteItem]]:
    """Deal items out so that the shares are about equally large; none is empty."""
    sized = sorted(
        ((_size(item), number, item) for number, item in enumerate(items)), key=lambda entry: (-entry[0], entry[1])
    )
    shares: list[tuple[int, list[WriteItem]]] = [(0, []) for _ in range(count)]
    for size, _, item in sized:
        least = min(range(count), key=lambda number: shares[number][0])
        total, share = shares[least]
        share.append(item)
        shares[least] = (total + size + 1, share)
    return [share for _, share in shares if share]


def _size(item: WriteItem) -> int:
    data = item.tensor_data
    return 0 if data is None else int(data.size.numel() * data.properties.dtype.itemsize)


def _write_item(out: _Out, name: str, item: WriteItem, data: Any) -> WriteResult:
    start = out.tell()
    raw = None
    if item.type == WriteItemType.BYTE_IO:
        out.write(data.getbuffer())
    else:
        tensor = data.detach().cpu()
        if tensor.layout is torch.strided and tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # else all of a storage would be written for a slice of it
        plain = _plain(tensor)
        out.look_for(tensor if plain else None)
        torch.save(tensor, out)
        if plain and out.found >= 0:
            raw = (out.found - start, tuple(tensor.shape), str(tensor.dtype))
        out.look_for(None)
    info = _StorageInfo(name, start, out.tell() - start)
    if raw is not None:
        setattr(info, RAW, raw)
    return WriteResult(index=item.index, size_in_bytes=info.length, storage_data=info)


@dataclass
class _Load:
    """One item on its way. into: what its bytes are read into. target: the tensor that wants them; None for bytes."""

    item: ReadItem
    path: str
    offset: int
    length: int
    into: Any
    target: torch.Tensor | None
    found: torch.Tensor | None = None
    """What was read, where it is a tensor and not the target itself."""


class FS3Reader(StorageReader):
    """Reads a checkpoint that FS3Writer or torch's FileSystemWriter wrote. Arguments as of FS3Writer. Raises FS3Error."""

    def __init__(self, path: str | os.PathLike[str], *, mgmtd: str | Sequence[str] | None = None) -> None:
        super().__init__()
        self._place = _Place(path, mgmtd)
        self._infos: dict[Any, Any] = {}
        self._load_id = uuid.uuid4().hex

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._infos = {}
        if checkpoint_id:
            self._place.move(checkpoint_id)
        self._load_id = uuid.uuid4().hex

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = pickle.loads(self._place.fs.read_file(self._place.metadata(kwargs.get("rank"))))
        assert isinstance(metadata, Metadata)
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self._load_id
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._infos = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        batch: list[_Load] = []
        extra = 0
        for item in plan.items:
            load = self._load(item, planner)
            batch.append(load)
            extra += 0 if load.target is not None and load.found is None else load.length
            if extra >= BATCH_BYTES:
                self._read(batch, planner)
                batch, extra = [], 0
        self._read(batch, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _load(self, item: ReadItem, planner: LoadPlanner) -> _Load:
        info = self._infos[item.storage_index]
        if getattr(info, "transform_descriptors", None):
            raise FS3Error(Code.NOT_SUPPORTED, f"{info.relative_path}: written with extensions {info.transform_descriptors}")
        path = self._place.path(info.relative_path)
        if item.type == LoadItemType.BYTE_IO:
            return _Load(item, path, info.offset, info.length, bytearray(info.length), None)
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != tuple(item.lengths):
            raise FS3Error(Code.INVALID, f"{item.storage_index}: of shape {tuple(item.lengths)}, not {tuple(target.shape)}")
        raw = getattr(info, RAW, None)
        if raw is None:
            return _Load(item, path, info.offset, info.length, bytearray(info.length), target)
        start, shape, name = raw
        dtype = getattr(torch, name.removeprefix("torch."))
        # Rows are in one piece; within them a part is cut out after reading.
        first, rows = (item.storage_offsets[0], item.lengths[0]) if shape else (0, 1)
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        offset, length = info.offset + start + first * row_bytes, rows * row_bytes
        whole = tuple(item.lengths[1:]) == tuple(shape[1:])
        if whole and target.dtype == dtype and target.is_cpu and _plain(target):
            return _Load(item, path, offset, length, _bytes_of(target), target)
        found = torch.empty((rows, *shape[1:]) if shape else (), dtype=dtype)
        return _Load(item, path, offset, length, _bytes_of(found), target, found)

    def _read(self, batch: list[_Load], planner: LoadPlanner) -> None:
        """Read all at once, and hand them over."""
        ranges = [(load.path, load.offset, load.length) for load in batch]
        got = self._place.fs.read_batch(ranges, [load.into for load in batch], strict=True)
        for load, count in zip(batch, got, strict=True):
            if count != load.length:
                raise FS3Error(Code.OUT_OF_RANGE, f"{load.path}: of {load.length} bytes at {load.offset} there are {count}")
            item, target = load.item, load.target
            if target is None:
                planner.load_bytes(item, io.BytesIO(load.into))
                continue
            if load.found is not None:
                rest = [slice(at, at + size) for at, size in zip(item.storage_offsets[1:], item.lengths[1:], strict=True)]
                target.copy_(load.found[(slice(None), *rest)] if load.found.dim() else load.found)
            elif isinstance(load.into, bytearray):
                tensor = torch.load(io.BytesIO(load.into), map_location="cpu", weights_only=True)
                target.copy_(narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths))
            planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return _valid(checkpoint_id)


def _bytes_of(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
