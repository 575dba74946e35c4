"""Truncation and settling: nothing old comes back, nothing new is cut off, whatever dies in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from fs3.api import meta as api
from fs3.api.meta import Access
from fs3.errors import Code, FS3Error
from fs3.kv.memory import Fault, MemoryEngine, Operation
from tests.unit.meta.world import CHUNK, FakeChunks, R, World, refused, world

DATA = bytes(range(1, 251)) * 600  # 150,000 bytes: three chunks


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(DATA) - 1])
async def test_old_bytes_do_not_come_back_when_a_file_shrinks_and_grows(length: int) -> None:
    async with world() as w:
        attr = await w.written(R, b"f", DATA)
        cut = await w.setattr(attr.inode, length=length)
        assert cut.length == length and cut.truncate_version > attr.truncate_version
        assert cut.mtime_ns == cut.ctime_ns > attr.mtime_ns
        grown = await w.setattr(attr.inode, length=len(DATA))
        assert w.chunks.read(grown) == DATA[:length] + bytes(len(DATA) - length)
        assert await w.keys(b"INTN") == []


async def test_to_grow_a_closed_file_leaves_storage_alone() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", DATA)
        grown = await w.setattr(attr.inode, length=10**9)
        assert grown.length == 10**9 and grown.data_version > attr.data_version
        same = await w.setattr(attr.inode, length=10**9)
        assert same.mtime_ns > grown.mtime_ns
        assert w.chunks.calls == []


async def test_what_a_writer_has_not_reported_is_cut_too() -> None:
    async with world() as w:
        attr = (await w.create(R, b"f")).attr
        w.chunks.write(attr, 0, DATA)
        cut = await w.setattr(attr.inode, length=CHUNK + 5)  # longer than meta knows the file to be
        assert w.chunks.read(cut) == DATA[: CHUNK + 5]
        grown = await w.setattr(attr.inode, length=len(DATA))
        assert w.chunks.read(grown) == DATA[: CHUNK + 5] + bytes(len(DATA) - CHUNK - 5)


async def test_others_wait_until_the_chunks_are_cut() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", DATA)
        w.chunks.gate = trio.Event()
        done: list[str] = []

        async with trio.open_nursery() as nursery:

            async def note(name: str, what: object) -> None:
                await what  # type: ignore[misc]
                done.append(name)

            nursery.start_soon(note, "cut", w.setattr(attr.inode, length=10))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(note, "grown", w.setattr(attr.inode, length=len(DATA)))
            nursery.start_soon(note, "opened", w.open(attr.inode, Access.WRITE))
            await trio.testing.wait_all_tasks_blocked()
            assert (await w.getattr(attr.inode)).length == 10  # who only looks does not wait
            assert done == []
            w.chunks.gate.set()
        assert sorted(done) == ["cut", "grown", "opened"]
        assert w.chunks.read(await w.getattr(attr.inode))[10:] == bytes(len(DATA) - 10)


async def test_who_looks_during_the_cut_is_not_believed_after_it() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", DATA)
        opened = await w.open(attr.inode, Access.WRITE)
        w.chunks.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: w.setattr(attr.inode, length=10))
            await trio.testing.wait_all_tasks_blocked()
            during = await w.getattr(attr.inode)
            assert during.truncate_version > opened.truncate_version
            w.chunks.write(during, 0, b"w" * 1000)  # of this the cut, which is still to come, leaves ten bytes
            w.chunks.gate.set()
        settled = await w.close(during, 1000)
        assert settled.length == 10
        assert w.chunks.read(settled) == b"w" * 10


async def test_a_failing_storage_service_is_the_callers_error_and_the_next_one_finishes() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", DATA)
        w.chunks.fail = FS3Error(Code.CHAIN_UNAVAILABLE, "no serving target")
        tag = w.tag()
        request = api.SetattrRequest(tag, w.caller, attr.inode, length=10)
        async with refused(Code.CHAIN_UNAVAILABLE):
            await w.call(api.SETATTR, request)
        async with refused(Code.CHAIN_UNAVAILABLE):
            await w.open(attr.inode)
        w.chunks.fail = None
        reply = await w.call(api.SETATTR, request)  # the client's retry
        assert reply.attr.length == 10 and w.chunks.read(reply.attr) == DATA[:10]
        assert await w.setattr(attr.inode) == reply.attr


async def test_unlink_of_a_file_that_is_being_cut() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", DATA)
        w.chunks.fail = FS3Error(Code.CHAIN_UNAVAILABLE, "no serving target")
        async with refused(Code.CHAIN_UNAVAILABLE):
            await w.setattr(attr.inode, length=10)
        await w.unlink(R, b"f")
        w.chunks.fail = None
        await w.service.collector.collect()
        assert w.chunks.chunks == {} and await w.keys(b"INTN") == []


class Mortal:
    """A store and chunks whose user dies at its at-th step: a read, a commit (done or not), a change of a chunk."""

    def __init__(self, at: int) -> None:
        self.engine = MemoryEngine(hook=self._hook)
        self.chunks = FakeChunks()
        self.chunks.step = self._step
        self._left = at
        self._scope: trio.CancelScope | None = None

    async def _hook(self, operation: Operation) -> Fault | None:
        if await self._step(operation is Operation.READ):
            return Fault.UNKNOWN_APPLIED
        return None

    async def _step(self, sleep: bool = True) -> bool:
        await trio.lowlevel.checkpoint()
        if self._scope is None:
            return False
        self._left -= 1
        if self._left:
            return False
        self._scope.cancel()
        self._scope = None
        if sleep:
            await trio.sleep_forever()
        return True

    async def run(self, act: Callable[[World], Awaitable[object]]) -> bool:
        """Let a daemon of its own do it. Returns whether that died."""
        with trio.CancelScope() as scope:
            async with world(engine=self.engine, chunks=self.chunks) as w:
                self._scope = scope
                await act(w)
                self._scope = None
        return scope.cancelled_caught


@pytest.mark.parametrize("open_for_write", [False, True])
async def test_a_crash_anywhere_in_a_truncation(open_for_write: bool, autojump_clock: object) -> None:
    for at in range(1, 100):
        mortal = Mortal(at)
        engine, chunks = mortal.engine, mortal.chunks
        async with world(engine=engine, chunks=chunks) as first:
            if open_for_write:
                attr = (await first.create(R, b"f")).attr
                chunks.write(attr, 0, DATA)
                attr = await first.report(attr, len(DATA))
            else:
                attr = await first.written(R, b"f", DATA)

        async def cut(w: World, inode: int = attr.inode) -> None:
            await w.setattr(inode, length=CHUNK + 7)

        crashed = await mortal.run(cut)
        async with world(engine=engine, chunks=chunks) as after:
            # Whoever comes next finds the file cut or not, and never half.
            opened = await after.open(attr.inode, Access.WRITE, session=7)
            assert opened.length in ((CHUNK + 7,) if not crashed else (len(DATA), CHUNK + 7)), at
            expected = DATA[: opened.length]
            assert chunks.read(opened) == expected
            chunks.write(opened, len(DATA) - 1, b"!")
            closed = await after.close(opened, len(DATA), session=7)
            expected += bytes(len(DATA) - 1 - len(expected)) if len(expected) < len(DATA) else b""
            assert chunks.read(closed) == expected[: len(DATA) - 1] + b"!"
            await trio.sleep(60)
            assert chunks.read(await after.getattr(attr.inode)) == expected[: len(DATA) - 1] + b"!"
            assert await after.keys(b"INTN") == []
        if not crashed:
            assert at > 10
            return
    raise AssertionError("it never came to an end")


async def test_the_collector_completes_what_a_dead_daemon_left(autojump_clock: object) -> None:
    engine, chunks = MemoryEngine(), FakeChunks()
    async with world(engine=engine, chunks=chunks) as first:
        attr = await first.written(R, b"f", DATA)
        chunks.gate = trio.Event()
        with trio.move_on_after(1):
            await first.setattr(attr.inode, length=3)
    chunks.gate = None
    assert chunks.count(attr.inode) == 3
    async with world(engine=engine, chunks=chunks, collecting=True) as second:
        await trio.sleep(5)
        assert chunks.count(attr.inode) == 3  # the first one may still be alive for all we know
        await trio.sleep(15)
        assert chunks.count(attr.inode) == 1
        assert await second.keys(b"INTN") == []


async def test_two_daemons_never_cut_what_was_written_after_the_cut(autojump_clock: object) -> None:
    engine, chunks = MemoryEngine(), FakeChunks()
    async with world(engine=engine, chunks=chunks) as slow, world(engine=engine, chunks=chunks) as other:
        attr = await slow.written(R, b"f", DATA)
        chunks.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: slow.setattr(attr.inode, length=5))
            await trio.sleep(1)
            opened = None
            with trio.move_on_after(2):
                opened = await other.open(attr.inode, Access.WRITE, session=3)
            assert opened is None  # it waits for the one who is at it
            chunks.gate.set()
            opened = await other.open(attr.inode, Access.WRITE, session=3)
            chunks.write(opened, 0, DATA)
            closed = await other.close(opened, len(DATA), session=3)
        await trio.sleep(60)
        assert chunks.read(closed) == DATA
        assert chunks.calls == ["truncate"]


async def test_a_request_that_is_given_up_does_not_stop_the_cut() -> None:
    async with world() as w:
        attr = await w.written(R, b"f", DATA)
        w.chunks.gate = trio.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: w.setattr(attr.inode, length=5))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        w.chunks.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert w.chunks.read(await w.getattr(attr.inode)) == DATA[:5]
        assert await w.keys(b"INTN") == []
