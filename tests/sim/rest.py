"""How every simulation goes on once its cluster serves: load under faults, healing, rest, and the removal of all files."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from fs3.api.meta import FileKind
from fs3.client.connect import connect
from fs3.ids import ROOT_INODE
from fuse.fs import FileSystem
from fuse.mount_state import FsOptions
from tests.sim.checkers import check_replicas, count_chunks
from tests.sim.cluster import SimEnv, SimulationError, World
from tests.sim.faults import Faults
from tests.sim.load import Load
from tests.sim.mounts import ROOT


@asynccontextmanager
async def janitor(world: World) -> AsyncIterator[FileSystem]:
    """A mount that prepares, checks and removes, and that no fault meets by name."""
    env = SimEnv(world.network.host("janitor"), random.Random(f"{world.seed}/janitor"))
    async with connect(env, world.mgmtd_addresses, "janitor") as client, trio.open_nursery() as tasks:
        yield FileSystem(client, tasks, FsOptions(0, 0, 0))
        tasks.cancel_scope.cancel()


REPAIRED_S = 15.0
"""How long the repair of what a scrubber found may take: it tries again after 10 s."""


async def storm(world: World, load: Load) -> None:
    """Load under the shape's faults; then all is healed, and everything completes."""
    load.start()
    faults = Faults(world)
    world.nursery.start_soon(faults.run)
    await trio.sleep(world.shape.load_s)
    faults.heal()
    await settle(world, load.finished)


async def settle(world: World, finished: Callable[[], object]) -> None:
    """Everything completes once all is healed."""
    with trio.move_on_after(world.shape.settle_s) as scope:
        await finished()  # type: ignore[misc]
        await trio.sleep(2)  # routing that is older than the healing may still say that all serve
        await world.wait_serving()
        await trio.sleep(1)
        if world.shape.scrub_ms:  # what is damaged is found by then, and repaired
            await trio.sleep(REPAIRED_S + 3 * world.shape.scrub_ms / 1000)
    if scope.cancelled_caught:
        states = world.mgmtd.routing.chains if world.mgmtd is not None else {}
        raise SimulationError(f"not at rest {world.shape.settle_s:.0f} s after healing: {states}")


async def remove_all(world: World, fs: FileSystem) -> None:
    """Remove all files of the root: the collector must then remove all chunks."""
    handle, cookie = await fs.opendir(ROOT, ROOT_INODE), 0
    names = []
    while entries := await fs.readdir(handle, cookie):
        names += [name for name, attr, _ in entries if attr.kind is FileKind.FILE]
        cookie = entries[-1][2]
    for name in names:
        await fs.unlink(ROOT, ROOT_INODE, name)
    with trio.move_on_after(world.shape.settle_s) as scope:
        while await count_chunks(world):  # noqa: ASYNC110 (nothing tells of it)
            await trio.sleep(1)
    if scope.cancelled_caught:
        raise SimulationError("chunks of removed files are left")
    await check_replicas(world)
