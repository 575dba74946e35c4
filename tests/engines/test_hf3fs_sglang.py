"""SGLang's HiCache backend `hf3fs` over fs3's rings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.engines import hf3fs, venvs
from tests.process import harness

pytestmark = pytest.mark.process


# The backend compiles a part of itself when it is first imported, and each rank imports all of SGLang.
TIMEOUT_S = 500.0


@pytest.mark.parametrize("part", ["pages", "ranks"])
def test_what_is_kept_is_found(mounted: Path, shared_cluster: harness.Cluster, tmp_path: Path, part: str) -> None:
    if shutil.which("c++") is None:
        pytest.skip("the backend compiles a part of itself, and there is no C++ compiler")
    engine = venvs.needs("sglang-hf3fs")
    env = {"TORCH_EXTENSIONS_DIR": str(engine.folder / "extensions"), "MAX_JOBS": "1"}
    env |= {"PATH": f"{engine.folder / 'bin'}:{os.environ['PATH']}"}
    env |= {"MOUNT_PID": str(shared_cluster.pids()["mount"])}
    paths = hf3fs.importable(tmp_path)
    engine.drive("sglang_hf3fs.py", mounted / "kv", part, env=env, paths=paths, timeout_s=TIMEOUT_S)
