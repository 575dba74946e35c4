"""FileClient against a whole cluster in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from fs3.api.meta import OPEN, Access, Caller, RenameFlags
from fs3.client.file import ROOT_CALLER, FileClient, FileHandle
from fs3.client.paths import Paths
from fs3.errors import Code, FS3Error
from fs3.ids import ROOT_INODE
from tests.unit.client.live import CHUNK_SIZE, Live


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, storages=2, replicas=2).running() as cluster:
        yield cluster


@pytest.fixture
async def client(live: Live) -> AsyncIterator[FileClient]:
    async with live.client() as connected:
        yield connected


async def create(client: FileClient, name: bytes = b"f", append: bool = False) -> FileHandle:
    return await client.create(ROOT_CALLER, ROOT_INODE, name, 0o644, Access.READ_WRITE, append=append)


async def test_content_over_chunk_borders_is_read_as_written(client: FileClient) -> None:
    file = await create(client)
    data = bytes(range(256)) * 1024  # four chunks
    assert await client.write(file, CHUNK_SIZE - 7, data) == len(data)
    assert bytes(await client.read(file, CHUNK_SIZE - 7, len(data))) == data
    assert bytes(await client.read(file, 0, CHUNK_SIZE)) == bytes(CHUNK_SIZE - 7) + data[:7]
    assert bytes(await client.read(file, CHUNK_SIZE, 1 << 30)) == data[7:]
    assert len(await client.read(file, 1 << 40, 10)) == 0
    await client.close(file)


async def test_length_is_exact_for_the_writer_and_for_others_after_flush(live: Live, client: FileClient) -> None:
    async with live.client() as other:
        file = await create(client)
        await client.write(file, 1000, b"x")
        assert (await client.getattr(file.inode.id)).length == 1001
        await client.write(file, 2000, b"x")
        await client.flush(file)
        assert (await other.getattr(file.inode.id)).length == 2001
        await client.write(file, 3000, b"x")
        await client.close(file)
        assert (await other.getattr(file.inode.id)).length == 3001


async def test_a_reader_sees_what_another_client_adds(live: Live, client: FileClient) -> None:
    async with live.client() as other:
        writing = await create(client)
        await client.write(writing, 0, b"one")
        await client.flush(writing)
        reading = await other.open(ROOT_CALLER, writing.inode.id, Access.READ)
        assert bytes(await other.read(reading, 0, 100)) == b"one"
        await client.write(writing, 3, b"two")
        await client.fsync(writing)
        assert bytes(await other.read(reading, 3, 100)) == b"two"
        await other.close(reading)
        await client.close(writing)


async def test_truncation_cuts_what_was_written_and_growing_again_shows_zeros(client: FileClient) -> None:
    file = await create(client)
    await client.write(file, 0, b"a" * (2 * CHUNK_SIZE))
    assert (await client.truncate(file, 10)).length == 10
    await client.truncate(file, CHUNK_SIZE + 5)
    assert bytes(await client.read(file, 0, 1 << 20)) == b"a" * 10 + bytes(CHUNK_SIZE - 5)
    await client.close(file)


async def test_set_times_survive_the_close(client: FileClient) -> None:
    file = await create(client)
    await client.write(file, 0, b"x")
    await client.setattr(ROOT_CALLER, file.inode.id, mtime_ns=42)
    await client.close(file)
    attr = await client.getattr(file.inode.id)
    assert (attr.mtime_ns, attr.length) == (42, 1)


async def test_appends_of_two_clients_neither_overwrite_nor_tear(live: Live, client: FileClient) -> None:
    async with live.client() as other:
        mine = await create(client, append=True)
        theirs = await other.open(ROOT_CALLER, mine.inode.id, Access.WRITE, append=True)
        async with trio.open_nursery() as nursery:

            async def add(who: FileClient, file: FileHandle, letter: bytes) -> None:
                for number in range(20):
                    await who.write(file, 0, letter * (number + 1) + b"\n")

            nursery.start_soon(add, client, mine, b"m")
            nursery.start_soon(add, other, theirs, b"t")
        await other.close(theirs)
        lines = bytes(await client.read(mine, 0, 1 << 20)).split(b"\n")[:-1]
        assert sorted(lines) == sorted([c * n for c in (b"m", b"t") for n in range(1, 21)])
        await client.close(mine)


async def test_a_file_unlinked_while_open_for_reading_stays_readable(client: FileClient) -> None:
    file = await create(client)
    await client.write(file, 0, b"still here")
    await client.close(file)
    reading = await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    await client.remove(ROOT_CALLER, ROOT_INODE, b"f", directory=False, hold=True)
    assert bytes(await client.read(reading, 0, 100)) == b"still here"
    assert (await client.getattr(file.inode.id)).nlink == 0
    await client.close(reading)
    await client.releases.tell()
    with pytest.raises(FS3Error) as caught:
        await client.getattr(file.inode.id)
    assert caught.value.code is Code.STALE_HANDLE


async def test_a_file_removed_by_another_client_is_read_whole_or_not_at_all(live: Live, client: FileClient) -> None:
    file = await create(client)
    await client.write(file, 0, b"still here")
    await client.close(file)
    reading = await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    async with live.client() as other:
        await other.remove(ROOT_CALLER, ROOT_INODE, b"f", directory=False)
        with trio.fail_after(10), pytest.raises(FS3Error) as caught:
            while True:  # until the collector was there
                assert bytes(await client.read(reading, 0, 10)) == b"still here"
                await trio.lowlevel.checkpoint()
    assert caught.value.code is Code.STALE_HANDLE
    await client.close(reading)


async def test_a_file_that_is_open_for_a_while_is_kept_when_another_client_removes_it(
    live: Live, client: FileClient
) -> None:
    data = bytes(range(256)) * 1024
    async with live.client() as other:
        await Paths(other).write_file("/f", data)
        inode = (await Paths(other).stat("/f")).inode
        file = await client.open(ROOT_CALLER, inode, Access.READ)
        again = await client.open(ROOT_CALLER, inode, Access.READ)
        await client.holds.keep([file.inode])
        await Paths(other).unlink("/f")
        await trio.sleep(0.2)
        assert bytes(await client.read(file, 0, len(data))) == data
        assert (await client.getattr(inode)).nlink == 0
        await client.holds.renew()
        assert not file.inode.gone
        await client.close(file)
        assert bytes(await client.read(again, 0, 5)) == data[:5]
        await client.close(again)
        await client.releases.tell()
        with pytest.raises(FS3Error) as caught:
            await other.getattr(inode)
        assert caught.value.code is Code.STALE_HANDLE
        gone = await client.create(ROOT_CALLER, ROOT_INODE, b"g", 0o644, Access.READ)
        await Paths(other).unlink("/g")
        await client.holds.keep([gone.inode])
        assert gone.inode.holds == []
        await client.close(gone)


async def test_a_hold_that_nobody_needs_is_given_back(client: FileClient) -> None:
    file = await create(client)
    await client.close(file)
    await client.remove(ROOT_CALLER, ROOT_INODE, b"f", directory=False, hold=True)
    await client.releases.tell()
    with pytest.raises(FS3Error):
        await client.getattr(file.inode.id)


@pytest.mark.parametrize("closed_first", [True, False])
async def test_a_file_that_is_opened_while_it_is_removed_and_closed_stays_held(
    client: FileClient, monkeypatch: pytest.MonkeyPatch, closed_first: bool
) -> None:
    """Meta lets it be opened, since its data is held for another here; that one closes it before the answer comes."""
    file = await create(client)
    await client.write(file, 0, b"data")
    await client.close(file)
    first = await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    call, answered, arrive = client._meta.call, trio.Event(), trio.Event()

    async def held_up(method: Any, request: Any, **options: Any) -> Any:
        reply = await call(method, request, **options)
        if method is OPEN:
            answered.set()
            await arrive.wait()
        return reply

    monkeypatch.setattr(client._meta, "call", held_up)
    found: list[FileHandle] = []

    async def open_again() -> None:
        found.append(await client.open(ROOT_CALLER, file.inode.id, Access.READ))

    async with trio.open_nursery() as nursery:
        if closed_first:  # then the hold is of no handle
            await client.close(first)
            nursery.start_soon(open_again)
            await answered.wait()
        await client.remove(ROOT_CALLER, ROOT_INODE, b"f", directory=False, hold=True)
        if not closed_first:
            nursery.start_soon(open_again)
            await answered.wait()
            await client.close(first)
        await client.releases.tell()
        arrive.set()
    assert bytes(await client.read(found[0], 0, 10)) == b"data" and (await client.getattr(file.inode.id)).nlink == 0
    await client.close(found[0])
    await client.releases.tell()
    with pytest.raises(FS3Error):
        await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    assert not client.any_open


async def test_a_removed_file_that_was_just_closed_is_opened_for_good_or_not_at_all(
    client: FileClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await create(client)
    await client.write(file, 0, b"data")
    await client.close(file)
    first = await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    await client.remove(ROOT_CALLER, ROOT_INODE, b"f", directory=False, hold=True)
    monkeypatch.setattr(client.releases, "tell", trio.lowlevel.checkpoint)
    await client.close(first)  # of which meta will hear later
    again = await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    monkeypatch.undo()
    await client.releases.tell()
    assert bytes(await client.read(again, 0, 10)) == b"data"
    await client.close(again)
    await client.releases.tell()
    with pytest.raises(FS3Error) as caught:
        await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    assert caught.value.code is Code.STALE_HANDLE and not client.any_open


async def test_a_file_renamed_over_stays_readable(client: FileClient) -> None:
    for name in (b"old", b"new"):
        file = await create(client, name)
        await client.write(file, 0, name)
        await client.close(file)
    reading = await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    reply = await client.rename(ROOT_CALLER, ROOT_INODE, b"old", ROOT_INODE, b"new", hold=True)
    assert reply.replaced == file.inode.id
    assert bytes(await client.read(reading, 0, 100)) == b"new"
    await client.close(reading)


async def test_a_file_renamed_over_stays_readable_when_its_other_name_goes_too(client: FileClient) -> None:
    file = await create(client, b"one")
    await client.write(file, 0, b"data")
    await client.close(file)
    await client.link(ROOT_CALLER, file.inode.id, ROOT_INODE, b"two")
    await client.close(await create(client, b"other"))
    reading = await client.open(ROOT_CALLER, file.inode.id, Access.READ)
    await client.rename(ROOT_CALLER, ROOT_INODE, b"other", ROOT_INODE, b"one", hold=True)
    await client.remove(ROOT_CALLER, ROOT_INODE, b"two", directory=False, hold=True)
    await client.releases.tell()
    assert (await client.getattr(file.inode.id)).nlink == 0
    assert bytes(await client.read(reading, 0, 100)) == b"data"
    await client.close(reading)
    await client.releases.tell()
    with pytest.raises(FS3Error):
        await client.getattr(file.inode.id)


async def test_nothing_is_written_to_a_file_that_went_while_this_client_was_taken_for_dead(client: FileClient) -> None:
    file = await create(client)
    client.releases.add(file.inode.id, file.session)  # as meta ends it
    await client.releases.tell()
    await client.remove(ROOT_CALLER, ROOT_INODE, b"f", directory=False)
    await client.reopen_sessions()
    with pytest.raises(FS3Error) as caught:
        await client.write(file, 0, b"x")
    assert caught.value.code is Code.STALE_HANDLE
    await client.close(file)


async def test_fsync_syncs_what_is_not_known_to_be_stable_and_then_nothing(client: FileClient) -> None:
    file = await create(client)
    await client.write(file, 0, b"x" * 3 * CHUNK_SIZE)
    await client.fsync(file)
    synced: list[object] = []
    client._storage.sync = lambda *a, **k: synced.append(a)  # type: ignore[method-assign,assignment]
    await client.fsync(file)
    assert synced == [] and not file.inode.dirty
    await client.close(file)


async def test_fsync_makes_a_new_name_durable(client: FileClient) -> None:
    """The content is synced already, but power loss must not bring the old name back."""
    file = await create(client)
    await client.write(file, 0, b"x")
    await client.fsync(file)
    assert not file.inode.unsynced_attr
    await client.rename(ROOT_CALLER, ROOT_INODE, b"f", ROOT_INODE, b"new")
    assert file.inode.unsynced_attr
    await client.fsync(file)
    assert not file.inode.unsynced_attr
    await client.link(ROOT_CALLER, file.inode.id, ROOT_INODE, b"other")
    assert file.inode.unsynced_attr
    await client.fsync(file)
    third = await create(client, b"third")
    await client.fsync(third)
    await client.rename(ROOT_CALLER, ROOT_INODE, b"third", ROOT_INODE, b"new", RenameFlags.EXCHANGE)
    assert third.inode.unsynced_attr and file.inode.unsynced_attr
    await client.close(third)
    await client.close(file)


async def test_permissions_are_those_of_the_caller(client: FileClient) -> None:
    user = Caller(1000, 1000, (1000, 50))
    file = await create(client)
    await client.close(file)
    with pytest.raises(FS3Error) as caught:
        await client.open(user, file.inode.id, Access.WRITE)
    assert caught.value.code is Code.PERMISSION_DENIED
    await client.setattr(ROOT_CALLER, file.inode.id, gid=50, mode=0o660)
    await client.close(await client.open(user, file.inode.id, Access.WRITE))


async def test_a_storage_daemon_that_restarts_is_not_noticed(live: Live, client: FileClient) -> None:
    file = await create(client)
    data = bytes(range(256)) * 256
    for number in (1, 2):
        await live.stop_storage(number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.write, file, number * CHUNK_SIZE, data)
            nursery.start_soon(live.start_storage, number)
        assert bytes(await client.read(file, number * CHUNK_SIZE, CHUNK_SIZE)) == data
    await client.close(file)


async def test_paths(client: FileClient) -> None:
    fs = Paths(client, ROOT_CALLER)
    await fs.makedirs("/a/b")
    await fs.write_file("/a/b/f", b"content")
    await fs.symlink("b", "/a/link")
    await fs.symlink("/a/link/f", "far")
    assert await fs.read_file("far") == b"content"
    assert (await fs.listdir("/a"), await fs.listdir("a/link")) == (["b", "link"], ["f"])
    await fs.rename("/a/b", "/c")
    assert await fs.exists("/c/f") and not await fs.exists("/a/link/f")
    async with fs.open("/c/f", "a") as file:
        await file.write_at(0, b"!")
    assert await fs.read_file("/c/f") == b"content!"
    with pytest.raises(FS3Error) as caught:
        await fs.open_file("/c/f", "x")
    assert caught.value.code is Code.EXISTS
    await fs.symlink("loop", "/loop")
    with pytest.raises(FS3Error) as caught:
        await fs.stat("/loop")
    assert caught.value.code is Code.LOOP
    await fs.unlink("/c/f")
    await fs.rmdir("/c")
    assert await fs.listdir("/") == ["a", "far", "loop"]
