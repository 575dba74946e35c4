"""One of several ranks that write a sharded checkpoint, and read it again, sharded in another way.

    python -m tests.process.programs.sharded_checkpoint MGMTD FOLDER MOUNT RENDEZVOUS RANK WORLD

Prints "saved" when the checkpoint is there, goes on at a line of input, prints "done" at the end.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fs3.errors import Code, FS3Error
from fs3.integrations.torch_checkpoint import RAW, FS3Reader, FS3Writer

SHAPES = {"even": (64, 128), "uneven": (33, 7), "large": (1500, 999), "thin": (5,), "few": (1, 3)}


def full(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors["half"] = torch.rand(40, 50, generator=generator).bfloat16()
    tensors["flags"] = torch.rand(77, generator=generator) > 0.5
    return tensors


def sharded(tensors: dict[str, torch.Tensor], mesh: Any, dim: int) -> dict[str, Any]:
    return {
        name: distribute_tensor(tensor, mesh, [Shard(dim) if tensor.dim() > dim else Replicate()])
        for name, tensor in tensors.items()
    }


def others(seed: int) -> dict[str, Any]:
    """What is not sharded."""
    generator = torch.Generator().manual_seed(seed + 1000)
    return {
        "transposed": torch.rand(6, 9, generator=generator).t(),
        "slice": torch.rand(100, 100, generator=generator)[10:20],
        "scalar": torch.tensor(1.5 + seed),
        "empty": torch.empty(0, 5),
        "step": seed,
        "name": f"seed {seed}",
    }


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected)]
    return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(*flat)


def check(reader: dcp.StorageReader, seed: int, mesh: Any, dim: int) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in full(seed).items()}
    plain: dict[str, Any] = {
        name: torch.zeros(value.shape) if isinstance(value, torch.Tensor) else type(value)()
        for name, value in others(seed).items()
    }
    state = {"model": sharded(zeros, mesh, dim), "rest": plain}
    dcp.load(state, storage_reader=reader)
    for name, tensor in full(seed).items():
        assert same(state["model"][name].full_tensor(), tensor), name
    for name, value in others(seed).items():
        got = state["rest"][name]
        assert same(got, value) if isinstance(value, torch.Tensor) else got == value, name


class Careless(FS3Writer):
    """Cannot show what it wrote."""

    def finish(self, metadata: Any, results: Any) -> None:
        raise FS3Error(Code.IO, "as if")


def main(mgmtd: str, folder: str, mount: str, rendezvous: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    state = {"model": sharded(full(1), mesh, 0), "rest": others(1)}
    dcp.save(state, storage_writer=FS3Writer(folder, mgmtd=mgmtd))
    metadata = FS3Reader(folder, mgmtd=mgmtd).read_metadata()
    raw = {index.fqn for index, info in metadata.storage_data.items() if hasattr(info, RAW)}
    assert raw >= {f"model.{name}" for name in full(1)} and "rest.transposed" not in raw, raw
    print("saved", flush=True)
    sys.stdin.readline()
    check(FS3Reader(folder, mgmtd=mgmtd), 1, mesh, 1)
    check(dcp.FileSystemReader(mount), 1, mesh, 0)  # torch's own, through the mount
    # A save that fails leaves the one before, and one that succeeds takes its place.
    state = {"model": sharded(full(2), mesh, 1), "rest": others(2)}
    try:
        dcp.save(state, storage_writer=Careless(folder, mgmtd=mgmtd))
    except CheckpointException:
        pass
    else:
        raise AssertionError("it says that it saved")
    check(FS3Reader(folder, mgmtd=mgmtd), 1, mesh, 0)
    old = set(os.listdir(mount))
    dcp.save(state, storage_writer=FS3Writer(folder, mgmtd=mgmtd, threads=3))
    check(FS3Reader(folder, mgmtd=mgmtd), 2, mesh, 0)
    if rank == 0:
        names = {info.relative_path for info in metadata.storage_data.values()}
        assert names <= old and not names & set(os.listdir(mount))
    torch.distributed.barrier()
    # And what torch's own writer wrote is read here.
    dcp.save(state, storage_writer=dcp.FileSystemWriter(f"{mount}-torch"))
    check(FS3Reader(f"{folder}-torch", mgmtd=mgmtd), 2, mesh, 1)
    torch.distributed.destroy_process_group()
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6]))
