from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fs3.api.meta import FileKind
from fs3.ids import ChunkId
from meta.fsck import Fault, check, check_chunks, survey
from meta.schema import (
    DIRECTORY,
    INODE_DOOMED,
    INODE_PENDING,
    INODE_XATTRS,
    STAT_INODES,
    Garbage,
    Inode,
    Intent,
    Lock,
    Session,
    doomed_key,
    entry_key,
    garbage_key,
    inode_key,
    intent_key,
    lock_key,
    pack_entry,
    pack_times,
    session_key,
    subdirectories_key,
    times_key,
    xattr_key,
)
from tests.unit.meta.world import CHUNK, CLIENT, R, world

Store = dict[bytes, bytes]


async def a_store() -> tuple[Store, dict[str, int]]:
    """Some of everything, in order, and the inodes by their names."""
    async with world() as w:
        upper = await w.mkdir(R, b"upper")
        lower = await w.mkdir(upper.inode, b"lower")
        file = await w.written(lower.inode, b"file", b"data")
        await w.link(file.inode, R, b"again")
        await w.symlink(R, b"link", b"upper")
        await w.mknod(R, b"pipe", FileKind.FIFO)
        gone = await w.written(R, b"gone", b"data")
        await w.unlink(R, b"gone")
        held = (await w.create(R, b"open")).attr
        await w.unlink(R, b"open")
        txn = w.engine.transaction()
        names = {"upper": upper, "lower": lower, "file": file, "gone": gone, "open": held}
        return dict(await txn.get_range(b"", b"\xff")), {name: attr.inode for name, attr in names.items()}


def edit(store: Store, inode: int, **changes: int) -> None:
    found = Inode.unpack(inode, store[inode_key(inode)])
    for name, value in changes.items():
        setattr(found, name, value)
    store[inode_key(inode)] = found.pack()


def loop(store: Store, of: dict[str, int]) -> None:
    """upper into lower, which is in upper."""
    del store[entry_key(R, b"upper")]
    store[entry_key(of["lower"], b"upper")] = pack_entry(of["upper"], DIRECTORY)


Spoil = Callable[[Store, dict[str, int]], object]
SPOILT: list[tuple[Fault, Spoil]] = [
    (Fault.UNREADABLE, lambda s, of: s.update({inode_key(of["file"]): b"\x01"})),
    (Fault.UNREADABLE, lambda s, of: s.update({b"WHAT12345678": b""})),
    (Fault.DANGLING_ENTRY, lambda s, of: s.pop(inode_key(of["file"]))),
    (Fault.DANGLING_ENTRY, lambda s, of: s.pop(inode_key(of["lower"]))),
    (Fault.WRONG_KIND, lambda s, of: s.update({entry_key(R, b"again"): pack_entry(of["file"], 4)})),
    (Fault.WRONG_LINKS, lambda s, of: s.pop(entry_key(R, b"again"))),
    (Fault.WRONG_LINKS, lambda s, of: s.update({entry_key(R, b"twice"): pack_entry(of["lower"], DIRECTORY)})),
    (Fault.WRONG_PARENT, lambda s, of: edit(s, of["lower"], parent=R)),
    (Fault.UNREACHABLE, lambda s, of: s.pop(session_key(of["open"], CLIENT, 1))),
    (Fault.LOOP, loop),
    (Fault.NO_TIMES, lambda s, of: s.pop(times_key(of["lower"]))),
    (Fault.NO_TIMES, lambda s, of: s.update({times_key(of["file"]): pack_times(0, 0)})),
    (Fault.WRONG_SUBDIRECTORIES, lambda s, of: s.update({subdirectories_key(of["upper"]): bytes(8)})),
    (Fault.DANGLING_SESSION, lambda s, of: s.update({session_key(999, 1, 1): Session(0, False, 0).pack()})),
    (Fault.WRONG_PENDING, lambda s, of: edit(s, of["file"], flags=INODE_PENDING)),
    (Fault.WRONG_PENDING, lambda s, of: s.update({intent_key(of["file"]): Intent(1, 0, 0, 0, 0).pack()})),
    (Fault.DANGLING_XATTR, lambda s, of: s.update({xattr_key(of["file"], b"user.x"): b""})),
    (Fault.DANGLING_LOCK, lambda s, of: s.update({lock_key(of["file"], CLIENT, 1): Lock(True, 0, 9, 0, 0).pack()})),
    (Fault.DANGLING_LOCK, lambda s, of: s.update({lock_key(999, CLIENT, 1): Lock(True, 0, 9, 0, 0).pack()})),
    (Fault.WRONG_DOOM, lambda s, of: edit(s, of["lower"], flags=INODE_DOOMED)),
    (Fault.WRONG_DOOM, lambda s, of: s.update({doomed_key(of["upper"], of["lower"]): b""})),
    (Fault.REMOVED_ALIVE, lambda s, of: s.update({garbage_key(of["file"]): s[garbage_key(of["gone"])]})),
    (Fault.FOREIGN_ID, lambda s, of: s.update({b"IBLK": (of["open"]).to_bytes(8, "little")})),
    (Fault.WRONG_COUNT, lambda s, of: s.update({STAT_INODES: bytes(8)})),
]


