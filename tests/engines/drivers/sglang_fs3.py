"""SGLang's HiCache with the backend of fs3, made by SGLang's own factory as "dynamic".

Arguments: the folder, as `place`. Run by SGLang's environment.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig, PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

PAGES, PAGE_BYTES, PAGE_TOKENS = 48, 1 << 18, 16


def backend(place: str, *, rank: int = 0, mla: bool = False, **extra: object) -> HiCacheStorage:
    config = HiCacheStorageConfig(
        tp_rank=rank,
        tp_size=2,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=mla,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="org/model",
        extra_config={
            "backend_name": "fs3",
            "module_path": "fs3.integrations.sglang",
            "class_name": "HiCacheFS3",
            "interface_v1": 1,
            "place": place,
            "refresh_s": 0,
            **extra,
        },
    )
    return StorageBackendFactory.create_backend("dynamic", config, None)


class HostPool:
    """What backends need of SGLang's host memory. A page is one piece of keys and one of values, or has to be copied."""

    dtype = torch.bfloat16
    page_size = PAGE_TOKENS

    def __init__(self, data: torch.Tensor, layout: str = "page_first") -> None:
        self.layout = layout
        self.pages = data.clone()

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        half = PAGE_BYTES // 2
        starts = [self.pages[index // PAGE_TOKENS].data_ptr() for index in indices.tolist()[::PAGE_TOKENS]]
        return [start + part for start in starts for part in (0, half)], [half] * (2 * len(starts))

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros_like(self.pages[0])

    def get_data_page(self, index: int, flat: bool) -> torch.Tensor:
        assert flat
        return self.pages[index // self.page_size]

    def set_from_flat_data_page(self, index: int, page: torch.Tensor) -> None:
        self.pages[index // self.page_size] = page


def keys(seed: str = "") -> list[str]:
    return [hashlib.sha256(f"{seed}{number}".encode()).hexdigest() for number in range(PAGES)]


def indices(count: int = PAGES) -> torch.Tensor:
    return torch.arange(count * PAGE_TOKENS)


def in_place(place: str, pages: torch.Tensor) -> None:
    """Pages of host memory, with and without a copy; another instance, as after a restart, finds them."""
    for layout in ("page_first", "layer_first"):
        source, target = HostPool(pages, layout), HostPool(torch.zeros_like(pages), layout)
        writer = backend(place)
        writer.register_mem_pool_host(source)
        start = time.monotonic()
        assert writer.batch_exists(keys()) == 0  # pages of another layout are others
        assert writer.batch_set_v1(keys(), indices()) == [True] * PAGES
        wrote = time.monotonic()
        writer.close()
        reader = backend(place)
        reader.register_mem_pool_host(target)
        assert reader.batch_exists([*keys(), "missing"]) == PAGES and not reader.exists("missing")
        looked = time.monotonic()
        assert reader.batch_get_v1([*keys()[:-1], "missing"], indices()) == [True] * (PAGES - 1) + [False]
        read = time.monotonic()
        assert torch.equal(target.pages[:-1], pages[:-1])
        other = backend(place, rank=1)
        other.register_mem_pool_host(HostPool(pages, layout))
        assert other.batch_exists(keys()) == 0  # heads of another rank
        reader.close()
        other.close()
        print(f"{layout}: {PAGES / (wrote - start):.0f} writes, {PAGES / (read - looked):.0f} reads of 256 KiB a second")


def tensors(place: str, pages: torch.Tensor) -> None:
    """How SGLang asks without "interface_v1"."""
    storage = backend(place)
    assert storage.batch_set(keys(), list(pages))
    targets = [torch.zeros_like(page) for page in pages]
    assert all(got is target for got, target in zip(storage.batch_get(keys(), targets), targets, strict=True))
    assert all(torch.equal(target, page) for target, page in zip(targets, pages, strict=True))
    assert storage.get("missing", torch.zeros_like(pages[0])) is None
    assert storage.get(keys()[0], torch.zeros(5, dtype=torch.uint8)) is None
    assert storage.set("one", pages[0]) and storage.exists("one")
    assert storage.clear() and not storage.exists("one") and storage.batch_exists(keys()) == 0
    storage.close()


def several_pools(place: str, pages: torch.Tensor) -> None:
    """A model with state besides keys and values: prefixes end where all of it is there."""
    storage = backend(place)
    host = HostPool(pages)
    state = HostPool(pages.flip(0))
    storage.register_mem_pool_host(host)
    storage.register_mem_host_pool_v2(host, PoolName.KV)
    storage.register_mem_host_pool_v2(state, PoolName.MAMBA)

    def transfer(name: PoolName, names: list[str]) -> PoolTransfer:
        return PoolTransfer(name=name, host_indices=indices(len(names)), keys=names)

    some = keys()[:8]
    assert storage.batch_set_v2([transfer(PoolName.KV, some)]) == {PoolName.KV: [True] * 8}
    last = PoolTransfer(name=PoolName.MAMBA, keys=[some[4]], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    assert storage.batch_exists_v2(some, [last]).kv_hit_pages == 0
    one = PoolTransfer(name=PoolName.MAMBA, keys=[some[4]], host_indices=indices(1))
    assert storage.batch_set_v2([one]) == {PoolName.MAMBA: [True]}
    found = storage.batch_exists_v2([*some, "missing"], [last])
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (5, [5])
    assert found.extra_pool_hit_pages == {PoolName.KV: 8, PoolName.MAMBA: 5}
    assert storage.batch_exists_v2(some, [PoolTransfer(name=PoolName.MAMBA)]).kv_hit_pages == 0
    wanted = state.pages[0].clone()
    state.pages.zero_()
    host.pages.zero_()
    got = storage.batch_get_v2([transfer(PoolName.KV, some), one])
    assert got == {PoolName.KV: [True] * 8, PoolName.MAMBA: [True]}
    assert torch.equal(state.pages[0], wanted) and torch.equal(host.pages[:8], pages[:8])
    storage.close()


def one_writer(place: str, pages: torch.Tensor) -> None:
    """Of a model whose cache is the same at all ranks the first writes, and all read."""
    first, second = backend(place, mla=True), backend(place, rank=1, mla=True)
    for storage in (first, second):
        storage.register_mem_pool_host(HostPool(pages))
    assert second.batch_set_v1(keys("mla"), indices()) == [True] * PAGES and first.batch_exists(keys("mla")) == 0
    assert first.batch_set_v1(keys("mla"), indices()) == [True] * PAGES
    deadline = time.monotonic() + 10
    while second.batch_exists(keys("mla")) < PAGES:  # until it is known how long the index of the first is
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.close()
    second.close()


def raced(place: str, pages: torch.Tensor) -> None:
    """Several write more than there is room for, while others read: a page is right, or not there."""
    wrong: list[str] = []
    ends = threading.Event()

    def write(rank: int) -> None:
        storage: Any = backend(place, rank=rank, capacity="16MiB", segment="1MiB")
        storage.register_mem_pool_host(HostPool(pages))
        for turn in range(3):
            done = storage.batch_set_v1(keys(f"raced{turn}"), indices())
            wrong.extend([f"rank {rank} could not write"] * done.count(False))
        storage.close()

    def read(rank: int) -> None:
        storage: Any = backend(place, rank=rank)
        seen = 0
        while not ends.is_set() or not seen:
            for turn in range(3):
                host = HostPool(torch.zeros_like(pages))
                storage.register_mem_pool_host(host)
                for number, got in enumerate(storage.batch_get_v1(keys(f"raced{turn}"), indices())):
                    seen += got
                    if got and not torch.equal(host.pages[number], pages[number]):
                        wrong.append(f"page {number} is not what was written")
            if wrong:
                break
        storage.close()

    writers = [threading.Thread(target=write, args=(rank,)) for rank in (0, 1)]
    readers = [threading.Thread(target=read, args=(rank,)) for rank in (0, 1)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    ends.set()
    for thread in readers:
        thread.join()
    assert not wrong, wrong
    if not place.startswith("fs3://"):
        assert sum([path.stat().st_size for path in Path(place, "data").iterdir()]) <= 16 << 20


def main() -> None:
    torch.set_num_threads(1)
    pages = torch.randn(PAGES, PAGE_BYTES // 2, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for part in (in_place, tensors, several_pools, one_writer, raced):
        start = time.monotonic()
        part(f"{sys.argv[1]}/{part.__name__}", pages)
        print(f"{part.__name__}: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
