"""The import contracts of setup.cfg hold, and each of them would notice a violation."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("fs3", "mgmtd", "meta", "storage", "fuse")

PLANTED = {
    "the library's layers": ("fs3/ids.py", "from . import layout"),
    "a daemon never imports another": ("storage/read.py", "import meta.schema"),
    "the library never imports a daemon": ("fs3/client/mgmtd.py", "import mgmtd.cluster"),
    "pure modules import neither trio nor the world": ("storage/replica.py", "import time"),
    "only fuse.ops imports pyfuse3": ("fuse/fs.py", "import pyfuse3"),
    "only fs3.transport.rdma imports pyverbs": ("fs3/transport/rdma_flow.py", "import pyverbs"),
    "only the command line imports click and rich": ("fs3/rpc/client.py", "import click"),
}


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    program = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    return subprocess.run(program, cwd=tree, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages and their contracts."""
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "setup.cfg", tmp_path)
    return tmp_path


def verdicts(output: str) -> dict[str, str]:
    found = {}
    for line in output.splitlines():
        for contract in PLANTED:
            if line.startswith(contract + " "):
                found[contract] = line.removeprefix(contract).split()[0]
    return found


def test_every_contract_is_planted_against() -> None:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    names = {config[section]["name"] for section in config.sections() if section.startswith("importlinter:contract:")}
    assert names == set(PLANTED)


def test_the_contracts_hold(tree: Path) -> None:
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(done.stdout) == dict.fromkeys(PLANTED, "KEPT")


def test_each_planted_violation_is_noticed(tree: Path) -> None:
    for name, line in PLANTED.values():
        path = tree / name
        path.write_text(
            path.read_text().replace("from __future__ import annotations\n", f"from __future__ import annotations\n{line}\n")
        )
        assert line in path.read_text(), name
    done = lint(tree)
    assert done.returncode != 0
    assert verdicts(done.stdout) == dict.fromkeys(PLANTED, "BROKEN"), done.stdout
