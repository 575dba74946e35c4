"""fs3's own connectors in the engines that they are for: SGLang's HiCache and LMCache's second level, by rings and without a
mount."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.engines import venvs
from tests.process import harness

pytestmark = pytest.mark.process


@pytest.fixture(params=["rings", "client"])
def place(request: pytest.FixtureRequest, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as an engine's configuration has it."""
    if request.param == "rings":
        return str(mounted)
    shared_cluster: harness.Cluster = request.getfixturevalue("shared_cluster")
    monkeypatch.setenv("FS3_MGMTD", ",".join(shared_cluster.mgmtd()))
    return f"fs3:///{mounted.name}"


def paths() -> tuple[Path, ...]:
    """Where an engine finds fs3."""
    return harness.REPOSITORY, venvs.needs("client").packages


def test_sglang(place: str) -> None:
    venvs.needs("sglang").drive("sglang_fs3.py", place, paths=paths())


def test_lmcache(place: str) -> None:
    venvs.needs("lmcache").drive("lmcache_fs3.py", place, paths=paths())


def test_lmcache_verifies(place: str) -> None:
    adapter = {"module_path": "fs3.integrations.lmcache", "class_name": "FS3L2Adapter", "adapter_params": {"place": place}}
    line = ["-m", "lmcache.cli.main", "bench", "l2", "--no-skip-verify", "--lookup-max-hit-rate", "0.5"]
    line += ["--num-keys", "16", "--in-flight", "2", "--rounds", "2", "--data-size-kb", "1024", "--l1-align-bytes", "4096"]
    said = venvs.needs("lmcache").run(*line, "--l2-adapter", json.dumps({"type": "plugin", **adapter}), paths=paths())
    assert re.findall(r"Total success: +(\d+)", said) == ["64", "32", "64"]  # stored, found of those asked for, loaded
    assert re.search(r"\[Verify\].*(pass|ok|match)", said, re.IGNORECASE)
