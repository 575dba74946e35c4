"""RDMA connections with peers who lie, are slow or go away, and devices that fail: what that can do, and to whose memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
import trio

from fs3.errors import ConfigError, FS3Error, ProtocolError
from fs3.testing.transport import pattern, reply, request
from fs3.transport import rdma, rdma_connection, rdma_hello, rdma_roles, rdma_transport, registry
from fs3.transport.rdma_connection import Transfer, Waiter
from fs3.transport.rdma_flow import Limits, Post, Work
from fs3.transport.rdma_port import Ends, Remote
from fs3.transport.rdma_roles import RdmaClient
from fs3.transport.rdma_transport import RdmaTransport
from fs3.transport.tcp import TcpConnection, split_address
from fs3.wire.frame import FLAG_SHARED, Frame, Kind
from tests.unit.transport.listed_rdma import ListedDevice, ListedPair
from tests.unit.transport.test_rdma import ADDRESS, MIB, by_rdma, connected, lost

ENDS = Ends(5, 7, "::1", 5, 0)


def hello(ends: Sequence[Any], limits: Sequence[Any]) -> bytes:
    body: bytes = msgpack.packb([8192, ends, limits, ""])
    return rdma_hello.MAGIC + len(body).to_bytes(2, "little") + body


GOOD_ENDS, GOOD_LIMITS = [5, 7, "::1", 5, 0], [64, 64, 256, 16, 16]


@pytest.mark.parametrize(
    ("ends", "limits"),
    [
        ([5, 1 << 24, "::1", 5, 0], GOOD_LIMITS),
        ([-1, 7, "::1", 5, 0], GOOD_LIMITS),
        ([5, 7, "nonsense", 5, 0], GOOD_LIMITS),
        ([5, 7, 8, 5, 0], GOOD_LIMITS),
        ([5, 7, "::1", 0, 0], GOOD_LIMITS),
        ([5, 7, "::1", 5, 1 << 16], GOOD_LIMITS),
        (GOOD_ENDS, [float("inf"), 64, 256, 16, 16]),
        (GOOD_ENDS, [1 << 40, 64, 256, 16, 16]),
        (GOOD_ENDS, [64, 64, 64, 16, 16]),
        (GOOD_ENDS, [64, 64, 256, 16]),
    ],
)
async def test_a_hello_that_no_device_takes_is_a_peers_mistake(ends: list[Any], limits: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        rdma_hello.decode(hello(ends, limits))


def test_a_good_hello_is_understood() -> None:
    told = rdma_hello.decode(hello(GOOD_ENDS, GOOD_LIMITS))
    assert told.ends is not None and told.ends.gid.endswith(":0001") and told.limits == Limits(*GOOD_LIMITS)


async def test_half_a_hello_costs_the_listener_nothing() -> None:
    transport = RdmaTransport(lambda: [ListedDevice()])
    listener = await transport.listen(ADDRESS)
    looks = 0
    look = listener._look  # type: ignore[attr-defined]

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*arguments)

    listener._look = counted  # type: ignore[attr-defined]
    whole = hello(GOOD_ENDS, GOOD_LIMITS)
    sock = socket.create_connection(split_address(listener.address.replace("rdma", "tcp")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept)
        for part in (whole[:3], whole[3:12], whole[12:-1]):
            sock.sendall(part)
            await trio.sleep(0.02)
        assert looks == 3
        sock.close()
        await trio.sleep(0.02)
        assert looks == 4 and not listener._waiting, "who goes in the middle of it leaves nothing behind"  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()
    await listener.aclose()


async def test_a_closing_connection_gives_back_what_it_did_not_send() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        await client.send(request(1), [pattern(1, MIB)])
        frame = await server.receive()
        device.stalled = True
        with trio.move_on_after(0.02):
            await server.fetch(frame)
        slot = server.memory.must_take(4096)
        server._reads.append(Transfer(slot.region, slot.offset, Remote(1, 4096, 1), slot, Waiter()))
        slot.release()
        server.settle(frame)
        await server.aclose()
        assert server.memory.taken == 1, "the client's, who shares the device"
    assert server.memory.taken == 0


async def test_a_connection_that_has_ended_lends_nothing() -> None:
    async with by_rdma(ListedDevice()) as (client, _):
        await client.aclose()
        client.expose(1, memoryview(bytearray(MIB)))
        with pytest.raises(FS3Error):
            client.start_send(request(1), [pattern(1, MIB)])
        assert client.memory.taken == 0


async def test_a_reply_that_was_given_up_gives_the_memory_back() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        client.expose(1, memoryview(bytearray(MIB)))
        await client.send(request(1))
        frame = await server.receive()
        room = server.room(frame, MIB)
        assert room is not None
        device.stalled = True
        while server._flow.message() is not None:
            pass  # all credits are used up
        with trio.move_on_after(0.01):
            await server.send(reply(1), [room])
        server.settle(frame)
        (settled,) = [item for item in server._outgoing if not isinstance(item, Transfer)]
        assert bytes(settled.parts[0])[6:8] == rdma_roles.FLAG_SETTLED.to_bytes(2, "little")


async def test_frames_that_nobody_takes_stay_where_they_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_connection, "BACKLOG_FRAMES_MAX", 5)
    device = ListedDevice()
    sent = 0
    async with by_rdma(device) as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            for number in range(300):
                await client.send(request(number), [pattern(number, 3000)])
                sent += 1

        async def drive() -> None:
            await server._until(Waiter())

        nursery.start_soon(send)
        with trio.move_on_after(0.3):
            await drive()  # as one does who waits for a READ
        assert len(server._frames) < 20 and sent < 300, "the client has no credits left"
        for number in range(300):
            frame = await server.receive()
            assert frame.request_id == number and frame.payload == pattern(number, 3000)
        assert sent == 300


async def test_a_client_has_no_access_to_its_servers_memory() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        slot = server.memory.must_take(4096)
        slot.view[:] = b"s" * 4096
        pair = client._pair
        assert isinstance(pair, ListedPair)
        pair.post_transfer(Post(1, Work.WRITE, -1, 0, True), slot.region, slot.offset, slot.remote)
        pair.ring()
        await lost(client)
        assert slot.view == b"s" * 4096
        slot.release()


async def test_what_is_ready_at_once_is_rung_for_once() -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, server):
        mine = bytearray(MIB)
        client.memory.register(mine)
        view = memoryview(mine)
        client.expose(1, [view[i * 16384 : i * 16384 + 8192] for i in range(8)])
        await client.send(request(1))
        frame = await server.receive()
        room = server.room(frame, 65536)
        assert room is not None
        room[:] = b"x" * 65536
        before = device.rings
        await server.send(reply(1), [room])
        assert device.rings == before + 1, "eight WRITEs and the reply"
        await client.receive()
        server.settle(frame)


async def test_memory_stays_taken_where_the_device_would_not_stop(caplog: pytest.LogCaptureFixture) -> None:
    device = ListedDevice()
    async with by_rdma(device) as (client, _):
        client.expose(1, memoryview(bytearray(MIB)))
        await client.send(request(1))
        pair = client._pair
        destroy = pair.destroy
        pair.destroy = lambda: destroy() and False  # type: ignore[method-assign]
        await client.aclose()
        assert client.memory.taken == 1 and "would not be destroyed" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("length", [MIB + 1, 1 << 40])
async def test_a_reply_longer_than_its_room_ends_the_connection(length: int) -> None:
    async with by_rdma(ListedDevice()) as (client, server):
        client.expose(1, memoryview(bytearray(MIB)))
        await client.send(request(1))
        await server.receive()
        server._put(Frame(Kind.REPLY, 7, FLAG_SHARED, 1, 0, b""), [rdma_roles._REPLY.pack(length)])
        await lost(client)
        assert client.lent == 0 and "less memory" in client._closed


async def test_a_reply_in_memory_that_was_not_lent_ends_the_connection() -> None:
    async with by_rdma(ListedDevice()) as (client, server):
        await client.send(request(1), [pattern(1, MIB)])
        await server.receive()
        server._put(Frame(Kind.REPLY, 7, FLAG_SHARED, 1, 0, b""), [rdma_roles._REPLY.pack(5)])
        await lost(client)
        assert "was not lent" in client._closed


@pytest.mark.parametrize("times", [1, 2])
async def test_a_request_that_names_memory_twice_or_not_at_all_ends_the_connection(times: int) -> None:
    places = rdma_roles.encode_places([Remote(4096, 8192, 1)], []) if times == 2 else b""
    async with by_rdma(ListedDevice()) as (client, server):
        for _ in range(times):
            client._put(Frame(Kind.REQUEST, 7, FLAG_SHARED, 1, 1000, b""), [places])
        with pytest.raises(FS3Error):
            for _ in range(2):
                await server.receive()


async def test_a_peer_that_sends_without_credits_loses_its_connection_and_no_more() -> None:
    async with by_rdma(ListedDevice()) as (client, server):
        client._flow._credits = client._flow._credits_max = 80  # it takes the receives for empty messages too
        for number in range(66):
            client._put(request(number))
            await trio.sleep(0.001)
            client._work()
        await trio.sleep(0.02)
        server._work()
        await lost(server)


async def test_a_request_that_left_as_its_caller_gave_up_keeps_its_memory() -> None:
    async with by_rdma(ListedDevice()) as (client, server):
        credits, client._flow._credits = client._flow._credits, 0
        client.expose(1, memoryview(bytearray(MIB)))
        rest = client.start_send(request(1))
        assert rest is not None
        client._driving = True  # somebody else is
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await rest

                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                client._flow._credits = credits
                client._pump()  # before the one who was cancelled runs
        client._driving = False
        assert (await server.receive()).request_id == 1
        assert client.lent == 1 and client.memory.taken == 1, "the server may write there at any time"


async def test_addresses_that_lie_outside_end_the_connection_and_take_nothing_along() -> None:
    async with by_rdma(ListedDevice()) as (client, server):
        await client.send(request(1), [pattern(1, MIB)])
        frame = await server.receive()
        (place,) = server._borrowed[1].bulk
        server._borrowed[1].bulk = [Remote((1 << 64) - 4096, MIB, place.key)]
        with pytest.raises(FS3Error):
            await server.fetch(frame)
        server.settle(frame)
        await lost(client)
        assert server.memory.taken == 0


# Devices


async def test_a_device_whose_link_is_down_is_not_used() -> None:
    devices = [ListedDevice(name="a"), ListedDevice(name="b")]
    transport = RdmaTransport(lambda: devices)
    used = {transport.nic().device.name for _ in range(4)}  # type: ignore[union-attr]
    assert used == {"a", "b"}
    devices[0].up = False
    assert {transport.nic().device.name for _ in range(4)} == {"b"}  # type: ignore[union-attr]
    devices[1].up = False
    assert transport.nic() is None and "no port is active of a, b" in transport.why_not


@pytest.mark.parametrize("named", [False, True])
async def test_the_device_of_the_address_serves_it_but_for_those_that_were_named(named: bool) -> None:
    devices = [ListedDevice(name=name) for name in "abc"]
    devices[1].addresses = ("10.0.0.2",)
    devices[2].addresses = ("10.0.0.2", "10.0.0.3")
    transport = RdmaTransport(lambda: devices, in_turn=named)

    def used(local: str) -> set[str]:
        return {transport.nic(local).device.name for _ in range(6)}  # type: ignore[union-attr]

    assert used("10.0.0.9") == {"a", "b", "c"}
    assert used("10.0.0.2") == ({"a", "b", "c"} if named else {"b", "c"})
    assert used("10.0.0.3") == ({"a", "b", "c"} if named else {"c"})
    devices[2].up = False
    assert used("10.0.0.3") == {"a", "b"} and used("10.0.0.2") == ({"a", "b"} if named else {"b"})


async def test_a_device_that_failed_is_used_after_the_others(autojump_clock: trio.testing.MockClock) -> None:
    devices = [ListedDevice(name="a"), ListedDevice(name="b")]
    transport = RdmaTransport(lambda: devices)
    transport.failed(transport.nics()[0], "rdma://there:1", True)
    assert {transport.nic().device.name for _ in range(4)} == {"b"}  # type: ignore[union-attr]
    await trio.sleep(1)
    transport.failed(transport.nics()[1], "rdma://there:1", True)
    assert {transport.nic().device.name for _ in range(4)} == {"a"}  # type: ignore[union-attr]
    await trio.sleep(rdma_transport.AVOID_S + 1)
    assert {transport.nic().device.name for _ in range(4)} == {"a", "b"}  # type: ignore[union-attr]


async def test_where_nothing_comes_through_it_is_tcp_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    device = ListedDevice()
    transport = RdmaTransport(lambda: [device])
    listener = await transport.listen(ADDRESS)
    accepted = []
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            while True:
                accepted.append(await listener.accept())

        nursery.start_soon(accept)
        for _ in range(2):
            first = await transport.connect(listener.address)
            assert isinstance(first, RdmaClient)
            first._pair.fail("transport retry counter exceeded")  # type: ignore[attr-defined]
            await lost(first)
        second = await transport.connect(listener.address)
        assert isinstance(second, TcpConnection)
        assert len([record for record in caplog.records if "nothing comes through by RDMA" in record.message]) == 1
        await second.aclose()
        nursery.cancel_scope.cancel()
    for server in accepted:
        await server.aclose()
    await listener.aclose()
    caplog.clear()


class Unreachable(ListedDevice):
    """Its queue pairs find no way to others'."""

    def queue_pair(self, *arguments: Any) -> ListedPair:
        pair = super().queue_pair(*arguments)

        def connect(peer: Ends) -> None:
            raise OSError("no way there")

        pair.connect = connect  # type: ignore[method-assign]
        return pair


