from __future__ import annotations

import pytest

from fs3.api import meta as api
from fs3.api.meta import Caller, XattrMode
from fs3.errors import Code, FS3Error
from meta import posix_acl
from meta.posix_acl import ACCESS, DEFAULT, GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry
from tests.unit.meta.test_xattr import get, names, put
from tests.unit.meta.world import ALICE, BOB, CAROL, ROOT, R, World, refused, world

NO_ID = 0xFFFFFFFF


def acl(owner: int, group: int, other: int, *named: Entry, mask: int | None = None) -> bytes:
    entries = [(USER_OBJ, owner, NO_ID), (GROUP_OBJ, group, NO_ID), (OTHER, other, NO_ID), *named]
    if mask is not None:
        entries.append((MASK, mask, NO_ID))
    return posix_acl.packed(sorted(entries))


# Of a file of ALICE and group 50, in which BOB is.
@pytest.mark.parametrize(
    ("value", "caller", "wanted", "allowed"),
    [
        (acl(6, 4, 0, (USER, 6, CAROL.uid), mask=7), CAROL, 6, True),
        (acl(6, 4, 0, (USER, 6, CAROL.uid), mask=4), CAROL, 6, False),  # the mask limits named users
        (acl(6, 4, 0, (USER, 6, CAROL.uid), mask=4), CAROL, 4, True),
        (acl(6, 4, 7, (USER, 0, CAROL.uid), mask=7), CAROL, 4, False),  # and an entry counts alone
        (acl(6, 4, 0, mask=7), BOB, 4, True),
        (acl(6, 4, 0, mask=7), BOB, 6, False),
        (acl(6, 0, 4, mask=7), BOB, 4, False),  # who is in a group is not among the others
        (acl(6, 4, 0, (GROUP, 2, 1001), mask=7), BOB, 6, False),  # groups do not add up
        (acl(6, 4, 0, (GROUP, 6, 1001), mask=7), BOB, 6, True),
        (acl(6, 4, 0, (GROUP, 6, 1001), mask=5), BOB, 2, False),
        (acl(6, 4, 1, (GROUP, 6, 7), mask=0), CAROL, 1, True),
        (acl(6, 4, 1, (GROUP, 6, 7), mask=7), CAROL, 2, False),
    ],
)
def test_rights(value: bytes, caller: Caller, wanted: int, allowed: bool) -> None:
    assert posix_acl.allows(value, 50, caller, wanted) is allowed


def test_what_is_made_inherits_within_the_mode() -> None:
    default = acl(7, 5, 5, (USER, 7, 9), mask=7)
    access, mode = posix_acl.inherited(default, 0o2664)
    assert (access, mode) == (acl(6, 5, 4, (USER, 7, 9), mask=6), 0o2664)
    assert posix_acl.inherited(acl(7, 5, 0), 0o666) == (b"", 0o640), "a list of three says no more than a mode"


def test_chmod_sets_the_mask_where_there_is_one() -> None:
    assert posix_acl.with_mode(acl(7, 5, 5, (USER, 7, 9), mask=7), 0o620) == acl(6, 5, 0, (USER, 7, 9), mask=2)
    assert posix_acl.with_mode(acl(7, 5, 5), 0o620) == acl(6, 2, 0)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", Code.INVALID),
        (b"\1\0\0\0", Code.INVALID),
        (acl(7, 5, 5) + b"\0", Code.INVALID),
        (acl(7, 5, 5, (USER, 7, 9)), Code.INVALID),  # needs a mask
        (acl(7, 5, 5, (USER, 7, NO_ID), mask=7), Code.INVALID),
        (acl(15, 5, 5), Code.INVALID),
        (acl(7, 5, 5, (0x40, 7, 9)), Code.INVALID),
        (acl(7, 5, 5, (OTHER, 7, 9)), Code.INVALID),
        (posix_acl.packed([(GROUP_OBJ, 1, 0), (USER_OBJ, 1, 0), (OTHER, 1, 0)]), Code.INVALID),
        (posix_acl.packed([(USER_OBJ, 1, 0), (OTHER, 1, 0)]), Code.INVALID),
        (acl(7, 5, 5, *[(USER, 7, 9)] * 500, mask=7), Code.NO_SPACE),
    ],
)
def test_what_is_no_list_is_refused(value: bytes, code: Code) -> None:
    with pytest.raises(FS3Error) as caught:
        posix_acl.parsed(value)
    assert caught.value.code is code


async def may(w: World, caller: Caller, inode: int, mask: int) -> bool:
    try:
        await w.call(api.ACCESS, api.AccessRequest(caller, inode, mask))
    except FS3Error as error:
        assert error.code is Code.PERMISSION_DENIED
        return False
    return True


