"""What goes wrong on real verbs: queue pairs in error, peers that lie, links that are down."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import trio

from fs3.errors import Code, FS3Error
from fs3.ids import ChunkId
from fs3.transport.base import Connection
from fs3.transport.rdma_port import Device, Remote
from fs3.transport.rdma_roles import FLAG_SHARED, RdmaClient, encode_places
from fs3.wire.frame import Frame, Kind
from tests.rdma import device as hardware
from tests.rdma.peer import SIZE, call, served
from tests.unit.storage.support import cluster


def into_error(connection: Connection) -> None:
    """What the device does with a queue pair that met an error."""
    import pyverbs.enums as verbs
    from pyverbs.qp import QPAttr

    assert isinstance(connection, RdmaClient)
    connection._pair._pair.modify(QPAttr(qp_state=verbs.IBV_QPS_ERR), verbs.IBV_QP_STATE)  # type: ignore[attr-defined]


async def test_a_queue_pair_in_error_ends_its_connection_and_no_other(device: Device) -> None:
    async with served(device) as (transport, listener):
        broken, other = await transport.connect(listener.address), await transport.connect(listener.address)
        assert await call(broken, 1) and await call(other, 1)
        into_error(broken)
        with pytest.raises(FS3Error, match=r"RDMA failed: .*\(work completion status") as caught:
            await call(broken, 2)
        assert caught.value.code is Code.CONNECTION_LOST and caught.value.retryable
        assert await call(other, 3)
        again = await transport.connect(listener.address)
        assert isinstance(again, RdmaClient) and await call(again, 4)
        for each in (broken, other, again):
            await each.aclose()


async def test_a_wrong_key_ends_its_connection_and_no_other(device: Device) -> None:
    async with served(device) as (transport, listener):
        liar, other = await transport.connect(listener.address), await transport.connect(listener.address)
        assert isinstance(liar, RdmaClient) and await call(liar, 1) and await call(other, 1)
        slot = liar.memory.take(SIZE)
        assert slot is not None
        wrong = Remote(slot.remote.address, SIZE, slot.remote.key ^ 0x5A)
        request = Frame(Kind.REQUEST, 7, FLAG_SHARED, 2, 60_000, b"")
        rest = liar._send_inline(request, (encode_places([wrong], []),))
        assert rest is None
        with trio.fail_after(20), pytest.raises(FS3Error) as caught:
            await liar.receive()
        assert caught.value.code is Code.CONNECTION_LOST
        slot.release()
        assert await call(other, 3), "the server serves on"
        await liar.aclose()
        await other.aclose()


async def test_storage_goes_on_where_queue_pairs_fail(tmp_path: Path) -> None:
    """Requests that were under way are done again, once."""
    size, wanted = 100_000, 3
    async with cluster(tmp_path, 2) as c:
        broken = 0
        rounds = dict.fromkeys(range(1, 5), 0)

        async def write(number: int) -> None:
            while broken < wanted or not rounds[number]:
                rounds[number] += 1
                await c.write(ChunkId(5, number), 0, bytes([number + rounds[number]]) * size, channel=number)

        async with trio.open_nursery() as nursery:
            for number in rounds:
                nursery.start_soon(write, number)
            while broken < wanted:
                await trio.sleep(0.03)
                for link in list(c.rpc.links.values()):
                    if isinstance(link.connection, RdmaClient) and link.connection._worked and not link.connection._closed:
                        into_error(link.connection)
                        broken += 1
        for number, count in rounds.items():
            assert await c.read(ChunkId(5, number), 0, size) == bytes([number + count]) * size
            first, second = c.contents(ChunkId(5, number))
            assert first == second and first is not None and first[0] == count, "each write was applied once"


async def test_devices_left_to_the_collector_are_closed() -> None:
    """pyverbs crashes, or fails, where a device is closed before what belongs to it."""
    from fs3.transport.rdma import open_devices

    gc.collect()  # those of other tests
    before = opened()
    async with served(open_devices()[0]) as (transport, listener):
        connection = await transport.connect(listener.address)
        assert await call(connection, 1)
        await connection.aclose()
        assert opened() > before
    del transport, listener, connection
    gc.collect()
    assert opened() == before


def opened() -> int:
    """Devices that this process has open."""
    return sum("uverbs" in os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())


async def test_while_the_link_is_down_tcp_is_used_and_rdma_afterwards(device: Device) -> None:
    hardware.needs_guest()
    async with served(device) as (transport, listener):
        hardware.link(up=False)
        try:
            without = await transport.connect(listener.address)
            assert not isinstance(without, RdmaClient) and await call(without, 1)
            await without.aclose()
        finally:
            hardware.link(up=True)
        with trio.fail_after(20):
            while not device.active():  # noqa: ASYNC110
                await trio.sleep(0.05)
        again = await transport.connect(listener.address)
        assert isinstance(again, RdmaClient) and await call(again, 2)
        await again.aclose()
