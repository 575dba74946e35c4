from __future__ import annotations

import math

import trio
import trio.testing

from fs3.api.common import PING, Empty, Method
from fs3.env import Env
from fs3.errors import Code
from fs3.rpc.client import CONNECT_TIMEOUT_MS, RpcClient
from fs3.rpc.server import Call
from fs3.transport.base import Connection
from fs3.transport.memory import MemoryTransport
from fs3.wire.frame import Frame, Kind

from .world import ADDRESS, ECHO, Number, code_of, outcome_of, world

BULK = Method(50010, "test.bulk", Number, Number)


async def bulk(request: Number, call: Call) -> Number:
    """Replies after `value` ms with the payload of the request."""
    data = await call.payload()
    await trio.sleep(request.value / 1000)
    call.reply_payload([data])
    return request


async def test_replies_find_their_callers_out_of_order(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for ms in (300, 100, 200, 0):
                nursery.start_soon(outcome_of, lambda ms=ms: w.slow(ms), results)
        assert results == [0, 100, 200, 300]
        assert w.network.attempts == 1


async def test_bulk_lands_in_the_given_buffer_if_it_fits(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.server.handle(BULK, bulk)
        for size, room in ((5, 5), (5, 9), (5, 4), (0, 4), (300_000, 300_000), (5, None)):
            data = bytes([size % 251 + 1]) * size
            into = None if room is None else memoryview(bytearray(room))
            _, payload = await w.client.call_bulk(ADDRESS, BULK, Number(0), deadline=w.after(1), payload=[data], into=into)
            assert bytes(payload) == data
            if into is not None:
                assert bytes(into[:size]) == (data if len(into) >= size else bytes(len(into)))
        assert w.client.links[ADDRESS].connection._exposed == {}  # type: ignore[attr-defined]


async def test_deadline_fails_its_call_only(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, lambda: w.slow(3000), results)
            start = trio.current_time()
            assert await code_of(w.slow(2000, seconds=0.5)) is Code.DEADLINE_EXCEEDED
            assert trio.current_time() - start == 0.5
            assert await w.echo(7) == 7
        assert results == [3000]


async def test_later_deadlines_hold_too(autojump_clock: trio.testing.MockClock) -> None:
    """The watcher looks at the earliest one; it must go on to the next."""
    async with world() as w:
        ends: list[float] = []

        async def run(seconds: float) -> None:
            assert await code_of(w.slow(60_000, seconds)) is Code.DEADLINE_EXCEEDED
            ends.append(trio.current_time() - start)

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for seconds in (3, 1, 2, 1.5):
                nursery.start_soon(run, seconds)
        assert [round(end, 9) for end in ends] == [1, 1.5, 2, 3]


async def test_past_deadline_sends_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        assert await code_of(w.echo(1, seconds=0)) is Code.DEADLINE_EXCEEDED
        assert w.network.attempts == 0


async def test_deadline_passes_just_as_the_connection_is_there(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.network.delay_s = 1
        assert await code_of(w.echo(1, seconds=1)) is Code.DEADLINE_EXCEEDED


async def test_late_reply_does_not_touch_the_buffer(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.server.handle(BULK, bulk)
        into = memoryview(bytearray(10))
        call = w.client.call_bulk(ADDRESS, BULK, Number(500), deadline=w.after(0.1), payload=[b"x" * 10], into=into)
        assert await code_of(call) is Code.DEADLINE_EXCEEDED
        with trio.move_on_after(0.1):
            await w.client.call_bulk(ADDRESS, BULK, Number(500), deadline=w.after(9), payload=[b"y" * 10], into=into)
        await trio.sleep(2)
        assert bytes(into) == bytes(10)
        assert await w.echo(1) == 1


async def test_lost_connection_fails_all_its_calls_and_the_next_reconnects(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(outcome_of, lambda: w.slow(5000), results)
            await trio.sleep(0.1)
            assert w.serving is not None
            w.serving.cancel()
        assert results == [Code.CONNECTION_LOST] * 3
        assert await code_of(w.echo(1)) is Code.CONNECT_FAILED
        await w.serve()
        assert await w.echo(2) == 2


async def test_one_connection_is_made_for_all_who_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.network.delay_s = 1
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.5):  # the one who asked first gives up; the others are served all the same
                await w.echo(0)
            for value in (1, 2, 3):
                nursery.start_soon(outcome_of, lambda value=value: w.echo(value), results)
            nursery.start_soon(outcome_of, lambda: w.echo(4, seconds=0.3), results)
        assert results[0] is Code.DEADLINE_EXCEEDED and sorted(results[1:]) == [1, 2, 3]  # type: ignore[type-var]
        assert w.network.attempts == 1


async def test_connecting_has_a_deadline_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.network.delay_s = 3600
        start = trio.current_time()
        assert await code_of(w.echo(0, seconds=100)) is Code.CONNECT_FAILED
        assert round(trio.current_time() - start, 6) == CONNECT_TIMEOUT_MS / 1000


async def test_bad_address_is_a_config_error(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        assert await code_of(w.client.call("nowhere", PING, Empty(), deadline=w.after(1))) is Code.CONFIG


async def test_silent_connection_is_not_used_for_new_calls(autojump_clock: trio.testing.MockClock) -> None:
    """It may be dead without anybody having told us. Calls that it still carries may finish."""
    async with world() as w:
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, lambda: w.slow(5000), results)
            await trio.sleep(0.1)
            assert await code_of(w.slow(3000, seconds=1)) is Code.DEADLINE_EXCEEDED
            assert await w.echo(1) == 1
            assert w.network.attempts == 2 and len(w.client._all) == 2
        assert results == [5000]
        await trio.testing.wait_all_tasks_blocked()
        assert len(w.client._all) == 1, "the retired connection ends with its last call"


async def test_close_fails_what_is_outstanding(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, lambda: w.slow(5000), results)
            await trio.sleep(0.1)
            await w.client.aclose()
        assert results == [Code.CONNECTION_LOST]
        assert await code_of(w.echo(1)) is Code.CONNECTION_LOST
        await w.client.aclose()


async def peer(w_connection: Connection, frames: list[Frame]) -> None:
    for frame in frames:
        await w_connection.send(frame)


async def test_a_server_that_sends_requests_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        listener = await w.network.listen("mem://odd")
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            call = lambda: w.client.call("mem://odd", ECHO, Number(1), deadline=w.after(9))  # noqa: E731
            nursery.start_soon(outcome_of, call, results)
            connection = await listener.accept()
            frame = await connection.receive()
            await connection.send(Frame(Kind.REPLY, 1, 0, frame.request_id + 1, 0, b""))  # nobody waits for that: ignored
            await connection.send(Frame(Kind.REQUEST, 1, 0, frame.request_id, 0, b""))
        assert results == [Code.CONNECTION_LOST]
        assert "mem://odd" not in w.client.links


async def test_a_peer_that_does_not_read_meets_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        listener = await w.network.listen("mem://deaf")
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for seconds in (2, 1):
                payload = [bytes(1_000_000)]
                call = lambda s=seconds, p=payload: w.client.call(  # noqa: E731
                    "mem://deaf", ECHO, Number(1), deadline=w.after(s), payload=p
                )
                nursery.start_soon(outcome_of, call, results)
            await listener.accept()
        assert results == [Code.DEADLINE_EXCEEDED] * 2


async def test_a_reply_that_is_no_message_is_a_protocol_error(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        listener = await w.network.listen("mem://odd")
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            call = lambda: w.client.call("mem://odd", ECHO, Number(1), deadline=w.after(9))  # noqa: E731
            nursery.start_soon(outcome_of, call, results)
            connection = await listener.accept()
            frame = await connection.receive()
            await connection.send(Frame(Kind.REPLY, 1, 0, frame.request_id, 0, b"\xc1"))
        assert results == [Code.PROTOCOL]


async def test_a_deadline_ahead_is_ahead_on_trios_clock_too(autojump_clock: trio.testing.MockClock) -> None:
    """Else the watcher would look again and again at the same instant. The sum of these two is rounded down."""

    class Ahead(Env):
        def monotonic(self) -> float:
            return 4094.8972329367884

    autojump_clock.jump(24.982981294936963 - trio.current_time())
    async with trio.open_nursery() as nursery:
        env = Ahead(MemoryTransport())
        client = RpcClient(env, nursery)
        assert client.trio_time(math.nextafter(env.monotonic(), math.inf)) > trio.current_time()
        nursery.cancel_scope.cancel()
