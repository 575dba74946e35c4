from __future__ import annotations

import json

import pytest
import trio.testing

from fs3.api.common import METRICS, PING, TRACE, Empty, TraceRequest
from fs3.api.meta import Caller, LookupRequest
from fs3.api.storage import ReadRange, ReadRequest
from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.rpc.server import Call
from fs3.rpc.watching import in_words, inode_of
from fs3.watching import AWAY_S, LISTENERS_MAX

from .world import ADDRESS, ECHO, SLOW, Number, World, world


async def traced(w: World, listener: int) -> list[list[object]]:
    reply = await w.client.call(ADDRESS, TRACE, TraceRequest(listener), deadline=w.after(1))
    found: list[list[object]] = json.loads(reply.operations)
    return found


async def test_calls_are_timed_on_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        await w.slow(100)
        await w.slow(100)
        reply = await w.client.call(ADDRESS, METRICS, Empty(), deadline=w.after(1))
        timings = json.loads(reply.figures)["timings"]
        for name in (f"rpc.{SLOW.name}", f"call.{SLOW.name}"):
            total_ns, buckets = timings[name]
            assert total_ns == pytest.approx(200e6, rel=0.2) and sum(buckets.values()) == 2
        assert f"rpc.{ECHO.name}" not in timings, "what never happened is not told"


async def test_single_requests_are_told_while_somebody_listens(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:

        async def fails(request: Number, call: Call) -> Number:
            raise FS3Error(Code.NOT_FOUND, "no")

        w.server.handlers[ECHO.id] = (ECHO, fails)
        assert not w.env.metrics.listeners
        assert await traced(w, 1) == []
        with pytest.raises(FS3Error, match="no"):
            await w.echo(5)
        await w.slow(50)
        rows = [row for row in await traced(w, 1) if row[1] != "rpc.trace"]
        assert [(row[1], row[4], row[7]) for row in rows] == [
            (f"rpc.{ECHO.name}", "NOT_FOUND", "value=5"),
            (f"rpc.{SLOW.name}", "", "value=50"),
        ]
        assert await traced(w, 2) == []
        await trio.sleep(AWAY_S + 1)
        await w.client.call(ADDRESS, PING, Empty(), deadline=w.after(1))
        assert not w.env.metrics.listeners, "nobody has asked for long"


async def test_only_so_many_listen(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        for number in range(LISTENERS_MAX):
            await traced(w, number)
        with pytest.raises(FS3Error, match="trace this daemon already"):
            await traced(w, 99)
        await trio.sleep(AWAY_S + 1)
        await traced(w, 99)


def test_requests_in_words() -> None:
    lookup = LookupRequest(Caller(1, 2, (2,)), 7, b"name")
    assert inode_of(lookup) == 7 and in_words(lookup) == "parent=7 name=name"
    read = ReadRequest((ReadRange(1, 2, 3, ChunkId(0x70, 4), 0, 4096),))
    assert inode_of(read) == 0x70 and in_words(read) == "1 ranges"
    assert inode_of(Empty()) == 0 and in_words(Empty()) == ""
