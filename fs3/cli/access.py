"""A short visit to a running cluster by RPC."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import AsyncIterator, Sequence
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


async def silent(addresses: Sequence[str]) -> list[str]:
    """Those of the addresses where no daemon answers."""
    async with visiting() as (env, rpc):
        return [address for address in addresses if not await answers(env, rpc, address, timeout_s=3.0)]


def setter() -> str:
    """Who runs this, on which machine: kept with what they change."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
