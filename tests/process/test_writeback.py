"""Mounts with `writeback`: what the kernel keeps of writes, and what others see of it (docs/posix.md)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix import operations as ops
from tests.posix.exerciser import Exerciser
from tests.process import harness
from tests.process.test_two_mounts import opened, read_all

pytestmark = pytest.mark.process

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture(scope="module")
def writeback(shared_cluster: harness.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("writeback")
    line = ("mount", str(home / "mnt"), "--data", str(shared_cluster.data), "--log", str(home / "log"), "--writeback")
    done = harness.fs3(*line)
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        yield home / "mnt"
    finally:
        done = harness.fs3("umount", str(home / "mnt"))
        assert done.returncode == 0, done.stdout + done.stderr
    assert " ERROR " not in (home / "log").read_text()


@pytest.fixture
def here(shared_cluster: harness.Cluster, mounted: Path, writeback: Path) -> Path:
    """The folder `mounted`, by the mount that keeps writes."""
    return writeback / mounted.relative_to(shared_cluster.mount)


def test_what_was_closed_or_synced_is_there_for_others(here: Path, mounted: Path) -> None:
    for number, length in enumerate([10, 5000, 300 * KIB, 2 * MIB + 1]):
        data = ops.pattern(number, length)
        (here / f"f{number}").write_bytes(data)
        assert read_all(mounted / f"f{number}") == data
        assert abs((here / f"f{number}").stat().st_mtime - (mounted / f"f{number}").stat().st_mtime) < 1e-6
    with opened(here / "g") as writer:
        for at in range(0, MIB, 8 * KIB):
            os.pwrite(writer, bytes([at >> 13]) * 4096, at)
        assert (mounted / "g").stat().st_size == 0, "the kernel kept nothing"
        os.fsync(writer)
        found = read_all(mounted / "g")
        assert all(
            found[at : at + 8 * KIB] == bytes([at >> 13]) * 4096 + bytes(4096) for at in range(0, MIB - 8 * KIB, 8 * KIB)
        )


def test_a_file_that_others_made_longer_is_read_whole_by_who_opens_it(here: Path, mounted: Path) -> None:
    (here / "f").write_bytes(b"one")
    for number in range(1, 4):
        data = ops.pattern(number, 100 * KIB * number)
        (mounted / "f").write_bytes(data)
        assert read_all(here / "f") == data
    (mounted / "f").write_bytes(b"short")
    assert read_all(here / "f") == b"short"


def test_within_the_mount_appends_land_behind_all_others(here: Path, mounted: Path) -> None:
    with opened(here / "f") as writer, opened(here / "f", os.O_WRONLY | os.O_APPEND) as log:
        for number in range(20):
            os.pwrite(writer, b"k" * 1000, number * 1010)
            os.write(log, b"a" * 10)
    assert read_all(mounted / "f") == (b"k" * 1000 + b"a" * 10) * 20


def test_a_partly_written_page_keeps_the_rest_of_it(here: Path, mounted: Path) -> None:
    data = bytearray(ops.pattern(1, 100_000))
    (mounted / "f").write_bytes(data)
    with opened(here / "f", os.O_WRONLY) as writer:
        for at in range(10, 90_000, 3001):
            os.pwrite(writer, b"new", at)
            data[at : at + 3] = b"new"
    with opened(here / "f", os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        mapped[50_000:50_010] = data[50_000:50_010] = b"0123456789"
    assert read_all(mounted / "f") == bytes(data)


def test_the_exerciser_finds_one_mount_true(here: Path) -> None:
    Exerciser([here / "f"], 300).run(80)
