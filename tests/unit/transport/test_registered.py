"""What only registered memory within a host has; fs3.testing.registered has what all transports do with such."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
import trio

from fs3.env import Env
from fs3.errors import FS3Error, ProtocolError
from fs3.memory import Memory
from fs3.rpc.client import RpcClient
from fs3.rpc.server import Call, RpcServer
from fs3.transport import local, local_memory
from fs3.transport.local import FLAG_PLACED, FLAG_SETTLED, LocalClient, LocalServer, LocalTransport
from fs3.transport.local_memory import PLACES_MAX, PeerMemories, PeerPlaces, Ticket, _Memory
from fs3.transport.memory import MemoryTransport
from fs3.transport.registered import file_of
from fs3.wire.frame import FLAG_SHARED, Frame, Kind, encode_head
from tests.unit.rpc.world import ECHO, Number

MIB = 1024 * 1024
F_SEAL_FUTURE_WRITE = 0x10  # of linux/fcntl.h


class World:
    """A server whose replies are a MiB of the number that was asked for, and a client of it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.env = Env(LocalTransport())
        self.server = RpcServer(self.env)
        self.server.handle(ECHO, self.answer)
        self.client = RpcClient(self.env, nursery)
        self.address = ""

    async def answer(self, message: Number, call: Call) -> Number:
        call.reply_payload([bytes([message.value]) * MIB])
        return message

    async def read(self, value: int, into: memoryview) -> None:
        await self.client.call_bulk(self.address, ECHO, Number(value), deadline=self.env.monotonic() + 10, into=into)
        assert into == bytes([value]) * MIB

    @property
    def connection(self) -> LocalClient:
        found = self.client.links[self.address].connection
        assert isinstance(found, LocalClient)
        return found


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            made = World(nursery)
            listener = await made.env.transport.listen("local://test:0")
            made.address = listener.address
            await nursery.start(made.server.serve, listener)
            yield made
            nursery.cancel_scope.cancel()


async def test_neither_the_socket_nor_the_pool_has_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as made:
        with Memory(2 * MIB) as memory:
            async with made.env.transport.register(memory.view):
                for value in range(3):
                    await made.read(value, memory.view[:MIB])
                taken: list[int] = []
                monkeypatch.setattr(made.connection._pool, "take", taken.append)
                monkeypatch.setattr(made.connection._buffers, "take", taken.append)
                for value in range(10):
                    await made.read(value, memory.view[MIB:])
                assert not taken and not made.connection.lent
            monkeypatch.undo()
            await made.read(7, memory.view[MIB:])  # as any memory
            await made.read(8, memory.view[:MIB])


async def test_memory_that_the_server_cannot_use_costs_a_warning_and_copies(caplog: pytest.LogCaptureFixture) -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    view = memoryview(mmap.mmap(fd, MIB))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE)
    async with world() as made:
        async with made.env.transport.register(view, fd):
            for value in range(5):
                await made.read(value, view)
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    os.close(fd)


