from __future__ import annotations

from fs3.errors import Code
from tests.unit.meta.world import ALICE, BOB, CAROL, CHUNK, CLIENT, ROOT, R, refused, world


async def test_unlink_of_an_empty_file_leaves_nothing() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f")).attr
        await w.close(attr)
        before = await w.getattr(R)
        reply = await w.unlink(R, b"f")
        assert (reply.inode, reply.attr) == (attr.inode, None)
        assert (await w.getattr(R)).mtime_ns > before.mtime_ns
        for tag in (b"DENT", b"SESS", b"GCQ_", b"XATR", b"INTN"):
            assert await w.keys(tag) == []
        assert len(await w.keys(b"INOD")) == 1
        assert w.chunks.calls == []
        async with refused(Code.STALE_HANDLE):
            await w.getattr(attr.inode)
        async with refused(Code.NOT_FOUND):
            await w.unlink(R, b"f")


async def test_a_file_lives_as_long_as_it_has_a_name() -> None:
    async with world() as w:
        file = await w.written(R, b"f", b"data")
        await w.link(file.inode, R, b"g")
        reply = await w.unlink(R, b"f")
        assert reply.attr is not None and reply.attr.nlink == 1 and reply.attr.ctime_ns > file.ctime_ns
        assert reply.attr.mtime_ns == file.mtime_ns
        assert await w.keys(b"GCQ_") == []
        assert (await w.unlink(R, b"g")).attr is None
        assert len(await w.keys(b"GCQ_")) == 1
        assert w.chunks.count(file.inode) == 1
        await w.service.collector.collect()
        assert w.chunks.count(file.inode) == 0 and await w.keys(b"GCQ_") == []


async def test_an_open_file_keeps_its_data_until_its_last_writer_closes() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f", session=1)).attr
        await w.open(attr.inode, access=2, session=2)  # type: ignore[arg-type]
        reply = await w.unlink(R, b"f")
        assert reply.attr is not None and reply.attr.nlink == 0
        w.chunks.write(attr, 0, b"x" * (CHUNK + 1))
        assert (await w.getattr(attr.inode)).nlink == 0
        closed = await w.close(attr, CHUNK + 1, session=1)
        assert (closed.length, closed.nlink) == (CHUNK + 1, 0)
        await w.service.collector.collect()
        assert w.chunks.count(attr.inode) == 2
        await w.close(attr, session=2)
        async with refused(Code.STALE_HANDLE):
            await w.getattr(attr.inode)
        await w.service.collector.collect()
        assert w.chunks.count(attr.inode) == 0
        assert len(await w.keys(b"INOD")) == 1


async def test_a_hold_keeps_the_data_for_its_mount() -> None:
    async with world() as w:
        file = await w.written(R, b"f", b"data")
        reply = await w.unlink(R, b"f", hold=55)
        assert reply.attr is not None and reply.attr.nlink == 0
        await w.service.collector.collect()
        assert w.chunks.read(await w.getattr(file.inode)) == b"data"
        await w.close(file, session=55)
        await w.service.collector.collect()
        assert w.chunks.count(file.inode) == 0


async def test_a_hold_is_for_the_last_name_only() -> None:
    async with world() as w:
        file = await w.written(R, b"f", b"data")
        await w.link(file.inode, R, b"g")
        reply = await w.unlink(R, b"f", hold=55)
        assert reply.attr is not None and reply.attr.nlink == 1
        assert await w.keys(b"SESS") == []


async def test_kinds() -> None:
    async with world() as w:
        await w.file(R, b"f")
        await w.mkdir(R, b"d")
        async with refused(Code.NOT_DIRECTORY):
            await w.rmdir(R, b"f")
        async with refused(Code.IS_DIRECTORY):
            await w.unlink(R, b"d")
        for name, of_directory, of_file in [
            (b".", Code.INVALID, Code.IS_DIRECTORY),
            (b"..", Code.NOT_EMPTY, Code.IS_DIRECTORY),
            (b"", Code.NOT_FOUND, Code.NOT_FOUND),
            (b"n" * 256, Code.NAME_TOO_LONG, Code.NAME_TOO_LONG),
        ]:
            async with refused(of_directory):
                await w.rmdir(R, name)
            async with refused(of_file):
                await w.unlink(R, name)


async def test_rmdir() -> None:
    async with world() as w:
        directory = (await w.mkdir(R, b"d")).inode
        await w.file(directory, b"f")
        async with refused(Code.NOT_EMPTY):
            await w.rmdir(R, b"d")
        await w.unlink(directory, b"f")
        before = await w.getattr(R)
        reply = await w.rmdir(R, b"d")
        after = await w.getattr(R)
        assert reply.attr is not None and (reply.inode, reply.attr.inode, reply.attr.nlink) == (directory, directory, 0)
        assert after.nlink == before.nlink - 1 == 2 and after.mtime_ns > before.mtime_ns
        for tag in (b"INOD", b"DTIM", b"DSUB"):
            assert len(await w.keys(tag)) == 1
        for attempt in (w.file(directory, b"f"), w.lookup(directory, b"f"), w.lookup(directory, b"..")):
            async with refused(Code.NOT_FOUND):
                await attempt


async def test_removing_needs_the_directorys_write_right() -> None:
    async with world() as w:
        await w.file(R, b"f")
        await w.setattr(R, mode=0o755)
        w.caller = ALICE
        async with refused(Code.NOT_FOUND):
            await w.unlink(R, b"g")
        async with refused(Code.PERMISSION_DENIED):
            await w.unlink(R, b"f")


async def test_a_sticky_directory() -> None:
    async with world() as w:
        directory = (await w.mkdir(R, b"d")).inode
        await w.setattr(directory, mode=0o1777, uid=BOB.uid)
        for name in (b"1", b"2", b"3"):
            w.caller = ALICE
            await w.file(directory, name, 0o666)
        w.caller = CAROL
        async with refused(Code.NOT_PERMITTED):
            await w.unlink(directory, b"1")
        for owner, name in ((ALICE, b"1"), (BOB, b"2"), (ROOT, b"3")):
            w.caller = owner
            await w.unlink(directory, name)
        w.caller = ALICE
        await w.mkdir(directory, b"sub")
        w.caller = CAROL
        async with refused(Code.NOT_PERMITTED):
            await w.rmdir(directory, b"sub")


async def test_sessions_of_others_end_nothing() -> None:
    """Closing a session that is not there (any more) is no error, and touches no other one."""
    async with world() as w:
        attr = (await w.create(R, b"f", session=1)).attr
        await w.close(attr, session=2)
        await w.close(attr, session=1, client=CLIENT + 1)
        assert len(await w.keys(b"SESS")) == 1
