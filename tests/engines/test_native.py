"""fs3's own connectors in the engines that they are for: SGLang's HiCache and LMCache's second level, by rings and without a
mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import venvs
from tests.process import harness

pytestmark = pytest.mark.process


def run(engine: str, driver: str, *words: str | Path, env: dict[str, str] | None = None) -> None:
    """Where the engine can import fs3."""
    venvs.needs(engine).drive(driver, *words, paths=(harness.REPOSITORY, venvs.needs("client").packages), env=env)


def test_sglang_by_rings(mounted: Path) -> None:
    run("sglang", "sglang_fs3.py", mounted / "sglang")


def test_sglang_without_a_mount(shared_cluster: harness.Cluster) -> None:
    run("sglang", "sglang_fs3.py", "fs3:///kv/sglang", env={"FS3_MGMTD": ",".join(shared_cluster.mgmtd())})