async def test_a_server_that_cannot_connect_its_queue_pair_talks_tcp() -> None:
    async with connected(RdmaTransport(lambda: [ListedDevice()]), RdmaTransport(lambda: [Unreachable()])) as (client, _):
        assert isinstance(client, TcpConnection)


async def test_a_client_that_cannot_connect_its_queue_pairs_uses_tcp_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    listener = await RdmaTransport(lambda: [ListedDevice()]).listen(ADDRESS)
    transport = RdmaTransport(lambda: [Unreachable()])
    accepted = []
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            while True:
                accepted.append(await listener.accept())

        nursery.start_soon(accept)
        for _ in range(2):
            with pytest.raises(FS3Error):
                await transport.connect(listener.address)
        client = await transport.connect(listener.address)
        assert isinstance(client, TcpConnection)
        await client.aclose()
        nursery.cancel_scope.cancel()
    for server in accepted:
        await server.aclose()
    await listener.aclose()
    caplog.clear()


async def test_a_client_without_queue_pairs_left_uses_tcp() -> None:
    class Poor(ListedDevice):
        def queue_pair(self, *arguments: Any) -> ListedPair:
            raise ConfigError("no queue pair: Cannot allocate memory")

    listener = await RdmaTransport(lambda: [ListedDevice()]).listen(ADDRESS)
    client = await RdmaTransport(lambda: [Poor()]).connect(listener.address)
    assert isinstance(client, TcpConnection)
    await client.aclose()
    await listener.aclose()