async def test_an_older_server_is_told_of_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes one descriptor of the two that come with the first word, and knows nothing of the words that follow."""
    receive = socket.recv_fds
    monkeypatch.setattr(socket, "recv_fds", lambda sock, size, count: receive(sock, size, min(count, 1)))
    async with world() as made:
        with Memory(MIB) as memory:
            async with made.env.transport.register(memory.view):
                for value in range(4):
                    await made.read(value, memory.view)
                assert not made.connection._memories._numbers and not made.connection._placing


async def test_a_server_without_descriptors_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world() as made:
        with Memory(MIB) as memory:
            await made.read(1, memory.view)
            monkeypatch.setattr(socket, "recv_fds", lambda sock, size, count: (sock.recv(size), [], 0, None))
            async with made.env.transport.register(memory.view):
                for value in range(4):
                    await made.read(value, memory.view)
    assert "too many open" in caplog.text


@pytest.mark.parametrize("raw", [b"", b"fs3memry", b"fs3xemry\1\0\0\0\1\0\0\0"])
async def test_a_side_channel_that_makes_no_sense(raw: bytes) -> None:
    async with pair() as (client, server, _):
        if raw:
            socket.send_fds(client._memories._side, [raw], [0])
        else:
            client._memories._side.shutdown(socket.SHUT_RDWR)
        client._socket.send(encode_head(Kind.REQUEST, local.ANNOUNCED, FLAG_SETTLED, 5, 0, b"", 0))
        if raw:
            with pytest.raises(ProtocolError):
                await server.receive()
        else:
            await client.send(Frame(Kind.REQUEST, 7, 0, 2, 1000, b""))
            assert (await server.receive()).request_id == 2


async def test_a_stranger_may_lend_little(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(local_memory, "PEER_SIZE_MAX", MIB)
    monkeypatch.setattr(local_memory, "MEMORY_SIZE_MAX", MIB)
    async with world() as made:
        with Memory(2 * MIB) as memory:
            async with made.env.transport.register(memory.view):
                for value in range(5):
                    await made.read(value, memory.view[:MIB])
    assert "too many" in caplog.text


async def test_many_memories_are_used_as_far_as_there_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as made:
        memories = [Memory(MIB) for _ in range(local_memory.MEMORIES_MAX + 3)]
        registrations = [made.env.transport.register(memory.view) for memory in memories]
        for _ in range(2):
            for value, memory in enumerate(memories):
                await made.read(value, memory.view)
        for registration in registrations:
            await registration.close()
        with Memory(MIB) as memory:
            async with made.env.transport.register(memory.view):
                for value in range(3):
                    await made.read(value, memory.view)
                assert list(made.connection._memories._usable) == [local_memory.MEMORIES_MAX + 1]


async def test_memory_that_a_stopped_server_writes_to_is_kept_from_all_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a retry nor closing may have it before; other memory may be used."""
    monkeypatch.setattr(local, "WITHDRAW_S", 0.01)
    writes = True
    monkeypatch.setattr(Ticket, "written", lambda self: writes)
    async with world() as made:
        with Memory(2 * MIB) as memory:
            registration = made.env.transport.register(memory.view)
            for value in range(3):
                await made.read(value, memory.view[:MIB])
            made.server.handlers.clear()

            async def stop(message: Number, call: Call) -> Number:
                await trio.sleep_forever()
                raise AssertionError

            made.server.handle(ECHO, stop)
            with trio.move_on_after(0.01):
                await made.read(4, memory.view[:MIB])
            assert "stands still" in caplog.text
            made.server.handlers.clear()
            made.server.handle(ECHO, made.answer)
            await made.read(5, memory.view[MIB:])
            with pytest.raises(FS3Error, match="OVERLOADED"):
                await made.read(6, memory.view[MIB // 2 : MIB + MIB // 2])
            with trio.move_on_after(0.05) as scope:
                await registration.close()
            assert scope.cancelled_caught
            writes = False
            await registration.close()
            await made.read(7, memory.view[:MIB])


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[LocalClient, LocalServer, int]]:
    """Both ends of a connection, and the number of a memory of a MiB that the server has."""
    transport = LocalTransport()
    listener = await transport.listen("local://test:0")
    client = await transport.connect(listener.address)
    server = await listener.accept()
    assert isinstance(client, LocalClient) and isinstance(server, LocalServer)
    memory = Memory(MIB)
    registration = transport.register(memory.view)
    try:
        number = client._memories.announce(registration)
        client._socket.send(encode_head(Kind.REQUEST, local.ANNOUNCED, FLAG_SETTLED, number, 0, b"", 0))
        await client.send(Frame(Kind.REQUEST, 7, 0, 1, 1000, b""))
        assert (await server.receive()).request_id == 1
        yield client, server, number
    finally:
        for closing in (client, server, listener):
            await closing.aclose()
        await registration.close()


def placed(ticket: int, bulk: list[tuple[int, int, int]], room: list[tuple[int, int, int]]) -> bytes:
    places = b"".join([struct.pack("<QII", *place) for place in (*bulk, *room)])
    return struct.pack("<IHH", ticket, len(bulk), len(room)) + places


GOOD = (0, 100, 1)
BAD = {
    "nothing": b"",
    "half a head": b"\0\0\0",
    "a place is missing": placed(0, [GOOD], [])[:-1],
    "too much": placed(0, [GOOD], []) + b"\0",
    "no such memory": placed(0, [(0, 100, 2)], []),
    "the tickets": placed(0, [], [(0, 100, 0)]),
    "behind the end": placed(0, [(MIB, 1, 1)], []),
    "over the end": placed(0, [], [(MIB - 10, 11, 1)]),
    "around": placed(0, [], [((1 << 64) - 1, 2, 1)]),
    "empty": placed(0, [], [(0, 0, 1)]),
    "no such ticket": placed(1 << 31, [], [GOOD]),
    "just behind the tickets": placed(local_memory.TICKETS, [], [GOOD]),
    "too many places": placed(0, [GOOD] * (PLACES_MAX + 1), []),
    "too large": placed(0, [], [(0, MIB, 1)] * 65),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
async def test_wrong_places_end_the_connection(bad: bytes) -> None:
    async with pair() as (client, server, number):
        assert number == 1
        client._socket.send(encode_head(Kind.REQUEST, 7, FLAG_SHARED | FLAG_PLACED, 2, 1000, b"", len(bad)) + bad)
        with pytest.raises(ProtocolError):
            await server.receive()


async def test_words_that_make_no_sense_end_the_connection() -> None:
    good = placed(0, [GOOD], [])
    for raw in (
        encode_head(Kind.REQUEST, 9, FLAG_SETTLED, 1, 0, b"", 0),
        encode_head(Kind.REQUEST, local.FORGET, FLAG_SETTLED, 0, 0, b"", 0),
        encode_head(Kind.REPLY, 7, FLAG_SHARED | FLAG_PLACED, 2, 0, b"", len(good)) + good,
        2 * (encode_head(Kind.REQUEST, 7, FLAG_SHARED | FLAG_PLACED, 2, 0, b"", len(good)) + good),
    ):
        async with pair() as (client, server, _):
            client._socket.send(raw)
            with pytest.raises(ProtocolError):
                await server.receive()


async def test_memory_that_was_forgotten_is_unknown() -> None:
    async with pair() as (client, server, number):
        client._socket.send(encode_head(Kind.REQUEST, local.FORGET, FLAG_SETTLED, number, 0, b"", 0))
        client._socket.send(encode_head(Kind.REQUEST, local.FORGET, FLAG_SETTLED, 77, 0, b"", 0))  # does no harm
        data = placed(0, [GOOD], [])
        client._socket.send(encode_head(Kind.REQUEST, 7, FLAG_SHARED | FLAG_PLACED, 2, 0, b"", len(data)) + data)
        with pytest.raises(ProtocolError, match="know nothing"):
            await server.receive()


async def test_a_reply_larger_than_its_room_ends_the_connection() -> None:
    async with world() as made:
        with Memory(MIB) as memory:
            async with made.env.transport.register(memory.view):
                for value in range(3):
                    await made.read(value, memory.view)
                client = made.connection
                client._placed[99] = Ticket(memoryview(bytearray(8)), 0, [])
                frame = Frame(Kind.REPLY, 7, FLAG_SHARED, 99, 0, b"", memoryview(struct.pack("<Q", 1)), 8)
                with pytest.raises(ProtocolError):
                    client._received([frame])


def test_memory_that_was_cut_off_reads_as_zeros_and_is_written_by_calls() -> None:
    """To touch it through a mapping would kill the daemon."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, 100)
    memory = _Memory(8192, memoryview(b""), False, fd)
    places = PeerPlaces([(memory, 0, 4000), (memory, 5000, 1000)])
    os.pwrite(fd, b"a" * 100, 0)
    into = memoryview(bytearray(b"x" * 5000))
    places.read(into)
    assert into == b"a" * 100 + bytes(4900)
    places.write([b"b" * 4500, b"c" * 500])
    assert os.pread(fd, 9000, 0) == b"b" * 4000 + bytes(1000) + b"b" * 500 + b"c" * 500
    assert places.views(5000) is None
    os.close(fd)
    memory.fd = -1
    with pytest.raises(OSError):
        places.write([b"x"])


def test_what_is_no_socket_is_refused(tmp_path: Path) -> None:
    for fd in (os.memfd_create("x"), os.open(tmp_path, os.O_RDONLY), socket.socket(socket.AF_UNIX).detach()):
        with pytest.raises(ProtocolError):
            PeerMemories(fd, True)
    lonely = PeerMemories(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach(), True)  # connected to nobody
    assert lonely.take(1)
    lonely.close()


async def test_files_of_memory_are_found() -> None:
    transport = MemoryTransport()
    shared = SharedMemory(create=True, size=100_000)
    try:
        array = np.ndarray((1000, 20), dtype=np.uint32, buffer=shared.buf, offset=8192)
        registration = transport.register(array[100:200].data.cast("B"))
        assert registration.offset == 8192 + 100 * 80 and os.fstat(registration.fd).st_ino == os.fstat(shared._fd).st_ino  # type: ignore[attr-defined]
        await registration.close()
        assert registration.fd == -1
        del array, registration
    finally:
        shared.close()
        shared.unlink()


async def test_only_shared_memory_has_a_file_for_others(tmp_path: Path) -> None:
    transport = MemoryTransport()
    plain = (tmp_path / "file").open("w+b")
    plain.truncate(8192)
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8192)
    for view in (
        memoryview(bytearray(10_000)),
        memoryview(mmap.mmap(-1, 8192)),
        memoryview(mmap.mmap(plain.fileno(), 8192)),
        memoryview(mmap.mmap(fd, 8192, mmap.MAP_PRIVATE)),
    ):
        async with transport.register(view) as registration:
            assert registration.fd == -1
        with pytest.raises(ValueError, match="shared mapping"):
            transport.register(view, fd)
    plain.close()
    os.close(fd)
    for bad in (
        memoryview(b"abc"),
        memoryview(bytearray()),
        memoryview(bytearray(8)).cast("I"),
        memoryview(bytearray(8))[::2],
    ):
        with pytest.raises(ValueError, match="registered"):
            transport.register(bad)
    assert file_of(0, 10) == (-1, 0)


def test_memory_of_ones_own() -> None:
    with pytest.raises(ValueError):
        Memory(0)
    with Memory(5000) as memory:
        assert len(memory.view) == 5000 and not any(memory.view)
        with pytest.raises(OSError):
            os.ftruncate(memory.fd, 10)
        kept = memory.view
    assert memory.fd == -1
    memory.close()
    kept[0] = 1
