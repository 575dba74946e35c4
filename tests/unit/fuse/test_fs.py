"""A mount's file system without FUSE, against a whole cluster in this process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from fs3.api.meta import Attr, Caller, FileKind, ReaddirReply, RenameFlags
from fs3.client.file import ROOT_CALLER as ROOT
from fs3.client.file import FileClient, FileHandle
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from fuse.cache import BLOCK_SIZE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from fuse.walks import STREAK
from tests.unit.client.live import CHUNK_SIZE, Live

THROUGH = FsOptions(read_ahead=8 * CHUNK_SIZE, read_cache=16 * CHUNK_SIZE, write_behind=0)
BEHIND = FsOptions(read_ahead=0, read_cache=0, write_behind=4 * CHUNK_SIZE)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, storages=1, replicas=1).running() as cluster:
        yield cluster


@asynccontextmanager
async def mount(live: Live, options: FsOptions = THROUGH) -> AsyncIterator[tuple[FileSystem, FileClient]]:
    async with live.client() as client, trio.open_nursery() as nursery:
        yield FileSystem(client, nursery, options), client
        nursery.cancel_scope.cancel()


async def make(fs: FileSystem, name: bytes, data: bytes = b"") -> int:
    """A closed file; its inode."""
    opened, attr = await fs.create(ROOT, ROOT_INODE, name, 0o644, os.O_WRONLY | os.O_CREAT)
    if data:
        await fs.write(opened.handle, 0, data)
    await fs.flush(opened.handle)
    await fs.release(opened.handle)
    return attr.inode


async def test_lookups_are_counted_until_forgotten(live: Live) -> None:
    async with mount(live) as (fs, _):
        inode = await make(fs, b"f")
        await fs.lookup(ROOT, ROOT_INODE, b"f")
        fs.forget(inode, 1)
        assert len(fs._inodes) == 1
        fs.forget(inode, 1)
        assert len(fs._inodes) == 0


async def test_a_removed_directory_that_is_open_still_has_attributes(live: Live) -> None:
    async with mount(live) as (fs, _):
        made = [await fs.mknod(ROOT, ROOT_INODE, name, FileKind.DIRECTORY, 0o755) for name in (b"a", b"b", b"c")]
        await fs.rmdir(ROOT, ROOT_INODE, b"a")
        await fs.rename(ROOT, ROOT_INODE, b"b", ROOT_INODE, b"c", RenameFlags.NONE)
        for inode in (made[0].inode, made[2].inode):
            attr = await fs.getattr(inode)
            assert (attr.inode, attr.mode, attr.nlink) == (inode, 0o755, 0)
            await fs.setattr(ROOT, inode, mode=0o700, gid=7)
            attr = await fs.getattr(inode)
            assert (attr.mode, attr.uid, attr.gid) == (0o700, 0, 7)
            fs.forget(inode, 1)
            with pytest.raises(FS3Error) as caught:
                await fs.getattr(inode)
            assert caught.value.code is Code.STALE_HANDLE


async def test_what_the_kernel_asks_in_vain_is_answered_here(live: Live) -> None:
    async with mount(live) as (fs, _):
        inode = await make(fs, b"f")
        assert fs.is_bare(inode, b"security.capability", 60) and not fs.is_bare(inode, b"user.a", 60)
        assert not fs.is_bare(inode, b"security.capability", -1)
        await fs.setxattr(ROOT, inode, b"security.capability", b"1")
        assert not fs.is_bare(inode, b"security.capability", 60)
        await fs.setxattr(ROOT, inode, b"security.capability", None)
        await fs.lookup(ROOT, ROOT_INODE, b"f")
        assert not fs.is_bare(inode, b"security.capability", 60), "an answer from before may come after"
    async with mount(live) as (fs, _):
        await fs.setxattr(ROOT, inode, b"user.a", b"1")
        await fs.lookup(ROOT, ROOT_INODE, b"f")
        assert not fs.is_bare(inode, b"security.capability", 60), "it has attributes, this one or not"


@pytest.mark.parametrize("atime", [False, True])
async def test_reading_sets_the_access_time_where_that_is_wanted(live: Live, atime: bool) -> None:
    async with mount(live, replace(THROUGH, atime=atime)) as (fs, client):
        inode = await make(fs, b"f", b"abc")
        before = (await fs.getattr(inode)).atime_ns
        for _ in range(2):
            opened = await fs.open(ROOT, inode, os.O_RDONLY)
            await fs.read(opened.handle, 0, 10)
            await fs.release(opened.handle)
            await client.releases.tell()
        assert ((await fs.getattr(inode)).atime_ns > before) is atime


async def test_holes_take_no_space(live: Live) -> None:
    async with mount(live) as (fs, client):
        opened, attr = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_WRONLY | os.O_CREAT)
        await fs.write(opened.handle, 0, b"x" * 100)
        await fs.write(opened.handle, 100, b"y" * 100)
        await fs.flush(opened.handle)
        assert not (await fs.getattr(attr.inode)).sparse
        await fs.write(opened.handle, 5 * CHUNK_SIZE, b"z" * 100)
        await fs.release(opened.handle)
        found = await fs.getattr(attr.inode)
        assert found.sparse and found.length == 5 * CHUNK_SIZE + 100 and await fs.used(found) == 300
        await client.setattr(ROOT, attr.inode, length=9 * CHUNK_SIZE)
        assert await fs.used(await fs.getattr(attr.inode)) == 300


async def test_a_directory_is_listed_with_its_dots_and_counts(live: Live) -> None:
    async with mount(live) as (fs, _):
        made = await fs.mknod(ROOT, ROOT_INODE, b"d", FileKind.DIRECTORY, 0o755)
        await fs.mknod(ROOT, made.inode, b"x", FileKind.SYMLINK, 0o777, target=b"t")
        handle = await fs.opendir(ROOT, made.inode)
        entries = await fs.readdir(handle, 0)
        assert [(name, cookie) for name, _, cookie in entries] == [(b".", 1), (b"..", 2), (b"x", 3)]
        assert [attr.inode for _, attr, _ in entries[:2]] == [made.inode, ROOT_INODE]
        fs.entry_told(handle, b"x", entries[2][1])
        fs.forget(entries[2][1].inode, 2)
        assert await fs.readdir(handle, 3) == []
        await fs.releasedir(handle)


async def test_a_listing_goes_on_from_what_was_fetched_but_not_past_a_change(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mount(live) as (fs, _):
        fetches = 0
        ask = fs._client.readdir

        async def counted(caller: Caller, inode: int, after: bytes, limit: int) -> ReaddirReply:
            nonlocal fetches
            fetches += 1
            return await ask(caller, inode, after, limit)

        monkeypatch.setattr(fs._client, "readdir", counted)
        made = await fs.mknod(ROOT, ROOT_INODE, b"d", FileKind.DIRECTORY, 0o755)
        for name in (b"a", b"b", b"c", b"e"):
            await fs.mknod(ROOT, made.inode, name, FileKind.FIFO, 0o644)
        handle = await fs.opendir(ROOT, made.inode)
        entries = await fs.readdir(handle, 0)
        assert [name for name, _, _ in await fs.readdir(handle, entries[2][2])] == [b"b", b"c", b"e"]
        assert fetches == 1
        await fs.unlink(ROOT, made.inode, b"c")
        await fs.mknod(ROOT, made.inode, b"d", FileKind.FIFO, 0o644)
        assert [name for name, _, _ in await fs.readdir(handle, entries[2][2])] == [b"b", b"d", b"e"]
        await fs.releasedir(handle)


async def test_the_page_cache_is_kept_while_nobody_else_writes(live: Live) -> None:
    async with mount(live) as (fs, _), mount(live) as (other, _):
        inode = await make(fs, b"f", b"one")
        first = await fs.open(ROOT, inode, os.O_RDONLY)
        again = await fs.open(ROOT, inode, os.O_RDWR)
        assert again.keep_cache
        await fs.write(again.handle, 0, b"two")
        await fs.flush(again.handle)
        assert (await fs.open(ROOT, inode, os.O_RDONLY)).keep_cache, "our own write is in our pages"
        theirs = await other.open(ROOT, inode, os.O_WRONLY)
        await other.write(theirs.handle, 0, b"new")
        await other.flush(theirs.handle)
        assert not (await fs.open(ROOT, inode, os.O_RDONLY)).keep_cache
        assert bytes(await fs.read(first.handle, 0, 10)) == b"new"


async def test_reading_ahead_never_shows_what_was_overwritten(live: Live) -> None:
    async with mount(live) as (fs, _):
        inode = await make(fs, b"f", b"a" * 6 * CHUNK_SIZE)
        opened = await fs.open(ROOT, inode, os.O_RDWR)
        for index in range(3):
            assert bytes(await fs.read(opened.handle, index * CHUNK_SIZE, CHUNK_SIZE)) == b"a" * CHUNK_SIZE
        await fs.write(opened.handle, 3 * CHUNK_SIZE + 5, b"b")
        expected = b"a" * 5 + b"b" + b"a" * (CHUNK_SIZE - 6)
        assert bytes(await fs.read(opened.handle, 3 * CHUNK_SIZE, CHUNK_SIZE)) == expected
        unaligned = await fs.read(opened.handle, 3 * CHUNK_SIZE - 3, CHUNK_SIZE)
        assert bytes(unaligned) == (b"aaa" + expected)[:CHUNK_SIZE]
        await fs.setattr(ROOT, inode, length=10)
        await fs.setattr(ROOT, inode, length=2 * CHUNK_SIZE)
        assert bytes(await fs.read(opened.handle, 0, CHUNK_SIZE)) == b"a" * 10 + bytes(CHUNK_SIZE - 10)


async def test_a_file_is_held_by_every_name_that_the_kernel_knows(live: Live) -> None:
    async with mount(live) as (fs, client):
        inode = await make(fs, b"first", b"data")
        await fs.link(ROOT, inode, ROOT_INODE, b"second")
        await fs.unlink(ROOT, ROOT_INODE, b"second")
        opened = await fs.open(ROOT, inode, os.O_RDONLY)
        await fs.unlink(ROOT, ROOT_INODE, b"first")
        assert (await client.getattr(inode)).nlink == 0
        assert bytes(await fs.read(opened.handle, 0, 10)) == b"data"
        await fs.release(opened.handle)


async def test_a_file_that_is_removed_while_it_is_opened_is_held_or_not_opened(live: Live) -> None:
    """Whichever of both begins first."""
    async with mount(live) as (fs, client):
        outcomes = set()
        for first in (True, False):
            inode = await make(fs, b"f", b"data")
            handles = []

            async def open_it(inode: int = inode, handles: list[int] = handles) -> None:
                try:
                    handles.append((await fs.open(ROOT, inode, os.O_RDONLY)).handle)
                except FS3Error as error:
                    assert error.code is Code.STALE_HANDLE

            async with trio.open_nursery() as nursery:
                if first:
                    nursery.start_soon(open_it)
                    await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(fs.unlink, ROOT, ROOT_INODE, b"f")
                await trio.testing.wait_all_tasks_blocked()
                if not first:
                    nursery.start_soon(open_it)
            outcomes.add(bool(handles))
            for handle in handles:
                assert (await client.getattr(inode)).nlink == 0
                assert bytes(await fs.read(handle, 0, 10)) == b"data"
                await fs.release(handle)
        assert True in outcomes


async def test_unlinked_and_replaced_files_live_until_they_are_closed(live: Live) -> None:
    async with mount(live) as (fs, client):
        gone = await make(fs, b"gone", b"gone")
        reading = await fs.open(ROOT, gone, os.O_RDONLY)
        await fs.unlink(ROOT, ROOT_INODE, b"gone")
        old = await make(fs, b"old", b"old")
        replaced = await fs.open(ROOT, old, os.O_RDONLY)
        await make(fs, b"new", b"new")
        await fs.rename(ROOT, ROOT_INODE, b"new", ROOT_INODE, b"old", RenameFlags.NONE)
        assert bytes(await fs.read(reading.handle, 0, 10)) == b"gone"
        assert bytes(await fs.read(replaced.handle, 0, 10)) == b"old"
        await fs.release(reading.handle)
        await fs.release(replaced.handle)
        await client.releases.tell()
        for inode in (gone, old):
            with pytest.raises(FS3Error) as caught:
                await client.getattr(inode)
            assert caught.value.code is Code.STALE_HANDLE


async def test_appending_handles_are_past_the_kernels_pages(live: Live) -> None:
    async with mount(live) as (fs, _):
        inode = await make(fs, b"log", b"start ")
        opened = await fs.open(ROOT, inode, os.O_WRONLY | os.O_APPEND)
        assert opened.direct_io
        await fs.write(opened.handle, 0, b"end")  # wherever the kernel thinks the end is
        reading = await fs.open(ROOT, inode, os.O_RDONLY)
        assert bytes(await fs.read(reading.handle, 0, 100)) == b"start end"


async def test_buffered_writes_are_seen_by_readers_listings_and_stat(live: Live) -> None:
    async with mount(live, BEHIND) as (fs, client):
        opened, attr = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        await fs.write(opened.handle, 0, b"x" * 100)
        assert (await client.getattr(attr.inode)).length == 0, "it was not buffered"
        assert (await fs.lookup(ROOT, ROOT_INODE, b"f")).length == 100
        handle = await fs.opendir(ROOT, ROOT_INODE)
        assert [attr.length for name, attr, _ in await fs.readdir(handle, 2) if name == b"f"] == [100]
        assert bytes(await fs.read(opened.handle, 90, 100)) == b"x" * 10
        await fs.write(opened.handle, 100, b"y")
        seen = await fs.getattr(attr.inode)
        await fs.flush(opened.handle)
        assert (await client.getattr(attr.inode)).mtime_ns == seen.mtime_ns
        await fs.release(opened.handle)


async def test_buffered_writes_arrive_whole_in_any_order(live: Live) -> None:
    async with mount(live, BEHIND) as (fs, client):
        opened, attr = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        content = bytearray(10 * CHUNK_SIZE)
        for step in range(60):
            offset = step * 7919 % (9 * CHUNK_SIZE) if step % 3 else step * 1000
            piece = bytes([step + 1]) * (step * 1777 % CHUNK_SIZE + 1)
            await fs.write(opened.handle, offset, piece)
            content[offset : offset + len(piece)] = piece
        await fs.fsync(opened.handle)
        length = (await client.getattr(attr.inode)).length
        assert bytes(await fs.read(opened.handle, 0, length)) == bytes(content[:length])
        assert not any(content[length:])
        await fs.release(opened.handle)


async def test_an_error_of_a_buffered_write_is_told_once(live: Live) -> None:
    async with mount(live, BEHIND) as (fs, client):
        opened, _ = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        real = client.write

        async def full(*arguments: object) -> int:
            raise FS3Error(Code.NO_SPACE, "full")

        client.write = full  # type: ignore[method-assign,assignment]
        await fs.write(opened.handle, 0, b"x" * CHUNK_SIZE)
        with pytest.raises(FS3Error) as caught:
            await fs.flush(opened.handle)
        assert caught.value.code is Code.NO_SPACE
        client.write = real  # type: ignore[method-assign]
        await fs.flush(opened.handle)
        await fs.release(opened.handle)


async def test_each_descriptor_is_told_once_of_an_error_of_buffered_writes(live: Live) -> None:
    async with mount(live, BEHIND) as (fs, client):
        opened, attr = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        others = [(await fs.open(ROOT, attr.inode, flags)).handle for flags in (os.O_WRONLY, os.O_RDONLY)]

        async def full(*arguments: object) -> int:
            raise FS3Error(Code.NO_SPACE, "full")

        client.write = full  # type: ignore[method-assign,assignment]
        await fs.write(opened.handle, 0, b"x" * CHUNK_SIZE)
        for handle in (opened.handle, *others):
            with pytest.raises(FS3Error) as caught:
                await fs.fsync(handle)
            assert caught.value.code is Code.NO_SPACE
            await fs.fsync(handle)
        for handle in (opened.handle, *others):
            await fs.flush(handle)
            await fs.release(handle)


async def test_fsync_waits_for_its_own_file_only(live: Live) -> None:
    async with mount(live, BEHIND) as (fs, client):
        one, attr = await fs.create(ROOT, ROOT_INODE, b"one", 0o644, os.O_RDWR | os.O_CREAT)
        other, _ = await fs.create(ROOT, ROOT_INODE, b"other", 0o644, os.O_RDWR | os.O_CREAT)
        real, go_on = client.write, trio.Event()

        async def slow(handle: FileHandle, offset: int, data: bytes) -> int:
            if handle.inode.id != attr.inode:
                await go_on.wait()
            return await real(handle, offset, data)

        client.write = slow  # type: ignore[method-assign,assignment]
        for opened in (other, one):
            await fs.write(opened.handle, 0, b"x" * CHUNK_SIZE)
        await fs.fsync(one.handle)
        await fs.flush(one.handle)
        assert not go_on.is_set()
        go_on.set()
        await fs.fsync(other.handle)
        for opened in (other, one):
            await fs.release(opened.handle)


async def test_who_looks_at_a_file_takes_no_error_from_its_writer(live: Live) -> None:
    """An error of a buffered write stays until a write, fsync or close has told it, and no read is silent about it."""
    async with mount(live, BEHIND) as (fs, client):
        opened, attr = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_CREAT)

        async def full(*arguments: object) -> int:
            raise FS3Error(Code.NO_SPACE, "full")

        client.write = full  # type: ignore[method-assign,assignment]
        await fs.write(opened.handle, 0, b"x" * CHUNK_SIZE)
        assert (await fs.getattr(attr.inode)).length == 0, "it was not lost"
        for _ in range(2):
            with pytest.raises(FS3Error) as caught:
                await fs.read(opened.handle, 0, 10)
            assert caught.value.code is Code.NO_SPACE
        await fs.setattr(ROOT, attr.inode, length=5, mtime_ns=7, handle=opened.handle)
        other = await fs.open(ROOT, attr.inode, os.O_RDONLY | os.O_TRUNC)
        await fs.flush(other.handle)
        await fs.release(other.handle)
        with pytest.raises(FS3Error) as caught:
            await fs.flush(opened.handle)
        assert caught.value.code is Code.NO_SPACE
        assert bytes(await fs.read(opened.handle, 0, 10)) == b""
        await fs.release(opened.handle)


async def test_a_hot_block_goes_to_the_kernel_unless_the_file_is_open_for_writing(live: Live) -> None:
    async with mount(live, replace(THROUGH, read_cache=16 * BLOCK_SIZE)) as (fs, _):
        stored: list[tuple[int, int, bytes]] = []
        gate = trio.Event()

        async def store(inode: int, offset: int, data: memoryview) -> None:
            await gate.wait()
            stored.append((inode, offset, bytes(data)))

        fs.use_kernel(store, lambda inode: None)
        content = bytes(range(251)) * (4 * BLOCK_SIZE // 251)
        inode = await make(fs, b"f", content)
        reading = await fs.open(ROOT, inode, os.O_RDONLY)

        async def read_randomly(*blocks: int) -> None:
            for place in range(10):
                offset = blocks[place % 2] * BLOCK_SIZE + place * place * 5 % 16 * 60_000
                assert bytes(await fs.read(reading.handle, offset, 4096)) == content[offset : offset + 4096]

        await read_randomly(0, 2)
        async with trio.open_nursery() as nursery:

            async def open_for_writing() -> None:
                await fs.open(ROOT, inode, os.O_WRONLY)
                assert stored, "the kernel could write while it was given older bytes"

            nursery.start_soon(open_for_writing)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.set()
        starts = range(0, len(content), BLOCK_SIZE)
        assert sorted(stored) == [(inode, start, content[start : start + BLOCK_SIZE]) for start in starts]
        await read_randomly(1, 3)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(stored) == len(starts)


async def test_an_open_tells_the_kernel_to_ask_again_where_another_mount_changed_the_file(live: Live) -> None:
    async with mount(live) as (fs, _), mount(live) as (other, _):
        asked: list[int] = []
        fs.use_kernel(no_store, asked.append)
        inode = await make(fs, b"f", b"abc")
        await fs.getattr(inode)
        await fs.release((await fs.open(ROOT, inode, os.O_RDONLY)).handle)
        assert asked == []
        opened = await other.open(ROOT, inode, os.O_WRONLY)
        await other.write(opened.handle, 0, b"longer")
        await other.release(opened.handle)
        await fs.release((await fs.open(ROOT, inode, os.O_RDONLY)).handle)
        assert asked == [inode]
        await fs.release((await fs.open(ROOT, inode, os.O_RDONLY)).handle)
        assert asked == [inode]


async def no_store(inode: int, offset: int, data: memoryview) -> None:
    raise AssertionError("nothing is hot here")


async def test_direct_readers_follow_a_length_that_another_mount_changes(live: Live) -> None:
    async with mount(live) as (fs, _), mount(live) as (other, _):
        inode = await make(fs, b"f", b"x" * 3000)
        opened = await fs.open(ROOT, inode, os.O_RDONLY | os.O_DIRECT)
        await other.setattr(ROOT, inode, length=5)
        assert await fs.read(opened.handle, 0, 3000) == b"xxxxx"
        await other.setattr(ROOT, inode, length=2 * CHUNK_SIZE)
        assert await fs.read(opened.handle, 0, 3 * CHUNK_SIZE) == b"xxxxx" + bytes(2 * CHUNK_SIZE - 5)
        await fs.release(opened.handle)


async def test_a_strict_mount_tells_meta_of_each_write_and_keeps_nothing(live: Live) -> None:
    strict = replace(THROUGH, strict=True, write_behind=CHUNK_SIZE)
    async with mount(live, strict) as (fs, _), mount(live) as (_, client):
        writer, attr = await fs.create(ROOT, ROOT_INODE, b"f", 0o644, os.O_RDWR | os.O_CREAT)
        assert writer.direct_io and not writer.keep_cache
        for length in (100, 200):
            await fs.write(writer.handle, length - 100, b"x" * 100)
            assert (await client.getattr(attr.inode)).length == length
        assert not (await fs.open(ROOT, attr.inode, os.O_RDONLY)).keep_cache


async def test_a_folder_s_attributes_follow_what_is_done_in_it_without_asking(live: Live) -> None:
    async with mount(live) as (fs, _), live.client() as other:
        folder = (await fs.mknod(ROOT, ROOT_INODE, b"d", FileKind.DIRECTORY, 0o755)).inode
        for _ in range(2):
            await fs.getattr(folder)

        async def known() -> None:
            """It is known, and as meta has it."""
            found = fs.folder(folder, 60)
            assert found is not None and 0 < found[1] <= 60
            assert found[0] == await other.getattr(folder)

        await known()
        assert fs.folder(folder, 0) is None
        opened, made = await fs.create(ROOT, folder, b"f", 0o644, os.O_WRONLY | os.O_CREAT)
        await known()
        await fs.release(opened.handle)
        await fs.mknod(ROOT, folder, b"p", FileKind.FIFO, 0o644)
        await known()
        await fs.link(ROOT, made.inode, folder, b"l")
        await known()
        await fs.rename(ROOT, folder, b"f", folder, b"g", RenameFlags.NONE)
        await known()
        await fs.unlink(ROOT, folder, b"l")
        await known()
        for change in (
            lambda: fs.mknod(ROOT, folder, b"sub", FileKind.DIRECTORY, 0o755),
            lambda: fs.rmdir(ROOT, folder, b"sub"),
            lambda: fs.setattr(ROOT, folder, mode=0o700),
            lambda: fs.setattr(ROOT, folder, mtime_ns=1),
            lambda: fs.setxattr(ROOT, folder, b"user.a", b"1"),
        ):
            await change()
            assert fs.folder(folder, 60) is None
            await fs.getattr(folder)
            await known()


async def test_names_asked_for_in_a_row_are_fetched_together(live: Live) -> None:
    async with mount(live) as (fs, client), live.client() as other:
        inodes = [await make(fs, b"%03d" % number) for number in range(50)]
        fs.forget(inodes[45], 1)
        asked = 0
        lookup = client.lookup

        async def counted(caller: Caller, parent: int, name: bytes) -> Attr:
            nonlocal asked
            asked += 1
            return await lookup(caller, parent, name)

        client.lookup = counted  # type: ignore[method-assign]
        found = [await fs.find(ROOT, ROOT_INODE, b"%03d" % number, 5.0) for number in range(30)]
        assert [attr.inode for attr, _ in found] == inodes[:30] and asked == STREAK
        assert [age > 0 for _, age in found] == [False] * STREAK + [True] * 26
        before = asked
        # Names that others made are found at once, and no name is missing because a page lacks it.
        await other.mknod(ROOT, ROOT_INODE, b"030a", FileKind.FILE, 0o644)
        assert (await fs.find(ROOT, ROOT_INODE, b"030a", 5.0))[1] == 0.0
        with pytest.raises(FS3Error) as caught:
            await fs.find(ROOT, ROOT_INODE, b"030b", 5.0)
        assert caught.value.code is Code.NOT_FOUND and asked == before + 2
        # What this mount changed itself shows at once.
        assert (await fs.find(ROOT, ROOT_INODE, b"031", 5.0))[1] > 0
        await fs.setattr(ROOT, inodes[32], mode=0o600)
        attr, age_s = await fs.find(ROOT, ROOT_INODE, b"032", 5.0)
        assert attr.mode == 0o600 and age_s == 0.0
        await fs.unlink(ROOT, ROOT_INODE, b"033")
        with pytest.raises(FS3Error):
            await fs.find(ROOT, ROOT_INODE, b"033", 5.0)
        # Nothing is kept where nothing may be.
        assert [(await fs.find(ROOT, ROOT_INODE, b"%03d" % n, 0.0))[1] for n in range(34, 44)] == [0.0] * 10


async def test_what_an_open_showed_is_not_taken_back_by_an_older_page(live: Live) -> None:
    async with mount(live) as (fs, _), live.client() as other:
        inodes = [await make(fs, b"%03d" % number) for number in range(20)]
        for number in range(STREAK + 1):
            _, age_s = await fs.find(ROOT, ROOT_INODE, b"%03d" % number, 5.0)
        assert age_s > 0, "a page has come"
        await other.setattr(ROOT, inodes[10], mode=0o600)
        opened = await fs.open(ROOT, inodes[10], os.O_RDONLY)
        attr, age_s = await fs.find(ROOT, ROOT_INODE, b"010", 5.0)
        assert attr.mode == 0o600 and age_s == 0.0
        await fs.release(opened.handle)


async def test_who_may_look_up_names_but_not_list_them_is_answered_one_by_one(live: Live) -> None:
    async with mount(live) as (fs, _):
        attr = await fs.mknod(ROOT, ROOT_INODE, b"closed", FileKind.DIRECTORY, 0o711)
        for number in range(12):
            await fs.mknod(ROOT, attr.inode, b"%03d" % number, FileKind.FILE, 0o644)
        somebody = Caller(1000, 1000, (1000,))
        for number in range(12):
            assert (await fs.find(somebody, attr.inode, b"%03d" % number, 5.0))[1] == 0.0
