"""Configuration: values, sizes, durations, and errors that say what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3 import config
from fs3.config import load, option
from fs3.errors import ConfigError


@dataclass(frozen=True)
class Example:
    data: str = option(help="folder")
    listen: str = option("tcp://127.0.0.1:0", help="address")
    mgmtd: tuple[str, ...] = option(("tcp://127.0.0.1:7000",), help="management")
    cache: int = option(1 << 20, help="cache", unit="bytes", at_least=1 << 16)
    lease_ms: int = option(10_000, help="lease", unit="ms")
    ratio: float = option(0.5, help="share", at_least=0, at_most=1)
    sync: bool = option(False, help="sync")
    level: str = option("info", help="level", choices=("info", "debug"))

    def __post_init__(self) -> None:
        if self.data == "/":
            raise ValueError("key 'data': expected a folder of its own")


def write(folder: Path, text: str) -> Path:
    path = folder / "example.toml"
    path.write_text(text)
    return path


def test_defaults_file_and_flags_in_rising_rank(tmp_path: Path) -> None:
    path = write(tmp_path, 'data = "d"\ncache = "2MiB"\nlease_ms = 5\nratio = 1\nmgmtd = ["a", "b"]\n')
    loaded = load(Example, path, {"lease_ms": "3s", "sync": "true"})
    assert loaded == Example("d", mgmtd=("a", "b"), cache=2 << 20, lease_ms=3000, ratio=1.0, sync=True)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ('data = "d"\nlisten_on = "x"', {}, "unknown key 'listen_on', did you mean 'listen'?"),
        ('data = "d"\nzzz = 1', {}, "unknown key 'zzz', known keys are: data, listen,"),
        ("", {}, "key 'data' is missing, expected a text (or the flag --data)"),
        ("data = 1", {}, "key 'data': expected a text, found 1"),
        ('data = "d"\ncache = "1 MB"', {}, "key 'cache': expected a size such as 65536 or \"64KiB\", at least 64KiB"),
        ('data = "d"\ncache = 1', {}, "at least 64KiB, found 1"),
        ('data = "d"\ncache = true', {}, "key 'cache': expected a size"),
        ('data = "d"\nlease_ms = 1.5', {}, "key 'lease_ms': expected a duration"),
        ('data = "d"\nratio = 2', {}, "key 'ratio': expected a number, at least 0, at most 1, found 2.0"),
        ('data = "d"\nmgmtd = "a"', {}, "key 'mgmtd': expected a list of texts, found 'a'"),
        ('data = "d"\nlevel = "loud"', {}, "key 'level': expected one of info, debug, found 'loud'"),
        ('data = "d"\nsync = 1', {}, "key 'sync': expected true or false, found 1"),
        ('data = "d', {}, "not valid TOML"),
        ('data = "/"', {}, "key 'data': expected a folder of its own"),
    ],
)
def test_errors_name_file_key_and_what_was_expected(
    tmp_path: Path, text: str, overrides: dict[str, str], expected: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(Example, path, overrides)
    assert caught.value.message.startswith(f"{path}: ")
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


def test_a_bad_flag_is_named_as_a_flag() -> None:
    with pytest.raises(ConfigError, match=r"--lease-ms: key 'lease_ms': expected a duration .* found 'soon'"):
        load(Example, None, {"data": "d", "lease_ms": "soon"})


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(Example, tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("65536", 65536), ("64KiB", 65536), ("1.5 MiB", 3 << 19), ("2gib", 2 << 30), ("7B", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert config.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1MB", "-1", "1.0000001KiB", "KiB", "1 2", "٣x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        config.parse_size(text)


@given(st.integers(0, 1 << 60))
def test_sizes_survive_formatting(size: int) -> None:
    assert config.parse_size(config.format_size(size)) == size


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t != "/"),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    st.integers(1 << 16, 1 << 40),
    st.floats(0, 1),
    st.booleans(),
)
def test_what_is_dumped_loads_again(
    tmp_path_factory: pytest.TempPathFactory, data: str, mgmtd: list[str], cache: int, ratio: float, sync: bool
) -> None:
    example = Example(data, mgmtd=tuple(mgmtd), cache=cache, ratio=ratio, sync=sync)
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(config.dump(example), encoding="utf-8", newline="")
    assert load(Example, path, {}) == example
