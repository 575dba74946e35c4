"""SGLang's HiCache backend `file` on a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import venvs

pytestmark = pytest.mark.process


def test_pages_are_kept_found_evicted_and_never_torn(mounted: Path) -> None:
    venvs.needs("sglang").drive("sglang_file.py", mounted)
