"""Data loaders and checkpoints of torch over FileClient, in processes that are forked, spawned, and killed around."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fs3.client.sync import File, FileSystem, shared
from fs3.errors import Code, FS3Error
from fs3.memory import Memory
from tests.process import harness

# A fork of a process with threads is what is tested here; newer Pythons warn of it.
pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")]

RECORD = 1000


@pytest.fixture(scope="module")
def fs(shared_cluster: harness.Cluster) -> Iterator[FileSystem]:
    found = shared(shared_cluster.mgmtd())
    yield found
    found.close()


@pytest.fixture(scope="module")
def torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports warn on their own account
        return harness.needs_module("torch")


@pytest.fixture(scope="module")
def shards(fs: FileSystem) -> Iterator[list[str]]:
    """Records that hold their own numbers."""
    fs.mkdir("/shards")
    names = [f"/shards/{number}" for number in range(5)]
    for number, name in enumerate(names):
        records = [(number * 1000 + at).to_bytes(4, "little") * (RECORD // 4) for at in range(300)]
        fs.write_file(name, b"".join(records))
    yield names
    fs.rmtree("/shards")


def numbers(records: Any) -> list[int]:
    return [int.from_bytes(bytes(record[:4].tolist()), "little") for record in records]


EVERY = sorted(number * 1000 + at for number in range(5) for at in range(300))


def in_child(fs: FileSystem, reading: File, writing: File, answers: Any) -> None:
    """What a forked process may do with what its parent opened."""
    found: list[Any] = [reading.pread(4, 0), bytes(fs.fetch_batch([(reading, 4, 4), ("/shards/1", 0, 4)], strict=True)[1])]
    try:
        writing.write(b"x")
    except FS3Error as error:
        found.append(error.code)
    reading.close()
    writing.close()
    answers.put((os.getpid(), found))


def test_a_fork_connects_anew_and_leaves_its_parent_alone(fs: FileSystem, shards: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with fs.open(shards[0]) as reading, fs.open("/shards/new", "w") as writing:
        children = [context.Process(target=in_child, args=(fs, reading, writing, answers)) for _ in range(2)]
        for child in children:
            child.start()
        found = dict(answers.get() for _ in children)
        for child in children:
            child.join(30)
            assert child.exitcode == 0
        assert os.getpid() not in found
        for answer in found.values():
            assert answer == [bytes(4), (1000).to_bytes(4, "little"), Code.BAD_HANDLE]
        assert writing.write(b"mine") == 4 and reading.pread(4, 4) == bytes(4)
    assert fs.read_file("/shards/new") == b"mine"
    fs.unlink("/shards/new")
    assert pickle.loads(pickle.dumps(fs)) is fs


def memories() -> Iterator[tuple[str, Any, Any]]:
    """All kinds of memory of 300,000 bytes, and what to read into."""
    array = np.zeros((300, 250), dtype=np.uint32)
    for kind, memory_of_its_own in (("bytearray", bytearray(300_000)), ("numpy", array), ("mmap", mmap.mmap(-1, 300_000))):
        yield kind, memory_of_its_own, memory_of_its_own
    with Memory(300_000) as memory:
        yield "Memory", memory, np.frombuffer(memory.view, dtype=np.uint16)
    segment = SharedMemory(create=True, size=300_000)
    try:
        assert segment.buf is not None
        yield "SharedMemory", segment.buf, segment.buf[:300_000]
    finally:
        gc.collect()
        segment.close()
        segment.unlink()


def test_memory_is_registered(shards: list[str], fs: FileSystem) -> None:
    expected = fs.read_file(shards[3])
    for kind, registered, into in memories():
        view = memoryview(into).cast("B")
        with fs.register(registered) as registration:
            for _ in range(3):
                view[:] = bytes(300_000)
                assert fs.read_batch([(shards[3], 0, 299_000), (shards[3], 299_000, 1000)], into) == [299_000, 1000]
                assert view == expected, kind
            with fs.open(shards[3]) as file:
                assert file.readinto(into) == 300_000 and view == expected
            fs.write_file("/registered", into)
            assert fs.read_file("/registered") == expected
            child = multiprocessing.get_context("fork").Process(target=registration.close)
            child.start()
            child.join()
            assert child.exitcode == 0
        registration.close()
        view.release()
        del into, registered, registration
    fs.unlink("/registered")
    for bad, error in ((b"abc", ValueError), (3, TypeError)):
        with pytest.raises(error):
            fs.register(bad)


def test_tensors_are_registered(torch: Any, shards: list[str], fs: FileSystem) -> None:
    tensors = torch.zeros(300, 250, dtype=torch.int32), torch.zeros(300, 250, dtype=torch.int32).share_memory_()
    for tensor in tensors:
        with fs.register(tensor.numpy()):
            for _ in range(3):
                tensor.zero_()
                fs.read_batch([(shards[1], 0, 300_000)], tensor.numpy(), strict=True)
                assert tensor[:, 0].tolist() == list(range(1000, 1300))


def test_nobody_there_is_said_in_time() -> None:
    lonely = FileSystem(["tcp://127.0.0.1:1"], timeout_s=0.2)
    with pytest.raises(FS3Error, match=r"no management daemon answers at tcp://127\.0\.0\.1:1"):
        lonely.listdir()
    with pytest.raises(FS3Error, match="no management daemon answers"):
        lonely.listdir()  # tried again
    lonely.close()
    with pytest.raises(FS3Error, match="closed"):
        lonely.listdir()


@pytest.mark.parametrize("workers", [0, 2])
def test_records_by_a_data_loader(torch: Any, shards: list[str], fs: FileSystem, workers: int) -> None:
    from fs3.integrations.torch_dataset import RecordDataset

    data = RecordDataset.of_equal_records(shards, RECORD, mgmtd=fs.addresses)
    assert len(data) == 1500 and numbers([data[1499]]) == [4299]
    loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, num_workers=workers)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [64] * 23 + [28]
    found = [number for batch in batches for number in numbers(batch)]
    assert found != EVERY and sorted(found) == EVERY
    with pytest.raises(ValueError, match=r"rows \(file, offset, length\)"):
        RecordDataset(shards, [[1, 2]], mgmtd=fs.addresses)
    beyond = RecordDataset(shards, [(0, 299_500, 1000)], mgmtd=fs.addresses, decode=lambda record: record)
    with pytest.raises(FS3Error, match="/shards/0: 1000 bytes at 299500 were to be read, there are 500"):
        beyond[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_by_a_data_loader(
    torch: Any, shards: list[str], fs: FileSystem, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fs3.integrations import torch_dataset

    monkeypatch.setattr(torch_dataset, "BLOCK_BYTES", 16 * RECORD)
    monkeypatch.setattr(torch_dataset, "FETCH_BYTES", 200 * RECORD)
    monkeypatch.setattr(torch_dataset, "SHARDS_AT_ONCE", 2)
    orders = []
    for epoch in (0, 1, 0):
        found: list[int] = []
        for rank in range(2):
            data = torch_dataset.ShardDataset(shards, RECORD, mgmtd=fs.addresses, batch_records=7, rank=rank, world=2)
            data.set_epoch(epoch)
            for batch in torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers):
                assert batch.shape[1] == RECORD and len(batch) <= 7
                found += numbers(batch)
        assert sorted(found) == EVERY
        orders.append(found)
    assert orders[0] == orders[2] != orders[1]
    straight = torch_dataset.ShardDataset(
        shards, RECORD, mgmtd=fs.addresses, shuffle=False, decode=lambda record: record[:4]
    )
    assert numbers(straight) == EVERY


def test_a_data_set_is_pickled_without_its_files(torch: Any, shards: list[str], fs: FileSystem) -> None:
    from fs3.integrations.torch_dataset import RecordDataset

    data = RecordDataset.of_equal_records(shards, RECORD, mgmtd=fs.addresses)
    assert numbers([data[3]]) == [3]
    copy = pickle.loads(pickle.dumps(data))
    assert numbers([copy[1200]]) == [4000] and copy._source._files.keys() == {"/shards/4"}


def test_a_spawned_process_connects_by_itself(shards: list[str], fs: FileSystem) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(bytes_of, (fs, "/shards/2")) == (2000).to_bytes(4, "little")


def bytes_of(fs: FileSystem, path: str) -> bytes:
    (found,) = fs.fetch_batch([(path, 0, 4)], strict=True)
    return bytes(found)  # type: ignore[arg-type]


def test_a_sharded_checkpoint_of_two_ranks(torch: Any, victims: harness.Cluster, tmp_path: Path) -> None:
    """Saved, a storage daemon killed, loaded in another sharding, bit for bit."""
    mgmtd = ",".join(victims.mgmtd())
    place = (mgmtd, "/checkpoint", str(victims.mount / "checkpoint"), str(tmp_path / "rendezvous"))
    command = [sys.executable, "-W", "ignore", "-m", "tests.process.programs.sharded_checkpoint", *place]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2"], stdin=pipe, stdout=pipe, text=True, cwd=harness.REPOSITORY, env=environment
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None and rank.stdout.readline() == "saved\n"
        victims.kill("storage-1")
        outputs = []
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert outputs == ["done\n"] * 2 and [rank.returncode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    victims.wait_serving()
