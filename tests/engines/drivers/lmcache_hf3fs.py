"""LMCache's storage manager with its `hf3fs` connector, as its configuration makes it: chunks are put, found and read by
several threads, by another manager and by another process, removed, and put again.

Arguments: a mount, a folder in it, `first` (or `again`, in a later process), and whether chunks get a header, 1 or 0. Run
by LMCache's environment, with hf3fs_fuse to be imported.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from lmcache_manager import CHUNK_BYTES, CHUNK_TOKENS, CHUNKS, SHAPE, get, keys, manager, put

NAME = "RemoteBackend-hf3fs"
ROUNDS = 3


def settings(mount: Path, folder: Path, headers: bool) -> dict[str, object]:
    extra = {
        "remote_storage_plugin.hf3fs.base_path": f"{folder / 'a'},{folder / 'b'}",
        "hf3fs_mount_point": str(mount),
        "hf3fs_iov_size": 100 << 20,
        "hf3fs_ior_entries": 128,
        "hf3fs_io_thread_num": 2,
        "save_chunk_meta": headers,
    }
    made = {"chunk_size": CHUNK_TOKENS, "local_cpu": False, "max_local_cpu_size": 0.5}
    return made | {"remote_storage_plugins": ["hf3fs"], "remote_serde": "naive", "extra_config": extra}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def first(made: dict[str, object], folder: Path, chunks: torch.Tensor) -> None:
    storage, other = manager(made), manager(made)
    try:
        assert NAME in storage.storage_backends, list(storage.storage_backends)
        wrote_s = put(storage, chunks, NAME)
        assert len(files(folder)) == CHUNKS and not list(folder.rglob("*.tmp"))
        read_s = get(storage, chunks, NAME)
        get(other, chunks, NAME)
        with ThreadPoolExecutor(2 * ROUNDS) as threads:
            list(threads.map(lambda each: get(each, chunks, NAME), (storage, other) * ROUNDS))
        storage.batched_remove(keys())
        assert not any(other.storage_backends[NAME].contains(key) for key in keys()) and not files(folder)
        assert storage.batched_get(keys()[:2], location=NAME) in (None, [None] * 2)
        # All were removed: while a chunk is being put that is there already, it is not known when LMCache has done with its
        # memory, and LMCache does not mind when it closes.
        put(other, chunks, NAME)
        get(storage, chunks, NAME)
    finally:
        storage.close()
        other.close()
    mib = CHUNKS * CHUNK_BYTES / (1 << 20)
    print(json.dumps({"write_mib_s": round(mib / wrote_s), "read_mib_s": round(mib / read_s)}))


def again(made: dict[str, object], chunks: torch.Tensor) -> None:
    storage = manager(made)
    try:
        get(storage, chunks, NAME)
    finally:
        storage.close()


def main() -> None:
    mount, folder, part, headers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1"
    folder.mkdir(exist_ok=True)
    made = settings(mount, folder, headers)
    chunks = torch.randn(CHUNKS, *SHAPE, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    if part == "first":
        first(made, folder, chunks)
    else:
        again(made, chunks)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # its threads for metrics do not end
