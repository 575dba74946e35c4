"""What only connections within a host have; tests/conformance/test_transport.py has what all transports have."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from fs3.env import Env
from fs3.errors import Code, FS3Error, ProtocolError
from fs3.rpc.client import RpcClient
from fs3.rpc.server import Call, RpcServer
from fs3.transport import local
from fs3.transport.local import FLAG_SETTLED, LocalClient, LocalServer, LocalTransport
from fs3.transport.registry import Transports
from fs3.transport.shared import SLOT_SIZE_MIN, SharedPool
from fs3.transport.tcp import TcpConnection
from fs3.wire.frame import FLAG_SHARED, Frame, Kind, encode_head
from tests.unit.rpc.world import ECHO, Number

REPOSITORY = Path(__file__).resolve().parents[3]
MIB = 1024 * 1024
HELLO = struct.pack("<8sI", b"fs3local", 1)


@asynccontextmanager
async def pair(pool_size: int = 4 * MIB) -> AsyncIterator[tuple[LocalClient, LocalServer]]:
    """Both ends of a connection, over which memory is shared."""
    transport = LocalTransport(pool_size)
    listener = await transport.listen("local://test:0")
    client = await transport.connect(listener.address)
    server = await listener.accept()
    assert isinstance(client, LocalClient) and isinstance(server, LocalServer)
    try:
        with trio.fail_after(20):
            await client.send(Frame(Kind.REQUEST, 1, 0, 1, 1000, b""))
            await server.receive()
            await server.send(Frame(Kind.REPLY, 1, 0, 1, 0, b""))
            await client.receive()
            assert client.welcome
            yield client, server
    finally:
        await client.aclose()
        await server.aclose()
        await listener.aclose()


def request(number: int) -> Frame:
    return Frame(Kind.REQUEST, 7, 0, number, 1000, b"")


def reply(number: int) -> Frame:
    return Frame(Kind.REPLY, 7, 0, number, 0, b"")


async def read(client: LocalClient, server: LocalServer, number: int, size: int) -> tuple[Frame, memoryview]:
    """Send a request that has room for `size` bytes; the server's frame and the room."""
    client.expose(number, memoryview(bytearray(size)))
    await client.send(request(number))
    frame = await server.receive()
    room = server.room(frame, size)
    assert room is not None
    return frame, room


async def test_bulk_data_does_not_pass_the_socket() -> None:
    async with pair() as (client, server):
        data = os.urandom(MIB)
        await client.send(request(2), [data[:1000], data[1000:]])
        frame = await server.receive()
        assert frame.flags & FLAG_SHARED and frame.payload_length == MIB and await server.fetch(frame) == data
        await server.send(reply(2))
        assert (await client.receive()).request_id == 2 and client.lent == 0
        await client.send(request(3), [data[:1000]])
        frame = await server.receive()
        assert not frame.flags & FLAG_SHARED and await server.fetch(frame) == data[:1000], "small data is faster inline"


async def test_several_buffers_are_filled_from_the_room() -> None:
    async with pair() as (client, server):
        data = os.urandom(200_000)
        buffers = [memoryview(bytearray(size)) for size in (50_000, 0, 150_000, 70_000)]
        client.expose(2, buffers)
        await client.send(request(2))
        room = server.room(await server.receive(), len(data))
        assert room is not None
        room[:] = data
        await server.send(reply(2), [room])
        frame = await client.receive()
        assert frame.payload is None and b"".join(buffers)[: len(data)] == data


async def test_a_slot_is_kept_from_others_until_the_reply_came() -> None:
    """The classic mistake: a caller gives up, its memory is used again, and then the server writes to it."""
    async with pair() as (client, server):
        _, late = await read(client, server, 2, MIB)
        await client.withdraw(2)  # its caller gave up
        for number in range(3, 20):
            _, room = await read(client, server, number, MIB)
            data = os.urandom(MIB)
            room[:] = data
            late[:] = bytes(MIB)
            await server.send(reply(number), [room])
            frame = await client.receive()
            assert frame.payload is not None and frame.payload == data, "the late writer's slot was used again"
            await client.withdraw(number)
            assert client.lent == 1
        await server.send(reply(2), [late])
        await client.receive()
        assert client.lent == 0