async def test_an_acl_gives_rights_and_chmod_takes_them() -> None:
    async with world() as w:
        await w.setattr(R, mode=0o777)
        w.caller = ALICE
        inode = (await w.file(R, b"f", mode=0o600)).inode
        assert not (await w.getattr(inode)).xattrs
        assert not await may(w, CAROL, inode, 4)
        await put(w, inode, ACCESS, acl(6, 0, 0, (USER, 6, CAROL.uid), mask=6))
        found = await w.getattr(inode)
        assert found.mode == 0o660 and found.xattrs
        assert await may(w, CAROL, inode, 6) and not await may(w, BOB, inode, 4)
        await w.setattr(inode, mode=0o640)
        assert await may(w, CAROL, inode, 4) and not await may(w, CAROL, inode, 2)
        assert await get(w, inode, ACCESS) == acl(6, 0, 0, (USER, 6, CAROL.uid), mask=4)
        await w.setattr(inode, mode=0o600)
        assert not await may(w, CAROL, inode, 4)
        await put(w, inode, ACCESS, None)
        async with refused(Code.NO_ATTRIBUTE):
            await get(w, inode, ACCESS)
        assert not (await w.getattr(inode)).xattrs


async def test_an_acl_that_a_mode_can_say_becomes_one() -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        await put(w, inode, ACCESS, acl(7, 1, 0))
        assert (await w.getattr(inode)).mode == 0o710 and await names(w, inode) == ()


async def test_a_default_acl_replaces_the_umask_and_is_passed_on() -> None:
    async with world() as w:
        top = (await w.mkdir(R, b"d")).inode
        default = acl(7, 5, 0, (USER, 7, CAROL.uid), mask=7)
        await put(w, top, DEFAULT, default)
        assert await names(w, top) == (DEFAULT,)
        w.caller = Caller(0, 0, (0,), 0o077)
        made = await w.file(top, b"f", mode=0o666)
        assert made.mode == 0o660
        assert await get(w, made.inode, ACCESS) == acl(6, 5, 0, (USER, 7, CAROL.uid), mask=6)
        assert await names(w, made.inode) == (ACCESS,)
        below = await w.mkdir(top, b"d", mode=0o777)
        assert below.mode == 0o770 and await names(w, below.inode) == (ACCESS, DEFAULT)
        assert await get(w, below.inode, DEFAULT) == default
        link = await w.symlink(top, b"l", b"x")
        assert link.mode == 0o777 and await names(w, link.inode) == ()
        await put(w, top, DEFAULT, None)
        assert (await w.file(top, b"g", mode=0o666)).mode == 0o600


async def test_who_may_set_an_acl_and_where() -> None:
    async with world() as w:
        await w.setattr(R, mode=0o777)
        w.caller = ALICE
        inode = (await w.file(R, b"f")).inode
        link = (await w.symlink(R, b"l", b"x")).inode
        value = acl(6, 4, 4, (USER, 6, 9), mask=6)
        async with refused(Code.PERMISSION_DENIED):
            await put(w, inode, DEFAULT, value)
        async with refused(Code.NOT_SUPPORTED):
            await put(w, link, ACCESS, value)
        async with refused(Code.NO_ATTRIBUTE):
            await put(w, inode, ACCESS, value, XattrMode.REPLACE)
        w.caller = BOB
        async with refused(Code.NOT_PERMITTED):
            await put(w, inode, ACCESS, value)
        w.caller = ROOT
        await put(w, inode, ACCESS, value, XattrMode.CREATE)
        async with refused(Code.EXISTS):
            await put(w, inode, ACCESS, value, XattrMode.CREATE)


async def test_set_gid_goes_where_the_owner_is_not_in_the_group() -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        await w.setattr(inode, uid=ALICE.uid, gid=7)
        await w.setattr(inode, mode=0o2755)
        w.caller = ALICE
        await put(w, inode, ACCESS, acl(7, 5, 5, (USER, 6, 9), mask=7))
        assert (await w.getattr(inode)).mode == 0o775


async def test_who_writes_a_file_may_drop_its_capabilities() -> None:
    async with world() as w:
        inode = (await w.file(R, b"f")).inode
        await w.setattr(inode, mode=0o646)
        for name in (b"security.capability", b"security.other"):
            await put(w, inode, name, b"1")
        w.caller = CAROL
        await put(w, inode, b"security.capability", None)
        async with refused(Code.NOT_PERMITTED):
            await put(w, inode, b"security.other", None)
