"""What mgmtd does when its store hangs, and how long it takes another one to be primary."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from fs3.api.common import Empty
from fs3.api.mgmtd import CLUSTER_CONFIG, GET_ROUTING, REGISTER, GetRoutingRequest, RegisterRequest
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.kv.base import Txn
from fs3.kv.memory import MemoryEngine
from mgmtd.lease import lease_ms
from mgmtd.service import Outage
from tests.unit.mgmtd.test_service import LEASE_MS, ONE, TWO, World, refused

LEASE_S = lease_ms(LEASE_MS, exclusive=False) / 1000


class Hanging(MemoryEngine):
    """A way to a store, on which requests get no answer while it hangs."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.hangs = False
        self.until_lost: dict[str, int] = {}  # kind of request -> which of them gets no answer
        self.range_takes_s = 0.0

    def transaction(self) -> Txn:
        txn = self.engine.transaction()
        for name in ("get", "get_range", "commit"):
            setattr(txn, name, self._late(getattr(txn, name)))
        return txn

    def _late(self, call: Any) -> Any:
        async def late(*arguments: Any, **named: Any) -> Any:
            if call.__name__ in self.until_lost:
                self.until_lost[call.__name__] -= 1
            if self.hangs or self.until_lost.get(call.__name__) == 0:
                await trio.sleep_forever()
            if call.__name__ == "get_range":
                await trio.sleep(self.range_takes_s)
            return await call(*arguments, **named)

        return late

    async def sync(self) -> None:
        await self.engine.sync()


async def test_a_primary_whose_store_hangs_is_replaced_in_time(autojump_clock: MockClock) -> None:
    """By then its commits under way have failed too, so that whoever waits for one goes elsewhere."""
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        way = Hanging(w.engine)
        await w.start_mgmtd(1, way)
        await nursery.start(w.client.run)
        storages = await w.formatted()
        await w.start_mgmtd(2)
        way.hangs = True
        began = trio.current_time()
        request = RegisterRequest(55, NodeKind.META, "mem://55", "h", 5)
        await refused(Code.NOT_PRIMARY, w.rpc.call(ONE, REGISTER, request, deadline=began + 5))
        assert trio.current_time() - began <= LEASE_S
        await w.until(lambda r: 2 in r.nodes, 1.3 * LEASE_S)
        # It knows nothing any more, so it names nobody.
        await trio.sleep(2 * LEASE_S)
        ask = w.rpc.call(ONE, GET_ROUTING, GetRoutingRequest(0), deadline=trio.current_time() + 1)
        assert (await refused(Code.NOT_PRIMARY, ask)).message == "no primary known yet"
        way.hangs = False
        await trio.sleep(LEASE_S)
        ask = w.rpc.call(ONE, GET_ROUTING, GetRoutingRequest(0), deadline=trio.current_time() + 1)
        assert (await refused(Code.NOT_PRIMARY, ask)).message == f"primary is {TWO}"
        assert not any(storage.ended for storage in storages)
        nursery.cancel_scope.cancel()


async def test_the_only_mgmtd_goes_on_when_its_store_does(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        way = Hanging(w.engine)
        await w.start_mgmtd(1, way)
        storages = await w.formatted()
        for pause_s in (LEASE_S / 4, LEASE_S, LEASE_MS / 5000):
            way.hangs = True
            await trio.sleep(pause_s)
            way.hangs = False
            at = trio.current_time()
            await w.client.call(CLUSTER_CONFIG, Empty(), timeout_ms=LEASE_MS)
            assert trio.current_time() - at <= 2 * LEASE_S
            await trio.sleep(LEASE_MS / 1000)
        assert not any(storage.ended for storage in storages)
        nursery.cancel_scope.cancel()


async def test_a_state_that_takes_longer_than_a_lease_to_load(autojump_clock: MockClock) -> None:
    """The lease is renewed meanwhile, or one mgmtd after the other would take office and lose it while it loads."""
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        first = await w.start_mgmtd(1)
        await nursery.start(w.client.run)
        ways = [Hanging(w.engine), Hanging(w.engine)]
        for way in ways:
            way.range_takes_s = LEASE_S / 4  # of which there are several
        await w.start_mgmtd(2, ways[0])
        first.cancel()
        await trio.sleep(LEASE_S / 4)
        await w.start_mgmtd(1, ways[1])
        await w.until(lambda r: 2 in r.nodes and 1 not in r.nodes, LEASE_MS / 1000)
        version = w.client.routing.version
        await trio.sleep(LEASE_MS / 1000)
        assert w.client.routing.version == version
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind, number", [("get", 4), ("get_range", 1), ("get_range", 5), ("commit", 2), ("commit", 3)])
async def test_a_request_that_gets_lost_while_it_takes_office(kind: str, number: int, autojump_clock: MockClock) -> None:
    """It waited ten seconds for that one answer, and nobody was primary (seed 200, shape primary)."""
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        way = Hanging(w.engine)
        way.until_lost[kind] = number
        began = trio.current_time()
        await w.start_mgmtd(1, way)
        await w.client.call(CLUSTER_CONFIG, Empty(), timeout_ms=LEASE_MS)
        assert way.until_lost[kind] < 0, "it asked again"
        assert trio.current_time() - began < 3 * LEASE_S
        nursery.cancel_scope.cancel()


@pytest.mark.expects_error_log
def test_an_outage_is_told_once_and_as_an_error_only_when_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage(10.0)
    error = FS3Error(Code.KV_UNAVAILABLE, "gone")

    def levels() -> list[str]:
        found = [record.levelname for record in caplog.records]
        caplog.clear()
        return found

    outage.over()
    assert levels() == []
    for now in (100.0, 100.1, 109.0):
        outage.goes_on(error, now)
    outage.over()
    assert levels() == ["WARNING", "WARNING"]
    for now in (200.0, 209.9, 210.0, 230.0, 300.0):
        outage.goes_on(error, now)
    assert levels() == ["WARNING", "ERROR"]
    outage.over()
    outage.over()
    assert levels() == ["WARNING"]
