"""Runs pjdfstest, the POSIX test suite of FreeBSD, on a mount of its own: `make pjdfstest PJDFSTEST=DIR`.

The project keeps no copy of it; DIR is a checkout of https://github.com/pjd/pjdfstest. Needs root, since the suite switches
users, and a C compiler. Exit code 0: nothing failed, or it cannot be run here, for a reason that is printed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.process import harness

FILE_TIMEOUT_S = 300
CALLS = "FACCESSAT FCHMODAT FCHOWNAT FSTATAT LINKAT MKDIRAT MKFIFOAT MKNODAT OPENAT READLINKAT RENAMEAT SYMLINKAT UTIMENSAT"
PARTS = "SYS_SYSMACROS_H STRUCT_STAT_ST_ATIM STRUCT_STAT_ST_CTIM STRUCT_STAT_ST_MTIM"

_LINE = re.compile(r"(not )?ok (\d+)(.*)")
_EXPECTED = re.compile("# todo", re.IGNORECASE)
_PLAN = re.compile(r"^1\.\.(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one file of the suite came to. todo: failures that the suite itself expects on Linux."""

    name: str
    planned: int
    passed: int
    todo: int
    failures: tuple[str, ...]


def parsed(name: str, output: str) -> Outcome:
    """The outcome from the file's output in TAP. A test that was planned and told nothing of has failed."""
    plan = _PLAN.search(output)
    planned = int(plan[1]) if plan else 0
    passed = todo = 0
    failures = [] if plan else [f"{name}: no plan; it wrote {output[-200:]!r}"]
    for line in output.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        if found[1] is None:
            passed += 1
        elif _EXPECTED.search(found[3]):
            todo += 1
        else:
            failures.append(f"{name}: {line}")
    missing = planned - passed - todo - len(failures)
    if plan and missing > 0:
        failures.append(f"{name}: {missing} of {planned} tests told nothing")
    return Outcome(name, planned, passed, todo, tuple(failures))


def why_not(suite: Path | None) -> str | None:
    """Why the suite cannot be run here; None where it can."""
    if suite is None or not (suite / "pjdfstest.c").is_file():
        return "no copy of it: say PJDFSTEST=DIR, a checkout of https://github.com/pjd/pjdfstest"
    if os.geteuid() != 0:
        return "it switches users, which only root may"
    if shutil.which("cc") is None:
        return "no C compiler"
    return harness.why_not()


def build(suite: Path, into: Path) -> None:
    """Copy the suite's tests and compile its program, for Linux. Of the features that depend on the file system, those
    of EXT4 are asked for, which has the most."""
    shutil.copytree(suite / "tests", into / "tests")
    with (into / "tests" / "conf").open("a") as conf:
        conf.write("\nfs=EXT4\n")
    (into / "config.h").touch()
    defines = [f"-DHAVE_{word}" for word in (CALLS + " " + PARTS).split()]
    source, program = suite / "pjdfstest.c", into / "pjdfstest"
    subprocess.run(["cc", "-D_GNU_SOURCE", *defines, f"-I{into}", "-o", program, source], check=True)


def run_file(file: Path, suite: Path, mount: Path) -> Outcome:
    name = str(file.relative_to(suite / "tests"))
    folder = Path(tempfile.mkdtemp(dir=mount))
    folder.chmod(0o755)
    try:
        done = subprocess.run(["sh", file], cwd=folder, capture_output=True, timeout=FILE_TIMEOUT_S, check=False)
        output = done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace") + f"\nnot ok 0 took more than {FILE_TIMEOUT_S} s\n"
    shutil.rmtree(folder, ignore_errors=True)
    return parsed(name, output)


def run_all(suite: Path, mount: Path, chosen: str, jobs: int) -> list[Outcome]:
    """Every file whose name contains `chosen`, several at a time: many of them sleep."""
    files = sorted((suite / "tests").rglob("*.t"))
    files = [file for file in files if chosen in str(file)]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda file: run_file(file, suite, mount), files))


def told(outcomes: list[Outcome], took_s: float) -> int:
    """Print the summary; returns how many tests failed."""
    failures = [line for outcome in outcomes for line in outcome.failures]
    for line in failures:
        print(line)
    planned, passed, todo = (sum(getattr(each, part) for each in outcomes) for part in ("planned", "passed", "todo"))
    expected = f", {todo} that the suite expects to fail on Linux" if todo else ""
    print(f"{len(outcomes)} files, {planned} tests: {passed} passed, {len(failures)} failed{expected}; {took_s:.0f} s")
    return len(failures)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run pjdfstest on a mount.")
    parser.add_argument("--suite", type=Path, metavar="DIR", help="a checkout of pjdfstest")
    parser.add_argument("--on", type=Path, metavar="DIR", help="run it in this folder instead of a mount made for it")
    parser.add_argument("--only", default="", metavar="TEXT", help="only files whose path contains this")
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="files at a time")
    options = parser.parse_args()
    reason = why_not(options.suite)
    if reason is not None:
        print(f"pjdfstest is skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="fs3-pjdfstest-") as folder:
        built = Path(folder)
        built.chmod(0o755)
        build(options.suite, built)
        start = time.monotonic()
        if options.on is not None:
            outcomes = run_all(built, options.on, options.only, options.jobs)
        else:
            with harness.cluster() as made:
                outcomes = run_all(built, made.mount, options.only, options.jobs)
        return 1 if told(outcomes, time.monotonic() - start) else 0


if __name__ == "__main__":
    sys.exit(main())
