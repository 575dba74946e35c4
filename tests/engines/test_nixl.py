"""NIXL's POSIX plugin on a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import venvs

pytestmark = pytest.mark.process


@pytest.mark.parametrize("way", ["use_aio", "use_uring", "use_posix_aio"])
def test_registered_memory_goes_to_files_and_back(mounted: Path, way: str) -> None:
    venvs.needs("nixl").drive("nixl_posix.py", mounted, way)
