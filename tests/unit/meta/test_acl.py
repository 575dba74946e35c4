from __future__ import annotations

from dataclasses import replace

import pytest

from fs3.api.meta import Caller
from fs3.errors import Code, FS3Error
from meta import acl
from meta.schema import DIRECTORY, FILE, Inode
from tests.unit.meta.world import ALICE, BOB, CAROL, ROOT


def inode(mode: int, uid: int = 1000, gid: int = 50, kind: int = FILE) -> Inode:
    return Inode(9, kind, 0, mode, uid, gid, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


# ALICE owns it; BOB is in its group 50; CAROL is neither.
@pytest.mark.parametrize(
    ("mode", "caller", "mask", "allowed"),
    [
        (0o400, ALICE, acl.READ, True),
        (0o040, ALICE, acl.READ, False),  # the owner's bits alone count for the owner
        (0o004, ALICE, acl.READ, False),
        (0o040, BOB, acl.READ, True),
        (0o400, BOB, acl.READ, False),
        (0o004, BOB, acl.READ, False),  # and the group's alone for the group
        (0o004, CAROL, acl.READ, True),
        (0o440, CAROL, acl.READ, False),
        (0o600, ALICE, acl.READ | acl.WRITE, True),
        (0o400, ALICE, acl.READ | acl.WRITE, False),
        (0o000, ROOT, acl.READ | acl.WRITE, True),
        (0o000, ROOT, acl.EXECUTE, False),  # root executes what somebody may
        (0o001, ROOT, acl.EXECUTE, True),
        (0o666, CAROL, acl.EXECUTE, False),
        (0o000, CAROL, 0, True),
    ],
)
def test_rights_by_owner_group_and_others(mode: int, caller: Caller, mask: int, allowed: bool) -> None:
    assert acl.may(inode(mode), caller, mask) is allowed


def test_root_searches_any_directory() -> None:
    assert acl.may(inode(0, kind=DIRECTORY), ROOT, acl.EXECUTE)


def test_the_primary_group_counts_without_being_listed() -> None:
    assert acl.may(inode(0o040), Caller(5, 50, ()), acl.READ)


@pytest.mark.parametrize(("caller", "allowed"), [(ROOT, True), (ALICE, True), (BOB, True), (CAROL, False)])
def test_a_sticky_directory_keeps_others_out(caller: Caller, allowed: bool) -> None:
    directory = inode(0o1777, uid=BOB.uid, kind=DIRECTORY)
    if allowed:
        acl.require_unsticky(directory, inode(0o644), caller)
    else:
        with pytest.raises(FS3Error) as caught:
            acl.require_unsticky(directory, inode(0o644), caller)
        assert caught.value.code is Code.NOT_PERMITTED
    acl.require_unsticky(inode(0o777, kind=DIRECTORY), inode(0o644), caller)


def test_new_files_take_umask_and_the_callers_group() -> None:
    parent = inode(0o755, kind=DIRECTORY)
    assert acl.initial_mode(parent, replace(BOB, umask=0o027), False, 0o6777) == (0o6750, BOB.gid)


def test_a_set_gid_directory_hands_on_its_group() -> None:
    parent = inode(0o2755, kind=DIRECTORY)
    assert acl.initial_mode(parent, CAROL, False, 0o644) == (0o644, 50)
    assert acl.initial_mode(parent, CAROL, True, 0o755) == (0o2755, 50)
    # ... but no privilege of a group that the caller is not in
    assert acl.initial_mode(parent, CAROL, False, 0o2755) == (0o755, 50)
    assert acl.initial_mode(parent, BOB, False, 0o2755) == (0o2755, 50)
    assert acl.initial_mode(parent, ROOT, False, 0o2755) == (0o2755, 50)
    assert acl.initial_mode(parent, CAROL, False, 0o2745) == (0o2745, 50)


def test_chmod_is_the_owners() -> None:
    assert acl.changed_mode(inode(0o644), ALICE, 0o100755, False) == 0o755
    assert acl.changed_mode(inode(0o644), ROOT, 0o7777, False) == 0o7777
    for caller in (BOB, CAROL):
        with pytest.raises(FS3Error) as caught:
            acl.changed_mode(inode(0o666), caller, 0o666, False)
        assert caught.value.code is Code.NOT_PERMITTED


def test_chmod_by_one_outside_the_group_drops_set_gid() -> None:
    assert acl.changed_mode(inode(0o644, gid=77), ALICE, 0o2755, False) == 0o755
    assert acl.changed_mode(inode(0o644, gid=50), ALICE, 0o2755, False) == 0o2755
    assert acl.changed_mode(inode(0o644, gid=77), ROOT, 0o2755, False) == 0o2755


def test_a_writer_may_drop_set_id_bits_and_nothing_else() -> None:
    assert acl.changed_mode(inode(0o6777), CAROL, 0o777, False) == 0o777
    assert acl.changed_mode(inode(0o6755), CAROL, 0o755, True) == 0o755  # it writes through a handle
    for mode, allowed in ((0o6755, 0o755), (0o6777, 0o776), (0o777, 0o4777)):
        with pytest.raises(FS3Error):
            acl.changed_mode(inode(mode), CAROL, allowed, False)


@pytest.mark.parametrize(
    ("caller", "uid", "gid", "allowed"),
    [
        (ROOT, 5, 6, True),
        (ALICE, 5, None, False),
        (ALICE, 1000, None, True),
        (ALICE, None, 50, True),
        (ALICE, None, 1000, True),
        (ALICE, None, 77, False),
        (BOB, None, 50, False),
        (BOB, 1000, None, False),
    ],
)
def test_chown(caller: Caller, uid: int | None, gid: int | None, allowed: bool) -> None:
    if allowed:
        acl.require_chown(inode(0o644), caller, uid, gid)
    else:
        with pytest.raises(FS3Error) as caught:
            acl.require_chown(inode(0o644), caller, uid, gid)
        assert caught.value.code is Code.NOT_PERMITTED


@pytest.mark.parametrize(("before", "after"), [(0o6755, 0o755), (0o6745, 0o2745), (0o4644, 0o644), (0o1777, 0o1777)])
def test_set_id_bits_end_with_the_owner(before: int, after: int) -> None:
    assert acl.without_set_id(before) == after
