"""The client of vLLM's HF3FS connector, its file as it is in the package: batches of blocks are written and read over rings
by several clients and threads, and by one that comes later. Copies to and from a GPU are stood in for; nothing else is.

Arguments: a folder of the mount. Run by vLLM's environment, with hf3fs_fuse to be imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.utils.cpp_extension

BLOCKS, BLOCK_BYTES, ENTRIES, CLIENTS = 64, 256 << 10, 16, 4


def read_shm(shm: torch.Tensor, pinned: torch.Tensor, tensors: Sequence[torch.Tensor], stream: int) -> None:
    at = 0
    for tensor in tensors:
        data = tensor.view(torch.uint8).flatten()
        data.copy_(shm[at : at + data.numel()])
        at += data.numel()


def write_shm(tensors: Sequence[torch.Tensor], shm: torch.Tensor, pinned: torch.Tensor, stream: int) -> None:
    at = 0
    for tensor in tensors:
        data = tensor.view(torch.uint8).flatten()
        shm[at : at + data.numel()].copy_(data)
        at += data.numel()


def client_module() -> ModuleType:
    """vLLM's, with what needs a GPU replaced."""
    plain_empty = torch.empty
    torch.empty = lambda *words, pin_memory=False, **named: plain_empty(*words, **named)
    torch.cuda.Stream = lambda: SimpleNamespace(cuda_stream=0, wait_event=lambda event: None)
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.utils.cpp_extension.CUDA_HOME = "/none"
    torch.utils.cpp_extension.load = lambda **named: SimpleNamespace(read_shm=read_shm, write_shm=write_shm)
    packages = sysconfig.get_path("purelib")
    path = Path(packages, "vllm/distributed/kv_transfer/kv_connector/v1/hf3fs/hf3fs_client.py")
    spec = importlib.util.spec_from_file_location("hf3fs_client", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.HF3FS_AVAILABLE
    return made


def batches() -> list[range]:
    return [range(first, first + ENTRIES) for first in range(0, BLOCKS, ENTRIES)]


def read_back(client: Any, blocks: torch.Tensor) -> None:
    for batch in batches():
        tensors = [torch.zeros_like(blocks[0]) for _ in batch]
        assert client.batch_read([number * BLOCK_BYTES for number in batch], tensors) == [BLOCK_BYTES] * ENTRIES
        assert all(torch.equal(tensor, blocks[number]) for number, tensor in zip(batch, tensors, strict=True))


def main() -> None:
    folder, module = Path(sys.argv[1]), client_module()
    folder.mkdir(exist_ok=True)
    words = (str(folder / "blocks"), BLOCKS * BLOCK_BYTES, BLOCK_BYTES, ENTRIES)
    blocks = torch.randn(BLOCKS, BLOCK_BYTES // 2, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    clients = [module.Hf3fsClient(*words) for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:

        def write(client: Any, batch: range) -> None:
            offsets = [number * BLOCK_BYTES for number in batch]
            assert client.batch_write(offsets, list(blocks[batch.start : batch.stop]), None) == [BLOCK_BYTES] * ENTRIES

        list(threads.map(write, clients, batches()))
        for _ in range(3):
            list(threads.map(read_back, clients, [blocks] * CLIENTS))
    clients[0].flush()
    for client in clients:
        client.close()
        client.close()
    later = module.Hf3fsClient(*words)
    read_back(later, blocks)
    try:
        later.batch_read([BLOCKS * BLOCK_BYTES], [torch.zeros_like(blocks[0])])
    except ValueError:
        pass  # behind the end of the file
    else:
        raise AssertionError("a block that there is not was read")
    print("done")


if __name__ == "__main__":
    main()
