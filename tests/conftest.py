"""One real cluster for all tests that hurt nobody; and what no test may leave behind: error records, mounts."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from fs3.cli.mounts import mounts, unmount
from tests.process import harness

TEST_LIMIT_S = float(os.environ.get("FS3_TEST_LIMIT_S", "180"))


@pytest.fixture(autouse=True)
def no_error_records(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An ERROR record is something that an operator must act on: a test that does not expect one fails."""
    yield
    if request.node.get_closest_marker("expects_error_log") is None:
        records = caplog.get_records("setup") + caplog.get_records("call")
        bad = [f"{r.levelname} {r.name}: {r.getMessage()}" for r in records if r.levelno >= logging.ERROR]
        assert not bad, f"{bad} (a test that means to provoke this is marked expects_error_log)"


@pytest.fixture(scope="session", autouse=True)
def no_mounts_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary folders lie below one base, and nothing may be mounted there at the end."""
    base = tmp_path_factory.mktemp("t", numbered=False)
    before, tempfile.tempdir = tempfile.tempdir, str(base)
    yield
    tempfile.tempdir = before
    left = [mount.path for mount in mounts() if base.parent in mount.path.parents]
    for path in left:
        unmount(path, lazy=True)
    assert not left, f"mounts left behind: {left}"


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


@pytest.fixture(scope="module")
def more_mounts(shared_cluster: harness.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Mounts of the shared cluster beside its own: `other` is like that, `strict` is strict."""
    home = tmp_path_factory.mktemp("mounts")
    made = {name: home / name for name in ("other", "strict")}
    flags: dict[str, list[str]] = {"other": [], "strict": ["--strict"]}
    try:
        for name, path in made.items():
            line = ("mount", str(path), "--data", str(shared_cluster.data), "--log", str(home / f"{name}.log"))
            done = harness.fs3(*line, *flags[name])
            assert done.returncode == 0, done.stdout + done.stderr
        yield made
    finally:
        for path in made.values():
            done = harness.fs3("umount", str(path))
            assert done.returncode == 0, done.stdout + done.stderr
    bad = [line for log in home.glob("*.log") for line in log.read_text().splitlines() if " ERROR " in line]
    assert not bad, "\n".join(bad)


class Victims:
    """A cluster of three storage daemons and three replicas, whose daemons tests kill; made anew when it does not work."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._made: harness.Cluster | None = None

    def get(self) -> harness.Cluster:
        if self._made is not None and "up" not in self._made.pids():
            self.end(clean=False)
        if self._made is None:
            self._made = self._stack.enter_context(harness.cluster())
        self._made.wait_serving()
        return self._made

    def end(self, *, clean: bool) -> None:
        """clean: it must stop cleanly, and its logs must hold no errors."""
        self._made = None
        with ExitStack() if clean else suppress(AssertionError):
            self._stack.close()


@pytest.fixture(scope="session")
def _victims(fuse: None) -> Iterator[Victims]:
    kept = Victims()
    yield kept
    kept.end(clean=True)


@pytest.fixture
def victims(_victims: Victims) -> harness.Cluster:
    """A cluster that serves, with a mount, for tests that hurt it and let it get well."""
    return _victims.get()


_MACHINE = ("tests/process/", "tests/posix/")


class _Turns(LoadScopeScheduling):
    """Tests with real daemons or mounts run one after the other, in one worker, beside all others."""

    def _split_scope(self, nodeid: str) -> str:
        return "machine" if nodeid.startswith(_MACHINE) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Turns:
    return _Turns(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not harness.SOAK:
        for item in items:
            if item.get_closest_marker("soak") is not None:
                item.add_marker(pytest.mark.skip(reason="takes long; `make soak` runs it"))


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
