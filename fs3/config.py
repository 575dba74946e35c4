"""Configuration of a daemon: a frozen dataclass, filled from one TOML file and from flags.

Each field has a default (or is required) and metadata made by `option`. Types: int, float, bool, str, tuple[str, ...].
An int with unit "bytes" also takes "64KiB", one with unit "ms" also "500ms", "3s" or "2min". A value that does not fit is
a ConfigError of one line: the file or flag, the key, what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

C = TypeVar("C")

_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION_UNITS_MS = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000}
_NUMBER_WITH_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")

_GIVEN = "_given"
"""Attribute of a loaded config: the keys that were set."""

_EXPECTED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple[str, ...]: "a list of texts",
}


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    unit: str = "",
    choices: Sequence[str] = (),
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field of a config class. unit: "", "bytes" or "ms". Bounds are inclusive. Without a default it must be given."""
    assert unit in ("", "bytes", "ms"), unit
    metadata = {"help": help, "unit": unit, "choices": tuple(choices), "at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One field of a config class, as needed to parse it and to explain it."""

    key: str
    type: Any
    default: Any
    help: str
    unit: str
    choices: tuple[str, ...]
    at_least: float | None
    at_most: float | None

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        text = _EXPECTED[self.type]
        if self.unit == "bytes":
            text = 'a size such as 65536 or "64KiB"'
        elif self.unit == "ms":
            text = 'a duration such as 500 (ms), "500ms" or "3s"'
        if self.at_least is not None:
            text += f", at least {show(self, self.at_least)}"
        if self.at_most is not None:
            text += f", at most {show(self, self.at_most)}"
        return text


def options(cls: type[Any]) -> dict[str, Option]:
    """The fields of a config class by key, in order: its own before those that it inherits."""
    hints = typing.get_type_hints(cls)
    own = inspect.get_annotations(cls)
    found = {}
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name not in own):
        known = {key: field.metadata.get(key) for key in ("help", "unit", "at_least", "at_most")}
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert hints[field.name] in _EXPECTED, f"{cls.__name__}.{field.name}: unsupported type {hints[field.name]}"
        found[field.name] = Option(
            field.name,
            hints[field.name],
            default,
            known["help"] or "",
            known["unit"] or "",
            tuple(field.metadata.get("choices", ())),
            known["at_least"],
            known["at_most"],
        )
    return found


def load(cls: type[C], path: Path | None, overrides: Mapping[str, str]) -> C:
    """The configuration in the file (none: all defaults), with `overrides` (key -> text, as flags give it) above it.

    A ValueError that the class raises in __post_init__ ("key: what was expected") is reported as a ConfigError too.
    """
    known = options(cls)
    values: dict[str, Any] = {}
    source = "flags" if path is None else str(path)
    for key, value in (read_toml(path) if path is not None else {}).items():
        found = known.get(key)
        if found is None:
            raise ConfigError(f"{source}: unknown key '{key}'{nearest(key, list(known))}")
        values[key] = _from_toml(found, value, source)
    for key, text in overrides.items():
        values[key] = _from_text(known[key], text, flag(key))
    for key, entry in known.items():
        if entry.required and key not in values:
            raise ConfigError(f"{source}: key '{key}' is missing, expected {entry.expected()} (or the flag {flag(key)})")
    try:
        config = cls(**values)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    object.__setattr__(config, _GIVEN, frozenset(values))  # the classes are frozen
    return config


def given(config: Any) -> frozenset[str]:
    """The keys that were set, in the file or by flags. Of a config that was not loaded: those that have no default value."""
    found: frozenset[str] | None = getattr(config, _GIVEN, None)
    if found is None:
        known = options(type(config))
        found = frozenset(key for key, entry in known.items() if getattr(config, key) != entry.default)
    return found


def parse(option: Option, text: str, source: str) -> Any:
    """The value that a text stands for, as flags give it. source: where it comes from. Raises ConfigError."""
    return _from_text(option, text, source)


