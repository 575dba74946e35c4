"""LMCache's storage manager with a backend on files, as its configuration makes it.

Arguments: a folder; disk (`local_disk`) or fs (a remote storage plugin); 1 for O_DIRECT, else 0.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.event_manager import EventManager
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.storage_manager import StorageManager

CHUNKS, CHUNK_TOKENS, LAYERS, HEADS, HEAD_SIZE = 32, 256, 4, 4, 128
TIMEOUT_S = 60.0
SHAPE = torch.Size([2, LAYERS, CHUNK_TOKENS, HEADS * HEAD_SIZE])  # 2 MiB of bf16
CHUNK_BYTES = 2 * SHAPE.numel()


def settings(kind: str, folder: Path, direct: bool) -> dict[str, object]:
    made: dict[str, object] = {"chunk_size": CHUNK_TOKENS, "local_cpu": False, "max_local_cpu_size": 0.5}
    if kind == "disk":
        extra: dict[str, object] = {"use_odirect": direct}
        made |= {"local_disk": str(folder), "max_local_disk_size": 1.0}
    else:
        # With O_DIRECT it writes no header before a chunk.
        extra = {"remote_storage_plugin.fs.base_path": str(folder), "fs_connector_use_odirect": direct}
        extra |= {"save_chunk_meta": False} if direct else {}
        made |= {"remote_storage_plugins": ["fs"], "remote_serde": "naive"}
    return made | {"extra_config": extra}


def manager(made: dict[str, object]) -> StorageManager:
    config = LMCacheEngineConfig.from_defaults(**made)
    metadata = LMCacheMetadata(
        model_name="org/model",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=torch.bfloat16,
        kv_shape=(LAYERS, 2, CHUNK_TOKENS, HEADS, HEAD_SIZE),
        role="worker",
        chunk_size=CHUNK_TOKENS,
    )
    return StorageManager(config, metadata, EventManager())


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def keys(first: int = 0) -> list[CacheEngineKey]:
    return [CacheEngineKey("org/model", 1, 0, 0x1000 + first + number, torch.bfloat16) for number in range(CHUNKS)]


def put(storage: StorageManager, chunks: torch.Tensor, name: str) -> float:
    """Returns how many seconds until all were stored."""
    objects = storage.batched_allocate(SHAPE, torch.bfloat16, CHUNKS)
    assert objects is not None
    for held, chunk in zip(objects, chunks, strict=True):
        held.tensor.copy_(chunk)
    start = time.monotonic()
    storage.batched_put(keys(), objects)
    backend = storage.storage_backends[name]
    wait_until(lambda: all(map(backend.contains, keys())), "the chunks to be stored")
    return time.monotonic() - start


def get(storage: StorageManager, chunks: torch.Tensor, name: str) -> float:
    hits, mapping = storage.batched_contains([*keys(), *keys(CHUNKS)])
    assert hits == CHUNKS and list(mapping) == [name], (hits, mapping)
    start = time.monotonic()
    found = storage.batched_get(keys(), location=name)
    took_s = time.monotonic() - start
    for held, chunk in zip(found, chunks, strict=True):
        assert held is not None and torch.equal(held.tensor.view(SHAPE), chunk), "not what was put"
        held.ref_count_down()
    return took_s


def main() -> None:
    folder, kind, direct = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
    folder.mkdir(exist_ok=True)
    made = settings(kind, folder, direct)
    name = "LocalDiskBackend" if kind == "disk" else "RemoteBackend-fs"
    chunks = torch.randn(CHUNKS, *SHAPE, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    first, others = manager(made), []
    try:
        assert name in first.storage_backends, list(first.storage_backends)
        wrote_s = put(first, chunks, name)
        assert len(os.listdir(folder)) == CHUNKS
        read_s = get(first, chunks, name)
        if kind == "fs":  # `local_disk` knows only what it stored itself
            others.append(manager(made))
            get(others[0], chunks, name)
        first.batched_remove(keys()[:1])
        assert not first.storage_backends[name].contains(keys()[0]) and len(os.listdir(folder)) == CHUNKS - 1
        assert storage_is_whole(folder, chunks, kind, direct)
    finally:
        for storage in (first, *others):
            storage.close()
    mib = CHUNKS * CHUNK_BYTES / (1 << 20)
    print(json.dumps({"write_mib_s": round(mib / wrote_s), "read_mib_s": round(mib / read_s)}))


def storage_is_whole(folder: Path, chunks: torch.Tensor, kind: str, direct: bool) -> bool:
    """What lies in the files is what was put, byte for byte."""
    wanted = {chunk.view(torch.uint8).numpy().tobytes() for chunk in chunks[1:]}
    skipped = 0 if kind == "disk" or direct else (folder / os.listdir(folder)[0]).stat().st_size - CHUNK_BYTES
    return {path.read_bytes()[skipped:] for path in folder.iterdir()} == wanted


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # its threads for metrics do not end
