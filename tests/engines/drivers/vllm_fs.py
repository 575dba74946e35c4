"""vLLM's file system tier: two managers write the same blocks while others read them back; no block is ever short, or wrong.

Arguments: a folder; 1 for vLLM's compiled input and output, 0 for the one in Python. Run by vLLM's environment.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from vllm.v1.kv_offload.base import OffloadingKVEventsConfig, ReqContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.fs import io as fs_io
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

BLOCKS, BLOCK_BYTES, BATCH = 64, 1 << 20, 8
ROUNDS = 3


def spec() -> SimpleNamespace:
    """What the tier reads of a whole engine's configuration."""
    parallel = OffloadingParallelConfig(
        rank=0,
        world_size=1,
        tp_size=1,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        data_parallel_index=0,
        data_parallel_size=1,
        data_parallel_rank_local=None,
        is_parallelism_agnostic=False,
    )
    config = OffloadingConfig(
        groups=(),
        worker_kv_bytes_per_block=0,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id="engine",
        model=OffloadingModelConfig(name="org/model", dtype="bfloat16"),
        cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
        parallel=parallel,
    )
    events = OffloadingKVEventsConfig(enable_kv_cache_events=False, self_describing_kv_events=False)
    return SimpleNamespace(config=config, blocks_per_chunk=1, kv_events_config=events)


def tier(folder: Path, memory: np.ndarray) -> FileSystemTierManager:
    made = SecondaryTierFactory.create_secondary_tier({"type": "fs", "root_dir": str(folder)}, memoryview(memory), spec())
    assert made._use_o_direct, "the mount refuses O_DIRECT"
    return made


def key(number: int) -> object:
    return make_offload_key(hashlib.sha256(str(number).encode()).digest(), 0)


def submit(manager: FileSystemTierManager, how: str) -> None:
    """Jobs for all blocks, several to a job."""
    for first in range(0, BLOCKS, BATCH):
        ids = np.arange(first, first + BATCH, dtype=np.int64)
        keys = [key(number) for number in ids]
        job = TransferJob(first, keys, ids, is_promotion=how == "load", req_context=ReqContext(req_id="request"))
        getattr(manager, f"submit_{how}")(job)


def drain(manager: FileSystemTierManager) -> list[bool]:
    manager.drain_jobs()
    return [result.success for result in manager.get_finished_jobs()]


def memory() -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, BLOCKS * BLOCK_BYTES), dtype=np.uint8).reshape(BLOCKS, BLOCK_BYTES)


def round_of(folder: Path, number: int) -> tuple[float, float]:
    source, target = memory(), memory()
    source[:] = np.random.default_rng(number).integers(0, 256, source.shape, dtype=np.uint8)
    writers, reader = [tier(folder, source), tier(folder, source)], tier(folder, target)
    start = time.monotonic()
    for writer in writers:
        submit(writer, "store")
    assert all(all(drain(writer)) for writer in writers)
    stored = time.monotonic()
    names = {reader.file_mapper.get_file_name(key(number)) for number in range(BLOCKS)}
    assert all(os.path.getsize(name) == BLOCK_BYTES for name in names)
    read = time.monotonic()
    submit(reader, "load")
    assert all(drain(reader)), "a block was short, or is gone"
    loaded = time.monotonic()
    assert np.array_equal(source, target)
    assert all(map(os.path.exists, names)), "a good block was removed"
    for manager in (*writers, reader):
        manager.shutdown()
    return stored - start, loaded - read


def main() -> None:
    folder, compiled = Path(sys.argv[1]), sys.argv[2] == "1"
    assert fs_io._HAS_FSIO_C, "vLLM comes without its compiled input and output"
    fs_io._HAS_FSIO_C = compiled
    took = [round_of(folder / str(number), number) for number in range(ROUNDS)]
    mib = BLOCKS * BLOCK_BYTES / (1 << 20)
    stored, loaded = (sorted(column)[ROUNDS // 2] for column in zip(*took, strict=True))
    print(json.dumps({"store_mib_s": round(mib / stored), "load_mib_s": round(mib / loaded)}))


if __name__ == "__main__":
    main()
