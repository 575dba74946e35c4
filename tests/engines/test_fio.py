"""What inference engines ask of the kernel, without them: fio writes and verifies by each way of input and output."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.process import harness

pytestmark = pytest.mark.process

WAYS = {
    "psync": ["--ioengine=psync"],
    "vectors": ["--ioengine=pvsync2"],
    "aio": ["--ioengine=libaio", "--iodepth=32"],
    "uring": ["--ioengine=io_uring", "--iodepth=32"],
    "uring-registered": ["--ioengine=io_uring", "--iodepth=32", "--fixedbufs", "--registerfiles"],
    "mmap": ["--ioengine=mmap"],
}
SHAPES = {
    "random": ["--rw=randrw", "--bs=64k", "--size=6m", "--numjobs=3"],
    "mixed": ["--rw=randrw", "--bsrange=4k-256k", "--size=6m", "--numjobs=3"],
    "streams": ["--rw=write", "--bs=1m", "--size=16m", "--numjobs=2", "--fsync=8"],
}


@pytest.mark.parametrize("direct", [0, 1], ids=["cached", "direct"])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_written_is_read(mounted: Path, way: str, direct: int) -> None:
    if way == "mmap" and direct:
        pytest.skip("memory is mapped through the kernel's pages")
    fio = harness.needs_program("fio")
    if way.startswith("uring"):
        probe = [fio, "--name=probe", "--ioengine=io_uring", "--size=4k", f"--directory={mounted}"]
        if subprocess.run(probe, capture_output=True, check=False, timeout=60).returncode != 0:
            pytest.skip("this kernel allows no io_uring")
    verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=32", "--do_verify=1", "--randrepeat=0"]
    for name, shape in SHAPES.items():
        line = [fio, f"--name={name}", f"--directory={mounted}", f"--direct={direct}", *WAYS[way], *shape, *verify]
        said = harness.run(*line, "--group_reporting", timeout_s=200)
        print("\n".join(line.strip() for line in said.splitlines() if "IOPS=" in line))


def test_jobs_share_a_file(mounted: Path) -> None:
    """Each its own part of it, by different ways, cached and not."""
    fio = harness.needs_program("fio")
    shared = [f"--filename={mounted}/shared", "--rw=randrw", "--bs=16k", "--size=4m", "--verify=crc32c", "--do_verify=1"]
    shared += ["--verify_fatal=1", "--verify_backlog=32", "--randrepeat=0"]
    jobs: list[str] = []
    for number, (engine, direct) in enumerate([("libaio", 1), ("psync", 0), ("libaio", 0), ("psync", 1)]):
        jobs += [f"--name=job{number}", f"--ioengine={engine}", f"--direct={direct}", "--iodepth=8"]
        jobs += [f"--offset={number * 4}m", *shared]
    harness.run(fio, *jobs, timeout_s=200)
