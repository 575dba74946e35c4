from __future__ import annotations

import json
from pathlib import Path

import pytest

from fs3.api.storage import UpdateKind
from fs3.ids import ChunkId
from storage.chunk_engine import ChunkEngine
from storage.disk_linux import LinuxDisk
from storage.disks import Home
from storage.inspect import EXIT_DAMAGED, EXIT_OK, EXIT_UNUSABLE, inspect, main
from storage.records import Slot, StoredVersion, chunk_key, encode_record
from storage.space import SpaceBudget
from tests.unit.storage.support import NO_TAG, other_update
from tests.unit.storage.test_engine import write

C2 = ChunkId(0xAB, 7)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A disk with one target in use."""
    disk = LinuxDisk(str(tmp_path))
    home = Home(disk, 0, 1, 2, 0)
    home.settle(10001)
    engine = ChunkEngine(disk, "target-10001", SpaceBudget(disk, 0))
    await write(engine, 0, b"a" * 200_000)
    await write(engine, 0, b"b" * 100, chunk=C2)
    await engine.sync()
    await write(engine, 500, b"patched")
    await write(engine, 0, b"c" * 70_000, chunk=C2)
    await write(engine, 70_000, b"d", chunk=C2, commit=False)
    gone = ChunkId(9, 9)
    await write(engine, 0, b"e", chunk=gone)
    await engine.put(other_update(gone, UpdateKind.REMOVE), 2, 1, memoryview(b""), commit=True, remember=False)
    engine.close()
    disk.close()
    return tmp_path


async def test_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == EXIT_OK
    text = capsys.readouterr().out
    assert "ab.7 v2 chain v1     70000 bytes in 17:0, pending v3, durable v1" in text
    assert "1.0 v2 chain v1    200000 bytes in 18:0, 1 patches" in text
    assert "2 chunks of 270000 bytes" in text and "PROBLEM" not in text
    assert main([str(folder / "target-10001"), "--json", "--totals"]) == EXIT_OK
    (target,) = json.loads(capsys.readouterr().out)["targets"]
    assert (target["chunks"], target["bytes"], target["pending"], target["patches"]) == (2, 270_000, 1, 1)
    assert target["file_bytes"] > 270_000 and target["slot_bytes"] == (1 << 18) + (1 << 17) + (1 << 16)


async def test_damaged_content(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "target-10001/data-18-0").open("r+b") as file:
        file.seek(150_000)
        file.write(b"!")
    assert main([str(folder)]) == EXIT_DAMAGED
    assert "DAMAGED: version 2: its content does not match its checksums" in capsys.readouterr().out
    (folder / "target-10001/data-18-0").unlink()
    assert main([str(folder)]) == EXIT_DAMAGED
    assert "its data file is gone" in capsys.readouterr().out
    assert not (folder / "target-10001/data-18-0").exists()


async def test_a_slot_used_twice_and_records_of_no_shape(folder: Path) -> None:
    disk = LinuxDisk(str(folder))
    records = disk.open_records("target-10001/records")
    other = StoredVersion(1, 1, 10, b"1234", NO_TAG, slot=Slot(18, 0))
    records.write([(chunk_key(ChunkId(3, 3)), encode_record(other, None)), (b"c" + bytes(16), b"x"), (b"z", b"")])
    records.close()
    disk.close()
    (folder / "target-10001/stray").touch()
    problems = inspect(folder)[0].problems
    for expected in ("slot 18:0: used by 1.0 and 3.3", "another shape", "record 7a: of an unknown kind", "stray"):
        assert any(expected in problem for problem in problems), expected


async def test_broken_records(folder: Path) -> None:
    (folder / "target-10001/records/CURRENT").write_text("nonsense")
    assert main([str(folder)]) == EXIT_DAMAGED


async def test_what_cannot_be_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "target-77")]) == EXIT_UNUSABLE
    assert main([str(folder / "target-10001" / "records")]) == EXIT_UNUSABLE
    disk = LinuxDisk(str(folder))
    assert main([str(folder)]) == EXIT_UNUSABLE
    assert "in use" in capsys.readouterr().err
    disk.close()


async def test_what_power_loss_undid_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinuxDisk, "boot_id", lambda _: "another")
    with (folder / "target-10001/data-17-0").open("r+b") as file:
        file.write(b"!")
    (found,) = inspect(folder)
    assert found.problems == []
    assert "ab.7: version 2 was not synced" in found.notes[0]
