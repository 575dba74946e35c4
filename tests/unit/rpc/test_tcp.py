"""Requests and replies that leave together, as only TCP does it."""

from __future__ import annotations

import random
import socket

import pytest
import trio

from fs3.direct import IN_A_ROW_MAX, DirectWaits
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from fs3.rpc.server import Call, RpcServer
from fs3.transport.registry import Transports
from fs3.transport.tcp import split_address
from fs3.wire.codec import decode, encode
from fs3.wire.frame import Framer, Kind, encode_head, fresh_payload

from .world import ECHO, SLOW, Number


@pytest.mark.parametrize("direct", [False, True])
async def test_many_callers_get_their_own_replies(direct: bool) -> None:
    env = Env(Transports())
    chance = random.Random(1)
    handled: list[int] = []

    async def echo(request: Number, call: Call) -> Number:
        handled.append(request.value)
        if request.value % 5 == 0:
            await trio.lowlevel.checkpoint()
        if request.value % 7 == 0:
            call.reply_payload([request.value.to_bytes(8, "little") * (1 if request.value % 2 else 10_000)])
        return request

    async def slow(request: Number, call: Call) -> Number:
        await trio.sleep_forever()
        raise AssertionError

    async def caller(first: int) -> None:
        for value in range(first, first + 60):
            if chance.random() < 0.1:
                with trio.move_on_after(0):  # gives up before or after the request left
                    await client.call(address, ECHO, Number(value), deadline=env.monotonic() + 60)
                continue
            reply, payload = await client.call_bulk(address, ECHO, Number(value), deadline=env.monotonic() + 60)
            assert reply.value == value
            assert payload[:8] == (value.to_bytes(8, "little") if value % 7 == 0 else b"")
            if chance.random() < 0.1:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        server = RpcServer(env, direct=DirectWaits.here() if direct else None)
        server.handle(ECHO, echo)
        server.handle(SLOW, slow)
        listener = await env.transport.listen("tcp://127.0.0.1:0")
        address = listener.address
        await nursery.start(server.serve, listener)
        client = RpcClient(env, nursery)
        async with trio.open_nursery() as callers:
            for number in range(40):
                callers.start_soon(caller, 1000 * number)
        assert len(set(handled)) == len(handled) > 40 * 60 * 0.8
        try:
            await client.call(address, SLOW, Number(0), deadline=env.monotonic() + 0.02)
        except FS3Error as error:
            assert error.code is Code.DEADLINE_EXCEEDED
        else:
            raise AssertionError
        nursery.cancel_scope.cancel()


class Rounds(trio.abc.Instrument):
    """Counts the rounds of the event loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


class Caller:
    """Calls one after the other over one connection, as a thread does."""

    def __init__(self, address: str) -> None:
        self._socket = socket.create_connection(split_address(address))
        self._framer = Framer(fresh_payload)

    def calls(self, count: int) -> list[int]:
        values = []
        for number in range(count):
            self._socket.sendall(encode_head(Kind.REQUEST, ECHO.id, 0, number, 60_000, encode(Number(number)), 0))
            frames = []
            while not frames:
                frames = self._framer.received(self._socket.recv_into(self._framer.buffer()))
            values.append(decode(Number, frames[0].body).value)
        return values

    def close(self) -> None:
        self._socket.close()


async def test_the_next_request_of_the_only_busy_connection_is_waited_for_on_the_spot() -> None:
    env = Env(Transports())
    waits = DirectWaits.here()
    rounds = Rounds()

    async def echo(request: Number, call: Call) -> Number:
        return request

    async with trio.open_nursery() as nursery:
        server = RpcServer(env, direct=waits)
        assert waits is not None
        waits.timeout_ms = 60_000
        server.handle(ECHO, echo)
        listener = await env.transport.listen("tcp://127.0.0.1:0")
        await nursery.start(server.serve, listener)
        first, second = Caller(listener.address), Caller(listener.address)
        trio.lowlevel.add_instrument(rounds)
        wanted = list(range(400))
        assert await trio.to_thread.run_sync(first.calls, 400) == wanted
        assert rounds.count < 100 + 400 // IN_A_ROW_MAX  # most of them took none
        # Now it waits for the first one's next request, and yet serves another connection and its own loop at once.
        assert await trio.to_thread.run_sync(second.calls, 20) == wanted[:20]
        before = rounds.count
        await trio.to_thread.run_sync(first.calls, 20)
        assert rounds.count - before >= 20  # not alone any more
        first.close()
        assert await trio.to_thread.run_sync(second.calls, 100) == wanted[:100]
        second.close()
        trio.lowlevel.remove_instrument(rounds)
        nursery.cancel_scope.cancel()
