"""Records in RocksDB whose log is damaged: what was synced must not be missed in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fs3.errors import Code, FS3Error
from storage.disk_linux import RocksRecords


async def crashed(tmp_path: Path, *, synced: int, more: int) -> Path:
    """A copy of a store as a crash leaves it, after so many writes before a sync and after it."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    records = RocksRecords(live)
    try:
        for number in range(synced + more):
            if number == synced:
                await records.sync()
            records.write([(b"key%d" % number, bytes([number]) * 1000)])
        shutil.copytree(live, copy)
    finally:
        records.close()
    return copy


def damage(folder: Path, at: int) -> None:
    (log,) = (path for path in folder.glob("*.log") if path.stat().st_size)
    with log.open("r+b") as file:
        file.seek(at)
        file.write(b"\xa5" * 16)


def names(folder: Path) -> list[bytes]:
    records = RocksRecords(folder)
    try:
        return sorted(key for key, _ in records.load())
    finally:
        records.close()


async def test_what_was_synced_must_be_there(tmp_path: Path) -> None:
    folder = await crashed(tmp_path, synced=5, more=3)
    damage(folder, 2500)
    for _ in range(2):  # it does not get better by trying again
        with pytest.raises(FS3Error) as caught:
            names(folder)
        assert caught.value.code is Code.RECORDS_DAMAGED


async def test_what_was_not_synced_may_be_torn(tmp_path: Path) -> None:
    folder = await crashed(tmp_path, synced=5, more=3)
    damage(folder, 7500)
    assert names(folder) == [b"key%d" % number for number in range(7)]


async def test_a_damaged_mark_says_nothing(tmp_path: Path) -> None:
    folder = await crashed(tmp_path, synced=5, more=3)
    (folder / "SYNCED").write_bytes(b"\xff" * 12)
    assert len(names(folder)) == 8
