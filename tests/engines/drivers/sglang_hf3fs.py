"""SGLang's HiCache backend `hf3fs`, made by its own factory, over rings: pages are written, found, read, evicted, deleted,
found again after a restart, by several threads and by ranks that are processes.

Arguments: a folder of the mount, then `pages` or `ranks`; or a rank, and 1 to write or 0 to read. Run by SGLang's
environment, with hf3fs_fuse to be imported; MOUNT_PID says which process serves the mount.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import uvicorn

PAGE_TOKENS, LAYERS, HEAD_BYTES = 16, 8, 2048
PAGE_BYTES = 2 * LAYERS * PAGE_TOKENS * HEAD_BYTES
PAGES = 48
JOBS, ENTRIES = 4, 8
RANKS, RANK_TIMEOUT_S = 2, 240.0
LATE_S = 60.0
MODELS = ("plain", "mla")
CONFIG = "SGLANG_HICACHE_HF3FS_CONFIG_PATH"


@dataclass
class StorageMetrics:
    prefetch_pgs: list[int] = field(default_factory=list)
    backup_pgs: list[int] = field(default_factory=list)
    prefetch_bandwidth: list[float] = field(default_factory=list)
    backup_bandwidth: list[float] = field(default_factory=list)


def stand_in(name: str, **attributes: object) -> None:
    """A module that the backend imports for names of types, and that pulls in SGLang's models and their GPU libraries."""
    made = types.ModuleType(name)
    made.__dict__.update(attributes)
    sys.modules[name] = made


stand_in("sglang.srt.mem_cache.pool_host", HostKVCache=object)
stand_in("sglang.srt.observability.metrics_collector", StorageMetrics=StorageMetrics)

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig  # noqa: E402
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory  # noqa: E402
from sglang.srt.mem_cache.storage.hf3fs.mini_3fs_metadata_server import Hf3fsMetadataServer  # noqa: E402


