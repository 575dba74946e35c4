"""A short visit to a running cluster by RPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ..api.common import PING, Empty
from ..env import Env
from ..errors import FS3Error
from ..rpc.client import RpcClient
from ..transport.registry import Transports


@asynccontextmanager
async def visiting() -> AsyncIterator[tuple[Env, RpcClient]]:
    """A client of the cluster's services, closed at the end."""
    env = Env(Transports())
    async with trio.open_nursery() as nursery:
        rpc = RpcClient(env, nursery)
        try:
            yield env, rpc
        finally:
            with trio.CancelScope(shield=True):
                await rpc.aclose()
            nursery.cancel_scope.cancel()


async def answers(env: Env, rpc: RpcClient, address: str, timeout_s: float = 1.0) -> bool:
    """Whether a daemon answers there."""
    try:
        await rpc.call(address, PING, Empty(), deadline=env.monotonic() + timeout_s)
    except FS3Error:
        return False
    return True