async def test_vanished_peers_of_idle_connections_are_noticed() -> None:
    async with by_rdma(ListedDevice()) as sides:
        for side in sides:
            sock = side._socket
            assert isinstance(sock, socket.socket)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


# What is missing on a host


@pytest.fixture
def of_verbs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    def put(name: str, value: Any) -> None:
        monkeypatch.setattr(rdma, name, value, raising=False)

    put("MISSING", "")
    return put


def test_the_end_of_a_fork_closes_nothing_of_its_parents(of_verbs: Callable[[str, Any], None]) -> None:
    of_verbs("PyverbsError", OSError)
    closed = []

    class Part:
        def close(self) -> None:
            closed.append(self)

    parts = [Part(), Part()]
    rdma._close_all(parts, os.getpid() + 1)
    assert not closed
    rdma._close_all(parts, os.getpid())
    assert closed == parts[::-1]


def test_a_device_that_takes_less_by_value_gets_less(of_verbs: Callable[[str, Any], None]) -> None:
    class Refused(Exception):
        pass

    def made(most: int, init: dict[str, Any]) -> dict[str, Any]:
        if init["cap"]["max_inline_data"] > most:
            raise Refused
        return init

    for name in ("QPCap", "QPInitAttr"):
        of_verbs(name, dict)
    of_verbs("QP", made)
    of_verbs("PyverbsRDMAError", Refused)
    of_verbs("verbs", SimpleNamespace(IBV_QPT_RC=2))
    pair = object.__new__(rdma.VerbsQueuePair)
    pair._queue = None
    for most, expected in ((1024, 96), (96, 96), (48, 32), (0, 0)):
        assert pair._made(most, 256, 128)[1] == expected


