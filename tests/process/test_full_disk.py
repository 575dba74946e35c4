"""Storage daemons whose disks are full: a clean ENOSPC, and everything goes on once there is space again."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.faults import read_back, wait_equal, write_down
from tests.process.harness import Cluster, cluster, wait_until, watchdog

pytestmark = pytest.mark.process

LIMIT_S = 90.0
GIVEN_BACK_S = 30.0
DISK_MIB = {"storage-1": 160, "storage-2": 192}
RESERVE_MIB = 48
SETTINGS = f'reserve_bytes = "{RESERVE_MIB}MiB"'
MIB = 1 << 20
BLOCK = bytes(range(256)) * (MIB // 256)


@pytest.fixture(scope="module")
def small(fuse: None) -> Iterator[Cluster]:
    """Two daemons, two replicas, each on a small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount small disks")
    disks = Path(tempfile.mkdtemp(prefix="fs3-disks-"))

    def prepare(data: Path) -> None:
        for name, mib in DISK_MIB.items():
            (disks / name).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(disks / name)], check=True)
            (data / name).symlink_to(disks / name)

    settings = dict.fromkeys(DISK_MIB, SETTINGS)
    try:
        with cluster(storages=2, replicas=2, settings=settings, prepare=prepare) as made:
            made.wait_serving()
            yield made
    finally:
        for name in DISK_MIB:
            subprocess.run(["umount", "--lazy", str(disks / name)], capture_output=True, check=False)


def fill(path: Path) -> int:
    """Writes until the disk is full; how many bytes were written."""
    done = 0
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        while True:
            done += os.write(fd, BLOCK)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return done
    finally:
        os.close(fd)


def free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def test_a_full_disk(small: Cluster, tmp_path: Path) -> None:
    folder = small.mount / tmp_path.name
    folder.mkdir()
    big, more = folder / "big", folder / "more"
    with watchdog(small, LIMIT_S):
        write_down(folder, b"kept")
        written = fill(big)
        assert written > (DISK_MIB["storage-1"] - RESERVE_MIB) * MIB // 2, "full far too early"
        assert free(small.data / "storage-1") > RESERVE_MIB * MIB // 2, "the reserve was used up"
        fill(more)
        read_back(folder, b"kept")
        check_big(big, written)
        start = time.monotonic()
        # Removed files give their space back, in the background.
        again = 0
        while again < written * 9 // 10:
            assert time.monotonic() < start + GIVEN_BACK_S, f"{again} bytes after {written} before"
            big.unlink()
            more.unlink(missing_ok=True)
            time.sleep(0.5)
            again = fill(big)
        print(f"{written >> 20} MiB; after their removal {again >> 20} MiB, in {time.monotonic() - start:.1f} s")
        big.unlink()
        wait_until(lambda: writes(folder), "writes to go on", GIVEN_BACK_S)
        read_back(folder, b"then")
    wait_equal(small)


def writes(folder: Path) -> bool:
    """Whether there is space for small files again."""
    try:
        write_down(folder, b"then")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    return True


def check_big(path: Path, written: int) -> None:
    """What write(2) returned for is there, although others failed."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for at in range(0, written, MIB):
            assert file.read(MIB) == BLOCK[: written - at], f"wrong bytes at {at}"
