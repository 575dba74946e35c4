"""The real world's clocks."""

from __future__ import annotations

import trio

from fs3.env import Env, SystemEnv
from fs3.rpc.client import RpcClient
from fs3.transport.memory import MemoryTransport


def test_the_systems_clocks_go_forward() -> None:
    env = SystemEnv(MemoryTransport())
    assert env.monotonic() <= env.monotonic()
    assert abs(env.wall_ns() - Env(MemoryTransport()).wall_ns()) < 60e9


def test_deadlines_on_the_systems_clock_are_met_on_trios() -> None:
    """Both run alike, with another zero."""
    env = SystemEnv(MemoryTransport())

    async def main() -> float:
        async with trio.open_nursery() as nursery:
            ahead_s = RpcClient(env, nursery).trio_time(env.monotonic() + 100) - trio.current_time()
            nursery.cancel_scope.cancel()
        return ahead_s

    assert 40 < trio.run(main) <= 100  # not a simulated clock: the real one