def test_a_device_that_is_not_there_is_named_with_those_that_are(of_verbs: Callable[[str, Any], None]) -> None:
    class Found:
        name = b"mlx5_0"

    of_verbs("get_device_list", lambda: [Found(), Found()])
    with pytest.raises(ConfigError, match=r"no RDMA device 'mlx5_7' on this host; there are: mlx5_0, mlx5_0"):
        rdma.open_devices(["mlx5_7"])
    with pytest.raises(ConfigError, match="expected NAME or NAME:PORT, such as mlx5_0:1"):
        rdma.open_devices(["mlx5_0:one"])


def test_a_provider_that_is_missing_is_named(of_verbs: Callable[[str, Any], None], tmp_path: Any) -> None:
    of_verbs("get_device_list", list)
    of_verbs("_SYSTEM_LISTS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no RDMA device found"):
        rdma.devices()
    (tmp_path / "there" / "bnxt_re0").mkdir(parents=True)
    of_verbs("_SYSTEM_LISTS", str(tmp_path / "there"))
    with pytest.raises(ConfigError, match=r"devices \(bnxt_re0\) that libibverbs has no provider for"):
        rdma.devices()


def test_the_memlock_limit_is_told_with_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        error_code = 12

    monkeypatch.setattr("resource.getrlimit", lambda which: (8 << 20, 8 << 20))
    text = rdma._memlock(Failed, 64 << 20)
    assert "may lock 8192 KiB" in text and "64 MiB are wanted" in text and "ulimit -l" in text
    monkeypatch.setattr("resource.getrlimit", lambda which: (-1, -1))
    assert rdma._memlock(Failed, 64 << 20) == ""


