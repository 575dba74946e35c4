"""Commands that documents, messages and help texts name, in backticks, exist, with their options."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fs3.cli.main import cli

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
SOURCES = [path for folder in ("fs3", "mgmtd", "meta", "storage", "fuse") for path in (REPOSITORY / folder).rglob("*.py")]
FILES = sorted([*DOCUMENTS, *SOURCES])


def named(text: str) -> Iterator[list[str]]:
    """The words of each command; a literal of Python may go on in the next line."""
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    for command in re.findall(r"`fs3\s([^`]*)`", text):
        yield command.split()


def choices(words: list[str]) -> Iterator[list[str]]:
    """`node list|show` is two commands."""
    yield from (list(one) for one in itertools.product(*[word.split("|") for word in words]))


def problem(words: list[str]) -> str | None:
    """Why a command cannot be; the first of its words lead to it, the others are arguments."""
    found: click.Command = cli
    while isinstance(found, click.Group):
        if not words or not re.match(r"[a-z]", words[0]):
            return None  # a group by itself, or a placeholder
        name = words.pop(0).rstrip(",.")
        if name not in found.commands:
            return f"no command {name!r} in {found.name!r}"
        found = found.commands[name]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    unknown = {word.partition("=")[0].rstrip(",.") for word in words if re.match(r"--[a-z]", word)} - known
    return f"{found.name}: no option {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("path", [path for path in FILES if "`fs3 " in path.read_text()], ids=lambda path: path.name)
def test_commands_that_are_named_exist(path: Path) -> None:
    each = [one for words in named(path.read_text()) for one in choices(words)]
    assert not [(" ".join(words), why) for words in each if (why := problem(list(words))) is not None]


def test_what_does_not_exist_is_found() -> None:
    assert problem(["admin", "node", "dance"]) == "no command 'dance' in 'node'"
    assert problem(["status", "--loudly"]) == "status: no option --loudly"
    assert problem(["admin", "drain", "101", "--yes"]) is None
