"""Echoes over a transport, for tests; and as a program a process that listens, calls itself twice, and prints as JSON what
came of it, in whatever condition it was started: `python -m tests.rdma.peer rdma://HOST`. With `serve` or `call` before the
address it is one side only."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fs3.errors import FS3Error
from fs3.transport.base import Connection, Listener
from fs3.transport.rdma_port import Device
from fs3.transport.rdma_transport import RdmaTransport
from fs3.transport.registry import Transports
from fs3.wire.frame import Frame, Kind
from tests.transports import LISTEN

POOL_SIZE = 8 * 1024 * 1024
SIZE = 300_000
"""Bytes of a request, which are its reply."""


async def echo(connection: Connection) -> None:
    """Answer until the connection ends."""
    try:
        while True:
            frame = await connection.receive()
            try:
                await _answer(connection, frame)
            finally:
                connection.settle(frame)
    except FS3Error:
        pass  # it ended
    finally:
        with trio.CancelScope(shield=True):
            await connection.aclose()


async def _answer(connection: Connection, frame: Frame) -> None:
    data = await connection.fetch(frame)
    reply = Frame(Kind.REPLY, frame.method, 0, frame.request_id, 0, b"")
    room = connection.room(frame, len(data))
    if room is None:
        await connection.send(reply, (data,))
    else:
        room[:] = data
        await connection.send(reply, (room,))


async def serve(listener: Listener, kinds: list[str] | None = None) -> None:
    """Echo for all who come. kinds: gets the names of the connections' classes."""
    try:
        async with trio.open_nursery() as nursery:
            while True:
                connection = await listener.accept()
                if kinds is not None:
                    kinds.append(type(connection).__name__)
                nursery.start_soon(echo, connection)
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()


@asynccontextmanager
async def served(device: Device) -> AsyncIterator[tuple[RdmaTransport, Listener]]:
    """A transport of this process, with somebody who echoes."""
    transport = RdmaTransport(lambda: [device], POOL_SIZE)
    listener = await transport.listen(f"{LISTEN}:0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listener)
        yield transport, listener
        with trio.fail_after(20):
            while any(nic.memory.taken for nic in transport.opened):  # noqa: ASYNC110
                await trio.sleep(0.01)  # all memory that was lent has to come back
        nursery.cancel_scope.cancel()


async def call(connection: Connection, number: int, into: memoryview | None = None) -> bool:
    """Whether the same comes back. into: memory for the reply, of SIZE bytes. Raises CONNECTION_LOST."""
    data = bytes([number % 251]) * SIZE
    into = memoryview(bytearray(SIZE)) if into is None else into
    connection.expose(number, into)
    try:
        await connection.send(Frame(Kind.REQUEST, 7, 0, number, 60_000, b""), (data,))
        await connection.receive()
    finally:
        await connection.withdraw(number)
    return bytes(into) == data


class Lines(logging.Handler):
    """What fs3 logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


async def _calls(transport: Transports, address: str) -> tuple[list[str], bool]:
    kinds, equal = [], True
    for number in (1, 2):
        connection = await transport.connect(address)
        kinds.append(type(connection).__name__)
        equal = equal and await call(connection, number)
        await connection.aclose()
    return kinds, equal


async def _main(mode: str, address: str) -> dict[str, object]:
    transport = Transports(short_circuit=False)
    if mode == "call":
        kinds, equal = await _calls(transport, address)
        return {"kinds": kinds, "equal": equal}
    served: list[str] = []
    listener = await transport.listen(f"{address}:0")
    kinds, equal = [], True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listener, served)
        if mode == "serve":
            print(listener.address, flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
        else:
            kinds, equal = await _calls(transport, listener.address)
        nursery.cancel_scope.cancel()
    return {"kinds": kinds, "served": served, "equal": equal}


def main(words: list[str]) -> None:
    log = logging.getLogger("fs3")
    log.setLevel(logging.INFO)
    lines = Lines()
    log.addHandler(lines)
    mode, address = words if len(words) == 2 else ("self", words[0])
    found = trio.run(_main, mode, address)
    print(json.dumps({**found, "log": lines.lines}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
