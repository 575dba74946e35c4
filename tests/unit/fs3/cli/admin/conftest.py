from __future__ import annotations

import pytest

from .support import Operator


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Operator:
    """Types commands at a cluster of three storage nodes, 101 to 103, three chains of two, and six free targets."""
    return Operator(monkeypatch)
