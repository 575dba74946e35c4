"""Requests and replies that leave together, as only TCP does it."""

from __future__ import annotations

import random

import trio

from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from fs3.rpc.server import Call, RpcServer
from fs3.transport.registry import Transports

from .world import ECHO, SLOW, Number


async def test_many_callers_get_their_own_replies() -> None:
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
        server = RpcServer(env)
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
