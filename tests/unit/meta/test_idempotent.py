"""A request is done once, however often, wherever and in whatever order its copies arrive."""

from __future__ import annotations

import pytest
import trio

from fs3.api import meta as api
from fs3.api.meta import FileKind
from fs3.errors import Code, FS3Error
from fs3.ids import RequestTag
from fs3.kv.memory import Fault, MemoryEngine, Operation
from tests.unit.meta.world import CLIENT, ROOT, R, refused, world


def mkdir(sequence: int, name: bytes = b"d", channel: int = 1) -> api.MknodRequest:
    return api.MknodRequest(RequestTag(5, channel, sequence), ROOT, R, name, FileKind.DIRECTORY, 0o755)


def rmdir(sequence: int, name: bytes = b"d", channel: int = 1) -> api.RemoveRequest:
    return api.RemoveRequest(RequestTag(5, channel, sequence), ROOT, R, name, True)


async def test_a_repeated_request_is_answered_from_its_record() -> None:
    async with world() as w, world(engine=w.engine) as other:
        first = await w.call(api.MKNOD, mkdir(1))
        assert await w.call(api.MKNOD, mkdir(1)) == first
        assert await other.call(api.MKNOD, mkdir(1)) == first
        assert (await w.getattr(R)).nlink == 3
        await w.call(api.REMOVE, rmdir(1, channel=2))
        assert await w.call(api.MKNOD, mkdir(1)) == first  # not made again
        assert await w.names(R) == []


async def test_one_record_per_channel() -> None:
    async with world() as w:
        for sequence in range(1, 9):
            await w.call(api.MKNOD, mkdir(sequence, b"%d" % sequence, channel=sequence % 2))
        assert len(await w.keys(b"IDEM")) == 2


async def test_a_request_that_its_client_has_left_behind_is_refused() -> None:
    async with world() as w:
        await w.call(api.MKNOD, mkdir(1))
        await w.call(api.REMOVE, rmdir(2))
        async with refused(Code.STALE_WRITE):
            await w.call(api.MKNOD, mkdir(1))
        assert await w.names(R) == []


async def test_a_refusal_is_repeated_too() -> None:
    async with world() as w:
        async with refused(Code.NOT_FOUND):
            await w.call(api.REMOVE, rmdir(1))
        await w.call(api.MKNOD, mkdir(1, channel=2))
        async with refused(Code.NOT_FOUND):
            await w.call(api.REMOVE, rmdir(1))
        assert await w.names(R) == [b"d"]
        async with refused(Code.EXISTS):
            await w.call(api.MKNOD, mkdir(2))
        async with refused(Code.STALE_WRITE):
            await w.call(api.REMOVE, rmdir(1))


async def test_a_tag_is_for_one_method() -> None:
    async with world() as w:
        await w.call(api.MKNOD, mkdir(1))
        async with refused(Code.INVALID):
            await w.call(api.REMOVE, rmdir(1))
        assert await w.names(R) == [b"d"]


@pytest.mark.parametrize("fault", [Fault.UNKNOWN_APPLIED, Fault.UNKNOWN_NOT_APPLIED, Fault.CONFLICT])
async def test_a_commit_that_nobody_knows_about_is_done_once(fault: Fault, autojump_clock: object) -> None:
    faults = [fault, fault]

    async def hook(operation: Operation) -> Fault | None:
        return faults.pop() if operation is Operation.COMMIT and faults and armed else None

    armed = False
    async with world(engine=MemoryEngine(hook=hook)) as w:
        await w.file(R, b"f")
        armed = True
        await w.rename(R, b"f", R, b"g")
        assert faults == ([] if fault is not Fault.UNKNOWN_APPLIED else [fault])
        assert await w.names(R) == [b"g"]
        faults[:] = [fault]
        linked = await w.link((await w.lookup(R, b"g")).inode, R, b"h")
        assert linked.nlink == 2


async def test_copies_that_run_at_the_same_time_do_it_once(autojump_clock: object) -> None:
    async def hook(operation: Operation) -> Fault | None:
        await trio.lowlevel.checkpoint()
        return None

    replies: list[api.AttrReply] = []
    async with world(engine=MemoryEngine(hook=hook)) as w, trio.open_nursery() as nursery:

        async def send() -> None:
            replies.append(await w.call(api.MKNOD, mkdir(1)))

        for _ in range(5):
            nursery.start_soon(send)
    assert len(replies) == 5 and len(set(replies)) == 1


async def test_an_unavailable_store_is_no_answer(autojump_clock: object) -> None:
    down = False

    async def hook(operation: Operation) -> Fault | None:
        return Fault.UNAVAILABLE if down else None

    async with world(engine=MemoryEngine(hook=hook)) as w:
        down = True
        for request, method in ((mkdir(1), api.MKNOD), (api.GetattrRequest(R), api.GETATTR)):
            with pytest.raises(FS3Error) as caught:
                await w.call(method, request)  # type: ignore[arg-type]
            assert caught.value.code is Code.KV_UNAVAILABLE and caught.value.retryable
        down = False
        await w.call(api.MKNOD, mkdir(1))
        assert CLIENT and await w.names(R) == [b"d"]