async def test_nothing_is_found_where_all_is_well() -> None:
    store, of = await a_store()
    found = survey(store.items())
    assert check(found) == []
    assert {tag: count for tag, count in found.records.items() if tag != "IDEM"} == {
        "INOD": 7, "DENT": 6, "DTIM": 3, "DSUB": 2, "SESS": 1, "GCQ_": 1, "IBLK": 1, "STAT": 1,
    }  # fmt: skip
    assert found.clients == {CLIENT: 1} and found.garbage == {of["gone"]}
    edit(store, of["file"], flags=INODE_XATTRS)
    store[xattr_key(of["file"], b"user.x")] = b""
    assert check(survey(store.items())) == []


@pytest.mark.parametrize("number", range(len(SPOILT)))
async def test_what_is_wrong_is_found(number: int) -> None:
    fault, spoil = SPOILT[number]
    store, of = await a_store()
    spoil(store, of)
    found = check(survey(store.items()))
    assert fault in {each.fault for each in found}, found
    assert all(each.text for each in found)


def test_every_fault_is_planted() -> None:
    of_chunks = {fault for fault in Fault if "chunk" in fault.value.split()} | {Fault.NO_TABLE}
    assert {fault for fault, _ in SPOILT} == set(Fault) - of_chunks


async def test_chunks_belong_to_files() -> None:
    store, of = await a_store()
    found = survey(store.items())
    chunks = [(ChunkId(of["file"], 0), 4), (ChunkId(of["gone"], 0), 4), (ChunkId(of["open"], 7), CHUNK)]
    assert list(check_chunks(found, chunks)) == []
    wrong = [
        (ChunkId(of["lower"], 0), 4),
        (ChunkId(3000, 0), 0),
        (ChunkId(12345, 0), 0),
        (ChunkId(of["file"], 0), 5),
        (ChunkId(of["file"], 1), 1),
    ]
    faults = [each.fault for each in check_chunks(found, wrong)]
    orphans = [Fault.ORPHAN_CHUNK, Fault.ORPHAN_CHUNK, Fault.FOREIGN_CHUNK]
    assert faults == [*orphans, Fault.CHUNK_BEHIND_END, Fault.CHUNK_BEHIND_END]


async def test_the_garbage_of_another_format_is_unreadable() -> None:
    store, of = await a_store()
    garbage = Garbage.unpack(store[garbage_key(of["gone"])])
    store[garbage_key(of["gone"])] = b"\x63" + replace(garbage, bound=1).pack()[1:]
    assert [each.fault for each in check(survey(store.items()))] == [Fault.UNREADABLE]
