"""The kernel's mount table, and what may be mounted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from fs3.cli import mounts
from fs3.cli.mounts import Mount, check_mount_point, parse_mount_table
from fs3.errors import ConfigError

TABLE = (
    "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
    "40 22 0:35 / /data/my\\040mount rw,nosuid,nodev,relatime - fuse.fs3 fs3:abc rw,user_id=1000,group_id=0\n"
    "41 22 0:36 / /with\\134back rw shared:2 master:1 - tmpfs none rw\n"
)


def test_the_mount_table_is_read_with_its_escapes() -> None:
    assert parse_mount_table(TABLE) == [
        Mount(Path("/"), "ext4", "/dev/vda", "254:0"),
        Mount(Path("/data/my mount"), "fuse.fs3", "fs3:abc", "0:35", 1000),
        Mount(Path("/with\\back"), "tmpfs", "none", "0:36"),
    ]


@pytest.fixture
def fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /dev/fuse."""
    device = tmp_path / "fuse"
    device.symlink_to("/dev/null")
    monkeypatch.setattr(mounts, "FUSE_DEVICE", device)
    monkeypatch.setattr(mounts, "fusermount", lambda: "fusermount3")
    return device


def test_an_absent_or_empty_folder_will_do(fuse: Path, tmp_path: Path) -> None:
    check_mount_point(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    check_mount_point(tmp_path / "empty")
    assert not (tmp_path / "absent").exists()


def test_what_is_no_mount_point(fuse: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an empty folder to mount on, it holds 'fuse'"):
        check_mount_point(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder to mount on"):
        check_mount_point(Path("/dev/null"))
    with pytest.raises(ConfigError, match="/proc: in use: proc is mounted there"):
        check_mount_point(Path("/proc"))


def test_no_fuse_device_is_said_so(fuse: Path, tmp_path: Path) -> None:
    fuse.unlink()
    with pytest.raises(ConfigError, match=f"{fuse} is missing: load the kernel's fuse module"):
        check_mount_point(tmp_path / "absent")
    fuse.touch()
    with pytest.raises(ConfigError, match=f"{fuse}: expected a device"):
        check_mount_point(tmp_path / "absent")


def test_a_folder_that_is_no_mount_is_not_stale(tmp_path: Path) -> None:
    assert not mounts.is_stale(tmp_path)
    assert mounts.mount_at(tmp_path) is None
    found = mounts.mount_at(Path("/proc"))
    assert found is not None and found.type == "proc"
