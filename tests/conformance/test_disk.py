from __future__ import annotations

import errno
import mmap
import os
import random
import tempfile
from pathlib import Path

import pytest
from trio.testing import MockClock

from fs3.errors import Code, ConfigError, FS3Error
from fs3.testing.disk import check_disk
from storage.disk_linux import SECTOR, LinuxDisk, disk_error
from tests.sim.disk import Platter
from tests.unit.storage.memory_disk import MemoryDisk

MIB = 1024 * 1024


async def test_linux_disk(tmp_path: Path) -> None:
    await check_disk(lambda: LinuxDisk(str(tmp_path / "disk")))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs at /dev/shm")
async def test_linux_disk_in_memory() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        await check_disk(lambda: LinuxDisk(f"{folder}/disk"))
        disk = LinuxDisk(f"{folder}/disk")
        assert disk.open_file("data").read_now(0, memoryview(bytearray(0)))
        disk.close()


async def test_linux_disk_past_the_page_cache(tmp_path: Path) -> None:
    def make() -> LinuxDisk:
        return LinuxDisk(str(tmp_path / "disk"), direct=True)

    try:
        disk = make()
        disk.open_file("probe").close()
        disk.close()
    except ConfigError as error:
        pytest.skip(str(error))
    await check_disk(make)
    disk = make()
    file = disk.open_file("data")
    chance = random.Random(1)
    content = bytearray()
    for _ in range(60):  # sectors and parts of sectors, over each other
        unit = chance.choice((1, SECTOR))
        offset, length = chance.randrange(3 * MIB // unit) * unit, chance.randrange(1, MIB // unit) * unit
        data = chance.randbytes(length)
        content.extend(bytes(max(0, offset + length - len(content))))
        content[offset : offset + length] = data
        cut = chance.randrange(length)
        shift = chance.choice((0, 0, 1))  # memory that the disk can read and write itself, and such that it cannot
        first = memoryview(mmap.mmap(-1, 2 * MIB))[shift : shift + cut]
        first[:] = data[:cut]
        await file.write(offset, [first, memoryview(data)[cut:]])
        offset, length = chance.randrange(3 * MIB // unit) * unit, chance.randrange(1, 2 * MIB)
        into = memoryview(mmap.mmap(-1, 3 * MIB))[shift : shift + length]
        await file.read(offset, into)
        assert into == (bytes(content[offset : offset + length])).ljust(length, b"\0")
    await file.sync()
    file.close()
    disk.close()


async def test_punch_gives_space_back(tmp_path: Path) -> None:
    disk = LinuxDisk(str(tmp_path / "disk"))
    file = disk.open_file("data")
    await file.write(0, [bytes([1]) * (4 << 20)])
    await file.sync()
    before = os.stat(tmp_path / "disk/data").st_blocks
    await file.punch(0, 2 << 20)
    if os.stat(tmp_path / "disk/data").st_blocks == before:
        pytest.skip("this file system cannot punch holes")
    assert os.stat(tmp_path / "disk/data").st_blocks <= before // 2
    file.close()
    disk.close()


def test_errors_of_the_operating_system() -> None:
    assert disk_error(OSError(errno.ENOSPC, "full"), "write x").code is Code.NO_SPACE
    failed = disk_error(OSError(errno.EIO, "broken"), "write x")
    assert failed.code is Code.DISK_FAILED
    assert "write x: broken" in str(failed)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="Not a directory"):
        LinuxDisk(str(tmp_path / "file/disk"))


def test_records_that_are_in_use(tmp_path: Path) -> None:
    disk = LinuxDisk(str(tmp_path / "disk"))
    records = disk.open_records("records")
    with pytest.raises(FS3Error) as caught:
        disk.open_records("records")
    assert caught.value.code is Code.DISK_FAILED
    records.close()
    disk.close()


async def test_memory_disk() -> None:
    disk = MemoryDisk()
    disk.close()
    await check_disk(disk.exclusive)


async def test_simulated_disk(autojump_clock: MockClock) -> None:
    await check_disk(Platter(random.Random(1)).open)


async def test_power_loss_keeps_what_was_synced(autojump_clock: MockClock) -> None:
    for seed in range(20):
        platter = Platter(random.Random(seed))
        disk = platter.open()
        file, records = disk.open_file("data"), disk.open_records("records")
        await file.write(0, [b"a" * 10_000])
        records.write([(b"k", b"1")])
        await file.sync()
        await records.sync()
        await file.write(0, [b"b" * 10_000])
        records.write([(b"k", b"2"), (b"l", b"")])
        disk.unplug()
        records.write([(b"k", b"3")])
        platter.lose_power()
        disk = platter.open()
        into = memoryview(bytearray(10_000))
        await disk.open_file("data").read(0, into)
        for at in (0, 4096, 8192):
            assert set(into[at : at + 4096]) in ({ord("a")}, {ord("b")})
        assert list(disk.open_records("records").load()) in ([(b"k", b"1")], [(b"k", b"2"), (b"l", b"")])
        disk.close()
