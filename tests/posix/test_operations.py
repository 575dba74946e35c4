"""A mount and a local folder, operation by operation: the same results, the same errno, and at the end the same tree."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.posix import operations as ops
from tests.process import harness

pytestmark = pytest.mark.process

EXAMPLES = int(os.environ.get("FS3_POSIX_EXAMPLES", "3000" if harness.SOAK else "60"))
"""The same ones each time; in a soak others each time."""
STEPS = int(os.environ.get("FS3_POSIX_STEPS", "60"))

DEPTH = "1/2/3/4/5/6"
"""Where the roots lie in their temporary folders: symbolic links that lead up must not lead out."""

MIB = 1 << 20
names = st.sampled_from(["a", "b", "c", "d"])
new_paths = st.one_of(names, st.lists(names, min_size=1, max_size=3).map("/".join))
paths = st.one_of(new_paths, st.integers(0, 99), st.integers(100, 199), st.integers(200, 299))
"""A path, or a number that chooses one that exists (see Machine.path): most steps should meet something."""
slots = st.integers(0, 3)
modes = st.sampled_from([0o644, 0o600, 0o755, 0o700, 0o444, 0o777, 0o777, 0o770, 0o1777])
users = st.sampled_from([(0, 0), (0, 0), (1000, 1000), (1001, 1000), (1002, 50)])
attributes = st.sampled_from(["user.a", "user.b", "trusted.t"])
acl_names = st.sampled_from(["system.posix_acl_access", "system.posix_acl_default"])
rights = st.sampled_from([0, 4, 5, 6, 7, 7])
acls = st.builds(
    lambda owner, group, other, named, mask: acl(owner, group, other, named, mask),
    rights, rights, rights, st.dictionaries(st.sampled_from([(2, 1000), (2, 1001), (8, 50), (8, 1000)]), rights), rights,
)  # fmt: skip
special = st.sampled_from([stat.S_IFIFO, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG])
short = st.sampled_from([0, 1, 5, 100, 4096, 5000])
times_asked = st.sampled_from([ops.UTIME_NOW, ops.UTIME_OMIT, 5, 999_999_999])
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


def acl(owner: int, group: int, other: int, named: dict[tuple[int, int], int], mask: int) -> bytes:
    """An ACL as the kernel takes it. named: rights by (tag, id)."""
    entries = [(1, owner, -1), (4, group, -1), (32, other, -1), *[(tag, given, who) for (tag, who), given in named.items()]]
    if named:
        entries.append((16, mask, -1))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", 2) + b"".join([struct.pack("<HHi", *entry) for entry in entries])


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
            side.root.chmod(0o777)
        for top in self.tops:
            top.chmod(0o755)

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
        """The slots that are open, but for folders that were removed since: fs3 lets nobody change those, local disks
        differ."""
        fds = self.sides[1].fds
        return [slot for slot in sorted(fds) if not _removed_folder(os.fstat(fds[slot]))]

    @rule(slot=slots, name=paths, flags=open_flags, mode=modes)
    def open(self, slot: int, name: str | int, flags: int, mode: int) -> None:
        if slot in self.sides[1].fds:
            self.both(ops.close(slot))
        # Linux itself refuses this pair in one way or another, by its version.
        if flags & os.O_DIRECTORY:
            flags &= ~os.O_CREAT
        kind = self.kind(name := self.path(name))
        if stat.S_ISFIFO(kind):
            flags |= os.O_NONBLOCK
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            return  # which are not to be used on a mount
        self.both(ops.open_file(slot, name, flags, mode))

    def kind(self, name: str) -> int:
        """The mode of what a path leads to, its type above all; 0 for nothing."""
        try:
            return (self.sides[1].root / name).stat().st_mode
        except OSError:
            return 0

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

    @precondition(lambda machine: machine.sides[1].fds)
    @rule(slot=slots)
    def fstat(self, slot: int) -> None:
        present = sorted(self.sides[1].fds)
        self.both(ops.fstat(present[slot % len(present)]))

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

    @rule(user=users)
    def become(self, user: tuple[int, int]) -> None:
        if os.geteuid() == 0:
            for side in self.sides:
                side.user = user

    @rule(name=paths, kind=special, mode=modes, device=st.sampled_from([0, os.makedev(1, 3), os.makedev(300, 70_000)]))
    def make_special(self, name: str | int, kind: int, mode: int, device: int) -> None:
        if not stat.S_ISCHR(kind) and not stat.S_ISBLK(kind):
            device = 0
        self.both(ops.make_special(self.path(name), kind, mode, device))

    def mappable(self, slot: int) -> bool:
        """A shared mapping of a file opened for appending is not to be had on a FUSE mount (docs/posix.md)."""
        fd = self.sides[1].fds[slot]
        return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND and stat.S_ISREG(os.fstat(fd).st_mode)

    @precondition(any_open)
    @rule(slot=slots)
    def read_map(self, slot: int) -> None:
        if self.mappable(slot := self.opened(slot)):
            self.both(_map_or_empty(ops.read_map(slot)))

    @precondition(any_open)
    @rule(slot=slots, offset=offsets, seed=seeds, length=short)
    def write_map(self, slot: int, offset: int, seed: int, length: int) -> None:
        if self.mappable(slot := self.opened(slot)):
            self.both(_map_or_empty(ops.write_map(slot, offset, ops.pattern(seed, length))))

    def permitted(self, attribute: str) -> bool:
        """Attributes for root alone: the thread keeps a right to them which it would lose as another user."""
        return not attribute.startswith("trusted.") or self.sides[0].user == (0, 0)

    @rule(
        name=paths, attribute=attributes, seed=seeds, length=st.sampled_from([0, 1, 300]),
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
    )  # fmt: skip
    def set_attribute(self, name: str | int, attribute: str, seed: int, length: int, flags: int) -> None:
        if self.permitted(attribute):
            self.both(ops.set_attribute(self.path(name), attribute, ops.pattern(seed, length), flags))

    @rule(name=paths, attribute=st.one_of(attributes, acl_names))
    def get_attribute(self, name: str | int, attribute: str) -> None:
        if self.permitted(attribute):
            self.both(ops.get_attribute(self.path(name), attribute))

    @rule(name=paths)
    def list_attributes(self, name: str | int) -> None:
        if self.permitted("trusted."):
            self.both(ops.list_attributes(self.path(name)))

    @rule(name=paths, attribute=attributes)
    def remove_attribute(self, name: str | int, attribute: str) -> None:
        if self.permitted(attribute):
            self.both(ops.remove_attribute(self.path(name), attribute))

    @rule(name=paths, which=acl_names, value=acls)
    def set_acl(self, name: str | int, which: str, value: bytes) -> None:
        self.both(ops.set_attribute(self.path(name), which, value, 0))

    @rule(name=paths, which=acl_names)
    def remove_acl(self, name: str | int, which: str) -> None:
        self.both(ops.remove_attribute(self.path(name), which))

    @precondition(any_open)
    @rule(slot=slots, uid=st.sampled_from([-1, 0, 1000, 1001]), gid=st.sampled_from([-1, 0, 50, 1000]))
    def fchown(self, slot: int, uid: int, gid: int) -> None:
        self.both(ops.fchown(self.opened(slot), uid, gid))

    @rule(name=paths, mode=st.integers(0, 7))
    def access(self, name: str | int, mode: int) -> None:
        self.both(ops.access(self.path(name), mode))

    @rule(name=paths, atime=times_asked, mtime=times_asked)
    def set_times_specially(self, name: str | int, atime: int, mtime: int) -> None:
        self.both(ops.set_times_specially(self.path(name), atime, mtime))

    @rule(letter=names, length=st.sampled_from([254, 255, 256]), slot=slots)
    def use_a_long_name(self, letter: str, length: int, slot: int) -> None:
        self.both(ops.mkdir(letter * length, 0o755))
        self.both(ops.rename(letter * length, "b"))
        self.both(ops.mkdir("a/" * 2040 + letter * length, 0o755))

    @precondition(any_open)
    @rule(slot=slots, operation=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]))
    def lock(self, slot: int, operation: int) -> None:
        self.both(ops.lock(self.opened(slot), operation))

    @precondition(any_open)
    @rule(source=slots, into=slots, length=lengths, at=offsets, to=offsets)
    def copy_range(self, source: int, into: int, length: int, at: int, to: int) -> None:
        self.both(ops.copy_range(self.opened(source), self.opened(into), length, at, to))

    @precondition(any_open)
    @rule(slot=slots, offset=short, length=short)
    def allocate(self, slot: int, offset: int, length: int) -> None:
        slot = self.opened(slot)
        if self.mappable(slot) and fcntl.fcntl(self.sides[1].fds[slot], fcntl.F_GETFL) & os.O_RDWR:
            self.both(ops.allocate(slot, offset, length))

    @precondition(any_open)
    @rule(slot=slots, offset=offsets, seed=seeds, parts=st.lists(short, min_size=1, max_size=3))
    def write_parts(self, slot: int, offset: int, seed: int, parts: list[int]) -> None:
        self.both(ops.write_parts(self.opened(slot), offset, [ops.pattern(seed + i, n) for i, n in enumerate(parts)]))

    @precondition(any_open)
    @rule(slot=slots, offset=offsets, parts=st.lists(short, min_size=1, max_size=3))
    def read_parts(self, slot: int, offset: int, parts: list[int]) -> None:
        self.both(ops.read_parts(self.opened(slot), offset, parts))

    @rule(name=paths)
    def name_limit(self, name: str | int) -> None:
        self.both(ops.name_limit(self.path(name)))

    @invariant()
    def the_same_files_are_open(self) -> None:
        assert self.sides[0].fds.keys() == self.sides[1].fds.keys()


def _map_or_empty(operation: Callable[[ops.Side], ops.Result]) -> Callable[[ops.Side], ops.Result]:
    """An empty file cannot be mapped, as Python itself says."""

    def attempted(side: ops.Side) -> ops.Result:
        try:
            return operation(side)
        except ValueError:
            return "empty"

    return attempted


def _removed_folder(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_nlink == 0


def test_every_operation_does_as_on_a_local_disk(mounted: Path) -> None:
    Machine.mount = mounted
    fixed = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=not harness.SOAK,
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
