"""Central settings in whole mgmtd daemons, and what leases and daemons make of them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from fs3.api.admin import (
    CONFIG_HISTORY,
    CONFIG_USE,
    GET_CONFIG,
    SET_CONFIG,
    ConfigHistoryRequest,
    ConfigUse,
    ConfigVersion,
    GetConfigRequest,
    SetConfigRequest,
    Setting,
)
from fs3.api.common import Empty
from fs3.api.mgmtd import RegisterRequest
from fs3.client.lease import Lease
from fs3.client.settings import CentralSettings
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind
from fs3.settings import ClientSettings, MetaSettings
from tests.unit.mgmtd.test_service import LEASE_MS, CutOff, World, world


async def put(w: World, kind: str, base: int = -1, **values: str) -> ConfigVersion:
    settings = tuple([Setting(*item) for item in values.items()])
    return await w.client.call(SET_CONFIG, SetConfigRequest(kind, settings, (), base, "ann", "because"))


async def uses(w: World) -> list[ConfigUse]:
    return sorted((await w.client.call(CONFIG_USE, Empty())).uses, key=lambda use: use.node)


class Meta:
    """A meta daemon, as far as settings go. applied: what it was given."""

    def __init__(self, w: World, node: int, own: MetaSettings, kind: NodeKind = NodeKind.META) -> None:
        self.applied: list[MetaSettings] = []
        self.error: Exception | None = None
        self.fetched = 0
        self.central = CentralSettings(w.env, "meta", own, self.apply, own_log=False)
        request = RegisterRequest(node, kind, f"mem://{node}", "h", node * 7)
        self.lease = Lease(w.env, w.client, lambda: request, config=self.central.use)

    async def apply(self, settings: MetaSettings) -> None:
        if self.error is not None:
            raise self.error
        self.applied.append(settings)

    async def start(self, w: World) -> None:
        await w.nursery.start(self.lease.run)
        w.nursery.start_soon(self.central.follow, w.client, self.lease)


async def test_what_is_set_reaches_daemons_of_the_kind_with_their_next_heartbeat(autojump_clock: MockClock) -> None:
    async with world() as w:
        first, second = Meta(w, 11, MetaSettings()), Meta(w, 12, MetaSettings(session_grace_ms=77))
        await first.start(w)
        await put(w, "meta", session_grace_ms="1s", gc_sweep_ms="2s")
        await second.start(w)  # hears of it as it registers
        await put(w, "storage", log_level="debug")
        await trio.sleep(LEASE_MS / 4000 + 0.05)
        assert first.applied == [MetaSettings(session_grace_ms=1000, gc_sweep_ms=2000)]
        assert second.applied == [MetaSettings(session_grace_ms=77, gc_sweep_ms=2000)]
        assert await uses(w) == [
            ConfigUse(1, "mgmtd", 0, ""),
            ConfigUse(11, "meta", 1, ""),
            ConfigUse(12, "meta", 1, "its own file or flags say session_grace_ms=77ms"),
        ]


@pytest.mark.expects_error_log
@pytest.mark.parametrize("error", [FS3Error(Code.IO, "no such knob"), OSError(5, "no such knob"), KeyError("no such knob")])
async def test_what_cannot_be_applied_is_told_and_stops_nothing(autojump_clock: MockClock, error: Exception) -> None:
    async with world() as w:
        meta = Meta(w, 11, MetaSettings())
        await meta.start(w)
        meta.error = error
        await put(w, "meta", gc_sweep_ms="2s")
        await trio.sleep(LEASE_MS / 4000 + 0.05)
        (_, use) = await uses(w)
        assert use.version == 1 and use.problem.startswith("gc_sweep_ms=2s: ") and "no such knob" in use.problem
        meta.error = None
        await put(w, "meta", gc_sweep_ms="3s")
        await trio.sleep(LEASE_MS / 4000 + 0.05)
        assert (await uses(w))[1] == ConfigUse(11, "meta", 2, "") and meta.applied[-1].gc_sweep_ms == 3000


async def test_of_two_who_set_at_once_the_second_is_told(autojump_clock: MockClock) -> None:
    async with world() as w:
        outcomes: list[object] = []

        async def one(level: str) -> None:
            try:
                outcomes.append(await put(w, "client", 0, log_level=level))
            except FS3Error as error:
                outcomes.append(error.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "debug")
            nursery.start_soon(one, "error")
        assert Code.CONFIG_CHANGED in outcomes
        (version,) = (await w.client.call(CONFIG_HISTORY, ConfigHistoryRequest("client"))).versions
        assert version in outcomes and (version.by, version.comment) == ("ann", "because") and version.set_ms > 0


@pytest.mark.parametrize(
    ("kind", "values"), [("meta", {"gc_sweep_ms": "2s", "root_uid": "1"}), ("meta", {"gc": "1"}), ("metal", {})]
)
async def test_what_is_refused_changes_nothing(autojump_clock: MockClock, kind: str, values: dict[str, str]) -> None:
    async with world() as w:
        with pytest.raises(FS3Error) as caught:
            await put(w, kind, **values)
        assert caught.value.code is Code.CONFIG
        assert await w.client.call(GET_CONFIG, GetConfigRequest("meta")) == ConfigVersion("meta", 0, ())


@pytest.mark.expects_error_log
async def test_settings_survive_the_loss_of_the_primary(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        w = World(nursery)
        cut = CutOff(w.engine)
        await w.start_mgmtd(1, cut)
        await nursery.start(w.client.run)
        await w.start_mgmtd(2)
        meta = Meta(w, 11, MetaSettings())
        await meta.start(w)
        version = await put(w, "meta", gc_sweep_ms="2s")
        await put(w, "mgmtd", forget_client_ms="1h")
        cut.broken = True
        await w.until(lambda routing: 2 in routing.nodes, LEASE_MS / 2000)
        assert await w.client.call(GET_CONFIG, GetConfigRequest("meta")) == version
        await trio.sleep(LEASE_MS / 2000)
        assert await uses(w) == [ConfigUse(2, "mgmtd", 1, ""), ConfigUse(11, "meta", 1, "")]
        await put(w, "meta", gc_sweep_ms="4s")
        await trio.sleep(LEASE_MS / 4000 + 0.05)
        assert [settings.gc_sweep_ms for settings in meta.applied] == [2000, 4000]
        nursery.cancel_scope.cancel()


async def test_mgmtd_uses_its_own_settings_at_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        assert (await put(w, "mgmtd", client_lease_ms="9s", log_level="info")).version == 1
        assert (await uses(w))[0] == ConfigUse(1, "mgmtd", 1, "its own file or flags say client_lease_ms=3s")
        lease = Lease(w.env, w.client, lambda: RegisterRequest(0, NodeKind.CLIENT, "", "h", 5))
        reply = await w.nursery.start(lease.run)
        assert reply.lease_ms == 3 * LEASE_MS


async def test_a_client_works_on_with_what_it_has_while_settings_cannot_be_fetched(autojump_clock: MockClock) -> None:
    async with world() as w:
        central = CentralSettings(w.env, "client", ClientSettings(), own_log=False)
        lease = Lease(w.env, w.client, lambda: RegisterRequest(0, NodeKind.CLIENT, "", "h", 5), config=central.use)
        await w.nursery.start(lease.run)
        call, failures = w.client.call, [2]

        async def flaky(method: object, request: object, **more: object) -> object:
            if method is GET_CONFIG and failures[0]:
                failures[0] -= 1
                raise FS3Error(Code.DEADLINE_EXCEEDED, "lost")
            return await call(method, request, **more)  # type: ignore[arg-type]

        w.client.call = flaky  # type: ignore[assignment, method-assign]
        w.nursery.start_soon(central.follow, w.client, lease)
        await put(w, "client", io_timeout="5s")
        await trio.sleep(3 * LEASE_MS / 4000 + 0.05)
        assert central.settings.io_timeout == 30_000
        await trio.sleep(2.1)
        assert central.settings.io_timeout == 5000 and central.use() == (1, "")
