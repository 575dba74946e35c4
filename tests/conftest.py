"""One real cluster for all tests that hurt nobody."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import harness

TEST_LIMIT_S = 180.0


@pytest.fixture(scope="session")
def fuse() -> None:
    """Skips where nothing can be mounted."""
    reason = harness.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_cluster(fuse: None) -> Iterator[harness.Cluster]:
    """Three storage daemons, three replicas; nobody kills anything in it."""
    with harness.cluster() as made:
        made.wait_serving()
        yield made


@pytest.fixture
def mounted(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh folder in the shared cluster's mount; the test must end in time and leave the logs clean.

    FS3_TEST_ON_DIR names a folder to take instead of a mount: on a local disk, the tests are tested themselves.
    """
    name = request.node.name.replace("/", "_").replace("[", "-").replace("]", "")
    if (other := os.environ.get("FS3_TEST_ON_DIR")) is not None:
        folder = Path(other) / name
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
        return
    shared_cluster: harness.Cluster = request.getfixturevalue("shared_cluster")
    folder = shared_cluster.mount / name
    start = time.monotonic()
    with harness.watchdog(shared_cluster, TEST_LIMIT_S):
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
    print(f"{request.node.name}: {time.monotonic() - start:.1f} s")
    bad = shared_cluster.bad_lines()
    assert not bad, "the daemons' logs hold errors:\n" + "\n".join(bad[:20])