def flag(key: str) -> str:
    """The command line flag of a key."""
    return "--" + key.replace("_", "-")


def nearest(key: str, known: Sequence[str]) -> str:
    """The end of an error line: the known key that was probably meant, else all of them."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else f", known keys are: {', '.join(known)}"


def read_toml(path: Path) -> dict[str, Any]:
    """The top-level table of a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def parse_size(text: str) -> int:
    """Bytes of "64KiB", "1MiB", "65536". Raises ValueError."""
    return _with_unit(text, _SIZE_UNITS, 1)


def parse_duration_ms(text: str) -> int:
    """Milliseconds of "500ms", "3s", "2min", "1h", "500". Raises ValueError."""
    return _with_unit(text, _DURATION_UNITS_MS, 1)


def format_size(size: int) -> str:
    """The shortest exact text for a size in bytes: 1MiB, 1536KiB, 1000."""
    for unit, factor in reversed(_SIZE_UNITS.items()):
        if size and factor > 1 and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def format_duration(duration_ms: int) -> str:
    """The shortest exact text for a duration: 168h, 90s, 1500ms."""
    for unit, factor in reversed(_DURATION_UNITS_MS.items()):
        if duration_ms and duration_ms % factor == 0:
            return f"{duration_ms // factor}{unit}"
    return f"{duration_ms}ms"


def show(option: Option, value: Any) -> str:
    """A value as people write it on a command line."""
    if option.unit == "bytes":
        return format_size(int(value))
    if option.unit == "ms":
        return format_duration(int(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)


def to_toml(values: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """TOML text of a flat table, each key below its comment."""
    lines = []
    for key, value in values.items():
        comment = (comments or {}).get(key)
        if comment:
            lines.append(f"# {comment}")
        lines.append(f"{key} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def dump(config: Any) -> str:
    """The configuration as TOML with the help of each key, which `load` reads back."""
    known = options(type(config))
    return to_toml({key: getattr(config, key) for key in known}, {key: entry.help for key, entry in known.items()})


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are those of a basic TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + ", ".join(_toml_value(item) for item in value) + "]"


def _with_unit(text: str, units: Mapping[str, int], plain: int) -> int:
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    if match is None:
        raise ValueError(text)
    number, unit = match.groups()
    factor = plain if not unit else {name.lower(): value for name, value in units.items()}.get(unit.lower())
    if factor is None:
        raise ValueError(text)
    value = float(number) * factor if "." in number else int(number) * factor
    if value != int(value):
        raise ValueError(text)
    return int(value)


def _from_toml(option: Option, value: Any, source: str) -> Any:
    if option.type is int and option.unit and isinstance(value, str):
        return _from_text(option, value, source)
    if option.type is float and type(value) is int:
        value = float(value)
    if option.type == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _unexpected(option, value, source)
        return tuple(value)
    if type(value) is not option.type:
        raise _unexpected(option, value, source)
    return _checked(option, value, source)


def _from_text(option: Option, text: str, source: str) -> Any:
    try:
        value = _parse(option, text)
    except ValueError:
        raise _unexpected(option, text, source) from None
    return _checked(option, value, source)


def _parse(option: Option, text: str) -> Any:
    if option.unit == "bytes":
        return parse_size(text)
    if option.unit == "ms":
        return parse_duration_ms(text)
    if option.type is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _fail(text)
    if option.type == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return option.type(text)


def _fail(text: str) -> Any:
    raise ValueError(text)


def _checked(option: Option, value: Any, source: str) -> Any:
    low, high = option.at_least, option.at_most
    outside = (low is not None and value < low) or (high is not None and value > high)
    if outside or (option.choices and value not in option.choices):
        raise _unexpected(option, value, source)
    return value


def _unexpected(option: Option, value: Any, source: str) -> ConfigError:
    return ConfigError(f"{source}: key '{option.key}': expected {option.expected()}, found {value!r}")
