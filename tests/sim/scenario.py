"""One simulation from its seed: start, load with faults, heal, demand completion, check."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import trio

from fs3.client.connect import connect
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim import (
    bank,
    fscked,
    hosts,
    kvcache,
    locks,
    namespace,
    operators,
    settings,
    shared,
    synced,
    trees,
    wires,
    workloads,
)
from tests.sim.canaries import planted
from tests.sim.cells import CELLS, FILE_CELLS
from tests.sim.checkers import check_linearizable, check_replicas
from tests.sim.cluster import Shape, SimEnv, SimulationError, World, simulate
from tests.sim.durable import DurableLoad
from tests.sim.faults import Faults
from tests.sim.mounts import NAMESPACE, MountLoad
from tests.sim.own import OwnFileLoad
from tests.sim.rest import remove_all, settle, storm
from tests.sim.rings import RingLoad

CRASHES = ("crash", "crash", "crash_many")
CLOCKS = ("clock_jump", "clock_drift")
NETWORK = ("partition", "isolate", "cut", "slow", "hang")
ALL = (*CRASHES, *NETWORK, *CLOCKS, "crash_mgmtd", "crash_meta", "crash_mount", "kv_slow", "disk_slow")
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("calm", load_s=5),
        Shape("crash", faults=CRASHES),
        Shape("network", faults=NETWORK),
        Shape(
            "mixed",
            mgmtds=2,
            faults=(*CRASHES, *NETWORK, *CLOCKS, "crash_mgmtd", "crash_client", "disk_slow", "depose"),
            kv_faults=0.01,
        ),
        Shape("wide", mgmtds=3, storages=5, replicas=3, targets=3, clients=4, faults=(*CRASHES, *NETWORK), kv_faults=0.01),
        Shape(
            "office",
            mgmtds=3,
            faults=("kv_slow", "depose", "depose", "stop_primary", "kv_cut", "crash_mgmtd", "partition", "crash", "hang"),
            kv_faults=0.05,
            fault_every_s=0.5,
        ),
        Shape("pair", storages=3, replicas=2, targets=2, faults=(*CRASHES, *NETWORK, "crash_mgmtd", "crash_client")),
        Shape(
            "rdma",
            load_s=2.5,
            transport="rdma",
            think_s=0.03,
            faults=("slow", "slow", "crash", "cut", "partition", "stop", "crash_client", "disk_slow"),
            fault_every_s=0.2,
        ),
        Shape("deep", load_s=6, storages=5, replicas=5, targets=1, faults=(*CRASHES, *NETWORK)),
        Shape("single", storages=1, replicas=1, targets=1, faults=("crash", "cut", "slow", "crash_mgmtd")),
        Shape("hot", chunks=2, think_s=0.04, load_s=8, faults=("crash", "crash", *NETWORK), fault_every_s=0.6),
        Shape(
            "sprint",
            chunks=1,
            think_s=0.008,
            load_s=2,
            clients=4,
            faults=("slow", "slow", "disk_slow", "hang", "cut", "crash"),
            fault_every_s=0.2,
        ),
        Shape("fence", chunks=2, think_s=0.03, load_s=12, clients=4, faults=("split",), fault_every_s=2.0),
        Shape(
            "apart",
            storages=2,
            replicas=2,
            targets=1,
            chunks=2,
            think_s=0.03,
            load_s=12,
            clients=4,
            faults=("split",),
            fault_every_s=4.0,
        ),
        Shape("again", chunks=1, think_s=0.015, load_s=2.5, faults=("cut",), always=("storage.write.reply-lost",)),
        Shape("clock", mgmtds=2, metas=1, faults=(*CLOCKS, *CLOCKS, "split", "isolate", "crash")),
        Shape("disk", faults=("disk_error", "disk_slow", "crash", "full")),
        Shape("files", metas=1, workload="mounts"),
        Shape("files-meta", metas=2, workload="mounts", faults=("crash_meta", "crash_meta", "cut"), kv_faults=0.02),
        Shape(
            "files-all",
            mgmtds=2,
            metas=2,
            workload="mounts",
            faults=ALL,
            kv_faults=0.02,
        ),
        Shape("rings", mgmtds=2, metas=2, workload="rings", faults=ALL, kv_faults=0.02),
        Shape("own", metas=1, chunk_size=64 * 1024, workload="own-files", always=("meta.intent.interrupted",)),
        Shape(
            "own-all",
            mgmtds=2,
            metas=2,
            chunk_size=64 * 1024,
            workload="own-files",
            faults=(*ALL, "crash_meta"),
            kv_faults=0.02,
        ),
        Shape("late", metas=2, chunk_size=64 * 1024, workload="own-files", faults=("late",), load_s=60, fault_every_s=5.0),
        Shape("fsync", think_s=0.03, load_s=6, workload="durable", faults=("cut",)),
        Shape("fsync-overwrite", think_s=0.03, load_s=6, workload="durable-overwrite", faults=("cut",)),
        *namespace.SHAPES,
        *kvcache.SHAPES,
        *hosts.SHAPES,
        *shared.SHAPES,
        *bank.SHAPES,
        *locks.SHAPES,
        *synced.SHAPES,
        *operators.SHAPES,
        *settings.SHAPES,
        *fscked.SHAPES,
        *trees.SHAPES,
        *wires.SHAPES,
    )
}

UNMET = {
    shape.name: shape
    for shape in (
        Shape(
            "clock-broken",
            storages=2,
            replicas=2,
            targets=1,
            chunks=2,
            think_s=0.03,
            load_s=12,
            clients=4,
            faults=("clock_broken",),
            fault_every_s=4.0,
        ),
        *hosts.MEASURES,
    )
}
"""What the product does not hold yet; run by name only."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seed came to. virtual_s: seconds of virtual time. faults_by_kind, rare: how often each kind of fault was
    injected, and each rare branch taken. happened: what each fault of the plan did, in words."""

    digest: str
    virtual_s: float
    operations: int
    messages: int
    faults: int
    undecided: int
    real_s: float
    faults_by_kind: dict[str, int] = field(default_factory=dict)
    rare: dict[str, int] = field(default_factory=dict)
    happened: dict[int, str] = field(default_factory=dict)


def run_seed(seed: int, shape: Shape, *, verbose: bool = False) -> Outcome:
    """Raises SimulationFailed where something did not hold."""
    started = time.perf_counter()
    result: dict[str, float] = {}
    if shape.workload == "random":
        shape = hosts.drawn(seed, shape)

    async def main(world: World) -> None:
        await SCENARIOS[shape.workload](world)
        result["virtual_s"] = trio.current_time()

    with planted(shape.canary):
        world = simulate(seed, shape, main, verbose=verbose)
    return Outcome(
        world.trace.digest(),
        result["virtual_s"],
        world.operations,
        world.network.messages,
        sum(world.faults.values()),
        world.undecided,
        time.perf_counter() - started,
        dict(world.faults),
        dict(world.rare.fired),
        world.happened,
    )


async def chunks(world: World) -> None:
    """Load on chunks, faults, healing; then everything must come to rest, equal on all replicas."""
    await world.start()
    load = workloads.ChunkLoad(world)
    await storm(world, load)
    env = world.env
    assert env is not None and world.rpc is not None and world.mgmtd is not None
    storage = workloads.StorageClient(env, world.rpc, world.mgmtd, env.client_id(), "operator")
    for chain, inode in load.registers():
        deadline = env.monotonic() + 20
        if not await load.read(storage, 0, chain, inode, 0, len(load.bounds) - 1, deadline):
            raise SimulationError(f"chunk {inode} cannot be read after healing")
    world.undecided += not check_linearizable(load.history, CELLS)
    await check_replicas(world)


async def durable(world: World, overwrite: bool = False) -> None:
    """All storage hosts lose power in the middle of the load. What was synced is there afterwards."""
    await world.start()
    assert world.env is not None and world.rpc is not None and world.mgmtd is not None
    load = DurableLoad(world, overwrite=overwrite)
    load.start()
    faults = Faults(world)
    world.nursery.start_soon(faults.run)
    await trio.sleep(world.shape.load_s * world.chance.random())
    for process in world.of_kind("client"):
        process.crash()
        process.supervised = False
    for process in world.of_kind("storage"):
        process.crash(power=True)
        world.lost_power(process.name)
    world.faults["power_all"] = 1
    await trio.sleep(0.5)
    faults.heal()
    await settle(world, trio.lowlevel.checkpoint)
    await load.check(workloads.StorageClient(world.env, world.rpc, world.mgmtd, 1, "operator"), world.env)


async def mounts(world: World, load_type: type[MountLoad] = MountLoad) -> None:
    """Load through mounts. Afterwards all files are removed, and no chunk may be left."""
    await world.start()
    env = world.env
    assert env is not None and world.mgmtd is not None
    load = load_type(world)
    operator = SimEnv(world.network.host("janitor"), random.Random(f"{world.seed}/janitor"))
    async with connect(operator, world.mgmtd_addresses, "janitor") as client, trio.open_nursery() as tasks:
        fs = FileSystem(client, tasks, FsOptions(0, 0, 0))
        await load.prepare(fs)
        await storm(world, load)
        for name, folder in load.folders.items():
            call = load.names.call(0, "names", ("list", name))
            load.names.done(call, await load.listing(fs, folder))
        world.undecided += not check_linearizable(load.names, NAMESPACE)
        world.undecided += not check_linearizable(load.content, FILE_CELLS)
        await load.check_log(fs)
        await check_replicas(world)
        await remove_all(world, fs)
        tasks.cancel_scope.cancel()


async def own_files(world: World) -> None:
    """Files with one writer each. Afterwards another mount sees what was closed; all is removed and no chunk left."""
    await world.start()
    load = OwnFileLoad(world)
    operator = SimEnv(world.network.host("janitor"), random.Random(f"{world.seed}/janitor"))
    async with connect(operator, world.mgmtd_addresses, "janitor") as client, trio.open_nursery() as tasks:
        fs = FileSystem(client, tasks, FsOptions(0, 0, 0))
        await storm(world, load)
        await load.check(fs)
        await remove_all(world, fs)
        tasks.cancel_scope.cancel()


SCENARIOS = {
    "own-files": own_files,
    "chunks": chunks,
    "mounts": mounts,
    "rings": lambda world: mounts(world, RingLoad),
    "durable": durable,
    "durable-overwrite": lambda world: durable(world, overwrite=True),
    **namespace.SCENARIOS,
    **kvcache.SCENARIOS,
    **hosts.SCENARIOS,
    **shared.SCENARIOS,
    **bank.SCENARIOS,
    **locks.SCENARIOS,
    **synced.SCENARIOS,
    **operators.SCENARIOS,
    **settings.SCENARIOS,
    **fscked.SCENARIOS,
    **trees.SCENARIOS,
    **wires.SCENARIOS,
}
