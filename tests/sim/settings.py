"""Operators who set central settings while mgmtd fails: one history of versions, what was acknowledged is in it, and all
daemons come to use the latest."""

from __future__ import annotations

from collections.abc import Callable

import trio

from fs3.api.admin import (
    CONFIG_HISTORY,
    CONFIG_USE,
    SET_CONFIG,
    ConfigHistoryRequest,
    ConfigVersion,
    SetConfigRequest,
    Setting,
)
from fs3.api.common import Empty
from fs3.client.connect import connect
from fs3.client.mgmtd import MgmtdClient
from fs3.errors import Code, FS3Error
from fs3.rpc.client import RpcClient
from fs3.settings import KINDS, checked
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.load import Load
from tests.sim.rest import storm

SHAPES = (
    Shape(
        "settings",
        mgmtds=3,
        metas=1,
        workload="settings",
        faults=("depose", "crash_mgmtd", "crash_mgmtd", "kv_slow", "partition", "crash", "crash_meta"),
        kv_faults=0.02,
        fault_every_s=0.5,
        think_s=0.2,
    ),
)
KEYS = {"storage": ("resync_rate_bytes", "KiB"), "meta": ("gc_gather_ms", "ms"), "client": ("io_timeout", "s")}


class SettingsLoad(Load):
    """Each value is set once. acknowledged: in the order of the answers."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.acknowledged: list[ConfigVersion] = []
        self.conflicts = 0

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        addresses = self.world.mgmtd_addresses
        async with connect(env, addresses, process.name), trio.open_nursery() as nursery:
            started("")
            mgmtd = MgmtdClient(env, RpcClient(env, nursery), addresses)
            await self.work(env, lambda: self._set(mgmtd, env, number))
            nursery.cancel_scope.cancel()

    def latest(self, kind: str) -> int:
        return max([version.version for version in self.acknowledged if version.kind == kind], default=0)

    async def _set(self, mgmtd: MgmtdClient, env: SimEnv, number: int) -> None:
        kind = env.random.choice(tuple(KEYS))
        key, unit = KEYS[kind]
        known = self.latest(kind)
        base = env.random.choice((-1, known))
        setting = Setting(key, checked(KINDS[kind], key, f"{100 + self.unique()}{unit}"))
        try:
            version = await mgmtd.call(SET_CONFIG, SetConfigRequest(kind, (setting,), (), base, f"client{number}"))
        except FS3Error as error:
            if error.code is not Code.DEADLINE_EXCEEDED and error.code is not Code.CONFIG_CHANGED:
                raise
            self.conflicts += error.code is Code.CONFIG_CHANGED
            self.did(number, f"{kind} {setting.value}: {error}")
            return
        if version.version <= known or setting not in version.settings:
            raise SimulationError(f"{kind}: {setting} after version {known} became {version}")
        self.acknowledged.append(version)
        self.did(number, f"{kind} {setting.value}: version {version.version}")


async def settings(world: World) -> None:
    await world.start()
    load = SettingsLoad(world)
    await storm(world, load)
    assert world.mgmtd is not None
    kept: dict[tuple[str, int], ConfigVersion] = {}
    latest = dict.fromkeys(("mgmtd", *KEYS), 0)
    for kind in KEYS:
        versions = (await world.mgmtd.call(CONFIG_HISTORY, ConfigHistoryRequest(kind, 1000))).versions
        numbers = [version.version for version in versions]
        if numbers and numbers != list(range(numbers[0], numbers[0] - len(numbers), -1)):
            raise SimulationError(f"the history of {kind} has gaps: {numbers}")
        kept |= {(kind, version.version): version for version in versions}
        latest[kind] = numbers[0] if numbers else 0
    lost = [v for v in load.acknowledged if kept.get((v.kind, v.version), v) != v or v.version > latest[v.kind]]
    if lost:
        raise SimulationError(f"acknowledged, and not in the history: {lost}")
    world.faults["versions"] = sum(latest.values())
    uses = (await world.mgmtd.call(CONFIG_USE, Empty())).uses
    stale = [use for use in uses if use.version != latest[use.kind] or use.problem]
    if stale or len(uses) < 1 + world.shape.metas + world.shape.storages:
        raise SimulationError(f"not all use the latest settings, {latest}: {uses}")


SCENARIOS = {"settings": settings}
