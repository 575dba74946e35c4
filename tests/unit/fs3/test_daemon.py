"""The frame of a daemon: flags, exit codes, one line for an error, signals."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from fs3 import daemon
from fs3.config import option
from fs3.errors import Code, ConfigError, FS3Error


@dataclass(frozen=True)
class Example:
    listen: str = option("tcp://127.0.0.1:0", help="where to listen, 100% of it")
    grace_ms: int = option(3000, help="how long", unit="ms")
    sync: bool = option(True, help="sync or not")
    log_level: str = option("info", help="how much", choices=("info", "debug"))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def end(run: Any, *argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        daemon.main("example", Example, run, "An example.", argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


async def fine(config: Example, env: Any, started: Any) -> None:
    started(config.listen)


def raising(*errors: BaseException) -> Any:
    async def run(config: Example, env: Any, started: Any) -> None:
        async with trio.open_nursery() as nursery:
            for error in errors:
                nursery.start_soon(_raise, error)

    return run


async def _raise(error: BaseException) -> None:
    raise error


def test_help_shows_each_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(fine, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--grace-ms DURATION how long (default: 3s)" in text
    assert "--sync, --no-sync sync or not (default: true)" in text
    assert "100% of it" in text


def test_flags_override_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text('listen = "tcp://[::1]:1"\nsync = true\ngrace_ms = "1s"\n')
    assert end(fine, "--config", str(path), "--no-sync", "--grace-ms", "2s", "--print-config") == 0
    printed = capsys.readouterr().out
    assert 'listen = "tcp://[::1]:1"' in printed and "sync = false" in printed and "grace_ms = 2000" in printed


@pytest.mark.parametrize(
    ("errors", "code", "lines"),
    [
        ([FS3Error(Code.IO, "disk is gone")], 1, ["example: IO: disk is gone"]),
        ([FS3Error(Code.CONFIG, "tcp://x:1: taken")], 2, ["example: tcp://x:1: taken"]),
        ([FS3Error(Code.FORMAT_VERSION, "version 9")], 2, ["example: FORMAT_VERSION: version 9"]),
        ([ConfigError("a"), ConfigError("a")], 2, ["example: a"]),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    errors: list[BaseException], code: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(raising(*errors)) == code
    assert [line for line in capsys.readouterr().err.splitlines() if " INFO " not in line] == lines


def test_an_unknown_key_ends_it_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("lisen = 1")
    assert end(fine, "--config", str(path)) == 2
    assert capsys.readouterr().err == f"example: {path}: unknown key 'lisen', did you mean 'listen'?\n"


SCRIPT = """
import sys, trio
from collections.abc import Iterator
from dataclasses import dataclass
from fs3.daemon import main

@dataclass(frozen=True)
class Config:
    log_level: str = "info"

async def run(config, env, started):
    started("nowhere")
    try:
        await trio.sleep_forever()
    finally:
        print("cleaned", flush=True)

main("example", Config, run, "An example.")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "example ready: nowhere" in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert out == "cleaned\n"


def test_a_daemon_ends_with_the_parent_that_wished_so() -> None:
    middle = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stderr=subprocess.PIPE, text=True,\n"
        "    env={**os.environ, 'FS3_DIE_WITH_PARENT': str(os.getpid())})\n"
        "child.stderr.readline()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", middle, SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=10)  # the end of the output: the daemon has ended too
    assert process.returncode == -signal.SIGKILL
    assert out == "cleaned\n"
