"""What only TCP has; tests/conformance/test_transport.py has what all transports have."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable

import pytest
import trio

from fs3.errors import Code, ConfigError, FS3Error, ProtocolError
from fs3.transport.tcp import TcpTransport, split_address
from fs3.wire.frame import Frame, Kind, encode_head


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:7000", ("127.0.0.1", 7000)),
        ("tcp://node-1.example:0", ("node-1.example", 0)),
        ("tcp://[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize(
    "address",
    ["tcp://host", "tcp://:7000", "tcp://host:", "tcp://host:65536", "tcp://host:-1", "tcp://host:x", "tcp://::1:7000", "udp://host:1",
     "tcp://host:٣"],
)  # fmt: skip
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ConfigError, match="expected tcp://host:port"):
        split_address(address)


async def test_refused_and_taken_say_so() -> None:
    transport = TcpTransport()
    listener = await transport.listen("tcp://127.0.0.1:0")
    with pytest.raises(FS3Error, match="Address already in use"):
        await transport.listen(listener.address)
    await listener.aclose()
    with pytest.raises(FS3Error, match=r"CONNECT_FAILED.*Connection refused"):
        await transport.connect(listener.address)


async def test_garbage_makes_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    listener = await TcpTransport().listen("tcp://127.0.0.1:0")
    async with await trio.open_tcp_stream(*split_address(listener.address)) as stream:
        connection = await listener.accept()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n")
        with pytest.raises(ProtocolError):
            await connection.receive()
        with pytest.raises(FS3Error):
            await connection.receive()
    await listener.aclose()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "not an fs3 frame" in record.message and connection.peer in record.message


async def test_frames_cut_anywhere_and_sent_at_once() -> None:
    listener = await TcpTransport().listen("tcp://127.0.0.1:0")
    raw = b"".join(encode_head(Kind.REQUEST, 1, 0, number, 0, b"body", 5) + b"12345" for number in range(40))
    async with await trio.open_tcp_stream(*split_address(listener.address)) as stream, trio.open_nursery() as nursery:
        connection = await listener.accept()

        async def send() -> None:
            for at in range(0, len(raw) // 2, 7):
                await stream.send_all(raw[at : at + 7])
                await trio.lowlevel.checkpoint()
            await stream.send_all(raw[(len(raw) // 2 + 6) // 7 * 7 :])

        nursery.start_soon(send)
        for number in range(40):
            frame = await connection.receive()
            assert (frame.request_id, frame.body, await connection.fetch(frame)) == (number, b"body", b"12345")
    await connection.aclose()
    await listener.aclose()


async def test_a_busy_peer_does_not_starve_other_tasks() -> None:
    """While one connection's frames keep coming, others have turns."""
    transport = TcpTransport()
    listener = await transport.listen("tcp://127.0.0.1:0")
    sender = await transport.connect(listener.address)
    receiver = await listener.accept()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def send() -> None:
        while True:
            await sender.send(Frame(Kind.REQUEST, 1, 0, 1, 0, b""), [bytes(60_000)])
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        nursery.start_soon(send)
        for _ in range(2000):
            await receiver.receive()
        assert turns >= 10
        nursery.cancel_scope.cancel()
    for closing in (sender, receiver, listener):
        await closing.aclose()


async def test_half_a_frame_then_the_end(caplog: pytest.LogCaptureFixture) -> None:
    listener = await TcpTransport().listen("tcp://127.0.0.1:0")
    raw = encode_head(Kind.REQUEST, 1, 0, 1, 0, b"body", 100_000) + bytes(50_000)
    sock = socket.create_connection(split_address(listener.address))
    connection = await listener.accept()
    sock.sendall(raw)
    sock.close()
    with pytest.raises(FS3Error) as caught:
        await connection.receive()
    assert caught.value.code is Code.CONNECTION_LOST
    assert caplog.records == []
    await listener.aclose()


async def test_small_frames_may_wait_for_more() -> None:
    transport = TcpTransport()
    listener = await transport.listen("tcp://127.0.0.1:0")
    client = await transport.connect(listener.address)
    server = await listener.accept()

    def frame(number: int) -> Frame:
        return Frame(Kind.REQUEST, 1, 0, number, 0, b"body")

    payload = bytearray(b"payload")
    assert client.start_send(frame(1), [payload], more=True) is None
    payload[:] = b"changed"  # what waits was copied
    with trio.move_on_after(0.01) as scope:
        await server.receive()
    assert scope.cancelled_caught, "nothing left yet"
    assert client.start_send(frame(2), [b"second"]) is None  # all leave with the first one that does not wait
    first, second = await server.receive(), await server.receive()
    assert (first.request_id, bytes(await server.fetch(first))) == (1, b"payload")
    assert (second.request_id, bytes(await server.fetch(second))) == (2, b"second")

    for number in range(20):  # more than is kept back: some leave by themselves
        assert client.start_send(frame(number), [bytes(10_000)], more=True) is None
    assert (await server.receive()).request_id == 0
    assert client.flush() is None and client.flush() is None
    assert [(await server.receive()).request_id for _ in range(19)] == list(range(1, 20))

    assert client.start_send(frame(1), (), more=True) is None
    rest = client.start_send(frame(2), [bytes(8_000_000)])  # too large to be kept, and for the kernel: the others go first
    assert rest is not None
    async with trio.open_nursery() as nursery:

        async def send(rest: Awaitable[None] = rest) -> None:
            await rest

        nursery.start_soon(send)
        assert client.start_send(frame(3), (), more=True) is None  # kept while another frame is half sent
        last = client.start_send(frame(4), (), more=True)
        assert last is not None, "no more than two are kept"
        nursery.start_soon(send, last)
        assert [(await server.receive()).request_id for _ in range(4)] == [1, 2, 3, 4]

    assert client.start_send(frame(6), (), more=True) is None
    with trio.move_on_after(0.01):
        await client.receive()  # it is about to wait
    assert (await server.receive()).request_id == 6
    for connection in (client, server):
        await connection.aclose()
    await listener.aclose()
