"""The client of vLLM's HF3FS connector over fs3's rings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import hf3fs, venvs

pytestmark = pytest.mark.process


def test_blocks_are_kept_and_found(mounted: Path, tmp_path: Path) -> None:
    venvs.needs("vllm").drive("vllm_hf3fs.py", mounted / "kv", paths=hf3fs.importable(tmp_path))
