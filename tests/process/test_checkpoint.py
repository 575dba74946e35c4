"""Checkpoints as training jobs write and read them, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.harness import needs_module

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def torch() -> Any:
    with warnings.catch_warnings():
        # Its imports warn on their own account; what the tests call is not silenced.
        warnings.simplefilter("ignore")
        return needs_module("torch")


@pytest.fixture
def state(torch: Any) -> dict[str, Any]:
    """Some 60 MiB of tensors of many types and shapes, with what a checkpoint holds besides."""
    generator = torch.Generator().manual_seed(7)
    tensors = {f"layer{n}.weight": torch.rand(1024, 1024, generator=generator) for n in range(12)}
    tensors |= {
        "half": torch.rand(1000, 333, generator=generator).half(),
        "bfloat": torch.rand(4096, 129, generator=generator).bfloat16(),
        "int": torch.randint(-(2**62), 2**62, (999, 77), generator=generator),
        "bytes": torch.randint(0, 256, (1_234_567,), generator=generator).to(torch.uint8),
        "bool": torch.rand(777, generator=generator) > 0.5,
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(3.25),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    return tensors


def assert_same(torch: Any, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit: also where NaN is not equal to itself."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        other = found[name]
        assert other.dtype == tensor.dtype and other.shape == tensor.shape, name
        flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (other, tensor)]
        assert torch.equal(*flat), name


@pytest.mark.parametrize("options", [{}, {"mmap": True}], ids=["read", "mmap"])
def test_torch_save_and_load(mounted: Path, torch: Any, state: dict[str, Any], options: dict[str, Any]) -> None:
    path = mounted / "state.pt"
    torch.save(state, path)
    assert_same(torch, torch.load(path, weights_only=True, **options), state)
    # The same bytes as on a local disk, not only the same meaning.
    again = mounted / "again.pt"
    torch.save(state, again)
    assert again.stat().st_size == path.stat().st_size


def test_torch_checkpoint_of_a_trained_model(mounted: Path, torch: Any) -> None:
    """A model and its optimizer, replaced by rename, loaded with weights_only."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    path = mounted / "checkpoint.pt"
    for step in range(3):
        optimizer.zero_grad()
        model(torch.rand(16, 256)).square().sum().backward()
        optimizer.step()
        fresh = path.with_suffix(".new")
        torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, fresh)
        fresh.rename(path)
    loaded = torch.load(path, weights_only=True)
    assert loaded["step"] == 2
    assert_same(torch, loaded["model"], model.state_dict())
    moments = optimizer.state_dict()["state"]
    for index, entry in loaded["optimizer"]["state"].items():
        assert_same(torch, entry, moments[index])
    assert sorted(path.name for path in mounted.iterdir()) == ["checkpoint.pt"]


def test_safetensors_of_torch(mounted: Path, torch: Any, state: dict[str, Any]) -> None:
    safetensors = needs_module("safetensors.torch")
    path = mounted / "state.safetensors"
    safetensors.save_file(state, path)
    found = safetensors.load_file(path)
    assert_same(torch, {name: found[name] for name in state}, state)


def test_safetensors_of_numpy(mounted: Path) -> None:
    numpy = needs_module("numpy")
    safetensors = needs_module("safetensors.numpy")
    arrays = {f"a{n}": numpy.random.default_rng(n).random((512, 1024)) for n in range(8)}
    path = mounted / "arrays.safetensors"
    safetensors.save_file(arrays, path)
    found = safetensors.load_file(path)
    assert sorted(found) == sorted(arrays)
    assert all(found[name].tobytes() == array.tobytes() for name, array in arrays.items())


@pytest.fixture
def process_group(torch: Any, tmp_path: Path) -> Iterator[None]:
    """A world of one process."""
    distributed = needs_module("torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


# torch.distributed.checkpoint uses names that torch itself has deprecated.
@pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")
@pytest.mark.usefixtures("process_group")
def test_distributed_checkpoint(mounted: Path, torch: Any, state: dict[str, Any]) -> None:
    checkpoint = needs_module("torch.distributed.checkpoint")
    folder = mounted / "step-100"
    checkpoint.save({"model": state}, checkpoint_id=str(folder))
    assert sorted(path.suffix for path in folder.iterdir()) == [".distcp", ".metadata"] or list(folder.glob("*.distcp"))
    empty = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    checkpoint.load({"model": empty}, checkpoint_id=str(folder))
    assert_same(torch, empty, state)


def test_numpy_memmap(mounted: Path) -> None:
    numpy = needs_module("numpy")
    path = mounted / "array.npy"
    array = numpy.random.default_rng(5).integers(0, 2**63, (2048, 1024))
    numpy.save(path, array)
    mapped = numpy.load(path, mmap_mode="r")
    assert numpy.array_equal(mapped, array)
    assert numpy.array_equal(mapped[1000:1100:7, ::13], array[1000:1100:7, ::13])
    del mapped
    raw = mounted / "raw.bin"
    array.tofile(raw)
    assert numpy.array_equal(numpy.memmap(raw, dtype=array.dtype, mode="r", shape=array.shape), array)
    writing = numpy.memmap(raw, dtype=array.dtype, mode="r+", shape=array.shape)
    writing[7, 9] = 42
    writing.flush()
    del writing
    array[7, 9] = 42
    assert numpy.array_equal(numpy.fromfile(raw, dtype=array.dtype).reshape(array.shape), array)
