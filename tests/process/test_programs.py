"""Programs that people run, on a real mount: what they leave there is what they would leave on a local disk."""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import stat
import sysconfig
from pathlib import Path

import pytest

from tests.process.harness import REPOSITORY, needs_program, run

pytestmark = pytest.mark.process

LIBRARY_PARTS = (
    "asyncio",
    "collections",
    "concurrent",
    "ctypes",
    "email",
    "encodings",
    "http",
    "idlelib",
    "json",
    "lib2to3",
)


def attributes(root: Path) -> dict[str, tuple[object, ...]]:
    """Owner, mode, mtime and so on of all that is below a folder, by relative path."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            seen = path.lstat()
            size = seen.st_size if not stat.S_ISDIR(seen.st_mode) else None
            found[str(path.relative_to(root))] = (
                stat.filemode(seen.st_mode),
                seen.st_uid,
                seen.st_gid,
                size,
                seen.st_mtime_ns,
            )
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of some thousand files: Python's standard library, with symbolic links, odd modes and names added."""
    source = Path(sysconfig.get_path("stdlib"))
    tree = tmp_path_factory.mktemp("library") / "tree"
    tree.mkdir()
    for part in LIBRARY_PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, tree / part, symlinks=True)
    for path in source.glob("*.py"):
        shutil.copy2(path, tree)
    odd = tree / "odd"
    odd.mkdir()
    (odd / "empty").touch()
    (odd / "ünïcode näme with spaces").write_text("x")
    (odd / ("n" * 255)).write_text("long name")
    (odd / "link").symlink_to("../json/decoder.py")
    (odd / "dangling").symlink_to("/nowhere/at/all")
    (odd / "private").write_text("secret")
    (odd / "private").chmod(0o600)
    (odd / "sticky").mkdir()
    (odd / "sticky").chmod(0o1777)
    (odd / "twin-a").write_text("one inode, two names")
    os.link(odd / "twin-a", odd / "twin-b")
    if os.geteuid() == 0:
        os.chown(odd / "private", 12_345, 54_321)
        os.chown(odd / "link", 12_345, 54_321, follow_symlinks=False)
    os.utime(odd / "empty", ns=(1_000_000_000_123_456_789, 1_111_111_111_987_654_321))
    return tree


def test_cp_a_of_the_standard_library(mounted: Path, library: Path) -> None:
    copy = mounted / "copy"
    run(needs_program("cp"), "-a", library, copy)
    assert run(needs_program("diff"), "-r", "--no-dereference", library, copy) == ""
    assert attributes(copy) == attributes(library)
    assert len(attributes(copy)) > 500  # Debian's packages leave some parts out
    twins = [(copy / "odd" / name).stat() for name in ("twin-a", "twin-b")]
    assert twins[0].st_ino == twins[1].st_ino and twins[0].st_nlink == 2


def test_cp_a_from_the_mount_and_back(mounted: Path, library: Path, tmp_path: Path) -> None:
    run(needs_program("cp"), "-a", library / "odd", mounted / "odd")
    run(needs_program("cp"), "-a", mounted / "odd", tmp_path / "odd")
    assert attributes(tmp_path / "odd") == attributes(library / "odd")


def test_git(mounted: Path, tmp_path: Path) -> None:
    git = needs_program("git")
    if not (REPOSITORY / ".git").exists():
        pytest.skip("the tests do not run in a git clone")
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "HOME": str(tmp_path)}
    clone = mounted / "clone"
    safe = ["-c", "safe.directory=*"]
    run(git, *safe, "clone", "--no-local", "--quiet", REPOSITORY, clone, env=env)
    assert run(git, "-C", clone, "status", "--porcelain", env=env) == ""
    run(git, "-C", clone, "fsck", "--full", "--strict", env=env)
    (clone / "README.md").write_text("changed\n")
    (clone / "new file").write_text("new\n")
    run(git, "-C", clone, "add", "--all", env=env)
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    run(git, "-C", clone, *who, "commit", "--quiet", "--message", "Change something", env=env)
    assert run(git, "-C", clone, "status", "--porcelain", env=env) == ""
    run(git, "-C", clone, "gc", "--quiet", env=env)
    run(git, "-C", clone, "fsck", "--full", "--strict", env=env)


def test_tar(mounted: Path, library: Path) -> None:
    tar = needs_program("tar")
    parts = [name for name in ("email", "json", "odd") if (library / name).is_dir()]
    archive = mounted / "library.tar"
    run(tar, "-C", library, "-cf", archive, *parts)
    unpacked = mounted / "unpacked"
    unpacked.mkdir()
    run(tar, "-C", unpacked, "--numeric-owner", "-xpf", archive)
    for part in parts:
        # GNU format keeps whole seconds.
        assert whole_seconds(unpacked / part) == whole_seconds(library / part)
        assert run(needs_program("diff"), "-r", "--no-dereference", library / part, unpacked / part) == ""


