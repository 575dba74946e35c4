"""The house rules that a program can check, over every tracked file."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("fs3", "mgmtd", "meta", "storage", "fuse")
DAEMONS = ("mgmtd", "meta", "storage", "fuse")

# Installed as a top-level package, which reaches the library only by its name.
ELSEWHERE = "fs3/hf3fs_fuse/"

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 72

PURE = {
    "fs3": (
        "ids.py",
        "quick.py",
        "errors.py",
        "layout.py",
        "routing.py",
        "checksum.py",
        "metrics.py",
        "rings.py",
        "cli/rates.py",
        "cli/bench/plan.py",
        "wire/*.py",
        "api/*.py",
        "client/selection.py",
        "placement/*.py",
        "transport/rdma_flow.py",
        "transport/rdma_hello.py",
        "transport/rdma_port.py",
        "transport/slots.py",
    ),
    "mgmtd": (
        "chains.py",
        "cluster.py",
        "configs.py",
        "deltas.py",
        "draft.py",
        "lease.py",
        "moves.py",
        "operations.py",
        "registration.py",
        "renewal.py",
        "state.py",
        "submit.py",
        "tables.py",
    ),
    "meta": ("schema.py", "acl.py", "posix_acl.py", "fsck.py", "shares.py"),
    "storage": (
        "replica.py",
        "channels.py",
        "targets.py",
        "allocator.py",
        "blocks.py",
        "index.py",
        "records.py",
        "resync.py",
    ),
    "fuse": ("handles.py", "cache.py", "streams.py", "walks.py"),
}
WORLD = {"trio", "time", "random", "os", "socket", "threading", "subprocess", "asyncio"}

# Adapters to the world, and programs: only these may read clocks, make random numbers, open sockets or print.
ADAPTERS = {"fs3/env.py", "fs3/log.py", "fs3/daemon.py", "fs3/usrbio.py", "storage/disk_linux.py", "fuse/ops.py"}
ADAPTER_FOLDERS = ("fs3/transport/", "fs3/kv/", "fs3/cli/", "fs3/testing/")


def tracked() -> list[str]:
    """Every file in git's index that is still there; all files where there is no git."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


def sources(*, tests: bool = False) -> Iterator[tuple[str, str, ast.Module]]:
    """Name, text and syntax tree of each Python file of the packages, and of the tests if asked for."""
    for name in tracked():
        if name.endswith(".py") and name.startswith((*(p + "/" for p in PACKAGES), *(("tests/",) if tests else ()))):
            text = (REPOSITORY / name).read_text(encoding="utf-8")
            yield name, text, ast.parse(text, name)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def test_files_are_short() -> None:
    long = [
        f"{name}: {text.count(chr(10))} lines" for name, text, _ in sources(tests=True) if text.count("\n") > FILE_LINES_MAX
    ]
    assert not long, long


def test_functions_are_short() -> None:
    long = []
    for name, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert not long, long


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, _, tree in sources() if tree.body and ast.get_docstring(tree) is None]
    assert not silent, silent


def test_library_code_does_not_print() -> None:
    printing = [
        f"{name}:{node.lineno}"
        for name, _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing, printing


def test_pure_modules_import_nothing_of_the_world() -> None:
    patterns = [f"{package}/{pattern}" for package, found in PURE.items() for pattern in found]
    bad = [
        f"{name}:{line} imports {module}"
        for name, _, tree in sources()
        if any(Path(name).match(pattern) for pattern in patterns)
        for line, module in imported(tree)
        if module.partition(".")[0] in WORLD
    ]
    assert not bad, bad


def test_only_adapters_touch_clocks_chance_and_sockets() -> None:
    bad = [
        f"{name}:{line} imports {module}"
        for name, _, tree in sources()
        if name not in ADAPTERS and not name.startswith(ADAPTER_FOLDERS)
        for line, module in imported(tree)
        if module.partition(".")[0] in {"time", "random", "secrets", "asyncio"}
    ]
    assert not bad, bad


def test_daemons_import_siblings_relatively_and_nobody_elses() -> None:
    bad = []
    for name, _, tree in sources():
        daemon = name.partition("/")[0]
        for line, module in imported(tree):
            parts = module.split(".")
            if parts[0] in DAEMONS or (parts[0] == "fs3" and len(parts) > 1 and parts[1] in DAEMONS):
                bad.append(f"{name}:{line} imports {module} absolutely")
            if daemon == "fs3" and parts[0] == "fs3" and not name.startswith(ELSEWHERE):
                bad.append(f"{name}:{line} imports {module}, inside fs3 imports are relative")
    assert not bad, bad


def test_nothing_is_swallowed_silently() -> None:
    """`except Exception: pass` hides bugs; a narrow exception may be passed over."""
    bad = []
    for name, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                broad = node.type is None or (
                    isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                )
                if broad:
                    bad.append(f"{name}:{node.lineno}")
    assert not bad, bad


# Spelled in pieces, so that this file does not break its own rules.
MARKERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(wo" + r"rk|tmp/v|ro" + r"ot|home/\w+)(/|\b)")


def test_no_promises_and_no_paths_of_one_machine() -> None:
    bad = []
    for name in tracked():
        try:
            text = (REPOSITORY / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            for pattern in (MARKERS, MACHINE_PATHS):
                found = pattern.search(line)
                if found:
                    bad.append(f"{name}:{number}: {found.group()}")
    assert not bad, bad


def test_pure_lists_name_files_that_exist() -> None:
    for package, patterns in PURE.items():
        for pattern in patterns:
            assert list((REPOSITORY / package).glob(pattern)), f"{package}/{pattern} matches nothing"
