from __future__ import annotations

from typing import Any

import pytest

from fs3.api.meta import Caller
from fs3.errors import Code
from fs3.layout import FILE_LENGTH_MAX
from tests.unit.meta.world import ALICE, BOB, CAROL, ROOT, R, refused, world


async def test_nothing_asked_changes_nothing() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        w.caller = CAROL
        assert await w.setattr(file.inode) == file


async def test_chmod_and_chown() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        changed = await w.setattr(file.inode, mode=0o6755)
        assert changed.mode == 0o6755 and changed.ctime_ns > file.ctime_ns and changed.mtime_ns == file.mtime_ns
        changed = await w.setattr(file.inode, uid=ALICE.uid, gid=7)
        assert (changed.uid, changed.gid, changed.mode) == (ALICE.uid, 7, 0o755)
        w.caller = ALICE
        changed = await w.setattr(file.inode, gid=50, mode=0o2755)
        assert (changed.gid, changed.mode) == (50, 0o755)
        w.caller = BOB
        for change in ({"mode": 0o777}, {"uid": BOB.uid}, {"gid": 50}, {"atime_ns": 5}):
            async with refused(Code.NOT_PERMITTED):
                await w.setattr(file.inode, **change)
        w.caller = ROOT
        for number in (-1, 2**32 - 1, 2**40):
            async with refused(Code.INVALID):
                await w.setattr(file.inode, uid=number)


async def test_a_directory_keeps_its_set_gid_bit_when_it_changes_hands() -> None:
    async with world() as w:
        directory = await w.mkdir(R, b"d")
        await w.setattr(directory.inode, mode=0o2755)
        assert (await w.setattr(directory.inode, gid=50)).mode == 0o2755


async def test_times() -> None:
    async with world() as w:
        for made in (await w.file(R, b"f"), await w.mkdir(R, b"d")):
            set_ = await w.setattr(made.inode, atime_ns=-5, mtime_ns=1_234_567_890)
            assert (set_.atime_ns, set_.mtime_ns) == (-5, 1_234_567_890) and set_.ctime_ns > made.ctime_ns
            assert set_ == await w.getattr(made.inode)
            now = await w.setattr(made.inode, mtime_now=True)
            assert now.atime_ns == -5 and now.mtime_ns == now.ctime_ns > set_.ctime_ns
            huge = await w.setattr(made.inode, mtime_ns=2**70, atime_ns=-(2**70))
            assert (huge.atime_ns, huge.mtime_ns) == (-(2**63) + 1, 2**63 - 1)


@pytest.mark.parametrize(
    ("caller", "change", "code"),
    [
        (ALICE, {"mtime_ns": 5}, None),
        (ALICE, {"mtime_now": True}, None),
        (BOB, {"mtime_ns": 5}, Code.NOT_PERMITTED),
        (BOB, {"mtime_now": True, "atime_now": True}, None),  # may write: group
        (BOB, {"mtime_now": True, "atime_ns": 5}, Code.NOT_PERMITTED),
        (CAROL, {"mtime_now": True}, Code.PERMISSION_DENIED),
        (CAROL, {"mtime_now": True, "by_handle": True}, None),
        (ROOT, {"mtime_ns": 5}, None),
    ],
)
async def test_who_may_set_times(caller: Caller, change: dict[str, Any], code: Code | None) -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        await w.setattr(file.inode, uid=ALICE.uid, gid=50, mode=0o420)
        w.caller = caller
        if code is None:
            await w.setattr(file.inode, **change)
        else:
            async with refused(code):
                await w.setattr(file.inode, **change)


async def test_who_may_truncate() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        await w.setattr(file.inode, uid=ALICE.uid, gid=50, mode=0o6420)
        w.caller = CAROL
        async with refused(Code.PERMISSION_DENIED):
            await w.setattr(file.inode, length=5)
        assert (await w.setattr(file.inode, length=5, by_handle=True)).mode == 0o2420
        w.caller = ALICE
        async with refused(Code.PERMISSION_DENIED):
            await w.setattr(file.inode, length=5)
        w.caller = BOB
        assert (await w.setattr(file.inode, length=7)).length == 7
        w.caller = ROOT
        assert (await w.setattr(file.inode, length=9)).length == 9


async def test_errors_of_lengths() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        link = await w.symlink(R, b"l", b"t")
        for inode, length, code in [
            (R, 0, Code.IS_DIRECTORY),
            (link.inode, 0, Code.INVALID),
            (file.inode, -1, Code.INVALID),
            (file.inode, FILE_LENGTH_MAX + 1, Code.FILE_TOO_LARGE),
            (999_999, 0, Code.STALE_HANDLE),
        ]:
            async with refused(code):
                await w.setattr(inode, length=length)
        assert (await w.setattr(file.inode, length=FILE_LENGTH_MAX)).length == FILE_LENGTH_MAX


async def test_a_refused_setattr_changes_nothing() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        await w.setattr(file.inode, uid=ALICE.uid)
        before = await w.getattr(file.inode)
        w.caller = ALICE
        async with refused(Code.NOT_PERMITTED):
            await w.setattr(file.inode, mode=0o777, length=5, uid=BOB.uid)
        assert await w.getattr(file.inode) == before
