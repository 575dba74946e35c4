from __future__ import annotations

from fs3.api.meta import FileKind
from fs3.errors import Code
from tests.unit.meta.world import ALICE, R, refused, world


async def test_a_new_file_is_there_with_all_its_attributes() -> None:
    async with world() as w:
        w.caller = ALICE
        async with refused(Code.PERMISSION_DENIED):
            await w.create(R, b"f")
        w.caller = w.caller.__class__(0, 0, (0,), 0o022)
        reply = await w.create(R, b"f", 0o4777)
        assert reply.created
        attr = reply.attr
        assert (attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, attr.length) == (FileKind.FILE, 0o4755, 0, 0, 1, 0)
        assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns
        assert await w.lookup(R, b"f") == attr == await w.getattr(attr.inode)
        assert attr.layout is not None
        assert (attr.layout.table, attr.layout.chunk_size, attr.layout.stripe) == (1, 64 * 1024, 3)
        assert [len(key) for key in await w.keys(b"SESS")] == [28]
