from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import pytest
import trio
import trio.testing

from fs3.api.common import PING, STATUS, Empty, Method
from fs3.errors import Code, FS3Error
from fs3.rpc.server import Call, Encoded, Later, ServerLimits
from fs3.wire.codec import encode
from fs3.wire.frame import Frame, Kind

from .world import ADDRESS, ECHO, Number, code_of, outcome_of, world

WORK = Method(50020, "test.work", Number, Number)

Clock = trio.testing.MockClock


class Work:
    """A handler that sleeps `value` ms, with what became of it on record."""

    def __init__(self, payload: bytes = b"", error: Exception | None = None) -> None:
        self.started = self.finished = self.cancelled = self.released = 0
        self.payload = payload
        self.error = error

    async def __call__(self, request: Number, call: Call) -> Number:
        self.started += 1
        call.reply_payload([self.payload], self.release)
        try:
            await trio.sleep(request.value / 1000)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        self.finished += 1
        return request

    def release(self) -> None:
        self.released += 1


async def test_ping_and_unknown_methods(autojump_clock: Clock) -> None:
    async with world() as w:
        assert await w.client.call(ADDRESS, PING, Empty(), deadline=w.after(1)) == Empty()
        assert await code_of(w.client.call(ADDRESS, STATUS, Empty(), deadline=w.after(1))) is Code.UNKNOWN_METHOD


@pytest.mark.expects_error_log
async def test_unexpected_exceptions_are_logged_and_the_daemon_lives_on(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as w:
        w.server.handle(WORK, Work(error=ZeroDivisionError("sums")))
        assert await code_of(w.client.call(ADDRESS, WORK, Number(0), deadline=w.after(1))) is Code.INTERNAL
        assert await w.echo(1) == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "test.work" in record.message and record.exc_info is not None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FS3Error(Code.NOT_FOUND, "x"), Code.NOT_FOUND),
        (ExceptionGroup("", [FS3Error(Code.NO_SPACE), ExceptionGroup("", [FS3Error(Code.NOT_FOUND)])]), Code.NO_SPACE),
    ],
)
async def test_errors_reach_the_caller(autojump_clock: Clock, error: Exception, code: Code) -> None:
    async with world() as w:
        work = Work(b"never sent", error)
        w.server.handle(WORK, work)
        assert await code_of(w.client.call_bulk(ADDRESS, WORK, Number(0), deadline=w.after(1))) is code
        assert work.released == 1


async def test_a_body_of_another_type_is_refused(autojump_clock: Clock) -> None:
    async with world() as w:
        wrong = Method(ECHO.id, "test.wrong", Empty, Empty)
        assert await code_of(w.client.call(ADDRESS, wrong, Empty(), deadline=w.after(1))) is Code.PROTOCOL
        assert await w.echo(1) == 1 and w.network.attempts == 1


async def test_many_handlers_wait_at_once(autojump_clock: Clock) -> None:
    async with world() as w:
        results: list[object] = []
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(outcome_of, lambda: w.slow(1000), results)
        assert results == [1000] * 200 and trio.current_time() - start == 1.0
        assert await w.echo(5) == 5


async def test_no_more_requests_than_the_limit(autojump_clock: Clock) -> None:
    async with world(ServerLimits(requests_max=2)) as w:
        work = Work()
        w.server.handle(WORK, work)
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(
                    outcome_of, lambda: w.client.call(ADDRESS, WORK, Number(1000), deadline=w.after(10)), results
                )
            await trio.sleep(0.5)
            assert work.started == 2
            await trio.sleep(1)
            assert work.started == 4
        assert len(results) == 5 and work.finished == 5


async def test_no_more_bytes_than_the_limit(autojump_clock: Clock) -> None:
    """Requests and replies count."""
    async with world(ServerLimits(bytes_max=1000)) as w:
        work = Work()
        w.server.handle(WORK, work)

        async def call() -> object:
            return await w.client.call(ADDRESS, WORK, Number(1000), deadline=w.after(10), payload=[bytes(600)])

        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(outcome_of, call, results)
            await trio.sleep(0.5)
            assert work.started == 2
        assert work.finished == 4


async def test_relayed_requests_are_not_held_back(autojump_clock: Clock) -> None:
    async with world(ServerLimits(requests_max=1)) as w:
        work = Work()
        w.server.handle(WORK, work)

        async def call() -> object:
            return await w.client.call(ADDRESS, WORK, Number(1000), deadline=w.after(10), relayed=True)

        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(outcome_of, call, results)
            await trio.sleep(0.5)
            assert work.started == 4
            assert await w.echo(1) == 1, "they take no room from others either"


async def test_handler_is_cancelled_at_its_deadline(autojump_clock: Clock) -> None:
    async with world() as w:
        work = Work(b"data")
        w.server.handle(WORK, work)
        for _ in range(3):  # the workers are used again
            call = w.client.call(ADDRESS, WORK, Number(5000), deadline=w.after(0.5))
            assert await code_of(call) is Code.DEADLINE_EXCEEDED
            await trio.sleep(0.1)
        assert (work.started, work.cancelled, work.released) == (3, 3, 3)
        assert await w.echo(1) == 1
        assert await w.slow(3000) == 3000, "a deadline must not outlive its call"
        assert w.env.metrics.counters["rpc.deadline_exceeded"] == 3


