"""Waiting on the spot: only while nothing else is to be done."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from fs3.direct import IN_A_ROW_MAX, DirectWaits
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from fs3.transport.registry import Transports
from fs3.wire.codec import encode
from fs3.wire.frame import Framer, Kind, encode_head
from tests.unit.rpc.world import ECHO, Number


@dataclass
class Pipes:
    """Both ends of a pipe for requests, and of one that is waited for."""

    requests: int
    ask: int
    wanted: int
    answer: int


@pytest.fixture
async def pipes() -> AsyncIterator[Pipes]:
    both = Pipes(*os.pipe(), *os.pipe())
    yield both
    for descriptor in (both.requests, both.ask, both.wanted, both.answer):
        os.close(descriptor)


def waits_here(requests: int) -> DirectWaits:
    waits = DirectWaits.here(requests)
    assert waits is not None, "trio has changed: see DirectWaits.here"
    return waits


async def test_what_is_there_or_comes_is_seen(pipes: Pipes) -> None:
    waiter = waits_here(pipes.requests).waiter(pipes.wanted)
    assert not waiter.readable(0)
    os.write(pipes.answer, b"x")
    assert waiter.readable(0)


async def test_a_request_or_work_of_the_loop_ends_the_wait(pipes: Pipes) -> None:
    waiter = waits_here(pipes.requests).waiter(pipes.wanted)
    os.write(pipes.ask, b"x")
    assert not waiter.readable(60_000)
    os.read(pipes.requests, 1)
    here, there = socket.socketpair()
    with here, there:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, here)
            await trio.testing.wait_all_tasks_blocked()
            there.send(b"x")
            assert not waiter.readable(60_000)
    trio.lowlevel.current_trio_token().run_sync_soon(lambda: None)
    assert not waiter.readable(60_000)


async def test_nobody_waits_while_a_task_can_run(pipes: Pipes) -> None:
    waiter = waits_here(pipes.requests).waiter(pipes.wanted)
    os.write(pipes.answer, b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert not waiter.readable(60_000)


async def test_the_loop_has_its_turn_now_and_then(pipes: Pipes) -> None:
    waits = waits_here(pipes.requests)
    first, second = waits.waiter(pipes.wanted), waits.waiter(pipes.wanted)
    os.write(pipes.answer, b"x")
    found = [waiter.readable(0) for _ in range(IN_A_ROW_MAX) for waiter in (first, second)]
    assert found == ([True] * IN_A_ROW_MAX + [False]) + [True] * (IN_A_ROW_MAX - 1)


@contextmanager
def peer(answers: int, garbage: bool = False) -> Iterator[str]:
    """A server in another thread, which echoes so many requests and hangs up then. Gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            framer = Framer()
            for _ in range(answers):
                frames = framer.received(sock.recv_into(framer.buffer()))
                for frame in frames:
                    sock.sendall(encode_head(Kind.REPLY, frame.method, 0, frame.request_id, 0, frame.body, 0))
            if garbage:
                sock.recv(100)
                sock.sendall(encode_head(Kind.REQUEST, ECHO.id, 0, 1, 1000, encode(Number(1)), 0))
                sock.recv(1)  # until the other side hangs up

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


async def test_a_reply_that_comes_at_once_needs_no_loop(pipes: Pipes) -> None:
    env = Env(Transports())
    env.direct = waits_here(pipes.requests)
    env.direct.timeout_ms = 60_000
    with peer(10) as address:
        async with trio.open_nursery() as nursery:
            client = RpcClient(env, nursery)
            ran = 0

            async def count() -> None:
                nonlocal ran
                while True:
                    await trio.sleep(0.001)
                    ran += 1

            assert (await client.call(address, ECHO, Number(0), deadline=env.monotonic() + 60)).value == 0
            nursery.start_soon(count)
            await trio.testing.wait_all_tasks_blocked()
            before = ran
            for value in range(1, 10):
                assert (await client.call(address, ECHO, Number(value), deadline=env.monotonic() + 60)).value == value
            assert ran == before  # no other task had a turn
            with pytest.raises(FS3Error) as caught:
                await client.call(address, ECHO, Number(10), deadline=env.monotonic() + 60)
            assert caught.value.code is Code.CONNECTION_LOST
            nursery.cancel_scope.cancel()


async def test_a_peer_that_sends_nonsense_while_we_wait_is_left(pipes: Pipes, caplog: pytest.LogCaptureFixture) -> None:
    env = Env(Transports())
    env.direct = waits_here(pipes.requests)
    with peer(1, garbage=True) as address:
        async with trio.open_nursery() as nursery:
            client = RpcClient(env, nursery)
            await client.call(address, ECHO, Number(0), deadline=env.monotonic() + 60)
            with pytest.raises(FS3Error) as caught:
                await client.call(address, ECHO, Number(1), deadline=env.monotonic() + 60)
            assert caught.value.code is Code.CONNECTION_LOST
            assert "sent a request to its client" in caplog.text
            nursery.cancel_scope.cancel()
