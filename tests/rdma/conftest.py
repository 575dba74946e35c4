"""Tests over real verbs: collected only where FS3_TEST_LISTEN names an address rdma://HOST of this machine, as it does in
the guest of `make test-rdma`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fs3.transport.rdma_port import Device
from tests.transports import LISTEN

if not LISTEN.startswith("rdma://"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    """The first one; all tests of this process share it."""
    from fs3.transport.rdma import open_devices

    yield open_devices()[0]
