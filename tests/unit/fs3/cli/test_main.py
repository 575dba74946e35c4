"""The `fs3` command line: help, and errors in one line before anything is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fs3.cli import main
from fs3.errors import Code, ConfigError, FS3Error


@pytest.mark.parametrize("command", sorted(main.cli.commands))
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(main.cli, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage:" in done.output


def test_help_of_up_teaches_its_flags() -> None:
    text = CliRunner().invoke(main.cli, ["up", "--help"]).output
    for flag in ("--data", "--mount", "--storages", "--replicas", "--chunk-size", "--no-mount", "--foreground / --detach"):
        assert flag in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replicas", "4"], "4 replicas need at least 4 storage daemons"),
        (["--storages", "0"], "--storages: expected at least 1"),
        (["--chunk-size", "100000"], "expected a power of two"),
        (["--mount", "data/mnt"], "must not contain each other"),
    ],
)
def test_up_refuses_before_it_touches_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.cli, ["up", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert words in done.exception.message
    assert not list(tmp_path.iterdir())


def test_a_bad_size_is_a_usage_error() -> None:
    done = CliRunner().invoke(main.cli, ["up", "--chunk-size", "1MB"])
    assert done.exit_code == 2
    assert "'1MB': expected a size such as 1MiB or 65536" in done.output


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("f: key"), 2, "fs3: f: key\n"),
        (FS3Error(Code.FORMAT_VERSION, "newer"), 2, "fs3: newer\n"),
        (FS3Error(Code.BUSY, "runs here"), 1, "fs3: runs here\n"),
        (FS3Error(Code.CONNECTION_LOST), 1, "fs3: CONNECTION_LOST\n"),
    ],
)
def test_an_error_is_one_line(error: FS3Error, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise error

    def fails_in_a_group() -> None:
        raise ExceptionGroup("nursery", [ExceptionGroup("inner", [error])])

    for act in (fails, fails_in_a_group):
        assert main.guarded(act) == code
        assert capsys.readouterr().err == line


def test_a_bug_is_not_taken_for_an_error() -> None:
    def fails() -> None:
        raise ExceptionGroup("nursery", [ConfigError("x"), KeyError("bug")])

    with pytest.raises(ExceptionGroup):
        main.guarded(fails)


def test_addresses_of_mgmtd(tmp_path: Path) -> None:
    assert main.addresses(tmp_path, "tcp://a:1, tcp://b:2") == ("tcp://a:1", "tcp://b:2")
    with pytest.raises(ConfigError, match="--mgmtd: expected addresses such as"):
        main.addresses(tmp_path, "localhost")
    with pytest.raises(ConfigError, match="no fs3 data here; give --data or --mgmtd"):
        main.addresses(tmp_path / "absent", None)


def test_a_reader_that_went_away_stops_nothing() -> None:
    words = "from fs3.cli.main import console, say; say('one'); console().print('two'); say('three'); import os; os._exit(7)"
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 7, process.stderr.read().decode()