def test_the_gid_of_the_address_is_taken_then_the_best() -> None:
    device = object.__new__(rdma.VerbsDevice)
    device.name, device.port, device._fixed = "mlx5_0", 1, None
    texts = [("fe80::1", False), ("fe80::1", True), ("::ffff:10.0.0.1", False), ("::ffff:10.0.0.1", True), ("fd00::5", True)]
    gids = device._gids = [
        rdma._Gid(index, rdma.ipaddress.IPv6Address(text), version_2) for index, (text, version_2) in enumerate(texts)
    ]
    device._list_gids = lambda: gids  # type: ignore[method-assign]
    device._listed_at = -1000.0
    assert device.gid_for("10.0.0.1").index == 3
    assert device.gid_for("fd00::5").index == 4
    assert device.gid_for("192.168.0.1").index == 3
    assert device.gid_for("").index == 3
    with pytest.raises(ConfigError, match=r"has no GID 9; there are 0: fe80::1 \(InfiniBand or RoCE v1\); 1"):
        device._gid_at(9)
    gids.clear()
    with pytest.raises(ConfigError, match="has no GID: has its interface an address"):
        device.gid_for("10.0.0.1")


async def test_devices_that_somebody_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing(names: Sequence[str], gid_index: int) -> Any:
        asked.append((names, gid_index))
        raise ConfigError("no RDMA device 'mlx5_7' on this host; there are: mlx5_0")

    monkeypatch.setattr(registry, "_open_devices", missing)
    for named in ({"rdma_devices": ("mlx5_7",)}, {"rdma_gid": 3}):
        with pytest.raises(ConfigError, match="no RDMA device 'mlx5_7'"):
            await registry.Transports(**named).listen(ADDRESS)  # type: ignore[arg-type]
    listener = await registry.Transports(rdma_pool=MIB).listen(ADDRESS)
    await listener.aclose()
    assert asked == [(("mlx5_7",), -1), ((), 3), ((), -1)]


async def test_a_server_that_gives_nothing_back_holds_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_roles, "LENT_BYTES_MAX", 200_000)
    monkeypatch.setattr(rdma_roles, "LENT_REQUESTS_MAX", 9)
    device = ListedDevice()
    async with by_rdma(device) as (client, server), trio.open_nursery() as nursery:
        for number in range(8):  # 8 * 50,000 bytes of rooms, then small ones
            client.expose(number, memoryview(bytearray(50_000)))
            nursery.start_soon(client.send, request(number))
            assert client._lent_bytes <= 200_000
            await server.receive()
        assert client.lent == 4
        for number in range(8, 20):
            client.expose(number, memoryview(bytearray(5000 if number < 10 else 0)))
            client._lent_bytes = 0
            nursery.start_soon(client.send, request(number), [pattern(number, 5000)])
            assert (await server.receive()).payload_length == 5000
        assert client.lent == 9, "what comes then goes in messages"


async def test_a_peer_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma_connection, "OUTGOING_MAX", 50)
    async with by_rdma(ListedDevice()) as (client, server):
        await client.send(request(1))
        await server.receive()
        number = 0
        while not server._closed and number < 1000:  # the client, that drives nothing, gives no credits for these
            number += 1
            server._put(reply(number), [pattern(1, 8000)])
        with pytest.raises(FS3Error, match="the peer takes nothing"):
            await server.receive()
        assert not server._outgoing
