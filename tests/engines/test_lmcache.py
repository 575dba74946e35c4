"""LMCache on a mount: its storage manager, and `lmcache bench l2`, which compares what it loads with what it stored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engines import venvs

pytestmark = pytest.mark.process


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("kind", ["disk", "fs"])
def test_the_storage_manager_finds_what_it_put(mounted: Path, kind: str, direct: bool) -> None:
    venvs.needs("lmcache").drive("lmcache_manager.py", mounted / "kv", kind, str(int(direct)))


@pytest.mark.parametrize(
    "adapter",
    [
        {"type": "fs"},
        {"type": "fs", "use_odirect": True, "relative_tmp_dir": "tmp"},
        {"type": "fs", "read_ahead_size": 65_536},
        {"type": "fs_native", "num_workers": 8},
        {"type": "fs_native", "num_workers": 8, "use_odirect": True},
    ],
    ids=["fs", "fs-direct", "fs-ahead", "native", "native-direct"],
)
def test_the_benchmark_verifies(mounted: Path, adapter: dict[str, Any]) -> None:
    line = ["-m", "lmcache.cli.main", "bench", "l2", "--no-skip-verify", "--lookup-max-hit-rate", "0.5"]
    line += ["--num-keys", "16", "--in-flight", "2", "--rounds", "2", "--data-size-kb", "1024", "--l1-align-bytes", "4096"]
    said = venvs.needs("lmcache").run(*line, "--l2-adapter", json.dumps({**adapter, "base_path": str(mounted)}))
    assert re.findall(r"Total success: +(\d+)", said) == ["64", "32", "64"], (
        "stored, found (half were asked in vain), loaded"
    )
    assert "All 32 keys data verified OK" in said
