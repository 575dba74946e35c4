"""fsck of clusters in use: it finds nothing where nothing is wrong, whatever is under way and whoever fails, and does no
harm; and it removes what a loss of all power leaves behind."""

from __future__ import annotations

import trio

from fs3.errors import FS3Error
from meta.examine import Report
from meta.fsck import Fault
from meta.fsck_command import examine
from tests.sim.cluster import Shape, SimulationError, World
from tests.sim.namespace import NamespaceLoad
from tests.sim.own import OwnFileLoad
from tests.sim.records import check_emptied, check_store, empty_tree
from tests.sim.rest import janitor, storm
from tests.sim.synced import SyncedLoad, blackout, check_new

ALLOWED = (Fault.CHUNK_BEHIND_END,)
"""What a write that failed may have left."""
OWN_FILES = 0.6
"""How often the load is on the content of files."""


async def fsck(world: World, *, repair: bool, inodes_at_once: int = 1000) -> Report:
    assert world.env is not None and world.rpc is not None and world.mgmtd is not None
    report = await examine(
        world.env,
        world.rpc,
        world.mgmtd,
        lambda what, done, total: None,
        repair=repair,
        inodes_at_once=inodes_at_once,
    )
    world.trace.note(f"fsck: {report}")
    return report


def require_clean(report: Report, allowed: tuple[Fault, ...] = ALLOWED) -> None:
    wrong = [finding for finding in report.findings if finding.fault not in allowed]
    if wrong:
        raise SimulationError("fsck finds:\n" + "\n".join([str(finding) for finding in wrong]))


async def check_again_and_again(world: World, done: list[int]) -> None:
    """As an operator who may repair would do it. Meta may be out of reach for too long."""
    while True:
        try:
            report = await fsck(world, repair=True, inodes_at_once=world.chance.choice((5, 1000)))
        except FS3Error as error:
            world.trace.note(f"fsck gave up: {error}")
            await trio.sleep(0.5)
            continue
        require_clean(report)
        done.append(len(report.unchecked))
        await trio.sleep(0.3)


async def busy(world: World) -> None:
    await world.start()
    load = NamespaceLoad(world) if world.chance.random() > OWN_FILES else OwnFileLoad(world)
    async with janitor(world) as fs:
        if isinstance(load, NamespaceLoad):
            await load.prepare(fs)
        done: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_again_and_again, world, done)
            await storm(world, load)
            nursery.cancel_scope.cancel()
        report = await fsck(world, repair=True)
        require_clean(report)
        if report.unsettled or report.unchecked:
            raise SimulationError(f"at rest, and yet fsck does not get through: {report}")
        if isinstance(load, OwnFileLoad):
            await load.check(fs)
        await check_store(world)
        await empty_tree(fs)
        await check_emptied(world)
        require_clean(await fsck(world, repair=False), ())


async def after_power_loss(world: World) -> None:
    """Chunks of files whose making was forgotten are removed, and of nothing else."""
    await world.start()
    load = SyncedLoad(world)
    await blackout(world, load)
    first = await fsck(world, repair=True)
    require_clean(first, (*ALLOWED, Fault.ORPHAN_CHUNK))
    if first.findings and first.exit_code() != 1:
        raise SimulationError(f"fsck leaves something: {first}")
    second = await fsck(world, repair=True)
    if second.exit_code():
        raise SimulationError(f"fsck finds something again: {second}")
    world.faults["orphans"] = sum(finding.fault is Fault.ORPHAN_CHUNK for finding in first.findings)
    async with janitor(world) as fs:
        await load.check(fs)
        await check_new(fs)
        await check_store(world)
        await empty_tree(fs)
        await check_emptied(world)


SHAPES = (
    Shape(
        "fsck",
        mgmtds=2,
        metas=2,
        storages=3,
        replicas=2,
        targets=2,
        workload="fsck",
        load_s=3,
        faults=("crash_meta", "crash_mount", "cut", "kv_slow", "hang", "crash", "crash_mgmtd"),
        kv_faults=0.02,
    ),
    Shape("fsck-power", metas=1, storages=3, replicas=2, workload="fsck-power", load_s=2, think_s=0.05, faults=("cut",)),
)
SCENARIOS = {"fsck": busy, "fsck-power": after_power_loss}