def whole_seconds(root: Path) -> dict[str, tuple[object, ...]]:
    """The attributes with times cut to seconds."""
    return {name: (*rest[:-1], int(str(rest[-1])) // 10**9) for name, rest in attributes(root).items()}


def test_rsync(mounted: Path, library: Path) -> None:
    rsync = needs_program("rsync")
    copy = mounted / "copy"
    run(rsync, "-aH", f"{library}/odd/", f"{copy}/")
    assert attributes(copy) == attributes(library / "odd")
    assert run(rsync, "-aH", "--itemize-changes", "--dry-run", f"{library}/odd/", f"{copy}/") == "", (
        "a second run finds work"
    )
    (copy / "private").write_text("changed")
    (copy / "stray").write_text("not in the source")
    run(rsync, "-aH", "--checksum", "--delete", f"{library}/odd/", f"{copy}/")
    assert attributes(copy) == attributes(library / "odd")


MAKEFILE = """
objects = $(addsuffix .o, main $(addprefix part, $(shell seq 12)))
program: libparts.a main.o
	$(CC) -o $@ main.o -L. -lparts
libparts.a: $(filter-out main.o, $(objects))
	$(AR) rcs $@ $^
%.o: %.c parts.h
	$(CC) -c -o $@ $<
"""


def test_make(mounted: Path) -> None:
    make, _ = needs_program("make"), needs_program("cc")
    (mounted / "Makefile").write_text(MAKEFILE)
    parts = range(1, 13)
    (mounted / "parts.h").write_text("".join(f"int part{n}(void);\n" for n in parts))
    for n in parts:
        (mounted / f"part{n}.c").write_text(f'#include "parts.h"\nint part{n}(void) {{ return {n}; }}\n')
    total = " + ".join(f"part{n}()" for n in parts)
    source = f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    (mounted / "main.c").write_text(source)
    run(make, "-j4", "-C", mounted)
    assert run(mounted / "program") == "78\n"
    run(make, "-j4", "-C", mounted, "--question")
    (mounted / "part7.c").write_text('#include "parts.h"\nint part7(void) { return 100; }\n')
    again = run(make, "-j4", "-C", mounted)
    assert again.count("cc -c") == 1 and "part7.o" in again, "time stamps tell what is to be done again"
    assert run(mounted / "program") == "171\n"


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_sqlite_with_a_rollback_journal(mounted: Path, journal: str) -> None:
    path = mounted / "data.sqlite"
    database = sqlite3.connect(path, timeout=10)
    try:
        assert database.execute(f"pragma journal_mode = {journal}").fetchone() == (journal,)
        database.execute("create table numbers (n integer primary key, square integer, text text)")
        for start in range(0, 2000, 200):
            with database:
                rows = [(n, n * n, "x" * (n % 500)) for n in range(start, start + 200)]
                database.executemany("insert into numbers values (?, ?, ?)", rows)
        with pytest.raises(RuntimeError, match="roll back"), database:
            database.execute("delete from numbers")
            raise RuntimeError("roll back")
        with database:
            database.execute("update numbers set square = -square where n % 2")
        database.execute("vacuum")
    finally:
        database.close()
    second = sqlite3.connect(path, timeout=10)
    try:
        assert second.execute("pragma integrity_check").fetchone() == ("ok",)
        expected = sum(-n * n if n % 2 else n * n for n in range(2000))
        assert second.execute("select count(*), sum(square) from numbers").fetchone() == (2000, expected)
    finally:
        second.close()


def test_mmap_readers(mounted: Path) -> None:
    path = mounted / "mapped.bin"
    data = os.urandom(3 * (1 << 20) + 12_345)
    path.write_bytes(data)
    with path.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert len(view) == len(data)
        assert view[:] == data
        assert view[1_048_570:1_048_590] == data[1_048_570:1_048_590]
        assert view.find(data[2_000_000:2_000_050]) == 2_000_000
    with path.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY) as private:
        private[0:4] = b"mine"
        assert private[0:4] == b"mine"
    assert path.read_bytes() == data, "a private mapping changed the file"


def test_mmap_shared_write(mounted: Path) -> None:
    path = mounted / "mapped.bin"
    data = bytearray(os.urandom(2 * (1 << 20) + 5000))
    path.write_bytes(data)
    with path.open("r+b") as target, mmap.mmap(target.fileno(), 0) as view:
        for place in (0, 4095, 1_048_570, len(data) - 10):
            view[place : place + 10] = data[place : place + 10] = b"0123456789"
        view.flush()
    assert path.read_bytes() == data


def test_a_file_with_holes(mounted: Path) -> None:
    path = mounted / "sparse"
    with path.open("wb") as out:
        out.seek(5 << 30)
        out.write(b"end")
    assert path.stat().st_size == (5 << 30) + 3
    with path.open("rb") as source:
        assert source.read(1 << 20) == bytes(1 << 20)
        source.seek((5 << 30) - 4)
        assert source.read() == b"\0\0\0\0end"


def test_an_open_file_stays_readable_after_its_unlink(mounted: Path) -> None:
    path = mounted / "gone"
    path.write_bytes(b"still here" * 1000)
    with path.open("rb") as source:
        path.unlink()
        assert not path.exists()
        assert source.read() == b"still here" * 1000


def test_appends_of_many_processes_are_neither_lost_nor_torn(mounted: Path) -> None:
    path = mounted / "log"
    program = "import os, sys; f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)\n"
    program += "for n in range(100): os.write(f, f'{sys.argv[2]} {n} {\"x\" * 50}\\n'.encode())"
    shell = " & ".join(f'"$0" -c "$1" "{path}" {number}' for number in range(4)) + " & wait"
    run("sh", "-c", shell, os.sys.executable, program)  # type: ignore[attr-defined]
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{number} {n} {'x' * 50}" for number in range(4) for n in range(100))


def test_df_knows_the_capacity(mounted: Path) -> None:
    found = os.statvfs(mounted)
    assert found.f_blocks > 0 and 0 < found.f_bavail <= found.f_blocks
    assert found.f_namemax == 255
