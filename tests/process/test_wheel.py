"""The wheel: built, installed into a clean environment, every entry point runs, every module can be imported."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ("fs3", "fs3-mgmtd", "fs3-meta", "fs3-storage", "fs3-mount")
DAEMONS = ("mgmtd", "meta", "storage", "fuse")

pytestmark = pytest.mark.process

IMPORT_ALL = """
import importlib, pkgutil, fs3, hf3fs_fuse
found = [pkgutil.walk_packages(package.__path__, f"{package.__name__}.") for package in (fs3, hf3fs_fuse)]
names = sorted(info.name for each in found for info in each)
# These need torch or an inference engine, and have tests of their own.
others = tuple(f"fs3.integrations.{name}" for name in ("torch", "lmcache", "sglang"))
for name in names:
    if not name.startswith(others):
        importlib.import_module(name)
print(" ".join(names))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel; its dependencies are those of the tests' environment."""
    home = tmp_path_factory.mktemp("wheel")
    tree = home / "tree"
    tree.mkdir()
    # From a copy of what git would ship, since a build leaves folders in its tree.
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    for name in listed.split("\0"):
        if name.startswith((*(d + "/" for d in DAEMONS), "fs3/")) or name in (
            "setup.cfg",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            source = REPOSITORY / name
            if source.is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_bytes(source.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", home, tree, cwd=home)
    (wheel,) = home.glob("fs3-*.whl")
    environment = home / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    paths = {
        name: sysconfig.get_path(name, vars={"base": str(environment), "platbase": str(environment)})
        for name in ("purelib", "scripts")
    }
    run(*pip, "--python", environment / "bin" / "python", "install", "--no-deps", "--no-index", wheel, cwd=home)
    # A .pth file makes the dependencies visible; whatever of fs3 itself lies there comes second.
    (Path(paths["purelib"]) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(paths["scripts"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(installed: Path, command: str, tmp_path: Path) -> None:
    assert "usage" in run(installed / command, "--help", cwd=tmp_path).lower()
    assert run(installed / command, "--version", cwd=tmp_path).split()[0] == command


def test_fsspec_finds_it(installed: Path, tmp_path: Path) -> None:
    program = "import fsspec; print(fsspec.get_filesystem_class('fs3').__module__)"
    assert run(installed / "python", "-c", program, cwd=tmp_path) == "fs3.integrations.fsspec\n"


def test_every_module_is_there_and_can_be_imported(installed: Path, tmp_path: Path) -> None:
    names = run(installed / "python", "-c", IMPORT_ALL, cwd=tmp_path).split()
    expected = []
    for package in ("fs3", *DAEMONS):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            if parts[:2] == ("fs3", "hf3fs_fuse"):  # installed beside fs3
                expected.append(".".join(parts[1:]))
                continue
            dotted = ".".join(parts if package == "fs3" else ("fs3", *parts)).removesuffix(".__init__")
            expected.append(dotted)
    assert sorted(names) == sorted(set(expected) - {"fs3", "hf3fs_fuse.__init__"})


def test_modules_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = "import fs3.storage, hf3fs_fuse.io; print(fs3.storage.__file__, hf3fs_fuse.io.__file__, sep='\\n')"
    for where in run(installed / "python", "-c", program, cwd=tmp_path).split():
        assert Path(where).is_relative_to(installed.parent)
