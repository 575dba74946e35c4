"""A mount and a local folder, operation by operation: the same results, the same errno, and at the end the same tree."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.posix import operations as ops

pytestmark = pytest.mark.process

EXAMPLES = int(os.environ.get("FS3_POSIX_EXAMPLES", "60"))
STEPS = int(os.environ.get("FS3_POSIX_STEPS", "60"))

DEPTH = "1/2/3/4/5/6"
"""Where the roots lie in their temporary folders: symbolic links that lead up must not lead out."""

MIB = 1 << 20
names = st.sampled_from(["a", "b", "c", "d"])
new_paths = st.one_of(names, st.lists(names, min_size=1, max_size=3).map("/".join))
paths = st.one_of(new_paths, st.integers(0, 99), st.integers(100, 199), st.integers(200, 299))
"""A path, or a number that chooses one that exists (see Machine.path): most steps should meet something."""
slots = st.integers(0, 3)
modes = st.sampled_from([0o644, 0o600, 0o755, 0o700, 0o444, 0o777, 0o1777])
borders = st.sampled_from([0, 0, 0, 1, 4096, 65_536, MIB, 2 * MIB])
offsets = st.builds(lambda border, delta: max(0, border + delta), borders, st.integers(-3, 3))
lengths = st.sampled_from([0, 1, 5, 100, 4096, 4097, 65_535, 65_536, 70_000, MIB, MIB + 1, 2 * MIB + 5])
seeds = st.integers(0, 255)
times = st.sampled_from([0, 1, 1_000_000_001, 1_700_000_000_123_456_789, 4_000_000_000_000_000_001])
link_targets = st.one_of(new_paths, new_paths.map("../{}".format), st.just("nowhere"), st.just("."))
creating = st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL])
open_flags = st.builds(
    lambda access, create, rest: access | create | sum(rest),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    creating,
    st.sets(st.sampled_from([os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_NONBLOCK]), max_size=2),
)


def any_open(machine: Machine) -> bool:
    return bool(machine.usable())


class Machine(RuleBasedStateMachine):
    """Does each step on both sides. `mount` is set by the test to the folder to be tested."""

    mount: Path

    def __init__(self) -> None:
        super().__init__()
        self.tops = [Path(tempfile.mkdtemp(dir=self.mount)), Path(tempfile.mkdtemp(prefix="fs3-reference-"))]
        self.sides = [ops.Side(top / DEPTH) for top in self.tops]
        for side in self.sides:
            side.root.mkdir(parents=True)

    def both(self, operation: Callable[[ops.Side], ops.Result]) -> ops.Result:
        found, expected = (side.attempt(operation) for side in self.sides)
        assert found == expected, f"the mount: {found}; the local folder: {expected}"
        return found

    def teardown(self) -> None:
        try:
            found, expected = (ops.tree(side) for side in self.sides)
            assert found == expected
        finally:
            for side in self.sides:
                side.close_all()
            for top in self.tops:
                shutil.rmtree(top)

    @initialize(seed=seeds, length=lengths)
    def begin(self, seed: int, length: int) -> None:
        """Some folders and files, so that the first steps meet something."""
        for name in ("a", "a/b", "c"):
            self.both(ops.mkdir(name, 0o755))
        for slot, name in enumerate(("d", "a/c")):
            self.both(ops.open_file(slot, name, os.O_RDWR | os.O_CREAT, 0o644))
            self.both(ops.write(slot, ops.pattern(seed, length)))

    def path(self, chosen: str | int) -> str:
        """The path itself, or one of those that exist, by number; now and then with one more name behind it."""
        if isinstance(chosen, str):
            return chosen
        root = self.sides[1].root
        present = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        if not present:
            return "a"
        found = present[chosen % len(present)]
        return f"{found}/{'abcd'[chosen % 4]}" if chosen >= 280 else found

    def opened(self, slot: int) -> int:
        """One of the slots that are open."""
        present = self.usable()
        return present[slot % len(present)]

    def usable(self) -> list[int]:
        """The slots that are open, but for folders that were removed since: fs3 then answers ESTALE, local disks differ."""
        fds = self.sides[1].fds
        return [slot for slot in sorted(fds) if not _removed_folder(os.fstat(fds[slot]))]

    @rule(slot=slots, name=paths, flags=open_flags, mode=modes)
    def open(self, slot: int, name: str | int, flags: int, mode: int) -> None:
        if slot in self.sides[1].fds:
            self.both(ops.close(slot))
        # Linux itself refuses this pair in one way or another, by its version.
        if flags & os.O_DIRECTORY:
            flags &= ~os.O_CREAT
        self.both(ops.open_file(slot, self.path(name), flags, mode))

    @rule(slot=slots, name=paths)
    def open_for_both(self, slot: int, name: str | int) -> None:
        """What most of the other steps need."""
        self.open(slot, name, os.O_RDWR | os.O_CREAT, 0o644)

    @precondition(any_open)
    @rule(slot=slots)
    def close(self, slot: int) -> None:
        self.both(ops.close(self.opened(slot)))

    @precondition(any_open)
    @rule(slot=slots, length=lengths)
    def read(self, slot: int, length: int) -> None:
        self.both(ops.read(self.opened(slot), length))

    @precondition(any_open)
    @rule(slot=slots, offset=offsets, length=lengths)
    def pread(self, slot: int, offset: int, length: int) -> None:
        self.both(ops.pread(self.opened(slot), offset, length))

    @precondition(any_open)
    @rule(slot=slots, seed=seeds, length=lengths)
    def write(self, slot: int, seed: int, length: int) -> None:
        self.both(ops.write(self.opened(slot), ops.pattern(seed, length)))

    @precondition(any_open)
    @rule(slot=slots, offset=offsets, seed=seeds, length=lengths)
    def pwrite(self, slot: int, offset: int, seed: int, length: int) -> None:
        self.both(ops.pwrite(self.opened(slot), offset, ops.pattern(seed, length)))

    @precondition(any_open)
    @rule(slot=slots, offset=offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def seek(self, slot: int, offset: int, whence: int) -> None:
        # Where a folder's entries begin and end is up to the file system.
        slot = self.opened(slot)
        if not os.path.isdir(f"/proc/self/fd/{self.sides[1].fds[slot]}"):
            self.both(ops.seek(slot, offset, whence))

    @precondition(any_open)
    @rule(slot=slots, length=offsets)
    def ftruncate(self, slot: int, length: int) -> None:
        self.both(ops.ftruncate(self.opened(slot), length))

    @precondition(any_open)
    @rule(slot=slots)
    def fsync(self, slot: int) -> None:
        self.both(ops.fsync(self.opened(slot)))

    @precondition(any_open)
    @rule(slot=slots)
    def fstat(self, slot: int) -> None:
        self.both(ops.fstat(self.opened(slot)))

    @precondition(any_open)
    @rule(slot=slots, mode=modes)
    def fchmod(self, slot: int, mode: int) -> None:
        self.both(ops.fchmod(self.opened(slot), mode))

    @rule(name=paths, length=offsets)
    def truncate(self, name: str | int, length: int) -> None:
        self.both(ops.truncate(self.path(name), length))

    @rule(name=paths, mode=modes)
    def mkdir(self, name: str | int, mode: int) -> None:
        self.both(ops.mkdir(self.path(name), mode))

    @rule(name=paths)
    def rmdir(self, name: str | int) -> None:
        self.both(ops.rmdir(self.path(name)))

    @rule(name=paths)
    def unlink(self, name: str | int) -> None:
        self.both(ops.unlink(self.path(name)))

    @rule(source=paths, new=paths)
    def link(self, source: str | int, new: str | int) -> None:
        first, second = self.path(source), self.path(new)
        if self.both(ops.link(first, second)) is None:
            self.both(ops.same_inode(first, second))

    @rule(points_to=link_targets, name=paths)
    def symlink(self, points_to: str, name: str | int) -> None:
        self.both(ops.symlink(points_to, self.path(name)))

    @rule(name=paths)
    def readlink(self, name: str | int) -> None:
        self.both(ops.readlink(self.path(name)))

    @rule(source=paths, new=paths)
    def rename(self, source: str | int, new: str | int) -> None:
        self.both(ops.rename(self.path(source), self.path(new)))

    @rule(source=paths, new=paths, flag=st.sampled_from([ops.RENAME_NOREPLACE, ops.RENAME_EXCHANGE]))
    def rename_with_flag(self, source: str | int, new: str | int, flag: int) -> None:
        self.both(ops.rename(self.path(source), self.path(new), flag))

    @rule(name=paths, mode=modes)
    def chmod(self, name: str | int, mode: int) -> None:
        self.both(ops.chmod(self.path(name), mode))

    @rule(name=paths, uid=st.sampled_from([-1, 0, 1000]), gid=st.sampled_from([-1, 0, 1000]))
    def chown(self, name: str | int, uid: int, gid: int) -> None:
        if os.geteuid() == 0:
            self.both(ops.chown(self.path(name), uid, gid))

    @rule(name=paths, atime_ns=times, mtime_ns=times)
    def set_times(self, name: str | int, atime_ns: int, mtime_ns: int) -> None:
        self.both(ops.set_times(self.path(name), atime_ns, mtime_ns))

    @rule(name=paths)
    def stat_path(self, name: str | int) -> None:
        self.both(ops.stat_path(self.path(name)))

    @rule(name=paths)
    def lstat_path(self, name: str | int) -> None:
        self.both(ops.lstat_path(self.path(name)))

    @rule(name=st.one_of(st.just(""), paths))
    def list_dir(self, name: str | int) -> None:
        self.both(ops.list_dir(self.path(name)))

    @invariant()
    def the_same_files_are_open(self) -> None:
        assert self.sides[0].fds.keys() == self.sides[1].fds.keys()


def _removed_folder(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_nlink == 0


def test_every_operation_does_as_on_a_local_disk(mounted: Path) -> None:
    Machine.mount = mounted
    fixed = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(Machine, settings=fixed)  # type: ignore[no-untyped-call]


def test_the_comparison_finds_a_difference(tmp_path: Path) -> None:
    """The machine's own check: one byte, one errno, one name."""
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    left, right = ops.Side(tmp_path / "x"), ops.Side(tmp_path / "y")
    (left.root / "f").write_bytes(ops.pattern(1, 1000))
    (right.root / "f").write_bytes(ops.pattern(2, 1000))
    assert ops.tree(left) != ops.tree(right)
    (right.root / "f").write_bytes(ops.pattern(1, 1000))
    assert ops.tree(left) == ops.tree(right)
    (right.root / "f").chmod(0o600)
    assert ops.tree(left) != ops.tree(right)
    assert left.attempt(ops.unlink("f")) is None and left.attempt(ops.unlink("f")) == ("errno", "ENOENT")
    assert left.attempt(ops.rmdir("f")) != right.attempt(ops.rmdir("f"))
