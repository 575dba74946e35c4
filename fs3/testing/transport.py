"""What every transport must do. `CHECKS` are independent of each other; each takes a fresh Subject."""

from __future__ import annotations

import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
import trio.testing

from ..errors import Code, FS3Error, ProtocolError
from ..transport.base import Connection, FileSlice, Listener, Part, Transport
from ..wire.frame import Frame, Kind
from . import registered

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Subject:
    """The transport to be checked, and an address on which it can listen again and again (port 0).

    send_raw: connects to an address and sends it these bytes, where the transport has bytes.
    """

    transport: Transport
    address: str
    send_raw: Callable[[str, bytes], Awaitable[None]] | None = None


Check = Callable[[Subject], Awaitable[None]]


async def check_transport(factory: Callable[[], Subject]) -> None:
    """Run all checks, for those who have no test runner at hand."""
    for check in CHECKS:
        await check(factory())


@asynccontextmanager
async def connected(subject: Subject) -> AsyncIterator[tuple[Connection, Connection, Listener]]:
    """A client's and a server's end of a connection. No check may take longer than 20 s."""
    with trio.fail_after(20):
        listener = await subject.transport.listen(subject.address)
        client, server = await met(subject, listener)
        try:
            yield client, server, listener
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()
                await server.aclose()
                await listener.aclose()


async def met(subject: Subject, listener: Listener) -> tuple[Connection, Connection]:
    """Both ends of a new connection. To connect may take a listener that accepts: both sides may have to agree on
    something."""
    ends: list[Connection] = []

    async def accept() -> None:
        ends.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        client = await subject.transport.connect(listener.address)
    return client, ends[0]


def request(number: int, body: bytes = b"") -> Frame:
    return Frame(Kind.REQUEST, 7, 0, number, 1000, body)


def reply(number: int, body: bytes = b"") -> Frame:
    return Frame(Kind.REPLY, 7, 0, number, 0, body)


