"""Virtual environments of their own for inference engines, made when first asked for and used again.

Each is described by requirements/NAME.txt: pinned versions, installed without their dependencies, for an engine's whole tree
is many gigabytes of CUDA; the file names what the tested code truly imports on a CPU. A line `# shares NAME` lets an
environment use the packages of another: torch is installed once. `# needs N GB` bounds the disk. Nothing is compiled.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).with_name("requirements")
DRIVERS = Path(__file__).with_name("drivers")
INSTALL_TIMEOUT_S = 1200.0
RUN_TIMEOUT_S = 300.0
GB = 10**9


def home() -> Path:
    """Where the environments are."""
    return Path(os.environ["FS3_ENGINES"]).resolve()


class Unavailable(Exception):
    """The package cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An environment that is ready."""

    name: str
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def run(
        self,
        *words: str | Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        paths: tuple[Path, ...] = (),
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> str:
        """Runs the environment's Python with these words, which must succeed; returns what it printed.

        env: added to ours. paths: folders to import from besides the environment's.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths))} if paths else {}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **(env or {})}
        line = [str(self.python), *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd, env=environment)
        assert done.returncode == 0, f"{' '.join(line)}: exit {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
        print(done.stdout[-6000:])
        return done.stdout

    def drive(self, driver: str, *words: str | Path, **options: object) -> str:
        """Runs drivers/DRIVER."""
        return self.run(DRIVERS / driver, *words, **options)  # type: ignore[arg-type]


def needs(name: str) -> Engine:
    """The environment of that name; the test is skipped where it cannot be had."""
    try:
        return _ready(name)
    except Unavailable as why:
        pytest.skip(str(why))


@functools.cache
def _tried(name: str) -> Engine | Unavailable:
    try:
        return _made(name)
    except Unavailable as why:
        return why


def _ready(name: str) -> Engine:
    """Tried once in a process, whatever came out."""
    found = _tried(name)
    if isinstance(found, Unavailable):
        raise found
    return found


def _made(name: str) -> Engine:
    listed = REQUIREMENTS / f"{name}.txt"
    text = listed.read_text()
    shared = [_ready(other) for other in re.findall(r"^# shares (\S+)$", text, re.MULTILINE)]
    engine = Engine(name, home() / name)
    stamp = engine.folder / ".installed"
    wanted = hashlib.sha256("\0".join([sys.version, text, *(str(other.packages) for other in shared)]).encode()).hexdigest()
    home().mkdir(parents=True, exist_ok=True)
    with (home() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return engine
        shutil.rmtree(engine.folder, ignore_errors=True)
        _check_room(name, text)
        try:
            _install(engine, listed, shared)
        except BaseException:
            shutil.rmtree(engine.folder, ignore_errors=True)
            raise
        stamp.write_text(wanted)
    return engine


def _check_room(name: str, text: str) -> None:
    (needed_gb,) = re.findall(r"^# needs ([\d.]+) GB$", text, re.MULTILINE)
    free = shutil.disk_usage(home()).free
    if free < float(needed_gb) * GB:
        raise Unavailable(f"{name} takes {needed_gb} GB, and {home()} has {free / GB:.1f} GB free")


def _install(engine: Engine, listed: Path, shared: list[Engine]) -> None:
    print(f"installing {engine.name} into {engine.folder}")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(engine.folder)], check=True, timeout=INSTALL_TIMEOUT_S
    )
    (engine.packages / "shared.pth").write_text("".join(f"{other.packages}\n" for other in shared))
    options = (
        "--no-deps",
        "--only-binary=:all:",
        "--no-compile",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--quiet",
    )
    line = [sys.executable, "-m", "pip", "--python", str(engine.python), "install", *options, "-r", str(listed)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{engine.name} was not installed within {INSTALL_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        hint = (
            " (PyPI's torch is a CUDA build: name an index of CPU builds, as PIP_EXTRA_INDEX_URL)"
            if engine.name == "torch"
            else ""
        )
        raise Unavailable(f"{engine.name} cannot be installed here: {' '.join(errors[-1:])[:300]}{hint}")


def needs_source(package: str, folder: str) -> Path:
    """A folder of the source distribution of NAME==VERSION, fetched once; the test is skipped where it cannot be had."""
    kept = home() / f"{package}-source"
    if not (kept / folder).exists():
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home()) as work:
            # pip cannot fetch a source distribution without preparing to build it. Whether that works is all the same: what
            # it unpacked for that stays.
            options = ("--no-deps", "--no-binary=:all:", "--no-build-isolation", "--no-clean", "--no-cache-dir")
            line = [sys.executable, "-m", "pip", "download", *options, "-d", work, package]
            env = {**os.environ, "TMPDIR": work}
            done = subprocess.run(line, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False, env=env)
            found = [path for path in Path(work).glob(f"*/*/{folder}") if path.is_dir()]
            if not found:
                pytest.skip(f"no source distribution of {package} can be had: {done.stderr.strip()[-300:]}")
            shutil.copytree(found[0], kept / folder)
    return kept / folder
