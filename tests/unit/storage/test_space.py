from __future__ import annotations

from pathlib import Path

import pytest

from fs3.errors import Code, FS3Error
from storage.disk import Space
from storage.disk_linux import LinuxDisk
from storage.space import SpaceBudget


class SmallDisk(LinuxDisk):
    free = 1000
    asked = 0

    def space(self) -> Space:
        self.asked += 1
        return Space(10_000, self.free)


def test_keeps_the_reserve(tmp_path: Path) -> None:
    disk = SmallDisk(str(tmp_path))
    space = SpaceBudget(disk, 400)
    space.take(500)
    space.take(100)
    assert disk.asked == 1
    disk.free = 400
    with pytest.raises(FS3Error) as caught:
        space.take(1)
    assert caught.value.code is Code.NO_SPACE
    assert caught.value.errno == 28
    disk.free = 500
    space.take(100)
    disk.close()
