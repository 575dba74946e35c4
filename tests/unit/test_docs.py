"""The documents say what is: methods, commands and files that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fs3.api import admin, common, meta, meta_admin, meta_locks, mgmtd, packed, storage, storage_admin
from fs3.cli.main import cli
from fs3.config import options, show
from fs3.settings import KINDS
from fuse.daemon import MountConfig
from meta.daemon import MetaConfig
from mgmtd.daemon import MgmtdConfig
from storage.daemon import StorageConfig

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])


def test_the_table_of_methods_is_complete() -> None:
    text = (REPOSITORY / "docs" / "protocol.md").read_text()
    listed = {(int(number), name) for number, name in re.findall(r"^\| (\d+) \| ([a-z][\w.]+) \|", text, re.MULTILINE)}
    known = {
        (value.id, value.name)
        for module in (admin, common, meta, meta_admin, meta_locks, mgmtd, packed, storage, storage_admin)
        for value in vars(module).values()
        if isinstance(value, common.Method)
    }
    assert listed == known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:fs3|mgmtd|meta|storage|fuse|tests|docker|docs|scripts)/[\w./-]+)`", path.read_text()):
        assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_named_exist(path: Path) -> None:
    for command in re.findall(r"(?:^|[`\s])fs3 ([a-z]+)", path.read_text(), re.MULTILINE):
        assert command in cli.commands or command in PROSE, command


PROSE = {
    "is",
    "command",
    "are",
    "on",
    "into",
    "and",
    "has",
    "data",
    "package",
    "speaks",
    "needs",
    "in",
    "does",
    "keeps",
    "runs",
}


def test_the_tables_of_keys_are_complete() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    for title, cls in (
        ("fs3-mgmtd", MgmtdConfig),
        ("fs3-meta", MetaConfig),
        ("fs3-storage", StorageConfig),
        ("fs3-mount", MountConfig),
    ):
        (kind,) = [kind for kind in KINDS.values() if kind.program == title]
        section = re.search(rf"^### {title}$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
        assert section is not None, title
        rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| (yes)? \|", section.group(1), re.MULTILINE)
        expected = []
        for key, entry in options(cls).items():
            default = "required" if entry.required else show(entry, entry.default)
            expected.append((key, default, "yes" if key in kind.options() else ""))
        assert [(key, default.strip("` "), hot) for key, default, hot in rows] == expected, title
