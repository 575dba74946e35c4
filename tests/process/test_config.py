"""Settings of a cluster in use: taken by its daemons and its mount while they run, and kept over a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fs3.cli.main import cli
from fs3.errors import FS3Error
from fuse import guard

from .harness import Cluster, cluster, wait_until, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def config(made: Cluster, *words: str) -> Any:
    done = CliRunner().invoke(cli, ["admin", "config", *words, "--data", str(made.data), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.output)


def refused(made: Cluster, *words: str) -> str:
    """The line that says why."""
    done = CliRunner().invoke(cli, ["admin", "config", *words, "--data", str(made.data)])
    assert done.output == "" and isinstance(done.exception, FS3Error), (done.output, done.exception)
    return done.exception.message


def logged(made: Cluster, name: str) -> str:
    return (made.data / "log" / f"{name}.log").read_text()


def used(made: Cluster, kind: str) -> list[tuple[int, str]]:
    return [(row["version"], row["problem"]) for row in config(made, "use", kind)]


def kernel_read_ahead(made: Cluster) -> str:
    return Path(f"/sys/class/bdi/{guard.device_of(str(made.mount))}/read_ahead_kb").read_text().strip()


def test_settings_are_taken_while_all_runs_and_survive_its_restart() -> None:
    own = {"storage-1": 'scrub_rate_bytes = "2MiB"'}
    with cluster(storages=1, replicas=1, settings=own) as made, (made.mount / "file").open("w") as file:
        done = config(made, "set", "storage", "scrub_rate_bytes=1MiB", "log_level=debug", "--comment", "a test")
        assert done["all_use_it"] and done["version"] == 1 and len(done["daemons"]) == 1
        override = "its own file or flags say scrub_rate_bytes=2MiB"
        assert used(made, "storage") == [(1, override)]
        file.write("x" * 100_000)
        file.flush()
        os.fsync(file.fileno())
        assert " DEBUG " in logged(made, "storage-1") and " DEBUG " not in logged(made, "meta")

        assert config(made, "set", "client", "attr_timeout=20s", "kernel_read_ahead=256KiB")["all_use_it"]
        assert used(made, "client") == [(1, "")]
        if os.geteuid() == 0:
            assert kernel_read_ahead(made) == "256"

        assert "'data' cannot be changed while running" in refused(made, "set", "storage", "log_level=info", "data=/x")
        assert "did you mean 'attr_timeout'?" in refused(made, "set", "client", "atr_timeout=1s")
        assert "expected a duration" in refused(made, "set", "client", "attr_timeout=soon")
        assert "version 0 was changed meanwhile, 1 is the latest" in refused(
            made, "set", "client", "read_ahead=0", "--base", "0"
        )
        assert config(made, "get", "storage")["settings"] == {"log_level": "debug", "scrub_rate_bytes": "1MiB"}
        assert len(config(made, "history", "client")) == 1

        file.close()
        made.down()
        made.up()
        wait_until(lambda: used(made, "storage") == [(1, override)], "the storage daemon to use it again", 20)
        wait_until(lambda: used(made, "client") == [(1, "")], "the mount to use it again", 20)
        if os.geteuid() == 0:
            assert kernel_read_ahead(made) == "256"
        assert (made.mount / "file").stat().st_size == 100_000
