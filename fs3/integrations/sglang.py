"""SGLang's HiCache on fs3, by the door for storage backends of others ("dynamic"):

    --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{"backend_name": "fs3", "interface_v1": 1,
      "module_path": "fs3.integrations.sglang", "class_name": "HiCacheFS3", "place": "/mnt/fs3/kv", "capacity": "1TiB"}'

place: a folder on a mount, whose rings are used, or fs3://HOST:PORT/FOLDER to do without a mount. The other keys are those
of kv_options. Pages of all models, ranks and layouts may lie in one folder. docs/kv-cache.md has more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from .kv_options import open_store
from .kv_segments import memory_at
from .kv_store import BlockStore

logger = logging.getLogger("fs3.integrations.sglang")

_ITS_OWN = {"backend_name", "module_path", "class_name", "interface_v1"}
_CONTIGUOUS = ("page_first", "page_first_direct")
"""Layouts of host memory in which a page is one piece, or one of keys and one of values."""


class HiCacheFS3(HiCacheStorage):
    """Pages of KV caches as blocks of a store. Errors of fs3 are misses and pages that are not kept, with a warning."""

    def __init__(self, storage_config: HiCacheStorageConfig, options: dict[str, Any] | None = None) -> None:
        """options: what the factory passes besides; not used. Raises ValueError for a configuration of no use, OSError."""
        extra = dict(storage_config.extra_config or {})
        wishes = {key: value for key, value in extra.items() if key not in _ITS_OWN}
        self._store: BlockStore = open_store(wishes)
        self._config = storage_config
        model = storage_config.model_name or ""
        shard = f"pp{storage_config.pp_rank}/{storage_config.pp_size}"
        shard += f" cp{storage_config.attn_cp_rank}/{storage_config.attn_cp_size}"
        if storage_config.dcp_size > 1:
            shard += f" dcp{storage_config.dcp_rank}/{storage_config.dcp_size} page{storage_config.logical_page_size}"
        self._own = f"{model} {shard} tp{storage_config.tp_rank}/{storage_config.tp_size}"
        self._common = f"{model} {shard}" if storage_config.is_mla_model else self._own
        self._layout = ""
        self._parts: int | None = None  # of a page in host memory; None: it has to be copied
        self.registered_pools: dict[str, Any] = {}

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        # Pages are raw bytes: those of another layout must not be taken for these.
        self._layout = f"{mem_pool_host.layout} {mem_pool_host.dtype} {mem_pool_host.page_size}"
        self._parts = None
        if mem_pool_host.layout in _CONTIGUOUS:
            pointers, _ = mem_pool_host.get_page_buffer_meta(torch.arange(mem_pool_host.page_size))
            self._parts = len(pointers)
            buffer = getattr(mem_pool_host, "kv_buffer", None)
            if isinstance(buffer, torch.Tensor):
                self._store.register(memory_at(buffer.data_ptr(), buffer.nbytes))

    def _key(self, key: str, pool: str = PoolName.KV) -> str:
        """What a page is called in the store. State of Mamba layers is cut by ranks even where the KV cache is not."""
        rank = self._own if pool == PoolName.MAMBA else self._common
        return f"sglang {rank} {self._layout} {pool} {key}"

    def _skips(self) -> bool:
        """Whether another rank writes the same pages."""
        return not self._config.is_storage_writer

    # Pages in host memory, by their places

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        if self._parts is None:
            return self._get_copies(PoolName.KV, keys, host_indices, self.mem_pool_host)
        names, views = self._places(keys, host_indices)
        found = self._store.get(names, views)
        return self._joined([got == len(view) for got, view in zip(found, views, strict=True)])

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        if self._skips():
            return [True] * len(keys)
        if self._parts is None:
            return self._set_copies(PoolName.KV, keys, host_indices, self.mem_pool_host)
        return self._joined(self._store.put(*self._places(keys, host_indices)))

    def _places(self, keys: Sequence[str], host_indices: torch.Tensor) -> tuple[list[str], list[memoryview]]:
        """Names and bytes of all parts of the pages."""
        pointers, sizes = self.mem_pool_host.get_page_buffer_meta(host_indices)
        assert self._parts is not None and len(pointers) == len(keys) * self._parts
        return self._names(keys), [memory_at(pointer, size) for pointer, size in zip(pointers, sizes, strict=True)]

    def _names(self, keys: Sequence[str]) -> list[str]:
        """Of all parts of these pages."""
        if self._parts is None:
            return [self._key(key) for key in keys]
        return [f"{self._key(key)} {part}" for key in keys for part in range(self._parts)]

    def _joined(self, done: Sequence[bool]) -> list[bool]:
        """Of each page, whether that is true of all its parts."""
        parts = self._parts or 1
        return [all(done[first : first + parts]) for first in range(0, len(done), parts)]

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        parts = self._parts or 1
        return self._store.leading(self._names(keys)) // parts

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    # Pages of any layout, copied

    def _get_copies(self, pool: str, keys: Sequence[str], indices: torch.Tensor, host: Any) -> list[bool]:
        pages = [host.get_dummy_flat_data_page() for _ in keys]
        views = [_view(page) for page in pages]
        got = self._store.get([self._key(key, pool) for key in keys], views)
        found = [count == len(view) for count, view in zip(got, views, strict=True)]
        for number, (page, there) in enumerate(zip(pages, found, strict=True)):
            if there:
                host.set_from_flat_data_page(indices[number * host.page_size].item(), page)
        return found

    def _set_copies(self, pool: str, keys: Sequence[str], indices: torch.Tensor, host: Any) -> list[bool]:
        pages = [host.get_data_page(indices[number * host.page_size].item(), flat=True) for number in range(len(keys))]
        return self._store.put([self._key(key, pool) for key in keys], [_view(page) for page in pages])

    # Tensors, one for each page: how SGLang asks without "interface_v1"

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        views = [_view(target) for target in target_locations]
        got = self._store.get([self._key(key) for key in keys], views)
        return [
            target if count == len(view) else None for target, count, view in zip(target_locations, got, views, strict=True)
        ]

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def batch_set(self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None) -> bool:
        if self._skips():
            return True
        return all(self._store.put([self._key(key) for key in keys], [_view(value) for value in values]))

    # Several pools: models with other state than keys and values

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        pages = self._store.leading([self._key(key) for key in keys])
        hits = {PoolName.KV: pages} if pages else {}
        usable = list(range(1, pages + 1))  # lengths of prefixes of which everything is there
        for transfer in pool_transfers or []:
            if not usable:
                break
            there = self._store.exists([self._key(key, transfer.name) for key in keys[:pages]])
            possible = _possible(transfer, there)
            if possible:
                hits[transfer.name] = max(possible)
            usable = [length for length in usable if length in possible]
        return PoolTransferResult(usable[-1] if usable else 0, hits, usable)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return {transfer.name: self._transfer(transfer, self._get_copies) for transfer in transfers}

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return {transfer.name: self._transfer(transfer, self._set_copies) for transfer in transfers}

    def _transfer(self, transfer: PoolTransfer, act: Any) -> list[bool]:
        host = self.registered_pools[transfer.name]
        keys, indices = transfer.keys or [], transfer.host_indices
        if indices is None or indices.numel() != len(keys) * host.page_size:
            logger.error("pool %s: %d pages do not go with the places that were given", transfer.name, len(keys))
            return [False] * len(keys)
        done: list[bool] = act(transfer.name, keys, indices, host)
        return done

    # The rest

    def clear(self) -> bool:
        """All models' pages in the folder."""
        try:
            self._store.clear()
        except OSError as error:
            logger.warning("the cache cannot be cleared: %s", error)
            return False
        return True

    def close(self) -> None:
        self._store.close()


def _possible(transfer: PoolTransfer, there: Sequence[bool]) -> set[int]:
    """The lengths of prefixes that a pool's pages allow."""
    if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
        return set(range(1, 1 + next((n for n, found in enumerate(there) if not found), len(there))))
    if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
        last = max(1, len(transfer.keys or ()))
        return {length for length in range(1, len(there) + 1) if all(there[max(0, length - last) : length])}
    raise ValueError(f"pool {transfer.name}: hits by {transfer.hit_policy} are not supported")


def _view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in host memory, which is copied where it is not in one piece."""
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
