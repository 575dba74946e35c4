"""The whole daemon, with a real mgmtd beside it, over the memory transport."""

from __future__ import annotations

import random

import trio

from fs3.api import meta as api
from fs3.api.common import Empty
from fs3.api.mgmtd import FORMAT, REGISTER, FormatRequest, RegisterRequest, TargetReport
from fs3.client.mgmtd import MgmtdClient
from fs3.env import Env
from fs3.errors import Code, FS3Error
from fs3.ids import NodeKind, RequestTag
from fs3.kv.memory import MemoryEngine
from fs3.routing import LocalState
from fs3.rpc.client import RpcClient
from fs3.transport.memory import MemoryTransport
from meta.daemon import MetaConfig
from meta.daemon import run as run_meta
from mgmtd.daemon import MgmtdConfig
from mgmtd.daemon import run as run_mgmtd
from tests.unit.meta.world import ROOT, R

MGMTD = "mem://mgmtd"
META = "mem://meta"


async def _format(mgmtd: MgmtdClient) -> None:
    target = TargetReport(1, 1, LocalState.ONLINE, 1 << 30, 0)
    await mgmtd.call(REGISTER, RegisterRequest(101, NodeKind.STORAGE, "mem://none", "host", 5, (), (target,)))
    await mgmtd.call(FORMAT, FormatRequest(1, 64 * 1024, 1))


async def _start(nursery: trio.Nursery, run: object, *args: object) -> trio.CancelScope:
    """Run a daemon until its scope is cancelled; returns once it has started."""
    scope = trio.CancelScope()
    ready = trio.Event()

    async def task() -> None:
        with scope:
            await run(*args[:2], lambda address: ready.set(), *args[2:])  # type: ignore[operator]

    nursery.start_soon(task)
    await ready.wait()
    return scope


async def test_it_waits_for_the_format_then_serves_and_survives_a_restart(autojump_clock: object) -> None:
    env = Env(MemoryTransport(), random.Random(3))
    engine = MemoryEngine()  # no threads, for which this clock does not wait
    config = MetaConfig(listen=META, mgmtd=(MGMTD,), root_uid=7, root_gid=8)
    async with trio.open_nursery() as nursery:
        await _start(nursery, run_mgmtd, MgmtdConfig(listen=MGMTD), env, MemoryEngine())
        scope = await _start(nursery, run_meta, config, env, engine)
        rpc = RpcClient(env, nursery)
        mgmtd = MgmtdClient(env, rpc, (MGMTD,))
        await nursery.start(mgmtd.run)
        assert [node.address for node in mgmtd.routing.nodes_of(NodeKind.META)] == [META]

        async def getattr(inode: int) -> api.AttrReply:
            deadline = env.monotonic() + 5
            return await rpc.call(META, api.GETATTR, api.GetattrRequest(inode), deadline=deadline)

        try:
            await getattr(R)
            raise AssertionError("served without a root")
        except FS3Error as error:
            assert error.code is Code.NO_ROUTING and error.retryable
        await _format(mgmtd)
        await trio.sleep(1)
        root = (await getattr(R)).attr
        assert (root.nlink, root.uid, root.gid, root.mode) == (2, 7, 8, 0o755)
        request = api.MknodRequest(RequestTag(1, 1, 1), ROOT, R, b"d", api.FileKind.DIRECTORY, 0o700)
        made = (await rpc.call(META, api.MKNOD, request, deadline=env.monotonic() + 5)).attr
        assert (await getattr(made.inode)).attr == made

        scope.cancel()
        await trio.sleep(0.1)
        assert mgmtd.routing.nodes_of(NodeKind.META) == ()
        await _start(nursery, run_meta, config, env, engine)
        assert (await getattr(made.inode)).attr == made
        files = await rpc.call(META, api.STATFS, Empty(), deadline=env.monotonic() + 5)
        assert files.files == 2
        nursery.cancel_scope.cancel()
    await engine.aclose()