def pattern(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def payload_of(frame: Frame) -> bytes:
    return bytes(frame.payload) if frame.payload is not None else b""


async def taken(server: Connection, frame: Frame) -> bytes:
    """A request's bulk data; nobody needs the request any more."""
    data = bytes(await server.fetch(frame))
    server.settle(frame)
    return data


async def expect(code: Code, awaitable: Awaitable[object]) -> None:
    """Awaiting this must raise FS3Error with that code."""
    try:
        await awaitable
    except FS3Error as error:
        assert error.code is code, f"expected {code.name}, got {error}"
    else:
        raise AssertionError(f"expected {code.name}, nothing was raised")


async def frames_keep_order_and_fields(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        sent = [
            Frame(kind, 65535 - i, i, (1 << 64) - 1 - i, (1 << 32) - 1 - i, bytes([i % 256]) * (i * 37 % 3000))
            for i, kind in enumerate([*Kind] * 100)
        ]

        async def send() -> None:
            for frame in sent:
                await client.send(frame)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for frame in sent:
                assert await server.receive() == frame
                assert len(await server.fetch(frame)) == 0


async def payloads_arrive_whole(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        for number, size in enumerate((1, 31, 32, 33, 65_503, 65_504, 65_505, 65_536, 300_000, 5 * MIB)):
            data = pattern(number, size)
            third = size // 3
            parts: list[Part] = [data[:third], b"", bytearray(data[third : 2 * third]), memoryview(data)[2 * third :]]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, request(number, b"body"), parts)
                frame = await server.receive()
            assert frame.request_id == number and frame.body == b"body" and frame.payload_length == size
            assert await server.fetch(frame) == data


async def many_parts_are_one_payload(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        data = pattern(1, 5000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, request(1), [data[i : i + 1] for i in range(len(data))])
            assert await server.fetch(await server.receive()) == data


async def file_slices_are_sent(subject: Subject) -> None:
    data = pattern(2, 3 * MIB)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        whole = FileSlice(file.fileno(), 0, len(data))
        middle = FileSlice(file.fileno(), 1000, 5000)
        async with connected(subject) as (client, server, _):
            async with trio.open_nursery() as nursery:
                parts: list[Part] = [b"before", whole, b"between", middle]
                nursery.start_soon(client.send, request(1, b"x"), parts)
                assert await server.fetch(await server.receive()) == b"before" + data + b"between" + data[1000:6000]
            async with trio.open_nursery() as nursery:
                parts = [middle, b"after"]
                nursery.start_soon(client.send, request(2), parts)
                assert await server.fetch(await server.receive()) == data[1000:6000] + b"after"


async def short_file_ends_the_connection(subject: Subject) -> None:
    """Less came out of the file than was promised: nothing that follows may be taken for its bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(b"short")
        file.flush()
        async with connected(subject) as (client, server, _):
            await expect(Code.CONNECTION_LOST, client.send(request(1), [FileSlice(file.fileno(), 0, 10)]))
            await client.aclose()
            await expect(Code.CONNECTION_LOST, server.receive())


async def exposed_buffers_take_replies(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        data = pattern(3, 2 * MIB)
        into = memoryview(bytearray(len(data) + 10))
        client.expose(5, into)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(5), [data])
            frame = await client.receive()
        assert payload_of(frame) == data
        assert into[: len(data)] == data and bytes(into[len(data) :]) == bytes(10), "the payload is not where it belongs"
        await client.withdraw(5)

        small = memoryview(bytearray(100))
        client.expose(6, small)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(6), [data[:101]])
            frame = await client.receive()
        assert payload_of(frame) == data[:101] and bytes(small) == bytes(100), "a buffer too small was written to"
        await client.withdraw(6)

        if client.scatters:
            several = [memoryview(bytearray(size)) for size in (100_000, 0, 1, MIB, MIB)]
            client.expose(9, several)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.send, reply(9), [data])
                frame = await client.receive()
            assert frame.payload is None and b"".join(several)[: len(data)] == data, "not filled one after the other"
            await client.withdraw(9)

        client.expose(7, into)
        before = bytes(into)
        await server.send(reply(8), [b"another's"])
        assert payload_of(await client.receive()) == b"another's" and into == before, "another reply's payload landed here"


async def rooms_take_replies(subject: Subject) -> None:
    """Whether the server may write to the client's own memory or not, the caller sees the same."""
    async with connected(subject) as (client, server, _):
        data = pattern(14, 2 * MIB)
        into = memoryview(bytearray(len(data)))
        for number, size in enumerate((1, 40_000, 2 * MIB, 2 * MIB, 1_000_000), 1):
            into[:] = bytes(len(into))
            client.expose(number, into[:size])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, request(number))
                frame = await server.receive()
            assert len(await server.fetch(frame)) == 0 and server.room(frame, size + 1) is None
            room = server.room(frame, size)
            if room is not None:
                room[:] = data[:size]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.send, reply(number), [room if room is not None else data[:size]])
                frame = await client.receive()
            assert payload_of(frame) == data[:size] and frame.payload_length == size
            assert into[:size] == data[:size] and not any(into[size : size + 1])
            await client.withdraw(number)


async def rooms_need_not_be_used(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        data = pattern(15, MIB)
        into = memoryview(bytearray(len(data)))
        for number in range(1, 4):
            client.expose(number, into)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, request(number), [data])
                frame = await server.receive()
            assert await server.fetch(frame) == data
            room = server.room(frame, len(data))
            if room is not None:
                room[:] = b"x" * len(data)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.send, reply(number), [data[:70_000]] if number != 2 else [])
                frame = await client.receive()
            assert payload_of(frame) == (data[:70_000] if number != 2 else b"")
            await client.withdraw(number)


