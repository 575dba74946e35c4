from __future__ import annotations

from pathlib import Path

import pytest

from fs3.errors import Code, ConfigError, FS3Error
from storage.disk_linux import LinuxDisk
from storage.disks import Home


def test_a_fresh_disk_is_formatted_and_keeps_its_targets(tmp_path: Path) -> None:
    disk = LinuxDisk(str(tmp_path))
    assert Home(disk, 1, 12, 3, 0).ids == [120_101, 120_102, 120_103]
    assert Home(disk, 0, 12, 2, 0).ids == [120_101, 120_102, 120_103]
    disk.close()


def test_a_disk_gets_more_targets_but_never_fewer(tmp_path: Path) -> None:
    """That is how chains can be moved to the disks that are there; what is new is empty."""
    disk = LinuxDisk(str(tmp_path))
    home = Home(disk, 1, 12, 2, 0)
    for target in list(home.empty):
        home.settle(target)
    for number in (1, 0):
        home = Home(disk, number, 12, 4, 0)
        assert (home.ids, home.empty) == ([120_101, 120_102, 120_103, 120_104], {120_103, 120_104})
    assert Home(disk, 1, 12, 3, 0).ids == home.ids
    disk.close()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"fs3-storage 1\n{}", Code.FORMAT_VERSION, "has format 1, this program knows 2"),
        (b"fs3-mgmtd 1\n", Code.CONFIG, "no data of a storage daemon"),
        (b"\xff\xfe", Code.CONFIG, "no data of a storage daemon"),
        (b"fs3-storage 2\n{}", Code.CONFIG, "damaged"),
        (b'fs3-storage 2\n{"node": 3, "targets": [1]}\n', Code.CONFIG, "belongs to node 3, this is node 12"),
    ],
)
def test_other_data_is_refused(tmp_path: Path, content: bytes, code: Code, words: str) -> None:
    (tmp_path / "FORMAT").write_bytes(content)
    disk = LinuxDisk(str(tmp_path))
    with pytest.raises(FS3Error, match=words) as caught:
        Home(disk, 0, 12, 4, 0)
    assert caught.value.code is code
    assert (tmp_path / "FORMAT").read_bytes() == content
    disk.close()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    disk = LinuxDisk(str(tmp_path))
    with pytest.raises(ConfigError, match=r"holiday\.jpg"):
        Home(disk, 0, 12, 4, 0)
    assert not (tmp_path / "FORMAT").exists()
    disk.close()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    disk = LinuxDisk(str(tmp_path))
    with pytest.raises(ConfigError, match="in use by another storage daemon"):
        LinuxDisk(str(tmp_path))
    disk.close()
    LinuxDisk(str(tmp_path)).close()
