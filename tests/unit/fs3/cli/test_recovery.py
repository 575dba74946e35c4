from __future__ import annotations

import trio

from fs3.api.admin import ConfigVersion, Setting
from fs3.api.common import STATUS, Empty, StatusReply
from fs3.cli.recovery import limits, progress, recoveries
from fs3.env import Env
from fs3.ids import NodeKind
from fs3.routing import Node
from fs3.rpc.client import RpcClient
from fs3.rpc.server import Call, RpcServer
from fs3.transport.memory import MemoryTransport


def test_limits_in_words() -> None:
    central = ConfigVersion("storage", 3, (Setting("resync_rate_bytes", "0"),))
    assert limits(central) == "recovery not limited, scrubbing at most 32MiB/s"


def test_each_recovery_is_a_line() -> None:
    metrics = {
        "storage.reads": 7,
        "storage.resync.12.bytes_total": 20 << 30,
        "storage.resync.12.bytes_compared": 1 << 30,
        "storage.resync.12.bytes_sent": 300 << 20,
        "storage.resync.12.chunks_sent": 300,
        "storage.resync.7.bytes_total": 0,
    }
    assert progress(metrics) == [
        "  chain 7: 0 MiB of 0 MiB compared, 0 MiB in 0 chunks sent",
        "  chain 12: 1024 MiB of 20480 MiB compared, 300 MiB in 300 chunks sent",
    ]


async def test_a_daemon_that_does_not_answer_is_silent_and_hides_no_other(nursery: trio.Nursery) -> None:
    env = Env(MemoryTransport())

    async def status(request: Empty, call: Call) -> StatusReply:
        return StatusReply("storage", 1, "1", 1, '{"storage.resync.7.bytes_total": 1048576}')

    server = RpcServer(env)
    server.handle(STATUS, status)
    await nursery.start(server.serve, await env.transport.listen("mem://there"))
    nodes = [Node(n, NodeKind.STORAGE, f"mem://{at}", "h", True, 1) for n, at in ((1, "there"), (2, "nowhere"))]
    found = await recoveries(env, RpcClient(env, nursery), nodes)
    assert found[1] == ["node 1:", "  chain 7: 0 MiB of 1 MiB compared, 0 MiB in 0 chunks sent"]
    assert len(found[2]) == 1 and found[2][0].startswith("node 2: silent (CONNECT_FAILED")
    nursery.cancel_scope.cancel()