class HostPool:
    """Host memory of a model: keys and values of pages, each page of keys in one piece, and so of values (page_first)."""

    page_size = PAGE_TOKENS
    dtype = torch.bfloat16

    def __init__(self, layout: str, seed: int | None) -> None:
        self.layout = layout
        shape = (PAGES, 2, PAGE_BYTES // 4)
        random = None if seed is None else torch.Generator().manual_seed(seed)
        self.pages = torch.zeros(shape, dtype=torch.bfloat16)
        if random is not None:
            self.pages.copy_(torch.randn(shape, generator=random))

    def get_size_per_token(self) -> int:
        return PAGE_BYTES // PAGE_TOKENS

    def get_ksize_per_token(self) -> int:
        return self.get_size_per_token() // 2

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        page = self.pages[int(index) // PAGE_TOKENS]
        return page.flatten() if flat else page

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(PAGE_BYTES // 2, dtype=torch.bfloat16)

    def set_from_flat_data_page(self, index: int, page: torch.Tensor) -> None:
        self.pages[int(index) // PAGE_TOKENS] = page.view(2, -1)


def configure(folder: Path, pages: int, **more: object) -> None:
    """For the backends that are made from now on."""
    made = {"file_path_prefix": str(folder / "hicache"), "file_size": pages * PAGE_BYTES, "numjobs": JOBS}
    made |= {"entries": ENTRIES, "client_timeout": 60}
    path = folder / "config.json"
    path.write_text(json.dumps(made | more))
    os.environ[CONFIG] = str(path)


def backend(pool: HostPool, rank: int = 0, ranks: int = 1, mla: bool = False) -> HiCacheStorage:
    config = HiCacheStorageConfig(
        tp_rank=rank,
        tp_size=ranks,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=mla,
        enable_storage_metrics=True,
        is_page_first_layout=pool.layout == "page_first",
        model_name="org/model",
    )
    made = StorageBackendFactory.create_backend("hf3fs", config, pool)
    made.register_mem_pool_host(pool)
    return made


def keys(first: int = 0, count: int = PAGES) -> list[str]:
    return [f"page-{number}" for number in range(first, first + count)]


def indices(first: int = 0, count: int = PAGES) -> torch.Tensor:
    return torch.arange(first * PAGE_TOKENS, (first + count) * PAGE_TOKENS)


def read_back(storage: HiCacheStorage, pool: HostPool, wanted: HostPool, first: int = 0, count: int = PAGES) -> None:
    """pool: the backend's own, which is filled."""
    assert storage.batch_exists(keys(first, count)) == count
    assert all(storage.batch_get_v1(keys(first, count), indices(first, count)))
    assert torch.equal(pool.pages[first : first + count], wanted.pages[first : first + count])


def pages_of_a_layout(folder: Path, layout: str) -> None:
    """Written by one pool, read into another; deleted, and their place used again."""
    configure(folder, PAGES)
    source, target = HostPool(layout, 1), HostPool(layout, None)
    storage = backend(source)
    start = time.monotonic()
    assert all(storage.batch_set_v1(keys(), indices()))
    wrote = time.monotonic()
    storage.register_mem_pool_host(target)
    read_back(storage, target, source)
    read = time.monotonic()
    rates = [PAGES * PAGE_BYTES / (1 << 20) / took_s for took_s in (wrote - start, read - wrote)]
    print("{}: writes {:.0f}, reads {:.0f} MiB a second".format(layout, *rates))
    assert storage.batch_exists([*keys(0, 3), "missing", *keys(3, 3)]) == 3
    gone = ("page-7-k", "page-7-v") if layout == "page_first" else ("page-7",)
    for key in gone:
        assert storage.exists(key)
        storage.delete(key)
        assert not storage.exists(key)
    assert storage.batch_exists(keys()) == 7
    storage.register_mem_pool_host(source)
    assert all(storage.batch_set_v1(keys(7, 1), indices(7, 1)))
    target.pages.zero_()
    storage.register_mem_pool_host(target)
    read_back(storage, target, source)
    storage.clear()
    assert storage.batch_exists(keys()) == 0
    storage.close()


def layer_first(folder: Path) -> None:
    pages_of_a_layout(folder, "layer_first")


def page_first(folder: Path) -> None:
    pages_of_a_layout(folder, "page_first")


def evicted(folder: Path) -> None:
    """A file for a third of the pages: the oldest go, and nothing of them is taken for the newer ones."""
    room = PAGES // 3
    configure(folder, room)
    source, target = HostPool("layer_first", 2), HostPool("layer_first", None)
    storage = backend(source)
    for first in range(0, PAGES, room // 2):
        assert all(storage.batch_set_v1(keys(first, room // 2), indices(first, room // 2)))
    assert not any(storage.exists(key) for key in keys(0, PAGES - room))
    storage.register_mem_pool_host(target)
    read_back(storage, target, source, PAGES - room, room)
    assert (folder / "hicache.0.bin").stat().st_size == room * PAGE_BYTES
    storage.close()


def by_threads(folder: Path) -> None:
    """Each writes and reads pages of its own, at the same time, by the rings that they share."""
    configure(folder, PAGES)
    source = HostPool("layer_first", 3)
    storage = backend(source)
    wrong: list[str] = []
    part = PAGES // 6

    def work(first: int) -> None:
        try:
            for _ in range(5):
                if not all(storage.batch_set_v1(keys(first, part), indices(first, part))):
                    wrong.append(f"{first}: not written")
                values = [torch.zeros(PAGE_BYTES // 2, dtype=torch.bfloat16) for _ in range(part)]
                read = storage._batch_get(keys(first, part), values)
                pages = source.pages[first : first + part].view(part, -1)
                if not all(read) or not all(torch.equal(a, b) for a, b in zip(values, pages, strict=True)):
                    wrong.append(f"{first}: not what was written")
                for key in keys(first, part):
                    storage.delete(key)
        except Exception as error:  # of a thread nobody would hear
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, PAGES, part)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    storage.close()


def too_late(folder: Path) -> None:
    """A batch that does not come within the backend's time-out, as the mount stands still, is not taken for the next."""
    configure(folder, PAGES, numjobs=1, client_timeout=1)
    source = HostPool("layer_first", 4)
    storage = backend(source)
    assert all(storage.batch_set_v1(keys(), indices()))
    places = [index * PAGE_BYTES for index in storage.metadata_client.get_page_indices(0, keys())]
    (client,) = storage.clients
    daemon = int(os.environ["MOUNT_PID"])

    def read(first: int) -> tuple[list[int], list[torch.Tensor]]:
        pages = [source.get_dummy_flat_data_page() for _ in range(ENTRIES)]
        return client.batch_read(places[first : first + ENTRIES], pages), pages

    os.kill(daemon, signal.SIGSTOP)
    try:
        assert len(read(0)[0]) < ENTRIES
        assert read(ENTRIES)[0] == [0] * ENTRIES  # the daemon may still write into that memory
    finally:
        os.kill(daemon, signal.SIGCONT)
    end = time.monotonic() + LATE_S
    while True:
        first = random.randrange(0, PAGES - ENTRIES)
        results, pages = read(first)
        wanted = source.pages[first : first + ENTRIES].view(ENTRIES, -1)
        if results == [PAGE_BYTES] * ENTRIES:
            assert all(torch.equal(page, other) for page, other in zip(pages, wanted, strict=True))
            break
        assert time.monotonic() < end, results
    storage.close()


@contextmanager
def metadata(folder: Path) -> Iterator[str]:
    """SGLang's metadata server, whose address this yields; it keeps what it knows in the folder."""
    made = Hf3fsMetadataServer(str(folder / "metadata.json"))
    made.state.load_from_disk()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(made.app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()
    made.state.shutdown()


def of_rank(root: Path, rank: int, write: bool) -> None:
    """A rank writes its pages, or finds and reads them. All ranks of an MLA model have the same, which one writes."""
    for mla in (False, True):
        os.environ[CONFIG] = str(root / MODELS[mla] / "config.json")
        source, target = HostPool("layer_first", 10 if mla else 10 + rank), HostPool("layer_first", None)
        storage = backend(source, rank, RANKS, mla)
        if write:
            written = storage.batch_set_v1(keys(), indices())
            assert written is True if storage.skip_backup else all(written)
        else:
            storage.register_mem_pool_host(target)
            read_back(storage, target, source)
        storage.close()


def ranks(root: Path) -> None:
    """All write, and end; others find and read what they wrote, after the metadata server was started again."""
    for name in MODELS:
        (root / name).mkdir()
    for write in (True, False):
        with metadata(root / MODELS[0]) as plain, metadata(root / MODELS[1]) as mla:
            for name, url in zip(MODELS, (plain, mla), strict=True):
                configure(root / name, PAGES, metadata_server_url=url)
            lines = [[sys.executable, __file__, str(root), str(rank), str(int(write))] for rank in range(RANKS)]
            assert [each.wait(RANK_TIMEOUT_S) for each in [subprocess.Popen(line) for line in lines]] == [0] * RANKS
    made = [sorted(path.name for path in (root / name).glob("hicache.*")) for name in MODELS]
    assert made == [[f"hicache.{rank}.bin" for rank in range(RANKS)], ["hicache.0.bin"]]


def main() -> None:
    root, *words = Path(sys.argv[1]), *sys.argv[2:]
    if len(words) == 2:
        of_rank(root, int(words[0]), words[1] == "1")
        return
    root.mkdir(exist_ok=True)
    for part in (layer_first, page_first, evicted, by_threads, too_late) if words == ["pages"] else (ranks,):
        folder = root / part.__name__
        folder.mkdir()
        part(folder)
        print(f"{part.__name__} done", flush=True)


if __name__ == "__main__":
    main()
