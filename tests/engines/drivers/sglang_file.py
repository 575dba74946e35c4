"""SGLang's HiCache backend `file`, made by its own factory: pages are written, found, read by others, evicted and cleared.

Arguments: the folder of the backend. Run by SGLang's environment.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig, PoolName, PoolTransfer
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

PAGES, PAGE_BYTES, PAGE_TOKENS = 48, 1 << 20, 16


def backend(folder: Path, **extra: object) -> HiCacheStorage:
    os.environ["SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"] = str(folder)
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="org/model",
        extra_config=extra or None,
    )
    return StorageBackendFactory.create_backend("file", config, None)


class HostPool:
    """What the backend needs of SGLang's host memory: pages of bf16, one after the other."""

    page_size = PAGE_TOKENS

    def __init__(self, data: torch.Tensor) -> None:
        self.pages = data.view(PAGES, -1)

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros_like(self.pages[0])

    def get_data_page(self, index: int, flat: bool) -> torch.Tensor:
        assert flat
        return self.pages[index // self.page_size]

    def set_from_flat_data_page(self, index: int, page: torch.Tensor) -> None:
        self.pages[index // self.page_size] = page


def keys() -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(PAGES)]


def one_by_one(folder: Path, pages: torch.Tensor) -> None:
    storage = backend(folder)
    assert storage.batch_set(keys(), list(pages))
    assert storage.batch_exists([*keys(), "missing"]) == PAGES
    targets = [torch.zeros_like(page) for page in pages]
    assert all(got is target for got, target in zip(storage.batch_get(keys(), targets), targets, strict=True))
    assert all(torch.equal(target, page) for target, page in zip(targets, pages, strict=True))
    assert storage.get("missing", torch.zeros_like(pages[0])) is None
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def by_pool(folder: Path, pages: torch.Tensor) -> None:
    """The second interface, which reads into a pool in host memory; another instance finds what one wrote."""
    source, target = HostPool(pages), HostPool(torch.zeros_like(pages))
    indices = torch.arange(PAGES * PAGE_TOKENS)
    transfer = PoolTransfer(name=PoolName.KV, host_indices=indices, keys=keys())
    writer, reader = backend(folder), backend(folder, enable_metadata_cache=True)
    writer.register_mem_host_pool_v2(source, PoolName.KV)
    reader.register_mem_host_pool_v2(target, PoolName.KV)
    start = time.monotonic()
    assert writer.batch_set_v2([transfer]) == {PoolName.KV: [True] * PAGES}
    wrote = time.monotonic()
    assert reader.batch_exists_v2(keys()).kv_hit_pages == PAGES
    looked = time.monotonic()
    assert reader.batch_get_v2([transfer]) == {PoolName.KV: [True] * PAGES}
    read = time.monotonic()
    assert torch.equal(source.pages, target.pages)
    rates = [PAGES / (wrote - start), PAGES / (looked - wrote), PAGES / (read - looked)]
    print("writes {:.0f}, lookups {:.0f}, reads {:.0f} pages of 1 MiB a second".format(*rates))


def evicted(folder: Path, pages: torch.Tensor) -> None:
    """A cap of a third: the oldest go, the newest stay, and the folder holds no more than the cap."""
    cap = PAGES // 3
    storage = backend(folder, max_size=str(cap * PAGE_BYTES), min_free_space=str(PAGE_BYTES))
    for key, page in zip(keys(), pages, strict=True):
        assert storage.set(key, page)
    assert sum(entry.stat().st_size for entry in os.scandir(folder)) <= cap * PAGE_BYTES
    assert not storage.exists(keys()[0]) and storage.exists(keys()[-1])
    again = backend(folder, max_size=str(cap * PAGE_BYTES))
    target = torch.zeros_like(pages[-1])
    assert again.get(keys()[-1], target) is target and torch.equal(target, pages[-1])
    assert again.clear() and os.listdir(folder) == []


def raced(folder: Path, pages: torch.Tensor) -> None:
    """Several ranks write the same keys while others read: a page is seen whole or not at all."""
    wrong: list[str] = []

    def write() -> None:
        storage = backend(folder)
        for key, page in zip(keys(), pages, strict=True):
            if not storage.set(key, page):
                wrong.append(f"{key} was not written")

    def read() -> None:
        storage, seen = backend(folder), 0
        while seen < PAGES and not wrong:
            for key, page in zip(keys(), pages, strict=True):
                target = torch.zeros_like(page)
                if storage.exists(key) and (storage.get(key, target) is None or not torch.equal(target, page)):
                    wrong.append(f"{key} is not what was written")
            seen = storage.batch_exists(keys())

    threads = [threading.Thread(target=work) for work in (write, write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def main() -> None:
    root = Path(sys.argv[1])
    pages = torch.randn(PAGES, PAGE_BYTES // 2, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for part in (one_by_one, by_pool, evicted, raced):
        part(root / part.__name__, pages)
        print(f"{part.__name__} done")


if __name__ == "__main__":
    main()
