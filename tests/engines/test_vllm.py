"""vLLM's file system tier for offloaded blocks on a mount: its own tests, and many blocks at once by several processes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.engines import venvs
from tests.process import harness

pytestmark = pytest.mark.process

VERSION = "0.32.0"


def test_vllm_passes_its_own_tests(mounted: Path) -> None:
    tests = venvs.needs_source(f"vllm=={VERSION}", "tests/v1/kv_offload")
    engine = venvs.needs("vllm")
    options = ("-q", "-p", "no:cacheprovider", f"--basetemp={mounted / 'base'}", "-W", "ignore::DeprecationWarning")
    said = engine.run("-m", "pytest", *options, "tiering/test_fs_tier.py", "test_file_mapper.py", cwd=tests, timeout_s=550)
    assert " passed" in said and " failed" not in said


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "compiled"])
def test_blocks_are_never_short(mounted: Path, compiled: bool) -> None:
    venvs.needs("vllm").drive("vllm_fs.py", mounted, str(int(compiled)))


def test_blocks_are_never_short_while_storage_daemons_die(victims: harness.Cluster) -> None:
    """A block that were short once would be removed for ever."""
    engine, ended, killed = venvs.needs("vllm"), threading.Event(), []

    def kill_in_turn() -> None:
        while not ended.is_set():
            name = f"storage-{len(killed) % 3 + 1}"
            victims.wait_restarted(name, victims.kill(name))
            killed.append(name)
            victims.wait_serving()

    killer = threading.Thread(target=kill_in_turn)
    killer.start()
    try:
        engine.drive("vllm_fs.py", victims.mount / "blocks", "1", timeout_s=280)
    finally:
        ended.set()
        killer.join()
    assert len(killed) >= 2, killed
