from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3.api import meta as api
from fs3.api.meta import FileKind
from fs3.errors import Code
from fs3.kv.memory import MemoryEngine
from meta.ops import readdir
from meta.schema import inode_key
from tests.unit.meta.world import R, refused, world


async def test_entries_come_in_name_order_with_their_attributes() -> None:
    async with world() as w:
        directory = (await w.mkdir(R, b"d")).inode
        made = {
            b"z": await w.file(directory, b"z"),
            b"\xff\xfe": await w.symlink(directory, b"\xff\xfe", b"t"),
            b"A": await w.mkdir(directory, b"A"),
            b"a": await w.mknod(directory, b"a", FileKind.FIFO),
        }
        await w.mkdir(R, b"other")
        reply = await w.readdir(directory)
        assert [entry.name for entry in reply.entries] == [b"A", b"a", b"z", b"\xff\xfe"]
        assert {entry.name: entry.attr for entry in reply.entries} == made
        assert (reply.more, reply.parent) == (False, R)
        assert (await w.readdir(R)).parent == R


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.binary(min_size=1, max_size=3).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))),
    st.integers(1, 5),
)
def test_pages_make_up_the_whole(names: set[bytes], limit: int) -> None:
    async def check() -> None:
        async with world() as w:
            for name in names:
                await w.file(R, name)
            found: list[bytes] = []
            more = True
            while more:
                reply = await w.readdir(R, found[-1] if found else b"", limit)
                assert len(reply.entries) == limit or not reply.more
                found += [entry.name for entry in reply.entries]
                more = reply.more
            assert found == sorted(names)

    import trio

    trio.run(check)


async def test_a_reply_has_an_end_whatever_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readdir, "ENTRIES_MAX", 3)
    async with world() as w:
        for number in range(4):
            await w.file(R, b"%d" % number)
        reply = await w.readdir(R, limit=10**9)
        assert len(reply.entries) == 3 and reply.more


async def test_a_page_begins_behind_a_name_that_is_gone() -> None:
    async with world() as w:
        for name in (b"a", b"b", b"c"):
            await w.file(R, name)
        await w.unlink(R, b"b")
        assert [entry.name for entry in (await w.readdir(R, b"b")).entries] == [b"c"]


async def test_errors() -> None:
    async with world() as w:
        file = await w.file(R, b"f")
        async with refused(Code.NOT_DIRECTORY):
            await w.readdir(file.inode)
        async with refused(Code.STALE_HANDLE):
            await w.readdir(999_999)
        async with refused(Code.INVALID):
            await w.readdir(R, limit=0)


@pytest.mark.expects_error_log
async def test_an_entry_without_its_inode_is_reported_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    engine = MemoryEngine()
    async with world(engine=engine) as w:
        file = await w.file(R, b"f")
        await w.file(R, b"g")
        txn = engine.transaction()
        txn.clear(inode_key(file.inode))
        await txn.commit()
        assert await w.names(R) == [b"g"]
        assert "does not exist" in caplog.text


async def test_every_method_has_a_handler() -> None:
    methods = [each for each in vars(api).values() if isinstance(each, api.Method)]
    async with world() as w:
        assert {method.id for method in methods} <= w.server.handlers.keys()
        assert len(methods) >= 19
