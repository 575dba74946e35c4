"""An operator's day on real daemons: a node is drained under a writer while daemons die, forgotten, and added again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fs3.cli.main import cli
from fs3.errors import ConfigError
from tests.process import harness
from tests.process.harness import REPOSITORY, Cluster, wait_until, watchdog

pytestmark = pytest.mark.process

LIMIT_S = 160.0
WAIT_S = 60.0
"""For one thing to happen, on a machine that is busy."""
FILE_BYTES = 1 << 20
FILES_MIN = 24
LEASE_MS = 3_000


def admin(made: Cluster, *words: str, code: int = 0) -> str:
    """What `fs3 admin WORDS` prints, run in this process; its exit code must be `code`."""
    done = CliRunner().invoke(cli, ["admin", "--data", str(made.data), *words])
    found = 2 if isinstance(done.exception, ConfigError) else done.exit_code
    assert found == code, f"{words}: exit {found}, {done.exception!r}\n{done.output}\n{made.logs()}"
    return done.output


def listed(made: Cluster, *words: str) -> Any:
    return json.loads(admin(made, *words, "--json"))


def node(made: Cluster, number: int) -> dict[str, Any]:
    (row,) = [row for row in listed(made, "node", "list") if row["node"] == number]
    assert isinstance(row, dict)
    return row


class Writer:
    """Writes one file after the other on the mount, and remembers what must be in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.digests: dict[Path, str] = {}
        self.failure: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.02 if len(self.digests) < FILES_MIN else 0.2):
                data = os.urandom(FILE_BYTES)
                path = self._folder / f"f{len(self.digests)}"
                path.write_bytes(data)
                self.digests[path] = hashlib.sha256(data).hexdigest()
        except BaseException as failure:
            self.failure = failure

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            wait_until(lambda: len(self.digests) >= FILES_MIN or self.failure is not None, "the first files", WAIT_S)
            yield
        finally:
            self._stop.set()
            self._thread.join(LIMIT_S)
        assert self.failure is None, self.failure

    def check(self) -> None:
        wrong = [
            path.name for path, digest in self.digests.items() if hashlib.sha256(path.read_bytes()).hexdigest() != digest
        ]
        assert not wrong, f"{len(wrong)} of {len(self.digests)} files are not what was written: {wrong[:10]}"


@pytest.fixture
def four(fuse: None) -> Iterator[Cluster]:
    """Four storage daemons of two targets, all in chains of two replicas; then three of them get two targets more."""
    settings = {f"storage-{number}": "targets_per_disk = 2" for number in range(1, 5)}
    with harness.cluster(storages=4, replicas=2, settings=settings, lease_ms=LEASE_MS) as made:
        others = ("storage-2", "storage-3", "storage-4")
        for name in others:
            config = made.data / "config" / f"{name}.toml"
            config.write_text(config.read_text().replace("targets_per_disk = 2", "targets_per_disk = 4"))
            made.kill(name)
        wait_until(lambda: len(listed(made, "target", "list", "--state", "unused")) == 6, "free targets", WAIT_S)
        made.wait_serving()
        yield made


def test_a_node_goes_and_comes_under_a_writer(four: Cluster) -> None:
    writer = Writer(four.mount)
    with watchdog(four, LIMIT_S):
        assert [row["state"] for row in listed(four, "chain", "list")] == ["healthy"] * 4
        with writer.running():
            drain_while_daemons_die(four)
        writer.check()
        assert node(four, 101)["in_chains"] == 0
        assert listed(four, "chain", "list", "--degraded") == []
        wait_until(lambda: not listed(four, "target", "list", "--state", "retired"), "retired targets to be empty", WAIT_S)
        assert "node 101 is drained and empty" in admin(four, "doctor")
        forget_and_add_again(four)
        writer.check()
        admin(four, "doctor")


def drain_while_daemons_die(made: Cluster) -> None:
    """The plan goes on whoever dies, and the command that watches it sees its end."""
    assert "Nothing was changed" in admin(made, "drain", "101")
    # So slowly that whoever watches sees it, however long its looks take.
    words = ["admin", "--data", str(made.data), "drain", "101", "--yes", "--at-once", "1", "--resync-rate", "1536KiB"]
    line = [sys.executable, "-u", "-m", "fs3.cli.main", *words]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY) as watching:
        assert watching.stdout is not None
        lines: list[str] = []
        for text in watching.stdout:
            if ": filling" in text and not any(": filling" in line for line in lines):
                made.kill("mgmtd")
                time.sleep(0.5)
                made.kill("storage-2")
            lines.append(text)
        assert watching.wait(LIMIT_S) == 0, "".join(lines)
    assert any(": filling" in line for line in lines), "nobody was killed"
    assert lines[-1] == "Operation 1 (drain node 101) is done.\n", lines
    (operation,) = listed(made, "operation", "list")
    assert (operation["state"], operation["done"]) == ("done", 2)
    admin(made, "operation", "show", "1")
    admin(made, "operation", "pause", "1", code=2)


def forget_and_add_again(made: Cluster) -> None:
    """A node that is empty goes; one with the same id and a fresh disk comes, and gets its part."""
    admin(made, "node", "forget", "101", "--yes", code=2)
    made.keep_down("storage-1")
    wait_until(lambda: node(made, 101)["state"] == "dead", "mgmtd to notice", WAIT_S)
    admin(made, "node", "forget", "101", "--yes")
    assert 101 not in [row["node"] for row in listed(made, "node", "list")]
    shutil.rmtree(made.data / "storage-1")
    made.bring_back("storage-1")
    wait_until(lambda: 101 in [row["node"] for row in listed(made, "node", "list")], "the new node", WAIT_S)
    assert not node(made, 101)["drained"]
    wait_until(lambda: node(made, 101)["free"] == 2, "its targets", WAIT_S)
    admin(made, "rebalance", "--yes", "--resync-rate", "128MiB")
    assert node(made, 101)["in_chains"] > 0
    assert listed(made, "chain", "list", "--degraded") == []
