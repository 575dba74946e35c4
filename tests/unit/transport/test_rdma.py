"""RDMA connections over a device made of lists: what goes one-sided, who owns which memory when, and how all of it fails."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from fs3.errors import Code, ConfigError, FS3Error, ProtocolError
from fs3.testing.transport import Subject, met, pattern, reply, request
from fs3.transport import rdma_roles
from fs3.transport.base import Connection
from fs3.transport.rdma_flow import Work
from fs3.transport.rdma_port import Remote
from fs3.transport.rdma_roles import RdmaClient, RdmaServer, decode_places, encode_places
from fs3.transport.rdma_transport import RdmaTransport
from fs3.transport.tcp import TcpConnection
from tests.unit.transport.listed_rdma import ListedDevice

MIB = 1024 * 1024
ADDRESS = "rdma://127.0.0.1:0"


@asynccontextmanager
async def connected(
    ours: RdmaTransport, theirs: RdmaTransport | None = None
) -> AsyncIterator[tuple[Connection, Connection]]:
    with trio.fail_after(20):
        listener = await (theirs or ours).listen(ADDRESS)
        try:
            client, server = await met(Subject(ours, ADDRESS), listener)
            try:
                yield client, server
            finally:
                await client.aclose()
                await server.aclose()
        finally:
            await listener.aclose()


@asynccontextmanager
async def by_rdma(device: ListedDevice, pool: int = 8 * MIB) -> AsyncIterator[tuple[RdmaClient, RdmaServer]]:
    async with connected(RdmaTransport(lambda: [device], pool)) as (client, server):
        assert isinstance(client, RdmaClient) and isinstance(server, RdmaServer)
        yield client, server


async def lost(connection: Connection) -> None:
    with pytest.raises(FS3Error) as caught:
        await connection.receive()
    assert caught.value.code is Code.CONNECTION_LOST


async def test_bulk_data_goes_one_sided_both_ways() -> None:
    device = ListedDevice()
    data = pattern(1, MIB)
    async with by_rdma(device) as (client, server):
        into = memoryview(bytearray(MIB))
        client.expose(1, into)
        await client.send(request(1), [data])
        frame = await server.receive()
        assert frame.payload_length == MIB and await server.fetch(frame) == data
        room = server.room(frame, MIB)
        assert room is not None
        room[:] = data[::-1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(1), [room])
            assert (await client.receive()).payload_length == MIB
        server.settle(frame)
        assert into == data[::-1] and client.lent == 0
    assert device.transfers[Work.READ] == device.transfers[Work.WRITE] == 1
    assert device.transferred == 2 * MIB


async def test_registered_memory_is_used_as_it_is() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        mine = bytearray(pattern(2, 2 * MIB))
        region = client.memory.register(mine)
        view = memoryview(mine)
        before = client.memory.taken
        client.expose(1, [view[MIB : MIB + 8192], view[MIB + 65536 : MIB + 65536 + 8192]])
        await client.send(request(1), [view[:MIB]])
        assert client.memory.taken == before, "nothing passes through the pool"
        frame = await server.receive()
        assert await server.fetch(frame) == view[:MIB]
        room = server.room(frame, 16384)
        assert room is not None
        room[:] = b"x" * 16384
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(1), [room])
            await client.receive()
        server.settle(frame)
        assert view[MIB : MIB + 8192] == view[MIB + 65536 : MIB + 65536 + 8192] == b"x" * 8192
        assert client.withdraw_now(1)
        client.memory.forget(region)


async def test_small_data_and_data_without_a_slot_go_in_messages() -> None:
    device = ListedDevice()
    async with by_rdma(device, 64 * 1024) as (client, server):
        for number, size in enumerate((100, 256 * 1024)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, request(number), [pattern(number, size)])
                assert await server.fetch(await server.receive()) == pattern(number, size)
    assert device.transfers[Work.READ] == 0


async def test_a_slot_is_not_used_again_before_the_server_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        into = memoryview(bytearray(MIB))
        client.expose(1, into)
        await client.send(request(1))
        frame = await server.receive()
        room = server.room(frame, MIB)
        assert room is not None
        assert client.withdraw_now(1), "the caller's buffer is not what was lent"
        assert client.lent == 1 and client.memory.taken == 2, "the room of the client, and the server's"
        room[:] = b"w" * MIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, reply(1), [room])
            await client.receive()
        server.settle(frame)
        assert client.lent == 0 and into == bytes(MIB), "what was given up is left alone"


async def test_a_settled_request_gives_its_memory_back() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        client.expose(1, memoryview(bytearray(MIB)))
        await client.send(request(1))
        frame = await server.receive()
        assert server.room(frame, MIB) is not None
        server.settle(frame)
        await server.send(reply(2))
        assert (await client.receive()).request_id == 2
        assert client.lent == 0 and client.memory.taken == 0


async def test_registered_memory_is_waited_for_and_then_taken_back_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_roles, "WITHDRAW_S", 0.05)
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        mine = bytearray(MIB)
        client.memory.register(mine)
        client.expose(1, memoryview(mine))
        await client.send(request(1))
        frame = await server.receive()
        room = server.room(frame, MIB)
        assert room is not None
        room[:] = b"w" * MIB
        assert not client.withdraw_now(1)
        await client.withdraw(1)  # the server does not answer: the connection ends for it
        await lost(client)
        mine[:] = b"m" * MIB  # it is ours again
        with pytest.raises(FS3Error):
            await server.send(reply(1), [room])
            await server.receive()
        server.settle(frame)
        await trio.sleep(0.02)
        assert mine == b"m" * MIB, "the server wrote to memory that was taken back"


async def test_reads_under_way_keep_their_slot_when_the_handler_is_cancelled() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        await client.send(request(1), [pattern(3, MIB)])
        frame = await server.receive()
        device.stalled = True
        with trio.move_on_after(0.02):
            await server.fetch(frame)
        server.settle(frame)
        assert server.memory.taken == 2, "the device may write there at any time"
    assert server.memory.taken == 0


async def test_a_wrong_key_ends_the_connection_and_changes_nothing() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        await client.send(request(1), [pattern(4, MIB)])
        frame = await server.receive()
        server._borrowed[1].bulk[0] = Remote(1, MIB, 99999)
        with pytest.raises(FS3Error) as caught:
            await server.fetch(frame)
        assert caught.value.code is Code.CONNECTION_LOST and "remote access" in caught.value.message
        server.settle(frame)
        await lost(client)


async def test_a_dead_peer_is_noticed_and_everything_comes_back() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        client.expose(1, memoryview(bytearray(MIB)))
        await client.send(request(1), [pattern(5, MIB)])
        assert client.lent == 1
        server._pair.destroy()  # as its process ended: the kernel closes the socket
        server._socket.close()
        await lost(client)
        assert client.lent == 0 and client.memory.taken == 0


async def test_a_failed_queue_pair_ends_the_connection() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        client._pair.fail("link down")  # type: ignore[attr-defined]
        await lost(client)
        await lost(server)


async def test_places_that_make_no_sense_are_refused() -> None:
    whole = [Remote(1, 2, 3)] * 3
    assert decode_places(memoryview(encode_places(whole[:1], whole))) == (whole[:1], whole)
    for bad in (b"", b"\1", b"\1\0\0\0", encode_places([Remote(1, 0, 3)], []), encode_places([Remote(1, 1 << 31, 3)], [])):
        with pytest.raises(ProtocolError):
            decode_places(memoryview(bad))


def nothing() -> list[ListedDevice]:
    raise ConfigError("no RDMA device found")


@pytest.mark.parametrize("missing", ["here", "there"])
async def test_without_a_device_on_either_side_it_is_tcp_and_said_once(
    missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fs3.transport.rdma")
    has, lacks = RdmaTransport(lambda: [ListedDevice()]), RdmaTransport(nothing)
    ours, theirs = (lacks, has) if missing == "here" else (has, lacks)
    for _ in range(2):
        listener = await theirs.listen(ADDRESS)
        async with trio.open_nursery() as nursery:
            accepted: list[Connection] = []

            async def accept(listener=listener, accepted=accepted) -> None:  # type: ignore[no-untyped-def]
                accepted.append(await listener.accept())

            nursery.start_soon(accept)
            client = await ours.connect(listener.address)
            await client.send(request(1), [b"plain"])
        frame = await accepted[0].receive()
        assert type(client) is type(accepted[0]) is TcpConnection
        assert await accepted[0].fetch(frame) == b"plain"
        await client.aclose()
        await accepted[0].aclose()
        await listener.aclose()
    said = [record.message for record in caplog.records if "no RDMA" in record.message]
    assert len([line for line in said if line.startswith("no RDMA on this host")]) == 1
    there = [line for line in said if "no RDMA there" in line]  # once for each address, and each has its own port
    assert len(there) == len(set(there)) == (2 if missing == "there" else 0)


async def test_memory_that_cannot_be_registered_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    class Poor(ListedDevice):
        def allocate(self, size: int) -> object:  # type: ignore[override]
            raise ConfigError("is the memlock limit large enough?")

    async with by_rdma(Poor()) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send, request(1), [pattern(6, MIB)])
        assert await server.fetch(await server.receive()) == pattern(6, MIB)
    assert len([record for record in caplog.records if "memlock" in record.message]) == 1


async def test_memory_that_was_registered_with_the_transport_is_used_until_that_ends() -> None:
    device = ListedDevice()
    transport = RdmaTransport(lambda: [device], 8 * MIB)
    early, late = bytearray(pattern(7, MIB)), bytearray(pattern(8, MIB))
    registrations = [transport.register(memoryview(early))]
    async with connected(transport) as (client, server):
        registrations.append(transport.register(memoryview(late)))
        for number, memory in enumerate((early, late)):
            await client.send(request(number), [memoryview(memory)])
            assert client.memory.taken == 0, "nothing passes through the pool"
            frame = await server.receive()
            assert await server.fetch(frame) == memory
            server.settle(frame)
        for registration in registrations:
            await registration.close()
        await server.send(reply(9))
        await client.receive()
        assert client.lent == 0 and all(len(region.view) != MIB for region in device.regions.values())
        await client.send(request(2), [memoryview(early)])
        assert client.memory.taken == 1