async def withdrawn_buffers_are_left_alone(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        data = pattern(4, 24 * MIB)
        into = memoryview(bytearray(len(data)))
        client.expose(5, into)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(5), [data])
            with trio.move_on_after(0.002):  # perhaps half of it has come, perhaps none, perhaps all
                await client.receive()
                nursery.start_soon(server.send, reply(5), [data])
            await client.withdraw(5)
            into[:] = bytes(len(into))
            frame = await client.receive()
        assert frame.request_id == 5 and bytes(into) == bytes(len(into)), "a withdrawn buffer was written to"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(6), [b"next"])
            assert payload_of(await client.receive()) == b"next"


async def cancelled_receive_loses_nothing(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        data = pattern(5, 4 * MIB)
        received: list[int] = []
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.001):
                await server.receive()
                raise AssertionError("nothing was sent")
            for number in range(4):
                nursery.start_soon(client.send, request(number), [data])
            while len(received) < 4:
                with trio.move_on_after(0.0005):
                    frame = await server.receive()
                    with trio.CancelScope(shield=True):
                        assert await taken(server, frame) == data
                    received.append(frame.request_id)
        assert sorted(received) == [0, 1, 2, 3]


async def cancelled_before_its_turn_sends_nothing(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        blocker = pattern(6, 16 * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, request(1), [blocker])
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(client.send, request(2), [blocker])
            await trio.testing.wait_all_tasks_blocked(0.01)
            async with trio.open_nursery() as giving_up:
                giving_up.start_soon(client.send, request(3), [blocker])
                await trio.testing.wait_all_tasks_blocked(0.01)
                giving_up.cancel_scope.cancel()
            nursery.start_soon(client.send, request(4))
            got = []
            for _ in range(3):
                frame = await server.receive()
                got.append(frame.request_id)
                assert await taken(server, frame) in (b"", blocker)
        assert got == [1, 2, 4], f"sent in the order 1, 2, 4, came {got}"


async def cancelled_half_way_is_never_garbage(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        data = pattern(7, 16 * MIB)
        with trio.move_on_after(0.02):
            while True:
                await client.send(request(1), [data])

        async def send_later() -> None:
            await _send_or_lose(client, request(2), b"later")
            await client.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_later)
            while True:
                try:
                    frame = await server.receive()
                    whole = await taken(server, frame)
                except FS3Error as error:
                    assert error.code is Code.CONNECTION_LOST, error
                    return
                assert whole == (data if frame.request_id == 1 else b"later")


async def concurrent_senders_do_not_mix(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        senders, each = 40, 15
        sizes = random.Random(8)

        async def send(sender: int) -> None:
            for i in range(each):
                size = sizes.choice((0, 10, 5_000, 200_000))
                await client.send(request(sender, bytes([i])), [bytes([sender]) * size] if size else ())

        seen = dict.fromkeys(range(senders), 0)
        async with trio.open_nursery() as nursery:
            for sender in range(senders):
                nursery.start_soon(send, sender)
            for _ in range(senders * each):
                frame = await server.receive()
                assert frame.body == bytes([seen[frame.request_id]]), "one sender's frames came out of order"
                seen[frame.request_id] += 1
                length = frame.payload_length
                assert await taken(server, frame) == bytes([frame.request_id]) * length
        assert set(seen.values()) == {each}


async def senders_wait_for_a_slow_receiver(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        sent = 0
        total = 512
        data = bytes(MIB // 4)

        async def send() -> None:
            nonlocal sent
            for number in range(total):
                await client.send(request(number), [data])
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sent < total // 2, "a receiver that does not receive must stop its sender"
            for number in range(total):
                assert (await server.receive()).request_id == number
        assert sent == total


async def both_directions_flow_at_once(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        data = pattern(9, 8 * MIB)

        async def receive(connection: Connection) -> None:
            for number in range(3):
                frame = await connection.receive()
                assert frame.request_id == number and await taken(connection, frame) == data

        async def send(connection: Connection) -> None:
            for number in range(3):
                await connection.send(request(number), [data])

        async with trio.open_nursery() as nursery:
            for connection in (client, server):
                nursery.start_soon(send, connection)
                nursery.start_soon(receive, connection)


async def ready_returns_only_what_is_there(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        assert server.ready() is None
        for number in range(10):
            await client.send(request(number))
        got: list[int] = []
        while len(got) < 10:
            got.append((await server.receive()).request_id)
            while (frame := server.ready()) is not None:
                got.append(frame.request_id)
        assert got == list(range(10)) and server.ready() is None


async def closing_wakes_everybody(subject: Subject) -> None:
    for closer in ("own", "peer"):
        async with connected(subject) as (client, server, _):
            data = bytes(16 * MIB)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, Code.CONNECTION_LOST, client.receive())
                for number in range(3):  # memory takes one frame of any size; a socket takes part of the first
                    nursery.start_soon(_send_or_lose, client, request(number), data)
                await trio.testing.wait_all_tasks_blocked(0.02)
                await (client if closer == "own" else server).aclose()
            await expect(Code.CONNECTION_LOST, client.send(request(9)))
            await expect(Code.CONNECTION_LOST, client.receive())
            await client.aclose()
            await client.aclose()


async def _send_or_lose(connection: Connection, frame: Frame, data: bytes) -> None:
    try:
        await connection.send(frame, [data])
    except FS3Error as error:
        assert error.code is Code.CONNECTION_LOST


async def frames_before_a_close_arrive(subject: Subject) -> None:
    async with connected(subject) as (client, server, _):
        for number in range(5):
            await client.send(request(number), [b"x" * 1000])
        await client.aclose()
        for number in range(5):
            assert (await server.receive()).request_id == number
        await expect(Code.CONNECTION_LOST, server.receive())


async def addresses_fail_clearly(subject: Subject) -> None:
    with trio.fail_after(20):
        transport = subject.transport
        listener = await transport.listen(subject.address)
        await expect(Code.CONFIG, transport.listen(listener.address))
        await expect(Code.CONFIG, transport.connect("nonsense"))
        await expect(Code.CONFIG, transport.listen("nonsense"))
        await listener.aclose()
        await listener.aclose()
        await expect(Code.CONNECT_FAILED, transport.connect(listener.address))


async def listeners_close_alone(subject: Subject) -> None:
    async with connected(subject) as (client, server, listener):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, Code.CONNECTION_LOST, listener.accept())
            await trio.testing.wait_all_tasks_blocked(0.01)
            await listener.aclose()
        await expect(Code.CONNECTION_LOST, listener.accept())
        await client.send(request(1), [b"still"])
        assert await taken(server, await server.receive()) == b"still"


async def garbage_closes_its_connection_only(subject: Subject) -> None:
    if subject.send_raw is None:
        return
    async with connected(subject) as (client, server, listener):
        for raw in (bytes(100), b"f3" + b"\xff" * 100, random.Random(10).randbytes(100_000)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(subject.send_raw, listener.address, raw)
                victim = await listener.accept()
                try:
                    await victim.receive()
                    raise AssertionError("garbage was taken for a frame")
                except ProtocolError:
                    pass
                await expect(Code.CONNECTION_LOST, victim.receive())
                await expect(Code.CONNECTION_LOST, victim.send(request(1)))
        await client.send(request(1), [b"fine"])
        assert await taken(server, await server.receive()) == b"fine"


CHECKS: tuple[Check, ...] = (
    frames_keep_order_and_fields,
    payloads_arrive_whole,
    many_parts_are_one_payload,
    file_slices_are_sent,
    short_file_ends_the_connection,
    exposed_buffers_take_replies,
    rooms_take_replies,
    rooms_need_not_be_used,
    withdrawn_buffers_are_left_alone,
    cancelled_receive_loses_nothing,
    cancelled_before_its_turn_sends_nothing,
    cancelled_half_way_is_never_garbage,
    concurrent_senders_do_not_mix,
    senders_wait_for_a_slow_receiver,
    both_directions_flow_at_once,
    ready_returns_only_what_is_there,
    closing_wakes_everybody,
    frames_before_a_close_arrive,
    addresses_fail_clearly,
    listeners_close_alone,
    garbage_closes_its_connection_only,
    *registered.CHECKS,
)
