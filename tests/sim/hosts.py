"""Simulations about hosts and disks rather than what clients do: idle, lost, many, drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from fs3.client.connect import connect
from fs3.client.storage import StorageClient
from tests.sim.cells import CELLS
from tests.sim.checkers import check_linearizable, check_replicas
from tests.sim.cluster import Process, Shape, SimEnv, SimulationError, World
from tests.sim.disk import Platter
from tests.sim.faults import Faults
from tests.sim.load import Load
from tests.sim.workloads import ChunkLoad

CRASHES = ("crash", "crash", "crash_many")
PRIMARY = (
    "depose",
    "stop_primary",
    "kv_cut",
    "kv_cut",
    "restart_primary",
    "crash_mgmtd",
    "halve",
    "mgmtd_drift",
    "kv_slow",
    "crash",
)
NETWORK = ("partition", "isolate", "cut", "slow", "hang")

SHAPES = (
    Shape("stop", mgmtds=2, faults=("stop", "stop", "stop", "crash", "cut"), kv_faults=0.01),
    Shape("stop-files", load_s=6, mgmtds=2, metas=2, workload="mounts", faults=("stop",), kv_faults=0.01),
    Shape("stick", faults=("stick", "stick", "crash", "isolate")),
    Shape(
        "nine", load_s=5, mgmtds=3, storages=9, clients=4, chunks=12, faults=(*CRASHES, *NETWORK, "stop"), fault_every_s=0.4
    ),
    Shape("power", faults=("power", "power", "crash_other"), fault_every_s=2.0, scrub_ms=2000),
    Shape(
        "doubt", mgmtds=2, clients=2, load_s=4, faults=("crash", "crash", "crash_mgmtd"), fault_every_s=0.4, kv_faults=0.3
    ),
    Shape("primary", mgmtds=3, load_s=6, faults=(*PRIMARY, "crash"), fault_every_s=0.3, watch_office=True),
    Shape("random", workload="random", load_s=6),
    Shape("rot", chunks=20, faults=("rot", "rot", "rot", "crash_other"), fault_every_s=0.4, scrub_ms=2000),
    Shape("slip", faults=("slip", "slip", "crash_other"), scrub_ms=2000),
    Shape("eio", faults=("spoil", "spoil", "crash_other"), scrub_ms=2000),
    Shape("survivor", faults=("crash", "cut", "slow"), workload="survivor"),
    Shape("records", faults=("records", "records", "crash_other"), fault_every_s=1.5),
)

MEASURES = (Shape("idle", metas=1, workload="idle", load_s=600.0, lease_ms=10_000),)
"""Nothing to find in them; run by name only. Leases as by default: their heartbeats are what there is to do."""


def drawn(seed: int, shape: Shape) -> Shape:
    """A cluster and load at random."""
    chance = random.Random(f"{seed}/shape")
    while True:
        storages, replicas, targets = chance.randint(1, 9), chance.randint(1, 5), chance.randint(1, 4)
        if storages >= 3 and replicas <= storages and storages * targets % replicas == 0:
            break
    workload = chance.choice(("chunks", "chunks", "mounts", "own-files"))
    client = "crash_client" if workload == "chunks" else "crash_mount"
    metas = 0 if workload == "chunks" else chance.randint(1, 2)
    kinds = [
        *CRASHES,
        *NETWORK,
        "stop",
        "stick",
        "disk_slow",
        "kv_slow",
        "crash_mgmtd",
        client,
        *["crash_meta"] * bool(metas),
    ]
    return Shape(
        "random",
        mgmtds=chance.randint(1, 3),
        metas=metas,
        storages=storages,
        replicas=replicas,
        targets=targets,
        clients=chance.randint(1, 4),
        load_s=shape.load_s,
        fault_every_s=chance.choice((0.3, 1.0, 2.0)),
        faults=tuple(chance.sample(kinds, chance.randint(1, len(kinds)))),
        kv_faults=chance.choice((0.0, 0.01, 0.05)),
        workload=workload,
        chunks=chance.randint(1, 10),
        transport=shape.transport,
        canary=shape.canary,
        plan=shape.plan,
    )


class IdleLoad(Load):
    """Clients that are there: they heartbeat, and follow the routing."""

    async def live(self, process: Process, env: SimEnv, number: int, started: Callable[[str], None]) -> None:
        async with connect(env, self.world.mgmtd_addresses, process.name):
            started("")
            await trio.sleep_until(self.stop_at)


async def idle(world: World) -> None:
    """Nothing happens: a measure of what time costs."""
    await world.start()
    load = IdleLoad(world)
    load.start()
    await trio.sleep_until(load.stop_at)


async def survivor(world: World) -> None:
    """All storage daemons but one are lost with their disks, and that one has everything that was acknowledged.

    Then the others come back with empty disks and are filled, and the first one is lost: they have everything too.
    """
    await world.start()
    load = ChunkLoad(world)
    load.start()
    faults = Faults(world)
    world.nursery.start_soon(faults.run)
    await trio.sleep(world.shape.load_s / 2)
    faults.heal()
    await _serving(world)
    storages = world.of_kind("storage")
    kept = storages[world.seed % len(storages)]
    lost = [process for process in storages if process is not kept]
    for process in lost:
        _lose(world, process)
    await load.finished()
    await _read_all(world, load)
    for process in lost:
        process.supervised = True
        process.start()
    await _serving(world)
    _lose(world, kept)
    await _read_all(world, load)
    kept.supervised = True
    kept.start()
    await _serving(world)
    world.undecided += not check_linearizable(load.history, CELLS)
    await trio.sleep(world.network.weather.patience_max_s)  # connections with what is lost have broken by then
    await check_replicas(world)


def _lose(world: World, process: Process) -> None:
    """A storage host burns down; in its place stands one with an empty disk, which is not started yet."""
    process.supervised = False
    process.crash(power=True)
    disk = world.platters[process.name].name
    world.witness.rules.forget(disk)
    world.platters[process.name] = Platter(random.Random(f"{world.seed}/{disk}/next"), f"{disk}-next")
    world.faults["lost"] = world.faults.get("lost", 0) + 1


async def _serving(world: World) -> None:
    """Until all targets serve, and have done so for longer than news takes."""
    with trio.move_on_after(world.shape.settle_s) as scope:
        for _ in range(2):
            await trio.sleep(2)
            await world.wait_serving()
    if scope.cancelled_caught:
        states = world.mgmtd.routing.chains if world.mgmtd is not None else {}
        raise SimulationError(f"not all targets serve after {world.shape.settle_s:.0f} s: {states}")


async def _read_all(world: World, load: ChunkLoad) -> None:
    env = world.env
    assert env is not None and world.rpc is not None and world.mgmtd is not None
    storage = StorageClient(env, world.rpc, world.mgmtd, env.client_id(), "operator")
    for chain, inode in load.registers():
        if not await load.read(storage, 0, chain, inode, 0, len(load.bounds) - 1, env.monotonic() + 20):
            raise SimulationError(f"chunk {inode} cannot be read from those that are left")


SCENARIOS = {"idle": idle, "survivor": survivor}