async def test_deadline_passes_while_a_request_waits_for_room(autojump_clock: Clock) -> None:
    async with world(ServerLimits(requests_max=1)) as w:
        work = Work()
        w.server.handle(WORK, work)
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome_of, lambda: w.slow(2000), results)
            await trio.sleep(0.1)
            call = w.client.call(ADDRESS, WORK, Number(0), deadline=w.after(1))
            assert await code_of(call) is Code.DEADLINE_EXCEEDED
        await trio.sleep(1)
        assert work.started == 0, "a request past its deadline must not start"
        assert await w.echo(1) == 1


async def test_lost_connection_lets_handlers_finish(autojump_clock: Clock) -> None:
    """A write half way down its chain must not be cut off because its client went away."""
    async with world() as w:
        work = Work(b"data")
        w.server.handle(WORK, work)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(code_of, w.client.call(ADDRESS, WORK, Number(3000), deadline=w.after(10)))
            await trio.sleep(0.5)
            await w.network.connections[0].aclose()
        await trio.sleep(1)
        assert (work.finished, work.released) == (0, 0)
        await trio.sleep(3)
        assert (work.finished, work.released, work.cancelled) == (1, 1, 0)


async def test_shutdown_cancels_handlers(autojump_clock: Clock) -> None:
    async with world() as w:
        work = Work(b"data")
        w.server.handle(WORK, work)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(code_of, w.client.call(ADDRESS, WORK, Number(3000), deadline=w.after(10)))
            await trio.sleep(0.5)
            assert w.serving is not None
            w.serving.cancel()
        assert (work.finished, work.released, work.cancelled) == (0, 1, 1)


async def test_reply_payload_is_sent_and_released_once(autojump_clock: Clock) -> None:
    async with world() as w:
        work = Work(b"data" * 100_000)
        w.server.handle(WORK, work)
        _, payload = await w.client.call_bulk(ADDRESS, WORK, Number(0), deadline=w.after(1))
        await trio.testing.wait_all_tasks_blocked()
        assert bytes(payload) == work.payload and work.released == 1


async def test_a_peer_that_does_not_take_its_replies_is_cut_off(autojump_clock: Clock) -> None:
    async with world(ServerLimits(reply_timeout_ms=2000)) as w:
        work = Work(bytes(1_000_000))
        w.server.handle(WORK, work)
        connection = await w.network.connect(ADDRESS)
        for number in range(5):
            await connection.send(Frame(Kind.REQUEST, WORK.id, 0, number, 60_000, encode(Number(0))))
        await trio.sleep(1)
        assert work.finished == 5 and work.released == 1
        await trio.sleep(2)
        assert work.released == 5


async def test_a_client_that_sends_replies_is_cut_off(autojump_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        connection = await w.network.connect(ADDRESS)
        await connection.send(Frame(Kind.REPLY, ECHO.id, 0, 1, 1000, b""))
        assert await code_of(connection.receive()) is Code.CONNECTION_LOST
        assert await w.echo(1) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("break_it", ["receive", "cancel"])
async def test_no_task_is_left(autojump_clock: Clock, break_it: str) -> None:
    async with world() as w:
        assert await w.echo(1) == 1
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(outcome_of, lambda: w.slow(100), results)
        before: Callable[[], int] = lambda: trio.lowlevel.current_statistics().tasks_living  # noqa: E731
        many = before()
        if break_it == "receive":
            await w.network.connections[0].aclose()
        else:
            assert w.serving is not None
            w.serving.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert before() < many - 5, "the connection's workers must leave with it"


async def test_an_answer_given_later_takes_no_task(autojump_clock: Clock) -> None:
    """It counts against the connection's limit until it is given, and others are answered meanwhile."""
    waiting: list[Later] = []

    async def wait(request: Number, call: Call) -> Later:
        waiting.append(call.reply_later())
        return waiting[-1]

    async with world(ServerLimits(requests_max=3)) as w:
        w.server.handle(WORK, wait)
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            for number in range(3):
                call = functools.partial(w.client.call, ADDRESS, WORK, Number(number), deadline=w.after(10))
                nursery.start_soon(outcome_of, call, results)
            await trio.testing.wait_all_tasks_blocked()
            assert len(waiting) == 3 and not results
            nursery.start_soon(outcome_of, lambda: w.echo(7), results)
            await trio.sleep(0.1)
            assert not results, "the limit is reached"
            waiting[0].reply(Number(10))
            waiting[1].reply(Encoded(encode(Number(11))))
            await trio.sleep(0.1)
            waiting[2].reply(FS3Error(Code.NOT_FOUND, "x"))
        assert sorted(results[:-1], key=str) == [7, Number(10), Number(11)] and results[-1] is Code.NOT_FOUND


async def test_an_answer_that_comes_after_the_connection_is_dropped(autojump_clock: Clock) -> None:
    waiting: list[Later] = []

    async def wait(request: Number, call: Call) -> Later:
        waiting.append(call.reply_later())
        return waiting[-1]

    async with world() as w:
        w.server.handle(WORK, wait)
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            call = functools.partial(w.client.call, ADDRESS, WORK, Number(1), deadline=w.after(10))
            nursery.start_soon(outcome_of, call, results)
            await trio.testing.wait_all_tasks_blocked()
            assert not waiting[0].gone
            await w.network.connections[0].aclose()
        assert results == [Code.CONNECTION_LOST]
        await trio.testing.wait_all_tasks_blocked()
        assert waiting[0].gone
        waiting[0].reply(Number(1))
        assert await w.echo(1) == 1