async def test_a_slot_is_free_once_the_server_settled_the_request() -> None:
    async with pair() as (client, server):
        frame, _ = await read(client, server, 2, MIB)
        await client.withdraw(2)
        assert client.lent == 1
        server.settle(frame)
        server.settle(frame)  # twice does no harm
        await server.send(reply(99))
        assert (await client.receive()).request_id == 99 and client.lent == 0


async def test_a_settled_request_is_told_of_though_the_socket_is_full() -> None:
    async with pair() as (client, server):
        frame, _ = await read(client, server, 2, MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(98), [bytes(24 * MIB)])
            await trio.testing.wait_all_tasks_blocked(0.01)
            server.settle(frame)
            nursery.start_soon(server.send, reply(99))
            assert [(await client.receive()).request_id for _ in range(2)] == [98, 99]
        assert client.lent == 0


async def test_a_request_that_never_left_keeps_no_slot() -> None:
    async with pair(64 * MIB) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, Frame(Kind.REPLY, 7, 0, 2, 0, b""), [bytes(16 * MIB)])  # inline: it blocks
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.move_on_after(0.01):
                await client.send(request(3), [bytes(MIB)])
            assert client.lent == 0
            await server.receive()
        await client.send(request(4), [b"more"])
        assert bytes(await server.fetch(await server.receive())) == b"more"


async def test_when_no_slot_is_left_data_goes_by_the_socket() -> None:
    async with pair(2 * MIB) as (client, server):
        data = os.urandom(MIB)
        client.expose(9, memoryview(bytearray(MIB)))
        frames = []
        for number in (2, 3, 4, 9):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, request(number), [data] if number < 9 else [])
                frames.append(await server.receive())
            assert bytes(await server.fetch(frames[-1])) == (data if number < 9 else b"")
        assert [bool(frame.flags & FLAG_SHARED) for frame in frames] == [True, True, False, False]
        assert server.room(frames[3], MIB) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(9), [data])
            assert bytes((await client.receive()).payload or b"") == data


def test_slots_are_used_again_and_cut_anew() -> None:
    pool = SharedPool(4 * MIB)
    first = pool.take(MIB)
    assert first == 0 and pool.take(MIB + 1) == MIB  # which takes 2 MiB
    assert pool.take(2 * MIB) is None and pool.take(5 * MIB) is None
    pool.give_back(0, MIB)
    assert pool.take(MIB - 5) == 0, "what was used last is warm"
    pool.give_back(0, MIB - 5)
    pool.give_back(MIB, MIB + 1)
    assert pool.take(4 * MIB) == 0, "nothing was in use"
    pool.give_back(0, 4 * MIB)
    assert [pool.take(10) for _ in range(3)] == [0, SLOT_SIZE_MIN, 2 * SLOT_SIZE_MIN]
    with pytest.raises(OSError):
        os.ftruncate(pool.fd, 0)
    pool.close_fd()


BAD_REQUESTS = {
    "behind the end": (4 * MIB, 1, 0, 0),
    "over the end": (4 * MIB - 10, 11, 0, 0),
    "huge": (0, 1 << 40, 0, 0),
    "around": ((1 << 64) - 1, 2, 0, 0),
    "room over the end": (0, 0, 4 * MIB - 10, 11),
    "room too large": (0, 0, 0, 1 << 63),
}


