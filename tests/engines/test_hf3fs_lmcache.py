"""LMCache's `hf3fs` connector over fs3's rings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import hf3fs, venvs
from tests.process import harness

pytestmark = pytest.mark.process


@pytest.mark.parametrize("headers", [True, False], ids=["headers", "plain"])
def test_chunks_are_put_found_and_removed(
    mounted: Path, shared_cluster: harness.Cluster, tmp_path: Path, headers: bool
) -> None:
    engine, paths = venvs.needs("lmcache"), hf3fs.importable(tmp_path)
    for part in ("first", "again"):
        words = (shared_cluster.mount, mounted / "kv", part, str(int(headers)))
        engine.drive("lmcache_hf3fs.py", *words, paths=paths)
