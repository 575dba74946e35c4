"""The management daemon's process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import trio

from fs3.config import option
from fs3.daemon import main as daemon_main
from fs3.daemon import tell_status
from fs3.env import Env
from fs3.kv.base import KVEngine
from fs3.kv.registry import open_engine
from fs3.rpc.server import RpcServer
from fs3.settings import MgmtdSettings, RdmaKeys

from .service import Me, MgmtdService
from .state import FIRST_CLIENT
from .store import Store


@dataclass(frozen=True, kw_only=True)
class MgmtdConfig(MgmtdSettings, RdmaKeys):
    """fs3-mgmtd's configuration."""

    node_id: int = option(
        1, help="this daemon's id, of which no other daemon has the like", at_least=1, at_most=FIRST_CLIENT - 1
    )
    listen: str = option("tcp://127.0.0.1:7000", help="address to listen on; port 0 picks a free one")
    advertise: str = option("", help="address that others use for it, where that is not the one it listens on")
    host: str = option("", help="name of this machine, for people; its host name by default")
    data: str = option("/var/lib/fs3/mgmtd", help="folder for its data, if the store is embedded")
    store: str = option("", help="store URL, such as fdb:/etc/foundationdb/fdb.cluster; embedded in `data` by default")
    metrics: str = option("", help="HOST:PORT where Prometheus may fetch /metrics; none by default")
    lease_ms: int = option(
        10_000, help="how long a daemon counts as alive after a heartbeat", unit="ms", at_least=200, at_most=600_000
    )


async def run(config: MgmtdConfig, env: Env, started: Callable[[str], None], engine: KVEngine | None = None) -> None:
    """Serve until cancelled. engine: a store that others have opened, and may share, instead of the configured one.

    Raises CONFIG, and what opening the store raises.
    """
    listener = await env.transport.listen(config.listen)
    try:
        async with _store(config, env, engine) as store:
            me = Me(
                config.node_id,
                config.advertise or listener.address,
                config.host or socket.gethostname(),
                env.client_id(),
                exclusive=engine is None and not config.store.startswith("fdb:"),
            )
            service = MgmtdService(env, Store(store), me, config, config.lease_ms)
            server = RpcServer(env)
            service.bind(server)
            tell_status(server, env, "mgmtd", config.node_id)
            async with trio.open_nursery() as nursery:
                # Those who come before we are primary are told so and try again; that beats a refused connection.
                await nursery.start(server.serve, listener)
                await nursery.start(service.run)
                started(me.address)
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()


@asynccontextmanager
async def _store(config: MgmtdConfig, env: Env, engine: KVEngine | None) -> AsyncIterator[KVEngine]:
    if engine is not None:
        yield engine
        return
    url = config.store or f"embedded:{quote(str(Path(config.data) / 'store'))}"
    async with open_engine(url, env) as opened:
        yield opened


def main() -> None:
    daemon_main("fs3-mgmtd", MgmtdConfig, run, "The management daemon of fs3: who is alive, which replica serves.")


if __name__ == "__main__":
    main()