@pytest.mark.parametrize("bad", BAD_REQUESTS.values(), ids=list(BAD_REQUESTS))
async def test_wrong_places_end_the_connection(bad: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as (client, server):
        body = struct.pack("<QQQQ", *bad)
        client._socket.send(encode_head(Kind.REQUEST, 7, FLAG_SHARED, 2, 1000, b"", len(body)) + body)
        with pytest.raises(ProtocolError, match="shared memory"):
            await server.receive()
        with pytest.raises(FS3Error, match="CONNECTION_LOST"):
            await server.receive()
    assert len(caplog.records) == 1


async def test_what_makes_no_sense_ends_the_connection() -> None:
    place = struct.pack("<QQQQ", 0, 100, 0, 0)
    for raw in (
        encode_head(Kind.REQUEST, 7, FLAG_SHARED, 2, 1000, b"", 0),
        encode_head(Kind.REQUEST, 7, FLAG_SHARED, 2, 1000, b"", 33) + bytes(33),
        encode_head(Kind.REPLY, 7, FLAG_SHARED, 2, 1000, b"", 32) + place,
        2 * (encode_head(Kind.REQUEST, 7, FLAG_SHARED, 2, 1000, b"", 32) + place),
    ):
        async with pair() as (client, server):
            client._socket.send(raw)
            with pytest.raises(ProtocolError):
                await server.receive()


@pytest.mark.parametrize("claimed", [101 * 1024, 1 << 63])
async def test_a_reply_larger_than_its_room_ends_the_connection(claimed: int) -> None:
    async with pair() as (client, server):
        await read(client, server, 2, 100 * 1024)
        body = struct.pack("<Q", claimed)
        server._socket.send(encode_head(Kind.REPLY, 7, FLAG_SHARED, 2, 0, b"", len(body)) + body)
        with pytest.raises(ProtocolError, match="shared memory"):
            await client.receive()
    async with pair() as (client, server):  # and one that has no room at all
        await client.send(request(2), [bytes(100 * 1024)])
        server._socket.send(encode_head(Kind.REPLY, 7, FLAG_SHARED, 2, 0, b"", len(body)) + body)
        with pytest.raises(ProtocolError, match="shared memory"):
            await client.receive()


async def test_memory_that_could_shrink_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """To touch what was cut off would kill the daemon."""
    listener = await LocalTransport().listen("local://test:0")
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, MIB)
    growing = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(growing, MIB)
    fcntl.fcntl(growing, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    empty = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(empty, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    file = os.open("/proc/self/exe", os.O_RDONLY)
    for fds, hello in (
        ([unsealed], HELLO),
        ([growing], HELLO),
        ([empty], HELLO),
        ([file], HELLO),
        ([], HELLO),
        ([unsealed], HELLO[:8] + b"\2\0\0\0"),
        ([unsealed], HELLO[:5]),
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("\0fs3 " + listener.address)
            socket.send_fds(sock, [hello], fds)
            connection = await listener.accept()
            with pytest.raises(ProtocolError), trio.fail_after(5):
                await connection.receive()
    for fd in (unsealed, growing, empty, file):
        os.close(fd)
    await listener.aclose()
    assert len(caplog.records) == 7
    del connection
    gc.collect()
    assert not [name for name in os.listdir("/proc/self/fd") if _leads_to(name, "memfd:x")], "a descriptor is left open"


def _leads_to(name: str, what: str) -> bool:
    with suppress(OSError):
        return what in os.readlink(f"/proc/self/fd/{name}")
    return False


@pytest.mark.parametrize(("uid", "euid", "believed"), [(0, 1000, True), (7, 7, True), (7, 0, False), (7, 1000, False)])
async def test_others_data_is_copied_before_it_is_looked_at(
    uid: int, euid: int, believed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not change the daemon's files may not change what it is about to store either."""
    transport = LocalTransport()
    listener = await transport.listen("local://test:0")
    client = await transport.connect(listener.address)
    server = await listener.accept()
    assert isinstance(client, LocalClient) and isinstance(server, LocalServer)
    monkeypatch.setattr(local, "_credentials", lambda sock: (1, uid, uid))
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    client.welcome = True
    await client.send(request(2), [b"a" * MIB])
    seen = await server.fetch(await server.receive())
    client._pool.view(0, 10)[:] = b"b" * 10
    assert bytes(seen[:10]) == (b"b" if believed else b"a") * 10
    for closing in (client, server, listener):
        await closing.aclose()


async def test_a_foreign_process_that_took_a_name_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    transports = Transports()
    tcp = await transports.listen("tcp://127.0.0.1:0")
    taken = await transports.listen_locally(tcp.address)
    assert taken is not None
    monkeypatch.setattr(local, "_credentials", lambda sock: (1, os.geteuid() + 1, 0))
    connection = await transports.connect(tcp.address)
    assert type(connection) is TcpConnection
    (record,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert f"{os.geteuid() + 1}" in record.message and tcp.address in record.message
    for closing in (connection, taken, tcp):
        await closing.aclose()


async def test_tcp_where_nobody_offers_memory_or_nobody_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    transports = Transports()
    tcp = await transports.listen("tcp://127.0.0.1:0")
    first = await transports.connect(tcp.address)
    offered = await transports.listen_locally(tcp.address)
    assert offered is not None and offered.address == tcp.address
    second = await transports.connect(tcp.address)
    third = await Transports(short_circuit=False).connect(tcp.address)
    assert await Transports(short_circuit=False).listen_locally(tcp.address) is None
    assert [type(entry) for entry in (first, second, third)] == [TcpConnection, LocalClient, TcpConnection]
    assert await transports.listen_locally(tcp.address) is None, "the name is taken"
    assert "Address already in use" in caplog.text
    assert await transports.listen_locally("tcp://" + 100 * "x" + ":1") is None
    await offered.aclose()
    fourth = await transports.connect(tcp.address)
    assert type(fourth) is TcpConnection
    for closing in (first, second, third, fourth, tcp):
        await closing.aclose()


async def test_a_call_that_was_given_up_gives_its_slot_back_when_its_handler_ended() -> None:
    """Through client and server: the handler is cancelled once its deadline passed, and takes its time."""
    env = Env(Transports())
    started, release = trio.Event(), trio.Event()
    data = os.urandom(MIB)

    async def echo(message: Number, call: Call) -> Number:
        room = call.room(MIB)
        if message.value == 1:
            assert room is not None
            started.set()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await release.wait()
                room[:] = bytes(MIB)
        elif room is not None:
            room[:] = data
        call.reply_payload([room if room is not None else data])
        return message

    async with trio.open_nursery() as nursery:
        server = RpcServer(env)
        server.handle(ECHO, echo)
        listener = await env.transport.listen("local://test:0")
        await nursery.start(server.serve, listener)
        client = RpcClient(env, nursery)
        into = memoryview(bytearray(MIB))

        async def call(value: int, seconds: float) -> None:
            into[:] = bytes(MIB)
            await client.call_bulk(listener.address, ECHO, Number(value), deadline=env.monotonic() + seconds, into=into)
            assert into == data

        await call(0, 10)
        connection = client.links[listener.address].connection
        assert isinstance(connection, LocalClient) and connection.welcome
        await call(0, 10)
        assert connection.lent == 0
        late = memoryview(bytearray(MIB))
        async with trio.open_nursery() as giving_up:

            async def call_late() -> None:
                await client.call_bulk(listener.address, ECHO, Number(1), deadline=env.monotonic() + 0.2, into=late)

            giving_up.start_soon(call_late)
            await started.wait()
            giving_up.cancel_scope.cancel()
        assert connection.lent == 1 and not any(late)
        for _ in range(3):
            await call(2, 10)
        assert connection.lent == 1
        release.set()
        with trio.fail_after(20):
            while connection.lent:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


def stamped(value: int, size: int) -> bytes:
    return (value.to_bytes(8, "little") * (size // 8 + 1))[:size]


async def turns(number: int) -> None:
    for _ in range(number):
        await trio.lowlevel.checkpoint()


async def test_many_calls_that_are_given_up_at_any_point_mix_nothing_up() -> None:
    """Handlers write when their callers have gone, and more memory is asked for than there is."""
    chance = random.Random(5)
    env = Env(LocalTransport(MIB))
    shared = answered = 0

    async def echo(message: Number, call: Call) -> Number:
        nonlocal shared
        bulk = await call.payload()
        came, size = bytes(bulk), message.value % 100_000
        assert came == stamped(message.value, len(came))
        room = call.room(size)
        shared += room is not None
        with trio.CancelScope(shield=chance.random() < 0.5):
            await turns(chance.choice((0, 3, 40)))
            assert bytes(bulk) == came, "changed under its handler"
            if room is not None:
                room[:] = stamped(message.value, size)
        call.reply_payload([room if room is not None and chance.random() < 0.9 else stamped(message.value, size)])
        return message

    async def call_on(client: RpcClient, address: str, number: int) -> None:
        nonlocal answered
        for value in range(number, number + 90_000, 3000):
            size = value % 100_000
            into, payload = memoryview(bytearray(size)), [stamped(value, chance.choice((50, 50_000)))]
            deadline = env.monotonic() + (60 if chance.random() < 0.8 else 0.002)
            async with trio.open_nursery() as nursery:
                if chance.random() < 0.5:
                    nursery.start_soon(give_up_after, chance.randrange(30), nursery.cancel_scope)
                try:
                    found = await client.call_bulk(
                        address, ECHO, Number(value), deadline=deadline, into=into, payload=payload
                    )
                    assert found[0].value == value and bytes(into) == stamped(value, size) == bytes(found[1])
                    answered += 1
                except FS3Error as error:
                    assert error.code in (Code.DEADLINE_EXCEEDED, Code.CONNECTION_LOST)
                nursery.cancel_scope.cancel()
            left = bytes(into)
            await turns(3)
            assert bytes(into) == left, "written to after its call"

    async def give_up_after(number: int, scope: trio.CancelScope) -> None:
        await turns(number)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        server = RpcServer(env)
        server.handle(ECHO, echo)
        listener = await env.transport.listen("local://test:0")
        await nursery.start(server.serve, listener)
        client = RpcClient(env, nursery)
        with trio.fail_after(60):
            async with trio.open_nursery() as callers:
                for number in range(20):
                    callers.start_soon(call_on, client, listener.address, 1 + number)
            for link in client.links.values():
                assert isinstance(link.connection, LocalClient)
                while link.connection.lent:
                    await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert shared > 20 and answered > 150


async def test_a_handler_outlives_its_client() -> None:
    """What a client that is gone has lent stays there for as long as anybody looks at it."""
    gc.collect()
    before = _mappings()  # of other tests, should something keep them
    async with pair() as (client, server):
        frame, room = await read(client, server, 2, MIB)
        await client.aclose()
        del client
        with pytest.raises(FS3Error, match="CONNECTION_LOST"):
            await server.receive()
        assert _mappings() == before + 1
        room[:] = b"x" * MIB
        server.settle(frame)
        with pytest.raises(FS3Error, match="CONNECTION_LOST"):
            await server.send(reply(2), [room])
        del room
        assert _mappings() == before, "memory of a connection that is gone"


def _mappings() -> int:
    with open("/proc/self/maps", encoding="ascii") as maps:
        return sum(["memfd:fs3-bulk" in line for line in maps])


async def test_another_network_namespace_has_no_such_name() -> None:
    """As in another container of this host: there TCP is left."""
    listener = LocalTransport().listen_as(f"tcp://127.0.0.1:1 {os.getpid()}")
    here = LocalTransport().find(listener.address)
    try:
        assert here is not None and not await trio.to_thread.run_sync(_is_found_elsewhere, listener.address)
    finally:
        await listener.aclose()
        if here is not None:
            await here.aclose()


def _is_found_elsewhere(name: str) -> bool:
    tool = shutil.which("unshare")
    if tool is None or subprocess.run([tool, "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    program = "import sys; from fs3.transport.local import LocalTransport; print(LocalTransport().find(sys.argv[1]))"
    words = [tool, "--net", sys.executable, "-W", "ignore", "-c", program, name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY)
    return done.stdout.strip() != "None"


def test_flags_are_apart() -> None:
    assert FLAG_SETTLED & FLAG_SHARED == 0
